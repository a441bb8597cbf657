"""What became of gradients between the end of their blocks and the optimizer's step.

By which factor k were they multiplied? Each parameter tells |k| by its norm and the sign by its
random direction. Clipping by norm, unscaling, averaging and negation have one k for all parameters,
and then what one of them cannot tell by itself (a gradient that happens to be orthogonal to its
direction) the others do. Where no number explains the change it was made element by element
(clipping by value), k is None, and the raw gradient is needed.

Inside a scoring window gradients are measured as shares are compared, large ones in turn
(`measure_in_turn`); of the others what tells is whether anything was written to them, and then they
were multiplied by the factor that those in turn have in common.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from inrun.capture._block_sums import CheckSchedule
from inrun.capture._measured import Ended, Found, Measured, Measuring, Rows, Versions, versions_of
from inrun.capture._probe import eps_of
from inrun.errors import MisuseError

FULL = 1e-3  # `close` of precisions whose rounding is far below it


class Scaling:
    """Gradients as their blocks left them (`marks`), and as the optimizer consumes them."""

    def __init__(
        self, parameters: Mapping[str, Tensor], measuring: Measuring, schedule: CheckSchedule,
        computed: Mapping[str, float],
    ):  # fmt: skip
        self._parameters, self._measuring = parameters, measuring
        self._schedule, self._computed = schedule, computed
        self._known: dict[str, float] = {}  # norms, as they were last measured
        self._consumed: Rows | None = None  # None where nothing became of any of these
        self._consumed_names: list[str] = []
        self._at_consume: Versions = {}
        self.consumed_norm = 0.0  # of all gradients that the step consumes, once `scales` read them
        self.next_step()

    def next_step(self) -> None:
        self.marks, self._at_mark, self._consumed = Found(), Versions(), None
        self._in_turn = False  # whether of large gradients only those are measured whose turn it is

    def measure_in_turn(self) -> None:
        """Of this step only gradients are measured whose shares are to be compared."""
        self._in_turn = self._schedule.takes_turns

    def due(self, gradients: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Those that are to be measured in this step."""
        if not self._in_turn:
            return dict(gradients)
        return {name: g for name, g in gradients.items() if self._schedule.compares(name)}

    def mark(self, found: Found, block: Ended) -> None:
        """A block was compared, and these are its gradients."""
        self.marks, self._at_mark = found, block.versions
        self._known |= {name: measured.norm for name, measured in found.items()}

    @property
    def norms(self) -> dict[str, float]:
        """Each gradient's norm when the last block ended, or as it was last measured."""
        others = {name: self._known[name] for name in self._at_mark if name in self._known}
        return others | {name: mark.norm for name, mark in self.marks.items()}

    def consume(self, gradients: Mapping[str, Tensor], *, compared: bool) -> None:
        """Records the gradients that the optimizer is about to consume, for `scales`.

        `compared`: whether all blocks of the step were.
        """
        held = {name: self._parameters[name].grad for name in gradients}  # not what was read of it
        self._at_consume = versions_of({name: g for name, g in held.items() if g is not None})
        self._consumed_names = list(gradients)
        if self._in_turn:  # a fused step under a gradient scaler reads it unscaled
            for name, g in gradients.items():
                own = held[name]
                if own is None or own.data_ptr() != g.data_ptr():
                    self._at_consume.pop(name, None)
        rests = self._in_turn and compared and all(map(self._is_untouched, gradients))
        self._consumed = None if rests else self._measuring.measure(self.due(gradients))

    def overflowed(self) -> set[str]:
        """Whose gradients are not finite, of those that `consume` took down."""
        now = {} if self._consumed is None else self._measuring.read(self._consumed)
        return {name for name, measured in now.items() if not measured.is_finite}

    def scales(self, without: Collection[str] = ()) -> dict[str, float | None]:
        """K with gradient = k * (sum of shares) by name, None where no such number exists.

        Args:
            without: names that are left out: nothing moves them in this step.

        Raises:
            MisuseError: gradients were cleared, one is not finite, or one appeared after the last
                block.
        """
        names = [name for name in self._consumed_names if name not in without]
        now = self.marks if self._consumed is None else self._measuring.read(self._consumed)
        if now.keys() != set(names):
            now = Found({name: now[name] for name in names if name in now})
        self._consumed = None
        self.consumed_norm = math.hypot(*(measured.norm for measured in now.values()))
        there_was = any(mark.norm > 0 for mark in self.marks.values())
        if there_was and all(measured.norm == 0 for measured in now.values()):
            raise MisuseError(
                "The gradients were cleared between the attribution.batch(ids) block and "
                "optimizer.step(), so this step learns nothing from its samples. Call zero_grad() "
                "after step(), or before the block."
            )
        if self._unchanged(now) and all(map(self._is_untouched, names)):
            return dict.fromkeys(names, 1.0)
        noise = max(map(self.noise(self.marks), self._parameters), default=0.0)
        found = factors({name: self._change(name, m) for name, m in now.items()}, noise)
        if len(found) < len(names):
            return self._with_unmeasured(names, found)
        if len({k for n, k in found.items() if self.marks[n].norm > 0}) > 1:
            self._schedule.stop_turns()  # who is not measured is not told by the others
        return found

    def _with_unmeasured(
        self, names: list[str], found: Mapping[str, float | None]
    ) -> dict[str, float | None]:
        """What became of gradients that were not measured: what became of all that were."""
        told = {k for n, k in found.items() if self.marks[n].norm > 0 and not self._is_untouched(n)}
        scales = dict(found)
        for name in names:
            if name in found:
                continue
            if name not in self._at_mark:
                raise _unseen(name)
            if self._is_untouched(name):
                scales[name] = 1.0
            elif len(told) == 1 and None not in told:
                scales[name] = next(iter(told))
            else:
                self._schedule.stop_turns()
                raise MisuseError(
                    f"The gradient of {name} was changed between backward() and step(), and not "
                    "all that were changed were multiplied by one factor, for the first time after "
                    f"{self._schedule.steps} steps. Inside a scoring window large gradients are "
                    "measured in turn, and this one was not: its factor is not known, so the step "
                    "is not scored. From the next on all are measured: go on, or use "
                    "inrun.EveryStep()."
                )
        return scales

    def _unchanged(self, now: Found) -> bool:
        """Whether nothing at all became of the gradients since their blocks, as mostly."""
        return now.finite and all(
            m == self.marks.get(name) and self._is_untouched(name) for name, m in now.items()
        )

    def _change(self, name: str, now: Measured) -> Change:
        mark = self.marks.get(name)
        if mark is None:
            raise _unseen(name)
        if not now.is_finite:
            raise not_finite(name)
        p = self._parameters[name]
        return Change(mark, now, _close(p), self._is_untouched(name), _between_least(p))

    def _is_untouched(self, name: str) -> bool:
        """Whether nothing was written to a gradient between its block and the step."""
        return self._at_mark.get(name) == self._at_consume.get(name)

    def noise(self, found: Found) -> Callable[[str], float]:
        """What counts as zero for a parameter's gradient.

        A gradient that is zero but for rounding (attention's key bias) is compared with the
        largest one: its shares are rounding too.
        """
        whole = found.largest

        def noise(name: str) -> float:
            eps = eps_of(self._parameters[name].dtype)
            return 100 * max(eps, self._computed.get(name, 0.0)) * whole

        return noise


def _unseen(name: str) -> MisuseError:
    return MisuseError(
        f"{name} got a gradient outside every attribution.batch(ids) block, so no sample accounts "
        "for it. Run every backward() of a scored step inside a block, a penalty on parameters "
        "inside attribution.unattributed(), or the whole step inside attribution.paused()."
    )


def not_finite(name: str) -> MisuseError:
    """What is said of a gradient that an optimizer is about to consume."""
    return MisuseError(
        f"The gradient of {name} is not finite in this step: no contribution can be computed, and "
        "none is booked. Skip such steps, or lower the learning rate."
    )


def _close(p: Tensor) -> float:
    """How far a gradient's numbers may be from k times those before, for its precision."""
    exact = {torch.float64: 1e-9, torch.float32: 1e-4}
    return exact.get(p.dtype) or 4 * torch.finfo(p.dtype).eps


def _between_least(p: Tensor) -> float:
    """What rounding to the smallest numbers of a gradient's precision may add to its norm.

    In float16 they lie 6e-8 apart, and a clipped gradient's elements may be as small. Elements'
    errors are independent: 1.5 times is five times the standard deviation along a direction.
    """
    finfo = torch.finfo(p.dtype)
    return float(1.5 * finfo.smallest_normal * finfo.eps * p.numel() ** 0.5)


class Change(NamedTuple):
    """A parameter's gradient when its block ended, and as the optimizer consumes it.

    `close`: how far two such numbers may differ, relative to the gradient, for its precision.
    `untouched`: nothing was written to it in between. `least`: how far the norms may be apart for
    what lies between the smallest numbers of the precision.
    """

    mark: Measured
    now: Measured
    close: float
    untouched: bool = False
    least: float = 0.0

    def size(self) -> float:
        """|k|, if there is a k."""
        return self.now.norm / self.mark.norm

    def sign(self) -> int:
        """Of k; 0 where this gradient's component along its direction does not tell."""
        sure = self.close * (0.1 if self.close < FULL else 1.0)
        mark, now = self.mark, self.now
        told = abs(mark.probe) > sure * mark.norm + self.least
        if not (told and abs(now.probe) > sure * now.norm + self.least):
            return 0
        return 1 if now.probe * mark.probe > 0 else -1

    def explained_by(self, k: float, noise: float = 0.0) -> bool:
        """Whether multiplying by k is what happened; `noise` counts as 0 in this step."""
        allowed = self.close * (self.now.norm + abs(self.now.probe)) + self.least + noise
        return (
            abs(self.now.norm - abs(k) * self.mark.norm) <= allowed
            and abs(self.now.probe - k * self.mark.probe) <= allowed
        )


def factors(changes: Mapping[str, Change], noise: float) -> dict[str, float | None]:
    """K by parameter name, None where no such number exists or its sign cannot be told.

    `noise` is the norm of a gradient that is rounding, in this step.
    """
    found = {name: _own(change) for name, change in changes.items()}
    sign_of = {n: c.sign() for n, c in changes.items() if found[n] is not None}
    common = _common([changes[n] for n, told in sign_of.items() if told])
    signs = set(sign_of.values()) - {0}
    sign = signs.pop() if len(signs) == 1 else None
    for name, change in changes.items():
        if change.mark.norm == 0:
            continue
        k = found[name]
        if common is not None and change.explained_by(common, abs(common) * noise):
            found[name] = common
        elif k is not None and sign_of[name] == 0 and k != 0 and not change.untouched:
            found[name] = None if sign is None else k * sign
    return found


def _own(change: Change) -> float | None:
    """What one parameter says by itself; positive where it cannot tell the sign."""
    if change.mark.norm == 0:
        return 1.0 if change.now.norm == 0 else None
    sign = change.sign()
    k = change.size() * (sign or 1)
    if sign:
        return k if change.explained_by(k) else None
    either = change.explained_by(k) or change.explained_by(-k)
    return k if either else None


def _common(told: list[Change]) -> float | None:
    """The factor of all that tell one, where it is the same."""
    if not told or len({c.sign() for c in told}) > 1:
        return None
    before = math.fsum(c.mark.norm**2 for c in told)
    k = told[0].sign() * math.sqrt(math.fsum(c.now.norm**2 for c in told) / before)
    return k if all(c.explained_by(k) for c in told) else None
