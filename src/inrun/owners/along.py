"""Operations along axes: softmax and norms keep them, sums and maxima reduce them, sort moves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from inrun.owners._map import Map, collapsed, squeezed
from inrun.owners._operation import Found, Op, rule, rule_of_first, stem
from inrun.owners.pointwise import kept, several

_DIM_AT = {"normalize": 2, "topk": 2, "kthvalue": 2, "glu": 1, "norm": 2, "quantile": 2,
           "nanquantile": 2, "linalg_vector_norm": 2, "linalg_norm": 2}  # fmt: skip
_DIM_UNSAID = {"normalize": 1, "softmin": -1}


def _dim(op: Op, default: Any) -> Any:
    """The axis or axes, however they were given."""
    for name in ("dim", "axis"):
        if name in op.kwargs:
            return op.kwargs[name]
    at = _DIM_AT.get(stem(op.name), 1)
    given = op.args[at] if len(op.args) > at else default
    if isinstance(given, (bool, Tensor, torch.dtype)):
        return default
    return default if given is None else given


@rule_of_first(
    "softmax log_softmax softmin normalize gumbel_softmax glu logcumsumexp cummax cummin cumprod "
    "gradient",
    refined=True,
)
def along(op: Op, m: Map) -> Found:
    """Each entry by all entries along one axis."""
    axis = _dim(op, _DIM_UNSAID.get(stem(op.name), -1))
    axes = axis if isinstance(axis, (list, tuple)) else (axis,)
    return _kept_along(op, m, axes)


@rule_of_first("renorm", refined=True)
def renorm(op: Op, m: Map) -> Found:
    """Each entry by the norm of its part of the tensor: over all axes but one."""
    ndim, own = op.args[0].ndim, op.get(2, "dim")
    return _kept_along(op, m, [i for i in range(ndim) if i != own % ndim])


@rule_of_first("cumsum diff trapezoid cumulative_trapezoid", refined=True)
def running_sum(op: Op, m: Map) -> Found:
    """Sums of the entries up to each."""
    if stem(op.name) == "trapezoid":
        return _reduced_by(op, m, (_dim(op, -1),), linear=True)
    return _kept_along(op, m, (_dim(op, -1),), linear=True)


def _kept_along(op: Op, m: Map, axes: Sequence[int], *, linear: bool = False) -> Found:
    m = m if linear else kept(op, m)
    return op.every(collapsed(m, axes, linear=linear, why=op.name))


@rule_of_first("layer_norm rms_norm", refined=True)
def layer_norm(op: Op, m: Map) -> Found:
    """Over the last axes."""
    shape = op.get(1, "normalized_shape")
    count = len(shape) if isinstance(shape, (list, tuple)) else 1
    return _kept_along(op, m, range(-count, 0))


@rule_of_first("group_norm instance_norm local_response_norm", refined=True)
def group_norm(op: Op, m: Map) -> Found:
    """Over everything within a row."""
    start = 2 if op.name == "instance_norm" else 1
    return _kept_along(op, m, range(start, op.args[0].ndim))


@rule_of_first(
    "fft_fft fft_ifft fft_rfft fft_irfft fft_hfft fft_ihfft fft_fft2 fft_ifft2 fft_rfft2 "
    "fft_irfft2 fft_fftn fft_ifftn fft_rfftn fft_irfftn",
    refined=True,
)
def fourier(op: Op, m: Map) -> Found:
    """Every frequency of all entries along the axes."""
    several_axes = op.name.endswith(("n", "2"))
    default: Any = (-2, -1) if op.name.endswith("2") else -1
    if op.name.endswith("n"):
        default = tuple(range(op.args[0].ndim))
    axis = op.get(2, "dim", default)
    axes = axis if several_axes and isinstance(axis, (list, tuple)) else (axis,)
    return _kept_along(op, m, default if axis is None else axes, linear=True)


@rule_of_first("fft_fftshift fft_ifftshift")
def shifted(op: Op, m: Map) -> Found:
    """Entries in another order."""
    axes = op.get(1, "dim", None)
    axes = range(m.ndim) if axes is None else [axes] if isinstance(axes, int) else axes
    if all(m.shape[axis] == 1 for axis in axes):
        return [m]
    return [m.derived(op.function(m.codes.expand(op.args[0].shape), *op.args[1:], **op.kwargs))]


@rule_of_first(
    "sum mean nansum nanmean var std prod amax amin any all norm logsumexp "
    "count_nonzero std_mean var_mean linalg_vector_norm linalg_norm nanmedian aminmax quantile "
    "nanquantile",
    refined=True,
)
def reduced(op: Op, m: Map) -> Found:
    """All entries along the axes in one."""
    axis = _dim(op, None)
    whole = axis is None or axis == () or axis == []
    axes = range(op.args[0].ndim) if whole else (axis,) if isinstance(axis, int) else axis
    return _reduced_by(op, m, axes, linear=stem(op.name) in ("sum", "mean", "nansum", "nanmean"))


def _reduced_by(op: Op, m: Map, axes: Sequence[int], *, linear: bool = False) -> Found:
    """The maps of outputs from which the axes are gone, or where they are 1."""
    c = collapsed(m if linear else kept(op, m), axes, linear=linear, why=op.name)
    return [c if out.ndim == c.ndim else c.without(axes) for out in op.outs]


@rule("max min median mode kthvalue argmax argmin", refined=True)
def chosen(op: Op) -> Found | None:
    """One entry of those along an axis: its owner is that entry's."""
    if (len(op.args) > 1 and isinstance(op.args[1], Tensor)) or "other" in op.kwargs:
        return several(op)
    m, x = op.first, op.args[0]
    axis = _dim(op, None)
    if m is None:
        return op.every(None)
    if axis is None and stem(op.name) in ("mode", "kthvalue"):
        axis = -1
    if axis is None:
        return _reduced_by(op, m, range(x.ndim))
    if len(op.outs) < 2 or m.shape[axis] == 1:
        return _reduced_by(op, m, (axis,))
    index = op.outs[1].detach().cpu()
    keep = index.ndim == x.ndim
    places = index if keep else index.unsqueeze(axis)
    codes = m.codes.expand(x.shape).gather(axis, places)
    codes = codes if keep else codes.squeeze(axis)
    found = m.derived(squeezed(codes))
    return [found, *_reduced_by(op, m, (axis,))[1:]]


@rule_of_first("sort topk msort argsort", refined=True)
def ordered(op: Op, m: Map) -> Found:
    """Entries along an axis in their order."""
    x, name = op.args[0], stem(op.name)
    axis = 0 if name == "msort" else _dim(op, -1)
    places = collapsed(kept(op, m), (axis,), linear=False, why=op.name)
    if name == "argsort":
        return [places]
    if x.ndim == 0 or m.shape[axis] == 1:
        return op.every(m)
    if len(op.outs) < 2:
        return op.every(places)
    codes = m.codes.expand(x.shape).gather(axis, op.outs[1].detach().cpu())
    return [m.derived(squeezed(codes)), places]
