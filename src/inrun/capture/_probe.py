"""The invariant: shares sum to the gradient, checked against a random direction with every step.

The direction is of rank one, r = x y^T with Gaussian x and y, so that <r, share_i> and <r, grad>
cost as little as two matrix-vector products, and a share that is missing, counted twice or laid
out wrongly is seen with near certainty. Signs would not do: gradients of a softmax head sum to
zero over the classes, and of two classes a pair of equal signs sees nothing at all.

Directions are drawn anew for every step, as windows into two rows of numbers that stay where the
parameters are: a draw costs two integers, and every process makes the same draws.

`CheckSchedule` says whose shares are compared in a step: of large ones a quarter, in turn. Shares
are wrong because of the model or the loop, and in every step alike: a rule, a hook, a penalty: no
reason to read each layer's activations once more for it in every step.
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
from inrun.factors import Factor, compute_dtype

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
        return self._left @ (self._as_matrix(gradient) @ self._right.reshape(-1))

    def and_norm(self, gradient: Tensor) -> Tensor:
        """<r, gradient> and the gradient's norm, (2,) float64."""
        return torch.stack((self.of_gradient(gradient).double(), norm_of(gradient.detach())))

    def _as_matrix(self, gradient: Tensor) -> Tensor:
        shape = self.rows[0], self.columns.numel()
        return gradient.detach().to(self._left.dtype).reshape(shape)


class Probes:
    """All parameters' directions, drawn together.

    Args:
        parameters: by name.
        seed: of all draws.
    """

    def __init__(self, parameters: Mapping[str, Tensor], seed: int):
        generator = torch.Generator().manual_seed(seed)
        self._probes = {name: Probe(p, generator) for name, p in parameters.items()}
        self._seed, self._draws = seed, 0
        self._begins: dict[str, tuple[int, int]] = {}  # of both windows, since the last draw
        self._unset: dict[str, tuple[int, int]] = {}  # of directions that were not asked for yet
        self._sides: dict[tuple[str, ...], tuple[Tensor, Tensor]] = {}
        places = {name: (p.device, compute_dtype(p)) for name, p in parameters.items()}
        self._numbers = {
            place: self._row_pair(place, [n for n, at in places.items() if at == place], generator)
            for place in dict.fromkeys(places.values())
        }
        self._places = places

    def __getitem__(self, name: str) -> Probe:
        probe, begin = self._probes[name], self._unset.pop(name, None)
        if begin is not None:
            lefts, rights = self._numbers[self._places[name]]
            probe.point(
                _window(lefts, begin[0], probe.rows), _window(rights, begin[1], probe.columns)
            )
        return probe

    def place(self, name: str) -> tuple[torch.device, torch.dtype]:
        """Where a parameter's direction is, and in which precision."""
        return self._places[name]

    def sides(self, names: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Directions' two factors, (P, rows) and (P, columns), of one shape and place."""
        key = tuple(names)
        if key not in self._sides:
            self._sides[key] = self._sides_now(names)
        return self._sides[key]

    def _sides_now(self, names: Sequence[str]) -> tuple[Tensor, Tensor]:
        probe, numbers = self._probes[names[0]], self._numbers[self._places[names[0]]]
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

    Args:
        parameter: whose gradient it is.
        low_precision: whether half precision took part.
        computed: the largest eps of what the shares are made of: a layer may compute in less.
    """
    if low_precision or parameter.dtype in (torch.bfloat16, torch.float16):
        return 5e-2
    single = parameter.dtype != torch.float64 or computed > DOUBLE
    return 2e-3 if single else 1e-8


LARGE = 65_536  # elements that a factor holds; smaller ones are compared in every step
FIRST_STEPS = 8  # in which all are compared
PHASES = 4


class CheckSchedule:
    """Asked for each factor of a step; the answer is one for all of a parameter's.

    Args:
        always: whether all are compared in every step.
    """

    def __init__(self, *, always: bool):
        self._always = always
        self._large: list[str] = []
        self._met: dict[str, None] = {}  # large ones that this step was the first to show
        self._now: set[str] = set()
        self.steps = 0

    @property
    def takes_turns(self) -> bool:
        """Whether some are left out in this step."""
        return not self._always and self.steps >= FIRST_STEPS

    def stop_turns(self) -> None:
        """From now on all are compared in every step."""
        self._always = True

    def compares(self, name: str) -> bool:
        """Whether a parameter's are compared in this step, as far as it is known."""
        return self._always or name in self._now or name not in self._large

    def asks(self, name: str, size: int) -> bool:
        """Whether this parameter's shares are to be compared in this step.

        Args:
            name: of the parameter.
            size: how many numbers its factor holds.
        """
        if not self.compares(name):
            return False
        if size > LARGE:
            self._met[name] = None
        return True

    def next_step(self, blocks: int) -> None:
        """Goes on to those of the next step.

        Args:
            blocks: of the step that is over. Whether earlier blocks are in a gradient at all is
                told by the comparison too, so that where they accumulate all are compared.
        """
        self.steps += 1
        self._large += [name for name in self._met if name not in self._large]
        self._met = {}
        every = self.steps < FIRST_STEPS or blocks > 1
        phases = 1 if every else max(1, min(PHASES, len(self._large)))
        self._now = set(self._large[self.steps % phases :: phases])
