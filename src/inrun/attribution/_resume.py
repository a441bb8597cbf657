"""What of an attribution goes into a training checkpoint, and how it comes back.

With the model's and the optimizer's own state, this is all that the next step's values depend on.
What is not in it is computed again: the opening validation pass, and where samples lie in each
operation. An audit that was going on is in it too, and goes on where the loop begins one again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from inrun.attribution._ids import IdReader
from inrun.attribution._record import Record
from inrun.attribution._scorer import Scorer
from inrun.attribution._steps import Steps
from inrun.errors import InRunError, MisuseError, StoreError
from inrun.ledger import seal, unseal


class Resume:
    """Gathers the parts' states and hands them out again.

    Args:
        kind: what must be the same in both runs: estimator, targets, weights.
        steps: counts.
        scorer: remembers forecasts and ranks.
        record: the totals and the books.
        ids: of which kind they are.
    """

    def __init__(
        self,
        kind: Mapping[str, Any],
        steps: Steps,
        scorer: Scorer,
        record: Record,
        ids: IdReader,
    ):
        self._kind = {
            name: list(v) if isinstance(v, Sequence) and not isinstance(v, str) else v
            for name, v in kind.items()
        }
        self._steps, self._scorer, self._record, self._ids = steps, scorer, record, ids

    def state(self) -> dict[str, Any]:
        """See `Attribution.state_dict`."""
        self._steps.finish()
        if self._steps.pending:
            raise MisuseError(
                "state_dict() was called between backward() and optimizer.step(). The gradients "
                "of that step are in no checkpoint, so its samples would be lost. Call it after "
                "the step."
            )
        scorer, tensors = self._scorer.state()
        record, tables = self._record.state(self._steps.paying.owed())
        header = {
            "kind": self._kind,
            "taken": self._steps.taken,
            "scored": self._steps.booking.scored,
            "frequency": self._steps.frequency.state(),
            "ids": self._ids.kind,
            "scorer": scorer,
            "record": record,
            "audit": self._steps.auditing.state(),
        }
        named = {f"scorer/{name}": t for name, t in tensors.items()}
        return seal(header, {**named, **{f"record/{name}": t for name, t in tables.items()}})

    def restore(self, state: Mapping[str, Any]) -> None:
        """See `Attribution.load_state_dict`."""
        header, tensors = unseal(state)
        try:
            self._restore(header, tensors)
        except InRunError:
            raise
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise StoreError(
                f"The attribution's state is malformed ({type(error).__name__}: {error}): another "
                "version or program wrote it. Resume from another checkpoint, or start a new run."
            ) from error

    def _restore(self, header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """The same, of a state whose seal fits."""
        for name, now in self._kind.items():
            then = header["kind"].get(name)
            if then != now:
                raise MisuseError(
                    f"The state is of a run with {name} {then!r}, and this one has {now!r}. Attach "
                    "as before, or start a new run without the state."
                )
        if self._steps.inside or self._steps.pending:
            raise MisuseError("load_state_dict() came within a step. Call it before the loop.")

        def part(prefix: str) -> dict[str, Any]:
            cut = len(prefix)
            return {name[cut:]: t for name, t in tensors.items() if name.startswith(prefix)}

        self._record.restore(header["record"], part("record/"))
        processes = self._scorer.processes
        if processes.size > 1 and header["record"]["store"] is not None:
            self._record.take_books(processes.gathered(self._record.stored_books())[0])
        self._scorer.restore(header["scorer"], part("scorer/"))
        self._ids.kind = header["ids"]
        self._steps.taken, self._steps.booking.scored = header["taken"], header["scored"]
        self._steps.frequency.restore(header["frequency"])
        self._steps.drop(moved=True)
        self._steps.auditing.restore(header.get("audit"))
