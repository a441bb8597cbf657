"""The invariant: shares sum to the gradient, checked against a random direction with every step.

The direction is of rank one, r = x y^T with random signs x and y, so that <r, share_i> and
<r, grad> cost as little as two matrix-vector products, and a share that is missing, counted twice
or laid out wrongly is seen with near certainty.
"""

from __future__ import annotations

import torch
from torch import Tensor

from inrun.factors import Factor, compute_dtype
from inrun.kernels import probe_and_squares, takes
from inrun.shards import is_sharded, own_part, part_of

SINGLE = torch.finfo(torch.float32).eps


class Probe:
    """One parameter's random direction."""

    def __init__(self, parameter: Tensor, generator: torch.Generator):
        shape = parameter.shape or torch.Size((1,))
        dtype = compute_dtype(parameter)
        self._left = _signs(shape[:1], generator).to(parameter.device, dtype)
        self._right = _signs(shape[1:] or torch.Size((1,)), generator).to(parameter.device, dtype)
        self._parameter = parameter if is_sharded(parameter) else None

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
            signs = part_of(left, on) * part_of(self._right.expand(shape), on)
            return (signs * gradient.detach()).sum()
        return self._left @ (self._as_matrix(gradient) @ self._right.reshape(-1))

    def and_norm(self, gradient: Tensor) -> Tensor:
        """<r, gradient> and the gradient's norm, (2,) float64."""
        left, right = self._left, self._right.reshape(-1)
        if self._parameter is None:
            matrix = self._as_matrix(gradient)
            if takes(matrix, left, right):
                probe, squares = probe_and_squares(matrix, left, right)
                return torch.tensor((probe, squares**0.5), dtype=torch.float64)
        # squares of single precision overflow from 1e19 on, and are nothing below 1e-23
        wide = None if gradient.device.type == "mps" else torch.float64
        norm = torch.linalg.vector_norm(gradient, dtype=wide)
        return torch.stack((self.of_gradient(gradient).double(), norm.double()))

    def _as_matrix(self, gradient: Tensor) -> Tensor:
        return gradient.detach().to(self._left.dtype).reshape(self._left.shape[0], -1)


def _signs(shape: torch.Size, generator: torch.Generator) -> Tensor:
    return torch.randint(0, 2, shape, generator=generator).mul_(2).sub_(1)


def coarseness(factor: Factor) -> float:
    """The largest eps of what a factor's shares are made of: a layer may compute in less."""
    found = (t.dtype for t in factor.held if t.is_floating_point())
    return max((torch.finfo(dtype).eps for dtype in found), default=0.0)


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
        computed: see `coarseness`.
    """
    if low_precision or parameter.dtype in (torch.bfloat16, torch.float16):
        return 5e-2
    single = parameter.dtype != torch.float64 or computed > torch.finfo(torch.float64).eps
    return 2e-3 if single else 1e-8
