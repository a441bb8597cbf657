"""What runs on a GPU, compiled by Triton: the loops of `_settled` and `_slope`, in programs.

Each program takes one block of consecutive elements. Nothing is in double precision unless the
arrays are, and no two programs write to one place: a program leaves what it has summed in a column
of its own, so that sums are the same every time.

Numbers come as integers of the same bits (see `_triton.bits`) and are not specialized for: they
change with every step. Letters: K targets, P elements, N programs.
"""

from __future__ import annotations

try:
    import triton
    import triton.language as tl
except ImportError as error:
    raise ImportError(
        "inrun.kernels._on_gpu needs Triton, which PyTorch's builds for GPUs bring along: "
        "pip install triton"
    ) from error

# mypy: disable-error-code="misc, no-untyped-def, untyped-decorator"

_SETTLING = [
    "tiny", "untouched", "eps", "second", "first", "gain", "bend", "rate",
    "of_momentum", "of_decay",
]  # fmt: skip
_SLOPE = ["tiny", "untouched", "kept", "entering", "eps", "bend", "gain"]


@triton.jit
def _number(bits, kind: tl.constexpr):
    """The number of a float type whose bits an integer holds."""
    if kind == tl.float64:
        return bits.to(tl.int64).to(tl.float64, bitcast=True)
    else:  # noqa: RET505 - two types in one function: Triton looks at one branch alone
        return bits.to(tl.int32).to(tl.float32, bitcast=True)


@triton.jit
def _root(x, tiny):
    """Of at least `tiny`; not a number stays so, which a maximum would hide."""
    return tl.sqrt(tl.where(x < tiny, tiny, x))


@triton.jit
def _places(BLOCK: tl.constexpr):
    return tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)


@triton.jit(do_not_specialize=_SETTLING)
def settle(
    gradient_P, weight_P, m_P, v_P, opening_KP, closing_KP, directions_KP, sums_2KN,
    size, K,
    tiny: tl.int64, untouched: tl.int64, eps: tl.int64, second: tl.int64, first: tl.int64,
    gain: tl.int64, bend: tl.int64, rate: tl.int64, of_momentum: tl.int64, of_decay: tl.int64,
    WRITES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """See `_settled.settle_adam`; sums are left to be added up over programs."""
    kind: tl.constexpr = gradient_P.dtype.element_ty
    tiny, untouched, eps = _number(tiny, kind), _number(untouched, kind), _number(eps, kind)
    second, first, gain = _number(second, kind), _number(first, kind), _number(gain, kind)
    bend, rate = _number(bend, kind), _number(rate, kind)
    of_momentum, of_decay = _number(of_momentum, kind), _number(of_decay, kind)
    at = _places(BLOCK)
    inside = at < size
    g, w = tl.load(gradient_P + at, inside, other=0), tl.load(weight_P + at, inside, other=0)
    m, v = tl.load(m_P + at, inside, other=0), tl.load(v_P + at, inside, other=0)
    root, root_before = _root(v, tiny), _root(v - second * g * g, tiny)
    past = (m - first * g) / (root_before + eps)
    inverse = tl.where(root <= untouched, 0.0, 1.0 / (root + eps))
    bent = g / (root + root_before) * past
    slope = (gain + bend * bent) * inverse
    before = w + rate * m * inverse
    program, N = tl.program_id(0), tl.num_programs(0)
    for k in range(K):
        row = tl.cast(size, tl.int64) * k + at
        twice = tl.load(opening_KP + row, inside, other=0)
        twice += tl.load(closing_KP + row, inside, other=0)
        if WRITES:
            tl.store(directions_KP + row, twice * slope, inside)
        sum_2 = sums_2KN + k * N + program
        tl.store(sum_2, tl.sum(twice * past, 0) * of_momentum)
        tl.store(sum_2 + K * N, tl.sum(twice * before, 0) * of_decay)


@triton.jit(do_not_specialize=_SLOPE)
def slope(
    y_P, m_P, v_P, found_P,
    size,
    tiny: tl.int64, untouched: tl.int64, kept: tl.int64, entering: tl.int64, eps: tl.int64,
    bend: tl.int64, gain: tl.int64,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """See `_slope.adam_slope`."""
    kind: tl.constexpr = y_P.dtype.element_ty
    tiny, untouched, eps = _number(tiny, kind), _number(untouched, kind), _number(eps, kind)
    kept, entering = _number(kept, kind), _number(entering, kind)
    bend, gain = _number(bend, kind), _number(gain, kind)
    at = _places(BLOCK)
    inside = at < size
    y, m = tl.load(y_P + at, inside, other=0), tl.load(m_P + at, inside, other=0)
    before = tl.load(v_P + at, inside, other=0) * kept
    root, root_before = _root(before + entering * y * y, tiny), _root(before, tiny)
    bent = m * y / (root + root_before) / (root_before + eps)
    found = tl.where(root <= untouched, 0.0, (gain + bend * bent) / (root + eps))
    tl.store(found_P + at, found, inside)
