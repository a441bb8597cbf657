"""An accelerate loop with accumulation. `python examples/with_accelerate.py`.

On several processes: `torchrun --nproc-per-node=2 examples/with_accelerate.py`.
"""

import sys
import tempfile

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader

import inrun
from digits import Digits, held_out, loss_fn, network, show


def main(folder, steps):
    accelerator = Accelerator(gradient_accumulation_steps=2, cpu=True)
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    loader = DataLoader(Digits(), 8, shuffle=True)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    utility = inrun.Utility(loss_fn, held_out())
    attribution = inrun.attach(model, optimizer, utility, options=inrun.Options(progress=False))
    while attribution.ledger().num_rows < steps:
        for batch in loader:
            with accelerator.accumulate(model):
                with attribution.batch(batch["id"]):
                    accelerator.backward(loss_fn(model, (batch["x"], batch["y"])))
                optimizer.step()
                optimizer.zero_grad()
    attribution.detach()
    if accelerator.is_main_process:
        show(attribution)
    return attribution


if __name__ == "__main__":
    main(tempfile.mkdtemp(), int(sys.argv[1]) if len(sys.argv) > 1 else 200)
