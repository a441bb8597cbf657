"""Recorded runs: replays that are the run, schedules, files, and errors that say what is wrong."""

import gc
import json
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import inrun
from inrun.errors import (
    InvariantError,
    MisuseError,
    NotSupportedError,
    ReplaceLayerError,
    StoreError,
)
from inrun.replay import looked_ahead
from inrun.replay._removal import push_named, removal_named
from inrun.replay._sweep import Method, windows
from inrun.replay._trajectory import COPIES
from tests.unit.replay.test_lookahead import adamw, recorded, training, utility, values_of

IDS = range(12)


def values(run, train, copies=COPIES):
    whole = windows(None, len(run.steps))
    how = Method(whole, removal_named("renormalise"), push_named("tangent"), copies=copies)
    return values_of(looked_ahead(run, utility(train), how), IDS)


def as_it_was(train):
    """What opens a recorded run again."""
    return inrun.Replayable(*train.start(), train.losses, train.fetch)


def as_float(train):
    """The same recipe in float32, as people train."""
    start = train.start

    def single():
        model, optimizer = start()
        model.float()
        return model, optimizer

    train.start, train.data = (
        single,
        tuple(t.float() if t.is_floating_point() else t for t in train.data),
    )
    return train


@pytest.mark.parametrize("kind", ["double", "float"])
@pytest.mark.parametrize("name", ["mlp", "gpt2-tied"])
def test_a_replay_ends_where_the_run_ended(name, kind, tmp_path):
    train = training(name, clip=0.3, blocks=2)
    train = as_float(train) if kind == "float" else train
    run = recorded(train, folder=tmp_path / "run", budget=1)
    assert run.kept == [0, len(run.steps)]
    run.check()


@pytest.mark.parametrize("copies", [2, 3, 16])
def test_few_states_give_the_same_values(copies, tmp_path):
    train = training("mlp", steps=23)
    wanted = values(recorded(train), train)
    for name, budget, steps in [("one", 1, None), ("some", 40_000, None), ("known", 40_000, 23)]:
        run = recorded(train, folder=tmp_path / name, budget=budget, steps=steps)
        assert 2 <= len(run.kept) < 23
        np.testing.assert_allclose(values(run, train, copies), wanted, rtol=1e-7)


def test_a_budget_is_kept(tmp_path):
    train, budget = training("mlp", steps=40), 60_000
    run = recorded(train, folder=tmp_path / "run", budget=budget)
    states = sum(f.stat().st_size for f in (tmp_path / "run" / "states").iterdir())
    assert budget / 4 < states <= budget
    assert run.bytes_on_disk > states


def test_a_recorded_run_opens_in_another_process(tmp_path):
    train = training("llama", clip=0.3, blocks=2)
    wanted = values(recorded(train, folder=tmp_path / "run"), train)
    model, optimizer = train.start()
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()  # the states come from the folder
    run = inrun.load(
        tmp_path / "run", inrun.Replayable(model, optimizer, train.losses, train.fetch)
    )
    np.testing.assert_array_equal(values(run, train), wanted)
    assert all(
        float(p.detach().abs().max()) == 0 for p in model.parameters()
    )  # the caller's stays alone


def test_recording_and_looking_ahead_leave_training_alone():
    train = training("mlp", clip=0.3, blocks=2)
    plain = [p.clone() for model in train.run({}) for p in model.parameters()]
    kept, model_of = [], train.start

    def watched():
        model, optimizer = model_of()
        optimizer.register_step_post_hook(
            lambda *_: kept.extend(p.detach().clone() for p in model.parameters())
        )
        return model, optimizer

    train.start = watched
    torch.manual_seed(7)
    run = recorded(train)
    before = torch.get_rng_state()
    values(run, train)
    assert torch.equal(before, torch.get_rng_state())
    for a, b in zip(kept[: len(plain)], plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-15)


class WithDropout(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Dropout(0.3), nn.Linear(16, 4))

    def forward(self, x):
        return self.body(x)


def with_dropout():
    train = training("mlp", adamw)
    train.build = WithDropout
    return train


def test_dropout_is_replayed_with_its_random_numbers(tmp_path):
    train = with_dropout()
    run = recorded(train, folder=tmp_path / "run", budget=1)
    assert all(block.random for step in run.steps for block in step.blocks)
    torch.rand(5)
    run.check()
    assert len(list((tmp_path / "run" / "random").iterdir())) == len(run.steps)
    # values: against central differences with the same masks, drawn in the same order
    chosen = (0, 3)
    wanted = []
    for i in chosen:
        sides = []
        for sign in (1, -1):
            *_, model = train.run({i: 1 + sign * 2e-7})
            model.eval()
            with torch.no_grad():
                sides.append(
                    float(utility(train).loss_fn(model, utility(train).batches["validation"]))
                )
        wanted.append(-(sides[0] - sides[1]) / 4e-7)
    found = values_of(inrun.lookahead(run, utility(train), removal="drop", damped=False), chosen)
    np.testing.assert_allclose(found, wanted, rtol=1e-4)


def test_evaluation_mode_is_replayed():
    train = with_dropout()
    start = train.start

    def resting():
        model, optimizer = start()
        model.body.eval()
        return model, optimizer

    train.start = resting
    run = recorded(train)
    assert not any(block.random for step in run.steps for block in step.blocks)
    run.check()


# ---- errors say what is wrong


def loop(train, losses=None, fetch=None, clip_norm=None, between=lambda m: None, model=None):
    started, optimizer = model or train.start()
    recorder = inrun.record(
        started, optimizer, losses or train.losses, fetch or train.fetch, clip_norm=clip_norm
    )
    for (ids,) in train.batches:
        with recorder.batch(ids):
            train.losses(started, train.fetch(ids)).sum().backward()
        between(started)
        optimizer.step()
        optimizer.zero_grad()
    return recorder.finish()


def test_terms_that_are_not_the_loss_are_named_with_their_factor():
    train = training("mlp")
    with pytest.raises(MisuseError, match="add up to 4 times the training loss"):
        loop(train, losses=lambda m, b: train.terms(m, *b))


def test_terms_of_other_rows_are_noticed():
    train = training("mlp")
    with pytest.raises(MisuseError, match="other rows"):
        loop(train, fetch=lambda ids: train.fetch([(i + 1) % 12 for i in ids]))


def test_a_random_fetch_is_named():
    train = training("mlp")
    rng = np.random.default_rng(0)

    def noisy(ids):
        x, y = train.fetch(ids)
        return x + torch.as_tensor(rng.normal(size=x.shape)), y

    with pytest.raises(InvariantError, match="not torch's"):
        loop(train, fetch=noisy)


def test_a_mean_in_place_of_terms_is_refused():
    train = training("mlp")
    with pytest.raises(MisuseError, match="one loss term per row"):
        loop(train, losses=lambda m, b: train.losses(m, b).sum())


def test_clipping_that_nobody_declared_is_noticed():
    train = training("mlp")
    clip = lambda m: nn.utils.clip_grad_norm_(m.parameters(), 0.1)  # noqa: E731
    with pytest.raises(MisuseError, match="clip_norm"):
        loop(train, between=clip)
    loop(train, between=clip, clip_norm=0.1).check()


def test_a_step_without_a_block_is_refused():
    train = training("mlp")
    model, optimizer = train.start()
    inrun_recorder = inrun.record(model, optimizer, train.losses, train.fetch)
    train.losses(model, train.fetch([0, 1])).sum().backward()
    with pytest.raises(MisuseError, match=r"without a recorder\.batch"):
        optimizer.step()
    with pytest.raises(MisuseError, match="No optimizer step"):
        inrun_recorder.finish()


def test_data_that_changed_is_found_at_its_step(tmp_path):
    train = training("mlp")
    run = recorded(train, folder=tmp_path / "run", budget=1)
    last = train.batches[3][0][0]
    first_visit = next(i for i, (ids,) in enumerate(train.batches) if last in ids) + 1
    train.data[0][last] += 1.0
    with pytest.raises(InvariantError, match=f"left the run at step {first_visit}"):
        run.check()
    with pytest.raises(InvariantError, match="left the run at step"):
        inrun.lookahead(run, utility(train))


def test_weights_moved_by_something_else_are_found(tmp_path):
    train = training("mlp")
    model, optimizer = train.start()
    recorder = inrun.record(model, optimizer, train.losses, train.fetch, tmp_path / "run", budget=1)
    for number, (ids,) in enumerate(train.batches):
        with recorder.batch(ids):
            train.losses(model, train.fetch(ids)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        if number == len(train.batches) - 1:
            with torch.no_grad():
                next(model.parameters()).mul_(0.5)
    with pytest.raises(InvariantError, match="besides optimizer"):
        recorder.finish().check()


def as_older_recording(folder):
    """Makes a recording what earlier versions wrote: no digests."""
    manifest = json.loads((folder / "trajectory.json").read_text())
    for name in ("files", "digest"):
        manifest.pop(name)
    (folder / "trajectory.json").write_text(json.dumps(manifest | {"format": 1}))


def test_a_flipped_bit_anywhere_in_a_recording_is_a_store_error(tmp_path):
    train = training("mlp", clip=0.3)
    recorded(train, folder=tmp_path / "run", budget=1)
    files = sorted(path for path in (tmp_path / "run").rglob("*") if path.is_file())
    assert {path.name for path in files} >= {"trajectory.json", "steps.jsonl"}
    draw = random.Random(0)
    for number in range(60):
        file = files[number % len(files)]
        content = file.read_bytes()
        bad = bytearray(content)
        bad[draw.randrange(len(bad))] ^= 1 << draw.randrange(8)
        file.write_bytes(bytes(bad))
        with pytest.raises(StoreError):
            run = inrun.load(tmp_path / "run", as_it_was(train))
            for state in run.kept:
                run.keeper.state(state)
        file.write_bytes(content)


def test_torn_and_missing_files_are_named(tmp_path):
    train = training("mlp")
    recorded(train, folder=tmp_path / "run")
    as_older_recording(tmp_path / "run")
    open_ = lambda: inrun.load(tmp_path / "run", as_it_was(train))  # noqa: E731
    with pytest.raises(StoreError, match="holds a recorded run already"):
        recorded(train, folder=tmp_path / "run")
    with pytest.raises(StoreError, match="not a recorded run"):
        inrun.load(tmp_path, as_it_was(train))
    lines = (tmp_path / "run" / "steps.jsonl").read_text().splitlines()
    (tmp_path / "run" / "steps.jsonl").write_text("\n".join(lines[:-1]))
    with pytest.raises(StoreError, match="first and the last"):
        open_()
    (tmp_path / "run" / "steps.jsonl").write_text("\n".join([*lines[:-1], lines[-1][:20]]))
    with pytest.raises(StoreError, match="torn"):
        open_()
    (tmp_path / "run" / "steps.jsonl").write_text("\n".join(lines) + "\n")
    part = tmp_path / "run" / "states" / "00000003.safetensors"
    part.write_bytes(part.read_bytes()[:100])
    with pytest.raises(StoreError, match="00000003"):
        values(open_(), train)
    model = nn.Linear(3, 3).double()
    another = inrun.Replayable(model, adamw(model), train.losses, train.fetch)
    other = inrun.load(tmp_path / "run", another)
    with pytest.raises(StoreError, match="another model"):
        values(other, train)


def test_settings_of_a_schedule_are_recorded(tmp_path):
    train = training("mlp", clip=0.3)
    start = train.start

    def scheduled():
        model, optimizer = start()
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: 0.5**n)
        optimizer.register_step_post_hook(lambda *_: schedule.step())
        return model, optimizer

    train.start = scheduled
    run = recorded(train, folder=tmp_path / "run", budget=1)
    rates = [step.groups[0]["lr"] for step in run.steps]
    np.testing.assert_allclose(rates, [3e-3 * 0.5**n for n in range(len(rates))])
    run.check()
    lines = (tmp_path / "run" / "steps.jsonl").read_text().splitlines()
    assert json.loads(lines[1])["groups"] is not None


def test_frozen_parameters_are_not_recorded(tmp_path):
    train = training("mlp")
    build = train.build

    def partly():
        model = build()
        model[0].requires_grad_(False)
        return model

    train.build = partly
    train.optimizer = lambda m: torch.optim.AdamW([p for p in m.parameters() if p.requires_grad])
    run = recorded(train, folder=tmp_path / "run")
    assert {key.split("/")[1] for key in run.keeper.state(0)} == {"2.weight", "2.bias"}
    assert np.isfinite(values(run, train)).all()


def test_what_cannot_be_recorded_is_refused():
    losses = lambda m, b: F.mse_loss(m(b), b, reduction="none").sum(1)  # noqa: E731
    fetch = lambda ids: torch.zeros(len(ids), 4)  # noqa: E731
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    with pytest.raises(ReplaceLayerError, match="BatchNorm1d"):
        inrun.record(model, torch.optim.SGD(model.parameters(), lr=0.1), losses, fetch)
    model = nn.Linear(4, 4)
    with pytest.raises(NotSupportedError, match="LBFGS"):
        inrun.record(model, torch.optim.LBFGS(model.parameters()), losses, fetch)
    other = nn.Linear(4, 4)
    both = torch.optim.SGD([*model.parameters(), *other.parameters()], lr=0.1)
    with pytest.raises(MisuseError, match="not the model's"):
        inrun.record(model, both, losses, fetch)


def test_names_and_horizons_that_are_none_are_refused():
    train = training("mlp")
    run = recorded(train)
    for wrong in ({"removal": "x"}, {"push": "x"}):
        with pytest.raises(MisuseError):
            inrun.lookahead(run, utility(train), **wrong)
    for wrong in (
        {"samples": [0]}, {"samples": [99], "push": "finite"}, {"samples": [], "push": "finite"},
    ):  # fmt: skip
        with pytest.raises(MisuseError, match="samples"):
            inrun.lookahead(run, utility(train), **wrong)
    with pytest.raises(MisuseError, match="horizon is 0"):
        inrun.lookahead(run, utility(train), 0)
    with pytest.raises(MisuseError, match="at least 2 states"):
        values(run, train, copies=1)


@pytest.mark.parametrize("ids", ["abc", [1, "a"], [1.5, 2.5], [None]])
def test_ids_are_ints_or_strings(ids):
    train = training("mlp")
    recorder = inrun.record(*train.start(), train.losses, train.fetch)
    with pytest.raises(MisuseError, match=r"one id per row|The id at position (0|1) is"):
        with recorder.batch(ids):
            pass


def test_finishing_or_dropping_a_recorder_takes_its_hooks_off():
    train = training("mlp")
    model, optimizer = train.start()
    recorder = inrun.record(model, optimizer, train.losses, train.fetch)
    assert len(optimizer._optimizer_step_pre_hooks) == 1
    del recorder
    gc.collect()
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks
    run = recorded(train)
    assert not run.replica.optimizer._optimizer_step_pre_hooks


def test_a_closure_is_refused():
    train = training("mlp")
    model, optimizer = train.start()
    recorder = inrun.record(model, optimizer, train.losses, train.fetch)
    with recorder.batch([0, 1]):
        train.losses(model, train.fetch([0, 1])).sum().backward()
    with pytest.raises(MisuseError, match="closure"):
        optimizer.step(lambda: None)


def test_a_rule_without_derivative_is_recorded_and_retrained_but_not_looked_through():
    train = training("mlp", lambda m: torch.optim.Rprop(m.parameters(), lr=1e-3))
    run = recorded(train, budget=1)
    run.check()
    table = inrun.truth.retrain(run, utility(train), [0])
    assert np.isfinite(table["value"].to_numpy()).all()
    with pytest.raises(NotSupportedError, match="steps by signs"):
        inrun.lookahead(run, utility(train))
