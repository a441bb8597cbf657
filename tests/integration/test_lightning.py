"""The real Lightning Trainer: its values are those of a plain loop on the same batches."""

import warnings

import lightning.pytorch as pl
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.loggers import TensorBoardLogger
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, Dataset

import inrun
from inrun.errors import MisuseError
from inrun.integrations.lightning import InRun

X = torch.tensor(load_digits().data[:80] / 16, dtype=torch.float32)
Y = torch.tensor(load_digits().target[:80])


class Digits(Dataset):
    def __len__(self):
        return 44

    def __getitem__(self, i):
        return {"x": X[i], "y": Y[i], "id": i}


def loss_fn(model, batch):
    return F.cross_entropy(model(batch["x"]), batch["y"])


class Classifier(pl.LightningModule):
    def __init__(self, manual=False):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 10))
        self.automatic_optimization = not manual

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, _):
        loss = loss_fn(self, batch)
        if not self.automatic_optimization:
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(loss)
            nn.utils.clip_grad_norm_(self.parameters(), 0.3)
            optimizer.step()
        return loss

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-2)
        if not self.automatic_optimization:
            return optimizer
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 0.5, total_iters=8)
        return {
            "optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}
        }  # fmt: skip


HELD = {"x": X[60:], "y": Y[60:]}
QUIET = inrun.Options(progress=False, smoothed_steps=0)


def callback(folder, **options):
    utility = inrun.Utility(loss_fn, HELD)
    return InRun(utility, ids="id", options=QUIET, store=folder / "run", **options)


def fit(folder, found, module=None, checkpoint=None, shuffle=True, **settings):
    trainer = pl.Trainer(
        **{
            "default_root_dir": folder, "callbacks": [found], "accelerator": "cpu", "devices": 1,
            "enable_progress_bar": False, "logger": False, "enable_checkpointing": False,
            "max_steps": 8, "enable_model_summary": False, **settings,
        }
    )  # fmt: skip
    torch.manual_seed(3)
    loader = DataLoader(Digits(), 6, shuffle=shuffle)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The 'train_dataloader' does not have many workers")
        trainer.fit(module or Classifier(), loader, ckpt_path=checkpoint, weights_only=True)
    return trainer


def plain(visits, schedule=True, parts=1, clip=0.3):
    model = Classifier()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    begin = 0.5 if schedule else 1.0
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, begin, total_iters=8)
    utility = inrun.Utility(loss_fn, HELD)
    attribution = inrun.attach(
        model, optimizer, utility, options=inrun.Options(progress=False, smoothed_steps=0)
    )
    for step in sorted({v["step"] for v in visits}):
        ids = [v["sample_id"] for v in visits if v["step"] == step]
        blocks = [ids[i : i + 6] for i in range(0, len(ids), 6)]
        for block in blocks:
            with attribution.batch(block):
                (loss_fn(model, {"x": X[block], "y": Y[block]}) / parts).backward()
        nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
    return model, attribution


def stored(folder):
    return inrun.load(folder / "run").visits().to_pylist()


def require_equal(found, expected, rtol=1e-5):
    a, b = found.values()["value"].to_numpy(), expected.values()["value"].to_numpy()
    np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-6 * np.abs(b).max())


def test_automatic_optimization_is_a_plain_loop(tmp_path):
    found = callback(tmp_path)
    trainer = fit(tmp_path, found, gradient_clip_val=0.3)
    model, expected = plain(stored(tmp_path))
    require_equal(found.attribution, expected)
    for p, q in zip(trainer.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-8)
    assert found.attribution.covered == 1.0


def test_accumulation_is_a_plain_loop(tmp_path):
    found = callback(tmp_path)
    fit(tmp_path, found, gradient_clip_val=0.3, accumulate_grad_batches=2, max_steps=3)
    assert found.attribution.ledger()["visits"].to_pylist() == [12, 12, 12]
    _, expected = plain(stored(tmp_path), parts=2)
    require_equal(found.attribution, expected)


def test_manual_optimization_is_a_plain_loop(tmp_path):
    found = callback(tmp_path)
    fit(tmp_path, found, Classifier(manual=True))
    _, expected = plain(stored(tmp_path), schedule=False)
    require_equal(found.attribution, expected)


def test_bfloat16_autocast_is_covered(tmp_path):
    found = callback(tmp_path)
    fit(tmp_path, found, precision="bf16-mixed")
    assert found.attribution.ledger().num_rows == 8
    assert found.attribution.covered == 1.0


def test_training_is_not_changed(tmp_path):
    models = [
        fit(tmp_path / "a", pl.Callback()).model, fit(tmp_path, callback(tmp_path)).model
    ]  # fmt: skip
    for p, q in zip(*(m.parameters() for m in models), strict=True):
        assert torch.equal(p, q)


def test_resumed_from_a_checkpoint_is_one_run(tmp_path):
    saving = pl.callbacks.ModelCheckpoint(
        tmp_path, "{step}", every_n_train_steps=5, save_top_k=-1, save_on_train_epoch_end=False
    )
    first, resumed = callback(tmp_path), callback(tmp_path)
    settings = {"max_steps": 8, "enable_checkpointing": True, "gradient_clip_val": 0.3}
    fit(tmp_path, first, callbacks=[first, saving], **settings)
    fit(tmp_path, resumed, checkpoint=str(tmp_path / "step=5.ckpt"), **settings)
    assert resumed.attribution.ledger().num_rows == 8
    # which rows come after a restart is Lightning's affair; each is scored once, as in one run
    _, expected = plain(stored(tmp_path))
    require_equal(resumed.attribution, expected)
    visits = resumed.attribution.values()["visits"].to_numpy()
    assert visits.sum() == len(stored(tmp_path)) == resumed.attribution.visits().num_rows
    assert list((tmp_path / "run" / "discarded").rglob("*.parquet"))


def test_loggers_get_scalars_and_the_worst_samples(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = callback(tmp_path)
    logger = TensorBoardLogger(tmp_path, "logs")
    fit(tmp_path, found, logger=logger, log_every_n_steps=1)
    events = EventAccumulator(logger.log_dir).Reload()
    closing = [s.value for s in events.Scalars("inrun/closing_loss")]
    np.testing.assert_allclose(
        closing, found.attribution.ledger()["closing_loss"].to_numpy(), rtol=1e-6
    )
    assert "inrun/worst_samples/text_summary" in events.Tags()["tensors"]
    assert pq.read_table(tmp_path / "inrun-values.parquet").equals(found.attribution.values())


def test_misuse_is_said(tmp_path):
    found = InRun(inrun.Utility(loss_fn, HELD), ids="name")
    with pytest.raises(MisuseError, match=r"no 'name'.*it has x, y, id"):
        fit(tmp_path, found)
    assert not found.attribution.attached
    with pytest.raises(MisuseError, match=r"inrun\.Utility"):
        InRun(HELD, ids="id")
    with pytest.raises(MisuseError, match=r"trainer\.fit"):
        _ = InRun(inrun.Utility(loss_fn, HELD), ids="id").attribution


class Skipping(Classifier):
    """Gives no loss for some batches, before or after its forward pass."""

    skipped = (0, 2, 5)

    def training_step(self, batch, number):
        if number in self.skipped:
            if number == 5:
                self(batch["x"])
            return None
        return super().training_step(batch, number)


@pytest.mark.parametrize("manual", [False, True])
def test_a_batch_without_a_loss_is_skipped(tmp_path, manual):
    found = callback(tmp_path)
    fit(tmp_path, found, Skipping(manual), shuffle=False, max_epochs=1, max_steps=-1)
    expected = [i for number in (1, 3, 4, 6, 7) for i in range(6 * number, min(44, 6 * number + 6))]
    assert found.attribution.values()["sample_id"].to_pylist() == expected
    assert found.attribution.ledger().num_rows == 5


def test_a_skipped_part_of_an_accumulated_step_is_left_out(tmp_path):
    found = callback(tmp_path)
    settings = {"accumulate_grad_batches": 2, "max_epochs": 1, "max_steps": -1}
    fit(tmp_path, found, Skipping(), shuffle=False, **settings)
    visits = [v["sample_id"] for v in stored(tmp_path)]
    whole = [i for i in range(44) if i // 6 not in Skipping.skipped]
    assert set(visits) <= set(whole)
    assert all(row["residual"] < 1e-3 for row in found.attribution.ledger().to_pylist())


class Converted(Classifier):
    """In whatever precision the trainer has; plain SGD, which half precision can bear."""

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-2)


@pytest.mark.parametrize("precision", ["64-true", "bf16-true", "16-true"])
@pytest.mark.parametrize("bound", [0.3, 1e-4])
def test_clipping_by_hand_is_known_in_every_precision(tmp_path, precision, bound):
    """A factor rounds each element in half precision, in float16 to its smallest numbers."""

    class Clipped(Converted):
        def training_step(self, batch, _):
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(loss_fn(self, batch))
            nn.utils.clip_grad_norm_(self.parameters(), bound)
            optimizer.step()

    found = callback(tmp_path)
    fit(tmp_path, found, Clipped(manual=True), precision=precision)
    rows = found.attribution.ledger().to_pylist()
    assert [row["visits"] for row in rows] == [6] * 6 + [6, 2]
    assert found.attribution.covered == 1.0


@pytest.mark.parametrize("precision", ["64-true", "bf16-true", "16-true"])
def test_the_validation_batch_is_converted_as_the_trainer_converts_its_own(tmp_path, precision):
    seen = set()

    def loss(model, batch):
        seen.update((batch["x"].dtype, torch.zeros(1).dtype))
        return loss_fn(model, batch)

    found = InRun(inrun.Utility(loss, HELD), ids="id", options=QUIET)
    fit(tmp_path, found, Converted(), precision=precision)
    assert found.attribution.ledger().num_rows == 8
    wanted = {"64-true": torch.float64, "bf16-true": torch.bfloat16, "16-true": torch.float16}
    assert seen == {wanted[precision]}
    assert HELD["x"].dtype == torch.float32
