"""One optimizer step, scored: what happens in the step's pre-hook and in its post-hook.

Letters: N samples of the step over all its blocks, K targets.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from inrun.attribution._forecast import Forecast
from inrun.attribution._grouped import Member, groups_of
from inrun.attribution._payout import Paid, Payouts
from inrun.attribution._plan import (
    ParameterPlan,
    Smoothing,
    plan_parameter,
    smoothing_work,
)
from inrun.attribution._rule_check import RuleCheck
from inrun.attribution._scales import common_scale, norms_of, scales_of
from inrun.attribution._scored import Taken, Unread
from inrun.attribution._sums import DirectionWatcher, Sums
from inrun.attribution._unattributed import Unowned, samples_of
from inrun.attribution._validation import Validation, following
from inrun.capture import Alone, Block, Capture, Processes, Reading
from inrun.directions import Direction, Game, Gradients, SampleDirection
from inrun.errors import MisuseError
from inrun.factors import Contraction, Factor, compute_dtype
from inrun.optim import Together
from inrun.utility import Evaluation, Utility


class Scorer:
    """What is read before a step and contracted after it."""

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
        self._optimizers = optimizers
        self.processes = processes or Alone()
        self._utility, self._direction = utility, direction
        self._smoothing, self.contraction = Smoothing(direction, smoothed_steps), contraction
        self._forecast = Forecast()
        self._rule_check = RuleCheck()
        self.untold: set[str] = set()  # whose shares cancel, and that are not smoothed
        self.validation = Validation(model, utility, self.processes)
        self._late: Taken | None = None
        self._steps_read = 0
        self._plans: dict[str, ParameterPlan] = {}
        self._at_open: Evaluation | None = None
        self._extra: dict[str, dict[str, Tensor]] = {}
        self._norms: dict[str, float] = {}
        self._consumed: dict[str, Tensor] = {}
        self.watcher: DirectionWatcher | None = None

    def stream_contraction(
        self, capture: Capture, name: str, factors: Sequence[Factor]
    ) -> list[Tensor]:
        """Values (B, K) of factors inside the backward pass: what `stream` contracts with.

        Of several processes all call it for a parameter, also those that have no factors of it.
        """
        p = capture.trained[name]
        mean = self.processes.apart().mean if self.processes.size > 1 else None
        move = self._optimizers.move_of(p, self._forecast.factor(), mean)
        if not factors:
            return []
        assert self._at_open is not None
        opening = self._at_open.gradients[name]
        gradient = self._direction.gradient(Gradients(opening), move)
        Q = self._direction.slope(move).transposed(gradient.to(compute_dtype(p)))
        return [values.double() for values in self.contraction.contract(name, factors, Q)]

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """What a checkpoint keeps."""
        header: dict[str, Any] = {
            "forecast": self._forecast.numbers(), "checked": self._rule_check.steps,
            "passes": self.validation.passes,
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
        self.validation.go_to(max(0, header["passes"] - 1))  # the last one is done again
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
        """How many gradients the youngest moments are made of; None where that does not matter."""
        seen = [plan.move.age() for plan in self._plans.values()]
        return min((steps for steps in seen if steps is not None), default=None)

    @property
    def one_direction(self) -> bool:
        """Whether all samples of a step meet the same direction."""
        return not isinstance(self._direction, SampleDirection) and not self._smoothing.steps

    @property
    def can_wait(self) -> bool:
        """Whether a step's numbers may be read after it: nothing else needs them within it."""
        one_pass = not (self._direction.needs_null or self._direction.needs_curvature)
        return one_pass and self.payouts is None and self.watcher is None

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
        self._at_open = self.validation.opening(capture)
        self._optimizers.block_begins()

    def before_step(self, capture: Capture, blocks: Sequence[Block]) -> None:
        """Reads the optimizers while their state is still that of w_t.

        What became of the gradients is taken down, and told by `conclude`.
        """
        if not self.validation.follows:
            self._at_open = self.validation.opening(capture)
        names = {id(p): name for name, p in capture.trained.items()}
        plans: dict[str, ParameterPlan] = {}
        with torch.no_grad():
            moving = [(k, p, m) for k, p, m in self._optimizers.moves() if id(p) in names]
            self._consumed = {names[id(p)]: m.gradient for _, p, m in moving}
            capture.check.consume(self._consumed)
            held = self._held(capture, blocks)
            samples = sum(self.processes.gathered(sum(block.samples for block in blocks)))
            work = smoothing_work(((p, move) for _, p, move in moving), samples)
            cancelling = capture.check.cancelling
            for k, p, move in moving:
                name = names[id(p)]
                own = None
                if name in cancelling:
                    own = smoothing_work([(p, move)], samples)
                direction = self._smoothing.direction_for(move, work, cancels=own)
                if own is not None and direction.name == "path" and move.age() is not None:
                    self.untold.add(name)
                if self.payouts is not None:
                    self.payouts.remember(name, move, p)
                plans[name] = plan_parameter(
                    k, p, move, direction,
                    held=name in held, processes=self.processes.size,
                )  # fmt: skip
            self._rule_check.before(self._optimizers, plans)
            self._measure_updates(capture, plans)
        self._plans = plans
        if len(self._optimizers.members) > 1:
            self._norms = norms_of(plans)
        self._extra = self.validation.extra(self._direction, plans, capture)

    def _measure_updates(self, capture: Capture, plans: Mapping[str, ParameterPlan]) -> None:
        """For `coverage()`: how much of the update each parameter has."""
        self._steps_read += 1
        if not capture.coverage.wants_updates(self._steps_read):
            return
        squares = {name: plan.update_square() for name, plan in plans.items()}
        if capture.sharded and squares:  # each process has its own parts
            rows = torch.stack([square.double() for square in squares.values()])
            squares = dict(zip(squares, self.processes.mean(rows), strict=True))
        capture.coverage.updated(squares)

    @torch.no_grad()
    def conclude(self, capture: Capture, blocks: Sequence[Block]) -> None:
        """Takes note of what became of the gradients between the backward pass and the step.

        Raises:
            MisuseError: no sample accounts for it.
        """
        scales = scales_of(self._consumed, capture, blocks, self.processes)
        for name, plan in self._plans.items():
            plan.scale = scales[name]
        self._consumed = {}

    def _held(self, capture: Capture, blocks: Sequence[Block]) -> set[str]:
        """Parameters with shares to contract; in any process where directions are gathered."""
        names = list(capture.trained)
        without = [not any(block.factors.get(name) for block in blocks) for name in names]
        if capture.sharded:
            without = self.processes.all(without)
        return {name for name, none in zip(names, without, strict=True) if not none}

    def demand_unchanged(self, optimizer: int) -> None:
        """Before another optimizer of the same step: its gradients must be those that were read.

        Raises:
            MisuseError: they were changed since the first of the optimizers stepped.
        """
        now = norms_of({n: p for n, p in self._plans.items() if p.optimizer == optimizer})
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
        conclude: Callable[[], Sequence[Block]] | None = None,
    ) -> Unread | None:
        """Contracts the directions, now that the closing gradient is known.

        Args:
            capture: the parameters.
            blocks: the step's samples.
            stepped: the numbers of the optimizers that really stepped.
            step: the step's number.
            conclude: reads what was taken down before the step, where that was put off until
                there is other work for the device, and gives the blocks that count.

        Returns:
            None where the step waits for the next one's gradient: see `score_late`.
        """
        self._keep_only(stepped, blocks)
        self._rule_check.after(self._plans)
        closing = None if self.validation.follows else self.validation.closing(capture)
        if conclude is not None:
            blocks = conclude()
        for block in blocks:
            block.check_untouched()
        other = self.validation.take_other()
        taken = Taken(list(blocks), self._plans, self._at_open, self._extra, step, other)
        self._plans, self._extra, self._at_open = {}, {}, None
        if closing is None:
            self._late = taken.kept()
            return None
        return self._score(taken, closing)

    def score_late(self) -> Unread | None:
        """The step before, where it waits for the gradient that the coming one consumes."""
        late, self._late = self._late, None
        if late is None:
            return None
        names = {id(plan.parameter): name for name, plan in late.plans.items()}
        gradients = {
            names[id(p)]: move.gradient for _, p, move in self._optimizers.moves() if id(p) in names
        }
        late.plans = {name: plan for name, plan in late.plans.items() if name in gradients}
        for block in late.blocks:
            block.check_untouched()
        return self._score(late, following(gradients))

    @torch.no_grad()
    def _score(self, taken: Taken, closing: Evaluation) -> Unread:
        """Contracts the directions of a step that was taken."""
        opening = taken.opening or closing  # what follows a step is all that is known of the loss
        samples = [block.samples for block in taken.blocks]
        sums = Sums(samples, len(self._utility.targets), self.processes)
        sums.watcher = self.watcher
        after = {id(p): move for _, p, move in self._optimizers.moves()}
        members = [
            Member(
                name, plan,
                Gradients(
                    opening.gradients[name],
                    closing.gradients[name],
                    *(taken.extra.get(kind, {}).get(name) for kind in ("null", "curvature")),
                ),
                after.get(id(plan.parameter)),
            )
            for name, plan in taken.plans.items()
        ]  # fmt: skip
        groups, rest = groups_of(members)
        for group in groups:
            sums.add_group(group, taken.blocks, self.contraction)
        for name, plan, at, move in rest:
            sums.add(name, plan, at, move, taken.blocks, self.contraction)
        for name, plan, at, move in members:
            if self.payouts is not None:
                self.payouts.earn(name, plan.direction.gradient(at, plan.move))
                if move is not None:
                    self.payouts.left(name, move)
        if any(block.values_BK is not None for block in taken.blocks):
            scale = common_scale(taken.plans)
            self._forecast.learn(scale, len(taken.blocks))
            sums.add_streamed(taken.blocks, scale)
        self.contraction.read_by(Reading if self.validation.reads_late else None)
        self.contraction.end_step()
        paid: list[Paid] = []
        if self.payouts is not None:
            scales = {name: plan.share_scale for name, plan in taken.plans.items()}
            paid = self.payouts.end_step(taken.step, samples_of(taken.blocks), scales)
        used = {plan.direction.name for plan in taken.plans.values()}
        estimator = "path-smoothed" if "path-smoothed" in used else self._direction.name
        unowned = [isinstance(b, Unowned) for b in taken.blocks for _ in range(b.samples)]
        passes, targets = (opening, closing), self._utility.targets
        return Unread(sums, passes, targets, estimator, paid, unowned, taken.other)

    def _keep_only(self, stepped: Collection[int], blocks: Sequence[Block]) -> None:
        """Drops what was planned for optimizers that did not step.

        Raises:
            MisuseError: it is in the values already.
        """
        if len(stepped) == len(self._optimizers.members):
            return
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
        if moved:
            self._late = None
        if self.payouts is not None and self._late is None:
            self.payouts.forget_step()
        self._plans, self._extra, self._at_open, self._consumed = {}, {}, None, {}
        if moved:
            self.validation.forget()
