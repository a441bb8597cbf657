"""The scoring of a step: from blocks of shares to values and books.

A `Step` is one optimizer step on its way; the `Scorer` is what outlives it. `_plan` says before the
step of what each parameter's direction will be made, `_gradients` what became of the gradients,
`_validation` holds the passes before and after, and `_sums` contracts directions with shares and
reads what came of it.
"""

from inrun.scoring._marks import Edited, MemoryMark, mark_of
from inrun.scoring._open_step import Stage
from inrun.scoring._scorer import Scorer
from inrun.scoring._step import Step
from inrun.scoring._sums import BlockValues, Scored, contracted
from inrun.scoring._tokens import TokenLosses, Tokens, require_whole_directions
from inrun.scoring._window import LONGEST
from inrun.scoring._windowed import AUDITED, Windows

__all__ = [
    "AUDITED",
    "LONGEST",
    "BlockValues",
    "Edited",
    "MemoryMark",
    "Scored",
    "Scorer",
    "Stage",
    "Step",
    "TokenLosses",
    "Tokens",
    "Windows",
    "contracted",
    "mark_of",
    "require_whole_directions",
]
