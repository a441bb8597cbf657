"""Steps as people really write them: the same numbers however the loop is written."""

import gc
import warnings

import numpy as np
import pyarrow as pa
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import inrun
from inrun.directions import ESTIMATORS
from inrun.errors import InRunWarning, InvariantError, MisuseError
from tests.settings import flat

B = 8


def setting(dtype=torch.float64):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(9, 6, padding_idx=0), nn.Flatten(), nn.Linear(30, 4))
    model = model.to(dtype)
    x, y = torch.randint(9, (60, 5)), torch.randint(4, (60,))
    return model, x, y


def mean_loss(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


class Loop:
    """Three AdamW steps on fixed batches; `steps` gives the way each is written."""

    def __init__(self, estimator="path", capture="hold", optimizer=None, **options):
        self.model, self.x, self.y = setting()
        make = optimizer or (lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1))
        self.optimizer = make(self.model.parameters())
        utility = inrun.Utility(mean_loss, (self.x[40:], self.y[40:]))
        self.attribution = inrun.attach(
            self.model,
            self.optimizer,
            utility,
            estimator=estimator,
            **flat(capture=capture, progress=False, **options),
        )

    def block(self, rows, share=1.0):
        with self.attribution.batch(rows):
            (mean_loss(self.model, (self.x[rows], self.y[rows])) * share).backward()

    def run(self, one_step, steps=3):
        for step in range(steps):
            one_step(self, list(range(step * B, (step + 1) * B)))
            self.optimizer.step()
            self.optimizer.zero_grad()
        return self.attribution.values()["value"].to_numpy()


def whole(loop, rows):
    loop.block(rows)


def accumulated(loop, rows):
    for part in (rows[:2], rows[2:5], rows[5:]):
        loop.block(part, len(part) / len(rows))


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_accumulation_is_one_larger_batch(estimator):
    np.testing.assert_allclose(
        Loop(estimator).run(accumulated), Loop(estimator).run(whole), rtol=1e-8, atol=1e-14
    )


@pytest.mark.parametrize("capture", ["hold", "stream"])
@pytest.mark.parametrize("estimator", ["sgd", "linearized"])
def test_directions_that_do_not_look_at_the_gradient_stream_exactly(estimator, capture):
    def clipped(loop, rows):
        accumulated(loop, rows)
        nn.utils.clip_grad_norm_(loop.model.parameters(), 0.1)

    np.testing.assert_allclose(
        Loop(estimator, capture).run(clipped), Loop(estimator).run(clipped), rtol=1e-7, atol=1e-14
    )


def test_clipping_by_norm_scales_sgd_values_by_the_clip_coefficient():
    def sgd(parameters):
        return torch.optim.SGD(parameters, lr=1e-3)

    norms = []

    def clipped(loop, rows):
        loop.block(rows)
        norms.append(float(nn.utils.clip_grad_norm_(loop.model.parameters(), 0.05)))

    plain = Loop("sgd", optimizer=sgd).run(whole, steps=1)
    found = Loop("sgd", optimizer=sgd).run(clipped, steps=1)
    np.testing.assert_allclose(found, plain * 0.05 / (norms[0] + 1e-6), rtol=1e-6)


def test_clipping_by_value_is_part_of_the_update_rule():
    """Samples share what the clipped update did: the books still close."""

    def clipped(loop, rows):
        loop.block(rows)
        nn.utils.clip_grad_value_(loop.model.parameters(), 1e-2)

    loop = Loop(smoothed_steps=0)
    loop.run(clipped)
    ledger = loop.attribution.ledger()
    entries = np.abs(ledger["samples"].to_numpy()) + np.abs(ledger["momentum"].to_numpy())
    assert (np.abs(ledger["residual"].to_numpy()) < 0.1 * entries).all()
    with pytest.raises(MisuseError, match="capture='stream'"):
        Loop(capture="stream").run(clipped)


def test_the_past_is_not_scored_twice_when_gradients_are_zeroed_between_blocks():
    def restarted(loop, rows):
        loop.block([r + 20 for r in rows])  # given up, for instance for a NaN
        loop.optimizer.zero_grad()
        loop.block(rows)

    np.testing.assert_allclose(Loop().run(restarted), Loop().run(whole), rtol=1e-12)


def test_a_sum_loss_and_a_padded_token_mean_have_the_right_shares():
    """Whatever the reduction: one more direction check, by finite removal of a row's term."""
    model, x, _ = setting()
    mask = (x != 0).double()

    def token_mean(m, batch):
        hidden = m[0](batch[0]).sin().sum(-1)
        return (hidden * batch[1]).sum() / batch[1].sum()

    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    utility = inrun.Utility(token_mean, (x[40:], mask[40:]))
    attribution = inrun.attach(
        model, optimizer, utility, estimator="sgd", options=inrun.Options(progress=False)
    )
    (validation,) = torch.autograd.grad(token_mean(model, (x[40:], mask[40:])), model[0].weight)
    with attribution.batch(range(5)):
        token_mean(model, (x[:5], mask[:5])).backward()
    expected = []
    for i in range(5):
        term = (model[0](x[[i]]).sin().sum(-1) * mask[[i]]).sum() / mask[:5].sum()
        (gradient,) = torch.autograd.grad(term, model[0].weight)
        expected.append(1e-3 * float((gradient * validation).sum()))
    optimizer.step()
    np.testing.assert_allclose(attribution.values()["value"].to_numpy(), expected, rtol=1e-9)


def test_paused_steps_are_trained_and_not_scored():
    loop = Loop()
    loop.run(whole, steps=1)
    with loop.attribution.paused():
        with loop.attribution.batch(range(3)):
            mean_loss(loop.model, (loop.x[:3], loop.y[:3])).backward()
        loop.optimizer.step()
        loop.optimizer.zero_grad()
    loop.block(list(range(20, 28)))
    loop.optimizer.step()
    ledger = loop.attribution.ledger()
    assert ledger.num_rows == 2
    assert ledger["opening_loss"][1].as_py() != ledger["closing_loss"][0].as_py()
    assert loop.attribution.values()["visits"].to_pylist() == [1] * 16


def test_a_step_without_a_block_is_named_and_not_scored():
    loop = Loop()
    mean_loss(loop.model, (loop.x[:3], loop.y[:3])).backward()
    with pytest.warns(InRunWarning, match="without an attribution.batch"):
        loop.optimizer.step()
    assert loop.attribution.ledger().num_rows == 0


def test_the_books_telescope():
    loop = Loop()
    loop.run(whole)
    ledger = loop.attribution.ledger()
    assert ledger["opening_loss"][1:].to_pylist() == ledger["closing_loss"][:-1].to_pylist()
    samples = ledger["samples"].to_numpy().sum()
    np.testing.assert_allclose(samples, loop.attribution.values()["value"].to_numpy().sum())


def test_several_targets_add_up_to_the_total():
    model, x, y = setting()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    targets = {"a": (x[40:50], y[40:50]), "b": (x[50:], y[50:])}
    weights = {"a": 1.0, "b": 3.0}
    utility = inrun.Utility(mean_loss, targets=targets, weights=weights)
    attribution = inrun.attach(model, optimizer, utility, options=inrun.Options(progress=False))
    for step in range(3):
        rows = list(range(step * B, step * B + B))
        with attribution.batch(rows):
            mean_loss(model, (x[rows], y[rows])).backward()
        optimizer.step()
        optimizer.zero_grad()
    values = attribution.values()
    np.testing.assert_allclose(
        values["value"].to_numpy(),
        0.25 * values["a"].to_numpy() + 0.75 * values["b"].to_numpy(), rtol=1e-9,
    )  # fmt: skip
    a, b = attribution.ledger("a"), attribution.ledger("b")
    total = attribution.ledger()["samples"].to_numpy()
    np.testing.assert_allclose(
        total, 0.25 * a["samples"].to_numpy() + 0.75 * b["samples"].to_numpy(), rtol=1e-9
    )
    with pytest.raises(MisuseError, match="'c'"):
        attribution.ledger("c")


def test_targets_are_each_what_they_would_be_alone():
    def values(utility):
        model, x, y = setting()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        attribution = inrun.attach(
            model, optimizer, utility(x, y), options=inrun.Options(progress=False)
        )
        for step in range(7):
            rows = list(range(step, step + B))
            with attribution.batch(rows):
                mean_loss(model, (x[rows], y[rows])).backward()
            optimizer.step()
            optimizer.zero_grad()
        return attribution.values()

    both = values(
        lambda x, y: inrun.Utility(
            mean_loss, targets={"a": (x[40:50], y[40:50]), "b": (x[50:], y[50:])}
        )
    )
    alone = values(lambda x, y: inrun.Utility(mean_loss, (x[50:], y[50:])))
    np.testing.assert_allclose(both["b"].to_numpy(), alone["value"].to_numpy(), rtol=1e-8)


def test_ids_may_be_strings_repeat_and_come_several_times_in_a_batch():
    def with_ids(ids):
        model, x, y = setting()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        attribution = inrun.attach(
            model,
            optimizer,
            inrun.Utility(mean_loss, (x[40:], y[40:])),
            options=inrun.Options(progress=False),
        )
        for _ in range(2):
            with attribution.batch(ids):
                mean_loss(model, (x[:4], y[:4])).backward()
            optimizer.step()
            optimizer.zero_grad()
        return attribution.values()

    plain = with_ids([0, 1, 2, 3])
    named = with_ids(["a", "b", "a", "c"])
    assert named.schema.field("sample_id").type == pa.string()
    assert named["visits"].to_pylist() == [4, 2, 2]
    v = plain["value"].to_numpy()
    np.testing.assert_allclose(named["value"].to_numpy(), [v[0] + v[2], v[1], v[3]])
    assert plain["first_step"].to_pylist() == [1] * 4
    assert plain["last_step"].to_pylist() == [2] * 4
    assert with_ids(torch.arange(4)).equals(plain)


def test_parameters_may_be_frozen_thawed_and_added():
    model, x, y = setting()
    head = nn.Linear(4, 4).double()
    full = nn.Sequential(model, head)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    utility = inrun.Utility(mean_loss, (x[40:], y[40:]))
    attribution = inrun.attach(full, optimizer, utility, options=inrun.Options(progress=False))

    def step():
        with attribution.batch(range(4)):
            mean_loss(full, (x[:4], y[:4])).backward()
        optimizer.step()
        full.zero_grad()

    def status():
        table = attribution.coverage()
        return dict(zip(table["parameter"].to_pylist(), table["status"].to_pylist(), strict=True))

    step()
    assert status()["1.weight"] == "not trained"
    optimizer.add_param_group({"params": list(head.parameters()), "lr": 1e-3})
    step()
    assert status()["1.weight"] == "captured"
    model[2].requires_grad_(False)
    step()
    assert status()["0.2.weight"] == "not trained"
    shares = attribution.ledger()
    assert shares.num_rows == 3


def test_a_scheduler_and_a_smaller_last_batch():
    model, x, y = setting()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 0.1, total_iters=5)
    utility = inrun.Utility(mean_loss, (x[40:], y[40:]))
    attribution = inrun.attach(model, optimizer, utility, options=inrun.Options(progress=False))
    for rows in torch.arange(35).split(8):
        with attribution.batch(rows):
            mean_loss(model, (x[rows], y[rows])).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)
        schedule.step()
    assert attribution.values().num_rows == 35
    assert attribution.ledger()["visits"].to_pylist() == [8, 8, 8, 8, 3]


def test_gradient_from_outside_a_block_is_an_error_that_names_the_parameter():
    loop = Loop()
    mean_loss(loop.model, (loop.x[:3], loop.y[:3])).backward()
    with pytest.raises(InvariantError, match=r"\d\.(weight|bias) do not sum to its gradient"):
        loop.block([4, 5, 6])


def test_what_is_not_captured_is_warned_of_and_in_the_coverage():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.scale = nn.Linear(3, 2), nn.Parameter(torch.ones(2))

        def forward(self, x):
            return torch.vmap(lambda row: row * self.scale)(self.inner(x))

    model = Model()
    x, y = torch.randn(8, 3), torch.randint(2, (8,))
    optimizer = torch.optim.AdamW(model.parameters())
    attribution = inrun.attach(
        model, optimizer, inrun.Utility(mean_loss, (x, y)), options=inrun.Options(progress=False)
    )
    with pytest.warns(InRunWarning, match="scale first: it is used inside torch.vmap"):
        with attribution.batch(range(8)):
            mean_loss(model, (x, y)).backward()
        optimizer.step()
    table = attribution.coverage().to_pylist()
    assert {r["parameter"]: r["status"] for r in table}["scale"] == "not captured"
    assert 0 < attribution.covered < 1


def test_float32_and_float64_agree():
    results = []
    for dtype in (torch.float32, torch.float64):
        model, x, y = setting(dtype)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        attribution = inrun.attach(
            model,
            optimizer,
            inrun.Utility(mean_loss, (x[40:], y[40:])),
            options=inrun.Options(progress=False),
        )
        for _ in range(4):
            with attribution.batch(range(8)):
                mean_loss(model, (x[:8], y[:8])).backward()
            optimizer.step()
            optimizer.zero_grad()
        results.append(attribution.values()["value"].to_numpy())
    np.testing.assert_allclose(results[0], results[1], rtol=1e-2)


def test_nothing_warns_in_an_ordinary_loop():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Loop().run(whole)


def test_a_run_that_nobody_detached_is_stored_when_it_goes_out_of_use(tmp_path):
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    optimizer = torch.optim.AdamW(model.parameters())
    x, y = torch.randn(20, 4), torch.randint(3, (20,))
    mean = lambda m, b: nn.functional.cross_entropy(m(b[0]), b[1])  # noqa: E731
    attribution = inrun.attach(
        model,
        optimizer,
        inrun.Utility(mean, (x[10:], y[10:])),
        store=tmp_path / "run",
        options=inrun.Options(progress=False),
    )
    with attribution.batch(range(10)):
        mean(model, (x[:10], y[:10])).backward()
    optimizer.step()
    values = attribution.values()["value"].to_pylist()
    del attribution
    gc.collect()
    assert inrun.load(tmp_path / "run").values()["value"].to_pylist() == values
