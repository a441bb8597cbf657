"""Values per token: they are what each loss term's own gradient gives, and add up."""

import gc

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch import nn

import inrun
from inrun.errors import InvariantError, MisuseError
from tests.settings import flat

ROWS, LENGTH, WORDS = 4, 6, 11


class Model(nn.Module):
    def __init__(self, dropout=0.0):
        super().__init__()
        self.embed = nn.Embedding(WORDS, 8)
        self.norm, self.drop = nn.LayerNorm(8), nn.Dropout(dropout)
        self.head = nn.Linear(8, WORDS)

    def forward(self, ids):
        x = self.embed(ids)
        x = x + torch.tanh(self.drop(self.norm(x.cumsum(1))))
        return self.head(x)


def terms(model, ids):
    logits = model(ids)[:, :-1]
    found = nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
    return nn.functional.pad(found, (1, 0)) / found.numel()


def loss_fn(model, ids):
    return terms(model, ids).sum()


@pytest.fixture
def run():
    def make(dropout=0.0, store=None, losses=terms, **how):
        torch.manual_seed(0)
        model = Model(dropout).double()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        data = torch.randint(WORDS, (24, LENGTH))
        utility = inrun.Utility(loss_fn, targets={"a": data[12:18], "b": data[18:]})
        how = {"contraction": "dense", "smoothed_steps": 0} | how
        attribution = inrun.attach(
            model, optimizer, utility, store=store, **flat(progress=False, **how)
        )
        return model, optimizer, data, attribution, attribution.per_token(losses, store)

    return make


def step(model, optimizer, data, attribution, tokens, rows=range(ROWS), share=1.0):
    words = [[str(w) for w in row] for row in data[list(rows)].tolist()]
    with attribution.batch(rows), tokens.batch(rows, data[list(rows)], words, share):
        (loss_fn(model, data[list(rows)]) * share).backward()


def by_gradients(model, data, direction):
    """The oracle: the gradient of each term on its own, through plain autograd."""
    found = terms(model, data)
    values = torch.zeros_like(found)
    for b in range(len(found)):
        for t in range(LENGTH):
            gradients = torch.autograd.grad(
                found[b, t], list(model.parameters()), retain_graph=True, allow_unused=True
            )
            values[b, t] = sum(
                (g * direction[name]).sum()
                for (name, _), g in zip(model.named_parameters(), gradients, strict=True)
                if g is not None and name in direction
            )
    return values.detach().numpy()


def test_each_token_has_what_its_own_gradient_gives(run, monkeypatch):
    model, optimizer, data, attribution, tokens = run()
    step(model, optimizer, data, attribution, tokens)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    kept, plain = {}, type(tokens).direction

    def direction(self, name, directions_K):
        plain(self, name, directions_K)
        kept[name] = self._directions[name]

    monkeypatch.setattr(type(tokens), "direction", direction)
    optimizer.step()
    attribution.detach()
    twin = Model().double()
    twin.load_state_dict(before)
    expected = by_gradients(twin, data[:ROWS], kept)
    found = np.array([row["values"] for row in tokens.latest])
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-15)
    assert np.abs(found).max() > 0


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_tokens_add_up_to_the_sample_over_passes(run, dropout):
    model, optimizer, data, attribution, tokens = run(dropout)
    total = np.zeros(6)
    for _ in range(3):
        for rows in (range(3), range(3, 6)):
            step(model, optimizer, data, attribution, tokens, rows, share=0.5)
        optimizer.step()
        optimizer.zero_grad()
        total += [sum(row["values"]) for row in tokens.latest]
    attribution.detach()
    values = attribution.values()["value"].to_numpy()
    np.testing.assert_allclose(total, values, rtol=1e-9)


def test_training_is_not_changed(run):
    model, optimizer, data, attribution, tokens = run(0.3)
    torch.manual_seed(5)
    step(model, optimizer, data, attribution, tokens)
    optimizer.step()
    after, drawn = model.head.weight.detach().clone(), torch.rand(1)
    attribution.detach()
    torch.manual_seed(0)
    plain = Model(0.3).double()
    other = torch.optim.AdamW(plain.parameters(), lr=1e-2)
    torch.manual_seed(5)
    loss_fn(plain, data[:ROWS]).backward()
    other.step()
    assert torch.equal(plain.head.weight, after)
    assert torch.equal(torch.rand(1), drawn)


def test_tokens_keep_no_attribution_alive(run):
    model, optimizer, data, attribution, tokens = run()
    step(model, optimizer, data, attribution, tokens)
    optimizer.step()
    del attribution, tokens
    gc.collect()
    assert not optimizer._optimizer_step_pre_hooks


def test_tokens_are_stored_beside_the_values(run, tmp_path):
    model, optimizer, data, attribution, tokens = run(store=tmp_path / "run")
    for _ in range(2):
        step(model, optimizer, data, attribution, tokens)
        optimizer.step()
        optimizer.zero_grad()
    tokens.flush()
    attribution.detach()
    table = pq.read_table(tmp_path / "run" / "tokens")
    assert table.num_rows == 2 * ROWS
    assert set(table["step"].to_pylist()) == {1, 2}
    visits = inrun.load(tmp_path / "run").visits()
    found = {(row["step"], row["sample_id"]): sum(row["values"]) for row in table.to_pylist()}
    for row in visits.to_pylist():
        assert found[row["step"], row["sample_id"]] == pytest.approx(row["value"], rel=1e-9)


@pytest.mark.parametrize("how", ["zeroed", "paused"])
def test_passes_that_came_to_nothing_leave_no_trace(run, how):
    model, optimizer, data, attribution, tokens = run()
    if how == "zeroed":
        step(model, optimizer, data, attribution, tokens, range(3))
        optimizer.zero_grad()
    else:
        with attribution.paused():
            step(model, optimizer, data, attribution, tokens, range(3))
            optimizer.step()
        optimizer.zero_grad()
    step(model, optimizer, data, attribution, tokens)
    optimizer.step()
    attribution.detach()
    values = dict(zip(*attribution.values().select(["sample_id", "value"]).to_pydict().values(),
                      strict=True))  # fmt: skip
    for row in tokens.latest:
        assert sum(row["values"]) == pytest.approx(values[row["sample_id"]], rel=1e-9)
    assert len(tokens.latest) == ROWS


def test_terms_of_another_loss_are_refused(run):
    model, optimizer, data, attribution, tokens = run(losses=lambda m, ids: 2 * terms(m, ids))
    step(model, optimizer, data, attribution, tokens)
    with pytest.raises(InvariantError, match="add up"):
        optimizer.step()


def test_a_pass_that_was_not_wrapped_is_refused(run):
    model, optimizer, data, attribution, _ = run()
    with attribution.batch(range(ROWS)):
        loss_fn(model, data[:ROWS]).backward()
    with pytest.raises(MisuseError, match=r"tokens\.batch"):
        optimizer.step()


@pytest.mark.parametrize(
    "how", [{"smoothed_steps": 10}, {"contraction": "auto"}, {"capture": "stream"}]
)
def test_values_that_are_no_single_product_are_refused(run, how):
    with pytest.raises(MisuseError, match="hold"):
        run(**how)


@pytest.mark.parametrize("how", ["rows", "slots"])
def test_rows_of_one_sample_and_rows_of_several_give_the_samples_their_tokens(run, how):
    """The same step with one id per row, and with two samples laid over the four rows."""
    model, optimizer, data, attribution, tokens = run()
    step(model, optimizer, data, attribution, tokens)
    optimizer.step()
    apart = [row["values"] for row in tokens.latest]

    model, optimizer, data, attribution, tokens = run()
    batch, rows = data[:ROWS], torch.tensor([0, 1, 0, 1])
    given = {how: rows if how == "rows" else rows[:, None].expand(ROWS, LENGTH)}
    words = [[str(k) for k in range(2 * LENGTH)]] * 2
    with attribution.batch([7, 8], **given), tokens.batch([7, 8], batch, words, **given):
        loss_fn(model, batch).backward()
    optimizer.step()
    found = {row["sample_id"]: row["values"] for row in tokens.latest}
    np.testing.assert_allclose(found[7], apart[0] + apart[2], rtol=1e-9)
    np.testing.assert_allclose(found[8], apart[1] + apart[3], rtol=1e-9)
    assert attribution.values()["value"].to_pylist() == pytest.approx(
        [sum(found[7]), sum(found[8])], rel=1e-6
    )


def test_places_that_do_not_fit_the_terms_are_refused(run):
    model, optimizer, data, attribution, tokens = run()
    batch = data[:ROWS]
    with attribution.batch([7, 8], rows=[0, 1, 0, 1]):
        with tokens.batch([7, 8], batch, [["a"]] * 2, rows=[0, 1]):
            loss_fn(model, batch).backward()
    with pytest.raises(MisuseError, match="one place per row, or per term"):
        optimizer.step()
    attribution.detach()


def test_places_for_each_of_several_tensors_are_refused(run):
    _, _, data, attribution, tokens = run()
    batch = data[:ROWS]
    with pytest.raises(MisuseError, match="mapping of tensors"):
        with tokens.batch(range(ROWS), batch, [["a"]] * ROWS, rows={batch: range(ROWS)}):
            pass
    attribution.detach()
