"""Look-ahead against training again with another weight on one sample, float64."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

import inrun
from inrun.replay import looked_ahead, tracin
from inrun.replay._gradient import SIDE_BY_SIDE, smooth_kinks
from inrun.replay._proxy import perturbation
from inrun.replay._removal import FinitePush, push_named, removal_named
from inrun.replay._sweep import Method, as_sgd, windows
from tests.integration.runs import RUNS
from tests.oracles.trajectories import Training

SAMPLES, STEPS = 12, 6


def llama_in_double():
    """Llama with norms in the model's own precision: its own go through float32, whose rounding a
    central difference would magnify.
    """
    model = RUNS["llama"][0]()
    for parent in list(model.modules()):
        for name, module in list(parent.named_children()):
            if type(module).__name__ == "LlamaRMSNorm":
                norm = nn.RMSNorm(module.weight.shape, eps=module.variance_epsilon)
                setattr(parent, name, norm)
    return model


MODELS = RUNS | {"llama": (llama_in_double, *RUNS["llama"][1:])}


def adamw(model):
    return torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.1, betas=(0.8, 0.95))


def adam(model):
    return torch.optim.Adam(model.parameters(), lr=3e-3, weight_decay=0.1, betas=(0.8, 0.95))


def momentum(model):
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)


def groups(model):
    """Two groups of other rates and decay, one with amsgrad."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim <= 1]
    return torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.3}, {"params": rest, "lr": 1e-2, "amsgrad": True}],
        lr=3e-3, betas=(0.8, 0.95),
    )  # fmt: skip


def training(name, optimizer=adamw, clip=None, blocks=1, steps=STEPS, rows=4):
    """Batches over a few samples, so that each comes several times."""
    build, draw, terms = MODELS[name]
    generator = torch.Generator().manual_seed(4)
    data = draw(generator, SAMPLES + 10)
    batches = []
    while len(batches) < steps:
        order = torch.randperm(SAMPLES, generator=generator)[: rows * blocks]
        batches.append([block.tolist() for block in order.split(rows)])
    return Training(build, optimizer, terms, data, batches, clip)


def judge(train, model, first=SAMPLES, last=SAMPLES + 10):
    return train.terms(model, *[t[first:last] for t in train.data]).mean()


def utility(train):
    return inrun.Utility(
        lambda model, batch: train.terms(model, *batch).mean(),
        tuple(t[SAMPLES:] for t in train.data),
    )


def recorded(train, **options):
    return train.record(
        lambda model, optimizer: inrun.record(
            model, optimizer, train.losses, train.fetch, clip_norm=train.clip, **options
        )
    )


def truth(train, samples, states, removal):
    """{state: values of the samples}: what taking each out would do to first order."""
    renormalise = removal == "renormalise"
    rows = len(train.batches[0][0])
    scale = rows / (rows - 1) if renormalise else 1.0
    slopes = [train.slope(i, lambda m: judge(train, m), states, renormalise) for i in samples]
    return {s: np.array([-scale * slope[s] for slope in slopes]) for s in states}


def lookahead(run, *args, **how):
    """With training's exact derivative."""
    return inrun.lookahead(run, *args, damped=False, **how)


def values_of(result, samples):
    found = result.values()
    by_id = dict(zip(found["sample_id"].to_pylist(), found["value"].to_pylist(), strict=True))
    return np.array([by_id.get(i, 0.0) for i in samples])


def close(found, wanted, tolerance=1e-5):
    assert np.abs(found - wanted).max() <= tolerance * np.abs(wanted).max(), (found, wanted)


def rmsprop(model):
    return torch.optim.RMSprop(model.parameters(), lr=3e-3, momentum=0.5, centered=True)


def adagrad(model):
    return torch.optim.Adagrad(model.parameters(), lr=1e-2, lr_decay=0.01)


def nadam(model):
    return torch.optim.NAdam(model.parameters(), lr=3e-3, weight_decay=0.1)


def adafactor(model):
    return torch.optim.Adafactor(model.parameters(), lr=1e-2)


OTHERS = (rmsprop, adagrad, nadam, adafactor)  # by automatic differentiation of their rules
CASES = [(name, optimizer, {}) for name in MODELS for optimizer in (adamw, adam, momentum)]
CASES += [("mlp", optimizer, {"clip": 0.3}) for optimizer in OTHERS]
CASES += [(name, adamw, {"clip": 0.3, "blocks": 2}) for name in MODELS]
CASES += [
    ("mlp", groups, {}), ("mlp", momentum, {"clip": 0.3}), ("mlp", adam, {"blocks": 2}),
    ("mlp", groups, {"clip": 0.3, "blocks": 2}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "optimizer", "how"), CASES, ids=lambda x: getattr(x, "__name__", str(x))
)
def test_values_are_central_differences_of_training_again(name, optimizer, how):
    train, chosen = training(name, optimizer, **how), (0, 3, 7)
    run = recorded(train)
    if "clip" in how:
        assert min(step.clip for step in run.steps) < 0.9
    wanted = truth(train, chosen, [STEPS], "drop")[STEPS]
    close(values_of(lookahead(run, utility(train), removal="drop"), chosen), wanted)


@pytest.mark.parametrize("name", ["mlp", "gpt2-tied"])
def test_renormalised_values_are_central_differences_of_the_mean(name):
    train, chosen = training(name, clip=0.3, blocks=2), (0, 3, 7)
    wanted = truth(train, chosen, [STEPS], "renormalise")[STEPS]
    close(values_of(lookahead(recorded(train), utility(train)), chosen), wanted)


def test_horizon_one_is_the_tangent_at_the_closing_gradient():
    """`tangent` takes the opening gradient of V; where V is linear in the weights they agree."""
    train = training("mlp", steps=5)
    generator = torch.Generator().manual_seed(1)
    probe = [
        torch.randn(p.shape, generator=generator).double() for p in RUNS["mlp"][0]().parameters()
    ]

    def linear(model, batch):
        return sum((a * p).sum() for a, p in zip(probe, model.parameters(), strict=True))

    flat = inrun.Utility(linear, (torch.zeros(2, 1),))
    model, optimizer = train.start()
    attribution = inrun.attach(
        model,
        optimizer,
        flat,
        estimator="tangent",
        options=inrun.Options(smoothed_steps=0, progress=False, self_test=False),
    )
    recorder = inrun.record(model, optimizer, train.losses, train.fetch)
    for (ids,) in train.batches:
        batch = train.fetch(ids)
        with attribution.batch(ids), recorder.batch(ids):
            train.terms(model, *batch).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    found = lookahead(recorder.finish(), flat, horizon=1, removal="drop")
    wanted = attribution.values()
    assert found.values()["sample_id"].to_pylist() == wanted["sample_id"].to_pylist()
    np.testing.assert_allclose(found.values()["value"], wanted["value"], rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("horizon", [1, 2, 4, 5])
def test_windows_look_to_their_end(horizon):
    """A visit counts for the loss at its window's end; the sample's later visits do not."""
    train = training("mlp", momentum)
    result = lookahead(recorded(train), utility(train), horizon, removal="drop").visits()
    ends = result["ends_at"].to_pylist()
    assert ends == [
        min(STEPS, -(-step // horizon) * horizon) for step in result["step"].to_pylist()
    ]
    chosen = (0, 3, 7)
    for first in range(0, STEPS, horizon):
        end = min(STEPS, first + horizon)
        window = [row for row in result.to_pylist() if first < row["step"] <= end]
        found = [sum(r["value"] for r in window if r["sample_id"] == i) for i in chosen]
        renamed = training("mlp", momentum)  # the sample is weighted in the window's steps only
        renamed.data = tuple(torch.cat([t, t[:SAMPLES]]) for t in renamed.data)
        offset = len(train.data[0])
        renamed.batches = [
            [[i + offset if first < step <= end else i for i in ids] for ids in blocks]
            for step, blocks in enumerate(renamed.batches, start=1)
        ]
        judged = lambda m: judge(train, m)  # noqa: E731
        wanted = [-renamed.slope(i + offset, judged, [end])[end] for i in chosen]
        if any(wanted):
            close(np.array(found), np.array(wanted))


def method(horizon=None, **how):
    """What `inrun.lookahead` does by itself, and what only comparisons ask for."""
    horizon = horizon or windows(None, STEPS)
    return Method(horizon, removal_named("renormalise"), push_named("tangent"), **how)


def test_the_loss_may_be_read_at_any_state():
    train = training("mlp")
    table = looked_ahead(recorded(train), utility(train), method(frozenset({2}))).values()
    ids = table["sample_id"].to_pylist()
    found = table["value"].to_numpy()[[ids.index(i) for i in (0, 3, 7)]]
    close(found, truth(train, (0, 3, 7), [2], "renormalise")[2])


@pytest.mark.parametrize("name", MODELS)
def test_targets_are_carried_side_by_side(name):
    train = training(name)
    loss = lambda model, batch: train.terms(model, *batch).mean()  # noqa: E731
    parts = {
        "first": tuple(t[SAMPLES : SAMPLES + 4] for t in train.data),
        "rest": tuple(t[SAMPLES + 4 :] for t in train.data),
    }
    run_ = recorded(train)
    whole = lookahead(run_, inrun.Utility(loss, targets=parts, weights={"first": 1, "rest": 3}))
    table = whole.values()
    for name, part in parts.items():
        alone = lookahead(run_, inrun.Utility(loss, part)).values()
        np.testing.assert_allclose(table[name], alone["value"], rtol=1e-9, atol=1e-15)
    mean = (table["first"].to_numpy() + 3 * table["rest"].to_numpy()) / 4
    np.testing.assert_allclose(table["value"], mean, rtol=1e-12)


def test_more_targets_than_go_side_by_side_are_the_same_as_one_by_one():
    train = training("mlp")
    loss = lambda model, batch: train.terms(model, *batch).mean()  # noqa: E731
    parts = {f"row {k}": tuple(t[SAMPLES + k :][:1] for t in train.data) for k in range(10)}
    assert len(parts) > SIDE_BY_SIDE
    run = recorded(train)
    table = lookahead(run, inrun.Utility(loss, targets=parts)).values()
    for name in ("row 0", "row 7", "row 8", "row 9"):
        alone = lookahead(run, inrun.Utility(loss, parts[name])).values()
        np.testing.assert_allclose(table[name], alone["value"], rtol=1e-9, atol=1e-15)


def test_without_curvature_momentum_pays_out():
    """SGD with momentum: a gradient acts with rate * (1 - mu^n) / (1 - mu) after n steps."""
    train = training("mlp", lambda m: torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.5))
    run_ = recorded(train)
    found = lookahead(run_, utility(train), curvature=False, removal="drop").visits()
    *_, last = train.run({})
    gradients = torch.autograd.grad(judge(train, last), list(last.parameters()))
    for state, model in enumerate(train.run({}), start=1):
        if state < STEPS:
            (ids,) = train.batches[state]
            for i in ids:
                term = train.losses(model, train.fetch(ids))[ids.index(i)]
                share = torch.autograd.grad(term, list(model.parameters()))
                dot = sum(float((a * b).sum()) for a, b in zip(gradients, share, strict=True))
                factor = 0.1 * (1 - 0.5 ** (STEPS - state)) / 0.5
                rows = [
                    r["value"] for r in found.to_pylist()
                    if r["step"] == state + 1 and r["sample_id"] == i
                ]  # fmt: skip
                assert rows[0] == pytest.approx(factor * dot, rel=1e-9)


@pytest.mark.parametrize("removal", ["drop", "renormalise"])
@pytest.mark.parametrize("name", ["mlp", "gpt2-tied"])
def test_the_finite_push_is_exact_for_the_last_step(name, removal):
    """A utility linear in the weights, one step: taking the sample out really, clipped anew."""
    train = training(name, clip=0.3, steps=1)
    run_ = recorded(train)
    *_, model = train.run({})
    probe = [torch.randn_like(p) for p in model.parameters()]
    linear = lambda m: sum((a * p).sum() for a, p in zip(probe, m.parameters(), strict=True))  # noqa: E731
    flat = inrun.Utility(lambda m, batch: linear(m), (torch.zeros(2, 1),))
    ids = train.batches[0][0]
    finite = FinitePush(ids[1:], 40, chunk=2)
    how = Method(windows(None, 1), removal_named(removal), finite)
    result = looked_ahead(run_, flat, how)
    assert result.values()["sample_id"].to_pylist() == sorted(ids[1:])
    wanted = []
    for i in ids[1:]:
        *_, without = train.run({i: 0.0}, removal == "renormalise")
        with torch.no_grad():
            wanted.append(float(linear(without) - linear(model)))
    np.testing.assert_allclose(values_of(result, ids[1:]), wanted, rtol=1e-8)


def test_the_finite_push_is_the_tangent_for_a_small_share():
    """SGD is affine in the gradient: with a linear first step both pushes are the same number."""
    train = training("mlp", momentum)
    run_, judged = recorded(train), utility(train)
    tangent, finite = (
        lookahead(run_, judged, push=push).values()["value"].to_numpy()
        for push in ("tangent", "finite")
    )
    np.testing.assert_allclose(finite, tangent, rtol=1e-8)


def test_sgd_dynamics_are_the_optimizers_where_it_is_sgd():
    train = training("mlp", lambda m: torch.optim.SGD(m.parameters(), lr=0.1, weight_decay=0.1))
    run_, judged = recorded(train), utility(train)
    both = [
        looked_ahead(run_, judged, method(reading=reading)).values()["value"].to_numpy()
        for reading in (None, as_sgd)
    ]
    np.testing.assert_array_equal(*both)
    other = looked_ahead(recorded(training("mlp")), judged, method(reading=as_sgd))
    assert abs(values_of(other, [0])[0]) > 0


def test_token_weights_make_a_weighted_mean():
    train = training("mlp", momentum)
    counts = torch.arange(1.0, 1 + len(train.data[0])).double()
    plain_fetch = train.fetch
    train.fetch = lambda ids: (*plain_fetch(ids), counts[torch.as_tensor(ids)])

    def losses(model, batch):
        return train.terms(model, *batch[:2]) * batch[2] / batch[2].sum()

    def trained(weights):
        model, optimizer = train.start()
        for (ids,) in train.batches:
            w = torch.tensor([weights.get(i, 1.0) for i in ids], dtype=torch.float64)
            batch = train.fetch(ids)
            optimizer.zero_grad()
            terms = train.terms(model, *batch[:2]) * batch[2]
            ((w * terms).sum() / (w * batch[2]).sum()).backward()
            optimizer.step()
        with torch.no_grad():
            return float(judge(train, model))

    model, optimizer = train.start()
    recorder = inrun.record(model, optimizer, losses, train.fetch, weights=lambda batch: batch[2])
    for (ids,) in train.batches:
        with recorder.batch(ids):
            losses(model, train.fetch(ids)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    visits = lookahead(recorder.finish(), utility(train)).visits().to_pylist()
    for i in (0, 3, 7):
        scaled = 0.0
        for row in visits:
            if row["sample_id"] == i:
                ids = train.batches[row["step"] - 1][0]
                share = float(counts[i] / counts[torch.as_tensor(ids)].sum())
                scaled += row["value"] * (1 - share)
        slope = (trained({i: 1 + 1e-6}) - trained({i: 1 - 1e-6})) / 2e-6
        assert scaled == pytest.approx(-slope, rel=1e-5)


@pytest.mark.parametrize("relu", [nn.ReLU(), torch.relu, nn.ReLU(inplace=True)])
def test_a_kink_has_the_bell_for_a_second_derivative(relu):
    torch.manual_seed(0)
    z = torch.randn(7, 5, dtype=torch.float64, requires_grad=True)
    up, v = torch.randn_like(z), torch.randn_like(z)
    with smooth_kinks(0.3):
        out = relu(z + 0.0)
        (slope,) = torch.autograd.grad((up * out).sum(), z, create_graph=True)
        (curved,) = torch.autograd.grad((slope * v).sum(), z)
    h = 0.3 * z.detach().square().mean().sqrt()
    bell = torch.distributions.Normal(0.0, h).log_prob(z.detach()).exp()
    assert torch.equal(out, torch.relu(z))
    assert torch.equal(slope.detach(), up * (z > 0))
    torch.testing.assert_close(curved, up * v * bell)


@pytest.mark.parametrize(("name", "differs"), [("mlp", True), ("gpt2-tied", False)])
def test_kinks_matter_where_there_are_some(name, differs):
    train = training(name)
    run, judged = recorded(train), utility(train)
    plain, wide = (
        looked_ahead(run, judged, method(kink_width=width)).values()["value"].to_numpy()
        for width in (0.0, 0.3)
    )
    assert np.array_equal(plain, wide) != differs


def test_tracin_is_the_sum_of_dot_products_at_the_states():
    train = training("mlp", momentum)
    run, judged = recorded(train), utility(train)
    found = tracin(run, judged, states=2, removal="drop").visits().to_pylist()
    models = [train.start()[0], *map(copy.deepcopy, train.run({}))]
    for row in found:
        ids = train.batches[row["step"] - 1][0]
        wanted = 0.0
        for model in (models[0], models[STEPS - 1]):
            parameters = list(model.parameters())
            valid = torch.autograd.grad(judge(train, model), parameters)
            term = train.losses(model, train.fetch(ids))[ids.index(row["sample_id"])]
            share = torch.autograd.grad(term, parameters)
            wanted += 0.1 * sum(float((a * b).sum()) for a, b in zip(valid, share, strict=True))
        assert row["value"] == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize("how", [{}, {"clip": 0.3, "blocks": 2}], ids=["plain", "clipped"])
@pytest.mark.parametrize("optimizer", [adamw, groups, momentum])
def test_forward_and_backward_sweeps_are_each_others_transpose(optimizer, how):
    train = training("mlp", optimizer, **how)
    run, judged = recorded(train, budget=1), utility(train)
    signs = torch.randn(SAMPLES, 3, generator=torch.Generator().manual_seed(1)).double()
    delta = perturbation(run, lambda ids: signs[torch.as_tensor(ids)], removal_named("renormalise"))
    model = run.finished()
    named = dict(model.named_parameters())
    gradients = torch.autograd.grad(judge(train, model), list(named.values()))
    forward = sum(
        (delta[name] * g).flatten(1).sum(1) for name, g in zip(named, gradients, strict=True)
    )
    values = values_of(lookahead(run, judged), range(SAMPLES))
    np.testing.assert_allclose(forward, values @ signs.numpy(), rtol=1e-9)


class Linear(nn.Module):
    """A loss that is linear in the weights: gradients do not depend on them, moments still bend."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(12))

    def forward(self, x):
        return x @ self.weight


@pytest.mark.parametrize("blocks", [1, 2])
@pytest.mark.parametrize("removal", ["drop", "renormalise"])
@pytest.mark.parametrize("optimizer", [adamw, momentum, groups])
def test_carried_moments_are_exact_where_gradients_stay(optimizer, removal, blocks):
    if optimizer is groups:
        optimizer = lambda m: torch.optim.AdamW(m.parameters(), lr=3e-3, amsgrad=True)  # noqa: E731
    elif optimizer is momentum:
        optimizer = lambda m: torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9)  # noqa: E731
    train = training("mlp", optimizer, clip=0.3, blocks=blocks)
    train.batches = [list(torch.arange(SAMPLES).split(2 // blocks)[i : i + blocks])
                     for i in range(0, SAMPLES * blocks // 2, blocks)]  # fmt: skip
    train.batches = [[block.tolist() for block in blocks] for blocks in train.batches]
    train.build, train.terms = Linear, lambda model, x, _: model(x)
    train.data[0][:SAMPLES] *= torch.eye(SAMPLES)  # an element for each sample alone
    run, judged, ids = recorded(train), utility(train), range(SAMPLES)
    wanted = inrun.truth.retrain(run, judged, list(ids), removal=removal)["value"].to_numpy()
    how = {"push": "finite", "removal": removal}
    far, near, none = (
        values_of(lookahead(run, judged, **how, carry=carry), ids) for carry in (99, 1, 0)
    )
    np.testing.assert_allclose(far, wanted, rtol=1e-8, atol=1e-12)
    if isinstance(run.replica.optimizer, torch.optim.AdamW):
        assert np.abs(none - wanted).max() > 1.1 * np.abs(near - wanted).max() > 1e-5


def test_windows_carry_nothing_over_their_end():
    train = training("mlp")
    run, judged = recorded(train), utility(train)
    whole = lookahead(run, judged, 2, push="finite", carry=5).visits().to_pylist()
    short = lookahead(run, judged, 2, push="finite", carry=1).visits().to_pylist()
    assert whole == short
