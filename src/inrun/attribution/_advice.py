"""What a run is warned of, each once."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from inrun.attribution._shelf import Holding
from inrun.capture import Capture, Coverage
from inrun.errors import InRunWarning
from inrun.optim import Together


class Advice:
    """Says what is less exact than it looks."""

    def __init__(self) -> None:
        self._given: set[str] = set()

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

    def of_stale(self, refresh: int) -> None:
        """Steps that are judged by a validation gradient of steps before them."""
        if refresh > 1:
            self.once(
                f"Utility(refresh={refresh}) judges {refresh - 1} of {refresh} steps by a "
                "validation gradient that is older than they are. Totals may bear that, single "
                "steps need not: compare with refresh=1 on a short run, or use rotating=2."
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
                f"payout={window} will hold {(full.memory + full.disk) / 1e9:.1f} GB when its "
                f"window is full, {more / 1e9:.1f} GB more than now, and {free / 1e9:.1f} GB are "
                "free there. Attach with a smaller payout, with payout_to='cpu', or with "
                "payout_to='FOLDER' on a disk with more room."
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
