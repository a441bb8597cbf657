"""Whose slots are whose, on inputs that were found to fail: values are autograd's, by sample."""

import copy
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import inrun

B, T = 6, 6  # as long as each other and as the features, so that no shape gives the batch away
CE = F.cross_entropy


@pytest.fixture(autouse=True)
def double():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(before)


def values_and_truth(model, validation, loss, batch_loss, own_loss, ids=range(B), **said):
    """Values of one step of plain SGD, and lr * <validation gradient, gradient of the own loss>."""
    twin = copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    attribution = inrun.attach(
        model,
        optimizer,
        inrun.Utility(loss, validation),
        estimator="sgd",
        options=inrun.Options(contraction="dense", progress=False),
    )
    with attribution.batch(ids, **said):
        batch_loss(model).backward()
    optimizer.step()
    table = attribution.values()
    found = dict(zip(table["sample_id"].to_pylist(), table["value"].to_pylist(), strict=True))
    attribution.detach()
    weights = list(twin.parameters())
    wanted = torch.autograd.grad(loss(twin.eval(), validation), weights, allow_unused=True)
    twin.train()
    truth = []
    for i in range(len(ids)):
        own = torch.autograd.grad(own_loss(twin, i), weights, allow_unused=True)
        pairs = [
            (p, q) for p, q in zip(wanted, own, strict=True) if p is not None and q is not None
        ]
        truth.append(0.01 * sum(float((p * q).sum()) for p, q in pairs))
    return [found[i] for i in ids], truth


def loss_of(model, batch):
    return CE(model(*batch[:-1]), batch[-1])


def check(model, *data, **said):
    """A model of rows: every tensor has the batch in front; the first B rows are trained on."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", inrun.errors.InRunWarning)
        found, truth = values_and_truth(
            model, tuple(t[20:] for t in data), loss_of,
            lambda m: loss_of(m, [t[:B] for t in data]),
            lambda m, i: loss_of(m, [t[[i]] for t in data]) / B, **said,
        )  # fmt: skip
    np.testing.assert_allclose(found, truth, rtol=1e-9, atol=1e-14)


def rows():
    return torch.randn(60, T, 6), torch.randint(3, (60,))


class Base(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.h = nn.Linear(6, 6), nn.Linear(6, 3)


class Flat(Base):
    def forward(self, x):
        return self.h(torch.tanh(self.a(x)))


class ByTable(nn.Module):
    def __init__(self, index):
        super().__init__()
        self.index, self.e, self.h = index, nn.Embedding(8, 6), nn.Linear(6, 3)

    def forward(self, x):
        return self.h(torch.tanh(self.e(self.index(x))))


BOUNDARIES = [-1.0, -0.3, 0.3, 1.0]


@pytest.mark.parametrize("index", [
    lambda x: torch.bucketize(x[:, 0, 0].contiguous(), torch.tensor(BOUNDARIES)),
    lambda x: torch.searchsorted(torch.tensor(BOUNDARIES), x[:, 0, 0].contiguous()),
    lambda x: torch.count_nonzero(x[:, 0] > 0, dim=1),
], ids=["bucketize", "searchsorted", "count_nonzero"])  # fmt: skip
def test_a_table_read_by_what_is_counted_of_a_sample_is_its_sample_s(index):
    check(ByTable(index), *rows())


class ByPlaces(Base):
    def forward(self, x, mask):
        places = mask.nonzero()
        z = torch.tanh(self.a.weight[places[:, 1]])
        return self.h(torch.zeros(len(x), 6).index_add(0, places[:, 0], z))


def test_places_of_a_sample_s_entries_are_its_own():
    x, y = rows()
    mask = torch.rand(60, T) > 0.4
    mask[:, 0] = True
    mask[0, 1:] = False
    check(ByPlaces(), x, mask, y)


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@pytest.mark.parametrize("lengths", [[3, 1, 5, 0, 4, 4], [0, 1, 1, 2, 1, 1]])
def test_bags_begin_where_their_samples_offsets_say(mode, lengths):
    """Also with as many tokens as bags, whose entries are then no rows."""

    class Bags(nn.Module):
        def __init__(self):
            super().__init__()
            self.e, self.h = nn.EmbeddingBag(12, 6, mode=mode), nn.Linear(6, 3)

        def forward(self, tokens, offsets):
            return self.h(torch.tanh(self.e(tokens, offsets)))

    ends = torch.tensor(lengths).cumsum(0)
    starts = ends - torch.tensor(lengths)
    tokens, y = torch.randint(12, (int(ends[-1]),)), torch.randint(3, (B,))
    validation = (torch.randint(12, (80,)), torch.arange(0, 80, 2), torch.randint(3, (40,)))
    found, truth = values_and_truth(
        Bags(), validation, loss_of, lambda m: CE(m(tokens, starts), y),
        lambda m, i: CE(m(tokens[starts[i] : ends[i]], torch.tensor([0])), y[[i]]) / B,
    )  # fmt: skip
    np.testing.assert_allclose(found, truth, rtol=1e-9, atol=1e-14)


class ByArray(Base):
    def forward(self, x):
        mask = (x[..., 0] > 0).numpy()
        out = torch.zeros(*x.shape[:2], 6)
        out[mask] = torch.tanh(self.a(x[mask]))
        return self.h(out.mean(1))


def test_an_array_as_index_is_read_entry_by_entry():
    """Its text leaves entries out where it has more than 1000, so that two masks have one text."""
    model, lr = ByArray(), 0.01
    x, y = torch.randn(60, 400, 6), torch.randint(3, (60,))
    x[:, :3, 0], x[:, -3:, 0] = 1.0, 1.0
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    attribution = inrun.attach(
        model,
        optimizer,
        inrun.Utility(loss_of, (x[40:], y[40:])),
        estimator="sgd",
        options=inrun.Options(contraction="dense", progress=False),
    )
    for first in (0, B):
        own = slice(first, first + B)
        weights = list(model.parameters())
        wanted = torch.autograd.grad(loss_of(model, (x[40:], y[40:])), weights)
        truth = [
            lr * sum(float((p * q).sum()) for p, q in zip(wanted, g, strict=True))
            for g in (
                torch.autograd.grad(loss_of(model, (x[[i]], y[[i]])) / B, weights)
                for i in range(first, first + B)
            )
        ]
        optimizer.zero_grad()
        with attribution.batch(range(first, first + B)):
            loss_of(model, (x[own], y[own])).backward()
        optimizer.step()
        table = attribution.values()
        found = dict(zip(table["sample_id"].to_pylist(), table["value"].to_pylist(), strict=True))
        np.testing.assert_allclose([found[i] for i in range(first, first + B)], truth, rtol=1e-9)


def test_samples_taken_for_the_channels_of_one_image_are_told():
    """`conv1d` of two axes has no batch axis: its output channels read all samples."""

    class Channels(nn.Module):
        def __init__(self):
            super().__init__()
            self.c, self.h = nn.Conv1d(B, B, 1), nn.Linear(6, 3)

        def forward(self, x):
            return self.h(torch.tanh(self.c(x[:, 0])))

    x, y = rows()
    with pytest.raises(inrun.errors.MisuseError, match=r"c.*conv1d"):
        values_and_truth(
            Channels(), (x[24:30], y[24:30]), loss_of, lambda m: CE(m(x[:B]), y[:B]),
            lambda m, i: CE(m(x[:B])[[i]], y[[i]]) / B,
        )  # fmt: skip


def test_a_state_of_another_sample_s_is_told():
    class FromOther(nn.Module):
        def __init__(self):
            super().__init__()
            self.i, self.h = nn.Linear(6, 6), nn.Linear(6, 3)
            self.r = nn.GRU(6, 6, batch_first=True)

        def forward(self, x):
            state = torch.tanh(self.i(x[:, 0]))[None].flip(1)
            return self.h(self.r(x, state)[0][:, -1])

    x, y = rows()
    with pytest.warns(inrun.errors.InRunWarning, match="gru"):
        values_and_truth(
            FromOther(), (x[20:], y[20:]), loss_of, lambda m: CE(m(x[:B]), y[:B]),
            lambda m, i: CE(m(x[:B])[[i]], y[[i]]) / B,
        )  # fmt: skip


ORDER = [3, 0, 5, 1, 2, 4]


def _into_zeros(t):
    out = torch.zeros_like(t)
    for place, row in enumerate(ORDER):
        out[place] = t[row]
    return out


WAYS = {
    "list": lambda t: t[ORDER],
    "array": lambda t: t[np.array(ORDER)],
    "with ellipsis": lambda t: t[ORDER, ...],
    "index_select": lambda t: t.index_select(0, torch.tensor(ORDER)),
    "stack": lambda t: torch.stack([t[i] for i in ORDER]),
    "zeros": _into_zeros,
}


@pytest.mark.parametrize("way", WAYS)
def test_a_whole_batch_read_by_its_ids_is_theirs_however_it_is_read(way):
    class Mean(Base):
        def forward(self, x):
            return self.h(torch.tanh(self.a(x)).mean(1))

    (x, y), read = rows(), WAYS[way]
    data, labels = x[:B], y[:B]
    with warnings.catch_warnings():
        warnings.simplefilter("error", inrun.errors.InRunWarning)
        found, truth = values_and_truth(
            Mean(), (x[20:], y[20:]), loss_of, lambda m: CE(m(read(data)), read(labels)),
            lambda m, j: CE(m(data[[ORDER[j]]]), labels[[ORDER[j]]]) / B, ids=ORDER,
        )  # fmt: skip
    np.testing.assert_allclose(found, truth, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("way", ["stack", "zeros"])
def test_rows_put_in_another_order_one_by_one_stay_their_samples_and_it_is_told(way):
    class Mean(Base):
        def forward(self, x):
            return self.h(torch.tanh(self.a(x)).mean(1))

    (x, y), read = rows(), WAYS[way]
    data, labels = x[:B], y[:B]
    with pytest.warns(inrun.errors.InRunWarning, match="another order"):
        found, truth = values_and_truth(
            Mean(), (x[20:], y[20:]), loss_of, lambda m: CE(m(read(data)), read(labels)),
            lambda m, i: CE(m(data[[i]]), labels[[i]]) / B,
        )  # fmt: skip
    np.testing.assert_allclose(found, truth, rtol=1e-9, atol=1e-14)


def test_one_token_of_each_sample_is_its_sample_s_though_samples_have_as_many_tokens():
    samples, y = [torch.randn(B, 6) for _ in range(B)], torch.randint(3, (B,))
    at = [(3 * i + 1) % B for i in range(B)]
    found, truth = values_and_truth(
        Flat(), (torch.randn(20, 6), torch.randint(3, (20,))), loss_of,
        lambda m: CE(m(torch.stack([s[k] for s, k in zip(samples, at, strict=True)])), y),
        lambda m, i: CE(m(samples[i][at[i]][None]), y[[i]]) / B,
    )  # fmt: skip
    np.testing.assert_allclose(found, truth, rtol=1e-9, atol=1e-14)


LENGTHS = [2, 5, 1, B, 3, 4]  # one just happens to be as long as there are samples


class OneByOne(Base):
    def forward(self, items):
        return torch.stack([self.h(torch.tanh(self.a(t)).mean(0)) for t in items])


class Together(Base):
    def forward(self, items):
        z = torch.tanh(self.a(torch.cat(items)))
        return self.h(torch.stack([part.mean(0) for part in z.split([len(t) for t in items])]))


@pytest.mark.parametrize("kind", [OneByOne, Together])
def test_an_item_as_long_as_there_are_samples_is_still_one_sample_s(kind):
    items, y = [torch.randn(n, 6) for n in LENGTHS], torch.randint(3, (B,))
    validation = [torch.randn(3, 6) for _ in range(8)], torch.randint(3, (8,))
    with warnings.catch_warnings():
        warnings.simplefilter("error", inrun.errors.InRunWarning)
        found, truth = values_and_truth(
            kind(), validation, loss_of, lambda m: CE(m(items), y),
            lambda m, i: CE(m([items[i]]), y[[i]]) / B,
        )  # fmt: skip
    np.testing.assert_allclose(found, truth, rtol=1e-9, atol=1e-14)


def test_sequences_are_padded_along_the_axis_that_pad_sequence_puts_them():
    class Masked(Base):
        def forward(self, x):
            there = (x.abs().sum(-1, keepdim=True) > 0).double()
            return self.h((torch.tanh(self.a(x)) * there).sum(1) / there.sum(1))

    items, y = [torch.randn(n, 6) for n in LENGTHS], torch.randint(3, (B,))
    found, truth = values_and_truth(
        Masked(), (torch.randn(20, 3, 6), torch.randint(3, (20,))), loss_of,
        lambda m: CE(m(nn.utils.rnn.pad_sequence(items).transpose(0, 1)), y),
        lambda m, i: CE(m(items[i][None]), y[[i]]) / B,
    )  # fmt: skip
    np.testing.assert_allclose(found, truth, rtol=1e-9, atol=1e-14)


def test_nothing_is_told_of_a_lone_sample_where_ids_do_not_divide_the_data():
    """Images of some samples: alone, a sample cannot be given its own."""

    class WithImages(nn.Module):
        def __init__(self):
            super().__init__()
            self.e, self.v, self.h = nn.Embedding(12, 6), nn.Linear(6, 6), nn.Linear(6, 3)

        def forward(self, tokens, images):
            e = self.e(tokens)
            e = e.masked_scatter((tokens == 11)[..., None].expand_as(e), self.v(images))
            return self.h(torch.tanh(e).mean(1))

    counts = [2, 0, 1, 1, 2, 1]
    tokens, images, y = torch.randint(11, (60, T)), torch.randn(70, 6), torch.randint(3, (60,))
    tokens[20:, 2] = 11
    for row, count in enumerate(counts):
        tokens[row, :count] = 11
    ends = np.cumsum(counts)
    with warnings.catch_warnings():
        warnings.simplefilter("error", inrun.errors.InRunWarning)
        found, truth = values_and_truth(
            WithImages(), (tokens[20:], images[20:60], y[20:]), loss_of,
            lambda m: CE(m(tokens[:B], images[:7]), y[:B]),
            lambda m, i: CE(m(tokens[[i]], images[ends[i] - counts[i] : ends[i]]), y[[i]]) / B,
        )  # fmt: skip
    np.testing.assert_allclose(found, truth, rtol=1e-9, atol=1e-14)


def _padded(items, order):
    out = torch.zeros(B, T, 6)
    for place in order:
        out[place, : len(items[place])] = items[place]
    return out


@pytest.mark.parametrize("order", [range(B), [5, 3, 0, 1, 4, 2]])
def test_a_batch_filled_sample_by_sample_has_them_in_their_places(order):
    class Masked(Base):
        def forward(self, x):
            there = (x.abs().sum(-1, keepdim=True) > 0).double()
            return self.h((torch.tanh(self.a(x)) * there).sum(1) / there.sum(1))

    items, y = [torch.randn(n, 6) for n in LENGTHS], torch.randint(3, (B,))
    found, truth = values_and_truth(
        Masked(), (torch.randn(20, 3, 6), torch.randint(3, (20,))), loss_of,
        lambda m: CE(m(_padded(items, order)), y), lambda m, i: CE(m(items[i][None]), y[[i]]) / B,
    )  # fmt: skip
    np.testing.assert_allclose(found, truth, rtol=1e-9, atol=1e-14)


def test_a_batch_filled_with_one_token_of_each_sample_has_them_in_their_places():
    samples, y = [torch.randn(B, 6) for _ in range(B)], torch.randint(3, (B,))

    def filled():
        out = torch.zeros(B, 6)
        for place, sample in enumerate(samples):
            out[place] = sample[(3 * place + 1) % B]
        return out

    found, truth = values_and_truth(
        Flat(), (torch.randn(20, 6), torch.randint(3, (20,))), loss_of,
        lambda m: CE(m(filled()), y), lambda m, i: CE(m(filled()[[i]]), y[[i]]) / B,
    )  # fmt: skip
    np.testing.assert_allclose(found, truth, rtol=1e-9, atol=1e-14)


def test_columns_put_side_by_side_keep_their_rows_though_there_are_as_many_as_rows():
    columns, y = [torch.randn(B) for _ in range(B)], torch.randint(3, (B,))
    found, truth = values_and_truth(
        Flat(), (torch.randn(20, 6), torch.randint(3, (20,))), loss_of,
        lambda m: CE(m(torch.stack(columns, 1)), y),
        lambda m, i: CE(m(torch.stack(columns, 1)[[i]]), y[[i]]) / B,
    )  # fmt: skip
    np.testing.assert_allclose(found, truth, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("closed", [-torch.inf, torch.finfo(torch.float64).min, -1e9, -1e4])
def test_packed_texts_apart_by_any_mask_do_not_interact(closed):
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.q, self.h = nn.Linear(6, 6), nn.Linear(6, 3)

        def forward(self, x, mask):
            q = self.q(x)
            return self.h(F.scaled_dot_product_attention(q, q, q, attn_mask=mask))

    def loss(m, batch):
        return CE(m(*batch[:2]).flatten(0, 1), batch[2].flatten())

    slots = torch.tensor([[0, 0, 1, 2, 2, 2, 3, 3, 4, 5, 5, 5]])
    x, y = torch.randn(1, 12, 6), torch.randint(3, (1, 12))
    mask = torch.where(slots[0][:, None] == slots[0][None], 0.0, closed)[None]
    validation = torch.randn(5, 12, 6), torch.zeros(5, 12, 12), torch.randint(3, (5, 12))

    def own(m, i):
        at = slots[0] == i
        logits = m(x[:, at], None).flatten(0, 1)
        return CE(logits, y[:, at].flatten(), reduction="sum") / 12

    with warnings.catch_warnings():
        warnings.simplefilter("error", inrun.errors.InRunWarning)
        found, truth = values_and_truth(
            Attention(), validation, loss, lambda m: loss(m, (x, mask, y)), own, slots=slots
        )
    np.testing.assert_allclose(found, truth, rtol=1e-9, atol=1e-14)
