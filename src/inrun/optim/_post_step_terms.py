"""What a change of Adam's moments does after its step: through every later step to a later loss.

Adam's moments are linear in moments: j steps later a change (dm, dv) has become (b1^j dm, b2^j dv).
Only the step itself bends, through the root of the second moment. With M, V what the recorded step
left, r = sqrt(V / c2), A = r + eps and x = dv / V, the step moves the weights by

    -rate / A * ((M + dm) * h(x) - M),   h(x) = 1 / (1 + q (sqrt(1 + x) - 1)),   q = r / A

Near, where |x| is small, h is its series in x. Its powers fall from step to step, x' = rho x with
rho = b2 V_before / V_after <= 1, so what all later steps together are worth is a polynomial in
(dm, x) whose coefficients are carried backward like a gradient, at a cost that does not depend on
the number of steps, and shared by all rows:

    worth(dm, x) = sum over k of lead_k dm x^(k-1) + bend_k x^k,   k = 1 ... ORDER

Far, where a row is most of what an element has seen, the real rule is played for `steps` steps,
element by element; the rest goes on to first order. Which is which: the first power left out is
below rounding for |x| <= (4 eps_of_dtype)^(1 / ORDER). Letters: R rows, K targets, n elements, P
far elements of all rows, J steps.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from inrun.optim._derivative import Along, PostStepTerms
from inrun.optim._moments import AdamSetting
from inrun.optim._move import Move

ORDER = 6
DENSE = 0.2
BLOCK = 1 << 18


def _series() -> tuple[tuple[float, ...], ...]:
    """S with h_k(q) = sum over i of S[k - 1][i - 1] q^i: 1 / (1 + q s) = 1 - q s + q^2 s^2 - ..."""
    root = [1.0]  # of 1 + x, in powers of x
    for k in range(ORDER):
        root.append(root[-1] * (0.5 - k) / (k + 1))
    s = [0.0, *root[1:]]
    power, columns = [1.0] + [0.0] * ORDER, []
    for _ in range(ORDER):
        power = [-sum(power[j] * s[k - j] for j in range(k + 1)) for k in range(ORDER + 1)]
        columns.append(power[1:])
    return tuple(zip(*columns, strict=True))


SERIES = _series()


class AdamPostStepTerms(PostStepTerms):
    """Of Adam and AdamW, without amsgrad."""

    def __init__(self, steps: int):
        self._near: Tensor | None = None
        self._far = _Played(steps)

    def loss_change(self, new: Along, old: Along, after: Along) -> Tensor:
        dm, dv = (a - b for a, b in zip(new.moments, old.moments, strict=True))
        x = dv / _positive(old.moments[1])
        far = x.abs() > (4 * torch.finfo(x.dtype).eps) ** (1 / ORDER)
        powers = torch.stack([dm, x], 1).masked_fill_(far.unsqueeze(1), 0.0).unsqueeze(2)
        near = self._near if self._near is not None else _first_order(old, after)
        value, *lower = reversed(near.unbind(0))
        for coefficient in lower:
            value = torch.addcmul(coefficient, value, powers[:, 1:])
        total = (value * powers).sum((1, 3), dtype=torch.float64)
        self._far.add(total, far, dm, dv, after)
        return total

    def advance(self, move: Move[Any, Any], old: Along, after: Along) -> None:
        state, h = move.state, move.setting
        first, second = old.moments
        over_c2, rate = 1 / (1 - h.b2 ** (state.steps + 1)), h.lr / (1 - h.b1 ** (state.steps + 1))
        gain = after.weight.to(first) * -rate
        step = _Step(first, _positive(second * over_c2), gain, over_c2, h)
        r = step.square.sqrt()
        root = r + h.eps
        powers = _powers(r / root)
        h_k = (powers.new_tensor(SERIES) @ powers).unsqueeze(1)
        gain = gain / root
        fall = _powers((state.v / _positive(second)).mul_(h.b2).clamp_(max=1.0)).unsqueeze(1)
        if self._near is None:
            self._near = _first_order(old, after)
        lead, bend = self._near.unbind(1)
        lead[0] += gain
        lead[1:].addcmul_(h_k[:-1], gain).mul_(fall[:-1])
        lead.mul_(h.b1)
        bend.addcmul_(h_k.mul_(first), gain).mul_(fall)
        self._far.advance(step, first / root, after)


def _first_order(old: Along, after: Along) -> Tensor:
    """Lead and bend, (ORDER, 2, K, n), where no step follows that is known."""
    first, second = (gradient.to(old.moments[1]) for gradient in after.moments)
    near = first.new_zeros(ORDER, 2, *first.shape)
    near[0, 0], near[0, 1] = first, second * old.moments[1]
    return near


def _powers(t: Tensor) -> Tensor:
    """(ORDER, n): t to t^ORDER."""
    powers = t.expand(ORDER, -1).clone()
    for k in range(1, ORDER):
        powers[k] *= powers[k - 1]
    return powers


def _positive(second: Tensor) -> Tensor:
    """Above 0, so that where nothing has touched an element nothing over nothing is nothing."""
    return second.clamp(min=torch.finfo(second.dtype).tiny)


class _Step(NamedTuple):
    """M, V / c2, -rate times the loss's gradient in the weights after the step, and 1 / c2."""

    first: Tensor
    square: Tensor
    gain: Tensor
    over_c2: float
    setting: AdamSetting


class _Played:
    """The last few steps that were added, as (J, n) tensors in the order of a ring.

    Of each step M, V / c2 and M / A, the gain of every target, and what first order says of the
    moments that it left; and in numbers what of a change of either moment is there by then, 1 / c2
    and eps.
    """

    def __init__(self, steps: int):
        self._steps, self._count = steps, 0
        self._numbers = torch.zeros(4, steps, dtype=torch.float64)
        self._moves = torch.zeros(0)
        self._gains = torch.zeros(0)
        self._rest = torch.zeros(0)

    def advance(self, step: _Step, still: Tensor, after: Along) -> None:
        """One more step in front; the last of a full ring goes. `still` is M / A."""
        h, slot = step.setting, self._count % self._steps
        if not self._count:
            (targets, n), J = step.gain.shape, self._steps
            self._moves = step.first.new_empty(3, J, n)
            self._gains = step.first.new_empty(targets, J, n)
            self._rest = step.first.new_empty(2, J, targets, n)
        self._count += 1
        self._numbers[0] *= h.b1
        self._numbers[1] *= h.b2
        self._numbers[:, slot] = self._numbers.new_tensor([h.b1, h.b2, step.over_c2, h.eps])
        for kept, part in zip(self._moves, (step.first, step.square, still), strict=True):
            kept[slot] = part
        self._gains[:, slot] = step.gain
        for kept, gradient in zip(self._rest, after.moments, strict=True):
            kept[slot] = gradient

    def add(self, total: Tensor, far: Tensor, dm: Tensor, dv: Tensor, after: Along) -> None:
        """Adds what the far elements' changes are worth to the rows' (R, K)."""
        places = far.reshape(-1).nonzero().squeeze(1)
        if len(places) > DENSE * far.numel():
            for row, only in enumerate(far):
                total[row] += self._worth(None, dm[row] * only, dv[row] * only, after).sum(1)
        elif len(places):
            rows, elements = places // far.shape[1], places % far.shape[1]
            dm, dv = (t.reshape(-1).index_select(0, places) for t in (dm, dv))
            total.index_add_(0, rows, self._worth(elements, dm, dv, after).T)

    def _worth(self, elements: Tensor | None, dm: Tensor, dv: Tensor, after: Along) -> Tensor:
        """(K, P) of changes (P,) of these elements; of all of them if None."""
        held = min(self._count, self._steps)
        rest, fades = after.moments, (1.0, 1.0)
        total = dm.new_zeros((), dtype=torch.float64)
        if held:
            last = self._count % self._steps if held == self._steps else 0
            rest = (self._rest[0, last], self._rest[1, last])
            fades = (float(self._numbers[0, last]), float(self._numbers[1, last]))
        many = max(1, BLOCK // len(dm))
        for start in range(0, held, many):
            total = total + self._moved(slice(start, min(held, start + many)), elements, dm, dv)
        for change, gradient, fade in zip((dm, dv), rest, fades, strict=True):
            some = gradient if elements is None else gradient.index_select(1, elements)
            total = total + some.double() * change.double() * fade
        return total

    def _moved(self, steps: slice, elements: Tensor | None, dm: Tensor, dv: Tensor) -> Tensor:
        """What these steps' other movements of the weights are worth, (K, P)."""
        faded, faded_2, over_c2, eps = self._numbers[:, steps].unsqueeze(2).to(dm)
        parts = [*(moves[steps] for moves in self._moves), *(gain[steps] for gain in self._gains)]
        if elements is not None:  # one index into flat tensors is gathered fastest
            n, count = self._moves.shape[2], len(parts[0])
            places = (torch.arange(count, device=dm.device).unsqueeze(1) * n + elements).view(-1)
            parts = [t.reshape(-1).index_select(0, places).view(count, -1) for t in parts]
        first, square, still, *gains = parts
        root = _positive(torch.addcmul(square, faded_2 * over_c2, dv)).sqrt_().add_(eps)
        change = torch.addcmul(first, faded, dm).div_(root).sub_(still)
        return torch.stack([(gain * change).sum(0, dtype=torch.float64) for gain in gains])
