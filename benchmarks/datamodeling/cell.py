"""One run: every method's values, and what trainings without halves of the data say of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from time import process_time
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

import inrun
from benchmarks.keyed import Keyed
from inrun.replay import tracin

SAMPLES, QUERIES, BATCH, HALVES = 800, 40, 32, 60
AVERAGED = (2, 4, 8, 16)  # over how many half-trainings look-ahead is averaged


@dataclass(frozen=True)
class Setting(Keyed):
    """How long a run is, and from where it starts."""

    rate: float
    epochs: int
    seed: int = 0


class Experiment:
    """Digits, and how they are trained."""

    def __init__(self, setting: Setting):
        self.setting = setting
        pixels, labels = load_digits(return_X_y=True)
        order = np.random.default_rng(0).permutation(len(labels))
        self.x = torch.tensor(pixels[order] / 16, dtype=torch.float32)
        self.y = torch.tensor(labels[order])
        held = range(SAMPLES, SAMPLES + QUERIES)
        self.each = inrun.Utility(
            self.judge, targets={f"query {i}": (self.x[i : i + 1], self.y[i : i + 1]) for i in held}
        )

    def judge(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Mean loss, in double precision."""
        return F.cross_entropy(model(batch[0]), batch[1], reduction="none").double().mean()

    def terms(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Terms that add up to the training loss."""
        return F.cross_entropy(model(batch[0]), batch[1], reduction="none") / len(batch[1])

    def fetch(self, ids: Any) -> tuple[Tensor, Tensor]:
        """Rows by number."""
        rows = torch.as_tensor(ids)
        return self.x[rows], self.y[rows]

    def start(self) -> tuple[nn.Module, torch.optim.Optimizer]:
        """Model and optimizer before the first step."""
        torch.manual_seed(self.setting.seed)
        model = nn.Sequential(nn.Linear(64, 32), nn.GELU(), nn.Linear(32, 10))
        return model, torch.optim.AdamW(model.parameters(), lr=self.setting.rate)

    def batches(self, without: frozenset[int]) -> Iterator[Tensor]:
        """Each step's ids, of those that are not left out."""
        generator = torch.Generator().manual_seed(self.setting.seed)
        for _ in range(self.setting.epochs):
            for ids in torch.randperm(SAMPLES, generator=generator).split(BATCH):
                kept = [i for i in ids.tolist() if i not in without]
                if kept:
                    yield torch.tensor(kept)

    def record(self, without: frozenset[int] = frozenset()) -> inrun.Trajectory:
        """The training, recorded."""
        model, optimizer = self.start()
        batches = list(self.batches(without))
        recorder = inrun.record(model, optimizer, self.terms, self.fetch, steps=len(batches))
        for ids in batches:
            with recorder.batch(ids):
                self.terms(model, self.fetch(ids)).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        return recorder.finish()

    def in_step(self) -> pa.Table:
        """Values of single steps, with every query a target."""
        model, optimizer = self.start()
        attribution = inrun.attach(model, optimizer, self.each)
        for ids in self.batches(frozenset()):
            with attribution.batch(ids):
                self.terms(model, self.fetch(ids)).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        attribution.detach()
        return attribution.values()

    def gradient_products(self, model: nn.Module, *, cosine: bool) -> np.ndarray:
        """(samples, queries) products of rows' gradients with queries', as training ends."""
        parameters = list(model.parameters())

        def rows(numbers: range) -> Tensor:
            found = []
            for i in numbers:
                loss = F.cross_entropy(model(self.x[i : i + 1]), self.y[i : i + 1])
                flat = torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)])
                found.append(flat / flat.norm() if cosine else flat)
            return torch.stack(found).double()

        held = range(SAMPLES, SAMPLES + QUERIES)
        return (rows(range(SAMPLES)) @ rows(held).T).numpy()


def _array(table: pa.Table, names: list[str]) -> np.ndarray:
    """(samples, queries), 0 where a sample was not visited."""
    found = np.zeros((SAMPLES, len(names)))
    found[table["sample_id"].to_numpy()] = np.stack([table[n].to_numpy() for n in names], 1)
    return found


def _averaged(experiment: Experiment, names: list[str]) -> dict[str, np.ndarray]:
    """Look-ahead along trainings on random halves of their own, averaged where a sample took part.

    A sum over a random half is best predicted by the mean slope over such halves, not by the slope
    of the training on all.
    """
    rng = np.random.default_rng(1000 + experiment.setting.seed)
    total, found = np.zeros((SAMPLES, len(names))), {}
    for pair in range(1, max(AVERAGED) // 2 + 1):  # a half and the other one: each sample is in one
        order = rng.permutation(SAMPLES).tolist()
        for gone in (order[: SAMPLES // 2], order[SAMPLES // 2 :]):
            run = experiment.record(frozenset(gone))
            total += _array(inrun.lookahead(run, experiment.each).values(), names)
        if 2 * pair in AVERAGED:
            found[f"look-ahead, mean of {2 * pair} halves"] = total / pair
    return found


def measure(key: str) -> dict[str, Any]:
    """One setting: every method's score, and what its values and the trainings cost."""
    experiment = Experiment(Setting.of(key))
    names = list(experiment.each.targets)
    run = experiment.record()
    arrays, seconds = {}, {}
    began = process_time()

    def took(name: str, array: np.ndarray) -> None:
        nonlocal began
        arrays[name], seconds[name] = array, process_time() - began
        began = process_time()

    took("look-ahead", _array(inrun.lookahead(run, experiment.each).values(), names))
    took("TracIn, 5 states", _array(tracin(run, experiment.each, 5).values(), names))
    took("in-step values", _array(experiment.in_step(), names))
    model = run.finished()
    took("gradient product", experiment.gradient_products(model, cosine=False))
    took("gradient cosine", experiment.gradient_products(model, cosine=True))
    began = process_time()
    arrays |= _averaged(experiment, names)
    seconds[f"look-ahead, mean of {AVERAGED[-1]} halves"] = process_time() - began
    same = experiment.y[:SAMPLES, None] == experiment.y[None, SAMPLES : SAMPLES + QUERIES]
    arrays["same class"] = same.double().numpy()
    arrays["random"] = np.random.default_rng(0).normal(size=(SAMPLES, QUERIES))
    ids = list(range(SAMPLES))
    tables = {
        name: pa.table({"sample_id": ids} | dict(zip(names, array.T, strict=True)))
        for name, array in arrays.items()
    }
    began = process_time()
    score = inrun.truth.lds(run, experiment.each, tables, subsets=HALVES)
    truth = process_time() - began
    top = inrun.truth.removal_curve(run, experiment.each, tables)
    return {
        "scores": {row.pop("method"): row for row in score.table.to_pylist()},
        "removals": top.table.to_pylist(),
        "seconds": seconds | {"truth": truth},
        "steps": len(run.steps),
    }
