"""One cell: a setting and a tool; what the tool says of the training, held against retraining.

The trainings without samples are done once per setting and kept beside the downloaded data, so that
all tools are judged by the same ones.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from benchmarks import data
from benchmarks.tools.experiment import (
    DROP,
    NOISE,
    Setting,
    as_array,
    asked,
    framed,
    moved,
    recorded,
)
from benchmarks.tools.frame import Frame
from inrun.truth import lds, retrain

HALVES = 60
ROOT = Path(__file__).parents[2]
OURS, CONTROLS, MEMORY = "inrun", "controls", "memory: "
AGAIN, TRUTH = "truth again", f"the truth, its start moved by {NOISE:g}"


class Tool(NamedTuple):
    """A tool with its version, and the module here that asks it."""

    name: str
    module: str
    needs: str  # what is imported, or the environment variable that names a checkout


TOOLS = (
    Tool("inrun", "experiment", "inrun"),
    Tool("Bergson 2.5.1", "magic", "bergson"),
    Tool("dattri-llm 0.1.0", "dattri_llm", "dattri_llm"),
    Tool("Kronfluence 1.0.1", "kronfluence", "kronfluence"),
    Tool("GhostSuite b1a3524", "ghostsuite", "GHOSTSUITE"),
)

INSTALL = """python3 -m venv tools
tools/bin/pip install torch==2.13.0
tools/bin/pip install --no-deps bergson==2.5.1 dattri-llm==0.1.0 dattri==0.3.0 kronfluence==1.0.1
tools/bin/pip install numpy scipy pyarrow tqdm scikit-learn transformers==5.24.0 accelerate \\
    datasets peft torchopt simple-parsing natsort petname jaxtyping ml_dtypes einops opt-einsum \\
    einconv trl nltk
git clone https://github.com/Jiachen-T-Wang/GhostSuite
git -C GhostSuite checkout b1a3524
TOOLS_PYTHON=tools/bin/python GHOSTSUITE=GhostSuite python -m benchmarks.tools"""


def interpreter(tool: Tool) -> str:
    """Ours for us, for others the one that TOOLS_PYTHON names."""
    others = Path(os.environ.get("TOOLS_PYTHON", sys.executable)).absolute()
    return sys.executable if tool.name == OURS else str(others)


def there(tool: Tool) -> bool:
    """Whether the tool can be asked."""
    if tool.needs.isupper():
        return Path(os.environ.get(tool.needs, "/nowhere")).is_dir()
    line = f"import importlib.util, sys; sys.exit(importlib.util.find_spec('{tool.needs}') is None)"
    return subprocess.run([interpreter(tool), "-c", line], check=False).returncode == 0


def measure(key: str) -> dict[str, Any]:
    """The cell of that name: 'inrun: rate=...'."""
    name, _, setting = key.rpartition(": ")
    frame = framed(Setting.of(setting))
    if name.startswith(MEMORY):
        tool, _, method = name.removeprefix(MEMORY).partition(", ")
        return _asked(_tool(tool), frame, method or "all")[0]
    judge = Judge(frame, setting)
    if name == AGAIN:
        return {"scores": {TRUTH: judge.single_scores(_single(moved(frame))) | _half(None)}}
    if name == CONTROLS:
        return {"scores": judge.scores(_controls(frame)), "ceiling": judge.ceiling}
    facts, found = _asked(_tool(name), frame)
    return {"scores": judge.scores(found), **facts}


def _tool(name: str) -> Tool:
    return next(tool for tool in TOOLS if tool.name == name)


def _asked(tool: Tool, frame: Frame, *more: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """What a tool answers in a process of its own: the facts, and by method (n, K) values."""
    with tempfile.TemporaryDirectory() as folder:
        given, out = Path(folder) / "frame.pt", Path(folder) / "out.npz"
        frame.save(given)
        command = [interpreter(tool), "-m", f"benchmarks.tools.{tool.module}", str(given), str(out)]
        command += more
        paths = os.environ | {"PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"}
        if tool.needs.isupper():
            paths[tool.needs] = str(Path(paths[tool.needs]).absolute())
        done = subprocess.run(
            command, cwd=folder, env=paths, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise RuntimeError(f"{tool.name} stopped: {done.stderr[-2000:]}")
        stored = np.load(out)
        facts = json.loads(str(stored["facts"]))
        methods = enumerate(facts.get("methods", ()))
        values = {name: stored[f"values {i}"] for i, name in methods}
    return facts, values


class Judge:
    """Trainings without each of some samples, and without random halves, by every query."""

    def __init__(self, frame: Frame, setting: str):
        self.frame, self.run, self.utility = frame, recorded(frame), asked(frame)
        self.store = data.CACHE / "tools" / setting.replace(" ", ",")
        self.store.mkdir(parents=True, exist_ok=True)
        self.single = _single(frame, self.store / "single.jsonl")
        self.ceiling: float | None = None

    def scores(self, values: dict[str, np.ndarray]) -> dict[str, dict[str, float | None]]:
        """By method: rank correlation with single removals, and with halves (with its interval)."""
        tables = {
            name: pa.table(
                {"sample_id": range(len(found))}
                | dict(zip(self.utility.targets, found.T, strict=True))
            )
            for name, found in values.items()
            if np.isfinite(found).all()
        }
        score = lds(
            self.run, self.utility, tables, subsets=HALVES, removal=DROP,
            store=self.store / "halves.jsonl",
        )  # fmt: skip
        self.ceiling = score.ceiling
        of_halves = {row["method"]: row for row in score.table.to_pylist()}
        return {
            name: self.single_scores(found) | _half(of_halves.get(name))
            for name, found in values.items()
        }

    def single_scores(self, values: np.ndarray) -> dict[str, float | None]:
        """Of (n, K) values, by the trainings without one sample."""
        from scipy.stats import spearmanr

        said, done = values[self.frame.left_out], self.single[self.frame.left_out]
        each = [spearmanr(a, b)[0] for a, b in zip(said.T, done.T, strict=True)]
        mean = spearmanr(said.mean(1), done.mean(1))[0]
        return {"single": float(np.mean(each)), "single_mean": float(mean)}


def _single(frame: Frame, store: Path | None = None) -> np.ndarray:
    """(n, K), how each query's loss rises without each of the samples left out."""
    utility = asked(frame)
    table = retrain(recorded(frame), utility, frame.left_out, removal=DROP, store=store)
    return as_array(table, utility)


def _half(row: dict[str, Any] | None) -> dict[str, float | None]:
    return {name: row[name] if row else None for name in ("score", "low", "high")}


def _controls(frame: Frame) -> dict[str, np.ndarray]:
    """Shared words and chance: what needs no model."""
    had = [set(row.tolist()) - {0} for row in frame.words]
    wanted = [set(row.tolist()) - {0} for row in frame.queries]
    common = np.array([[len(a & b) for b in wanted] for a in had], dtype=np.float64)
    chance = np.random.default_rng(0).normal(size=common.shape)
    return {"words in common": common, "random": chance}
