"""Autocast, a scaler, activation checkpoints. `python examples/with_half_precision.py`."""

import sys
import tempfile

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import inrun
from digits import held_out, loss_fn, mislabelled, network, show


class Saving(nn.Module):
    """The first layers are computed again in the backward pass."""

    def __init__(self):
        super().__init__()
        self.net = network()

    def forward(self, x):
        return self.net[2](checkpoint(self.net[:2], x, use_reentrant=False))


def main(folder, steps):
    model, (x, y) = Saving(), mislabelled()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    attribution = inrun.attach(
        model,
        optimizer,
        inrun.Utility(loss_fn, held_out()),
        store=f"{folder}/run",
        options=inrun.Options(progress=False),
    )
    for _ in range(steps):
        rows = torch.randint(len(y), (16,))
        with attribution.batch(rows):
            with torch.autocast("cpu", torch.float16):
                loss = loss_fn(model, (x[rows], y[rows]))
            scaler.scale(loss).backward()
        scaler.step(optimizer)  # a step that the scaler skips is not scored
        scaler.update()
        optimizer.zero_grad()
    attribution.detach()
    show(attribution)
    return attribution


if __name__ == "__main__":
    main(tempfile.mkdtemp(), int(sys.argv[1]) if len(sys.argv) > 1 else 200)
