"""Runs on disk that are made up, not trained: of any size, with values that are known."""

import io
import json

import numpy as np
import pyarrow.parquet as pq

import inrun
from inrun.ledger import Entries, RunFolder, ledger_rows


def stored_run(path, values_VK, sample, step, ids, targets=("validation",)):
    """A run whose visit v is of `ids[sample[v]]` at `step[v]`, with the given values by target.

    Its books close: momentum takes off as much as the samples, weight decay and residual nothing.
    """
    weights = [1 / len(targets)] * len(targets)
    folder = RunFolder(path, estimator="path", targets=targets, weights=weights)
    folder.create()
    loss = np.full(len(targets), 2.0)
    for number in np.unique(step).tolist():
        at = np.flatnonzero(step == number)
        sums = values_VK[at].sum(0)
        entries = Entries(loss, loss - 2 * sums, sums, sums, 0 * sums)
        loss = loss - 2 * sums
        rows = ledger_rows(number, "path", len(at), targets, weights, entries)
        folder.add(number, [ids[i] for i in sample[at].tolist()], values_VK[at], rows)
    folder.flush()
    return inrun.load(path)


def as_older_version(path):
    """Makes a stored run what earlier versions wrote: format 1, no checksums in any file."""
    manifest = json.loads((path / "run.json").read_text())
    for name in ("parts", "digests", "digest"):
        manifest.pop(name)
    (path / "run.json").write_text(json.dumps(manifest | {"format": 1}, indent=2) + "\n")
    for file in path.rglob("*.parquet"):
        pq.write_table(pq.read_table(io.BytesIO(file.read_bytes())).replace_schema_metadata(), file)


def random_run(path, samples=60, epochs=4, batch=10, targets=("a", "b", "c"), ids=None, seed=0):
    """Every sample once an epoch; a sample's own mean effect on each target, and noise."""
    rng = np.random.default_rng(seed)
    own = rng.normal(0.1, 1.0, (samples, len(targets)))
    sample = np.concatenate([rng.permutation(samples) for _ in range(epochs)])
    step = np.arange(len(sample)) // batch + 1
    noise = rng.normal(0.0, 0.5, (len(sample), len(targets)))
    values = (own[sample] + noise) * (1e-3 / np.sqrt(step))[:, None]
    ids = list(range(samples)) if ids is None else ids
    return stored_run(path, values, sample, step, ids, targets)
