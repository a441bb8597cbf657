"""Scores of dattri's methods on the model as training ended, in the form of our values.

Optional: without the package nothing is measured. TRAK's score is how far a sample raises the
query's margin, EK-FAC's how far it lowers the query's loss: both are positive where it helps.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

import inrun

PROJECTED = 512
DAMPINGS = (1e-2, 1e-4, 1e-6)


def installed() -> bool:
    """Whether the package is there."""
    return importlib.util.find_spec("dattri") is not None


def dattri_values(
    run: inrun.Trajectory,
    samples: tuple[Tensor, Tensor],
    queries: tuple[Tensor, Tensor],
    columns: Sequence[str],
) -> dict[str, pa.Table]:
    """By method, a table with one column per query.

    Args:
        run: of which the last state is asked.
        samples: inputs and labels of the n training samples, whose ids are 0 to n - 1.
        queries: of the K queries.
        columns: their names.
    """
    from dattri.algorithm.influence_function import IFAttributorEKFAC
    from dattri.algorithm.trak import TRAKAttributor
    from dattri.task import AttributionTask

    model = run.finished()
    state = {name: p.detach().clone() for name, p in model.state_dict().items()}

    def loss(params: Any, data: Any) -> Tensor:
        """Of one row, or the mean of a batch."""
        return F.cross_entropy(torch.func.functional_call(model, params, data[0]), data[1])

    def probability(params: Any, data: Any) -> Tensor:
        return torch.exp(-loss(params, data))

    def margin(params: Any, data: Any) -> Tensor:
        """TRAK's: the log odds of the true label."""
        p = probability(params, data)
        return torch.log(p) - torch.log1p(1e-8 - p)

    rows, asked = (DataLoader(TensorDataset(*part), batch_size=64) for part in (samples, queries))
    projection = {"proj_dim": PROJECTED, "proj_seed": 0}
    trak = TRAKAttributor(AttributionTask(margin, model, state), probability, projection)
    trak.cache(rows)
    scores = {f"dattri TRAK, {PROJECTED} dimensions": trak.attribute(asked)}
    for damping in DAMPINGS:
        ekfac = IFAttributorEKFAC(AttributionTask(loss, model, state), damping=damping)
        ekfac.cache(rows)
        scores[f"dattri EK-FAC, damping {damping:g}"] = ekfac.attribute(rows, asked)
    return {
        name: _table(found.detach().double().numpy(), columns) for name, found in scores.items()
    }


def _table(scores: np.ndarray, columns: Sequence[str]) -> pa.Table:
    """Of (n, K) scores."""
    return pa.table({"sample_id": range(len(scores))} | dict(zip(columns, scores.T, strict=True)))
