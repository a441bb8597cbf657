"""What the host reads of a device: the same values and books, by two transfers a step.

Here the CPU is taken for a device whose memory is not the host's. What is read of it is then
fetched in batches, which are counted; any other read of a tensor in a step's lines is an error.
"""

import gc
import traceback
from contextlib import contextmanager

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import inrun
from inrun.capture import _reading
from inrun.errors import InRunWarning, InvariantError, MisuseError
from inrun.factors import LowRankContraction
from tests.settings import flat

READS = ["item", "tolist", "numpy", "cpu", "nonzero", "equal", "allclose"]
READS += ["__bool__", "__float__", "__int__", "__index__"]


@pytest.fixture
def elsewhere(monkeypatch):
    """Takes the CPU for a device."""
    return lambda yes=True: monkeypatch.setattr(_reading, "is_elsewhere", lambda _: yes)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(30, 48)
        self.norm = nn.LayerNorm(48)
        self.hidden = nn.Linear(48, 64)
        self.head = nn.Linear(64, 30)
        self.register_buffer("scale", torch.ones(64))

    def forward(self, x):
        return self.head(self.scale * torch.tanh(self.hidden(self.norm(self.embed(x)))))


def loss_fn(model, batch):
    return F.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())


class Run:
    """A run of six steps, whose parts a test may change."""

    def __init__(self, blocks=1, clip=None, zero=None, lr=1e-2, **options):
        torch.manual_seed(0)
        self.model = Net()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=lr)
        self.blocks, self.clip, self.zero = blocks, clip, zero
        utility = options.pop("utility", None) or inrun.Utility(loss_fn, torch.randint(30, (4, 9)))
        defaults = {"smoothed_steps": 0, "progress": False}
        self.attribution = inrun.attach(
            self.model, self.optimizer, utility, **flat(**{**defaults, **options})
        )
        self.count = 0

    def step(self, around=None):
        generator = torch.Generator().manual_seed(self.count)
        for part in range(self.blocks):
            batch = torch.randint(30, (6, 9), generator=generator)
            ids = range(6 * part, 6 * part + 6)
            with self.attribution.batch(ids):
                (loss_fn(self.model, batch) / self.blocks).backward()
            if self.zero is not None and part == 0 and self.blocks > 1:
                self.optimizer.zero_grad(set_to_none=self.zero)
        if self.clip is not None:
            self.clip(self.model.parameters())
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.count += 1
        return self

    def steps(self, number=6):
        for _ in range(number):
            self.step()
        return self

    def told(self):
        values, books = self.attribution.values(), self.attribution.ledger()
        coverage = self.attribution.coverage()
        return values.to_pylist(), rounded(books.to_pylist()), coverage.to_pylist()


def rounded(rows):
    """With seven digits of gradient norms, which a CPU sums by rows in single precision."""
    named = ("gradient_norm", "gradient_scale")
    return [{k: f"{v:.6g}" if k in named else v for k, v in row.items()} for row in rows]


by_norm = lambda ps: nn.utils.clip_grad_norm_(ps, 0.05)  # noqa: E731
by_value = lambda ps: nn.utils.clip_grad_value_(ps, 1e-3)  # noqa: E731
KINDS = {
    "plain": {},
    "blocks": {"blocks": 3},
    "zeroed between blocks": {"blocks": 2, "zero": True},
    "zeroed in place between blocks": {"blocks": 3, "zero": False},
    "clipped by norm": {"clip": by_norm},
    "clipped by value": {"clip": by_value},
    "stream": {"capture": "stream"},
    "sgd": {"estimator": "sgd"},
    "path-given": {"estimator": "path-given"},
    "smoothed": {"smoothed_steps": 2},
    "some steps": {"every": 2},
    "rank 4": {"contraction": LowRankContraction(rank=4)},
    "two targets": {
        "utility": inrun.Utility(
            loss_fn, targets={k: torch.full((4, 9), n) for n, k in enumerate("ab", 3)}
        )
    },
    "rotating": {"utility": inrun.Utility(loss_fn, torch.arange(36).view(4, 9) % 30).split(2)},
}


@pytest.mark.parametrize("kind", KINDS)
def test_values_books_and_coverage_are_those_of_the_host(kind, elsewhere):
    elsewhere(False)
    here = Run(**KINDS[kind]).steps()
    elsewhere()
    found = Run(**KINDS[kind]).steps()
    assert repr(found.told()) == repr(here.told())  # in which nan is nan
    last, first = found.attribution.latest, here.attribution.latest
    assert repr(rounded([last])) == repr(rounded([first]))
    for p, q in zip(found.model.parameters(), here.model.parameters(), strict=True):
        assert p.equal(q)


def test_a_state_that_is_kept_and_gone_on_from_is_the_same(elsewhere):
    elsewhere()
    whole, cut = Run().steps(6), Run().steps(3)
    state = cut.attribution.state_dict()
    again = Run()
    again.model.load_state_dict(cut.model.state_dict())
    again.optimizer.load_state_dict(cut.optimizer.state_dict())
    again.attribution.load_state_dict(state)
    again.count = 3
    assert again.steps(3).told()[:2] == whole.told()[:2]


@contextmanager
def watched(monkeypatch):
    """Counts transfers, and lists all other reads of tensors by the library's lines."""
    found, told, transfers = [], [], []

    def noting(method):
        def read(self, *args, **kwargs):
            place = _place()
            if place and not any(self.data_ptr() in there for there in told):
                found.append(f"{method.__name__}: {place}")
            return method(self, *args, **kwargs)

        return read

    fetched = _reading.transferred

    def transferred(tensors):
        copies = fetched(tensors)
        transfers.append(_place())
        storage = copies[0].untyped_storage()
        told.append(range(storage.data_ptr(), storage.data_ptr() + storage.nbytes()))
        kept.extend(copies)  # so that no other tensor gets their place
        return copies

    kept = []
    with monkeypatch.context() as patch:
        patch.setattr(_reading, "transferred", transferred)
        for name in READS:
            patch.setattr(torch.Tensor, name, noting(getattr(torch.Tensor, name)))
        yield transfers, found


# of what lies here anyway
HOST = ["optim/_rule.py: steps_seen", "factors/_contraction.py: _jumped"]
ROOMS = ["_inputs.py", "_calls.py", "_lone.py", "_replaying.py", "_owner_checks.py", "_tinted.py"]


def _place():
    """The library's line that reads, if it is one."""
    lines = [line for line in traceback.extract_stack() if "src/inrun/" in line.filename]
    names = [f"{line.filename.split('src/inrun/')[-1]}: {line.name}" for line in lines]
    # an optimizer's own count of steps lies on the CPU, wherever its moments are
    # and owner maps lie there too, wherever the activations are; the checks on owners wait, seldom
    if any(f"{room}:" in name or "owners/" in name for name in names for room in ROOMS):
        return ""
    if not names or names[-1] in HOST or names[-1].startswith("capture/_reading.py"):
        return ""
    return names[-1]


QUIET = {
    "plain": 2, "blocks": 2, "zeroed between blocks": 2, "clipped by norm": 2, "two targets": 2,
    "rotating": 2, "rank 4": 2, "sgd": 2, "smoothed": 2, "stream": 3,
}  # fmt: skip
"""Transfers in a step: `stream` asks once more, whether the weights that it forms directions at
are still those of the last pass."""


@pytest.mark.parametrize("kind", QUIET)
def test_a_step_reads_twice(kind, elsewhere, monkeypatch):
    elsewhere()
    run = Run(**{"contraction": "dense", **KINDS[kind]}).step()
    with watched(monkeypatch) as (transfers, found):
        run.step()  # what is read of the step before it was fetched in that one
        for _ in range(3):
            transfers.clear()
            found.clear()
            run.step()
            assert not found
            assert len(transfers) <= QUIET[kind], transfers
    assert transfers


def test_the_same_look_finds_reads_where_there_are_more(elsewhere, monkeypatch):
    elsewhere()
    run = Run(clip=by_value).steps(2)
    with watched(monkeypatch) as (_, found):
        run.step()
    assert any("scoring/_gradients.py" in line for line in found)


def test_what_is_wrong_is_said_with_the_step(elsewhere):
    elsewhere()
    run = Run().steps(2)
    handle = run.model.head.weight.register_hook(lambda g: 1.5 * g)
    with pytest.raises(InvariantError, match="gradient shares of head"):
        run.step()
    handle.remove()
    run.optimizer.zero_grad()
    assert run.attribution.ledger().num_rows == 2
    run.steps(2)
    assert run.attribution.ledger().num_rows == 4


def test_a_loss_that_is_not_finite_is_said_and_costs_no_earlier_step(elsewhere):
    elsewhere()
    scale = torch.ones(())
    utility = inrun.Utility(lambda m, b: loss_fn(m, b) * scale, torch.randint(30, (4, 9)))
    run = Run(utility=utility, contraction=LowRankContraction(rank=4)).steps(3)
    scale.fill_(float("nan"))
    with pytest.raises(MisuseError, match="not finite"):
        run.step()
    scale.fill_(1.0)
    run.optimizer.zero_grad()
    run.steps(2)
    books = run.attribution.ledger()
    assert books["step"].to_pylist() == [1, 2, 3, 4, 5]
    assert np.isfinite(books["samples"].to_numpy()).all()
    assert "nan" not in repr(run.attribution.coverage().to_pylist())


def test_an_edit_past_the_counters_costs_no_step_and_is_said(elsewhere):
    elsewhere()
    run = Run().steps(2)
    for p in run.model.parameters():
        p.data.mul_(1.1)
    with pytest.warns(InRunWarning, match="entry `other`"):
        run.step()
    run.steps(2)
    books = run.attribution.ledger()
    assert books["step"].to_pylist() == [1, 2, 3, 4, 5]
    size = np.abs(np.array(books["samples"])) + np.abs(np.array(books["momentum"]))
    assert (np.abs(np.array(books["residual"])) < 0.1 * size).all()


def test_the_last_step_is_stored_even_if_nobody_detaches(elsewhere, tmp_path):
    elsewhere()
    run = Run(store=tmp_path / "run").steps(4)
    del run
    gc.collect()
    assert inrun.load(tmp_path / "run").ledger()["step"].to_pylist() == [1, 2, 3, 4]


def outside(run, ids):
    """A block whose shares are not those of its gradient, and the loop's way out of it."""
    with run.attribution.batch(ids):
        loss_fn(run.model, torch.randint(30, (6, 9))).backward()
        run.model.head.weight.grad.mul_(2)


def test_blocks_that_are_wrong_count_for_nothing(elsewhere):
    elsewhere()
    run = Run().steps(2)
    outside(run, range(100, 106))
    outside(run, range(106, 112))
    with pytest.raises(InvariantError):
        run.optimizer.step()
    run.optimizer.zero_grad()
    run.step()
    assert run.attribution.values()["sample_id"].to_pylist() == list(range(6))
    assert run.attribution.ledger().num_rows == 3
    row = run.attribution.latest
    assert abs(row["residual"]) < 0.02 * (abs(row["samples"]) + abs(row["momentum"]))


def test_a_block_that_the_loop_zeroed_may_have_its_input_refilled(elsewhere):
    elsewhere()
    run, static = Run(), torch.zeros(6, 9, dtype=torch.long)
    for number in range(2):
        static.copy_(torch.randint(30, (6, 9), generator=torch.Generator().manual_seed(number)))
        run.optimizer.zero_grad()
        with run.attribution.batch(range(6 * number, 6 * number + 6)):
            loss_fn(run.model, static).backward()
    run.optimizer.step()
    assert run.attribution.values()["sample_id"].to_pylist() == list(range(6, 12))


def test_an_error_in_the_closing_pass_costs_that_step_alone(elsewhere, recwarn):
    elsewhere()
    fail = []

    def failing(model, batch):
        if fail:
            raise RuntimeError(fail.pop())
        return loss_fn(model, batch)

    run = Run(utility=inrun.Utility(failing, torch.randint(30, (4, 9)))).steps(2)
    fail.append("out of memory")
    with pytest.raises(RuntimeError, match="out of memory"):
        run.step()
    run.optimizer.zero_grad()
    run.steps(2)
    assert run.attribution.ledger()["step"].to_pylist() == [1, 2, 4, 5]
    assert not [w for w in recwarn if issubclass(w.category, InRunWarning)]
