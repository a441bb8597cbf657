"""The audit: its truth is the oracle's, training is undisturbed, causes are the real ones."""

import copy

import lion_pytorch
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from typer.testing import CliRunner

import inrun
from inrun.cli._main import app
from inrun.errors import InRunWarning, MisuseError, StoreError
from inrun.truth import median_interval
from tests.integration.runs import RUNS, Run
from tests.settings import flat

PLAYED = {name: {} for name in RUNS}
ALWAYS = {"seconds": 1e6, "steps": 1, "groups": 3}  # a check at each step


def loss_fn(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


def data(rows=80):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, 6, generator=generator).double()
    return x, (x[:, 0] > 0).long() + (x[:, 1] > 0).long()


def train(
    steps=12, *, audit=None, rate=1e-2, micro=1, samples=12, validation=None, targets=None,
    weights=None, build=None, loss=loss_fn, clip=None, kind=torch.optim.AdamW,
    train_loss=F.cross_entropy,
    **options,
):  # fmt: skip
    """(audit, model) after a short run."""
    torch.manual_seed(0)
    x, y = data()
    model = (build or (lambda: nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))))()
    model = model.double()
    optimizer = kind(model.parameters(), lr=rate)
    held_out = None if targets else validation or (x[40:], y[40:])
    attribution = inrun.attach(
        model,
        optimizer,
        inrun.Utility(loss, held_out, targets=targets, weights=weights),
        **flat(progress=False, **options),
    )
    found = attribution.audit(**audit) if audit else None
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        for _ in range(micro):
            ids = torch.randint(40, (samples,), generator=generator)
            with attribution.batch(ids.tolist()):
                (train_loss(model(x[ids]), y[ids]) / micro).backward()
        if clip:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        optimizer.zero_grad()
    attribution.detach()
    return found, model


@pytest.mark.parametrize("estimator", ["path", "path-given"])
@pytest.mark.parametrize("name", ["mlp", "cnn", "gpt2-tied"])
def test_truth_is_the_oracles(name, estimator):
    """With as many groups as samples the groups are the samples, in an order that was drawn."""
    game = {"path": "shared", "path-given": "given"}[estimator]
    run = Run(name, estimator, played=PLAYED[name])
    audit = run.attribution.audit(**ALWAYS | {"groups": 6})
    for step in range(3):
        values, truth = run.step(game)
        check = audit.table().to_pylist()[step]
        assert (check["game"], check["players"], check["step"]) == (game, 6, step + 1)
        np.testing.assert_allclose(sorted(check["truth"]), sorted(truth), rtol=1e-7, atol=1e-12)
        np.testing.assert_allclose(sorted(check["values"]), sorted(values), rtol=1e-7, atol=1e-12)
        assert check["pearson"] == pytest.approx(np.corrcoef(values, truth)[0, 1], abs=1e-6)


@pytest.mark.parametrize("micro", [1, 3])
def test_hold_and_stream_play_out_the_same_truth(micro):
    checks = [
        train(5, audit=ALWAYS, capture=capture, smoothed_steps=0, micro=micro,
              samples=4, clip=0.1)[0].table().to_pylist()
        for capture in ("hold", "stream")
    ]  # fmt: skip
    for held, streamed in zip(*checks, strict=True):
        assert held["samples"] == streamed["samples"] == 4 * micro
        np.testing.assert_allclose(held["truth"], streamed["truth"], rtol=1e-9)
        assert held["relative_error"] != streamed["relative_error"]


@pytest.mark.parametrize("capture", ["hold", "stream"])
def test_training_is_undisturbed(capture):
    def build():
        return nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.Linear(8, 3))

    plain = train(build=build, capture=capture)[1]
    audit, audited = train(build=build, capture=capture, audit=ALWAYS)
    assert audit.table().num_rows == 12
    for p, q in zip(plain.parameters(), audited.parameters(), strict=True):
        assert torch.equal(p, q)


def test_values_of_a_calm_run_are_found_right():
    audit, _ = train(40, audit=ALWAYS | {"groups": 4}, rate=1e-3)
    found = audit.report()
    assert found.checks == 40
    assert found.pearson.median > 0.999
    assert found.pearson.low <= found.pearson.median <= found.pearson.high
    assert found.relative_error.median < 0.05
    assert 0 <= found.ceiling.median <= 1
    assert not {c.name for c in found.causes} - {"First steps"}


def test_a_step_of_rate_0_leaves_its_check_to_the_next_one():
    def build(parameters, lr):
        optimizer = torch.optim.AdamW(parameters, lr=lr)
        optimizer.param_groups[0]["lr"] = 0.0
        optimizer.register_step_post_hook(lambda o, *_: o.param_groups[0].update(lr=lr))
        return optimizer

    audit, _ = train(4, audit=ALWAYS, kind=build)
    assert audit.table()["step"].to_pylist() == [2, 3, 4]


def causes(audit):
    return {cause.name: cause for cause in audit.report().causes}


def test_a_large_learning_rate_is_named():
    audit, _ = train(60, audit=ALWAYS, rate=3.0, smoothed_steps=0)
    assert "Large learning rate" in causes(audit)
    assert "Large learning rate" not in causes(train(60, audit=ALWAYS, rate=1e-3)[0])


def test_the_first_steps_are_named():
    audit, _ = train(20, audit=ALWAYS, rate=3e-2, smoothed_steps=0)
    assert "first 10 steps" in causes(audit)["First steps"].evidence
    assert "First steps" not in causes(train(20, audit=ALWAYS, rate=1e-3)[0])


def test_signs_are_named_where_they_are_not_smoothed():
    audit, _ = train(20, audit=ALWAYS, rate=1e-3, smoothed_steps=0, kind=lion_pytorch.Lion)
    assert "Lion" in causes(audit)["Signs"].evidence
    assert "Signs" not in causes(train(20, audit=ALWAYS, rate=1e-3, kind=lion_pytorch.Lion)[0])


def test_an_estimator_that_does_not_follow_the_optimizer_is_named():
    audit, _ = train(20, audit=ALWAYS, rate=1e-3, estimator="sgd")
    assert "sgd follows" in causes(audit)["Estimator"].evidence


def test_a_forecast_of_stream_that_fails_is_named():
    audit, _ = train(20, audit=ALWAYS, rate=1e-3, capture="stream", samples=4, clip=0.05)
    assert "Clipping under stream" in causes(audit)


def test_a_tiny_validation_batch_is_named():
    x, y = data()
    audit, _ = train(20, audit=ALWAYS, validation=(x[40:44], y[40:44]))
    assert "has 4 rows" in causes(audit)["Small validation batch"].evidence


def test_a_validation_loss_that_is_not_repeatable_is_named():
    generator = torch.Generator().manual_seed(7)

    def noisy(model, batch):
        return loss_fn(model, batch) * (1 + 1e-2 * torch.rand((), generator=generator).double())

    audit, _ = train(20, audit=ALWAYS, loss=noisy, self_test=False)
    assert "Validation loss that is not repeatable" in causes(audit)


@pytest.mark.filterwarnings("ignore:validation_every")
@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"validation_parts": 4}, "Parts of the rows"),
        ({"validation_every": 5, "rate": 3e-2}, "Older gradients"),
        ({"kind": torch.optim.Rprop, "rate": 1e-2, "smoothed_steps": 0}, "Signs"),
        ({"loss": lambda m, batch: -loss_fn(m, batch)}, "Training against what judges"),
    ],
)
def test_settings_and_losses_that_spoil_values_are_named(changes, name):
    found = causes(train(20, audit=ALWAYS, **{"rate": 1e-3} | changes)[0])
    assert name in found
    assert not {"First steps", "Cause unknown", "Owners"} & set(found)


@pytest.mark.filterwarnings("ignore:A sample alone")
def test_numbers_that_numpy_draws_are_named_and_nothing_else():
    rng = np.random.default_rng(0)

    class Dropped(nn.Module):
        def forward(self, h):
            return h * torch.from_numpy((rng.random(h.shape) > 0.3) / 0.7)

    def build():
        return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), Dropped(), nn.Linear(8, 3))

    four = ALWAYS | {"groups": 4}
    audit, _ = train(12, audit=four, build=build, rate=1e-3, self_test=False)
    assert set(causes(audit)) <= {"Validation loss that is not repeatable", "Validation labels"}
    assert "numpy" in causes(audit)["Validation loss that is not repeatable"].evidence


def test_own_labels_are_compared_with_shuffled_ones():
    x, y = data()
    right = train(60, audit=ALWAYS, rate=3e-2)[0].report()
    wrong = train(60, audit=ALWAYS, rate=3e-2, validation=(x[40:], y[40:].roll(1)))[0].report()
    assert right.label_gain > 0.6 > 0.3 > wrong.label_gain
    by_class = {str(k): (x[40:][y[40:] == k], y[40:][y[40:] == k]) for k in range(3)}
    several = train(60, audit=ALWAYS, rate=3e-2, targets=by_class)[0]
    assert several.report().label_gain > 0.6
    assert several.table()["validation_classes"].to_pylist()[0] == 3
    assert "shuffled labels" in str(right)


@pytest.mark.parametrize("loss", ["cross-entropy", "smoothed", "ignored", "squared"])
def test_classes_that_no_validation_row_has_are_named(loss):
    """Training rows' labels show in the gradient of their logits; not where none are meant."""
    x, y = data()
    rows = 40 + (y[40:] < 2).nonzero().flatten()
    train_loss = {
        "cross-entropy": F.cross_entropy,
        "smoothed": lambda z, y: F.cross_entropy(z, y, label_smoothing=0.1),
        "ignored": lambda z, y: F.cross_entropy(z, y, ignore_index=0),
        "squared": lambda z, y: F.mse_loss(z, F.one_hot(y, 3).double()),
    }[loss]
    for judges in ((x[40:], y[40:]), (x[rows], y[rows])):
        audit, _ = train(3, audit=ALWAYS, validation=judges, train_loss=train_loss)
        share = audit.table()["unjudged"].to_pylist()
        if loss == "squared":
            assert share == [None] * 3
        elif len(judges[0]) == 40:
            assert share == [0.0] * 3
            assert "Classes without validation rows" not in causes(audit)
        else:
            drawn = torch.Generator().manual_seed(1)
            ids = [torch.randint(40, (12,), generator=drawn) for _ in range(3)]
            known = [y[i][y[i] > 0] if loss == "ignored" else y[i] for i in ids]
            assert share == pytest.approx([float((k == 2).double().mean()) for k in known])
            assert "2 classes judge" in causes(audit)["Classes without validation rows"].evidence


@pytest.mark.filterwarnings("ignore:Samples interact")
def test_uncovered_layers_are_named_and_act_in_every_coalition():
    class Own(nn.Module):
        """A matrix that meets the mean of the batch, which is no sample's."""

        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(3, 3).double() * 0.3)

        def forward(self, x):
            return x + x.mean(0) @ self.weight

    with pytest.warns(InRunWarning, match="not captured"):
        audit, _ = train(15, audit=ALWAYS, build=lambda: nn.Sequential(nn.Linear(6, 3), Own()))
    assert "squared update" in causes(audit)["Uncovered layers"].evidence
    assert audit.report().pearson.median > 0.99  # the captured samples' game is still right
    assert "not checked" in audit.report().owners


def test_half_precision_is_noticed():
    torch.manual_seed(0)
    x, y = data()
    x = x.bfloat16()
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).bfloat16()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    attribution = inrun.attach(
        model,
        optimizer,
        inrun.Utility(loss_fn, (x[40:], y[40:])),
        options=inrun.Options(progress=False),
    )
    audit = attribution.audit(**ALWAYS)
    for _ in range(15):
        with attribution.batch(range(8)):
            loss_fn(model, (x[:8], y[:8])).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert all(audit.table()["low_precision"].to_pylist())
    assert "Low precision" in causes(audit)


def test_a_loss_that_is_not_the_models_ends_the_audit_and_nothing_else():
    x, y = data()
    models = []

    def build():
        models.append(nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)))
        return models[-1]

    with pytest.warns(InRunWarning, match=r"The audit ended.*model that it is given"):
        audit, _ = train(
            4, audit=ALWAYS, build=build, loss=lambda _, batch: loss_fn(models[-1], batch),
            self_test=False,
        )  # fmt: skip
    assert audit.table().num_rows == 0
    with pytest.raises(MisuseError, match=r"ended before a step was checked.*passes copies"):
        audit.report()


def test_too_few_samples_a_step_end_the_audit_and_nothing_else():
    with pytest.warns(InRunWarning, match="a step of 2 samples has no order"):
        train(3, audit=ALWAYS, samples=2)


def test_a_loss_that_takes_whole_batches_only_has_no_ceiling():
    def whole(model, batch):
        assert len(batch[0]) == 40
        return loss_fn(model, batch)

    audit, _ = train(5, audit=ALWAYS, loss=whole, self_test=False)
    assert audit.report().ceiling is None
    assert "cannot be halved" in str(audit.report())


def test_targets_are_judged_by_their_weighted_sum():
    x, y = data()
    halves = {"a": (x[40:60], y[40:60]), "b": (x[60:], y[60:])}
    together, _ = train(4, audit=ALWAYS, smoothed_steps=0)
    apart, _ = train(4, audit=ALWAYS, targets=halves, smoothed_steps=0)
    weights = {"a": 0.5, "b": 0.5, "beside": 0.0}
    more, _ = train(
        4, audit=ALWAYS, targets=halves | {"beside": halves["a"]}, weights=weights, smoothed_steps=0
    )
    for other in (apart, more):
        for one, two in zip(together.table().to_pylist(), other.table().to_pylist(), strict=True):
            np.testing.assert_allclose(one["truth"], two["truth"], rtol=1e-9)
            np.testing.assert_allclose(one["values"], two["values"], rtol=1e-9)
            assert one["validation_rows"] == two["validation_rows"] == 40


@pytest.mark.parametrize(
    "wrong", [{"seconds": 0, "steps": 3}, {"seconds": 1, "steps": 0},
              {"seconds": 1, "steps": 3, "groups": 2}, {"seconds": 1, "steps": 3, "groups": 20}],
)  # fmt: skip
def test_numbers_out_of_range_are_refused(wrong):
    with pytest.raises(MisuseError):
        train(1, audit=wrong)


def test_the_command_prints_what_the_run_stored(tmp_path):
    audit, _ = train(8, audit=ALWAYS, store=tmp_path / "run")
    assert inrun.load(tmp_path / "run").audit().equals(audit.table())
    printed = CliRunner().invoke(app, ["audit", str(tmp_path / "run")]).stdout
    assert str(audit.report()).splitlines()[1] in printed
    assert printed.count("path-smoothed") == 8


def test_a_run_without_an_audit_says_how_to_get_one(tmp_path):
    train(2, store=tmp_path / "run")
    with pytest.raises(StoreError, match=r"attribution\.audit\(seconds"):
        inrun.load(tmp_path / "run").audit()


@pytest.mark.parametrize("first", ["audit", "state"])
def test_an_audit_goes_on_after_a_restart(first):
    """Checks, draws and the time that is spent are those of a run that never stopped."""
    x, y = data()
    utility = inrun.Utility(loss_fn, (x[40:], y[40:]))

    def begun(state=None):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        if state is not None:
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
        attribution = inrun.attach(model, optimizer, utility, options=inrun.Options(progress=False))
        audit = attribution.audit(**ALWAYS) if state is None or first == "audit" else None
        if state is not None:
            attribution.load_state_dict(state["inrun"])
        return model, optimizer, attribution, audit or attribution.audit(**ALWAYS)

    def trained(parts, steps):
        model, optimizer, attribution, audit = parts
        for step in steps:
            ids = torch.arange(8) + 4 * step
            with attribution.batch(ids):
                loss_fn(model, (x[ids], y[ids])).backward()
            optimizer.step()
            optimizer.zero_grad()
        parts = {"model": model, "optimizer": optimizer, "inrun": attribution}
        state = copy.deepcopy({name: part.state_dict() for name, part in parts.items()})
        attribution.detach()
        return audit.table(), state

    whole, _ = trained(begun(), range(6))
    before, state = trained(begun(), range(3))
    after, _ = trained(begun(state), range(3, 6))
    timed = ["seconds"]
    assert (before.num_rows, after.num_rows) == (3, 6)
    assert after["seconds"].to_pylist()[:3] == before["seconds"].to_pylist()
    assert after.drop_columns(timed).equals(whole.drop_columns(timed))


def test_the_interval_of_a_median_holds_it_and_five_numbers_make_none():
    rng = np.random.default_rng(0)
    for n, best in ((6, 0.97), (7, 0.985), (9, 0.962), (30, 0.958)):
        found = [median_interval(np.exp(rng.normal(size=n))) for _ in range(2000)]
        covered = np.mean([low <= 1 <= high for low, high in found])
        assert covered == pytest.approx(best, abs=0.015)
    assert np.isnan(median_interval(rng.normal(size=5))).all()
