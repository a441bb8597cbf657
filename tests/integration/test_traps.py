"""Loops in which a careless attribution would be silently wrong: right, or said."""

import gc

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

import inrun
from inrun.errors import InRunWarning, InvariantError, MisuseError, ReplaceLayerError
from inrun.ledger import residual_shares
from tests.oracles.cases import HiddenScale
from tests.settings import flat


def loss_fn(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


def data(*shape, classes=3, samples=12):
    torch.manual_seed(1)
    return torch.randn(samples, *shape), torch.randint(classes, (samples,))


def attach(model, batch, optimizer=None, loss=loss_fn, **options):
    optimizer = optimizer or torch.optim.AdamW(model.parameters(), lr=1e-2)
    utility = options.pop("utility", None) or inrun.Utility(loss, batch)
    return optimizer, inrun.attach(model, optimizer, utility, **flat(progress=False, **options))


def gradient_values(model, terms, validation_loss, samples, lr=1e-2):
    """First-order values of plain SGD, one sample at a time through autograd."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    direction = torch.autograd.grad(validation_loss(), parameters, allow_unused=True)
    values = []
    for i in range(samples):
        found = torch.autograd.grad(terms(i), parameters, allow_unused=True)
        values.append(
            sum(float((a * b).sum()) for a, b in zip(direction, found, strict=True)
                if a is not None and b is not None)
        )  # fmt: skip
    return lr * np.array(values)


class HiddenInTraining(nn.Module):
    """A use that the self-test sees, in evaluation mode, and a training step hides."""

    def __init__(self):
        super().__init__()
        self.inner, self.scale = nn.Linear(4, 3), nn.Parameter(torch.ones(3))

    def forward(self, x):
        x = self.inner(x)
        return HiddenScale.apply(x, self.scale) if self.training else x * self.scale


def test_a_use_that_only_training_hides_is_seen_all_the_same():
    model, batch = HiddenInTraining().double(), data(4)
    batch = batch[0].double(), batch[1]
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    _, attribution = attach(model, batch, optimizer, estimator="sgd", contraction="dense")
    with attribution.batch(range(12)):
        loss_fn(model, batch).backward()
    expected = gradient_values(
        model, lambda i: loss_fn(model, (batch[0][[i]], batch[1][[i]])) / 12,
        lambda: loss_fn(model, batch), 12,
    )  # fmt: skip
    optimizer.step()
    assert attribution.covered == 1.0
    np.testing.assert_allclose(attribution.values()["value"].to_numpy(), expected, rtol=1e-9)


class MaskedHead(nn.Module):
    """A head on selected positions only: rows that belong to samples in unequal parts."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x, mask):
        return self.head(torch.tanh(self.body(x))[mask])


def test_rows_that_a_mask_selected_are_their_samples_own():
    x = torch.randn(8, 6, 4)
    mask = torch.zeros(8, 6, dtype=torch.bool)
    for i, length in enumerate([5, 1, 2, 4, 3, 3, 6, 6]):
        mask[i, :length] = True

    def masked_loss(m, batch):
        return m(*batch).pow(2).sum() / 10

    model = MaskedHead()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    _, attribution = attach(model, (x[2:], mask[2:]), optimizer, masked_loss, estimator="sgd")
    with attribution.batch([0, 1]):
        masked_loss(model, (x[:2], mask[:2])).backward()
    expected = gradient_values(
        model, lambda i: masked_loss(model, (x[[i]], mask[[i]])),
        lambda: masked_loss(model, (x[2:], mask[2:])), 2,
    )  # fmt: skip
    optimizer.step()
    assert attribution.covered == 1.0
    np.testing.assert_allclose(attribution.values()["value"].to_numpy(), expected, rtol=1e-4)


class Packed(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell, self.head = nn.LSTM(3, 4, batch_first=True), nn.Linear(4, 2)

    def forward(self, x, lengths):
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        _, (hidden, _) = self.cell(packed)
        return self.head(hidden[0])


def test_packed_sequences_are_their_samples_own():
    x, lengths = torch.randn(7, 4, 3), torch.tensor([2, 4, 3, 3, 3, 3, 3])  # sorted inside
    model = Packed()

    def packed_loss(m, batch):
        return m(batch[0], batch[1]).pow(2).sum()

    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    _, attribution = attach(model, (x[2:], lengths[2:]), optimizer, packed_loss, estimator="sgd")
    with attribution.batch([0, 1]):
        packed_loss(model, (x[:2], lengths[:2])).backward()
    expected = gradient_values(
        model, lambda i: packed_loss(model, (x[[i]], lengths[[i]])),
        lambda: packed_loss(model, (x[2:], lengths[2:])), 2,
    )  # fmt: skip
    optimizer.step()
    assert attribution.covered == 1.0
    np.testing.assert_allclose(attribution.values()["value"].to_numpy(), expected, rtol=1e-4)


def test_a_block_that_was_given_up_for_a_nan_does_not_count():
    model, batch = nn.Linear(4, 3), data(4)
    optimizer, attribution = attach(model, batch)
    with attribution.batch(range(100, 112)):
        (loss_fn(model, batch) * float("nan")).backward()
    optimizer.zero_grad()
    with attribution.batch(range(12)):
        loss_fn(model, batch).backward()
    optimizer.step()
    assert attribution.values()["sample_id"].to_pylist() == list(range(12))
    assert np.isfinite(attribution.values()["value"].to_numpy()).all()


@pytest.mark.parametrize("how", ["backward", "by hand"])
def test_gradient_that_comes_after_the_last_block_is_refused(how):
    model, batch = nn.Linear(4, 3), data(4)
    optimizer, attribution = attach(model, batch)
    with attribution.batch(range(4)):
        loss_fn(model, (batch[0][:4], batch[1][:4])).backward()
    if how == "backward":
        loss_fn(model, (batch[0][4:], batch[1][4:])).backward()
    else:
        model.weight.grad.add_(model.weight.detach(), alpha=0.1)
    with pytest.raises(MisuseError, match="neither a common factor nor clipping by value"):
        optimizer.step()


@pytest.mark.parametrize("how", ["fused step in paused()", "data", "step without a block"])
def test_the_opening_loss_is_that_of_the_weights_as_they_are(how):
    model, batch = nn.Linear(4, 3), data(4)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, fused=True)
    _, attribution = attach(model, batch, optimizer)

    def step():
        with attribution.batch(range(12)):
            loss_fn(model, batch).backward()
        optimizer.step()
        optimizer.zero_grad()

    step()
    if how == "data":
        model.weight.data.mul_(0.5)
    elif how == "step without a block":
        loss_fn(model, batch).backward()
        with pytest.warns(InRunWarning, match="not scored"):
            optimizer.step()
        optimizer.zero_grad()
    else:
        with attribution.paused():
            step()
    before = float(loss_fn(model, batch))
    if how == "data":
        with pytest.warns(InRunWarning, match="entry `other`"):
            step()
    else:
        step()
    first, row = attribution.ledger().to_pylist()
    assert row["opening_loss"] - row["other"] == pytest.approx(before, rel=1e-6)
    if how == "data":  # nothing is lost: the books telescope
        assert row["opening_loss"] == pytest.approx(first["closing_loss"], rel=1e-12)
        assert row["other"] != 0
    else:
        assert row["other"] == 0


def test_embeddings_that_renormalize_themselves_are_refused():
    model = nn.Sequential(nn.Embedding(5, 4, max_norm=1.0), nn.Flatten(), nn.Linear(8, 3))
    batch = torch.randint(5, (12, 2)), torch.randint(3, (12,))
    with pytest.raises(ReplaceLayerError, match="max_norm"):
        attach(model, batch)


def test_operations_with_dropout_inside_are_run_again_with_the_same_draw():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell = nn.LSTM(4, 5, num_layers=2, dropout=0.4, batch_first=True)

        def forward(self, x):
            return self.cell(x)[0][:, -1]

    batch = data(3, 4, classes=5)

    def train(watch):
        torch.manual_seed(0)
        model = Recurrent()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        attribution = attach(model, batch, optimizer)[1] if watch else None
        torch.manual_seed(3)
        for _ in range(2):
            if attribution is None:
                loss_fn(model, batch).backward()
            else:
                with attribution.batch(range(12)):
                    loss_fn(model, batch).backward()
            optimizer.step()
            optimizer.zero_grad()
        return model, torch.get_rng_state()

    (plain, plain_rng), (watched, rng) = train(False), train(True)
    assert torch.equal(plain_rng, rng)
    for p, q in zip(plain.parameters(), watched.parameters(), strict=True):
        assert torch.equal(p, q)


def test_second_order_values_account_for_each_groups_own_rate():
    """On a quadratic loss second order is everything: the books close to rounding."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(3, 2)).double()
    x, y = torch.randn(8, 3).double(), torch.randn(8, 2).double()

    def quadratic(m, batch):
        return (m[0](batch[0]) + m[1](batch[0]) - batch[1]).pow(2).mean()

    groups = [{"params": model[0].parameters(), "lr": 0.1}, {"params": model[1].parameters()}]
    optimizer = torch.optim.SGD(groups, lr=0.01)
    _, attribution = attach(model, (x, y), optimizer, quadratic, estimator="sgd-second")
    with attribution.batch(range(4)):
        quadratic(model, (x[:4], y[:4])).backward()
    optimizer.step()
    assert residual_shares(attribution.ledger())[0] < 1e-12


def test_a_parameter_frozen_while_momentum_still_moves_it_is_said():
    model, batch = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3)), data(4)
    optimizer, attribution = attach(model, batch)
    for step in range(2):
        with attribution.batch(range(12)):
            loss_fn(model, batch).backward()
        if step == 0:
            optimizer.step()
        else:
            with pytest.warns(InRunWarning, match="moves 2 parameters that were frozen"):
                optimizer.step()
        optimizer.zero_grad(set_to_none=False)
        model[0].requires_grad_(False)
    assert attribution.ledger().num_rows == 2


def test_sequence_first_data_says_its_rows_axis():
    class Language(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.cell = nn.Embedding(7, 4), nn.GRU(4, 7)

        def forward(self, x):
            return self.cell(self.words(x))[0]

    torch.manual_seed(0)
    model = Language()
    x = torch.randint(7, (4, 10))  # four positions, ten samples, of which four are trained on

    def terms(m, batch):
        logits = m(batch[0])[:-1]
        return F.cross_entropy(logits.permute(1, 2, 0), batch[0][1:].T, reduction="none").mean(1)

    def language_loss(m, batch):
        return terms(m, batch).mean()

    utility = inrun.Utility(language_loss, (x[:, 4:],), rows_axis=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    _, attribution = attach(model, None, optimizer, utility=utility, estimator="sgd")
    with attribution.batch(range(4)):
        language_loss(model, (x[:, :4],)).backward()
    expected = gradient_values(
        model, lambda i: terms(model, (x[:, [i]],)).sum() / 4,
        lambda: language_loss(model, (x[:, 4:],)), 4,
    )  # fmt: skip
    optimizer.step()
    np.testing.assert_allclose(attribution.values()["value"].to_numpy(), expected, rtol=1e-4)


def test_streaming_with_clipping_bears_parameters_without_gradient():
    """A fresh low-rank adapter: the one side's gradient is zero because the other side is."""

    class Adapted(nn.Module):
        def __init__(self):
            super().__init__()
            self.base = nn.Linear(4, 3).requires_grad_(False)
            self.down, self.up = nn.Linear(4, 2, bias=False), nn.Linear(2, 3, bias=False)
            nn.init.zeros_(self.up.weight)

        def forward(self, x):
            return self.base(x) + self.up(self.down(x))

    model, batch = Adapted(), data(4)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    _, attribution = attach(model, batch, optimizer, capture="stream")
    for _ in range(2):
        with attribution.batch(range(12)):
            loss_fn(model, batch).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
        optimizer.step()
        optimizer.zero_grad()
    assert attribution.ledger().num_rows == 2


def test_a_penalty_on_parameters_is_named_as_a_likely_reason():
    model, batch = nn.Linear(4, 3), data(4)
    _, attribution = attach(model, batch)
    with pytest.raises(InvariantError, match="weight_decay"), attribution.batch(range(12)):
        (loss_fn(model, batch) + model.weight.pow(2).sum()).backward()
    # the check runs when the block ends; the loop may zero the gradients and go on
    model.zero_grad()


def test_an_attack_inside_the_block_does_not_count_as_training():
    model, (x, y) = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3)), data(4)

    def values(attack):
        torch.manual_seed(0)
        for layer in (model[0], model[2]):
            layer.reset_parameters()
        model.zero_grad()
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
        _, attribution = attach(model, (x, y), optimizer, estimator="sgd")
        with attribution.batch(range(12)):
            if attack:
                probe = x.clone().requires_grad_()
                torch.autograd.grad(loss_fn(model, (probe, y)), probe)
            loss_fn(model, (x, y)).backward()
        optimizer.step()
        return attribution.values()["value"].to_numpy()

    np.testing.assert_allclose(values(True), values(False), rtol=1e-6)


@pytest.mark.parametrize("capture", ["hold", "stream"])
def test_tokens_written_into_activations_and_parameter_rows_added_to(capture):
    class Written(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.token = nn.Linear(4, 5), nn.Parameter(torch.randn(5))
            self.start, self.last = nn.Parameter(torch.randn(1, 5)), nn.Linear(5, 3)

        def forward(self, x):
            h = self.first(x)
            h[:, 0] = self.token
            row = self.start.repeat(len(x), 1)
            row += h.mean(1)
            return self.last(torch.tanh(row) + h.sin().sum(1))

    torch.manual_seed(0)
    model, (x, y) = Written(), data(3, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    _, attribution = attach(model, (x, y), optimizer, estimator="sgd", capture=capture)
    with attribution.batch(range(12)):
        loss_fn(model, (x, y)).backward()
    expected = gradient_values(
        model, lambda i: loss_fn(model, (x[[i]], y[[i]])) / 12, lambda: loss_fn(model, (x, y)), 12
    )
    optimizer.step()
    np.testing.assert_allclose(attribution.values()["value"].to_numpy(), expected, rtol=1e-4)


def test_an_optimizer_may_hold_only_some_of_the_trainable_parameters():
    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.gate = nn.Linear(4, 3), nn.Parameter(torch.zeros(3))
            self.scale = nn.Parameter(torch.ones(3))

        def forward(self, x):
            return self.layer(x) * (self.scale * self.gate.exp())

    model, (x, y) = Gated(), data(4)
    optimizer = torch.optim.SGD([model.scale], lr=1e-2)
    _, attribution = attach(model, (x, y), optimizer, estimator="sgd")
    with attribution.batch(range(12)):
        loss_fn(model, (x, y)).backward()
    for p in (*model.layer.parameters(), model.gate):
        p.requires_grad_(False)
    expected = gradient_values(
        model, lambda i: loss_fn(model, (x[[i]], y[[i]])) / 12, lambda: loss_fn(model, (x, y)), 12
    )
    optimizer.step()
    np.testing.assert_allclose(attribution.values()["value"].to_numpy(), expected, rtol=1e-4)


def test_a_loss_that_is_kept_does_not_keep_activations():
    model, batch = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 3)), data(4)
    optimizer, attribution = attach(model, batch)
    kept, alive = [], []
    for _ in range(5):
        with attribution.batch(range(12)):
            loss = loss_fn(model, batch)
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        kept.append(loss)
        gc.collect()
        alive.append(sum(isinstance(o, torch.Tensor) for o in gc.get_objects()))
    assert alive[-1] - alive[1] <= len(kept) - 2  # the losses themselves, nothing more


def test_an_attach_that_fails_leaves_its_store_free(tmp_path):
    model = nn.Sequential(nn.Embedding(5, 4, sparse=True), nn.Flatten(), nn.Linear(8, 3))
    batch = torch.randint(5, (12, 2)), torch.randint(3, (12,))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(inrun.errors.NotSupportedError):
        attach(model, batch, optimizer, store=tmp_path / "run")
    model[0] = nn.Embedding(5, 4)
    attach(model, batch, store=tmp_path / "run")


@pytest.mark.parametrize("to_none", [True, False])
def test_gradients_cleared_between_block_and_step_are_noticed(to_none):
    model, batch = nn.Linear(4, 3), data(4)
    optimizer, attribution = attach(model, batch)
    with attribution.batch(range(12)):
        loss_fn(model, batch).backward()
    optimizer.zero_grad(set_to_none=to_none)
    with pytest.raises(MisuseError, match="cleared between"):
        optimizer.step()


@pytest.mark.parametrize("capture", ["hold", "stream"])
def test_values_under_bfloat16_autocast_are_those_of_float32_to_its_digits(capture):
    def values(enabled):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 32), nn.LayerNorm(32), nn.GELU(), nn.Linear(32, 3))
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
        batch = data(4)
        _, attribution = attach(model, batch, optimizer, estimator="sgd", capture=capture)
        for _ in range(3):
            with attribution.batch(range(12)):
                with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                    loss = loss_fn(model, batch)
                loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        return attribution.values()["value"].to_numpy()

    full, half = values(False), values(True)
    assert np.corrcoef(full, half)[0, 1] > 0.999
    np.testing.assert_allclose(half, full, atol=0.05 * np.abs(full).max())
