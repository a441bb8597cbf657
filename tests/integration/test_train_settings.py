"""`inrun train` and `inrun plan`: momentum windows, fewer steps scored, less validation."""

import io
import sys

import numpy as np
import pytest
from rich.console import Console

import inrun
from inrun.cli import main
from inrun.errors import MisuseError, StoreError
from inrun.training import (
    TrainConfig,
    Training,
    _trainer,
    plan_training,
    read_config,
    run_training,
)
from tests.integration.train_data import images

WINDOW = 4


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("settings")
    images(folder / "pictures")
    return folder


@pytest.fixture
def command(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments, code=0):
        monkeypatch.setattr(sys, "argv", ["inrun", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        assert ended.value.code == code, printed.out + printed.err
        return " ".join((printed.out + printed.err).split())

    return run


def options(*more):
    """A short training of a small network on images."""
    return ("--model", "cnn", "--data", "pictures", "--epochs", 2, "--batch", 8, *more)


def test_a_momentum_window_from_the_command_line(place, command):
    (place / "scratch").mkdir()
    settings = ("--momentum-window", WINDOW, "--held-in", "scratch", "--capture", "offload")
    said = command("plan", *options(*settings))
    assert "momentum window, while it trains" in said
    said = command("train", *options(*settings), "--out", "paid")
    assert f"through momentum in the {WINDOW} after" in said
    assert list((place / "scratch").iterdir()) == []
    run, config = inrun.load(place / "paid"), read_config(place / "paid")
    assert (config.momentum_window, config.held_in) == (WINDOW, str(place / "scratch"))
    paid = run.values()["paid_out"].to_numpy()
    assert np.abs(paid).min() > 0
    command("train", "--config", "paid/config.json", "--held-in", "cpu", "--out", "again")
    again = inrun.load(place / "again")
    assert again.values() == run.values()


def test_a_plan_says_what_a_momentum_window_will_hold(place):
    config = configured(place, momentum_window=10)
    training, held = Training(config), {}
    planned = plan_training(training)
    assert "The momentum window holds" in planned.advice()

    class Watched(_trainer.InRun):
        def on_step_end(self, *arguments, **settings):
            waiting = self.attribution.waiting
            held.update(waiting if waiting["steps"] == 10 else {})

    watched = Watched(training.utility(), ids="sample_id", **config.attach_settings())
    with training.apart(training.drawn(), training.splits.training, [watched]) as trainer:
        trainer.train()
    # the last batch of an epoch is smaller, and the sum's terms turn over
    assert planned.memory_of_window == pytest.approx(held["bytes"], rel=0.2)


@pytest.mark.parametrize(
    ("settings", "says", "rows"),
    [
        (("--scored", 3), "Scored 4 of 12 steps: the standard error", 4),
        (("--scored", 0.999), "the standard error of a row's total is", 12),
        (("--budget", 0.5), "the standard error of a row's total is", None),
        (("--validation-parts", 2), "the residual is not known", 12),
    ],
)
def test_less_work_per_step_from_the_command_line(place, command, settings, says, rows):
    out = settings[0].strip("-") + str(settings[-1])
    said = command("train", *options(*settings), "--out", out)
    assert says in said
    assert "nan" not in said
    run = inrun.load(place / out)
    assert rows is None or run.ledger().num_rows == rows
    assert run.targets == ("digit 0", "digit 1")
    command("report", out)


def test_a_plan_of_fewer_steps_or_rows_says_so(place):
    every = plan_training(Training(configured(place)))
    some = plan_training(Training(configured(place, scored=3)))
    assert some.scored == pytest.approx(1 / 3)
    assert "stand for the others" in some.advice()
    assert some.disk["values and books"] < every.disk["values and books"]
    parts = plan_training(Training(configured(place, validation_parts=2)))
    assert parts.validation_rows == every.validation_rows // 2
    within = plan_training(Training(configured(place, budget=0.05)))
    assert within.scored < 1
    assert "stand for the others" not in every.advice()


def test_where_no_step_was_drawn_the_command_says_so(command):
    said = command("train", *options("--scored", 0.0001), "--out", "never")
    assert "None of the 12 steps was drawn" in said


def test_no_arguments_name_the_settings(command):
    said = command("train", code=2)
    for option in ("--momentum-window", "--held-in", "--scored", "--budget", "--validation-parts",
                   "--trainer"):  # fmt: skip
        assert option in said
    assert "inrun train --model PATH --data train.csv --momentum-window 20" in said


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (("--momentum-window", 3, "--scored", 2), "every step must be scored"),
        (("--momentum-window", 3, "--budget", 0.1), "every step must be scored"),
        (("--momentum-window", 3, "--capture", "stream"), "shares must be kept"),
        (("--momentum-window", 3, "--estimator", "sgd"), "estimator='path'"),
        (("--momentum-window", -1), "no number of steps"),
        (("--held-in", "cpu"), "there is no momentum_window"),
        (("--scored", 2, "--budget", 0.1), "Give one of them"),
        (("--scored", 1.5), "no whole number"),
        (("--budget", 0), "leaves no time"),
        (("--validation-parts", 0), "validation_parts=0"),
        (("--capture", "held"), "hold, offload, stream"),
        (("--contraction", "best"), "auto, dense"),
        (("--estimator", "best"), "path"),
        (("--keep-tokens", "--momentum-window", 3), "keep_tokens and momentum_window exclude"),
        (("--keep-tokens", "--capture", "stream"), "keep_tokens and capture='stream' exclude"),
        (("--record", "--accumulate", 2), "record and accumulate exclude"),
        (("--trainer", "bf16"), "must read NAME=VALUE"),
    ],
)
def test_what_excludes_each_other_is_said_before_anything_is_loaded(command, settings, says):
    for verb in ("train", "plan"):
        said = command(verb, "--model", "nowhere", "--data", "nowhere.csv", *settings, code=2)
        assert says in said


def test_a_recording_in_half_precision_is_refused_before_data_is_read(place):
    config = configured(place, record=True, trainer={"bf16": True}, data="nowhere.csv")
    with pytest.raises(inrun.errors.NotSupportedError, match="record and half precision exclude"):
        Training(config)


def test_a_folder_that_is_not_there_is_said_before_data_is_read(command, place):
    settings = ("--momentum-window", 3, "--held-in", "nowhere", "--out", "lost")
    said = command("train", *options(*settings), code=2)
    assert "is no folder" in said
    assert not (place / "lost").exists()


def configured(place, **settings):
    """A configuration whose runs write a checkpoint after every step."""
    return TrainConfig(
        **{
            "task": "image-classification", "model": "cnn", "data": str(place / "pictures"),
            "epochs": 2, "batch": 8, "contraction": "dense", "save_every": 0, **settings,
        }
    )  # fmt: skip


class Cut(Exception):  # noqa: N818
    """What ends a training in the middle."""


def trained(place, folder, stop=None, **settings):
    """A training, cut off without a farewell where it is told to, and resumed."""
    quiet = Console(file=io.StringIO())
    plain = _trainer.RowTrainer.training_step

    def step(self, *arguments, **more):
        if self.state.global_step == stop:
            raise Cut
        return plain(self, *arguments, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_trainer.RowTrainer, "training_step", step)
        if stop is None:
            run_training(Training(configured(place, **settings)), folder, quiet)
        else:
            with pytest.raises(Cut):
                run_training(Training(configured(place, **settings)), folder, quiet)
    if stop is not None:
        run_training(Training(read_config(folder), folder), folder, quiet, resume=True)
    return inrun.load(folder)


def alike(run, other):
    """Whether two runs have the same books. Sums over parameters may be taken in another order."""
    books, truth = (
        r.ledger().drop_columns(["estimator", "note"]).to_pandas() for r in (run, other)
    )
    return np.allclose(books, truth, rtol=1e-5, atol=1e-7, equal_nan=True)


def test_checkpoints_leave_windows_as_they_are_and_a_cut_ends_the_open_ones(place, tmp_path):
    undisturbed = trained(place, tmp_path / "plain", momentum_window=WINDOW, save_every=1e6)
    whole = trained(place, tmp_path / "whole", momentum_window=WINDOW)
    assert whole.values() == undisturbed.values()
    assert alike(whole, undisturbed)
    cut = trained(place, tmp_path / "cut", stop=6, momentum_window=WINDOW)
    books, truth = cut.ledger().to_pandas(), whole.ledger().to_pandas()
    assert books["step"].tolist() == list(range(1, 13))
    for entry in ("opening_loss", "closing_loss", "samples"):
        assert books[entry].tolist() == truth[entry].tolist()
    same = np.isclose(books["paid_out"], truth["paid_out"], rtol=1e-3)  # summed in other groups
    assert same.tolist() == [step <= 6 - WINDOW or step > 6 for step in range(1, 13)]
    assert cut.visits().num_rows == whole.visits().num_rows


def test_a_cut_run_of_some_steps_or_of_parts_goes_on(place, tmp_path):
    for number, settings in enumerate(({"scored": 2}, {"validation_parts": 2})):
        whole = trained(place, tmp_path / f"whole{number}", **settings)
        cut = trained(place, tmp_path / f"cut{number}", stop=5, **settings)
        assert cut.values() == whole.values()
        assert alike(cut, whole)


def test_a_place_is_looked_for_and_settings_are_checked_without_a_command(tmp_path):
    config = TrainConfig(
        "causal-lm", "gpt", "rows.jsonl", momentum_window=2, held_in=str(tmp_path / "no")
    )
    with pytest.raises(StoreError, match="is no folder"):
        config.require_place()
    with pytest.raises(MisuseError, match="shares must be kept"):
        TrainConfig("causal-lm", "gpt", "rows.jsonl", momentum_window=2, capture="stream")


def test_a_run_s_configuration_is_as_it_was_written_and_a_file_may_be_edited(tmp_path):
    TrainConfig("causal-lm", "gpt", "rows.jsonl", batch=4).write(tmp_path, rows=3)
    written = (tmp_path / "config.json").read_bytes()
    assert read_config(tmp_path).batch == 4
    for place in range(0, 8 * len(written), 37):
        changed = bytearray(written)
        changed[place // 8] ^= 1 << place % 8
        (tmp_path / "config.json").write_bytes(changed)
        with pytest.raises(StoreError):
            read_config(tmp_path)
    edited = tmp_path / "edited.json"
    edited.write_bytes(written.replace(b'"batch": 4', b'"batch": 8'))
    assert read_config(edited).batch == 8
