"""Lightning: one callback. `python examples/with_lightning.py`."""

import sys
import tempfile

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader

import inrun
from digits import Digits, held_out, loss_fn, network, show
from inrun.integrations.lightning import InRun


class Classifier(pl.LightningModule):
    """Ids are in the batch, and not looked at here."""

    def __init__(self):
        super().__init__()
        self.net = network()

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, _):
        return loss_fn(self, (batch["x"], batch["y"]))

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=3e-3)


def main(folder, steps):
    callback = InRun(inrun.Utility(loss_fn, held_out()), ids="id")  # this one
    trainer = pl.Trainer(
        default_root_dir=folder, callbacks=[callback], max_steps=steps, accelerator="cpu",
        gradient_clip_val=1.0, logger=False, enable_checkpointing=False, devices=1,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(Classifier(), DataLoader(Digits(), 16, shuffle=True))
    show(callback.attribution)
    return callback.attribution


if __name__ == "__main__":
    main(tempfile.mkdtemp(), int(sys.argv[1]) if len(sys.argv) > 1 else 200)
