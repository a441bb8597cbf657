"""`inrun train` with names of a hub in place of folders, against a hub on this machine."""

import json
import os
import subprocess
import sys

import pytest
import transformers

import inrun
from tests.integration.local_hub import local_hub
from tests.integration.train_data import jsonl, model_folder, texts

SAME = "acme/reviews"
COMMANDS = {
    "known": f"--model acme/tiny --data {SAME} --validation {SAME} --test {SAME}",
    "unknown": "--model acme/tiny --data acme/none",
}
# one process for both: which hub is asked is read when `transformers` is imported, for seconds
PROGRAM = """
import contextlib, io, json, sys
from inrun.cli import main

said = {}
for name, words in json.loads(sys.argv[1]).items():
    sys.argv = ["inrun", "train", *words.split(), "--batch", "8", "--epochs", "1", "--out", name]
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as ended:
            said[name] = ended.code or 0, out.getvalue(), err.getvalue()
json.dump(said, open("said.json", "w"))
"""


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


@pytest.fixture(scope="module")
def trained(hub, tmp_path_factory):
    """Where the commands ran, and by name their exit code, output and errors."""
    folder = tmp_path_factory.mktemp("trained")
    there = {"HF_ENDPOINT": hub, "HF_HOME": str(folder / "home"), "HF_HUB_DISABLE_XET": "1"}
    offline = {"HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE"}
    kept = {name: value for name, value in os.environ.items() if name not in offline}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(COMMANDS)],
        cwd=folder, env=kept | there, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder, json.loads((folder / "said.json").read_text())


def test_model_and_data_come_from_the_hub(trained):
    folder, said = trained
    assert said["known"][0] == 0, said["known"]
    assert inrun.load(folder / "known").values().num_rows == 40
    config = json.loads((folder / "known" / "config.json").read_text())["train"]
    assert (config["model"], config["data"]) == ("acme/tiny", "acme/reviews")


def test_a_name_that_the_hub_does_not_know_is_said(trained):
    folder, said = trained
    code, _, errors = said["unknown"]
    assert code == 2
    assert "acme/none is neither a file nor a folder here" in " ".join(errors.split())
    assert "Traceback" not in errors
    assert not (folder / "unknown").exists()
