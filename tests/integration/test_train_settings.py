"""`inrun train` and `inrun plan` with payout, with fewer steps scored, and with less validation."""

import contextlib
import io
import json
import sys

import numpy as np
import pytest
from rich.console import Console

import inrun
from inrun.cli import main
from inrun.errors import MisuseError, StoreError
from inrun.training import TrainConfig, Training, read_config, run_training
from tests.integration.test_train import Cut, cut_after
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


def options(verb, out, *more):
    """A short training of a small network on images."""
    return (
        verb, "--model", "cnn", "--data", "pictures", "--epochs", 2, "--batch", 8, "--out", out,
        *more,
    )  # fmt: skip


def test_payout_from_the_command_line(place, command):
    (place / "scratch").mkdir()
    settings = ("--payout", WINDOW, "--payout-to", "scratch", "--capture", "offload")
    said = command(*options("plan", "paid", *settings))
    assert "payout, while it trains" in said
    said = command(*options("train", "paid", *settings))
    assert f"payout={WINDOW} will hold" in said
    assert f"through momentum in the {WINDOW} after" in said
    assert list((place / "scratch").iterdir()) == []
    run, config = inrun.load(place / "paid"), read_config(place / "paid")
    assert (config.payout, config.payout_to) == (WINDOW, str(place / "scratch"))
    assert np.abs(run.values()["paid_out"].to_numpy()).min() > 0
    command("train", "--config", "paid/config.json", "--payout-to", "cpu", "--out", "again")
    again = inrun.load(place / "again")
    assert again.values() == run.values()


def test_a_plan_says_what_payout_will_hold(place, command):
    settings = ("--payout", 10)
    said = command(*options("plan", "planned", *settings))
    assert "Payout holds" in said
    planned = json.loads((place / "planned" / "plan.json").read_text())["memory_of_payout"]
    held = {}
    config = TrainConfig(
        "image-classification", "cnn", str(place / "pictures"), epochs=2, batch=8, payout=10
    )
    training = Training(config)
    model, optimizer = training.start()
    attribution = inrun.attach(
        model,
        optimizer,
        training.judged_by(),
        momentum_window=10,
        options=inrun.Options(progress=False),
    )
    for parts in training.batches():
        for ids in parts:
            with attribution.batch(ids):
                training.loss_fn(model, training.fetch(ids)).backward()
        optimizer.step()
        optimizer.zero_grad()
        held = attribution.waiting if attribution.waiting["steps"] == 10 else held
    attribution.detach()
    # the last batch of an epoch is smaller, and the sum's terms turn over
    assert planned == pytest.approx(held["bytes"], rel=0.2)


@pytest.mark.parametrize(
    ("settings", "says", "rows"),
    [
        (("--every", 3), "Scored 4 of 12 steps: the standard error", 4),
        (("--every", 0.999), "the standard error of a row's total is", 12),
        (("--max-overhead", 0.5), "the standard error of a row's total is", None),
        (("--rotating", 2), "the residual is not known", 12),
    ],
)
def test_less_work_a_step_from_the_command_line(place, command, settings, says, rows):
    out = settings[0].strip("-") + str(settings[-1])
    said = command(*options("train", out, *settings))
    assert says in said
    assert "nan" not in said
    run = inrun.load(place / out)
    assert rows is None or run.ledger().num_rows == rows
    assert run.targets == ("digit 0", "digit 1")
    command("report", out)
    plan = command(*options("plan", f"{out}-plan", *settings))
    made = json.loads((place / f"{out}-plan" / "plan.json").read_text())
    assert made["scored"] == pytest.approx({"--every": settings[-1] ** -1 if rows == 4 else 0.999}
                                           .get(settings[0], made["scored"]))  # fmt: skip
    assert ("stand for the others" in plan) == (made["scored"] < 1)


def test_where_no_step_was_drawn_the_command_says_so(place, command):
    said = command(*options("train", "never", "--every", 0.0001))
    assert "None of the 12 steps was drawn" in said


def test_no_arguments_name_the_settings(command):
    said = command("train", code=2)
    for option in ("--payout", "--payout-to", "--every", "--max-overhead", "--rotating"):
        assert option in said
    assert "inrun train --model PATH --data train.csv --payout 20" in said


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (("--payout", 3, "--every", 2), "every step must be scored"),
        (("--payout", 3, "--max-overhead", 0.1), "every step must be scored"),
        (("--payout", 3, "--capture", "stream"), "shares must be kept"),
        (("--payout", 3, "--estimator", "sgd"), "estimator='path'"),
        (("--payout", -1), "no number of steps"),
        (("--payout-to", "cpu"), "there is no "),
        (("--every", 2, "--max-overhead", 0.1), "Give one of them"),
        (("--every", 1.5), "no whole number"),
        (("--max-overhead", 0), "leaves no time"),
        (("--rotating", 0), "rotating is 0"),
        (("--capture", "held"), "hold, offload, stream"),
        (("--estimator", "best"), "path"),
        (("--keep-tokens", "--payout", 3), "keep_tokens and payout exclude"),
        (("--keep-tokens", "--capture", "stream"), "keep_tokens and capture='stream' exclude"),
        (("--record", "--accumulate", 2), "record and accumulate exclude"),
    ],
)
def test_what_excludes_each_other_is_said_before_anything_is_loaded(command, settings, says):
    for verb in ("train", "plan"):
        said = command(verb, "--model", "nowhere", "--data", "nowhere.csv", *settings, code=2)
        assert says in said


def test_a_folder_that_is_not_there_is_said_before_data_is_read(command, place):
    said = command(*options("train", "lost", "--payout", 3, "--payout-to", "nowhere"), code=2)
    assert "is no folder" in said
    assert not (place / "lost").exists()


def trained(place, folder, stop=None, **settings):
    """A training that writes a checkpoint after every step, cut off where it is told to."""
    config = TrainConfig(
        "image-classification", "cnn", str(place / "pictures"), epochs=2, batch=8,
        contraction="dense", **{"save_every": 0} | settings,
    )  # fmt: skip
    quiet = Console(file=io.StringIO())
    with pytest.MonkeyPatch.context() as patch:
        if stop is not None:
            cut_after(patch, stop)
        with contextlib.suppress(Cut):
            run_training(Training(config), folder, quiet)
    if stop is not None:
        run_training(Training(read_config(folder), folder), folder, quiet, resume=True)
    return inrun.load(folder)


def alike(run, other):
    """Whether two runs have the same books. Sums over parameters may be taken in another order."""
    books, truth = (
        r.ledger().drop_columns(["estimator", "note"]).to_pandas() for r in (run, other)
    )
    return np.allclose(books, truth, rtol=1e-5, atol=1e-7, equal_nan=True)


def test_checkpoints_leave_payouts_as_they_are_and_a_cut_ends_the_open_windows(place, tmp_path):
    undisturbed = trained(place, tmp_path / "undisturbed", payout=WINDOW, save_every=1e6)
    whole = trained(place, tmp_path / "whole", payout=WINDOW)
    assert whole.values() == undisturbed.values()
    assert alike(whole, undisturbed)
    cut = trained(place, tmp_path / "cut", stop=6, payout=WINDOW)
    books, truth = cut.ledger().to_pandas(), whole.ledger().to_pandas()
    assert books["step"].tolist() == list(range(1, 13))
    for entry in ("opening_loss", "closing_loss", "samples"):
        assert books[entry].tolist() == truth[entry].tolist()
    same = np.isclose(books["paid_out"], truth["paid_out"], rtol=1e-3)  # summed in other groups
    assert same.tolist() == [step <= 6 - WINDOW or step > 6 for step in range(1, 13)]
    assert cut.visits().num_rows == whole.visits().num_rows


def test_a_cut_run_of_some_steps_or_of_parts_goes_on(place, tmp_path):
    for number, settings in enumerate(({"every": 2}, {"rotating": 2})):
        whole = trained(place, tmp_path / f"whole{number}", **settings)
        cut = trained(place, tmp_path / f"cut{number}", stop=5, **settings)
        assert cut.values() == whole.values()
        assert alike(cut, whole)


def test_a_place_is_looked_for_and_settings_are_checked_without_a_command(tmp_path):
    config = TrainConfig("causal-lm", "gpt", "rows.jsonl", payout=2, payout_to=str(tmp_path / "no"))
    with pytest.raises(StoreError, match="is no folder"):
        config.demand_place()
    with pytest.raises(MisuseError, match="shares must be kept"):
        TrainConfig("causal-lm", "gpt", "rows.jsonl", payout=2, capture="stream")
