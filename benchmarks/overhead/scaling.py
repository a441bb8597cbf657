"""How the cost of a step grows: constants from the measured sizes, and what follows for others.

Letters: P parameters, N tokens of a step on one process, L layers, d their width, f the width
inside the feed-forward part. A layer's matrices have about 4 d + 2 (d + f) inputs and outputs a
token: the attention's, fused, and the feed-forward part's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch

from benchmarks.markdown import long_table, markdown
from benchmarks.overhead.methods import Size

BY_PARAMETER = (
    "direction and books, after the step", "factorizing directions", "invariant: gradients",
    "whether weights moved",
)  # fmt: skip
BY_TOKEN = (
    "invariant: shares", "building factors", "low-rank contraction", "dense contraction",
    "seeing operations", "before the step, the rest", "after the step, the rest",
)  # fmt: skip
VALIDATION = "validation pass"


class Shape(NamedTuple):
    """What the formulas need of a model and a step."""

    parameters: float
    layers: int
    width: int
    inside: int
    tokens: int

    @property
    def seen(self) -> float:
        """Numbers that capturing looks at in a step: inputs and outputs of all matrices."""
        return self.tokens * self.layers * (4 * self.width + 2 * (self.width + self.inside))

    @property
    def flops(self) -> float:
        """Of a plain step: 6 a parameter and token."""
        return 6 * self.parameters * self.tokens


LARGER = {
    "1B": (1.1e9, 22, 2048, 5632), "7B": (6.7e9, 32, 4096, 11008), "70B": (69e9, 80, 8192, 28672),
}  # fmt: skip
TOKENS = (4096, 32768, 262144)


def shape_of(size: Size) -> Shape:
    """Of a measured size."""
    with torch.device("meta"):
        parameters = sum(p.numel() for p in size.model().parameters())
    tokens = size.batch * size.tokens
    return Shape(parameters, size.layers, size.width, 4 * size.width, tokens)


class Constants(NamedTuple):
    """Seconds a flop of plain training, a parameter, and a number that capturing looks at."""

    flop: float
    parameter: float
    number: float

    def extra(self, shape: Shape) -> tuple[float, float]:
        """What the step adds for its parameters and for its tokens, as shares of a plain step."""
        plain = self.flop * shape.flops
        return self.parameter * shape.parameters / plain, self.number * shape.seen / plain


def constants(sizes: Mapping[Size, Mapping[str, Any]]) -> list[Constants]:
    """Of each measured size."""
    return [_constants(shape_of(size), found) for size, found in sizes.items()]


def _constants(shape: Shape, found: Mapping[str, Any]) -> Constants:
    parts = found["hold"]["parts"]
    flop = float(np.median(found["plain"]["seconds"])) / shape.flops
    return Constants(
        flop, _sum(parts, BY_PARAMETER) / shape.parameters, _sum(parts, BY_TOKEN) / shape.seen
    )


def _sum(parts: Mapping[str, float], names: Iterable[str]) -> float:
    return sum(parts.get(name, 0.0) for name in names)


def growth(sizes: Mapping[Size, Mapping[str, Any]]) -> str:
    """The constants by size: the formulas hold where they are alike."""
    rows = []
    for size, c in zip(sizes, constants(sizes), strict=True):
        by_parameter, by_token = c.extra(shape_of(size))
        rows.append([
            size.words,
            f"{1e-9 / c.flop:.0f}", f"{1e9 * c.parameter:.1f}", f"{1e9 * c.number:.1f}",
            f"{by_parameter:.1%}", f"{by_token:.1%}",
        ])  # fmt: skip
    head = [
        "size", "Gflop/s of plain training", "ns a parameter", "ns a number seen",
        "share of a plain step: parameters", "tokens",
    ]  # fmt: skip
    return markdown(head, rows)


def larger(sizes: Mapping[Size, Mapping[str, Any]]) -> str:
    """On paper: shares of a plain step, and memory, for models that no one machine here holds."""
    middle = Constants(
        *(float(np.median(column)) for column in zip(*constants(sizes), strict=True))
    )
    rows = []
    for name, (parameters, layers, width, inside) in LARGER.items():
        for tokens in TOKENS:
            shape = Shape(parameters, layers, width, inside, tokens)
            by_parameter, by_token = middle.extra(shape)
            rows.append([
                name, f"{tokens:,}", f"{by_parameter:.2%}", f"{by_token:.1%}",
                f"{2 * shape.seen / 2**30:,.1f}", f"{4 * parameters / 2**30:,.0f}",
            ])  # fmt: skip
    head = [
        "model", "tokens a step and process", "for the parameters", "for the tokens",
        "held factors, GiB in bf16", "validation gradient, GiB over all processes",
    ]  # fmt: skip
    return long_table("cost_larger", "Larger models, on paper", head, rows)
