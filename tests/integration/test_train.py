"""`inrun train` and `inrun plan` from a shell, in a fresh folder, on small data."""

import dataclasses
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import warnings
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

import inrun
from inrun.cli import main
from inrun.cli._main import app
from inrun.errors import MisuseError, StoreError
from inrun.integrations._outcome import VALUES
from inrun.training import (
    TrainConfig,
    Training,
    TrainingInterrupt,
    _trainer,
    open_training,
    plan_training,
    read_config,
    run_training,
    task_seen,
)
from tests.integration.train_data import images, jsonl, model_folder, still, table, texts


def inrun_command(folder, *arguments, code=0):
    """The command in this process, where `transformers` is imported once; what it printed."""
    said, here = io.StringIO(), Path.cwd()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["inrun", *map(str, arguments)])
        patch.setattr(warnings, "showwarning", warnings.showwarning)  # the command puts its own
        os.chdir(folder)
        try:
            with redirect_stdout(said), redirect_stderr(said), pytest.raises(SystemExit) as ended:
                main()
        finally:
            os.chdir(here)
    assert ended.value.code == code, said.getvalue()
    return " ".join(said.getvalue().split())


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
    assert {"text", "label", "source", "mean_loss", "doubt_rank"} <= set(samples.column_names)
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
    words = training.task.processor.decode(batch["input_ids"][0])
    assert words.split() == samples[0]["text"].split()


def run(folder, **settings):
    """A run in this process."""
    config = TrainConfig(**{"from_scratch": True} | settings)
    run_training(Training(config), folder, Console(file=io.StringIO()))
    return inrun.load(folder)


def test_a_step_of_several_passes_is_that_of_one_large_batch(shop, tmp_path):
    """Texts of different lengths: each label weighs the same, whatever pass it is in."""
    setting = {"task": "causal-lm", "model": str(still(shop / "still", "gpt2")), "epochs": 1,
               "data": str(shop / "train.jsonl"), "contraction": "dense"}  # fmt: skip
    one = run(tmp_path / "one", batch=8, **setting)
    parts = run(tmp_path / "parts", batch=4, accumulate=2, **setting)
    np.testing.assert_allclose(one.values()["value"], parts.values()["value"], rtol=2e-3, atol=1e-8)
    losses = [r.ledger()["closing_loss"].to_numpy() for r in (one, parts)]
    np.testing.assert_allclose(*losses, rtol=1e-5)
    means = [r.samples()["mean_loss"].to_numpy() for r in (one, parts)]
    np.testing.assert_allclose(*means, rtol=1e-4)


def test_training_is_not_changed_by_being_scored(shop, tmp_path):
    config = TrainConfig("text-classification", str(shop / "bert"), str(shop / "train.jsonl"),
                         from_scratch=True, batch=8, epochs=1)  # fmt: skip
    training = Training(config, tmp_path / "run")
    run_training(training, tmp_path / "run", Console(file=io.StringIO()))
    plain = training.drawn()  # dropout draws: it must draw the same
    with training.apart(plain, training.splits.training) as trainer:
        trainer.train()
    found = dict(training.trained().named_parameters())
    for name, p in plain.named_parameters():
        assert torch.equal(p, found[name]), name


def test_a_language_model_with_lora_keeps_tokens(shop):
    jsonl(shop / "texts.jsonl", [{"text": row["text"]} for row in texts(48)])
    said = inrun_command(
        shop, "train", "--model", "gpt", "--from-scratch", "--data", "texts.jsonl", "--lora", 2,
        "--keep-tokens", "--batch", 8, "--accumulate", 2, "--epochs", 1, "--out", "lm",
    )  # fmt: skip
    assert "causal-lm: " in said
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
    training = open_training(shop / "seen")
    assert training.score(training.trained()) > 0.5
    first = samples.to_pylist()[0]
    asked = training.query(
        {"image": str(shop / "pictures" / first["file"]), "label": first["label"]}
    )
    known = training.fetch([first["sample_id"]])
    assert all(torch.equal(asked[name], known[name]) for name in known)


def test_an_image_model_of_transformers_gets_its_own_pixels(shop, tmp_path):
    import transformers

    model = tmp_path / "vit"
    transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        image_size=16, patch_size=8,
    ).save_pretrained(model)  # fmt: skip
    setting = {"task": "image-classification", "model": str(model), "epochs": 1, "batch": 8,
               "data": str(shop / "pictures")}  # fmt: skip
    with pytest.raises(MisuseError, match=r"image processor .*preprocessor_config\.json"):
        Training(TrainConfig(**setting))
    mean = [0.25, 0.5, 0.75]
    processor = transformers.ViTImageProcessorPil(
        size={"height": 16, "width": 16}, image_mean=mean, image_std=[1.0, 1.0, 1.0]
    )
    processor.save_pretrained(model)
    found = run(tmp_path / "run", **setting)
    training = open_training(tmp_path / "run")
    pixels = training.fetch(training.ids[:1])["pixel_values"]
    assert pixels.shape == (1, 3, 16, 16)
    np.testing.assert_allclose((pixels + torch.tensor(mean).view(3, 1, 1)).amin(), 0, atol=1e-6)
    assert found.values().num_rows == len(training.ids)
    assert 0 <= training.score(training.trained()) <= 1


def test_the_config_runs_again_to_the_same_values(shop, classified):
    folder, _ = classified
    inrun_command(shop, "train", "--config", "texts/config.json", "--out", "again")
    first, second = (inrun.load(f).values() for f in (folder, shop / "again"))
    assert first["value"].to_pylist() == second["value"].to_pylist()


FORKED = """
import json, os, signal, sys
import torch._dynamo  # which the first optimizer would import, in each process
from inrun.cli import main
from inrun.cli._main import app
from inrun.training import _trainer
from tests.processes import fork

def kill_in_a_step():
    plain = _trainer.RowTrainer.training_step

    def step(self, *arguments, **settings):
        if self.state.global_step == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return plain(self, *arguments, **settings)

    _trainer.RowTrainer.training_step = step

def kill_in_a_checkpoint():  # while the fifth one is written
    plain = _trainer.write_state

    def write(path, state):
        if "checkpoint-5" in str(path):
            os.kill(os.getpid(), signal.SIGKILL)
        plain(path, state)

    _trainer.write_state = write

codes, (killed, two) = {}, json.loads(sys.argv[1])
for place, arguments in killed.items():  # forks: the imports are paid for once
    if not os.fork():
        {"step": kill_in_a_step, "checkpoint": kill_in_a_checkpoint}[place]()
        sys.argv = ["inrun", *arguments]
        main()
    codes[place] = os.waitstatus_to_exitcode(os.wait()[1])
json.dump(codes, open("codes.json", "w"))
sys.argv = ["inrun", *two]
fork(lambda folder: main(), None, 2)  # in torchrun's environment
"""
KINDS = {
    "checkpoint": ("bert",),
    "step": ("gpt", "--task", "causal-lm", "--keep-tokens"),
}


TWO = ("train", "--model", "cnn", "--epochs", "2", "--contraction", "dense", "--accumulate", "2")


@pytest.fixture(scope="module")
def forked(shop, tmp_path_factory):
    """The folder of two runs that were killed, by place, and of one of two processes.

    And what the killed ones were started with, and what all have printed.
    """
    folder = tmp_path_factory.mktemp("forked")
    started = {
        place: ["train", "--model", str(shop / model), *more, "--data", str(shop / "train.jsonl"),
                "--from-scratch", "--batch", "8", "--epochs", "2"]
        for place, (model, *more) in KINDS.items()
    }  # fmt: skip
    asked = {place: [*a, "--save-every", "0", "--out", place] for place, a in started.items()}
    two = [*TWO, "--data", str(shop / "pictures"), "--batch", "4", "--out", "two"]
    here = Path(__file__).parents[2]
    paths = {"PYTHONPATH": os.pathsep.join(map(str, (here, here / "src")))}
    done = subprocess.run(
        [sys.executable, "-c", FORKED, json.dumps([asked, [*two, "--save-every", "0"]])],
        cwd=folder, env=os.environ | paths | {"TOKENIZERS_PARALLELISM": "false"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    codes = json.loads((folder / "codes.json").read_text())
    assert codes == dict.fromkeys(KINDS, -signal.SIGKILL)
    return folder, started, done.stdout


@pytest.mark.parametrize("place", KINDS)
def test_a_run_that_was_killed_goes_on_to_the_same_end(forked, tmp_path, place):
    folder, started, _ = forked
    shutil.copytree(folder / place, tmp_path / "cut")
    inrun_command(tmp_path, *started[place], "--out", "whole")
    said = inrun_command(tmp_path, "train", "--resume", "cut")
    assert "Trained 10 steps" in said
    whole, cut = (inrun.load(tmp_path / name) for name in ("whole", "cut"))
    assert whole.values().to_pylist() == cut.values().to_pylist()
    assert whole.ledger().to_pylist() == cut.ledger().to_pylist()
    samples = [pq.read_table(tmp_path / name / "samples.parquet") for name in ("whole", "cut")]
    assert samples[0]["mean_loss"].to_pylist() == samples[1]["mean_loss"].to_pylist()
    trained = [open_training(tmp_path / name).trained() for name in ("whole", "cut")]
    for p, q in zip(*(model.parameters() for model in trained), strict=True):
        assert torch.equal(p, q)
    if place == "step":
        tokens = [pq.read_table(tmp_path / name / "tokens") for name in ("whole", "cut")]
        assert tokens[0].to_pylist() == tokens[1].to_pylist()
    assert not (tmp_path / "cut" / "checkpoints").exists()


def a_bit_flipped(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def test_the_keyboard_stops_between_steps(shop, tmp_path, monkeypatch):
    config = TrainConfig("image-classification", "cnn", str(shop / "pictures"), batch=8)
    plain, before = _trainer.RowTrainer.training_step, signal.getsignal(signal.SIGINT)

    def step(self, *arguments, **settings):
        if self.state.global_step == 3:
            os.kill(os.getpid(), signal.SIGINT)  # in the middle of the fourth step
        return plain(self, *arguments, **settings)

    monkeypatch.setattr(_trainer.RowTrainer, "training_step", step)
    with pytest.raises(TrainingInterrupt, match="after step 4 of 18"):
        run_training(Training(config), tmp_path / "run", Console(file=io.StringIO()))
    assert signal.getsignal(signal.SIGINT) is before
    monkeypatch.setattr(_trainer.RowTrainer, "training_step", plain)
    (checkpoint,) = (tmp_path / "run" / "checkpoints").glob("checkpoint-*")
    names = {path.name for path in checkpoint.iterdir()} - {VALUES}  # which is for people
    assert len(names) > 6
    for name in sorted(names):  # the Trainer's files and ours
        for harm in (a_bit_flipped, Path.unlink):
            content = (checkpoint / name).read_bytes()
            harm(checkpoint / name)
            said = inrun_command(tmp_path, "train", "--resume", "run", code=2)
            assert "Traceback" not in said
            ours = name.startswith("inrun")  # without one of which a checkpoint is not whole
            assert name in said or (ours and ("no checkpoint" in said or "digest" in said))
            (checkpoint / name).write_bytes(content)
    said = inrun_command(tmp_path, "train", "--resume", "run")
    assert "Trained 18 steps" in said
    assert inrun.load(tmp_path / "run").ledger()["step"].to_pylist() == list(range(1, 19))


def test_two_processes_are_one_with_their_batches_together(shop, forked, tmp_path):
    folder, _, said = forked
    assert said.count("Trained 6 steps") == 1  # one process speaks
    arguments = (*TWO, "--data", shop / "pictures", "--batch", 8, "--out", "one")
    inrun_command(tmp_path, *arguments)
    one, two = inrun.load(tmp_path / "one"), inrun.load(folder / "two")
    values = [r.values().sort_by("sample_id")["value"].to_numpy() for r in (one, two)]
    np.testing.assert_allclose(*values, rtol=5e-3, atol=1e-3 * np.abs(values[0]).max())
    means = [r.samples()["mean_loss"].to_numpy() for r in (one, two)]
    np.testing.assert_allclose(*means, rtol=1e-3)


def test_the_trainers_own_arguments_reach_it(shop, tmp_path):
    arguments = ("train", "--model", shop / "bert", "--from-scratch", "--data",
                 shop / "train.jsonl", "--batch", 8, "--epochs", 2)  # fmt: skip
    inrun_command(tmp_path, *arguments, "--out", "whole")
    said = inrun_command(
        tmp_path, *arguments, "--out", "half", "--trainer", "bf16=true", "--trainer",
        "report_to=tensorboard", "--trainer", "eval_strategy=epoch",
    )  # fmt: skip
    assert said.count("evaluation: loss") == 2
    whole, half = (inrun.load(tmp_path / name) for name in ("whole", "half"))
    found = [r.values()["value"].to_numpy() for r in (whole, half)]
    assert not np.array_equal(*found)
    assert np.corrcoef(*found)[0, 1] > 0.98
    assert list((tmp_path / "half" / "checkpoints").rglob("events.out.tfevents*"))
    assert read_config(tmp_path / "half").trainer == {
        "bf16": True, "report_to": "tensorboard", "eval_strategy": "epoch"
    }  # fmt: skip


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


def test_no_arguments_explain_themselves(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["train"])
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
        ({"model": "/nowhere"}, "could not be loaded"),
        ({"data": "nowhere.csv"}, "does not exist"),
        ({"trainer": {"bf17": True}}, "bf17: transformers.TrainingArguments has no such"),
        ({"trainer": {"seed": 1}}, "seed is set by the other options"),
        ({"trainer": {"optim": "best"}}, "The Trainer refuses its arguments"),
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
    assert task_seen(str(shop / "pictures"))[0] == "image-classification"
    assert task_seen(str(shop / "train.csv")) == ("text-classification", "the column 'label'")
    assert task_seen(str(shop / "train.csv"), "who")[1] == "the column 'who'"
    with pytest.raises(MisuseError, match="no column 'stars'; it has text, label, who"):
        task_seen(str(shop / "train.csv"), "stars")
    rows = [{"text": row["text"]} for row in texts(4)]
    assert task_seen(str(jsonl(shop / "plain.jsonl", rows)))[0] == "causal-lm"


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
    model = training.drawn(1000)
    assert not torch.equal(next(model.parameters()), next(training.drawn(1001).parameters()))


def test_a_plan_is_what_the_training_takes(shop):
    options = ("--model", "cnn", "--data", "pictures", "--epochs", 4, "--batch", 8)
    said = inrun_command(shop, "plan", *options)
    assert "24 steps of 8 rows" in said
    config = TrainConfig("image-classification", "cnn", str(shop / "pictures"), epochs=4, batch=8)
    planned = plan_training(Training(config))
    found = run(shop / "planned", **dataclasses.asdict(config) | {"from_scratch": False})
    size = {name: sum(f.stat().st_size for f in (shop / "planned" / name).rglob("*.*"))
            for name in ("visits", "ledger", "model")}  # fmt: skip
    assert 0.5 < (size["visits"] + size["ledger"]) / planned.disk["values and books"] < 2
    assert 0.9 < size["model"] / planned.disk["trained model"] < 1.2
    assert planned.steps == found.ledger()["step"].to_pylist()[-1]
    assert planned.parameters == sum(
        p.numel() for p in open_training(found.path).drawn().parameters()
    )
    assert planned.memory_plain > 0
    assert planned.seconds > planned.seconds_plain > 0


def test_a_recorded_run_can_be_looked_ahead_along(shop):
    inrun_command(
        shop, "train", "--model", "cnn", "--data", "pictures", "--epochs", 1, "--record",
        "--out", "recorded",
    )  # fmt: skip
    training = open_training(shop / "recorded")
    result = inrun.lookahead(training.trajectory(), training.utility())
    assert result.values()["sample_id"].to_pylist() == sorted(training.ids)
    assert torch.isfinite(torch.tensor(result.values()["value"].to_pylist())).all()
