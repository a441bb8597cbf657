"""A bad input gets a clear error at the earliest moment, and training can go on."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import inrun
from inrun.errors import (
    InRunWarning,
    MisuseError,
    NotSupportedError,
    ReplaceLayerError,
)
from tests.settings import flat


def loss_fn(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


def setting(model=None):
    torch.manual_seed(0)
    model = model or nn.Linear(4, 3)
    data = torch.randn(12, 4), torch.randint(3, (12,))
    return model, torch.optim.AdamW(model.parameters()), data, inrun.Utility(loss_fn, data)


def attached(**options):
    model, optimizer, data, utility = setting()
    return (
        model,
        optimizer,
        data,
        inrun.attach(model, optimizer, utility, **flat(progress=False, **options)),
    )


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (range(7), "7 sample ids were given"),
        (range(24), "24 sample ids were given"),
        ("abc", "single string"),
        (5, "one id per row"),
        (torch.tensor(5), "single number"),
        ([0.5] * 12, r"0\.5 \(float\)"),
        ([None] * 12, "NoneType"),
        ([True] * 12, "bool"),
        ([0, "a", *range(10)], "Use one kind"),
        ([[1]] * 12, "list"),
    ],
)
def test_ids_that_do_not_fit_are_refused_and_training_goes_on(ids, message):
    model, optimizer, data, attribution = attached()
    with pytest.raises(MisuseError, match=message), attribution.batch(ids):
        loss_fn(model, data).backward()
    optimizer.zero_grad()
    with attribution.batch(range(12)):
        loss_fn(model, data).backward()
    optimizer.step()
    assert attribution.ledger().num_rows == 1


def test_blocks_that_are_misused():
    model, optimizer, data, attribution = attached()
    with pytest.raises(MisuseError, match="cannot be nested"):
        with attribution.batch(range(12)), attribution.batch(range(12)):
            pass
    with (
        pytest.raises(MisuseError, match="No torch operation ran inside"),
        attribution.batch(range(12)),
    ):
        pass
    with pytest.raises(MisuseError, match=r"loss\.backward\(\) inside"):
        with attribution.batch(range(12)):
            loss_fn(model, data)
    with attribution.batch(range(12)):
        loss_fn(model, data).backward()
    assert optimizer.step(lambda: 0.5) == 0.5
    with pytest.raises(RuntimeError, match="user's own"), attribution.batch(range(12)):
        raise RuntimeError("user's own")


def test_an_overwritten_input_buffer_is_noticed():
    model, optimizer, data, attribution = attached()
    buffer = data[0].clone()
    with attribution.batch(range(12)):
        loss_fn(model, (buffer, data[1])).backward()
    buffer.copy_(torch.randn(12, 4))
    with pytest.raises(MisuseError, match="overwritten in place"):
        optimizer.step()


def test_gradients_that_are_not_finite_are_refused_before_the_step():
    model, optimizer, data, attribution = attached()
    before = model.weight.detach().clone()
    with attribution.batch(range(12)):
        (loss_fn(model, data) * float("nan")).backward()
    with pytest.raises(MisuseError, match="weight is not finite"):
        optimizer.step()
    assert torch.equal(model.weight, before)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda m, b: F.cross_entropy(m(b[0]), b[1], reduction="none"), r"shape \(\d+,\)"),
        (lambda m, b: 1.0, "1.0 for target 'validation'"),
        (lambda m, b: torch.tensor(float("nan")) * m(b[0]).sum(), "not finite"),
        (lambda m, b: m(b[0]).detach().sum(), "no graph"),
    ],
)
def test_a_loss_function_that_returns_something_else(loss, message):
    model, optimizer, data, _ = setting()
    with pytest.raises(MisuseError, match=message):
        attribution = inrun.attach(
            model,
            optimizer,
            inrun.Utility(loss, data),
            options=inrun.Options(progress=False, self_test=False),
        )
        with attribution.batch(range(12)):
            loss_fn(model, data).backward()
        optimizer.step()


def test_an_empty_validation_set():
    model, optimizer, data, _ = setting()
    empty = (data[0][:0], data[1][:0])
    with pytest.raises(MisuseError, match=r"not finite.*empty"):
        attribution = inrun.attach(
            model,
            optimizer,
            inrun.Utility(loss_fn, empty),
            options=inrun.Options(progress=False, self_test=False),
        )
        with attribution.batch(range(12)):
            loss_fn(model, data).backward()
        optimizer.step()


def test_attach_checks_what_it_is_given():
    model, optimizer, data, utility = setting()
    with pytest.raises(MisuseError, match="estimator 'shapley' is not one of path"):
        inrun.attach(model, optimizer, utility, estimator="shapley")
    with pytest.raises(MisuseError, match="capture 'keep'"):
        inrun.attach(model, optimizer, utility, options=inrun.Options(capture="keep"))
    with pytest.raises(MisuseError, match="Use capture='hold'"):
        inrun.attach(
            model,
            optimizer,
            utility,
            estimator="path-given",
            options=inrun.Options(capture="stream"),
        )
    with pytest.raises(MisuseError, match=r"inrun\.Utility"):
        inrun.attach(model, optimizer, data)
    with pytest.raises(MisuseError, match="none of the model's"):
        inrun.attach(nn.Linear(4, 3), optimizer, utility)
    with pytest.raises(NotSupportedError, match="LBFGS cannot be scored"):
        inrun.attach(model, torch.optim.LBFGS(model.parameters()), utility)
    assert not optimizer._optimizer_step_pre_hooks


def test_utilities_that_cannot_be():
    with pytest.raises(MisuseError, match="callable"):
        inrun.Utility("loss", 1)
    with pytest.raises(MisuseError, match="Neither of batch and targets"):
        inrun.Utility(loss_fn)
    with pytest.raises(MisuseError, match="no targets"):
        inrun.Utility(loss_fn, targets={})
    with pytest.raises(MisuseError, match="column of that name"):
        inrun.Utility(loss_fn, targets={"value": 1})
    with pytest.raises(MisuseError, match="weights must give each target"):
        inrun.Utility(loss_fn, targets={"a": 1}, weights={"b": 1.0})
    hf_batch = {"input_ids": torch.zeros(2, 3), "labels": torch.zeros(2)}
    assert inrun.Utility(loss_fn, hf_batch).targets == ("validation",)


def test_models_that_mix_samples_are_scored_by_their_own_slots_and_told_once():
    class Centred(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 3)

        def forward(self, x):
            hidden = self.a(x)
            return self.b(hidden - hidden.mean(0))

    model, optimizer, data, utility = setting(Centred())
    attribution = inrun.attach(model, optimizer, utility, options=inrun.Options(progress=False))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for _ in range(3):
            with attribution.batch(range(12)):
                loss_fn(model, data).backward()
            optimizer.step()
            optimizer.zero_grad()
    (said,) = [str(w.message) for w in told if issubclass(w.category, InRunWarning)]
    assert "Samples interact before the loss (__sub__)" in said or "(sub)" in said
    assert attribution.covered == 1.0


@pytest.mark.parametrize("option", ["scale_grad_by_freq", "sparse"])
def test_embeddings_that_cannot_be_attributed_say_why(option):
    model = nn.Sequential(nn.Embedding(5, 4, **{option: True}), nn.Flatten(), nn.Linear(8, 3))
    data = torch.randint(5, (12, 2)), torch.randint(3, (12,))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises((ReplaceLayerError, NotSupportedError), match=option):
        inrun.attach(
            model, optimizer, inrun.Utility(loss_fn, data), options=inrun.Options(progress=False)
        )


def test_a_validation_batch_without_tensors_leaves_owners_as_they_are_followed():
    model, optimizer, data, _ = setting()
    utility = inrun.Utility(lambda m, b: loss_fn(m, data), "everything")
    attribution = inrun.attach(model, optimizer, utility, options=inrun.Options(progress=False))
    with attribution.batch(range(12)):
        loss_fn(model, data).backward()
    optimizer.step()
    assert set(attribution.coverage()["owners"].to_pylist()) == {"followed"}


def test_a_validation_batch_on_another_device_is_said_at_attach():
    model, optimizer, data, _ = setting(nn.Linear(4, 3).to("meta"))
    with pytest.raises(MisuseError, match=r"batch is on cpu while the model is on meta"):
        inrun.attach(
            model, optimizer, inrun.Utility(loss_fn, data), options=inrun.Options(progress=False)
        )


def test_hooks_that_somebody_else_removed_are_missed_before_the_next_batch():
    model, optimizer, data, attribution = attached()
    with attribution.batch(range(12)):
        loss_fn(model, data).backward()
    optimizer.step()
    optimizer._optimizer_step_post_hooks.clear()
    with pytest.raises(MisuseError, match="hooks were taken off"), attribution.batch(range(12)):
        loss_fn(model, data).backward()
    assert attribution.ledger().num_rows == 1
    attribution.detach()


def test_a_full_disk_is_said_and_nothing_is_lost(tmp_path):
    """The very error of a full disk: what is written goes to /dev/full."""
    model, optimizer, data, attribution = attached(store=tmp_path / "run")

    def step():
        optimizer.zero_grad()
        with attribution.batch(range(12)):
            loss_fn(model, data).backward()
        optimizer.step()

    step()
    attribution.flush()
    step()
    (tmp_path / "run" / "visits" / "000001.parquet.partial").symlink_to("/dev/full")
    with pytest.raises(inrun.errors.StoreError, match="No space left"):
        attribution.flush()
    assert inrun.load(tmp_path / "run").visits().num_rows == 12  # what was stored is readable
    step()  # training and scoring go on, and what waits is written when there is room
    attribution.detach()
    assert inrun.load(tmp_path / "run").values()["visits"].to_pylist() == [3] * 12
