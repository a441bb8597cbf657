"""Trains the same global batches on as many processes as there are, and saves what came of it.

Several processes run `main`; `run` alone is the same on one process.
"""

import json
from contextlib import contextmanager, nullcontext

import pyarrow.parquet as pq
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.distributed.algorithms import Join
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils.parametrizations import weight_norm
from torch.utils.checkpoint import checkpoint

import inrun
from inrun.factors import LowRankContraction, _sketch
from inrun.ledger import read_state, write_state
from tests.processes import leave_together
from tests.settings import flat

STEPS = 5
# Double precision, but for one case. There eps is larger: Adam's first steps divide gradients by
# their own size, and the last digit of a near-zero one depends on the order of summing.
CASES = {
    "single precision": {"smoothed_steps": 0, "dtype": torch.float32, "eps": 1e-3},
    "plain": {"smoothed_steps": 0},
    "smoothed": {"smoothed_steps": 3},
    "given": {"estimator": "path-given"},
    "second": {"estimator": "sgd-second"},
    "accumulated": {"smoothed_steps": 0, "parts": 2, "gradient_sizes": True},
    "uneven": {"smoothed_steps": 0, "rows": 7},  # of three processes the last has one row
    "fewer": {"smoothed_steps": 2, "rows": 2, "gradient_sizes": True},  # and here none
    "clipped by value": {"smoothed_steps": 0, "value_clip": 0.02},
    "split validation": {"smoothed_steps": 0, "split": True},
    "unequal validation": {"smoothed_steps": 0, "split": "unequal"},
    "unequal validation, a sum": {"smoothed_steps": 0, "split": "unequal", "summed": True},
    "unequal validation, given": {"estimator": "path-given", "split": "unequal"},
    "unequal validation, second": {"estimator": "sgd-second", "split": "unequal"},
    "sharded, unequal validation": {"smoothed_steps": 0, "sharded": True, "split": "unequal"},
    "unattributed": {"smoothed_steps": 0, "penalty": 0.05},
    "unattributed, smoothed, accumulated": {"smoothed_steps": 3, "parts": 2, "penalty": 0.05},
    "unattributed, fewer": {"smoothed_steps": 0, "rows": 2, "penalty": 0.05},
    "unattributed, streamed": {"capture": "stream", "penalty": 0.05},
    "unattributed, clipped by value": {
        "smoothed_steps": 0, "penalty": 0.05, "value_clip": 0.02,
    },
    "streamed": {"capture": "stream"},
    "streamed, accumulated": {"capture": "stream", "parts": 2},
    "streamed, fewer": {"capture": "stream", "rows": 2},
    "streamed, split validation": {"capture": "stream", "split": True},
    "paid out": {"smoothed_steps": 0, "momentum_window": 2},
    "paid out, fewer": {
        "smoothed_steps": 0, "momentum_window": 3, "rows": 2, "parts": 2, "gradient_sizes": True,
    },
    "sampled": {"smoothed_steps": 0, "every": 2},
    "windows": {"scoring": inrun.Window(2, exact=1), "smoothed_steps": 0},
    "windows, accumulated": {
        "scoring": inrun.Window(2, exact=1), "smoothed_steps": 0, "parts": 2, "penalty": 0.05,
    },
    "windows, fewer": {"scoring": inrun.Window(2, exact=1), "smoothed_steps": 0, "rows": 2},
    "rotating": {"smoothed_steps": 0, "rotating": 3},
    "sharded, windows": {
        "scoring": inrun.Window(2, exact=1, rank=3), "smoothed_steps": 0, "sharded": True,
        "whole": 20,
    },
    "sharded, windows, accumulated, fewer": {
        "scoring": inrun.Window(2, exact=1), "smoothed_steps": 0, "sharded": True, "parts": 2,
        "rows": 2,
    },
    "sharded and replicated, windows": {
        "scoring": inrun.Window(2, exact=1, rank=3), "smoothed_steps": 0, "sharded": True,
        "replicas": True, "whole": 20,
    },
    "windows of a low rank": {
        "scoring": inrun.Window(2, exact=1, rank=2), "smoothed_steps": 0, "whole": 20,
    },
    "sharded, paid out": {"smoothed_steps": 0, "momentum_window": 2, "sharded": True},
    "sharded, paid out, clipped by value": {
        "smoothed_steps": 0, "momentum_window": 2, "sharded": True, "value_clip": 0.02, "rows": 2,
    },
    "sharded": {"smoothed_steps": 0, "sharded": True},
    "sharded, single precision": {
        "sharded": True, "smoothed_steps": 0, "dtype": torch.float32, "eps": 1e-3,
    },
    "sharded, smoothed": {"smoothed_steps": 3, "sharded": True},
    "sharded, given": {"estimator": "path-given", "sharded": True},
    "sharded, tangent": {"estimator": "tangent", "sharded": True},
    "sharded, accumulated": {"smoothed_steps": 0, "sharded": True, "parts": 2},
    "sharded and replicated": {"smoothed_steps": 2, "sharded": True, "replicas": True},
    "sharded, offloaded": {"smoothed_steps": 2, "sharded": True, "capture": "offload"},
    "sharded, fewer": {"smoothed_steps": 2, "sharded": True, "rows": 2},
    "sharded, clipped by value": {
        "smoothed_steps": 0, "sharded": True, "value_clip": 0.02, "gradient_sizes": True,
    },
    "sharded, split validation": {"smoothed_steps": 0, "sharded": True, "split": True},
    "sharded, low rank": {
        "smoothed_steps": 0, "sharded": True, "contraction": LowRankContraction(rank=2),
    },
}  # fmt: skip


def data():
    generator = torch.Generator().manual_seed(4)
    return torch.randn(72, 6, generator=generator), torch.randint(4, (72,), generator=generator)


class Curious(nn.Module):
    """Layers whose shares are not those of a plain matrix."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(6, 10)
        self.normed = weight_norm(nn.Linear(10, 10))  # a map of two parameters that is not linear
        self.scale = nn.Parameter(torch.rand(10))
        self.pairs = nn.Bilinear(10, 10, 4)  # no rule of its own
        self.there, self.back = nn.Linear(10, 10), nn.Linear(10, 10)
        self.back.weight = self.there.weight

    def forward(self, x):
        hidden = checkpoint(self.tied, torch.tanh(self.first(x)), use_reentrant=False)
        return self.pairs(hidden, torch.tanh(self.normed(hidden)) * self.scale)

    def tied(self, x):
        return torch.tanh(self.back(torch.tanh(self.there(x))))


def network(*, sharded):
    torch.manual_seed(0)
    if sharded:
        return Curious()
    return nn.Sequential(nn.Linear(6, 10), nn.LayerNorm(10), nn.Tanh(), nn.Linear(10, 4))


def spread(model, *, sharded, **options):
    """Over all processes: parameters in parts, or copies."""
    if not dist.is_initialized():
        return model
    if not sharded:
        return DistributedDataParallel(model)
    fully_shard(model.first, **options)
    fully_shard(model.normed, **options)
    return fully_shard(model, **options)  # the rest


@contextmanager
def waiting(model, waits):
    """Gradients of the pass inside are not reduced yet."""
    if not waits:
        yield
    elif isinstance(model, DistributedDataParallel):
        with model.no_sync():
            yield
    else:
        model.set_requires_gradient_sync(False)
        yield
        model.set_requires_gradient_sync(True)


def terms(model, batch):
    outputs = model(batch[0])
    outputs = outputs.float() if outputs.dtype == torch.bfloat16 else outputs
    return F.cross_entropy(outputs, batch[1], reduction="none")


def run(folder, name, *, parts=1, rows=6, value_clip=None, split=False, dtype=torch.float64,
        eps=1e-8, sharded=False, replicas=False, rotating=1,
        summed=False, penalty=0.0, whole=_sketch.WHOLE, **options):  # fmt: skip
    """One case; the loss is the mean over the global batch, however it is spread."""
    _sketch.WHOLE = whole  # elements up to which a window keeps shares themselves
    several = dist.is_initialized()
    rank, size = (dist.get_rank(), dist.get_world_size()) if several else (0, 1)
    x, y = data()
    x = x.to(dtype)
    model = network(sharded=sharded).to(dtype)
    mesh = {}
    if replicas and several:  # as many copies as processes, each of one part
        names = {"mesh_dim_names": ("replicate", "shard")}
        mesh = {"mesh": init_device_mesh("cpu", (size, 1), **names)}
    wrapped = spread(model, sharded=sharded, **mesh)
    optimizer = torch.optim.AdamW(wrapped.parameters(), lr=1e-2, weight_decay=0.1, eps=eps)
    held = torch.arange(60, 72)
    if split == "unequal":
        held = held.split([12 - 2 * (size - 1)] + [2] * (size - 1))[rank]
    else:
        held = held.chunk(size)[rank] if split else held
    over = size / 12 if summed else None  # of several processes the loss is the mean
    mean = lambda m, b: terms(m, b).sum() * over if over else terms(m, b).mean()  # noqa: E731
    utility = inrun.Utility(mean, (x[held], y[held])).split(rotating)
    attribution = inrun.attach(
        wrapped, optimizer, utility, store=folder / name, **flat(progress=False, **options)
    )
    for step in range(STEPS):
        everyones = (torch.arange(rows) + rows * step).chunk(parts)
        blocks = [whole.tensor_split(size)[rank] for whole in everyones]
        for number, block in enumerate(blocks):
            waits = several and number + 1 < len(blocks)
            with waiting(wrapped, waits), attribution.batch(block):
                (terms(wrapped, (x[block], y[block])).sum() / rows * size).backward()
        if penalty:
            with attribution.unattributed():  # the same in every process, so that nobody reduces it
                (penalty * sum(p.square().sum() for p in model.parameters())).backward()
        if value_clip is None:
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        else:
            nn.utils.clip_grad_value_(model.parameters(), value_clip)
        optimizer.step()
        optimizer.zero_grad()
    if rank == 0 or options.get("momentum_window"):
        state = attribution.state_dict()
        if rank == 0:
            write_state(folder / f"{name}.safetensors", state)
    if (options.get("momentum_window") and rank == size - 1) or size == 1:
        (folder / f"{name}.json").write_text(json.dumps(attribution.balance()))
    elif options.get("momentum_window"):
        attribution.balance()
    attribution.detach()
    if rank == size - 1:  # every process has the same tables
        pq.write_table(attribution.values(), folder / f"{name}.parquet")
    return attribution


def resume(folder):
    """Every process goes on from the state that the first one saved."""
    run(folder, "to resume", smoothed_steps=0)
    dist.barrier()
    x, y = data()
    model = nn.Sequential(nn.Linear(6, 10), nn.LayerNorm(10), nn.Tanh(), nn.Linear(10, 4)).double()
    wrapped = DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(wrapped.parameters(), lr=1e-2, weight_decay=0.1)
    utility = inrun.Utility(lambda m, b: terms(m, b).mean(), (x[60:].double(), y[60:]))
    attribution = inrun.attach(
        wrapped,
        optimizer,
        utility,
        store=folder / "to resume",
        resume=True,
        options=inrun.Options(progress=False),
    )
    attribution.load_state_dict(read_state(folder / "to resume.safetensors"))
    mine = torch.arange(30, 36).tensor_split(dist.get_world_size())[dist.get_rank()]
    with attribution.batch(mine):
        terms(wrapped, (x[mine].double(), y[mine])).sum().backward()
    optimizer.step()
    pq.write_table(attribution.values(), folder / f"resumed-{dist.get_rank()}.parquet")
    pq.write_table(attribution.ledger(), folder / f"resumed-books-{dist.get_rank()}.parquet")
    attribution.detach()


def audit(folder):
    """Plays a few steps out, with groups of everyone's samples."""
    x, y = (t.double() if t.is_floating_point() else t for t in data())
    model = DistributedDataParallel(network(sharded=False).double())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    rank, size = dist.get_rank(), dist.get_world_size()
    held = torch.arange(60, 72).chunk(size)[rank]
    utility = inrun.Utility(lambda m, b: terms(m, b).mean(), (x[held], y[held]))
    attribution = inrun.attach(
        model, optimizer, utility, options=inrun.Options(progress=False, smoothed_steps=0)
    )
    checks = attribution.audit(seconds=1e6, steps=4, groups=4)
    for step in range(4):
        mine = (torch.arange(9) + 9 * step).tensor_split(size)[rank]
        with attribution.batch(mine):
            (terms(model, (x[mine], y[mine])).sum() / 9 * size).backward()
        optimizer.step()
        optimizer.zero_grad()
    attribution.detach()
    pq.write_table(checks.table().drop_columns(["seconds"]), folder / f"audit-{rank}.parquet")
    pq.write_table(attribution.ledger(), folder / f"audited-{rank}.parquet")


def untouched(folder):
    """Trains sharded models with and without attribution, in full and in mixed precision."""
    x, y = data()
    rank, size = dist.get_rank(), dist.get_world_size()
    half = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    found = {}
    for name, policy in {"full": MixedPrecisionPolicy(), "mixed": half}.items():
        weights = []
        for attached in (False, True):
            model = spread(network(sharded=True), sharded=True, mp_policy=policy)
            optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
            utility = inrun.Utility(lambda m, b: terms(m, b).mean(), (x[60:], y[60:]))
            attribution = inrun.attach(
                model, optimizer, utility, options=inrun.Options(progress=False)
            )
            if not attached:
                attribution.detach()
            for step in range(STEPS):
                mine = (torch.arange(8) + 8 * step).tensor_split(size)[rank]
                with attribution.batch(mine) if attached else nullcontext():
                    (terms(model, (x[mine], y[mine])).sum() / 8 * size).backward()
                nn.utils.clip_grad_norm_(model.parameters(), 0.5)
                optimizer.step()
                optimizer.zero_grad()
            weights.append([p.to_local().clone() for p in model.parameters()])
            attribution.detach()
        same = all(torch.equal(a, b) for a, b in zip(*weights, strict=True))
        found[name] = {
            "same": same,
            "residual": attribution.residual_share,
            "covered": attribution.covered,
            "values": attribution.values()["value"].to_pylist(),
        }
    (folder / f"untouched-{rank}").write_text(json.dumps(found))


def refusals(folder):
    """What several processes cannot do is said by all of them alike."""
    rank, said = dist.get_rank(), {}
    x, y = data()
    utility = inrun.Utility(lambda m, b: terms(m, b).mean(), (x, y))

    @contextmanager
    def noted(what):
        try:
            yield
        except inrun.errors.InRunError as error:
            said[what] = f"{type(error).__name__}: {error}"

    model = DistributedDataParallel(nn.Linear(6, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with inrun.attach(
        model, optimizer, utility, options=inrun.Options(progress=False)
    ) as attribution:
        with noted("penalty"), attribution.batch(range(6)):
            penalty = model.module.weight.square().sum() * rank
            (terms(model, (x[:6], y[:6])).mean() + penalty).backward()
        optimizer.zero_grad()
        with noted("no block"):
            if rank == 0:
                with attribution.batch(range(6)):
                    terms(model, (x[:6], y[:6])).mean().backward()
            else:
                terms(model, (x[:6], y[:6])).mean().backward()
            optimizer.step()
    with inrun.attach(
        model, optimizer, utility, options=inrun.Options(progress=False, capture="stream")
    ) as attribution:
        optimizer.zero_grad()
        with noted("fewer blocks"):
            for number in range(2 - (rank > 0)):
                with model.no_sync(), attribution.batch([number]):
                    terms(model, (x[:1], y[:1])).mean().backward()
            optimizer.step()
        with Join([model]):
            with noted("join"), attribution.batch(range(6)):
                pass
            terms(model, (x[:6], y[:6])).mean().backward()

    def attached(what, model, optimizer=torch.optim.SGD, **options):
        with noted(what):
            inrun.attach(model, optimizer(model.parameters(), lr=0.1), utility, **flat(**options))

    parts = fully_shard(nn.Linear(6, 4, bias=False))
    attached("muon", parts, torch.optim.Muon)
    attached("second", parts, estimator="sgd-second")
    attached("stream", parts, capture="stream")
    attached("alone", parts, process_group=None)
    partly = nn.Sequential(fully_shard(nn.Linear(6, 6)), nn.Linear(6, 4))
    attached("left out", partly)
    divided = fully_shard(nn.Linear(6, 4))
    divided.set_gradient_divide_factor(1.0)
    attached("divisor", divided)
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    tensor_parallel = parallelize_module(nn.Linear(6, 4), mesh, ColwiseParallel())
    attached("tensor parallelism", tensor_parallel)
    optimizer = torch.optim.SGD(parts.parameters(), lr=0.1)
    with noted("record"):
        inrun.record(parts, optimizer, terms, lambda ids: (x[ids], y[ids]))
    options = {"contraction": "dense", "smoothed_steps": 0, "progress": False}
    with inrun.attach(parts, optimizer, utility, **flat(**options)) as attribution:
        parts.set_requires_gradient_sync(False)
        with noted("unreduced"), attribution.batch(range(6)):
            terms(parts, (x[:6], y[:6])).mean().backward()
        with noted("unreduced"):
            optimizer.step()
        with noted("audit"):
            attribution.audit(seconds=1, steps=2)
        with noted("tokens"):
            attribution.per_token(terms)
    (folder / f"said-{rank}").write_text(json.dumps(said))


def main(folder):
    dist.init_process_group("gloo")
    for name, options in CASES.items():
        run(folder, name, **options)
    dist.barrier()
    refusals(folder)
    resume(folder)
    audit(folder)
    untouched(folder)
    leave_together()
