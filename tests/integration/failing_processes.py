"""Validation that is not finite in one process of several; what each process says of it.

Two processes run `main`. After the failure all go on training.
"""

import json

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import inrun
from tests.processes import leave_together

WHERE = {"first pass": 1, "a closing pass": 4}  # the pass that fails
WHAT = ("loss", "gradient", "an error of its own")
AT_ATTACH = (
    "loss_fn", "loss_fn in parts", "store", "sharded, before its pass", "sharded, in a layer",
    "sharded, after its pass", "sharded, in a pass with gradients",
)  # fmt: skip
HOW = {"whole": {}, "given": {"estimator": "path-given"}, "statistics": {}, "sharded": {}}


class Judge:
    """A validation loss that fails in the last process, in its n-th pass with gradients."""

    def __init__(self, what, fails):
        self._what, self._fails, self._passes = what, fails, 0
        self.armed = False  # not while it is attached

    def __call__(self, model, batch):
        loss = model(batch).square().mean()
        if not self.armed or not torch.is_grad_enabled():
            return loss
        self._passes += 1
        last = dist.get_rank() == dist.get_world_size() - 1
        if not last or self._passes != self._fails:
            return loss
        if self._what == "loss":
            return loss * float("nan")
        if self._what == "gradient":
            return loss + (loss - loss.detach()).abs().sqrt()  # whose slope at 0 is infinite
        raise ValueError("this file is not there")


def case(what, fails, how):
    """What this process says, and the steps that are booked."""
    torch.manual_seed(0)
    rank, size = dist.get_rank(), dist.get_world_size()
    x = torch.randn(80, 5)
    model = nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3))
    if how == "statistics":
        model.insert(1, nn.BatchNorm1d(4))
    wrapped = fully_shard(model) if how == "sharded" else DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(wrapped.parameters(), lr=1e-2)
    said = []
    judge = Judge(what, fails)
    utility = inrun.Utility(judge, x[60 + 5 * rank : 65 + 5 * rank])
    attribution = inrun.attach(wrapped, optimizer, utility, **HOW[how])
    judge.armed = True
    for step in range(6):
        ids = torch.arange(6 * step, 6 * step + 6).tensor_split(size)[rank]
        try:
            with attribution.batch(ids):
                wrapped(x[ids]).square().mean().backward()
            optimizer.step()
        except Exception as error:
            said.append(f"{type(error).__name__}: {error}")
        optimizer.zero_grad()
    attribution.detach()
    books = attribution.ledger()["step"].to_pylist()
    return {"said": said, "steps": books, "values": attribution.values()["value"].to_pylist()}


class Failing(nn.Module):
    """A layer that fails while it is told to."""

    fails = False

    def forward(self, x):
        if self.fails:
            raise ValueError("this file is not there")
        return x


def spread(what):
    """A model of which each process holds all, or a part."""
    model = nn.Sequential(nn.Linear(5, 4), Failing(), nn.Linear(4, 3))
    if not what.startswith("sharded"):
        return DistributedDataParallel(model)
    for layer in (model[0], model[2]):
        fully_shard(layer)
    return fully_shard(model)


def at_attach(what, folder):
    """What this process says of an attach that fails in one; then all attach again, and train."""
    torch.manual_seed(0)
    rank = dist.get_rank()
    fails = rank == dist.get_world_size() - 1 and what != "store"
    x, model = torch.randn(30, 5), spread(what)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)

    def loss_fn(model, batch):
        Failing.fails = fails and what == "sharded, in a layer"
        failing = fails and (what != "sharded, in a pass with gradients" or torch.is_grad_enabled())
        loss = model(batch).square().mean() if failing and what == "sharded, after its pass" else 0
        if failing and not Failing.fails:
            raise ValueError("this file is not there")
        return loss + model(batch).square().mean()

    store = None
    if what == "store":  # in which the first process finds a run
        store = folder / "run"
        store.mkdir(exist_ok=True)
        (store / "run.json").write_text("not there")
        dist.barrier()
    utility = inrun.Utility(loss_fn, x[20:], batch_size=4 if what == "loss_fn in parts" else None)
    said = []
    for again in (False, True):
        try:
            attribution = inrun.attach(
                model, optimizer, utility, store=None if again else store,
                options=inrun.Options(progress=False),
            )  # fmt: skip
        except Exception as error:
            said.append(f"{type(error).__name__}: {error}")
        fails = False
    ids = torch.arange(6).tensor_split(dist.get_world_size())[rank]
    with attribution.batch(ids):
        model(x[ids]).square().mean().backward()
    optimizer.step()
    attribution.detach()
    return {"said": said, "steps": attribution.ledger()["step"].to_pylist()}


def main(folder):
    dist.init_process_group("gloo")
    found = {
        f"{what}, {where}, {how}": case(what, fails, how)
        for what in WHAT
        for where, fails in WHERE.items()
        for how in HOW
        if not (how == "sharded" and what == "an error of its own")  # within FSDP's own calls
    }
    found["attach"] = {what: at_attach(what, folder) for what in AT_ATTACH}
    (folder / f"said-{dist.get_rank()}").write_text(json.dumps(found))
    leave_together()
