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

import weakref
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from inrun.capture import Capture, Sketch
from inrun.distributed import own_part, parts, whole
from inrun.factors import Basis, Derived, Factor, View, compute_dtype, squared_norms, view_of
from inrun.optim import Move, as_rows, each_piece
from inrun.scoring._scorer import Scorer
from inrun.utility import Evaluation, require_finite

CAPTURED = 0.7  # of the closing direction: below it a layer keeps the opening one
STEADY, TURNED = 0.9, 0.7  # cosines of both ends above and below which n is doubled and halved
LONGEST = 20
EARLIER = 10  # steps per step of a window before it: long ones take an early swing for steady


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
        last: what the window before left at its closing pass.
        books: whether the weights are kept for the books.
        audited: whether its steps have exact values, and books, of their own.
    """

    def __init__(
        self, scorer: Scorer, capture: Capture, squares: Mapping[str, float], rank: int,
        starts: Mapping[str, Tensor], last: Following | None = None, *, books: bool,
        audited: bool = False,
    ):  # fmt: skip
        self._scorer, self._squares, self._rank = scorer, squares, rank
        self.names = list(capture.trained)
        opening = scorer.validation.opening(capture)
        self.losses, self.other = (
            opening.losses,
            None if audited else scorer.validation.take_other(),
        )
        self._bases: dict[tuple[str, View | None], Basis] = {}
        self._pushed: list[tuple[str, Basis, Any]] = []  # what maps a direction to such a basis
        self.rates: dict[str, float] = {}
        moves = self._moves(capture)
        (rests,) = scorer.processes.all([last is not None and last.holds(opening, moves)])
        if last is not None and rests:
            self._bases = {(name, None): basis for name, basis in last.bases.items()}
        else:
            for name, move in moves.items():
                Q_K = self._directions(capture, name, move, opening)
                stacked = name in capture.stacks
                self._bases[name, None] = Basis(Q_K, rank, starts.get(name), stacked=stacked)
        self.weights: dict[str, Tensor] | None = None
        self._gradients: Mapping[str, Tensor] = {}
        if books:
            own = {name: own_part(p.detach()) for name, p in capture.trained.items()}
            self.weights = {name: p.clone() for name, p in own.items()}
            self._gradients = opening.gradients
        elif not audited:
            scorer.validation.forget()  # a copy of the weights per target

    def _moves(self, capture: Capture) -> dict[str, Move[Any, Any]]:
        """What the optimizers are ready for, by parameter."""
        names = {id(p): name for name, p in capture.trained.items()}
        standing = self._scorer.optimizers.standing()
        moves = {names[id(p)]: move for p, move in standing if id(p) in names}
        self.rates = {name: float(move.setting.lr) for name, move in moves.items()}
        return moves

    def _directions(
        self, capture: Capture, name: str, move: Move[Any, Any], at: Evaluation
    ) -> Tensor:
        """One parameter's directions (K, *shape) per unit of learning rate.

        Of a sharded one each process forms its own part, and all of them are gathered.
        """
        gradient_K = at.gradients[name]
        wide = gradient_K.to(compute_dtype(gradient_K))
        own_K = move.null_directions(wide, self._squares.get(name, 0.0))
        return whole(own_K, capture.trained[name])

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
            found = Basis(pushed_K, self._rank, stacked=factor.inner.is_stack)
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

    def close(self, capture: Capture) -> Closed:
        """Runs the closing pass.

        Raises:
            MisuseError: the closing loss is not finite.
        """
        closing = self._scorer.validation.closing(capture)
        require_finite(self._scorer.targets, closing.losses.cpu())
        views: dict[str, list[tuple[Basis, Any]]] = {name: [] for name in self.names}
        for (name, view), basis in self._bases.items():
            if view is not None:
                views[name].append((basis, _strided(view)))
        for name, basis, push in self._pushed:
            views[name].append((basis, push))
        ends, sums, moves = {}, [], self._moves(capture)
        following = Following(closing, moves)
        for name, move in moves.items():
            if (name, None) not in self._bases:  # it came in between
                continue
            Q_K, own = self._directions(capture, name, move, closing), self._bases[name, None]
            ends[id(own)], told, following.bases[name] = _ends(own, Q_K)
            sums.append(told.double().cpu())
            for basis, push in views[name]:
                ends[id(basis)], _, _ = _ends(basis, push(Q_K))
        for basis in (*self._bases.values(), *(basis for _, basis, _ in self._pushed)):
            if id(basis) not in ends:  # its parameter went in between: it has one end
                none = torch.zeros(
                    len(basis.opening), dtype=torch.bool, device=basis.opening.device
                )
                ends[id(basis)] = Ends(basis.opening, none)
        met, opened, closed, held = torch.stack(sums).sum((0, 2)).tolist()
        cosine = met / (opened * closed) ** 0.5 if opened and closed else 1.0
        captured = (held / closed) ** 0.5 if closed else 1.0
        return Closed(ends, closing, cosine, captured, following)

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
        sums = torch.zeros(2, len(self._scorer.targets), dtype=torch.float64)
        for name, p in capture.trained.items():
            if name not in self.weights:
                continue
            shrunk, wide, times = rate_sums.get(name, 0.0), compute_dtype(p), parts(p)
            ends = zip(self._gradients[name], closing.gradients[name], strict=True)
            for k, (first, last) in enumerate(ends):
                arrays = self.weights[name], (own_part(p.detach()), first, last), ()
                for before, (after, g_first, g_last), _ in each_piece(arrays):
                    twice = (g_first + g_last).reshape(-1).to(wide)
                    moved = (before - after).reshape(-1).to(wide)
                    met = twice @ moved
                    sums[0, k] += times * 0.5 * met.double().cpu()
                    if shrunk:  # before + after, without another array
                        total = 2 * (twice @ after.reshape(-1).to(wide)) + met
                        sums[1, k] += times * shrunk / 4 * total.double().cpu()
        if capture.sharded:  # each process has summed over its own parts
            sums = self._scorer.processes.mean(sums)
        return sums


class Closed(NamedTuple):
    """What a closing pass tells: by a basis's identity its ends, and what is told of a window.

    `following`: what the next window may open with.
    """

    ends: dict[int, Ends]
    closing: Evaluation
    cosine: float
    captured: float
    following: Following


class Following:
    """Directions at a closing pass, which are the next opening ones where nothing moves.

    `bases`: theirs, by parameter.
    """

    def __init__(self, closing: Evaluation, moves: Mapping[str, Move[Any, Any]]):
        self._gradients = closing.gradients
        self._read = {name: _Read.of(move) for name, move in moves.items()}
        self.bases: dict[str, Basis] = {}

    def holds(self, opening: Evaluation, moves: Mapping[str, Move[Any, Any]]) -> bool:
        """Whether an opening pass and what optimizers are ready for are those of the closing."""
        return (
            opening.gradients is self._gradients
            and list(moves) == list(self.bases)
            and all(self._read[name].same(_Read.of(move)) for name, move in moves.items())
        )


class _Read(NamedTuple):
    """What directions are formed of beside gradients and weights: no tensor is kept alive."""

    numbers: tuple[Any, ...]
    tensors: list[tuple[weakref.ref[Tensor], int]]

    @classmethod
    def of(cls, move: Move[Any, Any]) -> _Read:
        tensors = [part for part in move.state if isinstance(part, Tensor)]
        rest = [part for part in move.state if not isinstance(part, Tensor)]
        seen = [(weakref.ref(t), t._version) for t in tensors]
        return cls((move.setting._replace(lr=1.0), *rest), seen)

    def same(self, now: _Read) -> bool:
        there = all(
            a() is not None and a() is b() and v == w
            for (a, v), (b, w) in zip(self.tensors, now.tensors, strict=True)
        )
        return there and self.numbers == now.numbers


def _strided(view: View) -> Any:
    """How directions are seen through a view of the parameter."""
    shape, strides, offset = view

    def push(Q_K: Tensor) -> Tensor:
        return torch.stack([Q.contiguous().as_strided(shape, strides, offset) for Q in Q_K])

    return push


def _ends(basis: Basis, Q_K: Tensor) -> tuple[Ends, Tensor, Basis]:
    """Its ends; both ends' product, their squared norms, the closing one's part, (4, K); new bases.

    The new ones are those of the closing directions.
    """
    closing, following = basis.followed_by(Q_K)
    held, energy = squared_norms(closing), following.energy
    captured = (held / energy.clamp(min=torch.finfo(energy.dtype).tiny)).sqrt()
    trusted = captured >= CAPTURED
    scaled = closing / captured.clamp(min=CAPTURED).reshape(-1, *[1] * (closing.ndim - 1))
    met = (as_rows(basis.opening) * as_rows(closing)).sum(1)
    return Ends(scaled, trusted), torch.stack([met, basis.energy, energy, held]), following
