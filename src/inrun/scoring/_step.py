"""One optimizer step on its way: open, read, taken, scored.

    open     blocks of samples come in, each with its backward pass
    read     the optimizer is about to step: what it consumes, and what it will do with it
    taken    an optimizer has stepped; with several, others may follow
    scored   the closing pass was run, and values are known

Everything that is known of one step is in one object; to forget the step is to let it go. While it
is open it is in `_open_step.py`. Letters: N samples of the step, K targets.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from inrun.capture import Capture, Reading, not_finite
from inrun.directions import Gradients
from inrun.errors import MisuseError
from inrun.optim import Move
from inrun.scoring._gradient_sizes import gradient_sizes
from inrun.scoring._gradients import circumstances, common_scale, norms_of, scales_of
from inrun.scoring._grouped import Member, groups_of
from inrun.scoring._open_step import OpenStep, Stage
from inrun.scoring._plan import ParameterPlan, plan_parameter, smoothing_work
from inrun.scoring._scorer import Scorer
from inrun.scoring._sums import DirectionWatcher, Scored, Sums, read
from inrun.utility import Evaluation


class MomentumMemory(Protocol):
    """Who must know of a step's optimizers before it is taken: the window of momentum."""

    def remember(self, moving: Mapping[str, tuple[Move[Any, Any], Tensor]]) -> object:
        """What is told when the step is scored, as `Step.memory`."""


class Step(OpenStep):
    """One step, through all its stages."""

    def __init__(
        self, scorer: Scorer, number: int, weight: float, window: MomentumMemory | None = None
    ):
        super().__init__(scorer, number, weight)
        self._window = window
        self._moving: dict[str, tuple[int, Tensor, Move[Any, Any]]] = {}
        self._plans: dict[str, ParameterPlan] = {}
        self._after: dict[str, Move[Any, Any]] = {}  # of optimizers that stepped before others
        self._extra: dict[str, dict[str, Tensor]] = {}
        self._norms: dict[str, float] = {}
        self._circumstances: dict[str, Any] = {}
        self._members: list[Member] = []
        self.memory: Any = None
        self.stepped: set[int] = set()  # numbers of the optimizers that have
        self._overflowed: dict[int, str] = {}  # of which a gradient is not finite: they will skip

    # ---- read

    def read_before_step(self, capture: Capture) -> None:
        """Reads the optimizers while their state is still that of w_t, and runs the opening pass.

        What the host must know of it is fetched together, with what blocks left to compare.
        """
        with torch.no_grad():
            self._take_moves(capture)
            if self._window is not None:
                known = {name: (move, p) for name, (_, p, move) in self._moving.items()}
                self.memory = self._window.remember(known)
        self._opening = self._scorer.validation.opening(capture)

    def _take_moves(self, capture: Capture) -> None:
        """What each optimizer is about to do with each parameter, and the gradients to compare."""
        self.stage = Stage.OPEN
        names = {id(p): name for name, p in capture.trained.items()}
        moves = [(k, p, m) for k, p, m in self._scorer.optimizers.moves() if id(p) in names]
        self._moving = {names[id(p)]: (k, p, move) for k, p, move in moves}
        gradients = {name: m.gradient for name, (_, _, m) in self._moving.items()}
        capture.check.scaling.consume(gradients, compared=not capture.check.unread)

    def plan(self, capture: Capture, first: int = 0) -> None:
        """Says of what each parameter's direction will be made, now that blocks were compared.

        Args:
            capture: what the blocks were seen by.
            first: the number of the optimizer that steps first. A gradient scaler skips others of
                which a gradient is not finite, each for itself.
        """
        scorer, blocks, plans = self._scorer, self.blocks, {}
        with torch.no_grad():
            skipping = self._leave_out_overflowed(capture, first)
            held = scorer.held(capture, blocks)
            samples = sum(scorer.processes.gathered(sum(block.samples for block in blocks)))
            work = smoothing_work(((p, m) for _, p, m in self._moving.values()), samples)
            cancelling = capture.check.cancelling
            consumed = {name: move.gradient for name, (_, _, move) in self._moving.items()}
            scales = scales_of(consumed, capture, blocks, scorer.processes, skipping)
            moves = {name: move for name, (_, _, move) in self._moving.items()}
            self._circumstances = circumstances(moves, capture.check)
            for name, (k, p, move) in self._moving.items():
                own = smoothing_work([(p, move)], samples) if name in cancelling else None
                direction = scorer.smoothing.direction_for(move, work, cancels=own)
                if own is not None and direction.name == "path" and move.age() is not None:
                    scorer.untold.add(name)
                plans[name] = plan_parameter(
                    k, p, move, direction, scales[name],
                    held=name in held, processes=scorer.processes.size,
                )  # fmt: skip
            scorer.rule_check.before(scorer.optimizers, plans)
            scorer.measure_updates(capture, plans)
            if len(scorer.optimizers.members) > 1:
                self._norms = norms_of(plans)
        self._extra = scorer.validation.extra(scorer.direction, plans, capture)
        self._plans, self._moving, self.stage = plans, {}, Stage.READ

    def _leave_out_overflowed(self, capture: Capture, first: int) -> list[str]:
        """Names of the parameters of optimizers that have a gradient that is not finite."""
        streamed = any(block.values_BK is not None for block in self.blocks)
        if len(self._scorer.optimizers.members) == 1 or streamed:  # their values are summed already
            return []
        bad = capture.check.scaling.overflowed()
        found = {k: name for name, (k, _, _) in self._moving.items() if name in bad and k != first}
        self._overflowed = found
        names = [name for name, (k, _, _) in self._moving.items() if k in found]
        self._moving = {n: moving for n, moving in self._moving.items() if moving[0] not in found}
        return names

    def share_scale(self, name: str) -> Tensor | float:
        """What to multiply a parameter's shares by, once the step was read."""
        return self._plans[name].share_scale if name in self._plans else 0.0

    @property
    def game(self) -> Any:
        return self._scorer.direction.game

    @property
    def age(self) -> int | None:
        """How many gradients the youngest moments are made of; None where that does not matter."""
        seen = [plan.move.age() for plan in self._plans.values()]
        return min((steps for steps in seen if steps is not None), default=None)

    # ---- taken

    def take(self, k: int) -> None:
        """The k-th optimizer has stepped.

        While others still have to, `.grad` may be cleared: what it was is kept.
        """
        self.stepped.add(k)
        self.stage = Stage.TAKEN
        if len(self.stepped) < len(self._scorer.optimizers.members):
            for name, move in self._moves_after(k).items():
                told = self._plans[name].after
                kept = move.gradient.clone() if told else move.gradient
                self._after[name] = Move(move.rule, move.weight, kept, move.state, move.setting)

    def _moves_after(self, *stepped: int) -> dict[str, Move[Any, Any]]:
        """By name, moves of these optimizers, read after they have stepped."""
        names = {id(plan.parameter): name for name, plan in self._plans.items()}
        before = {id(plan.parameter): plan.move for plan in self._plans.values()}
        optimizers = self._scorer.optimizers
        return {names[id(p)]: move for k in stepped for p, move in optimizers.moved(k, before)}

    def require_unchanged(self, k: int) -> None:
        """Before another optimizer of the same step: its gradients must be those that were read."""
        if k in self._overflowed:
            raise not_finite(self._overflowed[k])
        now = norms_of({n: p for n, p in self._plans.items() if p.optimizer == k})
        for name, norm in now.items():
            if abs(norm - self._norms[name]) > 1e-5 * self._norms[name]:
                raise MisuseError(
                    f"The gradient of {name} changed between the steps of two optimizers that are "
                    "attached together, but a step is read as a whole when the first of them "
                    "steps. Clip, and unscale (scaler.unscale_ for every optimizer), before that."
                )

    # ---- scored

    def score(self, capture: Capture, watcher: DirectionWatcher | None = None) -> Scored:
        """Contracts the directions, now that the closing gradient is known."""
        self._keep_only_stepped()
        scorer, blocks = self._scorer, self.blocks
        scorer.rule_check.after(self._plans)
        closing = scorer.validation.closing(capture)
        for block in blocks:
            block.check_untouched()
        assert self._opening is not None
        opening, other = self._opening, scorer.validation.take_other()
        with torch.no_grad():
            self._members = self._with_gradients(opening, closing)
            sums = self._sums(watcher)
            sizes = gradient_sizes(self._plans, blocks) if scorer.sized else None
            scorer.contraction.end_step(Reading)
            used = {plan.direction.name for plan in self._plans.values()}
            estimator = "path-smoothed" if "path-smoothed" in used else scorer.estimator
            unowned = [not block.owned for block in blocks for _ in range(block.samples)]
            try:
                found = read(
                    sums, (opening, closing), scorer.targets, estimator, unowned, other, sizes
                )
            except MisuseError:
                scorer.contraction.forget_step()
                raise
        self.stage = Stage.SCORED
        return found._replace(entries=found.entries._replace(**self._circumstances))

    def results(
        self, capture: Capture, watcher: DirectionWatcher | None = None
    ) -> list[tuple[Step, Scored]]:
        """Steps whose values are known now that this one was taken, in their order."""
        return [(self, self.score(capture, watcher))]

    def _keep_only_stepped(self) -> None:
        """Drops what was planned for optimizers that did not step."""
        if len(self.stepped) == len(self._scorer.optimizers.members):
            return
        kept = {n: plan for n, plan in self._plans.items() if plan.optimizer in self.stepped}
        streamed = any(block.values_BK is not None for block in self.blocks)
        if len(kept) < len(self._plans) and (self._extra or streamed):
            raise MisuseError(
                "Only some of the attached optimizers stepped, but "
                + ("capture='stream' has summed" if streamed else "the estimator has looked ahead")
                + " over the parameters of all. Use estimator='path' with capture='hold', or "
                "attach to the optimizers that step together."
            )
        self._plans = kept

    def _with_gradients(self, opening: Evaluation, closing: Evaluation) -> list[Member]:
        """Each parameter with its validation gradients, and its move read again."""
        after = self._moves_after(*self.stepped) | self._after
        return [
            Member(
                name, plan,
                Gradients(
                    opening.gradients[name], closing.gradients[name],
                    *(self._extra.get(kind, {}).get(name) for kind in ("null", "curvature")),
                ),
                after.get(name),
            )
            for name, plan in self._plans.items()
        ]  # fmt: skip

    def _sums(self, watcher: DirectionWatcher | None) -> Sums:
        """What all parameters add to values and books."""
        scorer, blocks = self._scorer, self.blocks
        samples = [block.samples for block in blocks]
        sums = Sums(samples, len(scorer.targets), scorer.processes, watcher)
        groups, rest = groups_of(self._members)
        for group in groups:
            sums.add_group(group, blocks, scorer.contraction)
        for name, plan, at, move in rest:
            sums.add(name, plan, at, move, blocks, scorer.contraction)
        if any(block.values_BK is not None for block in blocks):
            scale = common_scale(self._plans)
            scorer.forecast.learn(scale, len(blocks))
            sums.add_streamed(blocks, scale)
        return sums

    # ---- for the window of momentum, once it is scored

    @property
    def scales(self) -> dict[str, Tensor | float]:
        """By parameter, what its shares are multiplied by."""
        return {name: plan.share_scale for name, plan in self._plans.items()}

    def gradients(self) -> dict[str, Tensor]:
        """By parameter, the mean validation gradients that its direction was made of."""
        return {m.name: m.plan.direction.gradient(m.at, m.plan.move) for m in self._members}

    def left(self) -> dict[str, Move[Any, Any]]:
        """By parameter, its move read after the step."""
        return {m.name: m.after for m in self._members if m.after is not None}
