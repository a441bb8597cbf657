"""`python -m benchmarks.window`: what scoring windows cost, and how faithful they are.

Speed: plain training and each way to score take turns in blocks of ten steps, by the thread's own
CPU time. Fidelity: the same training, scored exactly and by windows; R and Spearman of the samples'
totals and R of single visits, over the steps that are in windows, the ten first left out, also
without the 1 % of visits that are largest (one visit can make R). It writes docs/window.md.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import spearmanr
from torch import Tensor, nn

import inrun
from benchmarks import data
from benchmarks.markdown import markdown
from benchmarks.results_file import cells, environments

PAGE = Path(__file__).parents[1] / "docs" / "window.md"
EXACT = 10  # first steps, which are scored one by one
WAYS: dict[str, inrun.Window | inrun.EveryStep | None] = {
    "plain": None,
    "plain + validation": None,
    "every step": inrun.EveryStep(),
    **{f"Window({n})": inrun.Window(n, exact=1) for n in (1, 5, 10)},
    "Window(10, books=False)": inrun.Window(10, exact=1, books=False),
}
# layers, width, batch, tokens, validation rows, vocabulary, rounds
SIZES = ("4 384 8 128 2 8192 3", "4 384 16 256 2 8192 2", "12 768 8 128 1 50257 1")
TRAININGS = (
    "digits 1e-3", "digits 3e-3", "digits 1e-2", "gpt 3e-4", "gpt 1e-3", "gpt 3e-3",
)  # fmt: skip
LENGTHS: tuple[int | str, ...] = (1, 2, 5, 10, 20, "auto")


def language_model(layers: int, width: int, vocabulary: int, tokens: int) -> nn.Module:
    """GPT-2's architecture without dropout."""
    import transformers as tf

    torch.manual_seed(0)
    return tf.GPT2LMHeadModel(
        tf.GPT2Config(
            vocab_size=vocabulary, n_positions=tokens, n_embd=width, n_layer=layers,
            n_head=max(1, width // 64), resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
            bos_token_id=0, eos_token_id=0,
        )
    )  # fmt: skip


def next_token(model: nn.Module, ids: Tensor) -> Tensor:
    """Mean cross-entropy."""
    return F.cross_entropy(model(input_ids=ids).logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


# ---- speed


class Trained:
    """One model in training, in one way."""

    def __init__(self, way: str, shape: list[int]):
        layers, width, self.batch, self.tokens, rows, self.vocabulary = shape
        self.model = language_model(layers, width, self.vocabulary, self.tokens)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4)
        self.validation = torch.randint(self.vocabulary, (rows, self.tokens))
        self.validates, self.attribution = way == "plain + validation", None
        scoring = WAYS[way]
        if scoring is not None:
            self.attribution = inrun.attach(
                self.model, self.optimizer, inrun.Utility(next_token, self.validation),
                scoring=scoring, options=inrun.Options(smoothed_steps=0, progress=False),
            )  # fmt: skip

    def block(self, first: int, steps: int) -> float:
        """Seconds a step of the thread's CPU time."""
        began = time.thread_time()
        for step in range(first, first + steps):
            generator = torch.Generator().manual_seed(step)
            shape = (self.batch, self.tokens)
            ids = torch.randint(self.vocabulary, shape, generator=generator)
            if self.attribution is None:
                next_token(self.model, ids).backward()
            else:
                with self.attribution.batch(range(step * self.batch, (step + 1) * self.batch)):
                    next_token(self.model, ids).backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            if self.validates:
                parameters = list(self.model.parameters())
                torch.autograd.grad(next_token(self.model, self.validation), parameters)
        return (time.thread_time() - began) / steps


def speed(size: str) -> dict[str, list[float]]:
    """By way, seconds a step of each round."""
    *shape, rounds = map(int, size.split())
    large = shape[1] >= 768
    kept = {"plain", "Window(10)", "Window(10, books=False)"} if large else set(WAYS)
    trained = {way: Trained(way, shape) for way in WAYS if way in kept}
    for one in trained.values():  # the exact first step, and one whole window
        one.block(0, 1)
        one.block(1, 2 if large else 10)
        if one.attribution is not None:
            one.attribution.state_dict()  # a window begins with the next step
    found: dict[str, list[float]] = {way: [] for way in trained}
    for turn in range(rounds):
        for way, one in trained.items():
            found[way].append(one.block(100 + 10 * turn, 10))
    return found


# ---- fidelity


def digits(rate: float) -> Any:
    """(model, optimizer, loss, rows, validation rows) of an MLP on scikit-learn's digits."""
    from sklearn.datasets import load_digits

    x, y = (torch.from_numpy(a) for a in load_digits(return_X_y=True))
    rows = x.float() / 16, y
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(),
                          nn.Linear(64, 10))  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(model(batch[0]), batch[1])

    def pick(ids: Any) -> Any:
        return tuple(t[ids] for t in rows)

    return model, optimizer, loss, pick, slice(1400, 1797), (512, 32, 200)


def gpt(rate: float) -> Any:
    """The same of a GPT of 2 x 64 on the Brown corpus."""
    texts = data.brown(2000, 32)
    model = language_model(2, 64, 2000, 32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    return model, optimizer, next_token, lambda ids: texts[ids], slice(3000, 3064), (256, 8, 130)


def visits(training: str, scoring: Any) -> tuple[dict[str, np.ndarray], list[dict[str, float]]]:
    """A training's visits in windows, and its windows."""
    name, rate = training.split()
    model, optimizer, loss, pick, held, (samples, batch, steps) = {"digits": digits, "gpt": gpt}[
        name
    ](float(rate))
    warm = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: min(1.0, (s + 1) / 20))
    generator = torch.Generator().manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        attribution = inrun.attach(
            model, optimizer, inrun.Utility(loss, pick(held)), store=Path(folder) / "run",
            scoring=scoring, options=inrun.Options(progress=False),
        )  # fmt: skip
        for _ in range(steps):
            ids = torch.randperm(samples, generator=generator)[:batch].tolist()
            with attribution.batch(ids):
                loss(model, pick(ids)).backward()
            optimizer.step()
            optimizer.zero_grad()
            warm.step()
        attribution.detach()
        table = attribution.visits()
    columns = {n: table[n].to_numpy() for n in ("step", "sample_id", "value")}
    late = columns["step"] > EXACT
    return {n: column[late] for n, column in columns.items()}, attribution.windows


def fidelity(training: str) -> dict[str, dict[str, float]]:
    """By length of the windows, agreement with exact values and what the run said of itself."""
    exact, _ = visits(training, inrun.EveryStep())
    small = np.abs(exact["value"]) <= np.quantile(np.abs(exact["value"]), 0.99)
    return {str(n): _agreement(exact, *visits(training, inrun.Window(n)), small) for n in LENGTHS}


def _agreement(
    exact: Mapping[str, np.ndarray],
    found: Mapping[str, np.ndarray],
    windows: list[dict[str, float]],
    small: np.ndarray,
) -> dict[str, float]:
    assert all((exact[n] == found[n]).all() for n in ("step", "sample_id"))
    told = {}
    for prefix, some in (("", slice(None)), ("trimmed_", small)):
        ids = exact["sample_id"][some]
        a, b = (np.bincount(ids, v["value"][some]) for v in (exact, found))
        seen = np.bincount(ids) > 0
        told |= {
            f"{prefix}r": float(np.corrcoef(a[seen], b[seen])[0, 1]),
            f"{prefix}spearman": float(spearmanr(a[seen], b[seen])[0]),
            f"{prefix}visits": float(np.corrcoef(exact["value"][some], found["value"][some])[0, 1]),
        }
    of = {n: np.array([w[n] for w in windows]) for n in ("cosine", "captured", "residual", "steps")}
    steps = of["steps"]
    return told | {
        "cosine": float((of["cosine"] * steps).sum() / steps.sum()),
        "captured": float((of["captured"] * steps).sum() / steps.sum()),
        "residual": float(np.median(of["residual"])),
        "steps": float(steps.mean()),
        "expected": float((np.array([w["expected"] for w in windows]) * steps).sum() / steps.sum()),
    }


def measure(key: str) -> Any:
    """A cell."""
    torch.set_num_threads(1)
    kind, rest = key.split(": ")
    kinds: dict[str, Callable[[str], Any]] = {"speed": speed, "fidelity": fidelity}
    return kinds[kind](rest)


# ---- the page


def write_page(found: Mapping[str, Any], stored: Mapping[str, Any]) -> None:
    """Reads the cells and writes docs/window.md."""
    parts = [HEAD]
    for key in (k for k in found if k.startswith("speed")):
        layers, width, batch, tokens, rows, vocabulary, _ = key.split(": ")[1].split()
        plain = np.array(found[key]["plain"])
        table = [
            (way, f"{np.median(seconds):.2f}", f"{np.median(np.array(seconds) / plain):.3f}",
             f"{100 * np.median(plain / np.array(seconds)):.1f}%")
            for way, seconds in found[key].items()
        ]  # fmt: skip
        parts.append(
            f"### {layers} x {width}, vocabulary {vocabulary}, {batch} x {tokens} tokens, V={rows}"
        )
        parts.append(markdown(["way", "s a step", "of plain", "throughput"], table))
    parts.append(MIDDLE)
    head = ["training", "window", "mean steps", "cosine", "captured", "R of totals", "Spearman",
            "R of visits", "R, Spearman, visits without 1 %", "residual", "it said"]  # fmt: skip
    rows_of = []
    for key in (k for k in found if k.startswith("fidelity")):
        for n, f in found[key].items():
            trimmed = ", ".join(f"{f['trimmed_' + x]:.3f}" for x in ("r", "spearman", "visits"))
            numbers = (f"{f[x]:.3f}" for x in ("r", "spearman", "visits"))
            rows_of.append((key.split(": ")[1], n, f"{f['steps']:.1f}", f"{f['cosine']:.2f}",
                            f"{f['captured']:.2f}", *numbers, trimmed, f"{f['residual']:.1%}",
                            f"{f['expected']:.2f}"))  # fmt: skip
    parts += [markdown(head, rows_of), f"Measured with {environments(dict(stored))}."]
    PAGE.write_text("\n\n".join(parts) + "\n")


HEAD = """# Scoring windows

Every figure on this page was printed by `python -m benchmarks.window`, which also writes this page.

`scoring=inrun.Window(10)` scores ten steps by one direction: the validation gradient at the
window's opening times the slope of the optimizer's null update, known before the first of them.
Each backward pass contracts it while a layer's operands are in the cache, and keeps 16 x 16 numbers
per sample and layer in the direction's bases; small layers keep their shares. At the window's end a
second validation pass is projected into the same bases, and each step meets both ends, by its place
between them. A layer whose bases capture less than 0.7 of the closing direction keeps the opening
one. Values are written then: `values()` and the store lack the steps of the window that is open.
`detach()`, `state_dict()` and an unscored step close it by a validation pass.

The first ten steps (`exact=10`) are scored one by one, as by `EveryStep`. `Window("auto")` doubles
a window's steps, up to 20, where the cosine of its ends is above 0.9, and halves them below 0.7.
A window is closed where the learning rate is more than twice or less than half of its opening's.
The books close per window (`books=True`): its last row of the ledger has both losses, all that
momentum and decay did, and the residual; rows before it have none. That takes a copy of the weights
and one of their gradient per target while a window is open.

**What it cannot know** is what the validation gradient does between a window's ends. Where it turns
within a few steps, values are wrong, and the cosine of the ends tells: `attribution.windows` and
each row's note in the ledger have it, with the share of the closing direction that was captured and
the agreement that windows of such a cosine had. Optimizers that take signs or mix a matrix's
elements (Lion, Rprop, Muon, LAMB, Adafactor) are refused, as are `fully_shard`, audits, values per
token and clipping by value.

## What it costs

Blocks of ten steps in turn with plain training, one thread, CPU time; median of the rounds. The
model of 12 x 768 is GPT-2 small."""

MIDDLE = """## How faithful it is

Agreement with `EveryStep` on the very same training, learning rate warmed up over 20 steps: an MLP
of 64-128-64-10 on digits (200 steps of 32) and a GPT of 2 x 64 on the Brown corpus (130 steps of
8 x 32 tokens), by learning rate. The last columns leave out the 1 % of visits that are largest;
then the books' median residual, and the R that the run itself expected by its cosines."""


def main() -> None:
    """Measures what is not on disk yet, and writes the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--fresh", action="store_true", help="measure again what is on disk")
    parser.add_argument("--only", default="", help="cells whose names begin so")
    given = parser.parse_args()
    keys = [f"speed: {size}" for size in SIZES] + [f"fidelity: {name}" for name in TRAININGS]
    wanted = [key for key in keys if key.startswith(given.only)]
    cells("window", wanted, measure, fresh=given.fresh)
    import json

    from benchmarks.results_file import RESULTS

    stored = json.loads((RESULTS / "window.json").read_text())["cells"]
    there = {key: stored[key] for key in keys if key in stored}
    write_page({key: cell["result"] for key, cell in there.items()}, there)


if __name__ == "__main__":
    main()
