"""A step's gradient as a function of the weights and of how much each row counts.

With a weight omega_i = 1 on each row's loss term, L(w, omega) = sum_i omega_i l_i(w) and
s = <p, grad_w L>,

    ds/dw = H p,      ds/domega_i = <p, c_i>

so one forward and a double backward pass give the Hessian-vector product and every row's
contraction, for any architecture.

The Hessian of a ReLU is 0 but for a spike at z = 0, so it says that a unit never switches. A linear
method cannot say which sample makes which unit switch; with a kink width it says what switching
does on the average, by a bell in the spike's place (values and first derivatives stay as they are):

    relu''(z) ~ exp(-z^2 / 2 h^2) / (h sqrt(2 pi)),    h = width * root mean square of z

Summed over rows and steps that is a kernel estimate of how dense z is at 0. Letters: B rows of a
block, K directions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from math import pi, sqrt
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from inrun.optim import Move, as_rows
from inrun.replay._folder import Step
from inrun.replay._replica import Losses, Replica, clipping, length, moves_of
from inrun.replay._snapshot import undisturbed_random
from inrun.utility import EachCall, differentiable_twice

SIDE_BY_SIDE = 8  # directions; with more, what they carry outgrows the cache and each takes longer
FEW = 3  # directions; batching has a price of its own, which fewer do not earn
KINK_WIDTH = 0.01
_RELUS = {F.relu, torch.relu, Tensor.relu}  # in place, z is gone: those are left alone


class Graph(NamedTuple):
    """One block's gradient, still differentiable in the weights and in omega.

    `terms` and `omega` (B,), (B, T) for parts of rows; `gradients` one per parameter, None where
    the block does not use it; `shares_of_mean` (B,) float64, what part of the block's mean each
    row is.
    """

    terms: Tensor
    omega: Tensor
    gradients: tuple[Tensor | None, ...]
    shares_of_mean: Tensor


@contextmanager
def with_curvature(kink_width: float) -> Iterator[None]:
    """Right second derivatives, and kinks that have one."""
    kinks = smooth_kinks(kink_width) if kink_width else nullcontext()
    with torch.enable_grad(), differentiable_twice(), kinks:
        yield


class _Switch(torch.autograd.Function):
    """gradient * (z > 0), with the bell as its derivative in z."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, z: Tensor, width: float) -> Tensor:
        ctx.save_for_backward(gradient, z)
        ctx.width = width
        return gradient * (z > 0)

    @staticmethod
    def backward(ctx: Any, above: Tensor) -> tuple[Tensor, Tensor, None]:
        gradient, z = ctx.saved_tensors
        h = ctx.width * z.square().mean().sqrt().clamp(min=torch.finfo(z.dtype).tiny)
        bell = torch.exp(-0.5 * (z / h) ** 2) / (h * sqrt(2 * pi))
        return above * (z > 0), above * gradient * bell, None


class _Relu(torch.autograd.Function):
    """relu(z)."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, width: float) -> Tensor:
        ctx.save_for_backward(z)
        ctx.width = width
        return z.clamp(min=0)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (z,) = ctx.saved_tensors
        switched: Tensor = _Switch.apply(gradient, z, ctx.width)  # type: ignore[no-untyped-call]
        return switched, None


def smooth_kinks(width: float) -> EachCall:
    """A context in which ReLUs have the bell for a second derivative."""

    def call(func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        if func in _RELUS:
            return _Relu.apply(args[0] if args else kwargs["input"], width)  # type: ignore[no-untyped-call]
        return func(*args, **kwargs)

    return EachCall(call)


class StepGradient:
    """The gradient of a recorded step at the replica's weights.

    Attributes:
        raw: by parameter, as the backward passes leave it; parameters without one are left out.
        norm: its length.
        clip: what clipping multiplies it with.
        shares_of_mean: one per block, (B,), what part of the block's mean each row is.
    """

    def __init__(self, replica: Replica, step: Step, kink_width: float = 0.0):
        self._replica, self._step, self._kink_width = replica, step, kink_width
        self._names = list(replica.parameters)
        self.shares_of_mean: list[Tensor] = []
        self._only = self._graph(0) if len(step.blocks) == 1 else None
        self.raw = self._summed()
        self.norm = length(self.raw.values())
        self.clip = clipping(self.norm, replica.task.clip_norm)

    def _graph(self, number: int, parts: Losses | None = None) -> Graph:
        """A block's graph, of its rows' terms or of `parts` of them."""
        replica, step = self._replica, self._step
        block = step.blocks[number]
        with undisturbed_random(replica.model), with_curvature(self._kink_width):
            replica.begin_block(step, block, number)
            if parts is None:
                terms, batch = replica.terms(block.ids)
            else:
                batch = replica.task.fetch(block.ids)
                terms = parts(replica.model, batch)
            omega = torch.ones_like(terms, requires_grad=True)
            gradients = torch.autograd.grad(
                (omega * terms).sum(), list(replica.parameters.values()), allow_unused=True,
                create_graph=True,
            )  # fmt: skip
        return Graph(terms, omega, gradients, replica.task.shares_of_mean(batch, len(block.ids)))

    def graphs(self) -> Iterator[Graph]:
        """Each block's graph; of several blocks only one at a time is in memory."""
        for number in range(len(self._step.blocks)):
            yield self._only if self._only is not None else self._graph(number)

    def _summed(self) -> dict[str, Tensor]:
        total: dict[str, Tensor] = {}
        for graph in self.graphs():
            self.shares_of_mean.append(graph.shares_of_mean)
            found = [None if g is None else g.detach() for g in graph.gradients]
            add_up(total, zip(self._names, found, strict=True))
        return total

    def moves(self) -> list[tuple[str, Move[Any, Any]]]:
        replica = self._replica
        return moves_of(replica.optimizer, replica.rule, replica.parameters, self.raw, self.clip)

    def consumed_to_raw(self, q: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Takes a derivative in the consumed gradient to one in the raw: see `unclipped`."""
        return unclipped(q, self.raw, self.norm, self.clip)

    def contract(
        self, directions: Mapping[str, Tensor], *, curvature: bool = True
    ) -> tuple[dict[str, Tensor], list[Tensor]]:
        """(H p by parameter, (K, *shape); <p, c_i> per block, (B, K) float64 on the CPU).

        Parameters whose part of H p is 0 by the graph are left out.

        Args:
            directions: p by parameter, (K, *shape), for parameters in `raw`.
            curvature: False spares the work for H p, of which nothing is returned then.
        """
        parameters = list(self._replica.parameters.values()) if curvature else []
        curved: dict[str, Tensor] = {}
        contractions = []
        for graph in self.graphs():
            rows, *products = self._pulled(graph, directions, [graph.omega, *parameters])
            add_up(curved, zip(self._names, products, strict=curvature))
            assert rows is not None
            contractions.append(rows.T.double().cpu())
        return curved, contractions

    def contract_parts(
        self, number: int, parts: Losses, directions: Mapping[str, Tensor]
    ) -> Tensor:
        """<p, c_it> with c_it the share of part t of row i's loss, (B, T, K) float64 on the CPU.

        `number` is of the step's block; `parts(model, batch)` gives (B, T) terms that add up over T
        to the rows' terms.
        """
        graph = self._graph(number, parts)
        (found,) = self._pulled(graph, directions, [graph.omega])
        assert found is not None
        return found.permute(1, 2, 0).double().cpu()

    def _pulled(
        self, graph: Graph, directions: Mapping[str, Tensor], inputs: Sequence[Tensor]
    ) -> list[Tensor | None]:
        """Derivatives in the inputs of s, (K, *shape) each."""
        used = [
            (gradient, directions[name])
            for name, gradient in zip(self._names, graph.gradients, strict=True)
            if gradient is not None and gradient.requires_grad and name in directions
        ]
        return pulled_back([g for g, _ in used], [p for _, p in used], inputs)


def add_up(total: dict[str, Tensor], found: Iterable[tuple[str, Tensor | None]]) -> None:
    """Adds to sums by name what is there."""
    for name, part in found:
        if part is not None:
            total[name] = total[name] + part if name in total else part


def unclipped(
    q: Mapping[str, Tensor], raw: Mapping[str, Tensor], norm: float, clip: float
) -> dict[str, Tensor]:
    """A loss's derivative in the raw gradient, from that in the consumed one; both (K, *shape).

    Clipping is g = C / (n + 1e-6) * raw with n the raw gradient's length, which moves with it, and
    `clip` what it was multiplied with. The map is its own transpose, so changes of the raw gradient
    are pushed through it too.
    """
    if clip == 1.0:
        return dict(q)
    along = torch.stack([as_rows(q[n] * raw[n]).sum(1) for n in q]).sum(0)
    factor = along * (clip / ((norm + 1e-6) * norm))
    return {
        name: clip * part - factor.view(-1, *[1] * (part.ndim - 1)) * raw[name]
        for name, part in q.items()
    }


def pulled_back(
    outputs: Sequence[Tensor], directions: Sequence[Tensor], inputs: Sequence[Tensor]
) -> list[Tensor | None]:
    """Derivatives in the inputs of <direction_k, outputs>, (K, *shape) each, for K directions.

    None for inputs that the outputs do not depend on. The graph stays. Some directions at a time go
    through it side by side where every operation's backward pass can be batched; else, and where
    they are few, one after the other.
    """
    K = len(directions[0])
    if K > SIDE_BY_SIDE:
        groups = [
            pulled_back(outputs, [d[k : k + SIDE_BY_SIDE] for d in directions], inputs)
            for k in range(0, K, SIDE_BY_SIDE)
        ]
        return [
            None
            if any(part is None for part in parts)
            else torch.cat([p for p in parts if p is not None])
            for parts in zip(*groups, strict=True)
        ]
    cotangents = [d.to(out.dtype) for out, d in zip(outputs, directions, strict=True)]
    if K > FEW:
        with suppress(RuntimeError):  # some formulas cannot be batched; other errors come again
            return list(
                torch.autograd.grad(
                    outputs, inputs, grad_outputs=cotangents, is_grads_batched=True,
                    retain_graph=True, allow_unused=True,
                )
            )  # fmt: skip
    found = [
        torch.autograd.grad(
            outputs, inputs, grad_outputs=[c[k] for c in cotangents], retain_graph=True,
            allow_unused=True,
        )
        for k in range(K)
    ]  # fmt: skip
    return [
        None if parts[0] is None else torch.stack(parts) if K > 1 else parts[0].unsqueeze(0)
        for parts in zip(*found, strict=True)
    ]
