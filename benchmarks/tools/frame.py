"""What every tool is given: a tiny GPT-2, its data, its start, its batches, and how it ended.

This file and those of the other tools import nothing of `inrun`, so that they run under an
interpreter that has the tool and not us: `python -m benchmarks.tools.magic FRAME OUT`
writes what the tool says, what it took, and how far its own training ended from ours.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

VOCABULARY, LENGTH, WIDTH, LAYERS, HEADS = 500, 12, 32, 2, 2
BETAS, EPSILON, DECAY = (0.9, 0.999), 1e-8, 0.01  # torch's own for AdamW
State = Mapping[str, Tensor]


class Block(nn.Module):
    """Attention and two dense layers, each added to what comes in."""

    def __init__(self) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attend, self.project = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, WIDTH), and so is what comes out."""
        split = (*x.shape[:2], HEADS, WIDTH // HEADS)
        q, k, v = (part.reshape(split).transpose(1, 2)
                   for part in self.attend(self.norm_1(x)).chunk(3, -1))  # fmt: skip
        later = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        match = (q @ k.transpose(2, 3) / split[-1] ** 0.5).masked_fill(later, -torch.inf)
        x = x + self.project((match.softmax(-1) @ v).transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm_2(x)), approximate="tanh"))


class Gpt2(nn.Module):
    """GPT-2 of plain layers.

    No `transformers` of any version, no dropout, positions looked up for each row, and a head of
    its own: one tool has no rule for a weight in two places.
    """

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(LENGTH, WIDTH)
        self.blocks = nn.Sequential(*(Block() for _ in range(LAYERS)))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, VOCABULARY, bias=False)
        for name, p in self.named_parameters():
            if p.dim() > 1:
                nn.init.normal_(p, std=0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(p)

    def forward(self, input_ids: Tensor) -> Tensor:
        """(B, T, VOCABULARY) logits."""
        places = torch.arange(input_ids.shape[1]).expand_as(input_ids)
        logits: Tensor = self.head(
            self.norm(self.blocks(self.words(input_ids) + self.places(places)))
        )
        return logits


def row_losses(logits: Tensor, words: Tensor) -> Tensor:
    """(B,) the mean over each row's next words, from (B, T, V) logits."""
    z = logits[:, :-1].transpose(1, 2)
    return F.cross_entropy(z, words[:, 1:], reduction="none").mean(1)


@dataclass
class Frame:
    """A training, ready to be done again.

    Attributes:
        words: (n, T) the samples; a sample's id is its row.
        queries: (K, T) held-out rows, each a query of its own.
        batches: by step, the ids (B,).
        left_out: ids of the samples that the training is done again without, one by one.
        rate: of AdamW.
        start, finished: parameters before and after the training.
    """

    words: Tensor
    queries: Tensor
    batches: list[Tensor]
    left_out: list[int]
    rate: float
    start: State
    finished: State

    def model(self, state: State | None = None) -> nn.Module:
        """The model as it starts, or in that state."""
        made = Gpt2()
        made.load_state_dict(dict(self.start if state is None else state))
        return made

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """The one of the training."""
        return torch.optim.AdamW(
            model.parameters(), lr=self.rate, betas=BETAS, eps=EPSILON, weight_decay=DECAY
        )

    def away(self, state: State) -> float:
        """How far a training ended from ours, in parts of how far ours went."""
        both = [(state[k].double(), p.double(), self.start[k].double())
                for k, p in self.finished.items()]  # fmt: skip
        off = sum(float((a - p).square().sum()) for a, p, _ in both)
        went = sum(float((p - s).square().sum()) for _, p, s in both)
        return (off / went) ** 0.5

    def with_queries(self, count: int) -> Frame:
        """The same with the first few queries."""
        return replace(self, queries=self.queries[:count])

    def save(self, path: Path) -> None:
        """Writes it."""
        torch.save(vars(self), path)


@dataclass
class Said:
    """What a tool said.

    Attributes:
        values: by method, (n, K) float64, positive where the sample lowers the query's loss.
        seconds: by method, processor time after what all of them share; '' is what they share.
        finished: parameters after the tool's own training; None if it did none.
    """

    values: dict[str, np.ndarray]
    seconds: dict[str, float]
    finished: State | None = None


class Clock:
    """Processor seconds of this process since the last look, all threads together."""

    def __init__(self) -> None:
        self._last = time.process_time()

    def look(self) -> float:
        """Since the last look, or since it was made."""
        now = time.process_time()
        passed, self._last = now - self._last, now
        return passed


def answer(asked: Callable[[Frame, Path], Said]) -> None:
    """Runs a tool on the frame that the command line names, and writes what it said.

    First with one query, which also warms up, then with all: the values are of that. With a third
    word on the command line only the first run, for its memory: a second one would find the first
    one's memory still there.
    """
    path, out, *alone = sys.argv[1:]
    torch.set_num_threads(1)
    frame = Frame(**torch.load(path, weights_only=True))
    said, facts = _measured(asked, frame.with_queries(1))
    if not alone:
        facts = {"seconds_one": said.seconds}
        said, _ = _measured(asked, frame)
        facts |= {"seconds": said.seconds, "methods": list(said.values)}
        facts["away"] = None if said.finished is None else frame.away(said.finished)
    arrays = {f"values {i}": v for i, v in enumerate(said.values.values())}
    np.savez(out, facts=np.array(json.dumps(facts)), **arrays)  # type: ignore[arg-type]


def _measured(asked: Callable[[Frame, Path], Said], frame: Frame) -> tuple[Said, dict[str, Any]]:
    """What a tool said, and the megabytes of memory and disk that it took at most."""
    with tempfile.TemporaryDirectory() as folder:
        Path("/proc/self/clear_refs").write_text("5")  # the peak so far was loading
        before = _megabytes("VmRSS")
        said = asked(frame, Path(folder))
        peak = _megabytes("VmHWM") - before
        disk = sum(p.stat().st_size for p in Path(folder).rglob("*") if p.is_file()) / 1e6
    return said, {"peak_mb": peak, "disk_mb": disk}


def _megabytes(name: str) -> float:
    """A figure of this process (Linux)."""
    found = re.search(rf"^{name}:\s*(\d+)", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found.group(1)) * 1024 / 1e6
