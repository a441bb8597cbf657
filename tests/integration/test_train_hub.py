"""`inrun train` with names of a hub in place of folders, against a hub on this machine."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import transformers

import inrun
from tests.integration.local_hub import local_hub
from tests.integration.train_data import jsonl, model_folder, texts

COMMAND = str(Path(sys.executable).with_name("inrun"))


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    root = tmp_path_factory.mktemp("hub")
    model = root / "models" / "acme" / "tiny"
    model_folder(model, "bert")
    config = transformers.AutoConfig.from_pretrained(model, num_labels=2)
    transformers.AutoModelForSequenceClassification.from_config(config).save_pretrained(model)
    data = root / "datasets" / "acme" / "reviews"
    data.mkdir(parents=True)
    rows = texts(48)
    jsonl(data / "train.jsonl", rows[:40])
    jsonl(data / "validation.jsonl", rows[40:44])
    jsonl(data / "test.jsonl", rows[44:])
    with local_hub(root) as address:
        yield address


def train(hub, folder, *arguments):
    there = {"HF_ENDPOINT": hub, "HF_HOME": str(folder / "home"), "HF_HUB_DISABLE_XET": "1"}
    offline = {"HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE"}
    kept = {name: value for name, value in os.environ.items() if name not in offline}
    return subprocess.run(
        [COMMAND, "train", *arguments, "--batch", "8", "--epochs", "1", "--out", "run"],
        cwd=folder, env=kept | there, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_model_and_data_come_from_the_hub(hub, tmp_path):
    same = "acme/reviews"
    done = train(
        hub, tmp_path, "--model", "acme/tiny", "--data", same, "--validation", same, "--test", same
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert inrun.load(tmp_path / "run").values().num_rows == 40
    config = json.loads((tmp_path / "run" / "config.json").read_text())["train"]
    assert (config["model"], config["data"]) == ("acme/tiny", "acme/reviews")


def test_a_name_that_the_hub_does_not_know_is_said(hub, tmp_path):
    done = train(hub, tmp_path, "--model", "acme/tiny", "--data", "acme/none")
    assert done.returncode == 2
    assert "acme/none is neither a file nor a folder here" in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()
