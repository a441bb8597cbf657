"""Operations that multiply and add over an axis: `linear`, `matmul`, `einsum` and their like.

Every contraction is one rule. Each axis has a letter; the operands' maps are laid into the space of
all letters, where their product has the owners that its factors have together, and the letters that
are summed away collapse: terms of several samples, one each, make a SUM.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from inrun.owners._map import NONE, Map, collapsed
from inrun.owners._operation import Found, Op, rule, stem
from inrun.owners.pointwise import kept

Letters = Sequence[Hashable]


def contract(
    op: Op, operands: Sequence[tuple[Tensor, Letters]], out: Letters, *, linear: bool = True
) -> Map | None:
    """Owners of a contraction, `operands` and `out` with one letter per axis.

    `linear`: products are added up as they are.
    """
    mapped = [(t, letters, op.map_of(t)) for t, letters in operands]
    if all(m is None for _, _, m in mapped):
        return None
    space = list(out)
    for _, letters in operands:
        space += [letter for letter in letters if letter not in space]
    laid = [
        (t, None if m is None else _laid(m, tuple(letters), tuple(space)))
        for t, letters, m in mapped
    ]
    m = op.join(laid, ndim=len(space))
    assert m is not None
    if sum(part is not None for _, part in laid) > 1 or not linear:
        m = kept(op, m)
    gone = tuple(range(len(out), len(space)))
    if not gone:
        return m
    whole = collapsed(m, gone, linear=linear, why=op.name)
    if linear and whole.low < NONE:
        whole = _apart(op, m, operands, space, gone) or whole
    key = ("cut", len(out))
    return whole.remembered(key, lambda: whole.derived(whole.codes.flatten(len(out))[..., 0]))


def _apart(
    op: Op, m: Map, operands: Sequence[tuple[Tensor, Letters]], space: Letters,
    gone: tuple[int, ...],
) -> Map | None:  # fmt: skip
    """Owners without the terms that are zero: a routing mask or a block-diagonal graph adds none.

    Only zeros of operands without gradients count. A zero of an activation or a parameter still
    passes a gradient on to what it is multiplied by.
    """
    terms = None
    for t, letters in operands:
        if t.requires_grad or not any(space[axis] in letters for axis in gone):
            continue
        own = _spread((t.detach() != 0).cpu(), letters, space)
        terms = own if terms is None else terms & own
    if terms is None or bool(terms.all()):
        return None
    codes = torch.where(terms, m.codes, NONE).to(torch.int32)
    found = collapsed(m.derived(codes), gone, linear=True, why=op.name)
    return found if bool((found.codes >= NONE).any()) else None


def _laid(m: Map, letters: tuple[Hashable, ...], space: tuple[Hashable, ...]) -> Map:
    key = ("laid", letters, space)
    return m.remembered(key, lambda: m.derived(_spread(m.codes, letters, space)))


def _spread(t: Tensor, letters: Letters, space: Letters) -> Tensor:
    """A tensor with its axes in the order of the space, and axes of length 1 for the others."""
    t = t.permute(sorted(range(len(letters)), key=lambda i: space.index(letters[i])))
    sizes = iter(t.shape)
    return t.reshape([next(sizes) if letter in letters else 1 for letter in space])


@rule("linear", refined=True, rows=True)
def linear(op: Op) -> Found:
    """Rows by a matrix."""
    x, weight, bias = op.get(0, "input"), op.get(1, "weight"), op.get(2, "bias")
    first = op.map_of(x)
    if op.map_of(weight) is None and (bias is None or op.map_of(bias) is None):
        if first is None:
            return [None]
        m = collapsed(first, (-1,), linear=True, why=op.name)
        if weight.ndim == 1:
            return [m.without((-1,))]
        return [m]
    rows = tuple(("row", i) for i in range(x.ndim - 1))
    own = ("o",) if weight.ndim == 2 else ()
    found = contract(op, [(x, (*rows, "i")), (weight, (*own, "i"))], (*rows, *own))
    return [_plus(op, found, bias)]


def _plus(op: Op, m: Map | None, term: Tensor | None) -> Map | None:
    """With a term that is added."""
    other = None if term is None else op.map_of(term)
    if other is None or term is None:
        return m
    parts = [(term, other)] if m is None else [(op.out, m), (term, other)]
    return op.join(parts, adds=True)


@rule("matmul __matmul__ __rmatmul__ mm bmm mv dot vdot inner chain_matmul multi_dot", refined=True)
def matmul(op: Op) -> Found | None:
    """Matrix products, with the batch axes of both broadcast."""
    name = stem(op.name)
    if len(op.args) + len(op.kwargs) < 2 or name in ("chain_matmul", "multi_dot"):
        return None
    x = op.get(0, "input")
    y = op.args[1] if len(op.args) > 1 else next(iter(op.kwargs.values()))
    if name == "__rmatmul__":
        x, y = y, x
    if name == "inner":
        y = y.T if y.ndim == 2 else y
        if y.ndim > 2 or op.map_of(op.get(1, "other")) is not None:
            return None
    return [_product(op, x, y)]


def _product(op: Op, x: Tensor, y: Tensor) -> Map | None:
    left, right = _batch(x.ndim - 2), _batch(y.ndim - 2)
    rows, columns = ("m",) if x.ndim > 1 else (), ("n",) if y.ndim > 1 else ()
    operands = [(x, (*left, *rows, "k")), (y, (*right, "k", *columns))]
    return contract(op, operands, (*max(left, right, key=len), *rows, *columns))


def _batch(count: int) -> tuple[int, ...]:
    """Letters of batch axes, alike from the right."""
    return tuple(range(count - 1, -1, -1))


@rule("addmm baddbmm addmv addbmm addr", refined=True)
def add_product(op: Op) -> Found | None:
    """A matrix product added to a tensor."""
    name = stem(op.name)
    term, x, y = op.get(0, "input"), op.get(1, "mat1"), op.get(2, "mat2")
    x, y = (
        op.kwargs.get("batch1", op.kwargs.get("mat", x)),
        op.kwargs.get("batch2", op.kwargs.get("vec", y)),
    )
    if name == "addbmm":
        m = contract(op, [(x, ("b", "m", "k")), (y, ("b", "k", "n"))], ("m", "n"))
    elif name == "addr":
        m = contract(op, [(x, ("m",)), (y, ("n",))], ("m", "n"))
    else:
        m = _product(op, x, y)
    return [_plus(op, m, term)]


@rule("outer ger", refined=True)
def outer(op: Op) -> Found:
    """All products of two vectors' entries."""
    return [contract(op, [(op.args[0], ("m",)), (op.args[1], ("n",))], ("m", "n"))]


@rule("einsum", refined=True)
def einsum(op: Op) -> Found | None:
    """Products by letters."""
    equation = op.args[0]
    if not isinstance(equation, str):
        return None
    operands = list(op.args[1]) if isinstance(op.args[1], (list, tuple)) else list(op.args[1:])
    left, arrow, right = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    if len(terms) != len(operands):
        return None
    if not arrow:
        once = [c for c in left if c.isalpha() and left.count(c) == 1]
        right = ("..." if "..." in left else "") + "".join(sorted(once))
    letters = [_spelled(term, t.ndim) for term, t in zip(terms, operands, strict=True)]
    if any(len(set(own)) != len(own) for own in letters):  # a diagonal
        return None
    found = contract(op, list(zip(operands, letters, strict=True)), _spelled(right, op.out.ndim))
    return [found]


def _spelled(term: str, ndim: int) -> tuple[Hashable, ...]:
    """One letter per axis; those of an ellipsis are numbers, alike from the right."""
    before, dots, after = term.partition("...")
    if not dots:
        return tuple(before)
    return (*before, *_batch(ndim - len(before) - len(after)), *after)


@rule("tensordot", refined=True)
def tensordot(op: Op) -> Found | None:
    """Products summed over pairs of axes."""
    x, y, axes = op.args[0], op.args[1], op.get(2, "dims", 2)
    if isinstance(axes, int):
        pairs = list(zip(range(x.ndim - axes, x.ndim), range(axes), strict=True))
    elif isinstance(axes, (list, tuple)) and all(isinstance(a, (list, tuple)) for a in axes):
        pairs = [(a % x.ndim, b % y.ndim) for a, b in zip(*axes, strict=True)]
    else:
        return None
    left: list[Hashable] = [("x", i) for i in range(x.ndim)]
    right: list[Hashable] = [("y", i) for i in range(y.ndim)]
    for a, b in pairs:
        right[b] = left[a]
    gone = {left[a] for a, _ in pairs}
    out = [letter for letter in (*left, *right) if letter not in gone]
    return [contract(op, [(x, left), (y, right)], out)]


@rule("grouped_mm _grouped_mm grouped_mm_fallback grouped_linear", refined=True)
def grouped(op: Op) -> Found | None:
    """Rows in groups, each by its own matrix."""
    first = op.first
    if first is None or sum(m is not None for m in op.maps) > 1 or op.args[0].ndim != op.out.ndim:
        return None if any(m is not None for m in op.maps) else [None]
    return [collapsed(first, (-1,), linear=True, why=op.name)]


@rule("cdist", refined=True)
def distances(op: Op) -> Found:
    """Distances of all pairs of rows."""
    x, y = op.get(0, "x1"), op.get(1, "x2")
    left, right = _batch(x.ndim - 2), _batch(y.ndim - 2)
    operands = [(x, (*left, "m", "k")), (y, (*right, "n", "k"))]
    return [contract(op, operands, (*max(left, right, key=len), "m", "n"), linear=False)]


@rule("cosine_similarity pairwise_distance", refined=True)
def compare(op: Op) -> Found | None:
    """Two tensors' rows with each other, along one axis."""
    x, y = op.args[0], op.args[1]
    ndim = max(x.ndim, y.ndim)
    axis = op.get(2, "dim", 1) if op.name == "cosine_similarity" else -1
    m = op.join([(t, op.map_of(t)) for t in (x, y)], ndim=ndim)
    if m is None:
        return [None]
    m = collapsed(kept(op, m), (axis,), linear=False, why=op.name)
    return [m if m.ndim == op.out.ndim else m.without((axis,))]


@rule("bilinear", refined=True)
def bilinear(op: Op) -> Found:
    """Two tensors' rows by one matrix per feature."""
    rows = [(t, op.map_of(t)) for t in op.args[:2]]
    m = op.join(rows, ndim=op.out.ndim)
    both = all(part is not None for _, part in rows)  # products of the two rows' features
    return [None if m is None else collapsed(kept(op, m), (-1,), linear=not both, why=op.name)]
