"""A loop that can be killed at any time and goes on. `python examples/with_checkpoints.py FOLDER`.

Run it, kill it, run it again: values and books are those of a run that was never killed.
"""

import os
import sys
from pathlib import Path

import torch

import inrun
from digits import held_out, loss_fn, mislabelled, network, show


def main(folder, steps):
    folder = Path(folder)
    folder.mkdir(exist_ok=True)
    model, (x, y) = network(), mislabelled()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    utility = inrun.Utility(loss_fn, held_out())
    attribution = inrun.attach(
        model,
        optimizer,
        utility,
        store=folder / "run",
        resume=True,
        options=inrun.Options(progress=False),
    )
    begin, checkpoint = 0, folder / "checkpoint.pt"
    if checkpoint.exists():
        kept = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(kept["model"])
        optimizer.load_state_dict(kept["optimizer"])
        attribution.load_state_dict(kept["inrun"])  # one line
        begin = kept["step"]
    for step in range(begin, steps):
        rows = torch.randperm(len(y), generator=torch.Generator().manual_seed(step))[:16]
        with attribution.batch(rows):
            loss_fn(model, (x[rows], y[rows])).backward()
        optimizer.step()
        optimizer.zero_grad()
        if (step + 1) % 20 == 0:
            state = {
                "step": step + 1,
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "inrun": attribution.state_dict(),  # and another
            }
            torch.save(state, folder / "checkpoint.partial")
            os.replace(folder / "checkpoint.partial", checkpoint)
    attribution.detach()
    show(attribution)
    return attribution


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 200)
