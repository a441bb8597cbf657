"""What cannot be done with the settings that a run was attached with."""

from __future__ import annotations

from inrun.attribution._scorer import Scorer
from inrun.capture import Capture, Stream
from inrun.errors import MisuseError
from inrun.factors import DenseContraction


def demand_losses(scorer: Scorer, what: str) -> None:
    """Refuses what cannot be done without a validation loss.

    Raises:
        MisuseError: the next batch stands for a validation set.
    """
    if scorer.validation.follows:
        raise MisuseError(
            f"{what} needs a validation loss, and Utility.next_batch() has none. Attach with "
            "Utility(loss_fn, validation_batch)."
        )


def demand_whole_directions(scorer: Scorer, capture: Capture) -> None:
    """Refuses settings under which a value is not one direction's product with a share.

    Raises:
        MisuseError: names the setting.
    """
    exact = isinstance(scorer.contraction, DenseContraction)
    if isinstance(capture, Stream) or not exact or not scorer.one_direction:
        raise MisuseError(
            "Values a token need each sample's value to be one direction's product with its "
            "share, exactly. Attach with capture='hold', contraction='dense' and "
            "smoothed_steps=0, and not with estimator='path-smoothed'."
        )
    if scorer.payouts is not None:
        raise MisuseError(
            "Values a token are those of a step alone, and payout adds what momentum did "
            "later. Attach with momentum_window=0."
        )
