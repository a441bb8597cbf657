"""The audit of a run while it trains: at a few steps, the values beside the truth.

In a step that is to be checked, every factor is also summed over random groups of the samples. The
step is then played out on copies of the model and the optimizer, each coalition of groups a real
step and a real validation loss, before the step itself is taken. Groups hold equally many samples,
as far as they can, so that their game is the samples' game in coarser grains. Of several processes
each plays the same game on its own copies, with groups of everyone's samples, and judges by its own
validation rows; the mean over processes counts.

Letters: G groups, K targets.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol, TypeVar

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from inrun.capture import Block, Capture
from inrun.directions import Game
from inrun.distributed import Processes, agreed
from inrun.errors import MisuseError
from inrun.factors import Factor
from inrun.truth._audit import Audit
from inrun.truth._audit_utility import AuditUtility
from inrun.truth._game import StepGame, agreement, shapley_values
from inrun.truth._group_shares import GroupShares
from inrun.truth._schedule import AuditSchedule

FEWEST, FIRST, MOST = 3, 4, 8  # groups a check: at least, in the first one, at most
CHECKS_AIMED_AT = 12
Result = TypeVar("Result")
PLAYED = ("game", "players", "age", "samples", "seconds", "owners", "share_error",
          "label_gain", "unjudged")  # fmt: skip


class ReadStep(Protocol):
    """A step that was read and is about to be taken."""

    @property
    def game(self) -> Game:
        """Whose Shapley values are meant."""

    @property
    def age(self) -> int | None:
        """How many gradients the youngest moments are made of."""

    def share_scale(self, name: str) -> Tensor | float:
        """What to multiply a parameter's shares by."""


def _aside(method: Callable[..., Result]) -> Callable[..., Result | None]:
    """Its time is nobody's, and an error in it ends the audit with a warning, nothing else."""

    @functools.wraps(method)
    def call(self: Auditor, *args: Any, **kwargs: Any) -> Result | None:
        if self.over:
            return None
        with self._stopped():
            try:
                return method(self, *args, **kwargs)
            except Exception as error:
                self._end(error)
                return None

    return call


class Auditor:
    """Carries an audit out, of the training's way: decides, listens, plays, compares.

    `stopped` is a context in which time counts neither as training nor as attribution, `warn` says
    why an audit ended, and `groups` None takes as many as time allows.
    """

    def __init__(
        self,
        stopped: Callable[[], AbstractContextManager[None]],
        warn: Callable[[str], None],
        model: nn.Module,
        optimizers: Sequence[torch.optim.Optimizer],
        utility: AuditUtility,
        schedule: AuditSchedule,
        groups: int | None,
        processes: Processes,
    ):
        if groups is not None and not FEWEST <= groups <= MOST:
            raise MisuseError(f"groups must be from {FEWEST} to {MOST}, not {groups}.")
        self._stopped, self._warn, self.over = stopped, warn, False
        self._model, self._optimizers, self._utility = model, optimizers, utility
        self._schedule, self._wanted, self._processes = schedule, groups, processes
        self._groups = groups or FIRST
        self._shares: GroupShares | None = None
        self._played: dict[str, Any] | None = None
        self._seconds = 0.0  # that the step under way has cost so far
        self.audit = Audit()

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps: the checks so far, and what the schedule has spent."""
        rows = self.audit.table().to_pylist()
        return {"rows": rows, "groups": self._groups, "schedule": self._schedule.state()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on from `state`."""
        self.cancel()
        self.audit.go_on(state["rows"])
        self._groups = self._wanted or state["groups"]
        self._schedule.restore(state["schedule"])

    def _end(self, error: Exception) -> None:
        self.over = True
        self.cancel()
        self.audit.end(str(error))
        self._warn(
            f"The audit ended: {str(error).removesuffix('.')}. Training and scoring go on; "
            "checks made before stay in the audit's table."
        )

    def step_begins(self, capture: Capture, step: int) -> None:
        """Before a step's first pass, be it of samples or of none: whether it is drawn."""
        if self.over:
            return
        self.cancel()
        self._seconds = 0.0
        if self._schedule.wants(step):
            rng = self._schedule.rng
            if self._processes.size > 1:  # whose draws are everyone's
                rng = np.random.default_rng([self._schedule.seed, step, self._processes.rank])
            self._shares = GroupShares(capture.trained, self._groups, rng, self._processes)

    def block_begins(self, samples: int) -> Callable[[str, Factor], None] | None:
        """Before a block: who wants to see its factors, if the step is drawn."""
        if self.over or self._shares is None:
            return None
        self._shares.begin_block(samples)
        return self._sees

    @_aside
    def _sees(self, name: str, factor: Factor) -> None:
        if self._shares is not None:
            self._shares.add(name, factor)

    @_aside
    def block_ended(self, capture: Capture, block: Block) -> None:
        """A block of a drawn step has ended, and nothing has overwritten its inputs yet."""
        if self._shares is not None:
            started = time.perf_counter()
            self._shares.end_block(capture, block)
            self._seconds += time.perf_counter() - started

    @property
    def has_played(self) -> bool:
        """Whether the step under way was played out."""
        return self._played is not None

    def cancel(self) -> None:
        """The step is not scored, or samples of it dropped out: another will be checked."""
        self._shares, self._played = None, None

    def unattributed(self, gradients: Mapping[str, Tensor]) -> None:
        if self._shares is not None:
            self._shares.unattributed(gradients)

    @_aside
    def before_step(self, step: ReadStep) -> None:
        """Plays the coming step out on copies."""
        if self._shares is None:
            return
        groups = [group for optimizer in self._optimizers for group in optimizer.param_groups]
        if all(group.get("lr") == 0 for group in groups):  # a warm-up's first: the next is checked
            self.cancel()
            return
        started = time.perf_counter()
        samples = sum(self._processes.gathered(len(self._shares.labels)))
        players = min(self._groups, samples)
        if self._processes.size > 1 and samples >= FEWEST:
            players = self._groups  # whose samples are in which cannot be told: some may be empty
        if players < FEWEST:
            raise MisuseError(
                f"a step of {players} samples has no order to compare; accumulate over blocks or "
                f"train on at least {FEWEST} samples a step"
            )
        with torch.no_grad():
            shares = self._shares.consumed(players, step.share_scale)
        game, noise, label_gain, everything = self._game(shares, step.game)
        table = self._mean(everything) @ self._utility.columns
        noise = float(self._mean(np.array(noise)))
        gains = self._processes.gathered(label_gain)
        label_gain = None if None in gains else float(np.mean(gains))
        if np.ptp(table) == 0:
            raise MisuseError(
                "every coalition has the same validation loss: loss_fn does not compute it from "
                "the model that it is given (the audit passes copies)"
            )
        truth = shapley_values(table)[:players]
        self._played = {
            "game": step.game,
            "players": players,
            "age": step.age,
            "truth": truth,
            "noise": noise,
            "label_gain": label_gain,
            "coalitions": 2**game.all_players,
            "samples": samples,
            "owners": self._shares.owners,
            "share_error": self._shares.share_error,
            "unjudged": self._shares.unjudged(self._utility.labels),
            "seconds": max(self._processes.gathered(time.perf_counter() - started + self._seconds)),
        }

    def _game(
        self, shares: Mapping[str, Tensor], history: Game
    ) -> tuple[StepGame, float, float | None, np.ndarray]:
        """The game, the loss's noise, what labels take off it, and every coalition's utility."""
        fixed = {  # gradients that no factor explains act in every coalition
            name: p.grad
            for name, p in self._model.named_parameters()
            if p.grad is not None and name not in shares
        }

        def play() -> tuple[StepGame, float, float | None, np.ndarray]:
            game = StepGame(
                self._model, self._optimizers, shares, self._utility.utility,
                history=history, fixed=fixed,
            )  # fmt: skip
            model, judges = self._model, self._utility
            return game, judges.noise(model), judges.label_gain(model), game.table()

        return agreed(self._processes, play)

    def _mean(self, numbers: np.ndarray) -> np.ndarray:
        mean: np.ndarray = self._processes.mean(torch.from_numpy(numbers)).numpy()
        return mean

    @_aside
    def after_step(
        self, step: int, values_NK: np.ndarray, facts: Mapping[str, Any]
    ) -> pa.Table | None:
        """Compares the step's values with the truth.

        `values_NK` are of this process's samples, `facts` the columns of `AUDIT` that the
        attribution knows. It returns all checks so far, None where this step was not played
        out.
        """
        played, shares = self._played, self._shares
        self.cancel()
        if played is None or shares is None:
            return None
        totals = values_NK @ self._utility.of_values
        own = np.bincount(shares.labels, totals, minlength=played["players"])
        values = self._mean(own) * self._processes.size
        truth = played["truth"][:, 0]
        spread = float(truth.std())
        size = float(np.abs(truth).mean())
        self.audit.rows.append(
            {
                "step": step,
                "spread": spread / size if size else 0.0,
                "half_agreement": self._half_agreement(played["truth"]),
                "loss_noise": played["noise"] / spread if spread else 0.0,
                "validation_rows": self._utility.rows,
                "validation_classes": self._utility.labels and len(self._utility.labels),
                "values": values.tolist(),
                "truth": truth.tolist(),
                **{name: played[name] for name in PLAYED},
                **agreement(values, truth)._asdict(),
                **facts,
            }
        )
        self._plan_next(step, played["seconds"], played["coalitions"])
        return self.audit.table()

    @staticmethod
    def _half_agreement(truth: np.ndarray) -> float | None:
        pairs = (truth[:, 1::2].T, truth[:, 2::2].T)
        found = [agreement(first, second).pearson for first, second in zip(*pairs, strict=True)]
        known = [r for r in found if np.isfinite(r)]
        return float(np.mean(known)) if known else None

    def _plan_next(self, step: int, seconds: float, coalitions: int) -> None:
        """As many groups as still leave time for some checks."""
        growth = 1.0  # of the next check's cost
        if self._wanted is None:
            affordable = self._schedule.seconds / CHECKS_AIMED_AT / (seconds / coalitions)
            past = coalitions.bit_length() - 1 - self._groups
            self._groups = int(np.clip(np.log2(max(affordable, 1)) - past, FEWEST, MOST))
            growth = 2 ** (self._groups + past) / coalitions
        self._schedule.done(step, seconds, seconds * growth)
