"""Trains the same global batches on as many processes as there are, and saves what came of it.

`torchrun --nproc-per-node=W several_processes.py FOLDER`; imported, the same on one process.
"""

import sys
from contextlib import nullcontext
from pathlib import Path

import pyarrow.parquet as pq
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import inrun
from inrun.ledger import read_state, write_state

STEPS = 5
# Double precision, but for one case. There eps is larger: Adam's first steps divide gradients by
# their own size, and the last digit of a near-zero one depends on the order of summing.
CASES = {
    "single precision": {"smoothed_steps": 0, "dtype": torch.float32, "eps": 1e-3},
    "plain": {"smoothed_steps": 0},
    "smoothed": {"smoothed_steps": 3},
    "given": {"estimator": "path-given"},
    "second": {"estimator": "sgd-second"},
    "accumulated": {"smoothed_steps": 0, "parts": 2},
    "uneven": {"smoothed_steps": 0, "rows": 7},  # of three processes the last has one row
    "fewer": {"smoothed_steps": 2, "rows": 2},  # and here none
    "clipped by value": {"smoothed_steps": 0, "value_clip": 0.02},
    "split validation": {"smoothed_steps": 0, "split": True},
}


def data():
    generator = torch.Generator().manual_seed(4)
    return torch.randn(72, 6, generator=generator), torch.randint(4, (72,), generator=generator)


def terms(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


def run(folder, name, *, parts=1, rows=6, value_clip=None, split=False, dtype=torch.float64,
        eps=1e-8, **options):  # fmt: skip
    """One case; the loss is the mean over the global batch, however it is spread."""
    several = dist.is_initialized()
    rank, size = (dist.get_rank(), dist.get_world_size()) if several else (0, 1)
    x, y = data()
    x = x.to(dtype)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 10), nn.LayerNorm(10), nn.Tanh(), nn.Linear(10, 4)).to(dtype)
    wrapped = DistributedDataParallel(model) if several else model
    optimizer = torch.optim.AdamW(wrapped.parameters(), lr=1e-2, weight_decay=0.1, eps=eps)
    held = torch.arange(60, 72)
    held = held.chunk(size)[rank] if split else held
    utility = inrun.Utility(lambda m, b: terms(m, b).mean(), (x[held], y[held]))
    attribution = inrun.attach(
        wrapped, optimizer, utility, progress=False, store=folder / name, **options
    )
    for step in range(STEPS):
        mine = (torch.arange(rows) + rows * step).tensor_split(size)[rank]
        blocks = mine.chunk(parts) if parts > 1 else [mine]
        for number, block in enumerate(blocks):
            waits = several and number + 1 < len(blocks)
            with wrapped.no_sync() if waits else nullcontext(), attribution.batch(block):
                (terms(wrapped, (x[block], y[block])).sum() / rows * size).backward()
        if value_clip is None:
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        else:
            nn.utils.clip_grad_value_(model.parameters(), value_clip)
        optimizer.step()
        optimizer.zero_grad()
    if not several or rank == 0:
        write_state(folder / f"{name}.safetensors", attribution.state_dict())
    attribution.detach()
    if rank == size - 1:  # every process has the same tables
        pq.write_table(attribution.values(), folder / f"{name}.parquet")
    return attribution


def refusals(folder):
    """What several processes cannot do is said by all of them alike."""
    model = DistributedDataParallel(nn.Linear(6, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x, y = data()
    utility = inrun.Utility(lambda m, b: terms(m, b).mean(), (x, y))
    said = []
    try:
        inrun.attach(model, optimizer, utility, capture="stream")
    except inrun.errors.NotSupportedError as error:
        said.append(str(error))
    attribution = inrun.attach(model, optimizer, utility)
    try:
        attribution.audit(seconds=1, steps=2)
    except inrun.errors.NotSupportedError as error:
        said.append(str(error))
    try:
        with attribution.batch(range(6)):
            penalty = model.module.weight.square().sum() * dist.get_rank()
            (terms(model, (x[:6], y[:6])).mean() + penalty).backward()
    except inrun.errors.InvariantError as error:
        said.append(str(error))
    (folder / f"said-{dist.get_rank()}").write_text("\n".join(said))
    assert read_state(folder / "plain.safetensors") or dist.get_rank()


def main():
    folder = Path(sys.argv[1])
    dist.init_process_group("gloo")
    torch.set_num_threads(1)
    for name, options in CASES.items():
        run(folder, name, **options)
    dist.barrier()
    refusals(folder)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
