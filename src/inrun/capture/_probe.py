"""The invariant: shares sum to the gradient, checked against a random direction with every step.

The direction is of rank one, r = x y^T with Gaussian x and y, so that <r, share_i> and <r, grad>
cost as little as two matrix-vector products, and a share that is missing, counted twice or laid
out wrongly is seen with near certainty. Signs would not do: gradients of a softmax head sum to
zero over the classes, and of two classes a pair of equal signs sees nothing at all.

Directions are drawn anew for every step, as windows into two rows of numbers that stay where the
parameters are: a draw costs two integers, and every process makes the same draws. Small parameters
of one shape are met together, a few operations for all. Letters: P parameters of one shape (M, N),
B samples, T positions.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from functools import cache

import torch
from torch import Tensor

from inrun.capture import _reading
from inrun.distributed import is_sharded, own_part, part_of
from inrun.factors import SMALL, Dense, Factor, Outer, compute_dtype

SINGLE, DOUBLE = torch.finfo(torch.float32).eps, torch.finfo(torch.float64).eps

PLACES = 65_536  # at which a window may begin
LONGEST, TINY = 16_384, 1e-10  # row, and norm, that single precision tells to eight digits


class Probe:
    """One parameter's random direction."""

    def __init__(self, parameter: Tensor, generator: torch.Generator):
        dtype = compute_dtype(parameter)
        self.rows = parameter.shape[:1] or torch.Size((1,))
        self.columns = parameter.shape[1:] or torch.Size((1,))
        self._parameter = parameter if is_sharded(parameter) else None
        left, right = (
            torch.randn(shape, generator=generator, dtype=torch.float32)
            for shape in (self.rows, self.columns)
        )
        self.point(left.to(parameter.device, dtype), right.to(parameter.device, dtype))

    def point(self, left: Tensor, right: Tensor) -> None:
        """Takes another direction; of an axis of one element it is 1, not a number near 0."""
        self._left = torch.ones_like(left) if left.numel() == 1 else left
        self._right = torch.ones_like(right) if right.numel() == 1 else right

    @property
    def sides(self) -> tuple[Tensor, Tensor]:
        """The direction's two factors, (rows,) and (columns,)."""
        return self._left, self._right.reshape(-1)

    def of_shares(self, factor: Factor) -> Tensor:
        """<r, share_b>, (B,)."""
        return factor.contract_rank_one(self._left, self._right)

    def of_gradient(self, gradient: Tensor) -> Tensor:
        """<r, gradient>, a scalar; of a sharded parameter both are this process's parts."""
        if self._parameter is not None:
            shape, on = self._parameter.shape, self._parameter
            left = self._left.reshape(-1, *(1 for _ in shape[1:])).expand(shape)
            direction = part_of(left, on) * part_of(self._right.expand(shape), on)
            return (direction * gradient.detach()).sum()
        matrix = gradient.detach().to(self._left.dtype).reshape(self.rows[0], self.columns.numel())
        return self._left @ (matrix @ self._right.reshape(-1))

    def and_norm(self, gradient: Tensor) -> Tensor:
        """<r, gradient> and the gradient's norm, (2,) float64."""
        return torch.stack((self.of_gradient(gradient).double(), norm_of(gradient.detach())))


class Probes:
    """All parameters' directions, drawn together."""

    def __init__(self, parameters: Mapping[str, Tensor], seed: int):
        generator = torch.Generator().manual_seed(seed)
        self._probes = {name: Probe(p, generator) for name, p in parameters.items()}
        self._seed, self._draws = seed, 0
        self._begins: dict[str, tuple[int, int]] = {}  # of both windows, since the last draw
        self._unset: dict[str, tuple[int, int]] = {}  # of directions that were not asked for yet
        self._sides: dict[tuple[str, ...], tuple[Tensor, Tensor]] = {}
        places = {name: (p.device, compute_dtype(p)) for name, p in parameters.items()}
        self.places = places  # where a parameter's direction is, and in which precision
        self._numbers = {
            place: self._row_pair(place, [n for n, at in places.items() if at == place], generator)
            for place in dict.fromkeys(places.values())
        }

    def __getitem__(self, name: str) -> Probe:
        probe, begin = self._probes[name], self._unset.pop(name, None)
        if begin is not None:
            lefts, rights = self._numbers[self.places[name]]
            probe.point(
                _window(lefts, begin[0], probe.rows), _window(rights, begin[1], probe.columns)
            )
        return probe

    def sides(self, names: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Directions' two factors, (P, rows) and (P, columns), of one shape and place."""
        key = tuple(names)
        if key not in self._sides:
            self._sides[key] = self._sides_now(names)
        return self._sides[key]

    def _sides_now(self, names: Sequence[str]) -> tuple[Tensor, Tensor]:
        probe, numbers = self._probes[names[0]], self._numbers[self.places[names[0]]]
        if not self._begins or numbers[0].device.type != "cpu":  # begins would wait for the device
            lefts, rights = zip(*(self[name].sides for name in names), strict=True)
            return torch.stack(lefts), torch.stack(rights)
        begins = torch.tensor([self._begins[name] for name in names])
        left, right = (
            _windows(row, begins[:, side], shape.numel())
            for side, (row, shape) in enumerate(
                zip(numbers, (probe.rows, probe.columns), strict=True)
            )
        )
        return left, right

    def draw(self) -> None:
        """Draws all directions anew; each is made when it is asked for."""
        self._draws += 1
        draw = random.Random(self._seed * 1_000_003 + self._draws)
        places = range(PLACES)
        drawn = iter(draw.choices(places, k=2 * len(self._probes)))
        self._begins = {name: (next(drawn), next(drawn)) for name in self._probes}
        self._unset = dict(self._begins)
        self._sides = {}

    def of_gradients(self, names: Sequence[str], gradients: Mapping[str, Tensor]) -> Tensor:
        """<r, gradient> and the gradient's norm, (P, 2) float64, of parameters of one shape."""
        if len(names) == 1:  # nobody to be met together with
            (name,) = names
            return self[name].and_norm(own_part(gradients[name])).unsqueeze(0)
        left_PM, right_PN = self.sides(names)
        P, M = left_PM.shape
        G_PMN = torch.stack([gradients[name] for name in names]).reshape(P, M, right_PN.shape[1])
        met_PM1 = G_PMN.to(left_PM.dtype) @ right_PN.unsqueeze(2)
        along_P = (left_PM.unsqueeze(1) @ met_PM1).reshape(-1)
        wide = None if G_PMN.device.type == "mps" else torch.float64
        norms_P = torch.linalg.vector_norm(G_PMN, dim=(1, 2), dtype=wide)
        return torch.stack([along_P.double(), norms_P.double()], 1)

    def of_small_shares(
        self, factors: Sequence[tuple[str, Factor]]
    ) -> list[tuple[list[str], Tensor]]:
        """The sums of <r, share_b> and of their sizes, (P, 2) float64, of small shares' groups.

        A parameter that is used several times is there as often.
        """
        found: list[tuple[list[str], Tensor]] = []
        alike: dict[object, list[tuple[str, Factor]]] = {}
        for name, factor in factors:
            kind = self.places[name], *((t.shape, t.dtype, t.device) for t in factor.held)
            alike.setdefault(kind, []).append((name, factor))
        for members in alike.values():
            names = [name for name, _ in members]
            if len(members) == 1:
                met_PB = self[names[0]].of_shares(members[0][1]).unsqueeze(0)
            else:
                held = zip(*(factor.held for _, factor in members), strict=True)
                met_PB = _met(*self.sides(names), *(torch.stack(tensors) for tensors in held))
            found.append((names, torch.stack([met_PB.sum(1), met_PB.abs().sum(1)], 1).double()))
        return found

    def _row_pair(
        self, place: tuple[torch.device, torch.dtype], names: list[str], generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Two rows of numbers, long enough for each of these parameters at any place."""
        device, dtype = place
        lengths = (
            max(self._probes[name].rows.numel() for name in names),
            max(self._probes[name].columns.numel() for name in names),
        )
        left, right = (
            torch.randn(PLACES + n, generator=generator).to(device, dtype) for n in lengths
        )
        return left, right


def is_small(parameter: Tensor, factor: Factor | None = None, size: int = 0) -> bool:
    """Whether a parameter, or its shares of so many numbers, are better met together with others'.

    Of shares that are outer products it must be few numbers.
    """
    plain = parameter.numel() <= SMALL and not is_sharded(parameter)
    if factor is None or not plain or type(factor) is Dense:
        return plain
    return type(factor) is Outer and size <= SMALL


def _met(left_PM: Tensor, right_PN: Tensor, *held: Tensor) -> Tensor:
    """(P, B) of shares (P, B, *shape), or of outer products (P, B, T, M) and (P, B, T, N)."""
    P, B = held[0].shape[:2]
    M, N = left_PM.shape[1], right_PN.shape[1]
    if len(held) == 1:
        rows_PBM = held[0].reshape(P, B * M, N).to(left_PM) @ right_PN.unsqueeze(2)
        return (rows_PBM.reshape(P, B, M) @ left_PM.unsqueeze(2)).squeeze(2)
    left, right = (
        t.to(side).flatten(1, 2) @ side.unsqueeze(2)
        for t, side in zip(held, (left_PM, right_PN), strict=True)
    )
    return (left * right).reshape(held[0].shape[:3]).sum(2)


def norm_of(gradient: Tensor) -> Tensor:
    """Its norm, float64.

    Squares of single precision overflow from 1e19 on, and are nothing below 1e-23. On a CPU double
    precision means a copy, which takes far longer than the sum: there each row is summed by itself,
    and what comes near to such numbers once more.
    """
    kind = gradient.device.type
    near = not _reading.is_elsewhere(gradient.device)  # reading one number does not wait
    if near and gradient.dtype == torch.float32 and gradient.ndim > 1:
        rows = gradient.flatten(1)
        if rows.shape[1] <= LONGEST:
            norm: Tensor = torch.linalg.vector_norm(rows, dim=1).double().norm()
            if TINY < float(norm) < math.inf:
                return norm
    whole: Tensor = torch.linalg.vector_norm(
        gradient, dtype=None if kind == "mps" else torch.float64
    )
    return whole.double()


def _window(numbers: Tensor, begin: int, shape: torch.Size) -> Tensor:
    return numbers[begin : begin + shape.numel()].view(shape)


def _windows(numbers: Tensor, begins_P: Tensor, length: int) -> Tensor:
    """The same of several parameters, (P, length); see `Probe.point` for one element."""
    if length == 1:
        return numbers.new_ones(len(begins_P), 1)
    return numbers[begins_P.unsqueeze(1) + torch.arange(length)]


@cache
def eps_of(dtype: torch.dtype) -> float:
    """Of a kind of number; 0 of integers."""
    return float(torch.finfo(dtype).eps) if dtype.is_floating_point else 0.0


def is_single(gradient: Tensor) -> bool:
    """Whether a gradient in double precision holds numbers of single precision alone."""
    wide = own_part(gradient.detach())
    return (
        wide.dtype == torch.float64
        and bool(wide.any())
        and torch.equal(wide.float().double(), wide)
    )


def tolerance(parameter: Tensor, low_precision: bool, computed: float = 0.0) -> float:
    """How far sums may differ, relative to their terms, for the arithmetic that made them.

    `computed`: the largest eps of what the shares are made of: a layer may compute in less than
    its parameter's precision.
    """
    if low_precision or parameter.dtype in (torch.bfloat16, torch.float16):
        return 5e-2
    single = parameter.dtype != torch.float64 or computed > DOUBLE
    return 2e-3 if single else 1e-8
