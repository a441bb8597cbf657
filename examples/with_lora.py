"""LoRA on a frozen base, by PEFT. `python examples/with_lora.py`."""

import sys
import tempfile

import torch
from peft import LoraConfig, get_peft_model

import inrun
from digits import held_out, loss_fn, mislabelled, network, show


def main(folder, steps):
    x, y = mislabelled()
    settings = LoraConfig(r=8, lora_alpha=16, target_modules=["0"], modules_to_save=["2"])
    model = get_peft_model(network(), settings)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    utility = inrun.Utility(loss_fn, held_out())
    attribution = inrun.attach(model, optimizer, utility, options=inrun.Options(progress=False))
    for _ in range(steps):
        rows = torch.randint(len(y), (16,))
        with attribution.batch(rows):
            loss_fn(model, (x[rows], y[rows])).backward()
        optimizer.step()
        optimizer.zero_grad()
    attribution.detach()
    show(attribution)
    return attribution


if __name__ == "__main__":
    main(tempfile.mkdtemp(), int(sys.argv[1]) if len(sys.argv) > 1 else 200)
