"""One optimizer step, scored: what happens in the step's pre-hook and in its post-hook.

Letters: N samples of the step over all its blocks, K targets.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from inrun.attribution._forecast import Forecast
from inrun.attribution._payout import Paid, Payouts
from inrun.attribution._plan import (
    ParameterPlan,
    ReadBefore,
    Smoothing,
    elementwise_scale,
    moved,
    plan_parameter,
    smoothing_work,
)
from inrun.attribution._rule_check import RuleCheck
from inrun.attribution._sums import DirectionWatcher, Sums
from inrun.attribution._weights import weights_mark
from inrun.capture import Alone, Block, Capture, Processes
from inrun.directions import Direction, Game, Gradients, SampleDirection
from inrun.errors import MisuseError
from inrun.factors import Contraction, Factor, compute_dtype
from inrun.ledger import Entries
from inrun.optim import Together
from inrun.utility import Evaluation, Utility, curvature, evaluate


class Scored(NamedTuple):
    """A step's result: values (N, K) in the blocks' order, its books, the method really used.

    `paid`: what an earlier step's samples were paid by momentum, now that their window is over.
    """

    values: np.ndarray
    entries: Entries
    estimator: str
    paid: Paid | None = None


class Scorer:
    """Holds what must survive from one step to the next: the last closing pass."""

    def __init__(
        self,
        model: nn.Module,
        optimizers: Together,
        utility: Utility,
        direction: Direction,
        smoothed_steps: int,
        contraction: Contraction,
        processes: Processes | None = None,
        payouts: Payouts | None = None,
    ):
        self.payouts = payouts
        self._model, self._optimizers = model, optimizers
        self.processes = processes or Alone()
        self._utility, self._direction = utility, direction
        self._smoothing, self.contraction = Smoothing(direction, smoothed_steps), contraction
        self._forecast = Forecast()
        self._rule_check = RuleCheck()
        self._last: tuple[Evaluation, tuple[int, ...]] | None = None
        self._plans: dict[str, ParameterPlan] = {}
        self._at_open: Evaluation | None = None
        self._extra: dict[str, dict[str, Tensor]] = {}
        self._norms: dict[str, float] = {}
        self.watcher: DirectionWatcher | None = None

    def opening(self, capture: Capture) -> Evaluation:
        """Losses and gradients at the present weights: the last closing ones if nothing moved."""
        if self._last is not None:
            evaluation, mark = self._last
            known = list(evaluation.gradients) == list(capture.trained)
            if known and mark == weights_mark(capture.trained.values()):
                return evaluation
        evaluation = self._evaluate(capture)
        self._last = (evaluation, weights_mark(capture.trained.values()))
        return evaluation

    def _evaluate(self, capture: Capture) -> Evaluation:
        """A validation pass; of several processes the mean, whose rows may be the same or not."""
        found = evaluate(self._utility, self._model, capture.trained)
        if self.processes.size == 1:
            return found
        gradients = {name: self.processes.mean(t) for name, t in found.gradients.items()}
        return Evaluation(self.processes.mean(found.losses), gradients)

    def stream_contraction(self, capture: Capture, name: str, factor: Factor) -> Tensor:
        """Values (B, K) of a factor inside the backward pass: what `stream` contracts with."""
        p = capture.trained[name]
        move = self._optimizers.move_of(p, self._forecast.factor())
        assert self._at_open is not None
        opening = self._at_open.gradients[name]
        gradient = self._direction.gradient(Gradients(opening), move)
        Q = self._direction.slope(move).transposed(gradient.to(compute_dtype(p)))
        (values,) = self.contraction.contract(name, [factor], Q)
        return values.double()

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """What a checkpoint keeps."""
        header: dict[str, Any] = {
            "forecast": self._forecast.numbers(), "checked": self._rule_check.steps
        }  # fmt: skip
        tensors: dict[str, Tensor] = {}
        for part, contraction in self._contractions().items():
            header[part], kept = contraction.state()
            tensors |= {f"{part}/{name}": t for name, t in kept.items()}
        return header, tensors

    def _contractions(self) -> dict[str, Contraction]:
        paying = {} if self.payouts is None else {"paying": self.payouts.contraction}
        return {"contraction": self.contraction, **paying}

    def restore(self, header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Goes back to what `state` gave."""
        self._forecast.take(header["forecast"])
        self._rule_check.steps = header["checked"]
        for part, contraction in self._contractions().items():
            cut = len(part) + 1
            kept = {n[cut:]: t for n, t in tensors.items() if n.startswith(f"{part}/")}
            contraction.restore(header[part], kept)

    @property
    def estimator(self) -> str:
        """The method's name."""
        return self._direction.name

    @property
    def game(self) -> Game:
        """Whose Shapley values are meant."""
        return self._direction.game

    @property
    def age(self) -> int | None:
        """How many steps the youngest moments have seen; None where that does not matter."""
        seen = [plan.move.steps_taken() for plan in self._plans.values()]
        return min((steps for steps in seen if steps is not None), default=None)

    @property
    def one_direction(self) -> bool:
        """Whether all samples of a step meet the same direction."""
        return not isinstance(self._direction, SampleDirection) and not self._smoothing.steps

    @property
    def forecast_error(self) -> float:
        """How far `stream`'s clip coefficient was off in the last step; 0 for `hold`."""
        return self._forecast.error

    def share_scale(self, name: str) -> Tensor | float:
        """What to multiply a parameter's shares by in the step that is coming."""
        return self._plans[name].share_scale if name in self._plans else 0.0

    def block_begins(self, capture: Capture, blocks_before: int) -> None:
        """For `stream`: the opening gradient is computed now, and the block's place is noted."""
        self._forecast.blocks_now = blocks_before + 1
        self._at_open = self.opening(capture)

    def before_step(self, capture: Capture, blocks: Sequence[Block]) -> None:
        """Reads the optimizers while their state is still that of w_t."""
        self._at_open = self.opening(capture)
        names = {id(p): name for name, p in capture.trained.items()}
        plans: dict[str, ParameterPlan] = {}
        with torch.no_grad():
            moving = [(k, p, m) for k, p, m in self._optimizers.moves() if id(p) in names]
            consumed = {names[id(p)]: m.gradient for _, p, m in moving}
            scales = _scales(consumed, capture, blocks, self.processes)
            samples = sum(self.processes.gathered(sum(block.samples for block in blocks)))
            work = smoothing_work((move for _, _, move in moving), samples)
            for k, p, move in moving:
                name = names[id(p)]
                direction = self._smoothing.direction_for(move, work)
                held = any(block.factors.get(name) for block in blocks)
                if self.payouts is not None:
                    self.payouts.remember(name, move.memory())
                plans[name] = plan_parameter(
                    k, p, move, direction, scales[name], held=held, processes=self.processes.size
                )
            self._rule_check.before(self._optimizers, plans)
        self._plans = plans
        if len(self._optimizers.members) > 1:
            self._norms = _norms(plans)
        self._extra = self._extra_passes(capture)

    def _extra_passes(self, capture: Capture) -> dict[str, dict[str, Tensor]]:
        extra: dict[str, dict[str, Tensor]] = {}
        if self._direction.needs_null:
            null = {
                plan.parameter: plan.history.momentum + plan.history.decay
                for plan in self._plans.values()
                if isinstance(plan, ReadBefore)
            }
            with moved(null):
                extra["null"] = self._evaluate(capture).gradients
        if self._direction.needs_curvature:
            along = {
                name: plan.slope.along(plan.move.gradient)
                for name, plan in self._plans.items()
                if isinstance(plan, ReadBefore)
            }
            found = curvature(self._utility, self._model, capture.trained, along)
            extra["curvature"] = {n: self.processes.mean(t) for n, t in found.items()}
        return extra

    def demand_unchanged(self, optimizer: int) -> None:
        """Before another optimizer of the same step: its gradients must be those that were read.

        Raises:
            MisuseError: they were changed since the first of the optimizers stepped.
        """
        now = _norms({n: p for n, p in self._plans.items() if p.optimizer == optimizer})
        for name, norm in now.items():
            if abs(norm - self._norms[name]) > 1e-5 * self._norms[name]:
                raise MisuseError(
                    f"The gradient of {name} changed between the steps of two optimizers that are "
                    "attached together, but a step is read as a whole when the first of them "
                    "steps. Clip, and unscale (scaler.unscale_ for every optimizer), before that."
                )

    def after_step(
        self,
        capture: Capture,
        blocks: Sequence[Block],
        stepped: Collection[int],
        step: int,
        weight: float,
    ) -> Scored:
        """Contracts the directions, now that the closing gradient is known.

        Args:
            capture: the parameters.
            blocks: the step's samples.
            stepped: the numbers of the optimizers that really stepped.
            step: the step's number.
            weight: how many steps it stands for; values are not multiplied by it here.
        """
        assert self._at_open is not None
        self._keep_only(stepped, blocks)
        self._rule_check.after(self._plans)
        for block in blocks:
            block.check_untouched()
        closing = self._evaluate(capture)
        sums = Sums([block.samples for block in blocks], len(self._utility.targets), self.processes)
        sums.watcher = self.watcher
        with torch.no_grad():
            after = {id(p): move for _, p, move in self._optimizers.moves()}
            for name, plan in self._plans.items():
                at = Gradients(
                    self._at_open.gradients[name],
                    closing.gradients[name],
                    *(self._extra.get(kind, {}).get(name) for kind in ("null", "curvature")),
                )
                move = after.get(id(plan.parameter))
                sums.add(name, plan, at, move, blocks, self.contraction)
                if self.payouts is not None:
                    self.payouts.earn(name, plan.direction.gradient(at, plan.move))
            if any(block.values_BK is not None for block in blocks):
                scale = self._common_scale()
                self._forecast.learn(scale, len(blocks))
                sums.add_streamed(blocks, scale)
        self.contraction.end_step()
        all_values, momentum, decay = sums.fetch()
        paid = None
        if self.payouts is not None:
            scales = {name: plan.share_scale for name, plan in self._plans.items()}
            paid = self.payouts.end_step(step, blocks, scales)
        entries = Entries(
            self._at_open.losses.numpy(), closing.losses.numpy(), all_values.sum(0), momentum, decay
        )
        self._last = (closing, weights_mark(capture.trained.values()))
        if self.watcher is not None:
            self.watcher.scored(step, weight, all_values)
        used = {plan.direction.name for plan in self._plans.values()}
        estimator = "path-smoothed" if "path-smoothed" in used else self._direction.name
        self._plans, self._extra, self._at_open = {}, {}, None
        return Scored(all_values, entries, estimator, paid)

    def _keep_only(self, stepped: Collection[int], blocks: Sequence[Block]) -> None:
        """Drops what was planned for optimizers that did not step.

        Raises:
            MisuseError: it is in the values already.
        """
        kept = {name: plan for name, plan in self._plans.items() if plan.optimizer in stepped}
        streamed = any(block.values_BK is not None for block in blocks)
        if len(kept) < len(self._plans) and (self._extra or streamed):
            raise MisuseError(
                "Only some of the attached optimizers stepped, but "
                + ("capture='stream' has summed" if streamed else "the estimator has looked ahead")
                + " over the parameters of all. Use estimator='path' with capture='hold', or "
                "attach to the optimizers that step together."
            )
        self._plans = kept

    def forget(self, *, moved: bool) -> None:
        """Drops what a step has begun; where weights moved unscored, the last closing pass too."""
        if self.payouts is not None:
            self.payouts.forget_step()
        self._plans, self._extra, self._at_open = {}, {}, None
        if moved:
            self._last = None

    def _common_scale(self) -> float:
        """The one factor between shares and consumed gradient that `stream` can still apply.

        Raises:
            MisuseError: parameters were scaled by different factors.
        """
        scales = [plan.scale for plan in self._plans.values() if isinstance(plan.scale, float)]
        if scales and max(scales) - min(scales) > 1e-3 * max(abs(k) for k in scales):
            raise MisuseError(
                "Parameters' gradients were scaled by different factors between backward() and "
                "step(). With capture='stream' values are already summed over parameters. Attach "
                "with capture='hold'."
            )
        return float(np.mean(scales)) if scales else 1.0


def _norms(plans: Mapping[str, ParameterPlan]) -> dict[str, float]:
    """Each gradient's norm, 0 where there is none any more, with one transfer from the device."""
    if not plans:
        return {}
    gradients = [plan.parameter.grad for plan in plans.values()]
    norms = [
        plan.parameter.new_zeros(()) if g is None else torch.linalg.vector_norm(g.detach())
        for g, plan in zip(gradients, plans.values(), strict=True)
    ]
    rows = torch.stack([norm.detach().double() for norm in norms]).cpu().tolist()
    return dict(zip(plans, rows, strict=True))


def _scales(
    gradients: Mapping[str, Tensor],
    capture: Capture,
    blocks: Sequence[Block],
    processes: Processes,
) -> dict[str, Tensor | float | None]:
    """For each parameter what became of its gradient between the backward pass and the step."""
    norms, gaps = capture.check.norms, set(capture.check.gaps)
    scales: dict[str, Tensor | float | None] = {}
    for name, k in capture.check.scales(gradients).items():
        if name in gaps or (k is not None and norms[name] == 0):
            scales[name] = None
        else:
            scales[name] = (
                elementwise_scale(name, gradients[name], blocks, processes) if k is None else k
            )
    return scales
