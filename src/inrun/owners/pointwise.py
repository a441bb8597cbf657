"""Operations on entries that stay in their places: owners of what is broadcast together join."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from inrun.owners._map import MIXED, NONE, SUM, Map, collapsed, squeezed
from inrun.owners._operation import Found, Op, names, rule, rule_of_first, stem

_UNARY = """
to float half double bfloat16 type long int bool short char byte contiguous clone detach cpu cuda
alias requires_grad dropout alpha_dropout feature_alpha_dropout feature_dropout dropout1d
dropout2d dropout3d relu gelu silu elu selu celu leaky_relu mish softplus sigmoid logsigmoid
log_sigmoid tanh hardtanh hardswish hardsigmoid relu6 softsign threshold hardshrink softshrink
tanhshrink rrelu exp expm1 exp2 log log2 log10 log1p sqrt rsqrt square abs absolute neg negative
positive sign sgn sin cos tan asin acos atan sinh cosh asinh acosh atanh arcsin arccos arctan erf
erfc erfinv reciprocal round floor ceil trunc frac fix clamp_min clamp_max nan_to_num logit sinc
isnan isinf isfinite isposinf isneginf signbit deg2rad rad2deg lgamma digamma polygamma i0
mvlgamma expit special_expit special_erf special_log_ndtr angle conj resolve_conj resolve_neg
conj_physical tril triu logical_not bitwise_not __neg__ __abs__ __invert__ __pos__ bernoulli
pin_memory fill_diagonal quantize_per_tensor dequantize fake_quantize_per_tensor_affine _to_copy
lift_fresh native_dropout
"""
_SEVERAL = """
clamp clip prelu type_as maximum minimum fmax fmin atan2 arctan2 hypot addcmul addcdiv logaddexp
logaddexp2 copysign remainder fmod pow float_power floor_divide eq ne lt le gt ge equal not_equal
greater less greater_equal less_equal isclose logical_and logical_or logical_xor bitwise_and
bitwise_or bitwise_xor bitwise_left_shift bitwise_right_shift heaviside xlogy special_xlogy gcd
lcm nextafter polar complex __floordiv__ __rfloordiv__ __mod__ __rmod__ __pow__ __rpow__ __eq__
__ne__ __lt__ __le__ __gt__ __ge__ __and__ __or__ __xor__ __rand__ __ror__ __rxor__ __lshift__
__rshift__ ldexp isin fake_quantize_per_channel_affine
"""
_LINEAR_UNARY = names(
    "to float half double bfloat16 type contiguous clone detach cpu cuda alias neg negative "
    "positive requires_grad __neg__ __pos__ tril triu dropout native_dropout conj resolve_conj "
    "resolve_neg "
    "lift_fresh _to_copy"
)


@rule_of_first(_UNARY)
def unary(op: Op, m: Map) -> Found:
    """Each entry by itself."""
    return op.every(kept(op, m))


def kept(op: Op, m: Map) -> Map:
    """The map itself; what is not linear makes a SUM one of several samples."""
    if not m.has(SUM) or stem(op.name) in _LINEAR_UNARY:
        return m
    codes = m.codes
    return m.remembered(
        "nonlinear", lambda: Map(torch.where(codes == SUM, MIXED, codes), m.why or op.name, m.how)
    )


@rule(_SEVERAL, refined=True, pointwise=True)
def several(op: Op) -> Found | None:
    """Entries of several tensors together, in whatever way."""
    return op.every(_nonlinear(op, op.join(_parts(op))))


def _parts(op: Op) -> list[tuple[Tensor, Map | None]]:
    return list(zip(op.tensors, op.maps, strict=True))


def _nonlinear(op: Op, m: Map | None) -> Map | None:
    return None if m is None else kept(op, m)


@rule("add sub subtract rsub __add__ __radd__ __sub__ __rsub__ lerp", refined=True, pointwise=True)
def add(op: Op) -> Found | None:
    """A sum of terms with one owner each is a SUM."""
    if stem(op.name) == "lerp" and isinstance(op.get(2, "weight"), Tensor):
        return several(op)
    return op.every(op.join(_parts(op), adds=True))


@rule("mul multiply __mul__ __rmul__", refined=True, pointwise=True)
def multiply(op: Op) -> Found:
    """A SUM times a number stays one."""
    parts = _parts(op)
    graded = [m for t, m in parts if m is not None and t.requires_grad]
    return op.every(_scaled(op, parts, len(graded) < 2))


@rule("div divide true_divide __truediv__ __rtruediv__ __div__ __rdiv__", refined=True)
def divide(op: Op) -> Found:
    """As a product; what is divided by is not linear."""
    parts = _parts(op)
    reverse = stem(op.name) in ("__rtruediv__", "__rdiv__")
    over = op.args[0 if reverse else 1] if len(op.args) > 1 else op.kwargs.get("other")
    graded = isinstance(over, Tensor) and over.requires_grad and op.map_of(over) is not None
    return op.every(_scaled(op, parts, not graded and op.kwargs.get("rounding_mode") is None))


def _scaled(op: Op, parts: list[tuple[Tensor, Map | None]], linear: bool) -> Map | None:
    with_map = [m for _, m in parts if m is not None]
    if len(with_map) > 1 and not linear:
        return _nonlinear(op, op.join(parts))
    if linear and sum(m.low == SUM == m.high for m in with_map) > 0:
        graded = [(t, m) for t, m in parts if m is not None and t.requires_grad]
        if len(graded) == 1 or len(with_map) == 1:
            op.by_numbers |= len(graded) == 1 and any(
                m is not None and m.low < NONE and not t.requires_grad and t.numel() > 1
                for t, m in parts
            )
            return op.join([graded[0] if graded else (op.tensors[0], with_map[0])])
    joined = op.join(parts)
    return joined if linear else _nonlinear(op, joined)


@rule("masked_fill where", refined=True)
def choose(op: Op) -> Found | None:
    """One tensor's entries or another's: the mask is a number."""
    if len(op.args) == 1 and not op.kwargs:
        return places(op)
    mask: Any = op.get(1, "mask") if stem(op.name) == "masked_fill" else op.args[0]
    if stem(op.name) == "where" and not (
        isinstance(op.args[0], Tensor) and op.args[0].dtype == torch.bool
    ):
        mask = op.args[1]  # x.where(mask, y)
    data = [(t, m) for t, m in _parts(op) if t is not mask]
    if all(m is None for _, m in data):
        own = op.map_of(mask)
        return op.every(None if own is None else op.join([(mask, own)]))
    m = op.join(data, adds=True)
    if m is not None and m.low < NONE and stem(op.name) == "where":
        return op.every(_by_mask(op, mask, data, m))
    return op.every(m)


def _by_mask(op: Op, mask: Any, data: list[tuple[Tensor, Map | None]], m: Map) -> Map:
    """Two tensors of different samples' entries: each slot is one of them."""
    maps = [own for _, own in data]
    if len(maps) != 2 or any(own is None or own.low < NONE for own in maps):
        return m
    yes, no = (own.in_front(op.out.ndim).codes for own in maps if own is not None)
    return Map(squeezed(torch.where(mask.cpu(), yes, no)))


@rule("copy fill zero uniform normal exponential random log_normal cauchy geometric set_ resize")
def overwritten(op: Op) -> Found:
    """A tensor written over as a whole: `copy_`, `zero_`."""
    if stem(op.name) != "copy" or len(op.args) < 2:
        return op.every(None)
    source = op.map_of(op.args[1])
    return op.every(None if source is None else op.join([(op.args[1], source)]))


@rule("batch_norm")
def batch_norm(op: Op) -> Found:
    """Each entry by statistics; those of the batch let samples interact."""
    m = op.map_of(op.get(0, "input"))
    if m is not None and op.get(5, "training", False):
        op.interactions.append("batch_norm, by statistics of the batch")
    return [m]


@rule(
    "zeros_like ones_like full_like rand_like randn_like randint_like empty_like new_zeros "
    "new_ones new_full new_empty new_tensor bincount histc "
    "is_floating_point arange zeros ones full empty rand randn randint randperm linspace eye "
    "tril_indices triu_indices combinations logspace"
)
def created(op: Op) -> Found:
    """New tensors, and places: the same for all."""
    return op.every(None)


@rule_of_first("nonzero argwhere")
def places(op: Op, m: Map) -> Found:
    """Places of entries that are not zero: each is its entry's sample's.

    Places that depend on several samples, such as the experts that any token goes to, are numbers.
    """
    x, out = op.args[0], op.out
    listed = out.ndim == 2 and len(op.outs) == 1  # (n, axes); else one tensor per axis
    at = out.unbind(1) if listed else op.outs
    codes = squeezed(m.codes.expand(x.shape)[tuple(i.detach().cpu() for i in at)])
    if codes.numel() and int(codes.min()) < NONE:
        return op.every(None)
    return op.every(m.derived(codes.unsqueeze(1) if listed else codes))


@rule("bucketize searchsorted")
def bucket(op: Op) -> Found:
    """Each number by itself among boundaries."""
    first = op.name == "bucketize"
    values = op.get(0 if first else 1, "input")
    bounds = op.get(1, "boundaries") if first else op.get(0, "sorted_sequence")
    by = op.map_of(bounds)
    by = None if by is None else collapsed(by, (-1,), linear=False, why=op.name)
    return op.every(op.join([(values, op.map_of(values)), (bounds, by)]))


@rule_of_first("multinomial")
def drawn(op: Op, m: Map) -> Found:
    """Numbers drawn by each row's weights."""
    return [collapsed(m, (-1,), linear=False, why=op.name)]
