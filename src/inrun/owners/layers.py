"""Operations that are whole layers: convolutions, pools, recurrent networks, attention, losses."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from inrun.owners._map import MIXED, NONE, Map, adopted, collapsed, squeezed, uniform
from inrun.owners._operation import Found, Op, names, rule, rule_of_first
from inrun.owners.lookups import spread_owners
from inrun.owners.moves import host
from inrun.owners.pointwise import kept


@rule(
    "conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d conv_tbc convolution "
    "max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d "
    "lp_pool1d lp_pool2d lp_pool3d "
    "max_pool1d_with_indices max_pool2d_with_indices max_pool3d_with_indices "
    "adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d "
    "adaptive_max_pool2d adaptive_max_pool3d adaptive_max_pool1d_with_indices "
    "fractional_max_pool2d "
    "adaptive_max_pool2d_with_indices max_unpool1d max_unpool2d max_unpool3d interpolate upsample "
    "pixel_shuffle pixel_unshuffle fold im2col col2im grid_sample affine_grid",
    torch.nn.functional.unfold,
)
def images(op: Op) -> Found | None:
    """Neighbouring places of one image: owners must not differ within it."""
    m, x = op.first, op.args[0]
    if m is None or any(other is not None for other in op.maps if other is not m):
        return None if any(other is not None for other in op.maps) else op.every(None)
    channels = op.name.startswith("conv") and x.ndim == op.args[1].ndim - 1  # one image, no batch
    if m.ndim and set(m.varying) <= {0} and op.name != "conv_tbc" and not (channels and m.varying):
        if op.out.ndim == m.ndim:
            return op.every(m)
        shape = (m.shape[0],) + (1,) * (op.out.ndim - 1)
        rows = m.remembered(("rows", op.out.ndim), lambda: m.derived(m.codes.reshape(shape)))
        return op.every(rows)
    return None if x.ndim else op.every(m)


@rule("lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell")
def cell(op: Op) -> Found | None:
    """One step of a recurrent network, row by row."""
    rows = [(t, m) for t, m in zip(op.tensors, op.maps, strict=True) if m is not None]
    if any(m.ndim != op.out.ndim or set(m.varying) - {0} for _, m in rows):
        return None
    return op.every(op.join(rows))


@rule("lstm gru rnn_tanh rnn_relu")
def recurrent(op: Op) -> Found | None:
    """A whole recurrent network, over padded or packed sequences."""
    m, second = op.first, op.args[1]
    if m is None:
        return None
    if isinstance(second, Tensor) and second.ndim == 1 and not second.is_floating_point():
        if set(m.varying) - {0}:
            return None
        sizes = second.tolist()
        steps = m.codes.reshape(-1) if m.varying else m.codes.reshape(-1).expand(sum(sizes))
        sequences, start = steps[: sizes[0]], 0
        for size in sizes:
            if not torch.equal(steps[start : start + size], sequences[:size]):
                return None
            start += size
        state = m.derived(sequences.reshape(1, -1, 1))
        return [m, *[state] * (len(op.outs) - 1)]
    axis = 0 if op.args[-1] else 1
    if any(
        other is not None and other.varying == (1,) and not _alike(other, m)
        for t, other in zip(op.tensors[1:], op.maps[1:], strict=True)
        if t.requires_grad
    ):  # the state of another sample's
        return [uniform(MIXED, out.ndim, op.name) for out in op.outs]
    if m.ndim == 3 and set(m.varying) <= {axis}:
        state = m.remembered("state", lambda: m.derived(m.codes.reshape(1, -1, 1)))
        return [m, *[state] * (len(op.outs) - 1)]
    return op.every(m) if m.ndim == 2 and not m.varying else None


def _alike(state: Map, rows: Map) -> bool:
    a, b = torch.broadcast_tensors(state.codes.reshape(-1), rows.codes.reshape(-1))
    return torch.equal(a, b)


@rule_of_first("_pack_padded_sequence")
def pack(op: Op, m: Map) -> Found:
    """Steps of all sequences, the longest sequences first."""
    codes = m.codes.expand(*op.args[0].shape[:2], *m.shape[2:])
    data, _ = op.function(codes.double(), *host(op.args[1:]), **host(op.kwargs))
    return [m.derived(squeezed(data.to(torch.int32))), *[None] * (len(op.outs) - 1)]


@rule_of_first("_pad_packed_sequence")
def unpack(op: Op, m: Map) -> Found:
    """The same back: padding belongs to its sequence."""
    x, sizes = op.args[:2]
    codes = m.codes.expand(x.shape[0], *m.shape[1:]).double()
    batch_first, total = op.get(2, "batch_first"), op.get(4, "total_length", 0)
    padded, _ = op.function(codes, sizes.cpu(), batch_first, float(NONE), total)
    owners = adopted(padded.to(torch.int32), op.samples, alone=True)
    return [m.derived(squeezed(owners)), *[None] * (len(op.outs) - 1)]


@rule("scaled_dot_product_attention", refined=True)
def attention(op: Op) -> Found | None:
    """Each query's slot reads the keys that its mask lets it read."""
    query, key, value = (op.get(i, n) for i, n in enumerate(("query", "key", "value")))
    q, k, v = (op.map_of(t) for t in (query, key, value))
    read = op.join([(t, m) for t, m in ((key, k), (value, v)) if m is not None], ndim=key.ndim)
    if q is None and read is None:
        return [None]
    if read is not None:
        read = collapsed(read, (-1,), linear=False, why=op.name)
    own = None if q is None else collapsed(q, (-1,), linear=False, why=op.name)
    if read is None or read.shape[-2] == 1:
        parts = [(t, m) for t, m in ((query, own), (key, _heads(read, own))) if m is not None]
        return [op.join(parts)]
    if own is None or not own.owned:
        return [op.join([(key, collapsed(read, (-2,), linear=False, why=op.name))])]
    mask = op.get(3, "attn_mask")
    causal = bool(op.get(5, "is_causal", False))
    apart = own.remembered(
        ("apart", id(read), id(mask), None if mask is None else mask._version, causal),
        lambda: _apart(own, read, mask, causal, query.shape[-2], key.shape[-2]), read, mask,
    )  # fmt: skip
    if not apart:  # the slot stays its own, and reads other samples'
        op.interactions.append(op.name)
    return [own]


_CLOSED = 5e3  # that a key which is masked by a number lies below the best one of its query


def _heads(read: Map | None, own: Map | None) -> Map | None:
    """Grouped queries: as many heads of keys as may be."""
    if read is None or own is None or read.ndim < 3 or own.ndim != read.ndim:
        return read
    if 1 not in (read.shape[-3], own.shape[-3]) and read.shape[-3] != own.shape[-3]:
        return read.derived(read.codes[..., :1, :, :])
    return read


def _apart(own: Map, read: Map, mask: Tensor | None, causal: bool, queries: int, keys: int) -> bool:
    """Whether every slot reads slots of its own sample alone, or of no one."""
    q = own.codes.expand(*own.shape[:-2], queries, 1)
    k = read.codes.expand(*read.shape[:-2], keys, 1).mT
    others = (q != k) & (k != NONE)
    if causal:
        others = others & torch.ones(queries, keys, dtype=torch.bool).tril()
    if mask is None:
        return not bool(others.any())
    allowed = mask
    if mask.dtype != torch.bool:  # -1e4 and -1e9 are in use too: exp of either is 0
        allowed = mask > mask.amax(-1, keepdim=True) - _CLOSED
    return not bool((others.to(mask.device) & allowed).any())


@rule(
    "cross_entropy nll_loss mse_loss l1_loss smooth_l1_loss huber_loss binary_cross_entropy "
    "binary_cross_entropy_with_logits kl_div poisson_nll_loss gaussian_nll_loss "
    "soft_margin_loss hinge_embedding_loss margin_ranking_loss cosine_embedding_loss "
    "triplet_margin_loss ctc_loss multi_margin_loss multilabel_margin_loss "
    "multilabel_soft_margin_loss triplet_margin_with_distance_loss linear_cross_entropy",
    refined=True,
)
def loss(op: Op) -> Found | None:
    """Terms per sample, or their sum or mean."""
    given = [(t, m) for t, m in zip(op.tensors, op.maps, strict=True) if m is not None]
    graded = [(t, m) for t, m in given if t.requires_grad] or given
    if not graded:
        return [None]
    ndim = max(t.ndim for t, _ in graded)
    m = op.join([(t, m) for t, m in graded if t.ndim == ndim], ndim=ndim)
    assert m is not None
    m = kept(op, m)
    if op.out.ndim == 0:
        m = collapsed(m, _of_one_term(op, ndim), linear=False, why=op.name)
        return [collapsed(m, range(ndim), linear=True, why=op.name).without(range(ndim))]
    if op.out.ndim == ndim and op.name != "ctc_loss":
        return [m]
    axes = _term_axes(op, ndim)
    return [collapsed(m, axes, linear=False, why=op.name).without(axes)]


_LAST = names(
    "multi_margin_loss multilabel_margin_loss cosine_embedding_loss triplet_margin_loss "
    "triplet_margin_with_distance_loss linear_cross_entropy"
)


def _of_one_term(op: Op, ndim: int) -> tuple[int, ...]:
    """Axes whose entries are in one term together: classes, features."""
    if op.name in ("cross_entropy", "nll_loss"):
        return (min(1, ndim - 1),)
    if op.name == "ctc_loss":
        return (0, 2)
    return (-1,) if op.name in _LAST else ()


def _term_axes(op: Op, ndim: int) -> tuple[int, ...]:
    """Axes that a term of a loss is taken over, where they are gone from the result."""
    if op.name == "ctc_loss":
        return (0, 2)
    return (min(1, ndim - 1),) if op.out.ndim == ndim - 1 else tuple(range(op.out.ndim, ndim))


@rule("ChunkedLogProbFunction.apply LigerFusedLinearCrossEntropyFunction.apply")
def fused_head(op: Op) -> Found | None:
    """A number per row of hidden states, or the sum of these; see `operations.fused_head`."""
    m = op.first
    if m is None or op.map_of(op.args[1]) is not None:
        return None if any(own is not None for own in op.maps) else op.every(None)
    rows = collapsed(kept(op, m), (-1,), linear=False, why=op.name)
    whole = collapsed(rows, (0,), linear=True, why=op.name)
    shapes = {0: whole.codes.reshape(()), 1: rows.codes[:, 0]}
    return [m.derived(shapes[out.ndim]) for out in op.outs]


@rule("embedding_bag")
def embedding_bag(op: Op) -> Found | None:
    """Rows of a table summed by bag."""
    index, offsets = op.get(0, "input"), op.get(2, "offsets")
    m: Any = op.map_of(index)
    rest: Found = [None] * (len(op.outs) - 1)
    bag = None if offsets is None else op.map_of(offsets)
    told = m is not None and (m.how == "given" or (m.owned and bag is not None and not bag.owned))
    if bag is not None and not told:  # where each sample's bag begins
        return [bag.derived(bag.codes[: op.out.shape[0]].unsqueeze(1)), *rest]
    if m is None:
        return op.every(None)
    if index.ndim == 2:
        return [collapsed(m, (1,), linear=False, why=op.name), *rest]
    if offsets is None:
        return None
    bags = torch.bucketize(torch.arange(len(index)), offsets.cpu(), right=True) - 1
    codes = spread_owners(bags, m.codes.expand(len(index)), op.out.shape[0])
    return [Map(codes.unsqueeze(1), op.name), *rest]
