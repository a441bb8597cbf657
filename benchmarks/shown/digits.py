"""Handwritten digits from three providers, trained on with `inrun train`, and what is asked of it.

*careful* delivers 400 digits with right labels, *hasty* 400 of which every third has a wrong one,
and *copier* 200, half of them copies of what *careful* delivered. Images are scikit-learn's.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from benchmarks.shown.pictures import IMAGES, photographed
from benchmarks.shown.shell import transcript

TRAIN = (
    "inrun train --model cnn --data digits.jsonl --validation judges.jsonl --test test.jsonl "
    "--source-column provider --epochs 12 --batch 32 --learning-rate 3e-3 --out run"
)
PRUNE = "inrun prune run --drop 15% --out kept.jsonl --check"


def shown() -> dict[str, str]:
    """The transcripts by name; the report's picture is written beside the others."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_rows(folder)
        found = {
            "train": transcript(folder, TRAIN),
            "rollup": transcript(folder, "inrun rollup run --by source --page worth.html"),
            "prune": transcript(folder, PRUNE),
            "report": transcript(folder, "inrun report run"),
        }
        photographed(folder / "run" / "report.html", IMAGES / "report.png", (1100, 1500))
        return found


def write_rows(folder: Path) -> None:
    """`digits.jsonl`, `judges.jsonl` and `test.jsonl`, with their images beside them."""
    digits: Any = load_digits()
    rng = np.random.default_rng(0)
    order = rng.permutation(len(digits.target))
    images = [Image.fromarray((digits.images[i] * 15.9).astype(np.uint8)) for i in order]
    truth = digits.target[order].tolist()
    (folder / "digits").mkdir()
    for number, image in enumerate(images):
        image.save(folder / "digits" / f"{number:04d}.png")

    def row(number: int, provider: str, label: int | None = None) -> dict[str, Any]:
        kept = truth[number] if label is None else label
        image = str(folder / "digits" / f"{number:04d}.png")
        return {"image": image, "label": kept, "provider": provider}

    careful = [row(i, "careful") for i in range(400)]
    hasty = [row(i, "hasty") for i in range(400, 800)]
    for one in hasty[::3]:
        one["label"] = (one["label"] + int(rng.integers(1, 10))) % 10
    copier = [row(i, "copier") for i in [*range(100), *range(800, 900)]]
    delivered = [*careful, *hasty, *copier]
    _write(folder / "digits.jsonl", [delivered[i] for i in rng.permutation(len(delivered))])
    _write(folder / "judges.jsonl", [row(i, "us") for i in range(900, 1100)])
    _write(folder / "test.jsonl", [row(i, "us") for i in range(1100, len(truth))])


def _write(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
