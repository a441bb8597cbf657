"""`inrun train` and `inrun plan` from a shell, in a fresh folder, on small data."""

import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from rich.console import Console

import inrun
from inrun.errors import MisuseError, StoreError
from inrun.training import (
    TrainConfig,
    Training,
    TrainingInterrupt,
    _loop,
    open_training,
    read_config,
    run_training,
    task_seen,
)
from tests.integration.train_data import images, jsonl, model_folder, table, texts

COMMAND = str(Path(sys.executable).with_name("inrun"))


def inrun_command(folder, *arguments, code=0):
    done = subprocess.run(
        [COMMAND, *map(str, arguments)], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == code, done.stdout + done.stderr
    return " ".join((done.stdout + done.stderr).split())


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """A folder with tiny models and data."""
    folder = tmp_path_factory.mktemp("shop")
    model_folder(folder / "bert", "bert")
    model_folder(folder / "gpt", "gpt2")
    jsonl(folder / "train.jsonl", texts(48))
    table(folder / "train.csv", texts(48))
    images(folder / "pictures")
    return folder


@pytest.fixture(scope="module")
def classified(shop):
    said = inrun_command(
        shop, "train", "--model", "bert", "--from-scratch", "--data", "train.csv",
        "--source-column", "who", "--batch", 8, "--epochs", 2, "--out", "texts",
    )  # fmt: skip
    return shop / "texts", said


def test_texts_with_labels(classified):
    folder, said = classified
    run = inrun.load(folder)
    assert run.targets == ("sea", "wood")
    samples = pq.read_table(folder / "samples.parquet")
    assert sorted(samples["sample_id"].to_pylist()) == run.values()["sample_id"].to_pylist()
    assert {"text", "label", "source", "mean_loss", "label_doubt"} <= set(samples.column_names)
    assert set(samples["suggested_label"].to_pylist()) <= {"sea", "wood"}
    assert "Trained 10 steps" in said
    assert "Labels to look at first" in said


def test_a_run_is_built_again_as_it_was(classified):
    folder, _ = classified
    training, model = open_training(folder), open_training(folder).trained()
    known = json.loads((folder / "measured.json").read_text())["score"]
    assert training.score(model) == pytest.approx(known)
    samples = pq.read_table(folder / "samples.parquet").to_pylist()
    batch = training.fetch([samples[0]["sample_id"]])
    words = training.task.text.tokenizer.decode(batch["input_ids"][0])
    assert words.split() == samples[0]["text"].split()


def test_losses_add_up_and_weigh_rows_alike(shop):
    training = Training(
        TrainConfig("causal-lm", str(shop / "gpt"), str(shop / "train.jsonl"), from_scratch=True)
    )
    model, _ = training.start()
    model.eval()
    ids = training.ids[:4]
    whole, batch = training.fetch(ids), 0.0
    for part, share in training.weighted([ids[:1], ids[1:]]):
        batch += float(training.loss_fn(model, part).detach()) * share
    assert batch == pytest.approx(float(training.loss_fn(model, whole).detach()), rel=1e-5)


def test_a_language_model_with_lora_keeps_tokens(shop):
    jsonl(shop / "texts.jsonl", [{"text": row["text"]} for row in texts(48)])
    said = inrun_command(
        shop, "train", "--model", "gpt", "--from-scratch", "--data", "texts.jsonl", "--lora", 2,
        "--keep-tokens", "--batch", 8, "--accumulate", 2, "--epochs", 1, "--out", "lm",
    )  # fmt: skip
    assert said.startswith("causal-lm")
    run, tokens = inrun.load(shop / "lm"), pq.read_table(shop / "lm" / "tokens").to_pylist()
    value = {(r["step"], r["sample_id"]): r["value"] for r in run.visits().to_pylist()}
    text = dict(zip(*pq.read_table(shop / "lm" / "samples.parquet")
                    .select(["sample_id", "text"]).to_pydict().values(), strict=True))  # fmt: skip
    assert len(tokens) == len(value)
    sizes = np.abs(list(value.values())).mean()
    for row in tokens:
        assert "".join(row["tokens"]) == text[row["sample_id"]]
        off = sum(row["values"]) - value[row["step"], row["sample_id"]]
        assert abs(off) < 1e-3 * sizes
    trained = open_training(shop / "lm").trained()
    assert any("lora" in name for name, _ in trained.named_parameters())


def test_a_folder_of_images(shop):
    inrun_command(shop, "train", "--model", "cnn", "--data", "pictures", "--out", "seen")
    samples = pq.read_table(shop / "seen" / "samples.parquet")
    assert samples["image"][0].as_py().startswith(b"\x89PNG")
    assert set(samples["label"].to_pylist()) == {"digit 0", "digit 1"}
    assert open_training(shop / "seen").score(open_training(shop / "seen").trained()) > 0.5


def test_the_config_runs_again_to_the_same_values(shop, classified):
    folder, _ = classified
    inrun_command(shop, "train", "--config", "texts/config.json", "--out", "again")
    first, second = (inrun.load(f).values() for f in (folder, shop / "again"))
    assert first["value"].to_pylist() == second["value"].to_pylist()


class Cut(Exception):  # noqa: N818
    """What ends a training in the middle."""


def cut_after(monkeypatch, steps):
    """Ends a training after so many steps, without a farewell."""
    plain = _loop._Loop._step

    def step(self, parts):
        if self.done == steps:
            raise Cut
        return plain(self, parts)

    monkeypatch.setattr(_loop._Loop, "_step", step)


@pytest.mark.parametrize("kind", ["texts", "tokens"])
def test_a_run_that_was_cut_goes_on_to_the_same_end(shop, tmp_path, monkeypatch, kind):
    settings = {
        "texts": {"task": "text-classification", "model": str(shop / "bert")},
        "tokens": {"task": "causal-lm", "model": str(shop / "gpt"), "keep_tokens": True},
    }[kind]
    config = TrainConfig(
        data=str(shop / "train.jsonl"), from_scratch=True, batch=8, epochs=2, save_every=0,
        **settings,
    )  # fmt: skip
    quiet = Console(file=io.StringIO())
    run_training(Training(config), tmp_path / "whole", quiet)
    with monkeypatch.context() as patch, pytest.raises(Cut):
        cut_after(patch, 4)
        run_training(Training(config), tmp_path / "cut", quiet)
    said = inrun_command(tmp_path, "train", "--resume", "cut")
    assert "Trained 10 steps" in said
    whole, cut = (inrun.load(tmp_path / name) for name in ("whole", "cut"))
    assert whole.values().to_pylist() == cut.values().to_pylist()
    assert whole.ledger().to_pylist() == cut.ledger().to_pylist()
    samples = [pq.read_table(tmp_path / name / "samples.parquet") for name in ("whole", "cut")]
    assert samples[0]["mean_loss"].to_pylist() == samples[1]["mean_loss"].to_pylist()
    if kind == "tokens":
        tokens = [pq.read_table(tmp_path / name / "tokens") for name in ("whole", "cut")]
        assert tokens[0].to_pylist() == tokens[1].to_pylist()


def test_the_keyboard_stops_between_steps(shop, tmp_path, monkeypatch):
    config = TrainConfig("image-classification", "cnn", str(shop / "pictures"), batch=8)
    plain, before = _loop._Loop._step, signal.getsignal(signal.SIGINT)

    def step(self, parts):
        if self.done == 3:
            os.kill(os.getpid(), signal.SIGINT)  # in the middle of the fourth step
        return plain(self, parts)

    monkeypatch.setattr(_loop._Loop, "_step", step)
    with pytest.raises(TrainingInterrupt, match="after step 4 of 18"):
        run_training(Training(config), tmp_path / "run", Console(file=io.StringIO()))
    assert signal.getsignal(signal.SIGINT) is before
    monkeypatch.setattr(_loop._Loop, "_step", plain)
    said = inrun_command(tmp_path, "train", "--resume", "run")
    assert "Trained 18 steps" in said
    assert inrun.load(tmp_path / "run").ledger()["step"].to_pylist() == list(range(1, 19))


def test_what_cannot_be_resumed_says_so(shop, classified, tmp_path):
    said = inrun_command(shop, "train", "--resume", "texts", code=2)
    assert "nothing left to train" in said
    said = inrun_command(tmp_path, "train", "--resume", "nothing", code=2)
    assert "has no config.json" in said


def test_a_run_is_not_written_over(shop, classified):
    said = inrun_command(
        shop, "train", "--config", "texts/config.json", "--out", "texts", code=2
    )  # fmt: skip
    assert "holds a run already" in said


def test_no_arguments_explain_themselves(tmp_path):
    done = subprocess.run([COMMAND, "train"], cwd=tmp_path, capture_output=True, text=True)
    assert "Usage" in done.stdout
    assert "inrun train --model PATH --data train.csv" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_bad_rows_are_named_by_file_and_line(shop, tmp_path):
    rows = [json.dumps(row) for row in texts(40)]
    rows[6] = "{broken"
    rows[10] = json.dumps({"text": "", "label": "sea"})
    rows[20] = json.dumps({"text": "wave"})
    (tmp_path / "bad.jsonl").write_text("\n".join(rows) + "\n")
    arguments = (
        "train", "--model", shop / "bert", "--from-scratch", "--data", "bad.jsonl",
        "--batch", 8, "--epochs", 1,
    )  # fmt: skip
    said = inrun_command(tmp_path, *arguments, code=2)
    for line in (7, 11, 21):
        assert f"line {line}" in said
    assert not (tmp_path / "inrun-run").exists()
    said = inrun_command(tmp_path, *arguments, "--skip-bad-rows")
    assert "line 11" in said
    assert inrun.load(tmp_path / "inrun-run").values().num_rows == 29


def test_a_csv_row_with_a_wrong_number_of_fields_is_named(shop, tmp_path):
    (tmp_path / "t.csv").write_text('text,label\n"two\nlines",sea\nwave,sea,more\nmoss,wood\n')
    config = TrainConfig("text-classification", str(shop / "bert"), str(tmp_path / "t.csv"))
    with pytest.raises(MisuseError, match="line 4: 3 fields, and the head names 2"):
        Training(config)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"text_column": "body"}, "no column 'body'; it has text, label, who"),
        ({"batch": 0}, "batch is 0"),
        ({"id_column": "label"}, "one id is one sample"),
        ({"model": "/nowhere"}, "could be loaded"),
        ({"data": "nowhere.csv"}, "does not exist"),
    ],
)
def test_misuse_is_said(shop, settings, says):
    known = {
        "task": "text-classification", "model": str(shop / "bert"),
        "data": str(shop / "train.jsonl"), "from_scratch": True,
    }  # fmt: skip
    with pytest.raises(MisuseError, match=says):
        Training(TrainConfig(**known | settings)).start()


def test_only_training_rows_need_ids(shop, tmp_path):
    rows = [row | {"key": f"k{number}"} for number, row in enumerate(texts(40))]
    jsonl(tmp_path / "train.jsonl", rows)
    config = TrainConfig(
        "text-classification", str(shop / "bert"), str(tmp_path / "train.jsonl"),
        validation=str(shop / "train.csv"), id_column="key",
    )  # fmt: skip
    training = Training(config)
    assert set(training.ids) < {f"k{number}" for number in range(40)}
    assert [sample.id for sample in training.judges()] == list(range(48))


def test_the_task_is_seen_from_the_data(shop):
    assert task_seen(str(shop / "pictures"), "label") == "image-classification"
    assert task_seen(str(shop / "train.csv"), "label") == "text-classification"
    assert task_seen(str(shop / "train.csv"), "stars") == "causal-lm"


def test_parquet_and_saved_data_sets_are_read_alike(shop, tmp_path):
    import datasets

    rows = texts(20)
    found = datasets.Dataset.from_list(rows)
    found.save_to_disk(str(tmp_path / "saved"))
    found.to_parquet(str(tmp_path / "rows.parquet"))
    jsonl(tmp_path / "rows.jsonl", rows)
    read = []
    for name in ("saved", "rows.parquet", "rows.jsonl"):
        config = TrainConfig("text-classification", str(shop / "bert"), str(tmp_path / name))
        splits = Training(config).splits
        read.append([(s.id, s.content, s.label) for s in splits.training])
    assert read[0] == read[1] == read[2]
    assert len(read[0]) == 16


def test_a_configuration_is_read_back(tmp_path):
    config = TrainConfig("causal-lm", "gpt", "rows.jsonl", lora=4, learning_rate=0.1)
    config.write(tmp_path)
    assert read_config(tmp_path) == config
    with pytest.raises(StoreError, match=r"no config\.json"):
        read_config(tmp_path.parent)


def test_training_again_is_of_its_seed_and_rows(classified):
    training = open_training(classified[0])
    ids = training.ids[:16]
    assert training.train_again(ids, 0) == training.train_again(ids, 0)
    orders = [list(training.batches(ids, seed)) for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]
    assert sorted(i for step in orders[0] for part in step for i in part) == sorted(2 * ids)


def test_the_schedule_rises_and_falls_to_nothing(classified):
    training = open_training(classified[0])
    model, optimizer = training.start()
    schedule, rates = training.scheduler(optimizer, 40), []
    for _ in range(40):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates[0] < rates[2] == max(rates) <= training.config.rate
    assert np.all(np.diff(rates[2:]) < 0)
    assert optimizer.param_groups[0]["lr"] == 0
    assert all(p.requires_grad for p in model.parameters())


def test_a_plan_is_compared_with_what_was_measured(shop):
    options = (
        "--model", "cnn", "--data", "pictures", "--epochs", 4, "--batch", 8, "--out", "planned",
    )  # fmt: skip
    said = inrun_command(shop, "plan", *options)
    assert "24 steps of 8 rows" in said
    inrun_command(shop, "train", *options)
    said = inrun_command(shop, "plan", "--out", "planned")
    assert "Planned and measured" in said
    plan = json.loads((shop / "planned" / "plan.json").read_text())
    measured = json.loads((shop / "planned" / "measured.json").read_text())
    assert 0.5 < measured["disk_values"] / plan["disk_values"] < 2
    assert 0.9 < measured["disk_model"] / plan["disk_model"] < 1.2
    assert plan["memory_of_validation"] == 2 * 2 * 4 * plan["parameters"]


def test_a_recorded_run_can_be_looked_ahead_along(shop):
    inrun_command(
        shop, "train", "--model", "cnn", "--data", "pictures", "--epochs", 1, "--record",
        "--out", "recorded",
    )  # fmt: skip
    training = open_training(shop / "recorded")
    result = inrun.lookahead(training.trajectory(), training.utility())
    assert result.values()["sample_id"].to_pylist() == sorted(training.ids)
    assert torch.isfinite(torch.tensor(result.values()["value"].to_pylist())).all()
