"""dattri-llm: what its hooks keep of samples and optimizer while our loop trains."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from dattri_llm import (
    AdamWInfluenceAttributor,
    AttributionArguments,
    AttributionScore,
    EKFACAttributor,
    GradientStorageManager,
    HookManager,
    HookManagerCallback,
    OffloadCallback,
    OptimizerStateCallback,
    TracInAttributor,
    hash_sample,
)
from torch import Tensor, nn

from benchmarks.tools.frame import Clock, Frame, Said, answer, row_losses

DAMPINGS = (1e-2, 1e-4, 1e-6)


def values(frame: Frame, folder: Path) -> Said:
    """One training with its hooks, one pass over the queries, and each method's scores."""
    clock, said, model = Clock(), Said({}, {}), frame.model()
    samples, queries, last = (folder / name for name in ("samples", "queries", "last"))
    moments = _trained(frame, model, samples)
    said.finished = model.state_dict()
    _captured(model, frame.queries.split(1), queries)
    said.seconds[""] = clock.look()
    arguments = AttributionArguments(output_dir=str(folder / "scores"), use_cpu=True)
    score = AdamWInfluenceAttributor(arguments).attribute_from_cache(
        str(samples), str(queries), dynamics=moments.dynamics(), propagation="test"
    )
    # theirs is by how much a sample's removal lowers the query's loss
    said.values["AdamW-influence"] = -_array(score, frame)
    said.seconds["AdamW-influence"] = clock.look()
    score = TracInAttributor(arguments).attribute_from_cache(str(samples), str(queries))
    said.values["TracIn, every step"] = _array(score, frame)
    said.seconds["TracIn, every step"] = clock.look()
    _captured(model, frame.words.split(len(frame.batches[0])), last)
    shared = clock.look()
    for damping in DAMPINGS:
        name = f"EK-FAC, damping {damping:g}"
        score = EKFACAttributor(arguments).attribute_from_cache(
            str(last), str(queries), damping=damping
        )
        said.values[name] = _array(score, frame)
        said.seconds[name] = shared + clock.look()
    return said


def _trained(frame: Frame, model: nn.Module, store: Path) -> OptimizerStateCallback:
    """Our loop, in which their hooks keep each sample's gradient and the optimizer's moments."""
    optimizer = frame.optimizer(model)
    moments = OptimizerStateCallback(model, optimizer)
    hooks = _hooks(model, store, [moments])
    with hooks.collect():
        for step, ids in enumerate(frame.batches):
            words = frame.words[ids]
            row_losses(model(input_ids=words), words).mean().backward()
            optimizer.step()
            moments.record_post(step)
            optimizer.zero_grad()
    hooks.remove()
    return moments


def _captured(model: nn.Module, batches: Sequence[Tensor], store: Path) -> None:
    """Gradients of rows in the model as it is."""
    hooks = _hooks(model, store, [])
    with hooks.collect():
        for words in batches:
            row_losses(model(input_ids=words), words).sum().backward()
            model.zero_grad()
    hooks.remove()


def _hooks(model: nn.Module, store: Path, more: list[HookManagerCallback]) -> HookManager:
    keeper = OffloadCallback(1, GradientStorageManager(str(store)))
    return HookManager(model, callbacks=[keeper, *more])


def _array(score: AttributionScore, frame: Frame) -> np.ndarray:
    """(n, K), by sample and query, summed over a sample's visits."""
    ids, table = score.agnostic_matrix()
    row, column = ({name: i for i, name in enumerate(names)} for names in (ids, score.test_ids))
    rows, columns = [row[_name(w)] for w in frame.words], [column[_name(w)] for w in frame.queries]
    found: np.ndarray = table.double().numpy()[rows][:, columns]
    return found


def _name(words: Tensor) -> str:
    return str(hash_sample({"input_ids": words}))


if __name__ == "__main__":
    answer(values)
