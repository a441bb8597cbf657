"""What nobody needs on the first day, and which settings of `attach` go together."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from inrun.attribution._scoring import EveryStep, Scoring
from inrun.capture import Hold, Offload, Stream
from inrun.directions import Direction, direction_of
from inrun.errors import MisuseError, require_one_of
from inrun.factors import Contraction, DenseContraction, LowRankContraction

CAPTURES: dict[str, type[Hold] | type[Stream]] = {
    "hold": Hold,
    "offload": Offload,
    "stream": Stream,
}
CONTRACTIONS: dict[str, type[DenseContraction] | type[LowRankContraction]] = {
    "auto": LowRankContraction,
    "dense": DenseContraction,
}


@dataclass(frozen=True, kw_only=True)
class Options:
    """How `inrun.attach` does its work; the defaults serve nearly always.

    Args:
        capture: 'hold' keeps every layer's input and output gradient until the step is over and is
            exact; 'offload' does the same and keeps them on the CPU; 'stream' contracts inside the
            backward pass and keeps nothing, see `inrun.capture`.
        contraction: 'auto' meets large matrices' directions through a low rank, to a relative error
            of 1 % of the values, which it measures; 'dense' is exact; or a contraction of
            `inrun.factors`, as `LowRankContraction(rank=32)`. `coverage()` says what is used.
        smoothed_steps: for 'path' with 'hold', steps are scored by 'path-smoothed' where the size
            that divides them is made of fewer gradients than this, so that the optimizer acts like
            a sign, and as long as that is cheap: Adam's first ones, every step of Adam where
            1 / (1 - b2) is no more than this, of Lion, Rprop and Muon. 0 never smooths. The ledger
            says for each step which was used.
        held_in: where the steps of the momentum window are held: 'cpu', or a folder on a disk with
            room, which is left empty again; else where `capture` keeps factors ('offload': on the
            CPU). Values are the same.
        gradient_sizes: keep the norm of each sample's own gradient beside each of its visits, for
            the ranking 'gradient' and `inrun.confounds`. It takes a store, and captures that hold
            shares (no 'stream', no `inrun.Window`; `inrun.Budget` chooses none). What it costs:
            `python -m benchmarks.gradient_sizes`.
        progress: show a line with loss, residual and overhead where there is a terminal.
        self_test: check on a few validation rows that shares sum to the gradient.
        process_group: of the processes whose gradients are averaged: 'auto' is that of a
            DistributedDataParallel model, or else the default group where one is running (which a
            model under `fully_shard` must be spread over); None is this process alone.

    Raises:
        MisuseError: a capture or contraction that is not known.

    Example:
        >>> import inrun
        >>> inrun.Options(capture="offload", progress=False).contraction
        'auto'
    """

    capture: str = "hold"
    contraction: str | Contraction = "auto"
    smoothed_steps: int = 10
    held_in: str | os.PathLike[str] | None = None
    gradient_sizes: bool = False
    progress: bool = True
    self_test: bool = True
    process_group: Any = "auto"

    def __post_init__(self) -> None:
        require_one_of("capture", self.capture, CAPTURES)
        if not isinstance(self.contraction, Contraction) and self.contraction not in CONTRACTIONS:
            raise MisuseError(
                f"contraction {self.contraction!r} is not one of {', '.join(CONTRACTIONS)}, nor an "
                "inrun.factors.Contraction such as LowRankContraction(rank=32)."
            )


def require_settings(
    *,
    estimator: str | Direction = "path",
    scoring: Scoring | None = None,
    momentum_window: int = 0,
    options: Options | None = None,
) -> Direction:
    """Raises what `attach` would raise of these, whatever the model and the optimizer are.

    Args:
        estimator: as of `attach`; so are the others.
        scoring: see `estimator`.
        momentum_window: see `estimator`.
        options: see `estimator`; whether the folder `held_in` is there is not looked at.

    Returns:
        The estimator's direction.
    """
    scoring = EveryStep() if scoring is None else scoring
    options = Options() if options is None else options
    if not isinstance(scoring, Scoring):
        raise MisuseError(
            f"scoring={scoring!r} is none of inrun.EveryStep(), inrun.Window(10), "
            "inrun.Sampled(4), inrun.Budget(0.05)."
        )
    if not isinstance(options, Options):
        raise MisuseError(f"options={options!r} is no inrun.Options(...).")
    direction = direction_of(estimator)
    if options.capture == "stream" and not direction.streams:
        raise MisuseError(
            f"estimator {direction.name!r} needs passes or shares that are there only after the "
            "backward pass. Use capture='hold' with it."
        )
    if scoring.only_windows and (
        direction.name != "path" or options.capture != "hold" or momentum_window
    ):
        raise MisuseError(
            "inrun.Window has its own way to keep shares and its own direction: attach with "
            "estimator='path', momentum_window=0, and no other capture."
        )
    if options.gradient_sizes and (options.capture == "stream" or scoring.only_windows):
        raise MisuseError(
            "gradient_sizes are norms of samples' shares, which capture='stream' and inrun.Window "
            "do not keep. Use capture='hold' or 'offload', with another scoring."
        )
    window = momentum_window
    if isinstance(window, bool) or not isinstance(window, int) or window < 0:
        raise MisuseError(f"momentum_window={window!r} is no number of steps.")
    if window and (direction.name != "path" or options.capture == "stream" or scoring.sampled):
        raise MisuseError(
            "momentum_window gives samples what momentum does in later steps, so every step must "
            "be scored (scoring=inrun.EveryStep()), with estimator='path', and shares must be kept "
            "(capture='hold' or 'offload')."
        )
    if window == 0 and options.held_in is not None:
        raise MisuseError(
            "held_in says where the momentum window keeps its steps, and there is no "
            "momentum_window."
        )
    return direction
