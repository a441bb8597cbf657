"""DistributedDataParallel. `torchrun --nproc-per-node=2 examples/with_ddp.py`."""

import os
import sys
import tempfile

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import inrun
from digits import held_out, loss_fn, mislabelled, network, show


def main(folder, steps):
    for name, alone in {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost"}.items():
        os.environ.setdefault(name, alone)
    os.environ.setdefault("MASTER_PORT", "29511")
    dist.init_process_group("gloo")
    rank, size = dist.get_rank(), dist.get_world_size()
    model, (x, y) = DistributedDataParallel(network()), mislabelled()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    attribution = inrun.attach(
        model,
        optimizer,
        inrun.Utility(loss_fn, held_out()),
        store=f"{folder}/run",
        options=inrun.Options(progress=False),
    )
    for step in range(steps):
        everyones = torch.randint(len(y), (24,), generator=torch.Generator().manual_seed(step))
        rows = everyones.chunk(size)[rank]  # each process has its own samples
        with attribution.batch(rows):
            loss_fn(model, (x[rows], y[rows])).backward()
        optimizer.step()
        optimizer.zero_grad()
    attribution.detach()
    if rank == 0:  # values and books of all
        show(attribution)
    dist.destroy_process_group()
    return attribution


if __name__ == "__main__":
    main(tempfile.mkdtemp(), int(sys.argv[1]) if len(sys.argv) > 1 else 200)
