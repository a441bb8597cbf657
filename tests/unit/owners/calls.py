"""One way or several to call every operation that has an owner rule, on random owned inputs.

A call is a function of a `Draw` and the operation's name; it gives a function of tensors and the
`Data` to call it with.
"""

import torch
import torch.nn.functional as F
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from inrun.owners import families
from inrun.owners._operation import names as named

CALLS = {}  # name: list of calls


def calls(names):
    """Registers a call under names, or under all names of a family (`family:unary`)."""

    def register(make):
        own = []
        for word in names.split():
            own += families()[word[7:]] if word.startswith("family:") else [word]
        for name in own:
            CALLS.setdefault(name, []).append(make)
        return make

    return register


def found(name):
    """The function of that name, wherever torch has it."""
    for package, cut in (
        (torch, name), (F, name), (torch.Tensor, name), (torch.special, name[8:]),
        (torch.fft, name[4:]), (torch.linalg, name[7:]), (torch.linalg, name),
        (torch.Tensor, f"{name}_"), (torch.ops.aten, name),
    ):  # fmt: skip
        function = getattr(package, cut, None)
        if cut and callable(function):
            return function
    raise LookupError(name)


# ---- entries in their places

_POSITIVE = named(
    "log log2 log10 log1p sqrt rsqrt lgamma digamma acosh arccosh logit erfinv special_log_ndtr "
    "mvlgamma polygamma"
)
_MORE = {  # arguments beside the tensor
    "clamp_min": (-0.5,), "clamp_max": (0.5,), "threshold": (0.1, 0.0), "mvlgamma": (2,),
    "to": (torch.float32,), "type": (torch.float32,), "fill_diagonal": (1.0,),
}  # fmt: skip
_WHOLE = named("bitwise_not __invert__")


@calls("family:unary")
def unary(d, name):
    shape = d.shape(2 if name in ("tril", "triu", "fill_diagonal") else None)
    if name in ("dropout1d", "dropout2d", "dropout3d", "feature_dropout", "feature_alpha_dropout"):
        shape = d.shape({"dropout1d": 3, "dropout2d": 4, "dropout3d": 5}.get(name, 3))
    x = d.mask(shape, owner=True) if name in _WHOLE else d.x(shape, positive=name in _POSITIVE)
    function = found("special_expit" if name == "expit" else name)
    more = _MORE.get(name, ())
    if name == "mvlgamma":
        return lambda t: torch.mvlgamma(t + 3, 2), [x]
    if name == "polygamma":
        return lambda t: torch.polygamma(1, t), [x]
    if name == "erfinv":
        return lambda t: torch.erfinv(t.tanh()), [x]
    if name in ("logit", "bernoulli"):
        return lambda t: function(t.sigmoid()), [x]
    if name == "native_dropout":
        return lambda t: torch.native_dropout(t, 0.5, True), [x]
    if name == "quantize_per_tensor":
        return lambda t: torch.quantize_per_tensor(
            t.float(), 0.1, 0, torch.qint8
        ).dequantize(), [x]  # fmt: skip
    if name == "fake_quantize_per_tensor_affine":
        return lambda t: torch.fake_quantize_per_tensor_affine(t.float(), 0.1, 0, -128, 127), [x]
    if name in ("alpha_dropout", "feature_alpha_dropout", "dropout", "feature_dropout"):
        return lambda t: function(t, 0.5, True), [x]
    if name == "requires_grad":
        return lambda t: t.detach().requires_grad_(), [x]
    if name == "fill_diagonal":
        return lambda t: t.clone().fill_diagonal_(1.0), [x]
    if name in ("cuda", "pin_memory"):
        return lambda t: t.cpu(), [x]
    return lambda t: function(t, *more), [x]


@calls("relu exp tanh sigmoid neg abs sqrt mul add sub div clamp_min dropout")
def in_place(d, name):
    x = d.x(d.shape(), positive=name == "sqrt")
    if name in ("mul", "add", "sub", "div"):
        y = d.broadcast(x)
        return lambda t, u: getattr(t.clone(), f"{name}_")(u), [x, y]
    if name == "dropout":
        return lambda t: F.dropout(t.clone(), 0.5, inplace=True), [x]
    if name == "clamp_min":
        return lambda t: t.clone().clamp_min_(0.1), [x]
    return lambda t: getattr(t.clone(), f"{name}_")(), [x]


_WITH_WHOLE = named(
    "bitwise_and bitwise_or bitwise_xor bitwise_left_shift bitwise_right_shift gcd lcm __and__ "
    "__or__ __xor__ __rand__ __ror__ __rxor__ __lshift__ __rshift__"
)


@calls("family:several family:add family:multiply family:divide")
def several(d, name):
    if name in _WITH_WHOLE:
        x = d.whole(d.shape(), 5, owner=True)
        y = d.whole(x.tensor.shape, 5, owner=x.owner if d.one_of(True, False) else True)
        return lambda t, u: found(name)(t, u), [x, y]
    x = d.x(d.shape(), positive=True)
    y = d.broadcast(x)
    positive = lambda u: u.abs() + 0.5  # noqa: E731
    if name == "prelu":
        x = d.x((d.size(), d.size(), 2))
        return lambda t, u: F.prelu(t, u), [x, d.x((x.tensor.shape[1],), owner=None)]
    if name == "addcmul" or name == "addcdiv":
        z = d.beside(x)
        return lambda t, u, v: getattr(torch, name)(t, v, positive(u), value=0.5), [x, y, z]
    if name == "lerp":
        if d.one_of(True, False):
            return lambda t, u: torch.lerp(t, u.expand(t.shape), 0.3), [x, y]
        return lambda t, u, v: torch.lerp(t, u.expand(t.shape), v), [x, y, d.beside(x)]
    if name in ("clamp", "clip"):
        return lambda t, u: getattr(torch, name)(t, min=u), [x, y]
    if name == "type_as":
        return lambda t, u: t.type_as(u.float()), [x, y]
    if name == "fake_quantize_per_channel_affine":
        x = d.x((2, d.size()))
        scale, zero = torch.tensor([0.1, 0.2]), torch.zeros(2, dtype=torch.int32)
        return lambda t: torch.fake_quantize_per_channel_affine(
            t.float(), scale, zero, 0, -128, 127
        ), [x]  # fmt: skip
    if name == "ldexp":
        return lambda t, u: torch.ldexp(t, u.round()), [x, y]
    if name == "isin":
        return lambda t: torch.isin(t.round(), torch.arange(3.0, dtype=t.dtype)), [x]
    if name == "equal":
        return lambda t, u: t.eq(u), [x, y]
    if name == "__div__":
        return lambda t, u: t / positive(u), [x, y]
    if name.startswith("__"):
        return lambda t, u: getattr(t, name)(positive(u)), [x, y]
    return lambda t, u: found(name)(t, positive(u)), [x, y]


@calls("add sub mul div __rsub__ __rtruediv__ __rpow__ pow __radd__ __rmul__")
def with_number(d, name):
    x = d.x(d.shape(), positive=True)
    if name.startswith("__"):
        return lambda t: getattr(t, name)(1.5), [x]
    return lambda t: getattr(torch, name)(t, 1.5), [x]


@calls("add mul sub div")
def after_a_sum(d, name):
    """What becomes of a SUM."""
    x = d.x(d.shape())
    kind = d.one_of("number", "square", "two", "constant", "relu", "again")
    if kind == "number":
        return lambda t: getattr(torch, name)(t.sum(), 3.0), [x]
    if kind == "square":
        return lambda t: t.sum() ** 2, [x]
    if kind == "two":
        return lambda t, u: getattr(torch, name)(t.sum(), u.mean()), [x, d.beside(x)]
    if kind == "constant":
        return lambda t, u: getattr(torch, name)(t.mean(), u), [x, d.x((), owner=None)]
    if kind == "relu":
        return lambda t: getattr(torch, name)(t.sum().tanh(), 2.0), [x]
    return lambda t: getattr(torch, name)(t.sum(0), 2.0).mean(), [x]


@calls("where masked_fill")
def choose(d, name):
    x = d.x(d.shape())
    mask = d.mask(x.tensor.shape, owner=d.one_of(None, True))
    if name == "masked_fill":
        if d.one_of(True, False):
            return lambda t, m: t.clone().masked_fill_(m, 0.5), [x, mask]
        return lambda t, m: t.masked_fill(m, 0.5), [x, mask]
    kind = d.one_of("both", "number", "method", "kept")
    if kind == "number":
        return lambda m, t: torch.where(m, 0.0, t), [mask, x]
    if kind == "method":
        return lambda t, m, u: t.where(m, u), [x, mask, d.broadcast(x)]
    if kind == "kept":
        return lambda m, t, u: torch.where(m, t, u), [mask, x, d.beside(x)]
    return lambda m, t, u: torch.where(m, t, u), [mask, x, d.broadcast(x)]


@calls("family:overwritten")
def overwritten(d, name):
    x = d.x(d.shape())
    if name == "copy":
        return lambda t, u: t.clone().copy_(u), [x, d.broadcast(x)]
    if name in ("set_", "resize"):
        return lambda t: t.detach().clone().zero_(), [x]
    more = {"fill": (2.0,), "geometric": (0.5,)}.get(name, ())
    return lambda t: getattr(t.clone(), f"{name}_")(*more), [x]


@calls("batch_norm")
def batch_norm(d, name):
    x = d.x((d.size(2), 3, 2))
    mean, variance = torch.zeros(3).double(), torch.ones(3).double()
    return lambda t: F.batch_norm(t, mean, variance), [x]


_PLACES = {
    "bincount": lambda t: torch.bincount((t > 0).long().flatten()), "nonzero": torch.nonzero,
    "searchsorted": lambda t: torch.searchsorted(torch.arange(3.0).double(), t),
    "bucketize": lambda t: torch.bucketize(t, torch.arange(3.0).double()),
    "count_nonzero": torch.count_nonzero, "argwhere": torch.argwhere,
    "multinomial": lambda t: torch.multinomial(t.abs() + 1, 1),
    "is_floating_point": lambda t: torch.zeros(3), "new_empty": lambda t: t.new_empty(2).zero_(),
}  # fmt: skip


@calls(" ".join(_PLACES))
def places(d, name):
    """Integers, which are numbers of no one."""
    return _PLACES[name], [d.x(d.shape(2))]


@calls("zeros_like ones_like full_like rand_like randn_like randint_like empty_like new_zeros "
       "new_ones new_full new_tensor")  # fmt: skip
def created(d, name):
    x = d.x(d.shape())
    if name.endswith("_like"):
        more = {"full_like": (1.0,), "randint_like": (5,)}.get(name, ())
        return lambda t: getattr(torch, name)(t, *more).zero_(), [x]
    if name.startswith("new"):
        more = {"new_full": ((2,), 1.0), "new_tensor": ([1.0],)}.get(name, ((2,),))
        return lambda t: getattr(t, name)(*more), [x]
    raise LookupError(name)


@calls("as_tensor asarray")
def made_of(d, name):
    return lambda t: getattr(torch, name)(t), [d.x(d.shape())]


# ---- along axes


@calls("softmax log_softmax softmin normalize gumbel_softmax cumsum logcumsumexp cummax cummin "
       "cumprod diff trapezoid cumulative_trapezoid glu renorm gradient")  # fmt: skip
def along(d, name):
    x = d.x(d.shape(low=1))
    shape = x.tensor.shape
    axis = d.axis(shape)
    if name == "normalize":
        return (lambda t: F.normalize(t, dim=axis)), [x]
    if name == "glu":
        x = d.x((d.size(), d.size(), 4))
        return (lambda t: F.glu(t)) if d.one_of(True, False) else (lambda t: F.glu(t, -1)), [x]
    if name == "renorm":
        axis = d.one_of(0, 1, -1)
        return lambda t: torch.renorm(t, 2, axis, 1.0), [d.x(d.shape(3))]
    if name == "gradient":
        x = d.x((d.size(), 3))
        return lambda t: torch.gradient(t, dim=1), [x]
    if name == "gumbel_softmax":
        return lambda t: F.gumbel_softmax(t, dim=axis), [x]
    if d.one_of(True, False) and hasattr(torch.Tensor, name):
        return lambda t: getattr(t, name)(dim=axis), [x]
    function = found(name)
    return lambda t: function(t, dim=axis), [x]


@calls("layer_norm rms_norm")
def layer_norm(d, name):
    x = d.x((d.size(), d.size(), d.size(2)))  # of one number a norm is its sign
    shape = tuple(x.tensor.shape[-d.one_of(1, 2) :])
    return lambda t: getattr(F, name)(t, shape), [x]


@calls("group_norm instance_norm local_response_norm")
def group_norm(d, name):
    x = d.x((d.size(), 4, d.size(2)))
    if name == "group_norm":
        return lambda t: F.group_norm(t, d.samples and 2), [x]
    if name == "instance_norm":
        return lambda t: F.instance_norm(t), [x]
    return lambda t: F.local_response_norm(t, 2), [x]


@calls("family:fourier")
def fourier(d, name):
    x = d.x(d.shape(3))
    function = found(name)
    if name.endswith("n"):
        axes = d.one_of(None, (0,), (1, 2), (-1,))
    elif name.endswith("2"):
        axes = d.one_of((-2, -1), (0, 1))
    else:
        axes = d.axis((1, 1, 1))
    if "irfft" in name or ("hfft" in name and "ihfft" not in name):
        x = d.x((*x.tensor.shape[:2], 3))
        axes = -1 if not name.endswith(("n", "2")) else (-2, -1)
    return lambda t: function(t, dim=axes), [x]


@calls("fft_fftshift fft_ifftshift")
def shifted(d, name):
    x = d.x(d.shape(2))
    axes = d.one_of(None, 0, (1,))
    return lambda t: found(name)(t, dim=axes), [x]


@calls("family:reduced")
def reduced(d, name):
    function = found(name)
    x = d.x(d.shape())
    axis = d.axis(x.tensor.shape)
    keep = d.one_of(True, False)
    kind = d.one_of("axis", "all", "axes")
    if name in ("quantile", "nanquantile"):
        return lambda t: function(t, 0.3, dim=axis, keepdim=keep), [x]
    if name == "vector_norm" or name == "linalg_vector_norm":
        return lambda t: torch.linalg.vector_norm(t, 2, axis, keep), [x]
    if name == "linalg_norm":
        return lambda t: torch.linalg.norm(t, dim=axis, keepdim=keep), [x]
    if name in ("any", "all"):
        return lambda t: function(t > 0, dim=axis, keepdim=keep), [x]
    if kind == "all" and name not in ("logsumexp",):
        return lambda t: function(t), [x]
    if kind == "axes" and name in (
        "sum",
        "mean",
        "var",
        "std",
        "amax",
        "amin",
        "logsumexp",
        "norm",
    ):
        axes = tuple(range(max(1, x.tensor.ndim - 1)))
        return lambda t: function(t, dim=axes, keepdim=keep), [x]
    if name == "count_nonzero":
        return lambda t: function(t > 0, dim=axis), [x]
    return lambda t: function(t, dim=axis, keepdim=keep), [x]


@calls("sum mean var std norm prod")
def by_place(d, name):
    x = d.x(d.shape())
    axis = d.axis(x.tensor.shape)
    if name == "norm":
        return lambda t: t.norm(2, axis), [x]
    return lambda t: getattr(t, name)(axis), [x]


@calls("family:chosen")
def chosen(d, name):
    x = d.x(d.shape())
    axis, keep = d.axis(x.tensor.shape), d.one_of(True, False)
    function = found(name)
    if name in ("max", "min") and d.one_of(True, False, False):
        return lambda t, u: function(t, u), [x, d.broadcast(x)]
    if name == "kthvalue":
        return lambda t: torch.kthvalue(t, 1, axis, keep)[0], [x]
    if d.one_of(True, False) and name != "mode":
        return lambda t: function(t), [x]
    if name in ("argmax", "argmin"):
        return lambda t: function(t, axis, keep), [x]
    return lambda t: function(t, axis, keep)[0], [x]


@calls("family:ordered")
def ordered(d, name):
    x = d.x(d.shape())
    axis = d.axis(x.tensor.shape)
    if name == "topk":
        return lambda t: torch.topk(t, 1, axis)[0], [x]
    if name == "msort":
        return lambda t: torch.msort(t), [x]
    if name == "argsort":
        return lambda t: torch.argsort(t, axis), [x]
    return lambda t: torch.sort(t, dim=axis, descending=True)[0], [x]


# ---- contractions


@calls("linear")
def linear(d, name):
    x = d.x(d.shape(last=3))
    weight = d.x((2, 3), owner=d.one_of(None, None, None, True))
    bias = d.x((2,), owner=d.one_of(None, None, None, True))
    if d.one_of(True, False):
        return lambda t, w: F.linear(t, w), [x, weight]
    return lambda t, w, b: F.linear(t, w, b), [x, weight, bias]


@calls("matmul __matmul__ __rmatmul__")
def matmul(d, name):
    left, right = d.one_of(
        ((3,), (3,)), ((2, 3), (3,)), ((3,), (3, 2)), ((2, 3), (3, 2)), ((4, 2, 3), (3, 2)),
        ((4, 2, 3), (4, 3, 2)), ((1, 2, 3), (4, 3, 2)), ((d.samples, 2, 3), (d.samples, 3, 2)),
        ((2, d.samples, 2, 3), (d.samples, 3, 2)), ((2, 3), (4, 3, 2)),
    )  # fmt: skip
    x = d.x(left)
    y = d.x(right, owner=d.one_of(None, True, True))
    if name == "__rmatmul__":
        return lambda t, u: u.__rmatmul__(t), [x, y]
    return lambda t, u: found(name)(t, u), [x, y]


@calls("bmm mm mv dot vdot inner chain_matmul multi_dot addmm baddbmm addmv addbmm addr outer ger")
def products(d, name):
    B, n = d.samples, d.size()
    shapes = {
        "bmm": [(B, 2, 3), (B, 3, n)], "mm": [(n, 3), (3, B)], "mv": [(B, 3), (3,)],
        "dot": [(B,), (B,)], "vdot": [(B,), (B,)], "inner": [(n, 3), (B, 3)],
        "chain_matmul": [(B, 3), (3, 2)], "multi_dot": [(B, 3), (3, 2)],
        "addmm": [(B, n), (B, 3), (3, n)], "baddbmm": [(B, 2, n), (B, 2, 3), (B, 3, n)],
        "addmv": [(B,), (B, 3), (3,)], "addbmm": [(2, n), (B, 2, 3), (B, 3, n)],
        "addr": [(B, n), (B,), (n,)], "outer": [(B,), (n,)], "ger": [(B,), (n,)],
    }[name]  # fmt: skip
    data = [d.x(shape, owner=d.one_of(None, True, True)) for shape in shapes]
    for one in data:  # a number of the whole batch is told only where gradients pass
        one.tensor.requires_grad_()
    if name == "multi_dot":
        return lambda *t: torch.linalg.multi_dot(t), data
    return lambda *t: getattr(torch, name)(*t), data


@calls("einsum")
def einsum(d, name):
    B, n = d.samples, d.size()
    equation, *shapes = d.one_of(
        ("bti,io->bto", (B, n, 3), (3, 2)), ("bti,bsi->bts", (B, n, 3), (B, 2, 3)),
        ("ti,si->ts", (B, 3), (B, 3)), ("bi,bi->b", (B, 3), (B, 3)), ("...i,io", (B, n, 3), (3, 2)),
        ("...i,...i->...", (B, n, 3), (n, 3)), ("bt->tb", (B, n)), ("bt->", (B, n)),
        ("ii->i", (B, B)), ("bt,tk,kc->bc", (B, n), (n, 2), (2, 3)), ("b,t->bt", (B,), (n,)),
    )  # fmt: skip
    data = [d.x(shape, owner=d.one_of(None, True, True)) for shape in shapes]
    return lambda *t: torch.einsum(equation, *t), data


@calls("tensordot")
def tensordot(d, name):
    x, y = d.x((d.samples, 2, 3)), d.x((2, 3, d.size()), owner=d.one_of(None, True))
    axes = d.one_of(2, ([1, 2], [0, 1]), ([2], [1]))
    return lambda t, u: torch.tensordot(t, u, dims=axes), [x, y]


@calls("_grouped_mm grouped_mm")
def grouped(d, name):
    x = d.x((8, 16))
    weight = torch.randn(2, 16, 16).bfloat16()
    ends = torch.tensor([3, 8], dtype=torch.int32)
    return lambda t: F.grouped_mm(t.bfloat16(), weight, offs=ends), [x]


@calls("cdist cosine_similarity pairwise_distance bilinear")
def pairs(d, name):
    B, n = d.samples, d.size()
    if name == "cdist":
        x, y = d.x(d.one_of((B, 2, 3), (n, 3))), d.x(d.one_of((B, 3, 3), (B, 3)))
        return lambda t, u: torch.cdist(t, u), [x, y]
    x = d.x((B, n, 3))
    y = d.beside(x)
    if name == "bilinear":
        weight = torch.randn(2, 3, 3, dtype=torch.float64)
        return lambda t, u: F.bilinear(t, u, weight), [x, y]
    if name == "pairwise_distance":
        return lambda t, u: F.pairwise_distance(t, u, keepdim=n == 2), [x, y]
    axis = d.axis((1, 1, 1))
    return lambda t, u: F.cosine_similarity(t, u, dim=axis), [x, y]


# ---- moves


@calls("view reshape flatten unflatten view_as reshape_as ravel")
def reshape(d, name):
    B, n = d.samples, d.size()
    x = d.x(d.one_of((B, n, 3), (n, B, 3), (B * n, 3), (B * 2, n), (1, B * n, 3)))
    shape = x.tensor.shape
    other = d.one_of((-1,), (*shape[:1], -1), (-1, shape[-1]), (1, *shape), (-1, 1, shape[-1]))
    if name == "flatten":
        start = d.random.randrange(len(shape))
        return lambda t: t.flatten(start), [x]
    if name == "unflatten":
        return lambda t: t.unflatten(-1, (1, -1)), [x]
    if name in ("view_as", "reshape_as"):
        return lambda t: getattr(t, name)(torch.empty(shape).reshape(other)), [x]
    if name == "ravel":
        return lambda t: t.ravel(), [x]
    return lambda t: getattr(t, name)(other), [x]


@calls("expand expand_as broadcast_to")
def expand(d, name):
    x = d.x((d.samples, 1, d.size()))
    shape = (2, d.samples, 4, x.tensor.shape[2]) if d.one_of(True, False) else (-1, 4, -1)
    if name == "expand_as":
        shape = (2, d.samples, 4, x.tensor.shape[2])
        return lambda t: t.expand_as(torch.empty(shape)), [x]
    if name == "broadcast_to":
        return lambda t: torch.broadcast_to(t, (2, d.samples, 4, t.shape[2])), [x]
    return lambda t: t.expand(shape), [x]


def _halves(t):
    return t.shape[0] // 2


_MOVES = {
    "transpose": lambda t: t.transpose(0, -1), "swapaxes": lambda t: t.swapaxes(0, 1),
    "swapdims": lambda t: t.swapdims(0, 1), "permute": lambda t: t.permute(2, 0, 1),
    "movedim": lambda t: t.movedim(0, -1), "moveaxis": lambda t: t.moveaxis(-1, 0),
    "t": lambda t: t[0].t(), "adjoint": lambda t: t.adjoint(), "squeeze": lambda t: t.squeeze(),
    "unsqueeze": lambda t: t.unsqueeze(1), "tile": lambda t: t.tile(2, 1, 1, 1),
    "repeat": lambda t: t.repeat(2, 1, 1),
    "repeat_interleave": lambda t: t.repeat_interleave(2, dim=0),
    "select": lambda t: t.select(1, 0), "narrow": lambda t: t.narrow(0, 0, max(1, _halves(t))),
    "chunk": lambda t: t.chunk(2), "split": lambda t: t.split(1, 1),
    "tensor_split": lambda t: t.tensor_split(2), "unbind": lambda t: t.unbind(1),
    "split_with_sizes": lambda t: t.split([1, t.shape[0] - 1]),
    "diagonal": lambda t: t.diagonal(), "rot90": lambda t: t.rot90(),
    "flip": lambda t: t.flip(0, 1),
    "roll": lambda t: t.roll(1, 0), "fliplr": lambda t: t.fliplr(), "flipud": lambda t: t.flipud(),
    "unfold": lambda t: t.unfold(0, 1, 1), "unsafe_chunk": lambda t: t.unsafe_chunk(2),
    "unsafe_split": lambda t: t.unsafe_split(1), "vsplit": lambda t: t.vsplit(1),
    "unsafe_split_with_sizes": lambda t: torch.unsafe_split_with_sizes(t, [1, t.shape[0] - 1]),
    "hsplit": lambda t: t.hsplit(1), "dsplit": lambda t: t.dsplit(1),
    "as_strided": lambda t: t.as_strided(t.shape[::-1], t.stride()[::-1]),
    "atleast_1d": torch.atleast_1d, "atleast_2d": lambda t: torch.atleast_2d(t[0, 0]),
    "atleast_3d": lambda t: torch.atleast_3d(t[0]),
    "narrow_copy": lambda t: torch.narrow_copy(t, 0, 0, 1),
    "channel_shuffle": lambda t: F.channel_shuffle(t.unsqueeze(-1), 1),
    "T": lambda t: t[0].T, "mT": lambda t: t.mT, "H": lambda t: t[0].H, "mH": lambda t: t.mH,
    "data": lambda t: t.data, "real": lambda t: t.real,
    "imag": lambda t: torch.complex(t, t).imag,
    "view_as_real": lambda t: torch.view_as_real(torch.complex(t, t)),
    "view_as_complex": lambda t: torch.view_as_real(torch.view_as_complex(torch.stack([t, t], -1))),
}  # fmt: skip


@calls(" ".join(_MOVES))
def move(d, name):
    return lambda t: _MOVES[name](t), [d.x(d.shape(3))]


@calls("repeat_interleave")
def repeated(d, name):
    x = d.x((d.samples, 2))
    counts = torch.randint(0, 3, (d.samples,), generator=d.generator())
    return lambda t: torch.repeat_interleave(t, counts, dim=0), [x]


@calls("__getitem__")
def get_item(d, name):
    x = d.x(d.shape(3))
    a, b, c = x.tensor.shape
    numbers = lambda n, *shape: torch.randint(n, shape, generator=d.generator())  # noqa: E731
    index = d.one_of(
        0, slice(None, None, 2), (slice(None), 0), (Ellipsis, 0), (None, slice(1)),
        (0, None, 0),
        numbers(a, 5), numbers(a, 2, 2), (slice(None), numbers(b, 4)),
        (numbers(a, 4), numbers(b, 4)),
        (numbers(a, 4), slice(None), numbers(c, 4)), (Ellipsis, numbers(c, 3)), [0, a - 1],
        (slice(None), [0, 0]), torch.rand(a, generator=d.generator()) < 0.5,
        torch.rand(a, b, generator=d.generator()) < 0.5, numbers(a, 0),
        (slice(None), torch.rand(b, generator=d.generator()) < 0.5), (None, numbers(a, 3), None),
        (numbers(a, 3, 1), numbers(b, 1, 2)), (numbers(a, 3), 0), (0, slice(None), numbers(c, 2)),
    )  # fmt: skip
    return lambda t: t[index], [x]


@calls("__getitem__")
def table(d, name):
    x = d.x((4, 3, 5), owner=None)
    kind = d.one_of("rows", "pairs", "behind", "mask", "apart", "list")
    index = d.whole(d.shape(2), 4, owner=True)
    other = d.whole(index.tensor.shape, 3, owner=index.owner)
    if kind == "rows":
        return lambda t, i: t[i], [x, index]
    if kind == "pairs":
        return lambda t, i, j: t[i, j], [x, index, other]
    if kind == "behind":
        return lambda t, j: t[:, j], [x, other]
    if kind == "apart":
        return lambda t, i: t[i, :, i], [x, index]
    if kind == "list":
        return lambda t, i: t[i, 0], [x, index]
    return lambda t, i: t[i.float().round().long()], [x, index]


@calls("index_select gather take_along_dim masked_select take")
def by_index(d, name):
    nobody = d.one_of(False, False, True)
    x = d.x(d.shape(3), owner=None if nobody else True)
    shape = x.tensor.shape
    axis = d.axis(shape)
    if name == "index_select":
        index = d.whole((d.size(),), shape[axis], owner=True if nobody else None)
        return lambda t, i: t.index_select(axis, i), [x, index]
    if name == "masked_select":
        x = d.x(d.shape(2))
        mask = d.mask(x.tensor.shape[d.one_of(0, 1) :])
        return lambda t, m: t.masked_select(m), [x, mask]
    if name == "take":
        index = d.whole((d.size(),), x.tensor.numel(), owner=True if nobody else None)
        return lambda t, i: t.take(i), [x, index]
    own = list(shape)
    own[axis] = d.size()
    if name == "gather" and d.one_of(True, False):  # the index may be shorter
        own = [n if i == axis % 3 else max(1, n - 1) for i, n in enumerate(own)]
    index = d.whole(own, shape[axis], owner=True if nobody else None)
    return lambda t, i: getattr(t, name)(**{
        "dim": axis, ("indices" if name == "take_along_dim" else "index"): i
    }), [x, index]  # fmt: skip


@calls("embedding one_hot embedding_bag")
def embedding(d, name):
    index = d.whole(d.shape(2), 4, owner=True)
    weight = torch.randn(4, 3, dtype=torch.float64)
    if name == "one_hot":
        return lambda i: F.one_hot(i, 4), [index]
    if name == "embedding":
        return lambda i: F.embedding(i, weight), [index]
    if d.one_of(True, False):
        return lambda i: F.embedding_bag(i, weight, mode="sum"), [index]
    index = d.whole((6,), 4, owner=True)
    offsets = torch.tensor(d.one_of([0, 2, 4], [0, 3, 3], [0]))
    return lambda i: F.embedding_bag(i, weight, offsets, mode="sum"), [index]


@calls("_pack_padded_sequence _pad_packed_sequence")
def packed(d, name):
    batch_first, count = d.one_of(True, False), d.size()
    shape = (count, 4, 2) if batch_first else (4, count, 2)
    x = d.x(shape, axes=[0 if batch_first else 1])
    lengths = torch.randint(1, 5, (count,), generator=d.generator())

    def run(t):
        p = pack_padded_sequence(t, lengths, batch_first=batch_first, enforce_sorted=False)
        if name == "_pack_padded_sequence":
            return p.data
        return pad_packed_sequence(PackedSequence(p.data * 2, *p[1:]), batch_first=batch_first)[0]

    return run, [x]


@calls("unique _unique2 unique_consecutive")
def unique(d, name):
    x = d.whole(d.one_of((d.samples,), (d.samples, 3)), 9, owner=True)

    def run(t):
        function = torch.unique_consecutive if name == "unique_consecutive" else torch.unique
        values, back = function(t, return_inverse=True)
        return values[back] * 1.0

    return run, [x]


# ---- put together


@calls("cat concat concatenate stack hstack vstack dstack column_stack row_stack")
def put_together(d, name):
    x = d.x(d.shape(d.one_of(1, 2, 3)))
    parts = [x, d.beside(x), d.x(x.tensor.shape, owner=None)]
    parts = parts[: d.one_of(1, 2, 3)]
    if name in ("cat", "concat", "concatenate", "stack"):
        axis = d.axis(x.tensor.shape)
        return lambda *t: getattr(torch, name)(list(t), dim=axis), parts
    return lambda *t: getattr(torch, name)(t), parts


@calls("pad constant_pad_nd")
def pad(d, name):
    x = d.x(d.shape(3))
    widths = d.one_of((1, 0), (1, 1, 0, 1), (0, 0, 0, 0, 1, 1), (-1, 1))
    if name == "constant_pad_nd":
        return lambda t: torch.constant_pad_nd(t, widths), [x]
    mode = d.one_of("constant", "replicate", "circular", "reflect")
    if mode != "constant":
        x = d.x((d.size(), 2, 3))
        widths = (1, 1)
    return lambda t: F.pad(t, widths, mode=mode), [x]


@calls("__setitem__ index_put index_copy scatter masked_scatter slice_scatter select_scatter "
       "diagonal_scatter index_fill")  # fmt: skip
def overwrite(d, name):
    x = d.x(d.shape(2))
    rows, columns = x.tensor.shape
    at = torch.randint(rows, (1,), generator=d.generator())
    y = d.x((1, columns), axes=[1])
    if name == "__setitem__":
        index = d.one_of(0, slice(0, 1), at, (slice(None), 0), (at, 0), Ellipsis)
        kind = d.one_of("row", "number", "same")

        def run(t, u):
            new = t.clone()
            new[index] = 1.5 if kind == "number" else new[index] * 2 if kind == "same" else (
                u[0, 0] if index in (Ellipsis,) or isinstance(index, tuple) else u[0]
            )  # fmt: skip
            return new

        return run, [x, y]
    if name == "index_put":
        return lambda t, u: t.index_put((at,), u), [x, y]
    if name == "index_copy":
        return lambda t, u: t.index_copy(0, at, u), [x, y]
    if name == "index_fill":
        return lambda t: t.index_fill(0, at, 0.5), [x]
    if name == "scatter":
        index = torch.randint(rows, (1, columns), generator=d.generator())
        return lambda t, u: t.scatter(0, index, u), [x, y]
    if name == "masked_scatter":
        mask = torch.rand(rows, columns, generator=d.generator()) < 0.5
        return lambda t, u: t.masked_scatter(mask, u), [x, d.beside(x)]
    if name == "slice_scatter":
        return lambda t, u: t.slice_scatter(u, 0, 0, 1), [x, y]
    if name == "select_scatter":
        return lambda t, u: t.select_scatter(u[0], 0, 0), [x, y]
    return lambda t, u: t.diagonal_scatter(u[0, : min(t.shape)]), [x, y]


@calls("index_add scatter_add scatter_reduce index_reduce index_put scatter")
def accumulate(d, name):
    x = d.x(d.shape(2), owner=d.one_of(None, True))
    rows, columns = x.tensor.shape
    count = d.size()
    index = torch.randint(rows, (count,), generator=d.generator())
    wide = torch.randint(rows, (count, columns), generator=d.generator())
    y = d.x((count, columns))
    into = d.one_of(True, False)
    if name == "index_add":
        if into:
            return lambda t, u: t.clone().index_add_(0, index, u), [x, y]
        return lambda t, u: torch.index_add(t, 0, index, u), [x, y]
    if name == "scatter_add":
        return lambda t, u: t.scatter_add(0, wide, u), [x, y]
    if name == "scatter":
        return lambda t, u: t.scatter(0, wide, u, reduce="add"), [x, y]
    if name == "scatter_reduce":
        kind = d.one_of("sum", "mean", "amax", "prod")
        return lambda t, u: t.scatter_reduce(0, wide, u, kind), [x, y]
    if name == "index_reduce":
        kind = d.one_of("mean", "amax", "prod")
        return lambda t, u: t.index_reduce(0, index, u, kind), [x, y]
    return lambda t, u: t.index_put((index,), u, accumulate=True), [x, y]


# ---- whole layers


def _images(d, ndim, channels=2):
    return d.x((d.size(), channels, *(4,) * ndim), axes=d.one_of([0], [0], [0, 1, 2]))


@calls("conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d conv_tbc "
       "max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d lp_pool1d lp_pool2d "
       "lp_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d "

             "adaptive_max_pool2d adaptive_max_pool3d interpolate upsample pixel_shuffle "
       "pixel_unshuffle unfold fold grid_sample max_unpool2d affine_grid "
       "max_pool2d_with_indices adaptive_max_pool2d_with_indices "
       "fractional_max_pool2d")  # fmt: skip
def images(d, name):
    ndim = 3 if "3d" in name else 1 if "1d" in name else 2
    x = _images(d, ndim, 4 if name == "pixel_shuffle" else 2)
    if name == "conv_tbc":
        weight, bias = torch.randn(3, 2, 3).double(), torch.zeros(3).double()
        return lambda t: torch.conv_tbc(t, weight, bias), [d.x((4, d.size(), 2), axes=[1])]
    if name.startswith("conv"):
        weight = torch.randn(2, 2, *(2,) * ndim, dtype=torch.float64)
        return lambda t: getattr(F, name)(t, weight), [x]
    if name.startswith("lp"):
        return lambda t: getattr(F, name)(t, 2, 2), [x]
    if name in ("interpolate", "upsample"):
        return lambda t: F.interpolate(t, scale_factor=2, mode="bilinear"), [x]
    if name.startswith("pixel"):
        return lambda t: getattr(F, name)(t, 2), [x]
    if name == "unfold":
        return lambda t: F.unfold(t, 2), [x]
    if name == "fold":
        return lambda t: F.fold(t.flatten(2)[..., :4].repeat(1, 2, 1), 4, 2, stride=2), [x]
    if name == "grid_sample":
        grid = d.x((len(x.tensor), 3, 3, 2), owner=None)
        return lambda t, g: F.grid_sample(t, g.tanh(), align_corners=False), [x, grid]
    if name == "affine_grid":
        theta = d.x((d.size(), 2, 3), axes=[0])
        return lambda t: F.affine_grid(t, [len(t), 1, 2, 2], align_corners=False), [theta]
    if name == "max_unpool2d":
        return lambda t: F.max_unpool2d(*F.max_pool2d(t, 2, return_indices=True), 2), [x]
    if name == "fractional_max_pool2d":
        return lambda t: F.fractional_max_pool2d(t, 2, output_size=2), [x]
    if name.endswith("_with_indices"):
        function = getattr(F, name)
        return lambda t: function(t, 2, return_indices=True)[0], [x]
    return lambda t: getattr(F, name)(t, 2), [x]


@calls("lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell")
def cell(d, name):
    gates = {"lstm_cell": 8, "gru_cell": 6}.get(name, 2)
    x = d.x((d.size(), 3), axes=[0])
    own = None if x.owner is None else x.owner[:, :1].expand(-1, 2)
    h = d.x((len(x.tensor), 2), owner=d.one_of(own, own, None))
    w, u = torch.randn(gates, 3).double(), torch.randn(gates, 2).double()
    if name == "lstm_cell":
        return lambda t, s: torch.lstm_cell(t, (s, s), w, u), [x, h]
    return lambda t, s: getattr(torch, name)(t, s, w, u), [x, h]


@calls("lstm gru rnn_tanh rnn_relu")
def recurrent(d, name):
    torch.manual_seed(0)
    kind = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU}.get(name, torch.nn.RNN)
    how = {"nonlinearity": name[4:]} if name.startswith("rnn") else {}
    first = d.one_of(True, False)
    layer = kind(
        2, 3, d.one_of(1, 2), batch_first=first, bidirectional=d.one_of(True, False), **how
    )
    layer = layer.double().requires_grad_(False)
    shape = (d.size(), 4, 2) if first else (4, d.size(), 2)
    x = d.x(shape, axes=[0 if first else 1])
    lengths = torch.randint(1, 5, (shape[0 if first else 1],), generator=d.generator())
    if d.one_of(True, False):
        return lambda t: layer(t), [x]
    return (
        lambda t: (
            layer(pack_padded_sequence(t, lengths, batch_first=first, enforce_sorted=False))[0].data
        ),
        [x],
    )


@calls("scaled_dot_product_attention")
def attention(d, name):
    B = d.samples
    axes = d.one_of([0], [0], [2])
    q = d.x((B, 2, 3, 4), axes=axes)
    k, v = d.beside(q, axes=axes), d.beside(q, axes=axes)
    if q.owner is not None and d.one_of(True, True, False):
        k, v = k._replace(owner=q.owner), v._replace(owner=q.owner)
    kind = d.one_of("plain", "causal", "own")
    if kind == "own" and q.owner is not None:
        slot = q.owner[:, 0, :, 0]
        mask = (slot[:, :, None] == slot[:, None, :]).unsqueeze(1)
        return lambda a, b, c: F.scaled_dot_product_attention(a, b, c, mask), [q, k, v]
    return lambda a, b, c: F.scaled_dot_product_attention(a, b, c, is_causal=kind == "causal"), [
        q, k, v,
    ]  # fmt: skip


@calls("mse_loss l1_loss smooth_l1_loss huber_loss binary_cross_entropy "
       "binary_cross_entropy_with_logits kl_div poisson_nll_loss soft_margin_loss "
       "multilabel_soft_margin_loss hinge_embedding_loss")  # fmt: skip
def loss_by_entry(d, name):
    x = d.x(d.shape(2))
    target = d.x(x.tensor.shape, owner=None)._replace(tensor=d.mask(x.tensor.shape).tensor.double())
    how = d.one_of("none", "mean", "sum")
    if name == "binary_cross_entropy":
        return lambda t, y: F.binary_cross_entropy(t.sigmoid(), y, reduction=how), [x, target]
    if name in ("soft_margin_loss", "hinge_embedding_loss"):
        return lambda t, y: getattr(F, name)(t, y * 2 - 1, reduction=how), [x, target]
    return lambda t, y: getattr(F, name)(t, y, reduction=how), [x, target]


@calls("cross_entropy nll_loss multi_margin_loss multilabel_margin_loss")
def loss_by_row(d, name):
    shape = d.one_of((d.size(), 4), (d.size(), 4, d.size()), (4,))
    if name.startswith("multi"):
        shape = (d.size(), 4)
    x = d.x(
        shape, axes=[i for i in range(len(shape)) if shape[i] != 4 or i != min(1, len(shape) - 1)]
    )
    rows = shape[:1] + shape[2:] if len(shape) > 1 else ()
    target = d.whole(rows, 4)
    how = d.one_of("none", "mean", "sum")
    if name == "multilabel_margin_loss":
        many = torch.randint(4, shape, generator=d.generator())
        return lambda t: F.multilabel_margin_loss(t, many, reduction=how), [x]
    if name == "nll_loss":
        return lambda t, y: F.nll_loss(t.log_softmax(min(1, t.ndim - 1)), y, reduction=how), [
            x,
            target,
        ]
    if name == "cross_entropy" and d.one_of(True, False):
        chances = torch.rand(shape, generator=d.generator(), dtype=torch.float64)
        return lambda t: F.cross_entropy(t, chances, reduction=how), [x]
    return lambda t, y: getattr(F, name)(t, y, reduction=how), [x, target]


@calls("margin_ranking_loss cosine_embedding_loss triplet_margin_loss gaussian_nll_loss ctc_loss "
       "triplet_margin_with_distance_loss")  # fmt: skip
def loss_of_pairs(d, name):
    how = d.one_of("none", "mean", "sum")
    x = d.x((d.size(), 3), axes=[0])
    y, z = d.beside(x, axes=[0]), d.beside(x, axes=[0])
    sign = torch.ones(len(x.tensor), dtype=torch.float64)
    if name == "margin_ranking_loss":
        return lambda t, u: F.margin_ranking_loss(t, u, sign[:, None], reduction=how), [x, y]
    if name == "cosine_embedding_loss":
        return lambda t, u: F.cosine_embedding_loss(t, u, sign, reduction=how), [x, y]
    if name == "gaussian_nll_loss":
        return lambda t, u, v: F.gaussian_nll_loss(t, u, v.exp(), reduction=how), [x, y, z]
    if name == "ctc_loss":
        n = d.size()
        x = d.x((6, n, 5), axes=[1])
        labels = torch.randint(1, 5, (n, 2), generator=d.generator())
        return lambda t: F.ctc_loss(
            t.log_softmax(-1), labels, torch.full((n,), 6), torch.full((n,), 2), reduction=how
        ), [x]  # fmt: skip
    return lambda t, u, v: getattr(F, name)(t, u, v, margin=50.0, reduction=how), [x, y, z]
