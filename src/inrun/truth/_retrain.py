"""Leave-one-out by training again: what look-ahead estimates, measured.

    value_i = V(trained without i) - V(trained with all),    positive: the sample helped

Same start, same order, same random numbers. One training per sample: slow, and the only judge.
Results are kept in a file, one line with the question, then one line per training, each with its
digest, so that a check that was stopped goes on:

    {"results": "pruning", ...}                        what was asked
    {"of": ["pruned", 0], "found": [0.9312, 12.4]}     what was trained, and its numbers
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from inrun.errors import MisuseError, StoreError, require_one_of
from inrun.ledger import Log
from inrun.utility import Utility, losses_of

Tick = Callable[[int, int], None]
"""`tick(done, all)`, called before the first training and after each."""


def untold(done: int, every: int) -> None:
    """The tick that says nothing."""


class Retrainable(Protocol):
    """A run that can be trained again without samples, such as `inrun.Trajectory`."""

    def retrain(
        self, without: int | str | Collection[int | str], *, renormalise: bool
    ) -> nn.Module:
        """The model as training ends without a sample, or without several."""

    def finished(self) -> nn.Module:
        """The model as training ended."""


class _WithoutEach(Dataset[list[float]]):
    """Item i: the targets' losses after training without the i-th sample or group of samples."""

    def __init__(
        self, run: Retrainable, utility: Utility, groups: Sequence[Any], renormalise: bool
    ):
        self._run, self._utility, self._groups = run, utility, groups
        self._renormalise = renormalise

    def __len__(self) -> int:
        return len(self._groups)

    def __getitem__(self, number: int) -> list[float]:
        model = self._run.retrain(self._groups[number], renormalise=self._renormalise)
        return [float(loss) for loss in losses_of(self._utility, model)]


class TrainingResults:
    """Numbers by what was trained, in memory and in a file.

    `kind` is 'pruning', 'selection' or 'retraining', `question` whatever JSON holds. What the file
    holds already is known.
    """

    def __init__(self, path: str | os.PathLike[str] | None, kind: str, question: Mapping[str, Any]):
        self._log = Log(None if path is None else Path(path))
        self.question: dict[str, Any] = json.loads(json.dumps({"results": kind, **question}))
        if not self._log.lines:
            self._log.append(self.question)
        asked, self.known = _read(Path(path or ""), self._log)
        if not _alike(asked, self.question):
            raise StoreError(
                f"{path} holds the results of another {kind}, of another run, utility or "
                "choice of samples. Name a new file."
            )

    def add(self, of: Any, found: Sequence[float]) -> None:
        self.known[of] = list(found)
        self._log.append({"of": of, "found": self.known[of]})


def read_results(path: Path) -> tuple[dict[str, Any], dict[Any, list[float]]]:
    """The question of a file, and its numbers by what was trained."""
    if not path.is_file():
        raise StoreError(f"{path} cannot be read: there is no such file.")
    return _read(path, Log(path))


def _read(path: Path, log: Log) -> tuple[dict[str, Any], dict[Any, list[float]]]:
    try:
        question, *lines = log.lines
        known = {_key(line["of"]): list(line["found"]) for line in lines}
        kind = question["results"]
    except (ValueError, LookupError, TypeError) as error:
        raise StoreError(f"{path} holds no results of trainings ({error}).") from error
    if not isinstance(kind, str):
        raise StoreError(f"{path} holds no results of trainings.")
    return question, known


def _key(of: Any) -> Any:
    return tuple(of) if isinstance(of, list) else of


def _alike(a: Any, b: Any) -> bool:
    """Whether two questions are the same; numbers with a fraction to six digits."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_alike(a[name], b[name]) for name in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_alike, a, b))
    if isinstance(a, float) and isinstance(b, float):
        return math.isclose(a, b, rel_tol=1e-6)
    return bool(a == b)


class Retraining:
    """A run trained again without samples or groups of samples, each once, with a file of results.

    `question` is what else the file is the answer to; see `retrain` for the rest.
    """

    def __init__(
        self,
        run: Retrainable,
        utility: Utility,
        removal: str,
        processes: int,
        store: str | os.PathLike[str] | None,
        question: Mapping[str, Any] | None = None,
    ):
        require_one_of("removal", removal, ("renormalise", "drop"))
        model = run.finished()
        if processes and any(p.device.type != "cpu" for p in model.parameters()):
            raise MisuseError("Forked processes cannot share a GPU's context: use processes=0.")
        self._run, self._utility, self._processes = run, utility, processes
        self._renormalise = removal == "renormalise"
        self.full = [float(loss) for loss in losses_of(utility, model)]
        self._results = TrainingResults(
            store,
            "retraining",
            {
                "removal": removal,
                "targets": list(utility.targets),
                "weights": [float(weight) for weight in utility.weights],
                "full": self.full,
                **(question or {}),
            },
        )

    @property
    def question(self) -> dict[str, Any]:
        """What the file of results is the answer to."""
        return self._results.question

    def without(self, groups: Mapping[Any, Any], tick: Tick = untold) -> list[list[float]]:
        """By group, the targets' losses after training without it.

        `groups` has a sample's id or several, by the name that the file knows them by.
        """
        known = self._results.known
        left = [name for name in groups if name not in known]
        work = _WithoutEach(
            self._run, self._utility, [groups[name] for name in left], self._renormalise
        )
        done = len(groups) - len(left)
        tick(done, len(groups))
        for name, losses in zip(left, _run_through(work, self._processes), strict=True):
            self._results.add(name, losses)
            done += 1
            tick(done, len(groups))
        return [known[name] for name in groups]


def retrain(
    run: Retrainable,
    utility: Utility,
    samples: Sequence[Any],
    *,
    removal: str = "renormalise",
    processes: int = 0,
    store: str | os.PathLike[str] | None = None,
) -> pa.Table:
    """Trains again without each of the samples, and judges the model by the utility.

    Args:
        run: a recorded run.
        utility: the validation loss.
        samples: ids.
        removal: 'renormalise' (the mean over those that remain) or 'drop' (the others keep their
            weight), see `inrun.lookahead`.
        processes: how many train at a time; 0 trains in this one. They are forked, one thread each,
            so a run on a GPU takes 0.
        store: a file that keeps each sample's result as it comes; what is in it is not done again.

    Returns:
        `sample_id`, `value` in units of the validation loss (positive: without the sample the loss
        ends higher), and with several targets one column each; in the order of `samples`.

    Raises:
        StoreError: the file is of another question.
        MisuseError: no such removal, a sample that was not visited, or processes on a GPU.
    """
    again = Retraining(run, utility, removal, processes, store)
    losses = again.without({sample: sample for sample in samples})
    return retrained(again.question, samples, losses)


def retrained(
    question: Mapping[str, Any], samples: Sequence[Any], losses: Sequence[list[float]]
) -> pa.Table:
    """The table that `retrain` returns, of what its file holds."""
    full = torch.tensor(question["full"], dtype=torch.float64)
    gains = torch.tensor(losses, dtype=torch.float64).reshape(len(samples), len(full)) - full
    columns: dict[str, Any] = {
        "sample_id": list(samples),
        "value": (gains @ torch.tensor(question["weights"], dtype=torch.float64)).numpy(),
    }
    if len(full) > 1:
        columns |= {name: gains[:, k].numpy() for k, name in enumerate(question["targets"])}
    return pa.table(columns)


def _run_through(work: Dataset[list[float]], processes: int) -> Iterator[list[float]]:
    """Items in their order. A loader without batches is torch's own pool of processes."""
    yield from DataLoader(
        work, batch_size=None, num_workers=processes, collate_fn=list,
        multiprocessing_context="fork" if processes else None,
    )  # fmt: skip
