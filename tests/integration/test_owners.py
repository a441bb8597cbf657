"""Whose gradient it is, through `inrun.attach`: values against each sample's own gradient."""

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import inrun
from tests.oracles.owner_cases import OWNED, two

LR = 0.01


def stepped(model, loss, train, validation, ids, **given):
    """One step of SGD inside a block: {id: value}, what was said, the attribution."""
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        attribution = inrun.attach(
            model,
            optimizer,
            inrun.Utility(loss, validation),
            estimator="sgd",
            options=inrun.Options(progress=False, contraction="dense"),
        )
        with attribution.batch(ids, **given):
            loss(model, train).backward()
        optimizer.step()
        table = attribution.values()
    said = [str(w.message) for w in seen if issubclass(w.category, inrun.errors.InRunWarning)]
    values = dict(zip(table["sample_id"].to_pylist(), table["value"].to_pylist(), strict=True))
    return values, said, attribution


def truth(model, loss, validation, terms):
    """lr * <gradient of the validation loss, gradient of a sample's own term of the loss>."""
    weights = list(model.parameters())
    target = torch.autograd.grad(loss(model, validation), weights, allow_unused=True)
    values = []
    for term in terms:
        own = torch.autograd.grad(term(model), weights, allow_unused=True)
        pairs = [(p, q) for p, q in zip(target, own, strict=True) if None not in (p, q)]
        values.append(LR * sum(float((p * q).sum()) for p, q in pairs))
    return torch.tensor(values, dtype=torch.float64)


def agree(values, ids, true):
    found = torch.tensor([values[i] for i in ids], dtype=torch.float64)
    torch.testing.assert_close(found, true, rtol=1e-6, atol=1e-9 * float(true.abs().max()))


@pytest.mark.parametrize("case", OWNED, ids=lambda case: case.name)
def test_values_are_each_samples_own(case):
    samples, ids = 4, ["d", "a", "c", "b"]
    model, train, validation = case.model(), case.inputs(samples), case.inputs(7)
    twin = copy.deepcopy(model)
    values, said, attribution = stepped(
        model, case.loss_fn, train, validation, ids, **case.owned(samples, train)
    )
    terms = [lambda m, i=i: case.loss_fn(m, case.alone(train, i)) for i in range(samples)]
    agree(values, ids, truth(twin, case.loss_fn, validation, terms))
    assert attribution.covered == pytest.approx(1.0)
    assert not said


# ---- what the loss does

torch.manual_seed(0)
X = torch.randn(40, 6, 4, dtype=torch.float64)
Y = torch.randint(3, (40,))
B = 6
IDS = list(range(10, 10 + B))


def classifier(seed=1):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()


def batch_of(*tensors):
    return tuple(t[:B] for t in tensors)


def rest_of(*tensors):
    return tuple(t[20:] for t in tensors)


def pooled(m, x):
    return m(x).mean(1)


def sorted_by_class(m, b):
    order = b[1].argsort(stable=True)
    return F.cross_entropy(pooled(m, b[0][order]), b[1][order])


def class_by_class(m, b):
    terms = [
        F.cross_entropy(pooled(m, b[0][b[1] == c]), b[1][b[1] == c], reduction="sum")
        for c in b[1].unique()
    ]
    return torch.stack(terms).sum() / len(b[1])


def weighted(m, b):
    weights = torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)
    per_row = F.cross_entropy(pooled(m, b[0]), b[1], reduction="none")
    return (per_row * weights[b[1]]).sum() / len(b[1])


def by_token_count(m, b):
    keep = b[0][..., 0] > 0
    logits = m(b[0])
    per_token = F.cross_entropy(logits.flatten(0, 1), b[1].repeat_interleave(6), reduction="none")
    return (per_token * keep.flatten()).sum() / 18


def over_a_loop(m, b):
    loss = 0.0
    for row, label in zip(b[0], b[1], strict=True):
        loss = loss + F.cross_entropy(m(row).mean(0), label)
    return loss / len(b[1])


def list_of_terms(m, b):
    terms = []
    for k in range(0, len(b[1]), 2):
        terms.append(F.cross_entropy(pooled(m, b[0][k : k + 2]), b[1][k : k + 2], reduction="sum"))
    return sum(terms) / len(b[1])


def two_losses(m, b):
    out = pooled(m, b[0])
    return F.cross_entropy(out, b[1]) + 0.1 * out.pow(2).sum(1).mean() + 0.2 * out.abs().mean()


def selected(m, b):
    keep = b[0][..., 1] > -0.3
    return m(b[0])[keep].logsumexp(-1).sum() / len(b[1])


def by_focal_terms(m, b):
    p = pooled(m, b[0]).softmax(-1).gather(1, b[1][:, None]).squeeze(1)
    return -((1 - p) ** 2 * p.log()).mean()


def time_major_loss(m, b):
    out = m(b[0].transpose(0, 1).reshape(-1, 4)).view(6, len(b[1]), 3)
    return F.cross_entropy(out.permute(1, 2, 0), b[1][:, None].expand(-1, 6))


TRUE_LOSSES = [
    sorted_by_class, class_by_class, weighted, by_token_count, over_a_loop, list_of_terms,
    two_losses, selected, by_focal_terms, time_major_loss,
]  # fmt: skip


@pytest.mark.parametrize("loss", TRUE_LOSSES, ids=lambda loss: loss.__name__)
def test_a_sum_of_terms_is_scored_and_not_told_as_interaction(loss):
    model, train, validation = classifier(), batch_of(X, Y), rest_of(X, Y)
    twin = copy.deepcopy(model)
    values, said, attribution = stepped(model, loss, train, validation, IDS)

    def term(m, i):
        alone = tuple(t[[i]] for t in train)
        return loss(m, alone) if loss is by_token_count else loss(m, alone) / B

    terms = [lambda m, i=i: term(m, i) for i in range(B)]
    agree(values, IDS, truth(twin, loss, validation, terms))
    assert not any("interact" in text for text in said)
    assert attribution.covered == pytest.approx(1.0)


def info_nce(m, b):
    u, v = (F.normalize(m(b[0][:, k]), dim=1) for k in (0, 1))
    return F.cross_entropy(u @ v.T * 5, torch.arange(len(u)))


def batch_hard_triplet(m, b):
    z = m(b[0][:, 0])
    distance = torch.cdist(z, z)
    same = b[1][:, None] == b[1][None]
    furthest = distance.masked_fill(~same, -1e9).max(1).values
    nearest = distance.masked_fill(same, 1e9).min(1).values
    return F.relu(furthest - nearest + 1).mean()


def cox(m, b):
    risk = m(b[0][:, 0])[:, 0]
    order = b[0][:, 0, 0].argsort(descending=True)
    risk = risk[order]
    return -(risk - risk.logcumsumexp(0)).mean()


def dice(m, b):
    p = m(b[0]).softmax(-1)[..., 0].flatten()
    target = (b[1] == 0).double().repeat_interleave(6)
    return 1 - (2 * (p * target).sum() + 1) / (p.sum() + target.sum() + 1)


def mixup(m, b):
    hidden = m[1](m[0](b[0][:, 0]))
    mixed = 0.7 * hidden + 0.3 * hidden.roll(1, 0)
    return F.cross_entropy(m[2](mixed), b[1])


def running_sum(m, b):
    return F.cross_entropy(m(b[0][:, 0]).cumsum(0), b[1])


def written_batch_norm(m, b):
    hidden = m[0](b[0][:, 0])
    hidden = (hidden - hidden.mean(0)) / (hidden.var(0, unbiased=False) + 1e-5).sqrt()
    return F.cross_entropy(m[2](m[1](hidden)), b[1])


INTERACTIONS = [
    info_nce, batch_hard_triplet, cox, dice, mixup, running_sum, written_batch_norm,
]  # fmt: skip


@pytest.mark.parametrize("loss", INTERACTIONS, ids=lambda loss: loss.__name__)
def test_interaction_is_told_exactly_once(loss):
    model = classifier()
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        attribution = inrun.attach(
            model,
            optimizer,
            inrun.Utility(loss, rest_of(X, Y)),
            estimator="sgd",
            options=inrun.Options(progress=False, contraction="dense"),
        )
        for _ in range(3):
            with attribution.batch(IDS):
                loss(model, batch_of(X, Y)).backward()
            optimizer.step()
            optimizer.zero_grad()
    said = [str(w.message) for w in seen if "interact" in str(w.message)]
    assert len(said) == 1, [str(w.message) for w in seen]


# ---- what `batch` is told


def refused(ids, train=None, **given):
    model = two()()
    model.function = lambda m, x: m.b(torch.tanh(m.a(x)))
    model = model.double()
    train = X[:B] if train is None else train
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    attribution = inrun.attach(
        model,
        optimizer,
        inrun.Utility(lambda m, b: m(b[0]).pow(2).mean(), (X[20:],)),
        estimator="sgd",
        options=inrun.Options(progress=False),
    )
    with pytest.raises(inrun.errors.MisuseError) as told, attribution.batch(ids, **given):
        model(train).pow(2).mean().backward()
    attribution.detach()
    return str(told.value)


@pytest.mark.parametrize(
    ("ids", "given", "words"),
    [
        (range(5), {}, ["5", "(6, 6, 4)"]),
        (range(7), {}, ["7", "(6, 6, 4)"]),
        (range(3), {"rows": [0, 1, 2, 0, 1]}, ["rows", "5", "(6, 6, 4)"]),
        (range(3), {"rows": [0, 1, 2, 0, 1, 3]}, ["rows", "3", "0 to 2"]),
        (range(3), {"rows": [0, 1, 2, 0, 1, -1]}, ["rows", "-1", "0 to 2"]),
        (range(3), {"rows": [0.0, 1, 2, 0, 1, 2]}, ["rows", "integers"]),
        (range(3), {"rows": [[0, 1, 2], [0, 1, 2]]}, ["rows", "2 axes"]),
        (range(3), {"slots": torch.zeros(6, 5).long()}, ["slots", "(6, 5)", "(6, 6, 4)"]),
        (range(3), {"slots": torch.full((6, 6), 3)}, ["slots", "3", "-1 to 2"]),
        (range(3), {"slots": torch.full((6, 6), -2)}, ["slots", "-2", "-1 to 2"]),
        (range(3), {"slots": torch.zeros(6, 6)}, ["slots", "integers"]),
        (range(3), {"slots": torch.zeros((), dtype=torch.long)}, ["slots", "axes"]),
        (range(3), {"rows": [0] * 6, "slots": torch.zeros(6, dtype=torch.long)}, ["not both"]),
        (range(3), {"rows": {"x": [0, 1, 2]}}, ["rows", "tensors"]),
        (range(3), {"rows": {}}, ["rows", "tensors"]),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_told_at_once_with_what_came_in(ids, given, words):
    text = refused(ids, **given)
    assert all(word in text for word in words), text


def test_slots_of_no_sample_get_nothing_and_say_so():
    """Their gradient is no sample's: parameters that it reaches are gaps, by name."""
    model = two()()
    model.function = lambda m, x: m.b(torch.tanh(m.a(x)))
    model = model.double()
    slots = torch.tensor([0, 0, 1, 1, -1, -1])

    def loss(m, b):
        return m(b[0]).pow(2).mean()

    _, said, attribution = stepped(model, loss, (X[:B],), (X[20:],), ["p", "q"], slots=slots)
    assert attribution.covered < 1
    assert any("no sample" in text for text in said), said


def test_a_padding_slot_that_the_loss_leaves_out_costs_nothing():
    model = two()()
    model.function = lambda m, x: m.b(torch.tanh(m.a(x)))
    model = model.double()
    twin = copy.deepcopy(model)
    slots = torch.tensor([0, 1, 1, 0, 1, -1])

    def loss(m, b):
        return m(b[0])[:5].pow(2).sum()

    values, said, attribution = stepped(model, loss, (X[:B],), (X[20:],), ["p", "q"], slots=slots)
    own = [slots[:5] == k for k in range(2)]
    terms = [lambda m, k=k: m(X[:5][own[k]]).pow(2).sum() for k in range(2)]
    agree(values, ["p", "q"], truth(twin, loss, (X[20:],), terms))
    assert attribution.covered == pytest.approx(1.0)
    assert not said
