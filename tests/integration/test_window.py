"""Scoring windows: values equal a dense twin's, and training is untouched."""

import copy
import gc
import html

import numpy as np
import pytest
import torch
from torch import nn

import inrun
from inrun.capture import _block_sums
from inrun.capture._measured import Measuring
from inrun.ledger import windows_in
from inrun.ledger._windows import least_agreement
from inrun.report import write_report
from inrun.scoring import _windowed
from tests.oracles.window import adam_direction, sgd_direction, window_values

F = nn.functional
QUIET = inrun.Options(progress=False)


class Convolved(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.norm, self.head = nn.Conv2d(4, 36, 3), nn.GroupNorm(2, 36), nn.Linear(36, 3)

    def forward(self, x):
        return self.head(self.norm(self.a(x[:, :100].reshape(-1, 4, 5, 5))).tanh().mean((2, 3)))


class Embedded(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.mix, self.head = (
            nn.Embedding(36, 36), nn.Linear(36, 36), nn.Linear(36, 3)
        )  # fmt: skip

    def forward(self, x):
        ids = (x[:, :7].abs() * 20).long() % 36
        return self.head(self.mix(self.table(ids)).tanh().mean(1))


class Derived(nn.Module):
    """Weights that are used transposed, in slices, cast, and picked by an index."""

    def __init__(self):
        super().__init__()
        self.w, self.norm = nn.Parameter(torch.randn(72, 36) / 6), nn.LayerNorm(36)
        self.t, self.head = nn.Parameter(torch.randn(36, 36) / 6), nn.Linear(36, 3)

    def forward(self, x):
        first, second = self.w.chunk(2)
        x = self.norm(F.linear(x[:, :36], first).tanh() @ second.t())
        x = x @ self.t.to(x.dtype)
        return self.head(x.tanh() @ self.t[torch.arange(35, -1, -1)])


class Experts(nn.Module):
    """Two tokens per sample, each with one of four experts, all in one product."""

    def __init__(self):
        super().__init__()
        self.w, self.head = nn.Parameter(torch.randn(4, 36, 36) / 6), nn.Linear(36, 3)

    def forward(self, x):
        tokens = x[:, :72].reshape(-1, 36)
        expert = 2 * (tokens[:, 0] > 0) + (tokens[:, 1] > 0).long()
        order = expert.argsort(stable=True)
        ends = torch.bincount(expert, minlength=4).cumsum(0)
        met = torch.ops.transformers.grouped_mm_fallback(tokens[order], self.w, ends)
        return self.head(met.tanh()[order.argsort()].reshape(len(x), 2, 36).mean(1))


MODELS = {
    "linear": lambda: nn.Sequential(
        nn.Linear(100, 36), nn.LayerNorm(36), nn.Tanh(), nn.Linear(36, 36), nn.Tanh(),
        nn.Linear(36, 3),
    ),
    "convolution": Convolved,
    "embedding": Embedded,
}  # fmt: skip
OPTIMIZERS = {
    "sgd": (lambda p: torch.optim.SGD(p, 0.05, momentum=0.8), sgd_direction),
    "nesterov": (
        lambda p: torch.optim.SGD(p, 0.05, momentum=0.8, nesterov=True, weight_decay=0.01),
        sgd_direction,
    ),
    "adam": (lambda p: torch.optim.Adam(p, 3e-3), adam_direction),
    "adamw": (lambda p: torch.optim.AdamW(p, 3e-3, weight_decay=0.1), adam_direction),
}


def data():
    torch.manual_seed(3)
    x = torch.randn(40, 100, dtype=torch.float64)
    return x, (x[:, 0] > 0).long() + (x[:, 1] > 0).long()


def validation(targets):
    x, y = data()

    def loss(model, batch):
        return F.cross_entropy(model(batch[0]), batch[1])

    rows = {f"t{k}": (x[24 + k :: targets], y[24 + k :: targets]) for k in range(targets)}
    return inrun.Utility(loss, targets=rows) if targets > 1 else inrun.Utility(loss, rows["t0"])


def built(make):
    torch.manual_seed(1)
    return make().double()


def schedule(optimizer):
    """A learning rate that is another one in each step."""
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: 1 / (1 + 0.05 * s))


STEPS, BLOCKS = 8, 2


def batches():
    g = torch.Generator().manual_seed(5)
    for _ in range(STEPS):
        yield torch.randperm(24, generator=g)[: 3 * BLOCKS].reshape(BLOCKS, 3).tolist()


def clipped(norm):
    return min(1.0, float(0.5 / (norm + 1e-6)))


def plain(make, optimizer_of, on_step=None):
    """A training loop with accumulation, clipping and a schedule, and who looks on."""
    model = built(make)
    optimizer, (x, y) = optimizer_of(model.parameters()), data()
    moving = schedule(optimizer)
    for step, blocks in enumerate(batches()):
        for ids in blocks:
            (F.cross_entropy(model(x[ids]), y[ids]) / BLOCKS).backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        if on_step is not None:
            on_step(step + 1, model, optimizer, [*blocks[0], *blocks[1]], clipped(norm))
        optimizer.step()
        optimizer.zero_grad()
        if on_step is not None:
            on_step(-(step + 1), model, optimizer, [], 1.0)
        moving.step()
    return model


def attributed(make, optimizer_of, scoring, targets=1, store=None, state_at=None, **given):
    model = built(make)
    optimizer, (x, y) = optimizer_of(model.parameters()), data()
    moving = schedule(optimizer)
    attribution = inrun.attach(
        model, optimizer, validation(targets), scoring=scoring, store=store, options=QUIET, **given
    )
    saved = None
    for step, blocks in enumerate(batches()):
        for ids in blocks:
            with attribution.batch(ids):
                (F.cross_entropy(model(x[ids]), y[ids]) / BLOCKS).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        optimizer.zero_grad()
        moving.step()
        if step + 1 == state_at:
            parts = model, optimizer, moving, attribution
            saved = [copy.deepcopy(part.state_dict()) for part in parts]
    attribution.detach()
    return attribution, model, saved


def twin(make, optimizer_of, direction, length, rank, targets, complete=(), stacks=()):
    """{step: (N, K)} of all steps but the first, by plain autograd and the oracle."""
    x, y = data()
    utility, seen = validation(targets), {"shares": {}, "rates": {}, "ends": {}, "square": {}}

    def gradients(model):
        losses = [utility.loss_fn(model, batch) for batch in utility.batches.values()]
        names = [name for name, _ in model.named_parameters()]
        rows = [torch.autograd.grad(loss, list(model.parameters())) for loss in losses]
        return {n: torch.stack([row[i] for row in rows]) for i, n in enumerate(names)}

    def on_step(step, model, optimizer, ids, clipped):
        named, group = dict(model.named_parameters()), optimizer.param_groups[0]
        if step < 0:  # after it: the end of a window and the beginning of the next
            seen["ends"][-step] = {
                n: direction(g_K, optimizer.state[named[n]], group, seen["square"][n])
                for n, g_K in gradients(model).items()
            }
            return
        seen["square"] = {n: float(p.grad.square().mean()) for n, p in named.items()}
        seen["rates"][step] = group["lr"]
        rows = [
            torch.autograd.grad(
                F.cross_entropy(model(x[[i]]), y[[i]]) * clipped / len(ids), list(named.values())
            )
            for i in ids
        ]
        seen["shares"][step] = {
            n: torch.stack([row[k] for row in rows]) for k, n in enumerate(named)
        }

    plain(make, optimizer_of, on_step)
    found, starts = {}, {}
    for first in range(2, STEPS + 1, length):
        steps = list(range(first, min(first + length, STEPS + 1)))
        values, starts = window_values(
            seen["ends"][first - 1], seen["ends"][steps[-1]], [seen["shares"][s] for s in steps],
            [seen["rates"][s] for s in steps], rank, starts, complete, stacks,
        )  # fmt: skip
        found |= dict(zip(steps, values, strict=True))
    return found


def visits_of(attribution, targets):
    """{step: (N, K)}."""
    table = attribution.visits()
    names = list(attribution.targets) if targets > 1 else ["value"]
    columns = np.stack([table[name].to_numpy() for name in names], 1)
    steps = table["step"].to_numpy()
    return {int(step): columns[steps == step] for step in np.unique(steps)}


def agree(make, kind, tmp_path, length=3, rank=36, targets=1, complete=(), stacks=()):
    optimizer_of, direction = OPTIMIZERS[kind]
    scoring = inrun.Window(length, rank=rank, exact=1)
    attribution, _, _ = attributed(make, optimizer_of, scoring, targets, tmp_path / "run")
    expected = twin(make, optimizer_of, direction, length, rank, targets, complete, stacks)
    found = visits_of(attribution, targets)
    assert sorted(found) == list(range(1, STEPS + 1))
    for step, values in expected.items():
        scale = np.abs(values).max()
        np.testing.assert_allclose(found[step], values, rtol=0, atol=1e-9 * scale)


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("name", MODELS)
def test_values_equal_the_dense_twin(name, kind, tmp_path):
    agree(MODELS[name], kind, tmp_path)


@pytest.mark.parametrize("name", MODELS)
def test_values_of_a_low_rank_equal_the_twin_in_the_same_bases(name, tmp_path):
    agree(MODELS[name], "adamw", tmp_path, rank=3)


def test_several_targets_have_one_direction_each(tmp_path):
    agree(MODELS["linear"], "sgd", tmp_path, targets=3)


def test_weights_that_are_used_through_a_view_or_a_copy(tmp_path):
    agree(Derived, "adamw", tmp_path, complete={"w"})


@pytest.mark.parametrize("rank", [3, 36])
def test_experts_have_bases_of_their_own(rank, tmp_path):
    pytest.importorskip("transformers.integrations.moe")
    agree(Experts, "adamw", tmp_path, rank=rank, stacks={"w"})


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_weights_are_bit_for_bit_those_of_plain_training(kind):
    optimizer_of, _ = OPTIMIZERS[kind]
    untouched = plain(MODELS["linear"], optimizer_of)
    for length in (1, 3, "auto"):
        _, model, _ = attributed(MODELS["linear"], optimizer_of, inrun.Window(length, exact=1))
        for a, b in zip(untouched.parameters(), model.parameters(), strict=True):
            assert torch.equal(a, b)


class Checkpointed(nn.Module):
    """`how`: use_reentrant of a checkpoint around all but the first layer; None without one."""

    how = None

    def __init__(self):
        super().__init__()
        self.first, self.rest = nn.Linear(100, 36), MODELS["linear"]()[3:]

    def forward(self, x):
        if self.how is None:
            return self.rest(self.first(x))
        return torch.utils.checkpoint.checkpoint(self.rest, self.first(x), use_reentrant=self.how)


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_changes_no_value(reentrant):
    def make(how):
        model = Checkpointed()
        model.how = how
        return model

    tables = [
        attributed(lambda how=how: make(how), OPTIMIZERS["adamw"][0], inrun.Window(3, exact=1))
        for how in (None, reentrant)
    ]
    values = [attribution.values()["value"].to_numpy() for attribution, _, _ in tables]
    np.testing.assert_allclose(*values, rtol=1e-9)


def test_packed_samples_have_the_values_of_samples_in_rows():
    x, y = data()

    def run(packed):
        model = built(MODELS["linear"])
        optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
        attribution = inrun.attach(
            model, optimizer, validation(1), scoring=inrun.Window(2, exact=1), options=QUIET
        )
        for step in range(5):
            rows = torch.arange(8) + 2 * step
            ids = rows[::2].tolist()
            owners = [0, 1, 2, 3, 3, 2, 1, 0]
            said = {"slots": torch.tensor(owners)} if packed else {"rows": owners}
            with attribution.batch(ids, **said):
                F.cross_entropy(model(x[rows]), y[rows]).backward()
            optimizer.step()
            optimizer.zero_grad()
        attribution.detach()
        return attribution.values()["value"].to_numpy()

    np.testing.assert_allclose(run(True), run(False), rtol=1e-9)


def test_a_run_goes_on_from_a_checkpoint_with_the_values_of_one_that_was_not_cut():
    make, optimizer_of = MODELS["linear"], OPTIMIZERS["adamw"][0]
    scoring = inrun.Window(3, exact=1)
    whole, trained, saved = attributed(make, optimizer_of, scoring, state_at=6)
    model = built(make)
    optimizer, (x, y) = optimizer_of(model.parameters()), data()
    moving = schedule(optimizer)
    attribution = inrun.attach(model, optimizer, validation(1), scoring=scoring, options=QUIET)
    for part, state in zip((model, optimizer, moving, attribution), saved, strict=True):
        part.load_state_dict(state)
    for step, blocks in enumerate(batches()):
        if step < 6:
            continue
        for ids in blocks:
            with attribution.batch(ids):
                (F.cross_entropy(model(x[ids]), y[ids]) / BLOCKS).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        optimizer.zero_grad()
        moving.step()
    attribution.detach()
    values = [a.values()["value"].to_numpy() for a in (whole, attribution)]
    np.testing.assert_allclose(*values, rtol=1e-12)
    assert whole.windows == [
        pytest.approx(window, rel=1e-9, nan_ok=True) for window in attribution.windows
    ]
    for a, b in zip(trained.parameters(), model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_books_of_windows_telescope_and_their_residual_is_small():
    attribution, _, _ = attributed(
        MODELS["linear"], OPTIMIZERS["adamw"][0], inrun.Window(3, exact=1)
    )
    found = attribution.balance()
    parts = sum(found[n] for n in found if n != "fall")
    assert found["fall"] == pytest.approx(parts, abs=1e-12)
    rows = attribution.ledger().to_pylist()
    assert [np.isnan(row["residual"]) for row in rows[1:]] == [True, True, False] * 2 + [False]
    assert all(window["residual"] < 0.05 for window in attribution.windows)
    assert "cosine of its ends" in rows[-1]["note"]


def test_without_books_no_residual_is_told():
    attribution, _, _ = attributed(
        MODELS["linear"], OPTIMIZERS["adamw"][0], inrun.Window(3, exact=1, books=False)
    )
    assert all(np.isnan(row["residual"]) for row in attribution.ledger().to_pylist()[1:])
    with_books, _, _ = attributed(
        MODELS["linear"], OPTIMIZERS["adamw"][0], inrun.Window(3, exact=1)
    )
    assert with_books.values().equals(attribution.values())


def trained_by_hand(length, steps, before=None, after=None):
    """Plain SGD on six samples; `before` runs before a step, `after` behind its backward pass."""
    x, y = data()
    model = built(MODELS["linear"])
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    attribution = inrun.attach(
        model, optimizer, validation(1), scoring=inrun.Window(length, exact=1), options=QUIET
    )
    for step in range(steps):
        if before is not None:
            before(step, optimizer)
        with attribution.batch(range(6)):
            F.cross_entropy(model(x[:6]), y[:6]).backward()
        if after is not None:
            after(attribution, model)
        optimizer.step()
        optimizer.zero_grad()
    attribution.detach()
    return attribution


def test_what_is_no_samples_counts_as_unattributed():
    def penalty(attribution, model):
        with attribution.unattributed():
            (0.01 * sum(p.square().sum() for p in model.parameters())).backward()

    attribution = trained_by_hand(2, 5, after=penalty)
    rows = attribution.ledger().to_pylist()
    assert all(row["unattributed"] for row in rows)
    assert all(window["residual"] < 0.05 for window in attribution.windows)
    # plain SGD has no momentum: what samples and the penalty are given is all that moved
    last = [row["momentum"] for row in rows if row["note"].startswith("a scoring")]
    assert max(map(abs, last)) < 0.05 * abs(rows[-1]["samples"])


def test_windows_of_one_step_agree_with_exact_values():
    kinds = {}
    for scoring in (inrun.EveryStep(), inrun.Window(1, exact=1)):
        attribution, _, _ = attributed(MODELS["linear"], OPTIMIZERS["adamw"][0], scoring)
        kinds[type(scoring)] = attribution.values()["value"].to_numpy()
    assert np.corrcoef(*kinds.values())[0, 1] > 0.98


def test_auto_takes_short_windows_where_the_gradient_turns_and_long_ones_where_it_persists(
    monkeypatch,
):
    monkeypatch.setattr(_windowed, "EARLIER", 1)

    def lengths(rate):
        attribution, _, _ = attributed(
            MODELS["linear"], lambda p: torch.optim.SGD(p, rate), inrun.Window("auto", exact=1)
        )
        return [window["steps"] for window in attribution.windows]

    assert lengths(1e-4) == [1, 2, 4]
    with pytest.warns(inrun.errors.InRunWarning, match="cosine of its ends"):
        assert max(lengths(40.0)) == 1


def test_auto_takes_no_window_longer_than_a_tenth_of_the_steps_before_it():
    def slow(step, optimizer):
        optimizer.param_groups[0]["lr"] = 1e-4

    told = trained_by_hand("auto", 62, slow).windows
    assert min(window["cosine"] for window in told) > 0.9
    assert [w["steps"] for w in told[:-1]] == [max(1, (w["first"] - 1) // 10) for w in told[:-1]]
    assert max(window["steps"] for window in told) == 5


def test_a_large_change_of_the_learning_rate_closes_a_window():
    def schedule(step, optimizer):
        optimizer.param_groups[0]["lr"] = 0.05 if step < 3 else 0.005

    attribution = trained_by_hand(10, 6, schedule)
    assert [(w["first"], w["steps"]) for w in attribution.windows] == [(2, 3), (5, 2)]


@pytest.mark.parametrize(
    ("optimizer", "given", "words"),
    [
        (lambda p: torch.optim.Rprop(p), {}, "no slope before its gradient"),
        (lambda p: torch.optim.Adafactor(p), {}, "no slope before its gradient"),
        (
            lambda p: torch.optim.Muon([w for w in p if w.ndim == 2]),
            {},
            "Muon has no slope before its gradient",
        ),
        (None, {"estimator": "sgd"}, "estimator='path'"),
        (None, {"momentum_window": 3}, "momentum_window=0"),
        (None, {"options": inrun.Options(capture="stream")}, "no other capture"),
    ],
)
def test_refused(optimizer, given, words):
    model = built(MODELS["linear"])
    optimizer = (optimizer or torch.optim.SGD)(model.parameters())
    with pytest.raises((inrun.errors.MisuseError, inrun.errors.NotSupportedError), match=words):
        inrun.attach(model, optimizer, validation(1), scoring=inrun.Window(5), **given)


def test_bad_numbers_are_refused():
    for steps in (0, -1, 2.5, True, "long"):
        with pytest.raises(inrun.errors.MisuseError, match="steps="):
            inrun.Window(steps)
    with pytest.raises(inrun.errors.MisuseError, match="validation_parts"):
        inrun.Window(5, validation_parts=2)


def test_an_audit_and_values_a_token_are_refused():
    model = built(MODELS["linear"])
    attribution = inrun.attach(
        model, torch.optim.SGD(model.parameters()), validation(1), scoring=inrun.Window(5),
        options=QUIET,
    )  # fmt: skip
    with pytest.raises(inrun.errors.NotSupportedError, match="sketches"):
        attribution.audit(seconds=1, steps=5)
    with pytest.raises(inrun.errors.NotSupportedError, match="direction"):
        attribution.per_token(lambda model, batch: None)


def test_clipping_by_value_is_refused():
    def clip(attribution, model):
        nn.utils.clip_grad_value_(model.parameters(), 1e-3)

    with pytest.raises(inrun.errors.MisuseError, match=r"inrun\.Window"):
        trained_by_hand(5, 2, after=clip)


def test_a_window_whose_gradient_turned_is_told():
    with pytest.warns(inrun.errors.InRunWarning, match="cosine of its ends"):
        attributed(MODELS["linear"], lambda p: torch.optim.SGD(p, 40.0), inrun.Window(3, exact=1))


def test_a_report_is_made_of_a_run_of_windows(tmp_path):
    attribution, _, _ = attributed(
        MODELS["linear"], OPTIMIZERS["adamw"][0], inrun.Window(3, exact=1),
        store=tmp_path / "run",
    )  # fmt: skip
    run = inrun.load(tmp_path / "run")
    assert run.values().num_rows == attribution.values().num_rows
    named = run.ledger()["estimator"].to_pylist()
    assert named == ["path-smoothed"] + ["window"] * (STEPS - 1)
    write_report(run, tmp_path / "page.html")
    assert (tmp_path / "page.html").stat().st_size > 1000


def test_the_agreement_of_audits_is_in_the_report_and_in_the_coverage(tmp_path, monkeypatch):
    monkeypatch.setattr(_windowed, "FIRST_AUDIT", 1)
    attribution, _, _ = attributed(
        MODELS["linear"], OPTIMIZERS["adamw"][0], inrun.Window(3, exact=1),
        store=tmp_path / "run",
    )  # fmt: skip
    told, read = attribution.windows, windows_in(inrun.load(tmp_path / "run").ledger())
    assert [(w["first"], w["steps"]) for w in told] == [(w.first, w.steps) for w in read]
    for live, stored in zip(told, read, strict=True):
        assert stored.cosine == pytest.approx(live["cosine"], abs=0.006)
        assert stored.captured == pytest.approx(live["captured"], abs=0.006)
        assert stored.agreement == pytest.approx(live["agreement"], abs=0.006, nan_ok=True)
    cosine, steps = (np.mean([window[name] for window in told]) for name in ("cosine", "steps"))
    least = least_agreement(cosine, steps)
    expected = f"rank correlation of {least:.2g} or more of totals with exact ones"
    found = told[1]["agreement"]
    audited = f"1 windows that were scored exactly as well, single visits have {found:.2f}"
    write_report(inrun.load(tmp_path / "run"), tmp_path / "page.html")
    covered = attribution.coverage()["contraction"].to_pylist()
    page = html.unescape((tmp_path / "page.html").read_text())
    for words in (*covered, page):
        assert expected in words
        assert audited in words


def test_a_window_that_is_open_when_the_attribution_is_dropped_is_told():
    model, (x, y) = built(MODELS["linear"]), data()
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    attribution = inrun.attach(
        model, optimizer, validation(1), scoring=inrun.Window(3, exact=1), options=QUIET
    )
    for _ in range(6):
        with attribution.batch(range(6)):
            F.cross_entropy(model(x[:6]), y[:6]).backward()
        optimizer.step()
        optimizer.zero_grad()
    with pytest.warns(inrun.errors.InRunWarning, match="Steps 5 to 6 are in no value"):
        del attribution
        gc.collect()


@pytest.fixture
def measured(monkeypatch):
    """How many gradients each measurement read, where large ones are those of 100 numbers."""
    counts, measure = [], Measuring.measure
    monkeypatch.setattr(_block_sums, "LARGE", 100)
    monkeypatch.setattr(_block_sums, "FIRST_STEPS", 2)
    monkeypatch.setattr(
        Measuring, "measure", lambda self, given: counts.append(len(given)) or measure(self, given)
    )
    return counts


def clip(norm):
    return lambda attribution, model: nn.utils.clip_grad_norm_(model.parameters(), norm)


@pytest.mark.parametrize("after", [None, clip(0.1)], ids=["untouched", "clipped"])
def test_gradients_that_are_measured_in_turn_give_the_same_values(after, measured, monkeypatch):
    in_turn = trained_by_hand(3, 11, after=after)
    whole = len(list(MODELS["linear"]().parameters()))
    assert measured[:5] == [whole] * 5  # the self-test, and twice in both first steps
    assert all(0 < count < whole for count in measured[5:])
    # where nothing was written to gradients they are not read again before the step
    assert len(measured[5:]) == (18 if after else 9)
    monkeypatch.setattr(_block_sums, "LARGE", 10**9)
    tables = [
        a.values()["value"].to_numpy() for a in (in_turn, trained_by_hand(3, 11, after=after))
    ]
    np.testing.assert_allclose(*tables, rtol=1e-9)


def by_groups(attribution, model):
    """Clips each layer by a norm of its own, and so by a factor of its own."""
    for k, layer in enumerate(model):
        if list(layer.parameters()):
            nn.utils.clip_grad_norm_(layer.parameters(), 0.01 * (k + 1))


def by_steps(attribution, model):
    """One factor for all, another one in each step."""
    factor = 1 / (1 + len(attribution.ledger()))
    for p in model.parameters():
        p.grad.mul_(factor)


@pytest.mark.parametrize("after", [by_groups, by_steps])
def test_factors_of_steps_and_of_layers_are_each_one_s_own(after, measured, monkeypatch):
    in_turn = trained_by_hand(3, 11, after=after)
    monkeypatch.setattr(_block_sums, "LARGE", 10**9)
    always = trained_by_hand(3, 11, after=after)
    tables = [a.values()["value"].to_numpy() for a in (in_turn, always)]
    np.testing.assert_allclose(*tables, rtol=1e-9)
    samples = in_turn.ledger()["samples"].to_numpy()
    assert np.isfinite(samples).all()


def test_a_factor_that_no_measured_gradient_tells_is_refused(measured):
    def doubled(attribution, model):
        if len(measured) > 8:
            model[3].weight.grad *= 2

    with pytest.raises(inrun.errors.MisuseError, match="one factor, for the first time"):
        trained_by_hand(3, 12, after=doubled)


def test_an_unmeasured_gradient_outside_a_block_is_refused(measured):
    def extra(attribution, model):
        if len(measured) > 8:
            model[0].weight.grad = torch.ones_like(model[0].weight)

    with pytest.raises(inrun.errors.MisuseError, match="factor"):
        trained_by_hand(3, 12, after=extra)


@pytest.mark.parametrize("targets", [1, 2])
def test_an_audited_window_has_exact_values_and_tells_its_agreement(targets, monkeypatch):
    def run(audited):
        monkeypatch.setattr(_windowed, "FIRST_AUDIT", 1 if audited else 49)
        found, model, _ = attributed(
            MODELS["linear"], OPTIMIZERS["adamw"][0], inrun.Window(3, exact=1), targets
        )
        return found, model

    (plain, model), (audited, same) = run(audited=False), run(audited=True)
    exact, _, _ = attributed(MODELS["linear"], OPTIMIZERS["adamw"][0], None, targets)
    for a, b in zip(model.parameters(), same.parameters(), strict=True):
        assert torch.equal(a, b)
    rows, every = audited.ledger().to_pylist(), exact.ledger().to_pylist()
    named = [r["estimator"] for r in rows if r.get("target") == rows[0].get("target")]
    assert named == ["path-smoothed"] + ["window"] * 3 + ["path-smoothed"] * 3 + ["window"]
    inside = [r for r in rows if r["step"] in (5, 6, 7)]
    same_steps = [r for r in every if r["step"] in (5, 6, 7)]
    for row, other in zip(inside, same_steps, strict=True):
        assert row["samples"] == pytest.approx(other["samples"], rel=1e-6)
        assert row["residual"] == pytest.approx(other["residual"], rel=1e-4, abs=1e-9)
    told = [window["agreement"] for window in audited.windows]
    assert np.isnan(told[::2]).all()
    assert 0.8 < told[1] <= 1
    assert f"its own visits have {told[1]:.2f}" in inside[-1]["note"]
    for row, other in zip(audited.windows, plain.windows, strict=True):
        assert row["cosine"] == pytest.approx(other["cosine"], rel=1e-9)
    balance = audited.balance()
    parts = sum(balance[n] for n in balance if n != "fall")
    assert balance["fall"] == pytest.approx(parts, abs=1e-12)


@pytest.mark.parametrize("thaws", [True, False])
def test_parameters_that_come_or_go_close_a_window(thaws):
    def switch(step, optimizer):
        bias = optimizer.param_groups[0]["params"][1]
        if step in (0, 3):
            bias.requires_grad_((step == 3) == thaws)
            bias.grad = None

    attribution = trained_by_hand(10, 6, switch)
    assert [(w["first"], w["steps"]) for w in attribution.windows] == [(2, 2), (4, 3)]
    assert np.isfinite(attribution.values()["value"].to_numpy()).all()
