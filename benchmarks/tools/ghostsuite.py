"""GhostSuite: dot products of each sample's gradient with the queries', added up over the training.

Its engine has one set of validation rows, which ride along in each batch: the training is done once
per query. The learning rate is constant, so it only scales the sum.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, os.environ["GHOSTSUITE"])  # it is no package: a checkout's folder

from ghostEngines import GradDotProdEngine

from benchmarks.tools.frame import Clock, Frame, Said, answer, row_losses


def values(frame: Frame, folder: Path) -> Said:
    """One training per query."""
    clock, said, found = Clock(), Said({}, {}), []
    for query in frame.queries.split(1):
        model = frame.model()
        optimizer = frame.optimizer(model)
        engine = GradDotProdEngine(model, val_batch_size=1, dot_prod_save_path=str(folder))
        engine.attach(optimizer)
        dots = torch.zeros(len(frame.words), dtype=torch.float64)
        for step, ids in enumerate(frame.batches):
            words = torch.cat([frame.words[ids], query])
            engine.attach_train_batch(frame.words[ids], frame.words[ids], step, ids)
            row_losses(model(input_ids=words), words).mean().backward()
            engine.prepare_gradients()
            optimizer.step()
            engine.aggregate_and_log()
            engine.clear_gradients()
            optimizer.zero_grad(set_to_none=True)
        engine.detach()
        for kept in engine.dot_product_log:
            dots[kept["batch_idx"]] += kept["dot_product"].double()
        found.append(dots.numpy())
    said.finished = model.state_dict()
    said.values["gradient dot products"] = np.stack(found, 1)
    said.seconds["gradient dot products"] = clock.look()
    return said


if __name__ == "__main__":
    answer(values)
