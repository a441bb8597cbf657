"""Owners checked on training batches: what is wrong is found, what is right raises no alarm."""

import warnings
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef

import inrun
from inrun.capture._replaying import WithinBounds
from inrun.errors import InRunWarning
from inrun.owners import Map, _operation
from inrun.owners._entries import Entries
from inrun.owners._operation import Registered
from tests.settings import flat

B = 6


class Mix(torch.autograd.Function):
    """Mixes rows where no mode sees it."""

    @staticmethod
    def forward(ctx, x):
        a = x.detach().numpy()
        return torch.from_numpy(a - 2.0 * a[::-1].copy())

    @staticmethod
    def backward(ctx, g):
        a = g.numpy()
        return torch.from_numpy(a - 2.0 * a[::-1].copy())


class Net(nn.Module):
    """Two layers, and something in between."""

    def __init__(self, between=lambda h: h):
        super().__init__()
        self.a, self.h = nn.Linear(4, 8), nn.Linear(8, 3)
        self.between = between

    def forward(self, x):
        return self.h(self.between(torch.tanh(self.a(x))))


class Sorted(Net):
    def forward(self, x):
        order = x[:, 0].argsort()
        return self.h(torch.tanh(self.a(x[order]))[order.argsort()])


class Experts(Net):
    """Rows routed to one of two layers by index."""

    def __init__(self):
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(8, 8) for _ in range(2))

    def forward(self, x):
        h = torch.tanh(self.a(x))
        out = torch.zeros_like(h)
        for k, expert in enumerate(self.experts):
            rows = ((x[:, 0] > 0).long() == k).nonzero().flatten()
            out.index_add_(0, rows, expert(h[rows]))
        return self.h(out)


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.lstm = nn.Embedding(11, 5), nn.LSTM(5, 6, batch_first=True)
        self.h = nn.Linear(6, 3)

    def forward(self, tokens):
        return self.h(self.lstm(self.embedding(tokens))[0][:, -1])


def reverse(h):
    return h.flip(0)


def believed(monkeypatch, name, rule):
    """A wrong rule for an operation, as a mistake in it would be."""
    monkeypatch.setitem(_operation._BY_NAME, name, Registered("wrong", rule, False, False, False))


def rowwise(op):
    return op.every(op.first)


def rolled(op):
    m = op.first
    return op.every(Map(m.codes.roll(1, 0)) if m.shape[0] > 1 else m)


def exchanged_pair(op):
    m = op.first
    places = torch.tensor([1, 0, *range(2, B)])
    return op.every(Map(m.codes[places]) if m.shape[0] == B else m)


def data():
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(40, 4, generator=generator).double()
    return x, torch.randint(3, (40,), generator=generator)


def loss_fn(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


def train(build, batch, *, steps=3, attach=True, loss=loss_fn, seed=0, checks=True, **options):
    """(model, attribution, warnings) after a few steps."""
    torch.manual_seed(seed)
    model = build().double()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    attribution = None
    if attach:
        held_out = tuple(t[20:] for t in batch)
        attribution = inrun.attach(
            model, optimizer, inrun.Utility(loss, held_out), **flat(progress=False, **options)
        )
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for step in range(steps):
            rows = [(step * B + i) % 20 for i in range(B)]
            own = tuple(t[rows] for t in batch)
            if attribution is None:
                loss(model, own).backward()
            else:
                with attribution.batch(rows):
                    loss(model, own).backward()
            optimizer.step()
            optimizer.zero_grad()
    said = [str(w.message) for w in seen if issubclass(w.category, InRunWarning)]
    return model, attribution, said


def checks(attribution):
    rows = attribution.coverage().to_pylist()
    return {r["parameter"]: r["owners_checked"] for r in rows}


def status(attribution):
    rows = attribution.coverage().to_pylist()
    return {r["parameter"]: (r["status"], r["captured_as"]) for r in rows}


def tokens():
    generator = torch.Generator().manual_seed(3)
    t = torch.randint(11, (40, 7), generator=generator)
    return t, t[:, 0] % 3


RIGHT = {
    "plain": (Net, data),
    "sorted": (Sorted, data),
    "experts": (Experts, data),
    "dropout": (lambda: Net(nn.Dropout(0.4)), data),
    "lstm": (Recurrent, tokens),
}


@pytest.mark.parametrize("capture", ["hold", "stream"])
@pytest.mark.parametrize("name", RIGHT)
def test_a_right_model_raises_no_alarm_and_both_checks_are_made(name, capture):
    build, batch = RIGHT[name]
    _, attribution, said = train(build, batch(), capture=capture)
    assert not said
    for parameter, done in checks(attribution).items():
        assert "tinted step" in done, parameter
        assert "lone step" in done, parameter


@pytest.mark.parametrize("capture", ["hold", "stream"])
@pytest.mark.parametrize("name", RIGHT)
def test_training_is_bit_for_bit_as_without(name, capture):
    build, batch = RIGHT[name]
    plain, _, _ = train(build, batch(), attach=False, steps=6)
    state = torch.get_rng_state()
    checked, _, _ = train(build, batch(), capture=capture, steps=6)
    assert torch.equal(state, torch.get_rng_state())
    for p, q in zip(plain.parameters(), checked.parameters(), strict=True):
        assert torch.equal(p, q)


WRONG = {
    "a hidden mixing": ("Mix.apply", rowwise, lambda: Net(lambda h: Mix.apply(h)), {"a"}),
    "rolled": ("tanh", rolled, Net, {"a"}),
    "two exchanged": ("tanh", exchanged_pair, Net, {"a"}),
    "flipped": ("flip", rowwise, lambda: Net(reverse), {"a"}),
}


@pytest.mark.parametrize("capture", ["hold", "stream"])
@pytest.mark.parametrize("name", WRONG)
def test_tinted_gradients_find_a_wrong_owner_in_the_first_block(monkeypatch, name, capture):
    operation, rule, build, wrong = WRONG[name]
    believed(monkeypatch, operation, rule)
    monkeypatch.setattr("inrun.capture._owner_checks.OwnerChecks._wants_lone", False)
    _, attribution, said = train(build, data(), steps=1, capture=capture)
    for parameter, (found, why) in status(attribution).items():
        if parameter.split(".")[0] in wrong:
            assert found == "not captured", parameter
            assert "tinted" in why
        else:
            assert found == "captured", parameter
    assert len([text for text in said if "not captured" in text and "tinted" in text]) == 1


@pytest.mark.parametrize("capture", ["hold", "stream"])
@pytest.mark.parametrize("name", WRONG)
def test_a_lone_sample_finds_a_wrong_owner(monkeypatch, name, capture):
    operation, rule, build, wrong = WRONG[name]
    believed(monkeypatch, operation, rule)
    monkeypatch.setattr("inrun.capture._owner_checks.MOST_SEQUENCES", 0)
    monkeypatch.setattr("random.Random.choice", lambda self, given: given[0])
    _, attribution, said = train(build, data(), steps=3, capture=capture)
    found = status(attribution)
    assert any("a lone sample" in text or "A sample alone" in text for text in said)
    for parameter, (how, why) in found.items():
        if parameter.split(".")[0] in wrong:
            assert how == "not captured", parameter
            assert "lone sample" in why


def test_entries_that_are_taken_for_another_samples_are_found_by_a_lone_sample(monkeypatch):
    meant = Entries._map_of

    def rolled_by_one(self, t):
        m = meant(self, t)
        return m if m is None or m.shape[0] != B else Map(m.codes.roll(1, 0))

    monkeypatch.setattr(Entries, "_map_of", rolled_by_one)
    _, attribution, said = train(Net, data())
    assert any("are those that in the batch are taken for place" in text for text in said)
    assert {how for how, _ in status(attribution).values()} == {"not captured"}


def test_a_changed_sequence_of_operations_is_tinted_again(monkeypatch):
    """The second way through the model, which comes later, has the wrong owners."""
    believed(monkeypatch, "flip", rowwise)
    way = []

    class Both(Net):
        def forward(self, x):
            h = torch.tanh(self.a(x))
            return self.h(h.flip(0) if way else h)

    def loss(model, batch):
        return loss_fn(model, batch)

    monkeypatch.setattr("inrun.capture._owner_checks.OwnerChecks._wants_lone", False)
    x, y = data()
    torch.manual_seed(0)
    model = Both().double()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    attribution = inrun.attach(
        model,
        optimizer,
        inrun.Utility(loss, (x[20:], y[20:])),
        options=inrun.Options(progress=False),
    )
    for step in range(5):
        way[:] = [1] if step >= 2 else []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", InRunWarning)
            with attribution.batch(range(B)):
                loss(model, (x[:B], y[:B])).backward()
        optimizer.step()
        optimizer.zero_grad()
        expected = "not captured" if step >= 3 else "captured"  # step 2 is new, step 3 looked at
        assert status(attribution)["a.weight"][0] == expected, step
    assert status(attribution)["h.weight"][0] == "captured"


def packed(model, batch):
    return F.cross_entropy(model(batch[0]).flatten(0, 1), batch[1].flatten())


class Packed(nn.Module):
    """Attention within documents: a 0 begins one."""

    def __init__(self):
        super().__init__()
        self.embedding, self.qkv = nn.Embedding(11, 8), nn.Linear(8, 24)
        self.h = nn.Linear(8, 11)

    def forward(self, tokens):
        document = (tokens == 0).cumsum(1)
        mask = document.unsqueeze(1) == document.unsqueeze(2)
        q, k, v = self.qkv(self.embedding(tokens)).chunk(3, -1)
        h = F.scaled_dot_product_attention(q, k, v, attn_mask=mask.unsqueeze(1).squeeze(1))
        return self.h(h)


def test_packed_rows_with_slots_are_checked():
    """Two rows of three documents and of two; a lone document is a row of its own."""
    tokens = torch.tensor([[0, 3, 0, 5, 6, 7, 0, 8], [0, 4, 4, 4, 0, 2, 1, 9]])
    slots = torch.tensor([[0, 0, 1, 1, 1, 1, 2, 2], [3, 3, 3, 3, 4, 4, 4, 4]])
    torch.manual_seed(0)
    model = Packed().double()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    held_out = (tokens.roll(1, 0), tokens)
    attribution = inrun.attach(
        model, optimizer, inrun.Utility(packed, held_out), options=inrun.Options(progress=False)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error", InRunWarning)
        with attribution.batch(range(5), slots=slots):
            packed(model, (tokens, tokens)).backward()
        optimizer.step()
    assert set(checks(attribution).values()) == {"tinted step 1, lone step 1"}


class Overwrites(torch.autograd.Function):
    """A fused loss's way: what forward computed is scaled in place by the gradient that arrives."""

    @staticmethod
    def forward(ctx, h, y):
        with torch.enable_grad():
            leaf = h.detach().requires_grad_()
            loss = F.cross_entropy(leaf, y, reduction="none")
            (ctx.own,) = torch.autograd.grad(loss.sum(), leaf)
        ctx.save_for_backward(ctx.own.clone())
        ctx.calls = 0
        return loss.detach()

    @staticmethod
    def backward(ctx, gradient):
        (saved,) = ctx.saved_tensors
        ctx.calls += 1
        ctx.own.mul_(gradient.unsqueeze(1))
        saved.mul_(gradient.unsqueeze(1) * ctx.calls)
        return (ctx.own + saved) / 2, None


def test_a_function_that_overwrites_what_it_saved_trains_as_without():
    def loss(model, batch):
        return Overwrites.apply(model(batch[0]), batch[1]).mean()

    plain, _, _ = train(Net, data(), loss=loss, attach=False)
    model, attribution, said = train(Net, data(), loss=loss, self_test=False)
    assert not said
    assert all("tinted step 1" in done for done in checks(attribution).values())
    for p, q in zip(plain.parameters(), model.parameters(), strict=True):
        assert torch.equal(p, q)


def test_the_lone_sample_is_looked_at_when_nothing_of_the_step_is_held():
    class Watched(Net):
        def forward(self, x):
            h = torch.tanh(self.a(x))
            if not self.training and len(x) == 1:  # alone, where validation rows are more
                free.append(all(ref.expired() for ref in of_step))
            elif self.training:
                of_step.append(StorageWeakRef(h.untyped_storage()))
            return self.h(h)

    free, of_step = [], []
    train(Watched, data(), steps=3)
    assert of_step
    assert free
    assert all(free)


class Remembers(Net):
    """Keeps its last state, counts its calls, and logs them in a list that the loop empties."""

    def __init__(self):
        super().__init__()
        self.state, self.count, self.log = None, 0, []

    def forward(self, x):
        self.count += 1
        h = torch.tanh(self.a(x))
        before = h.detach().mean() if self.state is None else self.state
        self.state = h.detach().mean()
        self.log.append(h.square().mean(1))
        return self.h(h + before)


def test_a_model_that_keeps_a_state_trains_as_without():
    def loss(model, batch):
        value = loss_fn(model, batch) + torch.stack(model.log).mean()
        model.log.clear()
        return value

    x, y = data()
    found = []
    for attach in (False, True):
        torch.manual_seed(0)
        model = Remembers().double()
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
        utility = inrun.Utility(lambda m, b: loss_fn(Net.forward.__get__(m), b), (x[20:], y[20:]))
        attribution = (
            inrun.attach(model, optimizer, utility, options=inrun.Options(progress=False))
            if attach
            else None
        )
        for step in range(4):
            rows = slice(step, step + B)
            block = attribution.batch(range(B)) if attach else nullcontext()
            with block:
                loss(model, (x[rows], y[rows])).backward()
            optimizer.step()
            optimizer.zero_grad()
        found.append((model.count, model.state, [*model.parameters()]))
        if attach:
            attribution.detach()
    assert found[0][0] == found[1][0] == 4
    assert torch.equal(found[0][1], found[1][1])
    assert all(torch.equal(p, q) for p, q in zip(found[0][2], found[1][2], strict=True))


def not_checked(build, *, loss=loss_fn, both=False, **options):
    """Why, where a check could not be made."""
    _, attribution, _ = train(build, data(), loss=loss, steps=1, **options)
    return set(checks(attribution).values()), attribution._loop.capture.coverage._unchecked


def test_hooks_on_activations_are_called_as_often_as_without_and_it_is_said():
    calls = []

    class Hooked(Net):
        def forward(self, x):
            h = torch.tanh(self.a(x))
            if h.requires_grad and self.training:
                h.register_hook(lambda g: calls.append(1))
            return self.h(h)

    done, why = not_checked(Hooked)
    assert calls == [1]
    assert "hooks" in why["tinted"]
    assert done == {"lone step 1"}


def test_a_hook_on_a_module_is_called_as_often_as_without():
    calls = []

    def build():
        net = Net()
        net.a.register_full_backward_hook(lambda *_: calls.append(net.training))
        return net

    _, why = not_checked(build)
    assert "hooks" in why["tinted"]
    assert calls.count(True) == 1


def test_a_reentrant_checkpoint_is_said_not_to_be_tinted():
    def between(h):
        return torch.utils.checkpoint.checkpoint(torch.tanh, h, use_reentrant=True)

    done, why = not_checked(lambda: Net(between))
    assert "use_reentrant" in why["tinted"]
    assert done == {"lone step 1"}


def test_a_checkpoint_without_reentry_is_tinted():
    def between(h):
        return torch.utils.checkpoint.checkpoint(torch.tanh, h, use_reentrant=False)

    assert not_checked(lambda: Net(between))[0] == {"tinted step 1, lone step 1"}


def test_samples_that_interact_are_said_not_to_be_checked():
    class Centred(Net):
        def forward(self, x):
            h = self.h(torch.tanh(self.a(x)))
            return h - h.mean(0)

    _, why = not_checked(Centred)
    assert "interact" in why["tinted"]


def test_a_model_that_takes_no_single_sample_is_said_not_to_be_checked():
    class Even(Net):
        def forward(self, x):
            if len(x) < 2:
                raise ValueError("at least two rows")
            return super().forward(x)

    done, why = not_checked(Even)
    assert "at least two rows" in why["lone"]
    assert done == {"tinted step 1"}


def test_random_numbers_in_evaluation_mode_are_said():
    class Noisy(Net):
        def forward(self, x):
            return super().forward(x + 0.1 * torch.randn_like(x))

    _, why = not_checked(Noisy, self_test=False)
    assert "random numbers in evaluation mode" in why["lone"]


def test_mixing_that_no_gradient_shows_is_told_and_no_gap():
    """A router with a capacity: which sample is dropped depends on the others, by index alone."""

    class Dropping(Net):
        def forward(self, x):
            h = torch.tanh(self.a(x))
            keep = (x[:, 0] > x[:, 0].mean()).nonzero().flatten()
            out = torch.zeros_like(h).index_add(0, keep, h[keep])
            return self.h(h + out)

    _, attribution, said = train(Dropping, data(), steps=8)
    assert {how for how, _ in status(attribution).values()} == {"captured"}
    assert not [text for text in said if "not captured" in text]


def test_an_output_that_no_loss_is_made_of_is_not_passed_back():
    """A fused head's entropy, which trainers only log, takes as much memory again to pass back."""
    passed = []

    class Logged(torch.autograd.Function):
        @staticmethod
        def forward(ctx, h):
            return h.square()

        @staticmethod
        def backward(ctx, g):
            passed.append(1)
            return g

    class Two(Net):
        def forward(self, x):
            h = super().forward(x)
            return {"logits": h, "logged": Logged.apply(h)}

    def of_logits(model, batch):
        return F.cross_entropy(model(batch[0])["logits"], batch[1])

    _, attribution, said = train(Two, data(), steps=2, loss=of_logits)
    assert not said
    assert all("lone step" in done for done in checks(attribution).values())
    assert not passed


def test_slots_of_a_sum_in_place_are_tinted_once():
    def summed(model, batch):
        total = torch.zeros((), dtype=torch.float64)
        logits = model(batch[0])
        for i in range(len(logits)):
            total += F.cross_entropy(logits[i : i + 1], batch[1][i : i + 1])
        return total / len(logits) + logits.square().mean()

    done, _ = not_checked(Net, loss=summed)
    assert done == {"tinted step 1, lone step 1"}


@pytest.mark.parametrize("index", [torch.tensor([0, 7]), (slice(None), torch.tensor([9]))])
def test_indices_past_the_end_are_seen_before_they_are_used(index):
    t = torch.zeros(4, 5)
    with pytest.raises(IndexError), WithinBounds():
        t[index]
    with WithinBounds():
        assert t[torch.tensor([3, -4])].shape == (2, 5)
        assert F.embedding(torch.tensor([3]), t).shape == (1, 5)
    with pytest.raises(IndexError, match="past the end"), WithinBounds():
        F.embedding(torch.tensor([4]), t)
    with pytest.raises(IndexError, match="past the end"), WithinBounds():
        t.index_select(1, torch.tensor([5]))
