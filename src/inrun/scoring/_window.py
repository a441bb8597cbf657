"""A scoring window: n steps whose values come of one direction, and of what became of it.

The direction is known before the first of them: the opening validation gradient times the slope
of the null update, per unit of learning rate, so that each step takes its own. Each backward pass
leaves a sketch of its shares (see `inrun.factors`); at the closing pass sketches meet both ends,

    value_b = sum over layers of lr * scale * <(1 - x) S_open + x S_close / captured, sketch_b>

with x the step's place, (j + 1/2) / n. A layer whose bases capture less than 0.7 of the closing
direction keeps the opening one. The cosine of both ends says how far values can be trusted: what
the validation gradient did in between is not known. Letters: K targets, N samples of a step.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from inrun.capture import Capture, Sketch
from inrun.factors import Basis, Derived, Factor, View, compute_dtype, view_of
from inrun.optim import as_rows
from inrun.scoring._scorer import Scorer
from inrun.utility import Evaluation, require_finite

CAPTURED = 0.7  # of the closing direction: below it a layer keeps the opening one
STEADY, TURNED = 0.9, 0.7  # cosines of both ends above and below which n is doubled and halved
LONGEST = 20
TOLD = 0.6  # a cosine below which the user is warned
LEAST = ((0.9, 0.99), (0.8, 0.97), (0.75, 0.9), (0.7, 0.87), (0.65, 0.8), (0.45, 0.64), (0.3, 0.43))
"""(cosine of the ends, rank correlation of totals with exact values from there on): the least of
the trainings of benchmarks.window, by their windows' mean cosine. Pearson's R says less: on its
language model it was 0.1 where ranks agree to 0.97."""


class ClosedWindow(NamedTuple):
    """What is known of a closed window.

    `first` and `steps`; `cosine` of its ends' directions; `captured`, the share of the closing one
    that the bases hold; `residual`, of its books, over the size of their entries; NaN without.
    """

    first: int
    steps: int
    cosine: float
    captured: float
    residual: float

    @property
    def expected(self) -> float:
        """The least rank correlation with exact values that trainings of such a cosine had."""
        return next((least for cosine, least in LEAST if self.cosine >= cosine), 0.35)

    @property
    def turned(self) -> bool:
        """Whether the validation gradient went another way at its end."""
        return self.cosine < TOLD

    def words(self) -> str:
        """For a row of the books."""
        return (
            f"steps {self.first} to {self.first + self.steps - 1}, cosine of its ends "
            f"{self.cosine:.2f}, {self.captured:.0%} of the closing direction captured: "
            f"trainings of such windows had a rank correlation of {self.expected:.2g} or more with "
            "exact values"
        )


class Ends(NamedTuple):
    """Both ends of one basis: the closing directions there, and which of the K are used."""

    closing: Tensor
    trusted: Tensor

    def at(self, opening: Tensor, x: float) -> Tensor:
        """Directions of the step at place x."""
        used = self.trusted.reshape(-1, *[1] * (opening.ndim - 1))
        return torch.where(used, torch.lerp(opening, self.closing, x), opening)


class OpenWindow:
    """One window from its opening pass on.

    Args:
        scorer: that outlives it.
        capture: what is trained.
        squares: by parameter, the mean square of its last gradient.
        rank: of the bases.
        starts: by parameter, what bases start from.
        books: whether the weights are kept for the books.
    """

    def __init__(
        self, scorer: Scorer, capture: Capture, squares: Mapping[str, float], rank: int,
        starts: Mapping[str, Tensor], *, books: bool,
    ):  # fmt: skip
        self._scorer, self._squares, self._rank = scorer, squares, rank
        self.names = list(capture.trained)
        opening = scorer.validation.opening(capture)
        self.losses, self.other = opening.losses, scorer.validation.take_other()
        self._bases: dict[tuple[str, View | None], Basis] = {}
        self._pushed: list[tuple[str, Basis, Any]] = []  # what maps a direction to such a basis
        self.rates: dict[str, float] = {}
        for name, Q_K in self._directions(capture, opening):
            self._bases[name, None] = Basis(Q_K, rank, starts.get(name))
        self.weights: dict[str, Tensor] | None = None
        self._gradients: Mapping[str, Tensor] = {}
        if books:
            self.weights = {name: p.detach().clone() for name, p in capture.trained.items()}
            self._gradients = opening.gradients
        else:
            scorer.validation.forget()  # a copy of the weights per target

    def _directions(self, capture: Capture, at: Evaluation) -> Iterator[tuple[str, Tensor]]:
        """(name, directions (K, *shape) per unit of learning rate), one parameter at a time."""
        names = {id(p): name for name, p in capture.trained.items()}
        for p, move in self._scorer.optimizers.standing():
            name = names.get(id(p))
            if name is None:
                continue
            self.rates[name] = float(move.setting.lr)
            slope = move.null_slope(self._squares.get(name, 0.0))
            yield name, slope.transposed(at.gradients[name].to(compute_dtype(p)))

    # ---- within

    def sketch(self, name: str, factor: Factor) -> Sketch:
        """What is kept of a factor, inside the backward pass."""
        basis = self._bases[name, None]
        if not isinstance(factor, Derived):
            return Sketch(basis, basis.keep(factor))
        own, view = factor.shape, view_of(factor)
        if view == view_of(Derived(own, lambda t: t, factor.inner)):  # a cast
            return Sketch(basis, basis.keep(factor.inner))
        found = None if view is None else self._bases.get((name, view))
        if found is None:
            _, pushed_K = factor.reduced(basis.told(own))
            found = Basis(pushed_K, self._rank)
            if view is None:  # what it is mapped by stays with it, without its activations
                bare = factor.mapped(lambda t: t.to("meta"))
                self._pushed.append((name, found, lambda Q_K: bare.reduced(Q_K)[1]))
            else:
                self._bases[name, view] = found
        return Sketch(found, found.keep(factor.inner))

    # ---- at its end

    def starts(self) -> dict[str, Tensor]:
        """By parameter, what the next window's bases start from."""
        own = ((name, basis.start) for (name, view), basis in self._bases.items() if view is None)
        return {name: start for name, start in own if start is not None}

    def close(self, capture: Capture) -> tuple[dict[int, Ends], Evaluation, float, float]:
        """Runs the closing pass.

        Returns:
            By a basis's identity its ends; the pass; the ends' cosine, and the captured share.

        Raises:
            MisuseError: the closing loss is not finite.
        """
        closing = self._scorer.validation.closing(capture)
        require_finite(self._scorer.targets, closing.losses.cpu())
        views: dict[str, list[tuple[Basis, Any]]] = {}
        for (name, view), basis in self._bases.items():
            push = (lambda Q_K: Q_K) if view is None else _strided(view)
            views.setdefault(name, []).append((basis, push))
        for name, basis, push in self._pushed:
            views[name].append((basis, push))
        ends, sums = {}, []
        for name, Q_K in self._directions(capture, closing):
            for basis, push in views[name]:
                ends[id(basis)], told = _ends(basis, push(Q_K))
                if basis is self._bases[name, None]:
                    sums.append(told.double().cpu())
        met, opened, closed, held = torch.stack(sums).sum((0, 2)).tolist()
        cosine = met / (opened * closed) ** 0.5 if opened and closed else 1.0
        return ends, closing, cosine, (held / closed) ** 0.5 if closed else 1.0

    def moved(
        self, capture: Capture, closing: Evaluation, rate_sums: Mapping[str, float]
    ) -> Tensor:
        """What the weights' way through the window, and decay's part of it, did: (2, K) float64.

        By the mean of both ends' gradients. Decay is that which shrinks weights by itself.

        Args:
            capture: the parameters.
            closing: the closing pass.
            rate_sums: by parameter, the sum over steps of lr * decay.
        """
        assert self.weights is not None
        rows = torch.zeros(2, len(self._scorer.targets), dtype=torch.float64)
        for name, p in capture.trained.items():
            before = self.weights[name]
            mean_KP = as_rows(torch.lerp(self._gradients[name], closing.gradients[name], 0.5))
            rows[0] += (mean_KP @ (before - p.detach()).reshape(-1)).double().cpu()
            if rate_sums.get(name):
                half = (before + p.detach()).reshape(-1) * (rate_sums[name] / 2)
                rows[1] += (mean_KP @ half).double().cpu()
        return rows


def _strided(view: View) -> Any:
    """How directions are seen through a view of the parameter."""
    shape, strides, offset = view

    def push(Q_K: Tensor) -> Tensor:
        return torch.stack([Q.contiguous().as_strided(shape, strides, offset) for Q in Q_K])

    return push


def _ends(basis: Basis, Q_K: Tensor) -> tuple[Ends, Tensor]:
    """Its ends; (4, K): both ends' product, their squared norms, the closing one's part."""
    closing, energy = basis.project(Q_K), as_rows(Q_K).square().sum(1)
    held = as_rows(closing).square().sum(1)
    captured = (held / energy.clamp(min=torch.finfo(energy.dtype).tiny)).sqrt()
    trusted = captured >= CAPTURED
    scaled = closing / captured.clamp(min=CAPTURED).reshape(-1, *[1] * (closing.ndim - 1))
    met = (as_rows(basis.opening) * as_rows(closing)).sum(1)
    return Ends(scaled, trusted), torch.stack([met, basis.energy, energy, held])
