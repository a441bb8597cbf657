"""Numbers that are read late: the same values and books, and the device is never waited for.

On a CUDA device the host reads a step's numbers after it has queued further work. Here the CPU is
taken for such a device; what a read would cost there is told by forbidding all of them between a
step's first and its last line, but for the one place where they are late.
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
from inrun.attribution import _steps, _validation
from inrun.capture._reading import Reading
from inrun.errors import InRunWarning, InvariantError, MisuseError
from inrun.factors import LowRankContraction
from tests.settings import flat

READS = ["item", "tolist", "numpy", "cpu", "nonzero", "equal", "allclose"]
READS += ["__bool__", "__float__", "__int__", "__index__"]


@pytest.fixture
def late(monkeypatch):
    """Takes the CPU for a device that is read late."""
    return lambda yes=True: monkeypatch.setattr(_steps, "reads_late", lambda _: yes)


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

    def steps(self, number=6):
        for _ in range(number):
            self.step()
        return self

    def told(self):
        values, books = self.attribution.values(), self.attribution.ledger()
        coverage = self.attribution.coverage()
        return values.to_pylist(), books.to_pylist(), coverage.to_pylist()


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
    "rotating": {"utility": inrun.Utility(loss_fn, torch.arange(36).view(4, 9) % 30).dealt(2)},
    "next batch": {"utility": inrun.Utility.next_batch(loss_fn, torch.zeros(4, 9).long())},
}


@pytest.mark.parametrize("kind", KINDS)
def test_values_books_and_coverage_are_those_read_at_once(kind, late):
    late(False)
    at_once = Run(**KINDS[kind]).steps()
    late()
    found = Run(**KINDS[kind]).steps()
    assert repr(found.told()) == repr(at_once.told())  # in which nan is nan
    assert repr(found.attribution.latest) == repr(at_once.attribution.latest)
    for p, q in zip(found.model.parameters(), at_once.model.parameters(), strict=True):
        assert p.equal(q)


def test_a_state_that_is_kept_and_gone_on_from_is_the_same(late):
    late()
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
    """Lists the host's reads: of tensors, and of a `Reading` with no pass queued since it began."""
    found, told, passes = [], [], [0]

    def noting(method):
        def read(self, *args, **kwargs):
            place = _place()
            if place and not any(self.data_ptr() == t.data_ptr() for t in told):
                found.append(f"{method.__name__}: {place}")
            return method(self, *args, **kwargs)

        return read

    def counting(method):
        def run(*args, **kwargs):
            passes[0] += 1
            return method(*args, **kwargs)

        return run

    begun, waited = Reading.__init__, Reading.wait

    def begin(self, *tensors):
        begun(self, *tensors)
        self.passes = passes[0]

    def wait(self):
        if getattr(self, "passes", -1) == passes[0]:
            found.append(f"waits for what was asked just before: {_place()}")
        numbers = waited(self)
        told.extend([*numbers, *(row for t in numbers for row in t)])
        return numbers

    with monkeypatch.context() as patch:
        patch.setattr(_validation, "evaluate", counting(_validation.evaluate))
        patch.setattr(_steps.Steps, "block", counting(_steps.Steps.block))
        patch.setattr(Reading, "__init__", begin)
        patch.setattr(Reading, "wait", wait)
        for name in READS:
            patch.setattr(torch.Tensor, name, noting(getattr(torch.Tensor, name)))
        yield found


ROOMS = ["_inputs.py", "_calls.py", "_lone.py", "_replaying.py", "_owner_checks.py", "_tinted.py"]


def _place():
    """The library's line that reads, if it is one."""
    lines = [line for line in traceback.extract_stack() if "src/inrun/" in line.filename]
    names = [f"{line.filename.split('src/inrun/')[-1]}: {line.name}" for line in lines]
    # an optimizer's own count of steps lies on the CPU, wherever its moments are
    # and owner maps lie there too, wherever the activations are; the checks on owners wait, seldom
    if any(f"{room}:" in name or "owners/" in name for name in names for room in ROOMS):
        return ""
    if not names or "optim/_adam.py: read" in names or names[-1].startswith("capture/_reading.py"):
        return ""
    return names[-1]


QUIET = ["plain", "blocks", "clipped by norm", "two targets", "rotating", "stream", "rank 4"]


@pytest.mark.parametrize("kind", QUIET)
def test_within_a_step_the_host_reads_nothing_that_was_just_asked_for(kind, late, monkeypatch):
    late()
    run = Run(**{"contraction": "dense", **KINDS[kind]}).steps(2)
    with watched(monkeypatch) as found:
        run.steps(2)
    assert not found
    assert run.attribution.latest["step"] == 4


def test_read_at_once_the_same_look_finds_reads(late, monkeypatch):
    late(False)
    run = Run().steps(2)
    with watched(monkeypatch) as found:
        run.step()
    assert any(line.startswith("waits") for line in found)


def test_what_is_wrong_is_said_with_the_step(late):
    late()
    run = Run().steps(2)
    handle = run.model.head.weight.register_hook(lambda g: 1.5 * g)
    with pytest.raises(InvariantError, match="gradient shares of head"):
        run.steps(3)
    handle.remove()
    run.optimizer.zero_grad()
    before = run.attribution.ledger().num_rows
    run.steps(2)
    assert run.attribution.ledger().num_rows == before + 2 == 4


def test_a_loss_that_is_not_finite_is_said_and_costs_no_earlier_step(late):
    late()
    scale = torch.ones(())
    utility = inrun.Utility(lambda m, b: loss_fn(m, b) * scale, torch.randint(30, (4, 9)))
    run = Run(utility=utility).steps(3)
    scale.fill_(float("nan"))
    with pytest.raises(MisuseError, match="not finite"):
        run.steps(2)
    with pytest.warns(InRunWarning, match="Step 5 was not booked"):
        assert run.attribution.ledger()["step"].to_pylist() == [1, 2, 3]
    assert run.attribution.ledger()["step"].to_pylist() == [1, 2, 3]


def test_an_edit_past_the_counters_costs_one_step_and_is_said(late):
    late()
    run = Run().steps(2)
    for p in run.model.parameters():
        p.data.mul_(1.1)
    with pytest.warns(InRunWarning, match="past PyTorch's version counters"):
        run.step()
    run.steps(2)
    books = run.attribution.ledger()
    assert books["step"].to_pylist() == [1, 2, 4, 5]
    size = np.abs(np.array(books["samples"])) + np.abs(np.array(books["momentum"]))
    assert (np.abs(np.array(books["residual"])) < 0.1 * size).all()
    run.model.head.weight.data.mul_(1.1)  # read at once from now on: nothing is lost
    with pytest.warns(InRunWarning, match="entry `other`"):
        run.step()
    assert run.attribution.ledger()["step"].to_pylist() == [1, 2, 4, 5, 6]


def test_the_last_step_is_stored_even_if_nobody_detaches(late, tmp_path):
    late()
    run = Run(store=tmp_path / "run").steps(4)
    del run
    gc.collect()
    assert inrun.load(tmp_path / "run").ledger()["step"].to_pylist() == [1, 2, 3, 4]


def outside(run, ids):
    """A block whose shares are not those of its gradient, and the loop's way out of it."""
    with run.attribution.batch(ids):
        loss_fn(run.model, torch.randint(30, (6, 9))).backward()
        run.model.head.weight.grad.mul_(2)


def test_a_block_that_is_wrong_counts_for_nothing(late):
    late()
    run = Run().steps(2)
    outside(run, range(100, 106))
    with pytest.raises(InvariantError):
        outside(run, range(106, 112))
    run.optimizer.zero_grad()
    run.step()
    assert run.attribution.values()["sample_id"].to_pylist() == list(range(6))
    assert run.attribution.ledger().num_rows == 3
    row = run.attribution.latest
    assert abs(row["residual"]) < 0.02 * (abs(row["samples"]) + abs(row["momentum"]))


def test_a_step_that_waits_is_not_booked_in_a_run_that_was_loaded(late):
    late()
    kept = Run().steps(3).attribution.state_dict()
    run = Run().steps(5)
    run.attribution.load_state_dict(kept)
    assert run.attribution.ledger()["step"].to_pylist() == [1, 2, 3]
    assert run.attribution.sampling["scored"] == 3


def test_what_is_told_of_sampling_counts_the_step_that_waits(late):
    late()
    assert Run().steps(3).attribution.sampling["scored"] == 3


def diverging(**options):
    scale = torch.ones(())
    utility = inrun.Utility(lambda m, b: loss_fn(m, b) * scale, torch.randint(30, (4, 9)))
    run = Run(utility=utility, **options).steps(3)
    scale.fill_(float("nan"))
    run.step()
    return run


def test_a_run_whose_last_step_cannot_be_booked_keeps_the_others(late, tmp_path):
    late()
    run = diverging(store=tmp_path / "run")
    with pytest.warns(InRunWarning, match="Step 4 was not booked"):
        run.attribution.detach()
    assert inrun.load(tmp_path / "run").ledger()["step"].to_pylist() == [1, 2, 3]
    run = diverging(store=tmp_path / "dropped")
    with pytest.warns(InRunWarning, match="Step 4 was not booked"):
        del run
        gc.collect()
    assert inrun.load(tmp_path / "dropped").ledger()["step"].to_pylist() == [1, 2, 3]


def test_the_loops_own_error_comes_out(late):
    late()
    run = diverging()
    with pytest.warns(InRunWarning, match="not booked"), pytest.raises(KeyError, match="own"):
        with run.attribution:
            raise KeyError("own")


def test_an_optimizer_that_writes_into_gradients_costs_a_clipped_step_and_says_so(late):
    late()
    run = Run(clip=by_value)
    run.attribution.detach()
    run.optimizer = torch.optim.SGD(
        run.model.parameters(), lr=0.1, momentum=0.9, nesterov=True, foreach=True
    )
    utility = inrun.Utility(loss_fn, torch.randint(30, (4, 9)))
    run.attribution = inrun.attach(
        run.model, run.optimizer, utility, options=inrun.Options(progress=False)
    )
    with pytest.warns(InRunWarning, match="overwritten in it"):
        run.step()
    run.steps(3)
    assert run.attribution.ledger()["step"].to_pylist() == [2, 3, 4]


def test_a_block_that_the_loop_zeroed_may_have_its_input_refilled(late):
    late()
    run, static = Run(), torch.zeros(6, 9, dtype=torch.long)
    for number in range(2):
        static.copy_(torch.randint(30, (6, 9), generator=torch.Generator().manual_seed(number)))
        run.optimizer.zero_grad()
        with run.attribution.batch(range(6 * number, 6 * number + 6)):
            loss_fn(run.model, static).backward()
    run.optimizer.step()
    assert run.attribution.values()["sample_id"].to_pylist() == list(range(6, 12))


def test_an_error_in_the_closing_pass_costs_that_step_alone(late, recwarn):
    late()
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
