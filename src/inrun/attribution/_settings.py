"""Which settings of `attach` go together: told before there is a model."""

from __future__ import annotations

import os

from inrun.attribution._frequency import frequency_of
from inrun.capture import Alone, Hold, Offload, Stream
from inrun.directions import Direction, direction_of
from inrun.errors import MisuseError

CAPTURES: dict[str, type[Hold] | type[Stream]] = {
    "hold": Hold,
    "offload": Offload,
    "stream": Stream,
}


def demand_settings(
    *,
    estimator: str | Direction = "path",
    capture: str = "hold",
    every: int | float = 1,
    max_overhead: float | None = None,
    payout: int = 0,
    payout_to: str | os.PathLike[str] | None = None,
) -> Direction:
    """Raises what `attach` would raise of these, whatever the model and the optimizer are.

    Args:
        estimator: as of `attach`; so are the others.
        capture: see `estimator`.
        every: see `estimator`.
        max_overhead: see `estimator`.
        payout: see `estimator`.
        payout_to: see `estimator`; whether it is there is not looked at.

    Returns:
        The estimator's direction.

    Raises:
        MisuseError: a setting that is not known, or two that do not fit each other.
    """
    if capture not in CAPTURES:
        raise MisuseError(f"capture {capture!r} is not one of {', '.join(CAPTURES)}.")
    direction = direction_of(estimator)
    if capture == "stream" and not direction.streams:
        raise MisuseError(
            f"estimator {direction.name!r} needs passes or shares that are there only after the "
            "backward pass. Use capture='hold' with it."
        )
    sampled = frequency_of(every, max_overhead, Alone(), halves=False).sampled
    if isinstance(payout, bool) or not isinstance(payout, int) or payout < 0:
        raise MisuseError(f"payout={payout!r} is no number of steps.")
    if payout and (direction.name != "path" or capture == "stream" or sampled):
        raise MisuseError(
            "payout gives samples what momentum does in later steps, so every step must be scored "
            "(every=1, no max_overhead), with estimator='path', and shares must be kept "
            "(capture='hold' or 'offload')."
        )
    if payout == 0 and payout_to is not None:
        raise MisuseError("payout_to says where payout=W keeps its steps, and there is no payout.")
    return direction
