"""What a run is warned of, each once."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Sequence

from torch import nn

from inrun.capture import Capture, Coverage
from inrun.distributed import Processes
from inrun.errors import InRunWarning
from inrun.ledger import ClosedWindow
from inrun.momentum import Holding
from inrun.optim import Together
from inrun.utility import Utility, is_repeatable


class Advice:
    """Says what is less exact than it looks."""

    def __init__(self) -> None:
        self._given: set[str] = set()
        self._told_interaction = False
        self._told_turned = False  # whether a scoring window's gradient was said to have turned
        self._tried = False  # whether the loss was called twice already

    def once(self, text: str) -> None:
        """Warns, unless these words were said before."""
        if text not in self._given:
            self._given.add(text)
            warnings.warn(text, InRunWarning, stacklevel=4)

    def of_gaps(self, coverage: Coverage) -> None:
        """Parameters whose gradient no captured use explains."""
        if coverage.gaps:
            first = coverage.gaps[0]
            self.once(
                f"{len(coverage.gaps)} parameters with a gradient are not captured, {first} first: "
                f"{coverage.explain(first)}. What they did is in no sample's value; it shows in "
                "the books' residual. See attribution.coverage()."
            )

    def of_samples(self, capture: Capture) -> None:
        """That samples interact, said once; owners not known; rows in another order."""
        if capture.coverage.interactions and not self._told_interaction:
            self._told_interaction = True
            self.once(
                f"Samples interact before the loss ({', '.join(capture.coverage.interactions)}): a "
                "sample's value is what passes through its own slots, with the others as they "
                "are. Values add up and the books close; it is not what the step would have been "
                "without the sample. See the page on samples that interact."
            )
        for operation in capture.coverage.unknown:
            self.once(
                f"The loss depends on an operation of which it is not known whose its results are: "
                f"{operation}. Shares are those of the slots that were followed; compare with "
                "attribution.audit."
            )
        for note in (*capture.inputs.notes, *capture.owner_checks.notes):
            self.once(note)

    def of_cancelling(self, names: Collection[str]) -> None:
        """Parameters whose shares cancel, under an optimizer that magnifies what is left."""
        if names:
            self.once(
                f"The shares of {len(names)} parameters, {min(names)} first, cancel to a gradient "
                "that is rounding beside them (a bias in front of BatchNorm), and the optimizer "
                "magnifies it: single samples' values there mean nothing, although they add up. "
                "Attach with capture='hold' and smoothing on (the defaults), or build the layer "
                "with bias=False."
            )

    def of_stale(self, refresh: int) -> None:
        """Steps that are judged by a validation gradient of steps before them."""
        if refresh > 1:
            self.once(
                f"validation_every={refresh} judges {refresh - 1} of {refresh} steps by a "
                "validation gradient that is older than they are. Totals may bear that, single "
                "steps need not: compare with validation_every=1 on a short run, or use "
                "validation_parts=2."
            )

    def of_compiled(self, compiled: bool) -> None:
        """A model that is compiled, wholly or in part."""
        if compiled:
            self.once(
                "The model is compiled. Within attribution.batch(ids) it runs uncompiled, since "
                "fused operations cannot be seen: training takes as long as without torch.compile, "
                "and its last digits are those of the plain model."
            )

    def of_payouts(self, held: Holding, full: Holding, free: int | None, window: int) -> None:
        """Steps that wait for momentum, where there is no room for all of them."""
        more = full.memory + full.disk - held.memory - held.disk
        if free is not None and more > free:
            self.once(
                f"momentum_window={window} will hold "
                f"{(full.memory + full.disk) / 1e9:.1f} GB when its "
                f"window is full, {more / 1e9:.1f} GB more than now, and {free / 1e9:.1f} GB are "
                "free there. Attach with a smaller momentum_window, with held_in='cpu', or with "
                "held_in='FOLDER' on a disk with more room."
            )

    def of_ended(self, names: Sequence[str]) -> None:
        """Parameters whose memory of earlier steps is gone before their windows are over."""
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            self.once(
                f"The momentum windows of {names[0]}{more} end here: steps were taken without "
                "being scored, or the optimizer's memory was emptied, edited or loaded. Samples of "
                "earlier steps are paid what momentum did until now; what it may still do for them "
                "is in the books' momentum and in no value."
            )

    def of_random_loss(self, model: nn.Module, utility: Utility, called: Processes) -> None:
        """A validation loss that is another one at each call."""
        if utility.draws > 1 or self._tried:
            return
        self._tried = True
        if not is_repeatable(utility, model, called):
            self.once(
                "The validation loss draws random numbers: two calls at the same weights differ. "
                "What it falls by in a step is then mostly chance, and so are values and the "
                "books. Fix the noise inside loss_fn (its own seeded torch.Generator, model.eval() "
                "left as it is), or attach with Utility(..., draws=8): the mean over so many "
                "draws, the same ones at a step's opening and closing."
            )

    def of_windows(self, told: Sequence[ClosedWindow]) -> None:
        """A scoring window between whose ends the validation gradient has turned."""
        turned = [window for window in told if window.turned]
        if turned and not self._told_turned:
            self._told_turned = True
            self.once(
                f"Scoring window: {turned[0].words()}. The validation gradient turned between its "
                "ends, so that what it did within is not in the values. Use shorter windows, "
                "inrun.Window('auto'), or inrun.EveryStep(); attribution.windows has them all."
            )

    def of_another_optimizer(self, kind: str) -> None:
        """An optimizer that is not attached moved weights whose steps are scored."""
        self.once(
            f"An optimizer that is not attached ({kind}) moved weights of this model: its steps "
            "are in no sample's value, and in the books under the entry `other`. If it took the "
            "place of the attached one, or trains beside it, attach again: attribution.detach(), "
            "then inrun.attach(model, optimizer, ...), with all optimizers that step together."
        )

    def of_edited_weights(self) -> None:
        """Weights that were changed between two steps, by no step."""
        self.once(
            "Weights were changed between two optimizer steps (clipped, re-normalised, reset, or "
            "by an optimizer that is not attached). Each step is scored at the weights that it "
            "found; what the change itself did to the validation loss is in the books, in the "
            "entry `other`."
        )

    def of_strangers(self, optimizers: Together, capture: Capture) -> None:
        """Parameters that the optimizer moves and no block has watched."""
        watched = {id(p) for p in capture.trained.values()}
        moving = [p for p in optimizers.parameters() if p.grad is not None]
        strangers = sum(id(p) not in watched for p in moving)
        if strangers:
            self.once(
                f"The optimizer moves {strangers} parameters that were frozen or added since the "
                "last block. What they do shows in the books' residual. After freezing, call "
                "zero_grad(set_to_none=True); add parameters between step() and the next block."
            )
