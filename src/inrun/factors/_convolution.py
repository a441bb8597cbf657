"""Shares of a convolution's weight, in any number of dimensions.

A convolution is linear in its weight, so <Q, share_b> = sum over the output of b's output gradient
times conv(input_b; Q): one more convolution and no unfolding. With several directions it may be
cheaper to build the shares, from the input's patches (groups G, I inputs of a group with their
window, O outputs of a group):

    share_b[g] = sum_t  gradient_bgt  patch_bgt^T        (G*O x I)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from inrun.factors._factor import Buildable
from inrun.factors._trial import LowRank

_CONVOLUTIONS: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


class Geometry(NamedTuple):
    """A convolution's window: kernel (G*O, I/..., *window) shape and how it moves."""

    weight: torch.Size
    stride: tuple[int, ...]
    padding: tuple[int, ...] | str
    dilation: tuple[int, ...]
    groups: int

    def margins(self) -> list[tuple[int, int]]:
        """Zeros before and after each spatial axis; 'same' pads the odd one behind."""
        if self.padding == "valid":
            return [(0, 0)] * len(self.dilation)
        if isinstance(self.padding, tuple):
            return [(p, p) for p in self.padding]
        spans = [d * (k - 1) for d, k in zip(self.dilation, self.weight[2:], strict=True)]
        return [(s // 2, s - s // 2) for s in spans]


class Convolution(Buildable):
    """input (B, S, C, *space) and output gradient (B, S, G*O, *space'); S images per sample."""

    def __init__(self, input_BS: Tensor, gradient_BS: Tensor, geometry: Geometry):
        super().__init__(geometry.weight, input_BS, gradient_BS)
        self._input_BS, self._gradient_BS, self._geometry = input_BS, gradient_BS, geometry
        self._rest = (geometry,)

    @property
    def each(self) -> int:
        return self._gradient_BS.shape[1] * self._gradient_BS.shape[3:].numel()

    def push(self, Q: Tensor) -> Tensor:
        if not self._input_BS.numel():
            return Q.new_zeros(self._input_BS.shape[0])
        seen = self._convolve(Q, self._geometry.groups)
        return (seen * self._gradient_BS.to(Q.dtype)).flatten(1).sum(1)

    def contract_low_rank(self, low: LowRank, directions_K: Tensor) -> Tensor:
        """See `Factor.contract_low_rank`: a convolution with r output channels, not O."""
        if self._geometry.groups != 1 or not self._input_BS.numel():
            return self.contract(directions_K)
        b = self._gradient_BS.to(directions_K.dtype).flatten(3)
        thin = [
            (self._convolve(R.T.reshape(-1, *self.shape[1:]), 1).flatten(3) * (L.T @ b))
            .flatten(1)
            .sum(1)
            for L, R in zip(*low, strict=True)
        ]
        return torch.stack(thin, 1)

    def sketch(self, left_KMr: Tensor, right_KNr: Tensor) -> Tensor:
        """See `Factor.sketch`: a convolution with r output channels for each direction."""
        if self._geometry.groups != 1 or not self._input_BS.numel():
            return super().sketch(left_KMr, right_KNr)
        B, K, r = self.samples, *right_KNr.shape[::2]
        kernel = right_KNr.mT.reshape(K * r, *self.shape[1:])
        seen = self._convolve(kernel, 1).flatten(3)  # (B, S, K * r, space)
        seen = seen.transpose(1, 2).reshape(B, K, r, -1)
        b = self._gradient_BS.to(left_KMr.dtype).flatten(3).transpose(1, 2).flatten(2)
        return (left_KMr.mT @ b.unsqueeze(1)) @ seen.mT

    @property
    def positions(self) -> int:
        """Samples, images and output positions; 0 for several groups, which have no low rank."""
        grouped = self._geometry.groups != 1
        return 0 if grouped else self._gradient_BS[:, :, :1].numel()

    def _convolve(self, kernel: Tensor, groups: int) -> Tensor:
        """conv(input; kernel), with the sample axes back in front: (B, S, channels, *space')."""
        g, B = self._geometry, self._input_BS.shape[0]
        images = self._input_BS.to(kernel.dtype).flatten(0, 1)
        convolve = _CONVOLUTIONS[len(g.dilation)]
        out = convolve(images, kernel, None, g.stride, g.padding, g.dilation, groups)
        return out.reshape(B, -1, *out.shape[1:])

    def _patches(self, samples: slice, dtype: torch.dtype) -> Tensor:
        """(B, G, T, I): what each output position saw, one group at a time."""
        g = self._geometry
        x = self._input_BS[samples].to(dtype)
        B, S = x.shape[:2]
        x = x.flatten(0, 1)
        flat = [edge for pair in reversed(g.margins()) for edge in pair]
        x = F.pad(x, flat)
        for axis, (k, s, d) in enumerate(
            zip(self.shape[2:], g.stride, g.dilation, strict=True), start=2
        ):
            x = x.unfold(axis, d * (k - 1) + 1, s)[..., ::d]
        n = len(g.dilation)
        space = x.shape[2 : 2 + n].numel()
        x = x.reshape(B, S, g.groups, self.shape[1], space, -1)
        return x.permute(0, 2, 1, 4, 3, 5).reshape(B, g.groups, S * space, -1)

    def _outputs(self, samples: slice, dtype: torch.dtype) -> Tensor:
        """(B, G, T, O): the output gradient at each position, one group at a time."""
        b = self._gradient_BS[samples].to(dtype)
        B, S = b.shape[:2]
        G = self._geometry.groups
        b_BGTO = b.reshape(B, S, G, self.shape[0] // G, -1).permute(0, 2, 1, 4, 3)
        return b_BGTO.reshape(B, G, -1, self.shape[0] // G)

    def shares(self, samples: slice, dtype: torch.dtype) -> Tensor:
        b_BGTO = self._outputs(samples, dtype)
        shares = torch.einsum("bgto,bgti->bgoi", b_BGTO, self._patches(samples, dtype))
        return shares.reshape(len(shares), *self.shape)

    def total(self, dtype: torch.dtype) -> Tensor:
        """See `Factor.total`: one matrix product per group."""
        everything = slice(None)
        b_BGTO = self._outputs(everything, dtype)
        total = torch.einsum("bgto,bgti->goi", b_BGTO, self._patches(everything, dtype))
        return total.reshape(self.shape)

    def contract_rank_one(self, left: Tensor, right: Tensor) -> Tensor:
        """See `Factor.contract_rank_one`: a convolution with one output channel per group."""
        if not self._input_BS.numel():
            return left.new_zeros(self._input_BS.shape[0])
        G = self._geometry.groups
        kernel = right.reshape(1, *self.shape[1:]).expand(G, *self.shape[1:])
        seen = self._convolve(kernel, G).unsqueeze(3)  # (B, S, G, 1, *space')
        b = self._gradient_BS.to(left.dtype)
        b = b.reshape(*b.shape[:2], G, -1, *b.shape[3:])
        weights = left.reshape(G, -1, *[1] * (seen.ndim - 4))
        products: Tensor = seen * b * weights
        return products.flatten(1).sum(1)
