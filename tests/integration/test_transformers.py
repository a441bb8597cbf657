"""The real Trainer: its values are those of a plain loop on the same batches."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from transformers import Trainer, TrainerCallback, TrainingArguments

import inrun
from inrun.errors import MisuseError, NotSupportedError, StoreError
from inrun.integrations.transformers import InRun
from tests.integration.pixels import Pixels, classifier, collate

TRAIN, VALIDATION = Pixels(0, 44), Pixels(60, 80)
STEPS, BATCH = 6, 4
EXACT = inrun.Options(progress=False, smoothed_steps=0)


def arguments(folder, **changes):
    return TrainingArguments(
        **{
            "output_dir": str(folder), "per_device_train_batch_size": BATCH, "max_steps": STEPS,
            "gradient_accumulation_steps": 2, "learning_rate": 1e-3, "max_grad_norm": 0.5,
            "warmup_steps": 1, "weight_decay": 0.1, "report_to": [], "use_cpu": True,
            "disable_tqdm": True, "logging_steps": 2, "eval_strategy": "steps", "eval_steps": 2,
            "save_steps": 3, "optim": "adamw_torch", "dataloader_pin_memory": False, **changes,
        }
    )  # fmt: skip


def mean_over_step(outputs, labels, num_items_in_batch):
    total = nn.functional.cross_entropy(outputs.logits, labels, reduction="sum")
    return total / (len(labels) if num_items_in_batch is None else num_items_in_batch)


def trained(folder, callback=None, resume=None, model=None, **changes):
    trainer = Trainer(
        model or classifier(), arguments(folder, **changes), train_dataset=TRAIN,
        eval_dataset=VALIDATION, data_collator=collate, compute_loss_func=mean_over_step,
    )  # fmt: skip
    callback = callback or InRun(VALIDATION, store=folder / "run", options=EXACT)
    trainer.add_callback(callback)
    trainer.train(resume_from_checkpoint=resume)
    return trainer, callback.attribution


def plain_loop(visits, bf16=False):
    """The same batches in a loop of one's own; visits of a step in the order of its batches."""
    model = classifier().train()
    decayed = [p for n, p in model.named_parameters() if p.ndim > 1]
    others = [p for n, p in model.named_parameters() if p.ndim <= 1]
    groups = [
        {"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}
    ]  # fmt: skip
    optimizer = torch.optim.AdamW(groups, lr=1e-3)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda k: float(k) if k < 1 else max(0.0, (STEPS - k) / (STEPS - 1))
    )
    rows = collate([VALIDATION[i] for i in range(len(VALIDATION))])

    def loss_fn(model, batch):
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            return model(**batch).loss

    utility = inrun.Utility(loss_fn, rows)
    attribution = inrun.attach(
        model, optimizer, utility, options=inrun.Options(progress=False, smoothed_steps=0)
    )
    for step in range(1, STEPS + 1):
        ids = [v["sample_id"] for v in visits if v["step"] == step]
        parts = [ids[i : i + BATCH] for i in range(0, len(ids), BATCH)]
        for part in parts:
            with attribution.batch(part):
                share = len(part) / len(ids)  # the mean over all that was accumulated
                (loss_fn(model, collate([TRAIN[i] for i in part])) * share).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return model, attribution


GROUPED = {"train_sampling_strategy": "group_by_length"}


@pytest.mark.parametrize("changes", [{}, GROUPED, {"dataloader_num_workers": 1}], ids=str)
def test_values_are_those_of_a_plain_loop_on_the_same_batches(changes, tmp_path):
    trainer, attribution = trained(tmp_path, **changes)
    visits = inrun.load(tmp_path / "run").visits().to_pylist()
    assert len(visits) == 44  # an epoch, whose last step has one batch
    model, expected = plain_loop(visits)
    for p, q in zip(model.parameters(), trainer.model.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-8)
    found = attribution.values()["value"].to_numpy()
    np.testing.assert_allclose(
        found, expected.values()["value"].to_numpy(), rtol=1e-4, atol=1e-6 * np.abs(found).max()
    )
    assert attribution.covered == 1.0


def test_training_is_not_changed(tmp_path):
    class Nothing(TrainerCallback):
        attribution = None

    plain, _ = trained(tmp_path / "plain", Nothing(), model=classifier(dropout=0.1))
    found, _ = trained(tmp_path / "inrun", model=classifier(dropout=0.1))
    for p, q in zip(plain.model.parameters(), found.model.parameters(), strict=True):
        assert torch.equal(p, q)
    assert not found.model._forward_pre_hooks
    assert type(found.callback_handler.train_dataloader.dataset) is Pixels


def test_resumed_from_a_checkpoint_is_never_stopped(tmp_path):
    whole, expected = trained(tmp_path / "a")
    stopped, _ = trained(tmp_path / "b", save_total_limit=None)
    _, attribution = trained(tmp_path / "b", resume=str(tmp_path / "b" / "checkpoint-3"))
    assert attribution.values().equals(expected.values())
    assert attribution.ledger().equals(expected.ledger())
    assert list((tmp_path / "b" / "run" / "discarded").rglob("*.parquet"))
    (tmp_path / "b" / "checkpoint-3" / "inrun.safetensors").unlink()
    with pytest.raises(StoreError, match=r"checkpoint-3.inrun\.safetensors"):
        trained(tmp_path / "b", resume=str(tmp_path / "b" / "checkpoint-3"))


def test_trackers_get_scalars_and_the_worst_samples(tmp_path, monkeypatch):
    import mlflow
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri((tmp_path / "mlflow").as_uri())
    mlflow.set_experiment("inrun")
    with mlflow.start_run() as run:
        trainer, attribution = trained(tmp_path, report_to=["tensorboard", "mlflow"])
    events = EventAccumulator(str(tmp_path / "runs" / "inrun")).Reload()
    closing = attribution.ledger()["closing_loss"].to_pylist()
    scalars = events.Scalars("inrun/closing_loss")
    np.testing.assert_allclose([s.value for s in scalars][:3], closing[1::2], rtol=1e-6)
    assert "inrun/worst_samples/text_summary" in events.Tags()["tensors"]
    history = [row["inrun/closing_loss"] for row in trainer.state.log_history if "loss" in row]
    assert history == closing[1::2]
    metrics = mlflow.tracking.MlflowClient().get_metric_history(
        run.info.run_id, "inrun/closing_loss"
    )
    assert {m.step for m in metrics} >= {2, 4, 6}
    values = attribution.values().sort_by("value")
    table = mlflow.artifacts.load_dict(f"{run.info.artifact_uri}/inrun/worst_samples-{STEPS}.json")
    assert table["data"][0][0] == values["sample_id"][0].as_py()


def test_a_wandb_run_that_is_offline_gets_scalars_and_the_worst_samples(tmp_path, monkeypatch):
    import wandb

    monkeypatch.setenv("WANDB_SILENT", "true")
    run = wandb.init(project="inrun", mode="offline", dir=str(tmp_path))
    try:
        _, attribution = trained(tmp_path, report_to=["wandb"])
        told = dict(run.summary)
        tables = sorted(Path(run.dir).rglob("worst_samples*.json"), key=lambda t: t.stat().st_mtime)
        table = tables[-1]
        rows = json.loads(table.read_text())
    finally:
        run.finish()
    assert told["inrun/closing_loss"] == attribution.ledger()["closing_loss"].to_pylist()[-1]
    values = attribution.values().sort_by("value")
    assert rows["columns"] == values.column_names
    assert rows["data"][0][0] == values["sample_id"][0].as_py()


def test_files_are_written_beside_the_checkpoints(tmp_path):
    import pyarrow.parquet as pq

    _, attribution = trained(tmp_path)
    assert pq.read_table(tmp_path / "inrun-values.parquet").equals(attribution.values())
    assert pq.read_table(tmp_path / "inrun-ledger.parquet").num_rows == STEPS
    assert pq.read_table(tmp_path / "checkpoint-3" / "inrun-values.parquet").num_rows == 24


def test_named_targets_and_ids_from_a_column(tmp_path):
    class Named(Pixels):
        def __getitem__(self, i):
            return {**super().__getitem__(i), "name": f"digit {i}"}

    low = [VALIDATION[i] for i in range(20) if VALIDATION.labels[i] < 5]
    high = [VALIDATION[i] for i in range(20) if VALIDATION.labels[i] >= 5]
    callback = InRun({"low": low, "high": high}, ids="name", options=EXACT)
    trainer = Trainer(
        classifier(), arguments(tmp_path, remove_unused_columns=False, eval_strategy="no"),
        train_dataset=Named(0, 44), data_collator=collate,
    )  # fmt: skip
    trainer.add_callback(callback)
    trainer.train()
    values = callback.attribution.values()
    assert {"low", "high"} <= set(values.column_names)
    assert set(values["sample_id"].to_pylist()) == {f"digit {i}" for i in range(44)}


def test_bfloat16_autocast_is_that_of_the_plain_loop(tmp_path):
    _, attribution = trained(tmp_path, bf16=True)
    visits = inrun.load(tmp_path / "run").visits().to_pylist()
    _, expected = plain_loop(visits, bf16=True)
    found = attribution.values()["value"].to_numpy()
    assert np.corrcoef(found, expected.values()["value"].to_numpy())[0, 1] > 0.999


def test_misuse_is_said_and_leaves_nothing_behind(tmp_path):
    class OwnStep(Trainer):
        def training_step(self, model, inputs, *_, **__):
            loss = model(**{k: inputs[k] for k in ("input_ids", "attention_mask", "labels")}).loss
            loss.backward()
            return loss.detach()

    def halved(items):
        batch = collate(items)
        return {"pixels": batch["input_ids"][::2].float(), "labels": batch["labels"][::2]}

    def unlabelled(items):
        return {k: v for k, v in collate(items).items() if k != "labels"}

    def refused(expected, message, kind=Trainer, callback=None, collator=collate, **changes):
        trainer = kind(
            classifier(), arguments(tmp_path, eval_strategy="no", **changes),
            train_dataset=TRAIN, data_collator=collator,
        )  # fmt: skip
        trainer.add_callback(callback or InRun(VALIDATION))
        with pytest.raises(expected, match=message):
            trainer.train()
        assert "compute_loss" not in vars(trainer) or collator is halved

    refused(MisuseError, r"self\.compute_loss", OwnStep)
    rows = collate([VALIDATION[0], VALIDATION[1]])
    utility = inrun.Utility(lambda m, b: m(**b).loss, rows)
    refused(MisuseError, "2 rows of 4 samples", callback=InRun(utility), collator=halved)
    refused(MisuseError, "could not compute its loss", collator=unlabelled)
    refused(MisuseError, "empty", callback=InRun([]))
    refused(MisuseError, "remove_unused_columns=False", callback=InRun(VALIDATION, ids="name"))
    with pytest.raises(MisuseError, match=r"trainer\.train\(\) first"):
        _ = InRun(VALIDATION).attribution
    for name in ("deepspeed", "deepspeed_plugin"):  # by the trainer's argument, by accelerate's
        engine = arguments(tmp_path)
        setattr(engine, name, {"zero_optimization": {"stage": 2}})
        with pytest.raises(NotSupportedError, match="FSDP2"):
            InRun(VALIDATION).on_train_begin(engine, None, None)
    with pytest.raises(NotSupportedError, match="no optimizer"):
        InRun(VALIDATION).on_train_begin(arguments(tmp_path), None, None, optimizer=None)
    optimizer = torch.optim.SGD(classifier().parameters())
    with pytest.raises(MisuseError, match=r"trainer\.add_callback"):
        InRun(VALIDATION).on_train_begin(arguments(tmp_path), None, None, optimizer=optimizer)


def test_importing_inrun_imports_no_framework():
    import subprocess
    import sys

    code = (
        "import inrun, sys; print([m for m in ('transformers', 'lightning') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
