"""The methods: what a gradient share is contracted with.

`path` is the default; `path-given` its counterpart for the papers' game; `path-smoothed` for steps
that act like signs; `sgd`, `sgd-second`, `linearized` and `tangent` are the published estimators
and the leave-one-out marginal.
"""

from inrun.directions._direction import Direction, Game, Gradients, Pulled, SampleDirection
from inrun.directions._methods import SGD, Linearized, Path, PathGiven, SGDSecond, Tangent
from inrun.directions._smoothed import PathSmoothed, evaluations
from inrun.errors import MisuseError

_KINDS: tuple[type[Direction], ...] = (
    Path, PathGiven, PathSmoothed, SGD, SGDSecond, Linearized, Tangent,
)  # fmt: skip
ESTIMATORS: dict[str, Direction] = {kind.name: kind() for kind in _KINDS}


def direction_of(estimator: str | Direction) -> Direction:
    """The method of that name, or the direction itself: one's own need no registration.

    Raises:
        MisuseError: there is none of that name.
    """
    if isinstance(estimator, Direction):
        return estimator
    if estimator not in ESTIMATORS:
        raise MisuseError(
            f"estimator {estimator!r} is not one of {', '.join(ESTIMATORS)}, nor an "
            "inrun.directions.Direction."
        )
    return ESTIMATORS[estimator]


__all__ = [
    "ESTIMATORS",
    "SGD",
    "Direction",
    "Game",
    "Gradients",
    "Linearized",
    "Path",
    "PathGiven",
    "PathSmoothed",
    "Pulled",
    "SGDSecond",
    "SampleDirection",
    "Tangent",
    "direction_of",
    "evaluations",
]
