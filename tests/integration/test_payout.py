"""What momentum does later is paid to the samples that it came from, and the books still close."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import inrun
from inrun.errors import InRunWarning, MisuseError, NotSupportedError
from tests.oracles import payouts as oracle
from tests.oracles import shares as oracle_shares
from tests.settings import flat

BATCH, STEPS, WINDOW = 5, 11, 3


def loss_fn(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


OPTIMIZERS = {
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1),
    "adam with amsgrad": lambda p: torch.optim.Adam(p, lr=1e-2, amsgrad=True, betas=(0.8, 0.9)),
    "maximizing adam": lambda p: torch.optim.Adam(p, lr=1e-2, maximize=True),
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.8, dampening=0.3),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.7, nesterov=True),
    "adamax": lambda p: torch.optim.Adamax(p, lr=1e-2),
    "nadam": lambda p: torch.optim.NAdam(p, lr=1e-2),
    "radam": lambda p: torch.optim.RAdam(p, lr=1e-2),
}


class Training:
    """Steps of a small model with clipping, two targets, and what the oracle needs of them.

    `judged`: whether it will be asked.
    """

    def __init__(self, optimizer="adamw", store=None, targets=2, judged=True, **options):
        generator = torch.Generator().manual_seed(1)
        self.x = torch.randn(80, 6, generator=generator).double()
        self.y = torch.randint(3, (80,), generator=generator)
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()
        self.optimizer = OPTIMIZERS[optimizer](list(self.model.parameters()))
        rows = torch.arange(50, 80).chunk(targets)
        self.batches = {f"part {k}": (self.x[r], self.y[r]) for k, r in enumerate(rows)}
        given = {"smoothed_steps": 0, "contraction": "dense", "self_test": False} | options
        self.attribution = inrun.attach(
            self.model,
            self.optimizer,
            inrun.Utility(loss_fn, targets=self.batches),
            store=store,
            **flat(progress=False, **given),
        )
        self.taken, self.steps, self.judged = 0, [], judged

    def gradients(self):
        """(K, *shape) for each parameter."""
        parameters = list(self.model.parameters())
        rows = [
            torch.autograd.grad(loss_fn(self.model, batch), parameters)
            for batch in self.batches.values()
        ]
        return [torch.stack(column) for column in zip(*rows, strict=True)]

    def shares(self, ids):
        """(BATCH, *shape) for each parameter."""

        def terms(model, rows):
            each = F.cross_entropy(model(self.x[ids[rows]]), self.y[ids[rows]], reduction="none")
            return each / BATCH

        named = dict(self.model.named_parameters())
        return list(oracle_shares.shares(self.model, terms, BATCH, named).values())

    def step(self, blocks=1):
        ids = torch.arange(BATCH) + BATCH * (self.taken % 10)
        shares = self.shares(ids) if self.judged else None
        for part in ids.chunk(blocks):
            with self.attribution.batch(part):
                share = len(part) / BATCH
                (share * loss_fn(self.model, (self.x[part], self.y[part]))).backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), 0.3)
        if self.judged:
            self.take(shares, min(1.0, 0.3 / (float(norm) + 1e-6)))
        else:
            self.optimizer.step()
        self.optimizer.zero_grad()
        self.taken += 1

    def take(self, shares, clip):
        """The optimizer's step, kept for the oracle."""
        kept = oracle.Step(self.optimizer, [clip * share for share in shares])
        self.kept, opening = kept, self.gradients()
        try:
            self.optimizer.step()
        finally:
            kept.gradients = [(a + b) / 2 for a, b in zip(opening, self.gradients(), strict=True)]
        self.steps.append(kept)

    def run(self, steps=STEPS, **options):
        for _ in range(steps):
            self.step(**options)
        return self

    def owed(self, window):
        """(steps, B, K): what the samples of each step are owed within the window."""
        rows = []
        for t in range(len(self.steps)):
            last = min(t + window, len(self.steps) - 1)
            parts = [oracle.paid(self.steps, t, s) for s in range(t + 1, last + 1)]
            nothing = torch.zeros(BATCH, len(self.batches), dtype=torch.float64)
            rows.append(sum(parts, start=nothing))
        return torch.stack(rows).numpy()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_each_sample_is_paid_what_the_oracle_takes_out_of_the_memory(tmp_path, name):
    run = Training(name, tmp_path / "run", momentum_window=WINDOW).run()
    plain = Training(name, tmp_path / "plain", judged=False).run()
    run.attribution.detach()
    owed = run.owed(WINDOW)
    visits, immediate = run.attribution.visits().to_pandas(), plain.attribution.visits().to_pandas()
    assert visits["step"].tolist() == immediate["step"].tolist()
    paid = visits["value"] - immediate["value"]
    scale = np.abs(owed).max()
    assert scale > 0
    np.testing.assert_allclose(paid, owed.mean(2).ravel(), atol=1e-9 * scale)
    np.testing.assert_allclose(visits["paid_out"], owed.mean(2).ravel(), atol=1e-9 * scale)
    for k in range(2):
        column = visits[f"part {k}"] - immediate[f"part {k}"]
        np.testing.assert_allclose(column, owed[:, :, k].ravel(), atol=1e-9 * scale)
        booked = run.attribution.ledger(f"part {k}")["paid_out"].to_numpy()
        np.testing.assert_allclose(booked, owed[:, :, k].sum(1), atol=1e-9 * scale)


@pytest.mark.parametrize("window", [1, 2, 5, 30])
def test_any_window_equals_its_oracle_and_blocks_make_no_difference(window):
    run = Training(momentum_window=window).run(blocks=2)
    run.attribution.detach()
    paid = run.attribution.values()["paid_out"].to_numpy()
    owed = run.owed(window).mean(2)
    expected = np.zeros(10 * BATCH)
    for t, row in enumerate(owed):
        expected[BATCH * (t % 10) : BATCH * (t % 10) + BATCH] += row
    np.testing.assert_allclose(paid, expected, atol=1e-9 * np.abs(expected).max())


@pytest.mark.parametrize("name", ["adamw", "sgd", "nesterov", "nadam", "radam", "adamax"])
def test_a_window_over_the_whole_run_pays_all_of_momentum_s_entries(name):
    """No gradient came before the run, so nothing of what momentum did is anybody else's."""
    run = Training(name, momentum_window=100).run()
    run.attribution.detach()
    for target in ("total", "part 0", "part 1"):
        books = run.attribution.ledger(target)
        momentum, paid = (books[c].to_numpy().sum() for c in ("momentum", "paid_out"))
        assert paid == pytest.approx(momentum, rel=1e-9)


def test_the_books_of_a_run_close_with_what_was_paid(tmp_path):
    run = Training(store=tmp_path / "run", momentum_window=WINDOW).run()
    run.attribution.detach()
    stored = inrun.load(tmp_path / "run")
    books = inrun.ledger.totals(stored.ledger())
    values = stored.values()["value"].to_numpy().sum()
    assert books["samples"] == pytest.approx(values, rel=1e-12)
    rest = books["samples"] + books["momentum"] + books["weight_decay"] + books["residual"]
    assert rest == pytest.approx(books["opening_loss"] - books["closing_loss"])
    assert stored.values().schema == run.attribution.values().schema
    np.testing.assert_allclose(
        stored.values()["value_normalised"], run.attribution.values()["value_normalised"]
    )


def test_values_grow_while_they_are_paid_and_training_is_not_changed():
    run, plain = Training(momentum_window=WINDOW).run(4), Training().run(4)
    assert run.attribution.waiting["steps"] == WINDOW
    assert run.attribution.waiting["bytes"] > 0
    first = run.attribution.values().slice(0, BATCH)
    rest = run.attribution.values().slice(BATCH)
    assert np.abs(first["paid_out"].to_numpy()).min() > 0  # the window is over
    assert np.abs(rest["paid_out"].to_numpy()).max() == 0  # not yet
    immediate = plain.attribution.values().slice(BATCH)["value"].to_numpy()
    np.testing.assert_array_equal(rest["value"].to_numpy(), immediate)
    run.attribution.detach()
    assert set(run.attribution.waiting.values()) == {0}
    assert np.abs(run.attribution.values()["paid_out"].to_numpy()[: 3 * BATCH]).min() > 0
    for a, b in zip(run.model.parameters(), plain.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_unscored_steps_end_the_windows():
    run = Training(momentum_window=WINDOW).run(4)
    with run.attribution.paused():
        loss_fn(run.model, (run.x, run.y)).backward()
        with pytest.warns(InRunWarning, match=r"windows of 0\.bias and 3 more end here"):
            run.optimizer.step()
    run.optimizer.zero_grad()
    assert run.attribution.waiting["steps"] == 0
    run.run(2)
    run.attribution.detach()
    owed = run.owed(WINDOW)
    for t, s in [(1, 4), (2, 4), (2, 5), (3, 4), (3, 5)]:  # across the gap
        owed[t] -= oracle_paid_if_within(run, t, s)
    np.testing.assert_allclose(
        run.attribution.values()["paid_out"].to_numpy()[: 4 * BATCH],
        owed[:4].mean(2).ravel(),
        atol=1e-9,
    )


def oracle_paid_if_within(run, t, s):
    return oracle.paid(run.steps, t, s).numpy() if s - t <= WINDOW else 0.0


@pytest.mark.parametrize("stored", [True, False])
def test_a_checkpoint_changes_nothing_in_the_run_that_writes_it(tmp_path, stored):
    runs = []
    for saves in (False, True):
        folder = tmp_path / str(saves) if stored else None
        run = Training(store=folder, momentum_window=WINDOW, contraction="auto")
        for _ in range(STEPS):
            run.step()
            if saves:
                run.attribution.state_dict()
        run.attribution.detach()
        runs.append(run.attribution)
    assert runs[0].values() == runs[1].values()
    assert runs[0].ledger("part 1") == runs[1].ledger("part 1")


@pytest.mark.parametrize("stored", [True, False])
def test_a_resumed_run_pays_as_one_whose_windows_ended_at_the_checkpoint(tmp_path, stored):
    def start(name, **options):
        folder = {"store": tmp_path / name} if stored else {}
        return Training(momentum_window=WINDOW, **folder, **options)

    cut = start("cut").run(6)
    state = cut.attribution.state_dict()
    model, optimizer = (copy.deepcopy(part.state_dict()) for part in (cut.model, cut.optimizer))
    cut.run(2)  # what is lost when it is killed here
    cut.attribution.detach()
    resumed = start("cut", resume=stored)
    resumed.model.load_state_dict(model)
    resumed.optimizer.load_state_dict(optimizer)
    resumed.attribution.load_state_dict(state)
    resumed.taken = 6
    ended = start("ended").run(6)
    ended.attribution._loop.booking.pay_out()
    for run in (ended, resumed):
        run.run(5)
        run.attribution.detach()
    found, expected = (r.attribution.values().to_pandas() for r in (resumed, ended))
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    books, truth = (r.attribution.ledger("part 1").to_pandas() for r in (resumed, ended))
    assert books["step"].tolist() == list(range(1, 12))
    np.testing.assert_allclose(books["paid_out"], truth["paid_out"], rtol=1e-12)
    if stored:
        visits, wanted = (r.attribution.visits().to_pandas() for r in (resumed, ended))
        np.testing.assert_allclose(visits, wanted, rtol=1e-12)


@pytest.mark.parametrize("stored", [True, False])
@pytest.mark.parametrize("name", ["adamw", "nesterov"])
def test_the_balance_says_where_momentum_s_part_came_from_and_closes(tmp_path, name, stored):
    run = Training(name, tmp_path / "run" if stored else None, momentum_window=WINDOW)
    for _ in range(STEPS):
        run.step()
        truth = oracle.balance(run.steps, WINDOW).numpy()  # (3, K)
        scale = np.abs(truth).max()
        for target, column in {"part 0": truth[:, 0], "total": truth.mean(1)}.items():
            found = run.attribution.balance(target)
            parts = [found[n] for n in ("paid_out", "still_in_momentum", "before_window")]
            np.testing.assert_allclose(parts, column, atol=1e-9 * scale)
            entries = sum(size for entry, size in found.items() if entry != "fall")
            assert entries == pytest.approx(found["fall"], rel=1e-9)
    assert run.attribution.balance()["still_in_momentum"] != 0
    run.attribution.detach()
    whole = run.attribution.balance()
    assert whole["still_in_momentum"] == 0
    assert whole["before_window"] == pytest.approx(truth.mean(1)[2], abs=1e-9 * scale)
    if stored:
        assert inrun.load(tmp_path / "run").balance() == pytest.approx(whole, rel=1e-12)


def test_what_has_not_acted_is_what_the_optimizer_kept():
    run = Training(momentum_window=WINDOW).run(STEPS)
    held = 0.9 ** np.arange(WINDOW)  # the last step's gradient is in the memory whole
    assert run.attribution.waiting["not_acted"] == pytest.approx(held.mean())


def test_a_low_rank_pays_nearly_the_same():
    class Wide(Training):
        def __init__(self, **options):
            super().__init__(targets=1, **options)

    exact, low = (
        Wide(momentum_window=WINDOW).run(9),
        Wide(momentum_window=WINDOW, contraction="auto").run(9),
    )
    for run in (exact, low):
        run.attribution.detach()
    a, b = (r.attribution.values()["paid_out"].to_numpy() for r in (exact, low))
    assert np.corrcoef(a, b)[0, 1] > 0.9995


class Refilled(Training):
    """Step 3 is trained on a buffer that is refilled before step 5."""

    def step(self, blocks=1):
        if self.taken == 2:
            self.plain, ids = self.x, torch.arange(BATCH) + BATCH * 2
            self.buffer = self.x[ids].clone()
            self.x = _Rows(self.plain, self.buffer)
        super().step(blocks)
        if self.taken == 3:
            self.x = self.plain
        if self.taken == 4:
            self.buffer.zero_()


class _Rows:
    """Looks up one batch, which is always there."""

    def __init__(self, x, buffer):
        self.x, self.buffer = x, buffer

    def __getitem__(self, rows):
        return self.buffer if len(rows) == BATCH else self.x[rows]


@pytest.mark.parametrize("stored", [True, False])
def test_a_loop_that_goes_on_after_an_overwritten_buffer_has_all_other_values(tmp_path, stored):
    run = Refilled(store=tmp_path / "run" if stored else None, momentum_window=WINDOW)
    said = []
    for _ in range(STEPS):
        try:
            run.step()
        except MisuseError as error:
            said.append((run.taken + 1, str(error)))
            run.steps.append(run.kept)
            run.optimizer.zero_grad()
            run.taken += 1
    run.attribution.detach()
    ((step, error),) = said
    assert step == 3 + WINDOW  # when its window is over
    assert "step 3" in error
    assert "overwritten" in error
    owed = run.owed(WINDOW)
    owed[2] = 0  # it keeps its in-step values
    books = run.attribution.ledger("part 1")
    assert books["step"].to_pylist() == list(range(1, STEPS + 1))
    scale = np.abs(owed).max()
    np.testing.assert_allclose(books["paid_out"], owed[:, :, 1].sum(1), atol=1e-9 * scale)
    expected = np.zeros((10 * BATCH,))
    np.add.at(expected, np.arange(STEPS * BATCH) % len(expected), owed.mean(2).ravel())
    paid = run.attribution.values()["paid_out"].to_numpy()
    np.testing.assert_allclose(paid, expected, atol=1e-9 * scale)


def test_copies_may_be_refilled(tmp_path):
    for options in ({"capture": "offload"}, {"held_in": tmp_path}):
        run = Refilled(momentum_window=WINDOW, **options).run()
        run.attribution.detach()
        owed = run.owed(WINDOW)
        paid = run.attribution.ledger("part 0")["paid_out"].to_numpy()
        np.testing.assert_allclose(paid, owed[:, :, 0].sum(1), atol=1e-9 * np.abs(owed).max())


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"momentum_window": -1}, MisuseError), ({"momentum_window": 2.5}, MisuseError),
        ({"momentum_window": 3, "capture": "stream"}, MisuseError),
        ({"momentum_window": 3, "every": 2}, MisuseError),
        ({"momentum_window": 3, "estimator": "sgd"}, MisuseError),
        ({"momentum_window": 3, "budget": 0.1}, MisuseError), ({"held_in": "cpu"}, MisuseError),
        ({"momentum_window": 3, "optimizer": "rmsprop"}, NotSupportedError),
    ],
)  # fmt: skip
def test_what_cannot_be_paid_out_is_refused(monkeypatch, options, error):
    monkeypatch.setitem(OPTIMIZERS, "rmsprop", lambda p: torch.optim.RMSprop(p, momentum=0.5))
    with pytest.raises(error, match=r"momentum_window"):
        Training(**options)


def test_values_a_token_are_not_mixed_with_payouts():
    run = Training(momentum_window=3)
    with pytest.raises(MisuseError, match="momentum_window=0"):
        run.attribution.per_token(lambda model, batch: model(batch))
