"""Model cases in which rows are not one-to-one with samples, or not in their order.

Each loss is a sum over slots, so that a sample's share is the gradient of the same loss when the
model sees that sample's entries alone.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils.checkpoint import checkpoint

from tests.oracles.cases import Case, Function, normal


def total(out):
    """A sum over all slots of something that is not linear in them."""
    if isinstance(out, (list, tuple)):
        return sum(total(o) for o in out)
    if not out.ndim:
        return out
    weights = torch.linspace(0.5, 1.5, out.shape[-1], dtype=out.dtype)
    return ((out * weights).sin() + 0.1 * out**2).sum()


class Owned(Case):
    """A case with a loss that is a sum over slots.

    Args:
        run: `run(model, *inputs)` gives slots in any form, or a loss.
        given: `given(*inputs)` gives `{"rows": ...}` or `{"slots": ...}`, as `batch` takes them.
        alone: `alone(inputs, i)` gives sample i's entries.
        tolerance: relative, where something inside computes in less than float64.
    """

    def __init__(self, name, build, inputs, run=None, *, given=None, alone=None, tolerance=1e-9,
        dtype=torch.float64,
    ):  # fmt: skip
        super().__init__(name, build, inputs, run)
        self._given, self._alone, self.tolerance = given, alone, tolerance
        self.dtype = dtype

    def model(self):
        model = super().model().to(self.dtype)
        if isinstance(model, Function) and model.function is None:  # it runs inside of the model
            model.function = self.run
        return model

    def owned(self, samples, inputs):
        return {} if self._given is None else self._given(*inputs)

    def alone(self, inputs, i):
        if self._alone is not None:
            return self._alone(inputs, i)
        return tuple(t[[i]] for t in inputs)

    def loss(self, model, inputs):
        return total(model(*inputs) if isinstance(model, Function) else self.run(model, *inputs))

    def loss_fn(self, model, inputs):
        return self.loss(model, inputs) / 7


def two(d=4, hidden=4, out=4):
    """Two layers, each as wide as there often are samples."""
    return lambda: Function(None, a=nn.Linear(d, hidden), b=nn.Linear(hidden, out))


def ragged(width=4, most=5):
    """Padded rows and their lengths."""

    def make(samples):
        x = torch.randn(samples, most, width, dtype=torch.float64)
        return x, torch.tensor([3, 1, most, 2, 4, 2, 5, 1])[:samples]

    return make


# ---- orders, selections, loops


def sorted_rows(m, x, n):
    order = n.argsort(descending=True)
    return m.b(torch.tanh(m.a(x[order])))[order.argsort()][torch.arange(len(n)), n - 1]


def distinct(samples):
    return torch.randperm(11)[:samples], torch.randn(samples, 4, dtype=torch.float64)


def once_per_value(m, i, x):
    values, back = i.unique(return_inverse=True)
    return torch.tanh(m.a(m.table(values)))[back] * m.b(x)


def selected_head(m, x, n):
    chosen = torch.arange(x.shape[1]) < n[:, None] - 1
    return m.b(torch.tanh(m.a(x))[chosen])


def by_nonzero(m, x, n):
    rows, places = (torch.arange(x.shape[1]) < n[:, None]).nonzero(as_tuple=True)
    return m.b(torch.tanh(m.a(x[rows, places])))


def masked_select(m, x, n):
    chosen = (torch.arange(x.shape[1]) < n[:, None])[..., None]
    return m.b(torch.tanh(m.a(x)).masked_select(chosen).view(-1, 4))


def loop_over_samples(m, x):
    return torch.stack([m.b(torch.tanh(m.a(row))).mean(0) for row in x])


def loop_with_lengths(m, x, n):
    return torch.stack([m.b(torch.tanh(m.a(row[:k]))).sum(0) for row, k in zip(x, n, strict=True)])


def loop_over_images(m, x):
    return torch.stack([m.conv(image).mean((1, 2)) for image in x])


def time_major(m, x):
    T, B = x.shape[1], len(x)
    flat = x.transpose(0, 1).reshape(T * B, -1)
    return m.b(torch.tanh(m.a(flat))).reshape(T, B, -1).mean(0)


def time_major_layers(m, x):
    hidden, _ = m.rnn(x.transpose(0, 1))
    hidden = m.norm(hidden + m.attention(hidden, hidden, hidden, need_weights=False)[0])
    return m.b(hidden)


def data_dependent_depth(m, x, n):
    hidden = x[:, 0]
    for step in range(int(n.max())):
        hidden = torch.where((step < n)[:, None], torch.tanh(m.a(hidden)), hidden)
    return m.b(hidden)


def rows_that_stay(m, x, n):
    """Rows leave the loop one after the other."""
    hidden, active, done = x[:, 0], torch.arange(len(x)), []
    for step in range(int(n.max())):
        hidden = torch.tanh(m.a(hidden))
        go_on = n[active] > step + 1
        done.append(m.b(hidden[~go_on]))
        hidden, active = hidden[go_on], active[go_on]
    return torch.cat(done)


def split_by_lengths(m, x, n):
    kept = torch.cat([row[:k] for row, k in zip(x, n, strict=True)])
    hidden = torch.tanh(m.a(kept))
    parts = []
    for part in hidden.split(n.tolist()):
        scores = (part @ part.T).softmax(-1)
        parts.append(m.b(scores @ part))
    return torch.cat(parts)


def written_in_place(m, x, n):
    """A buffer that is filled sample by sample, then step by step."""
    hidden = x.new_zeros(len(x), x.shape[1], 4)
    for k, row in enumerate(x):
        hidden[k].copy_(torch.tanh(m.a(row)))
    hidden[:, 0] = hidden[:, 1] * 2
    return m.b(hidden)


def scattered(m, x, n):
    """Slots in reverse order, added into a buffer."""
    flat = torch.tanh(m.a(x)).flatten(0, 1)
    places = torch.arange(len(flat)).flip(0)
    buffer = flat.new_zeros(len(flat), 4).index_add_(0, places, flat)
    return m.b(buffer + buffer.new_zeros(buffer.shape).scatter_add(
        0, places[:, None].expand_as(flat), flat
    ))  # fmt: skip


# ---- recurrent networks


def packed(m, x, n):
    """Packed sequences, their last state, and the padded output."""
    p = pack_padded_sequence(x, n, batch_first=True, enforce_sorted=False)
    out, state = m.rnn(p)
    state = state[0] if isinstance(state, tuple) else state
    data, _ = pad_packed_sequence(out, batch_first=True)
    keep = torch.arange(data.shape[1]) < n[:, None]
    return m.b(state[-1]), m.b(data) * keep[..., None]


def lstm_cells(m, x):
    h = c = x.new_zeros(len(x), 4)
    for t in range(x.shape[1]):
        h, c = m.cell(x[:, t], (h, c))
    return m.b(h) + c


def gru_cells(m, x):
    h = x.new_zeros(len(x), 4)
    for step in x.unbind(1):
        h = m.cell(step, h)
    return m.b(h)


# ---- several rows a sample, several samples a row


def pairs_by_cat(m, x):
    rewards = m.b(torch.tanh(m.a(torch.cat([x[:, 0], x[:, 1]])))).sum(-1)
    chosen, rejected = rewards.chunk(2)
    return F.softplus(rejected - chosen).sum()


def pair_rows(m, x):
    rewards = m.b(torch.tanh(m.a(x))).sum(-1)
    half = len(x) // 2
    return F.softplus(rewards[half:] - rewards[:half]).sum()


def two_rows(samples):
    return (torch.randn(2 * samples, 4, dtype=torch.float64),)


def views(m, x):
    z = F.normalize(m.a(torch.cat([x, x.flip(-1), x.cos()])), dim=-1)
    one, other, third = z.chunk(3)
    p = m.b(one)
    return -(F.cosine_similarity(p, other.detach()) + F.cosine_similarity(p, third)).sum()


def start_token(m, x):
    start = m.start.expand(len(x), 1, -1)
    hidden = torch.cat([start, x[:, :-1]], 1)
    return m.b(torch.tanh(m.a(hidden)))


def written_class_token(m, x):
    hidden = x.new_empty(len(x), x.shape[1] + 1, 4)
    hidden[:, 0] = m.token
    hidden[:, 1:] = torch.tanh(m.a(x))
    scores = (hidden @ hidden.mT).softmax(-1)
    return m.b((scores @ hidden)[:, 0])


COUNTS = [3, 1, 4, 2, 5, 2, 3]


def graphs(samples):
    """Nodes, edges within graphs, and the graph of each node."""
    counts = COUNTS[:samples]
    owner = torch.arange(samples).repeat_interleave(torch.tensor(counts))
    edges, start = [], 0
    for n in counts:
        edges += [(start + i, start + (i + 1) % n) for i in range(n)] + [(start, start + n - 1)]
        start += n
    order = torch.randperm(len(owner))
    place = order.argsort()
    return (
        torch.randn(len(owner), 4, dtype=torch.float64)[order],
        place[torch.tensor(edges).T],
        owner[order],
    )


def graph_alone(inputs, i):
    x, edges, owner = inputs
    keep = owner == i
    place = keep.cumsum(0) - 1
    return x[keep], place[edges[:, keep[edges[0]]]], owner[keep] * 0


def graph_network(m, x, edges, owner):
    hidden = torch.tanh(m.a(x))
    source, target = edges
    message = m.b(hidden[source]) * torch.sigmoid(m.a(hidden)[target]).sum(-1, keepdim=True)
    hidden = hidden + torch.zeros_like(hidden).index_add_(0, target, message)
    graph = int(owner.max()) + 1
    pooled = hidden.new_zeros(graph, 4).index_add(0, owner, torch.tanh(m.a(hidden)))
    return m.b(pooled)


def packed_rows(width=None, vocabulary=11):
    """One row of several documents, and the document of each place."""

    def make(samples):
        counts = COUNTS[:samples]
        owner = torch.arange(samples).repeat_interleave(torch.tensor(counts))[None]
        shape = (1, sum(counts))
        if width is None:
            return torch.randint(vocabulary, shape), owner
        return torch.randn(*shape, width, dtype=torch.float64), owner

    return make


def document(inputs, i):
    x, owner = inputs
    keep = owner[0] == i
    return x[:, keep], owner[:, keep] * 0


def given_slots(*inputs):
    return {"slots": inputs[-1]}


def places_of(owner):
    """0, 1, ... within each document."""
    change = torch.cat([torch.ones_like(owner[:, :1]), (owner[:, 1:] != owner[:, :-1]).int()], 1)
    at = torch.arange(owner.shape[1]).expand_as(owner)
    return at - (at * change).cummax(1).values


def packed_attention(m, x, owner, *, fused):
    hidden = torch.tanh(m.a(x + m.places(places_of(owner))))
    mask = (owner[:, :, None] == owner[:, None, :]) & torch.ones(
        owner.shape[1], owner.shape[1], dtype=torch.bool
    ).tril()
    if fused:
        q = hidden.unflatten(-1, (2, 2)).transpose(1, 2)
        out = F.scaled_dot_product_attention(q, q.sin(), q.cos(), mask[:, None])
        out = out.transpose(1, 2).flatten(2)
    else:
        scores = (hidden @ hidden.mT).masked_fill(~mask, -torch.inf)
        out = scores.softmax(-1) @ hidden
    return m.b(out)


# ---- routing, tables, weights


def experts(m, x):
    flat = x.flatten(0, 1)
    weight, which = m.router(flat).softmax(-1).max(-1)
    out = torch.zeros_like(flat)
    for k in range(3):
        rows = (which == k).nonzero().squeeze(1)
        expert = getattr(m, f"e{k}")
        if len(rows):
            out = out.index_add(0, rows, torch.tanh(expert(flat[rows])) * weight[rows, None])
    return m.b(out.view_as(x))


def experts_of_two(m, x):
    """Top two of three, sorted by expert, as fused implementations do it."""
    flat = x.flatten(0, 1)
    weight, which = m.router(flat).softmax(-1).topk(2, -1)
    order = which.flatten().argsort(stable=True)
    token = order // 2
    counts = which.flatten().bincount(minlength=3).tolist()
    parts = flat[token].split(counts)
    out = torch.cat([torch.tanh(getattr(m, f"e{k}")(part)) for k, part in enumerate(parts)])
    out = out * weight.flatten()[order, None]
    return m.b(torch.zeros_like(flat).index_add_(0, token, out))


def routed():
    return Function(
        None, router=nn.Linear(4, 3), e0=nn.Linear(4, 4), e1=nn.Linear(4, 4), e2=nn.Linear(4, 4),
        b=nn.Linear(4, 4),
    )  # fmt: skip


class Bank(nn.Module):
    """Plain tensors with as many rows as there are samples: neither parameters nor buffers."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
        self.bank = torch.randn(4, 4, dtype=torch.float64)
        self.places = torch.randn(4, 4, dtype=torch.float64)

    def forward(self, x):
        hidden = torch.tanh(self.a(x) + self.places)
        scores = (hidden @ self.a(self.bank).T).softmax(-1)
        return self.b(scores @ self.bank)


def mask_on_weights(m, x):
    torch.manual_seed(3)
    weight = m.w * (torch.rand(4, 4) < 0.6) + 0.1 * torch.randn(4, 4, dtype=x.dtype)
    return torch.tanh(x @ weight) @ m.v


def fourier_layer(m, x):
    """A filter of complex numbers along time."""
    kernel = torch.view_as_complex(m.kernel)
    return torch.fft.irfft(torch.fft.rfft(x, dim=1) * kernel, n=x.shape[1], dim=1)


def complex_activations(m, x):
    z = torch.fft.fft(x, dim=1) * m.scale + m.shift
    z = z @ m.w.to(z.dtype)
    return z.abs()


class InTorch(torch.autograd.Function):
    """x @ w by a function of its own, in torch operations."""

    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(x, w)
        return torch.tanh(x @ w)

    @staticmethod
    def backward(ctx, gradient):
        x, w = ctx.saved_tensors
        gradient = gradient * (1 - torch.tanh(x @ w) ** 2)
        return gradient @ w.T, x.flatten(0, -2).T @ gradient.flatten(0, -2)


class InNumpy(torch.autograd.Function):
    """tanh(x) * s where no torch operation can be seen."""

    @staticmethod
    def forward(ctx, x, s):
        ctx.save_for_backward(x, s)
        return torch.from_numpy(np.tanh(x.detach().numpy()) * s.detach().numpy())

    @staticmethod
    def backward(ctx, gradient):
        x, s = ctx.saved_tensors
        t = torch.tanh(x)
        return gradient * s * (1 - t**2), (gradient * t).flatten(0, -2).sum(0)


def mapped(m, x):
    def one(row, w, v):
        return torch.tanh(row @ w) @ v

    return torch.vmap(one, in_dims=(0, None, None))(x, m.w, m.v)


def recomputed(reentrant):
    def run(m, x):
        def part(h):
            return m.b(torch.tanh(m.a(h)).flip(0)).flip(0)

        x = x.clone().requires_grad_()
        hidden = checkpoint(part, x, use_reentrant=reentrant)
        return m.b(hidden)

    return run


def columns(m, x):
    """Samples in the last axis."""
    hidden = torch.tanh(m.w @ x.transpose(0, 2).flatten(1))
    return (m.v @ hidden).view(4, x.shape[1], len(x)).permute(2, 1, 0)


def columns_in_another_order(m, x, n):
    order = n.argsort()
    hidden = torch.einsum("oi,bi->ob", m.w, x[order].sum(1))
    return (m.v @ torch.tanh(hidden))[:, order.argsort()].T


def assigned_by_mask(m, x, n):
    keep = torch.arange(x.shape[1]) < n[:, None]
    out = torch.zeros_like(x)
    out[keep] = torch.tanh(m.a(x[keep]))
    out[~keep] = m.b(x[~keep])
    return m.b(out)


def added_up_in_place(m, x, n):
    loss = torch.zeros((), dtype=x.dtype)
    for row, k in zip(x, n, strict=True):
        loss += m.b(torch.tanh(m.a(row[:k]))).sin().sum()
    return loss


def masked_pooling(m, x, n):
    keep = (torch.arange(x.shape[1]) < n[:, None])[..., None].to(x.dtype)
    hidden = torch.tanh(m.a(x)) * keep
    return m.b(hidden.sum(1) / keep.sum(1) + hidden.amax(1))


def called_by_names(m, x):
    """Every first argument by its name."""
    hidden = torch.tanh(input=F.linear(input=x, weight=m.a.weight, bias=m.a.bias))
    hidden = torch.cat(tensors=[hidden, torch.flip(input=hidden, dims=(1,))], dim=1)
    hidden = torch.mean(input=F.softmax(input=hidden, dim=-1), dim=1)
    return F.linear(input=torch.sort(input=hidden, dim=1)[0], weight=m.b.weight)


def patches(m, x):
    """Windows of a picture, one row each, folded again."""
    windows = F.unfold(x, 2, stride=2).transpose(1, 2)
    hidden = m.b(torch.tanh(m.a(windows.flatten(0, 1))))
    return F.fold(hidden.view(len(x), -1, 4).transpose(1, 2), (4, 4), 2, stride=2)


def by_groups_of_length(m, x, n):
    """Buckets of equal length, each a batch of its own, put back."""
    out, places = [], []
    for length in n.unique().tolist():
        rows = (n == length).nonzero().flatten()
        out.append(m.b(torch.tanh(m.a(x[rows, :length])).sum(1)))
        places.append(rows)
    return torch.cat(out)[torch.cat(places).argsort()]


def shifted_tokens(m, x):
    """A next-token loss: two views of one tensor, flattened."""
    hidden = torch.tanh(m.a(x))
    return (m.b(hidden)[:, :-1].reshape(-1, 4) - x[:, 1:].reshape(-1, 4)).pow(2)


def square():
    return Function(None, w=torch.randn(4, 4), v=torch.randn(4, 4))


def small_attention():
    return nn.TransformerEncoderLayer(4, 4, 4, batch_first=True, dropout=0)


ROWS = [
    Owned("rows-sorted", two(), ragged(), sorted_rows),
    Owned(
        "unique",
        lambda: Function(None, table=nn.Embedding(11, 4), a=nn.Linear(4, 4), b=nn.Linear(4, 4)),
        distinct, once_per_value,
    ),
    Owned("selected-head", two(), ragged(), selected_head),
    Owned("by-nonzero", two(), ragged(), by_nonzero),
    Owned("masked-select", two(), ragged(), masked_select),
    Owned("loop-over-samples", two(), normal(4, 4), loop_over_samples),
    Owned("loop-with-lengths", two(), ragged(), loop_with_lengths),
    Owned(
        "loop-over-images", lambda: Function(None, conv=nn.Conv2d(4, 4, 2)), normal(4, 4, 4),
        loop_over_images,
    ),
    Owned("time-major", two(), normal(4, 4), time_major),
    Owned(
        "time-major-layers",
        lambda: Function(
            None, rnn=nn.LSTM(4, 4), norm=nn.LayerNorm(4), attention=nn.MultiheadAttention(4, 2),
            b=nn.Linear(4, 4),
        ),
        normal(4, 4), time_major_layers,
    ),
    Owned("data-dependent-depth", two(), ragged(), data_dependent_depth),
    Owned("rows-that-stay", two(), ragged(), rows_that_stay),
    Owned("split-by-lengths", two(), ragged(), split_by_lengths),
    Owned("written-in-place", two(), ragged(), written_in_place),
    Owned("scattered", two(), ragged(), scattered),
    Owned(
        "packed-lstm",
        lambda: Function(None, rnn=nn.LSTM(4, 4, batch_first=True), b=nn.Linear(4, 4)),
        ragged(), packed,
    ),
    Owned(
        "packed-gru",
        lambda: Function(
            None, rnn=nn.GRU(4, 4, 2, batch_first=True, bidirectional=True), b=nn.Linear(8, 4)
        ),
        ragged(),
        lambda m, x, n: m.b(pad_packed_sequence(
            m.rnn(pack_padded_sequence(x, n, batch_first=True, enforce_sorted=False))[0],
            batch_first=True,
        )[0][torch.arange(len(n)), n - 1]),
    ),
    Owned("lstm-cells", lambda: Function(None, cell=nn.LSTMCell(4, 4), b=nn.Linear(4, 4)),
          normal(4, 4), lstm_cells),
    Owned("gru-cells", lambda: Function(None, cell=nn.GRUCell(4, 4), b=nn.Linear(4, 4)),
          normal(4, 4), gru_cells),
    Owned("encoder-all-alike", small_attention, normal(4, 4)),
    Owned("pairs-by-cat", two(), normal(2, 4), pairs_by_cat),
    Owned("views", two(), normal(4), views),
    Owned(
        "start-token",
        lambda: Function(None, start=torch.randn(1, 1, 4), a=nn.Linear(4, 4), b=nn.Linear(4, 4)),
        normal(4, 4), start_token,
    ),
    Owned(
        "written-class-token",
        lambda: Function(None, token=torch.randn(4), a=nn.Linear(4, 4), b=nn.Linear(4, 4)),
        normal(4, 4), written_class_token,
    ),
    Owned("experts", routed, normal(4, 4), experts),
    Owned("experts-of-two", routed, normal(4, 4), experts_of_two),
    Owned("bank", Bank, normal(4, 4)),
    Owned("mask-on-weights", square, normal(4, 4), mask_on_weights),
    Owned(
        "fourier-layer", lambda: Function(None, kernel=torch.randn(3, 4, 2)), normal(4, 4),
        fourier_layer,
    ),
    Owned(
        "complex-activations",
        lambda: Function(None, scale=torch.randn(4), shift=torch.randn(4), w=torch.randn(4, 4)),
        normal(4, 4), complex_activations,
    ),
    Owned("function-in-torch", square, normal(4, 4),
          lambda m, x: InTorch.apply(InTorch.apply(x, m.w), m.v)),
    Owned(
        "function-in-numpy",
        lambda: Function(None, a=nn.Linear(4, 4), s=torch.randn(4), b=nn.Linear(4, 4)),
        normal(4, 4), lambda m, x: m.b(InNumpy.apply(m.a(x), m.s)),
    ),
    Owned("vmap", square, normal(4, 4), mapped),
    Owned("checkpoint", two(), normal(4, 4), recomputed(False)),
    Owned("columns", square, normal(4, 4), columns),
    Owned("columns-in-another-order", square, ragged(), columns_in_another_order),
    Owned("assigned-by-mask", two(), ragged(), assigned_by_mask),
    Owned("added-up-in-place", two(), ragged(), added_up_in_place),
    Owned("masked-pooling", two(), ragged(), masked_pooling),
    Owned("called-by-names", two(), normal(4, 4), called_by_names),
    Owned("patches", two(), normal(1, 4, 4), patches),
    Owned("by-groups-of-length", two(), ragged(), by_groups_of_length),
    Owned("shifted-tokens", two(), normal(4, 4), shifted_tokens),
]  # fmt: skip

GIVEN = [
    Owned(
        "two-rows-a-sample", two(), two_rows, pair_rows,
        given=lambda x: {"rows": torch.arange(len(x) // 2).repeat(2)},
        alone=lambda inputs, i: (inputs[0][[i, i + len(inputs[0]) // 2]],),
    ),
    Owned("graphs", two(), graphs, graph_network, given=given_slots, alone=graph_alone),
    Owned(
        "packed-sdpa",
        lambda: Function(None, places=nn.Embedding(9, 4), a=nn.Linear(4, 4), b=nn.Linear(4, 4)),
        packed_rows(4), lambda m, x, o: packed_attention(m, x, o, fused=True),
        given=given_slots, alone=document,
    ),
    Owned(
        "packed-eager",
        lambda: Function(None, places=nn.Embedding(9, 4), a=nn.Linear(4, 4), b=nn.Linear(4, 4)),
        packed_rows(4), lambda m, x, o: packed_attention(m, x, o, fused=False),
        given=given_slots, alone=document,
    ),
]  # fmt: skip

OWNED = ROWS + GIVEN
REENTRANT = Owned("checkpoint-reentrant", two(), normal(4, 4), recomputed(True))
