"""Validation passes: losses and gradients of every target at the model's present weights.

Letters: K targets. Gradients are kept by parameter name as (K, *shape of the parameter).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from inrun.distributed import is_sharded, own_part, reduced_gradients
from inrun.errors import MisuseError
from inrun.factors import few
from inrun.utility._loss import in_parts, loss_of
from inrun.utility._undisturbed import differentiable_twice, undisturbed
from inrun.utility._utility import Utility


@dataclass(frozen=True)
class Evaluation:
    """One validation pass.

    `losses` (K,) float64, on the CPU where they were `checked`; `gradients` by parameter name,
    (K, *shape), zero where a target does not use the parameter. Of sharded parameters they are
    this process's parts of the mean over processes. `rows`: which part of the rows it looked at.
    """

    losses: Tensor
    gradients: dict[str, Tensor]
    checked: bool = True
    rows: int = 0


def evaluate(
    utility: Utility, model: nn.Module, parameters: Mapping[str, Tensor], *, checked: bool = True
) -> Evaluation:
    """Losses and gradients of every target at the model's weights, by parameter name.

    Not `checked`, it does not wait for the losses: the caller reads them and `finite_sums`.

    Raises:
        MisuseError: a loss or a gradient is not finite, or there is no graph to any trained
            parameter.
    """
    losses: list[Tensor] = []
    rows: list[list[Tensor]] = []
    with undisturbed(model):
        for target, batch in utility.batches.items():
            loss, gradients = None, None
            for part, share in in_parts(utility, model, target, batch):
                of_part = loss_of(utility, model, target, part)
                of_part = of_part if share == 1.0 else of_part * share
                _require_graph(target, of_part)
                more = gradients_of(of_part, model, list(parameters.values()))
                loss = of_part.detach() if loss is None else loss + of_part.detach()
                gradients = more if gradients is None else _added(gradients, more)
            assert loss is not None
            assert gradients is not None
            rows.append(gradients)
            losses.append(loss)
    values = torch.stack([loss.double().cpu() if checked else loss.double() for loss in losses])
    if checked:
        require_finite(utility.targets, values)
    stacked = {
        name: torch.stack([row[i] for row in rows]) if len(rows) > 1 else rows[0][i].unsqueeze(0)
        for i, name in enumerate(parameters)
    }
    found = Evaluation(values, stacked, checked)
    if checked and not any(map(is_sharded, parameters.values())):
        require_finite_gradients(found, utility.targets)
    return found


def _require_graph(target: str, loss: Tensor) -> None:
    if not loss.requires_grad:
        raise MisuseError(
            f"The validation loss of target {target!r} has no graph to the parameters. "
            "Compute it from the model that was passed in, without torch.no_grad()."
        )


def _added(sums: list[Tensor], more: list[Tensor]) -> list[Tensor]:
    with torch.no_grad():
        return [a.add_(b) for a, b in zip(sums, more, strict=True)]


def require_finite(targets: Sequence[str], losses: Tensor) -> None:
    """Raises MisuseError for losses that are not finite: nothing can be judged by them."""
    bad = [t for t, loss in zip(targets, losses.tolist(), strict=True) if not math.isfinite(loss)]
    if bad:
        raise MisuseError(
            f"The validation loss of target {bad[0]!r} is not finite, so nothing can be judged by "
            "it: the training diverged, or the validation batch is empty or holds NaN."
        )


@torch.no_grad()
def finite_sums(evaluation: Evaluation) -> Tensor:
    """Whether sums of gradients are finite, on their device.

    Sums are quick. One of finite numbers overflows where they are huge: `require_finite_gradients`
    looks again.
    """
    found = [
        t.sum(dtype=torch.promote_types(t.dtype, torch.float32)).isfinite()
        for t in few(evaluation.gradients.values())
    ]
    return torch.stack([t.to(found[0].device) for t in found]) if found else torch.ones(0).bool()


def require_finite_gradients(evaluation: Evaluation, targets: Sequence[str] = ()) -> None:
    """Raises MisuseError for gradients that are not finite; it waits for the device."""
    if bool(finite_sums(evaluation).all()):
        return
    for name, g in evaluation.gradients.items():
        finite_K = g.detach().isfinite().flatten(1).all(1).tolist()
        if not all(finite_K):
            k = finite_K.index(False)
            target = f" of target {targets[k]!r}" if targets else ""
            raise MisuseError(
                f"The validation loss{target} is finite and its gradient is not, at {name}, so "
                "nothing can be judged by it: a square root or a norm at 0, a division by 0, or "
                "half precision that overflows. Step around the point in loss_fn (add a small "
                "number under the root), or leave the rows out that lie on it."
            )


def gradients_of(loss: Tensor, model: nn.Module, parameters: list[Tensor]) -> list[Tensor]:
    """The loss's gradients, zero where it does not use a parameter; see `Evaluation`."""
    if not any(map(is_sharded, parameters)):
        return _gradients(loss, parameters)
    found = reduced_gradients(loss, model, parameters)
    return [
        torch.zeros_like(own_part(p)) if gradient is None else gradient
        for p, gradient in zip(parameters, found, strict=True)
    ]


def losses_of(utility: Utility, model: nn.Module, *, checked: bool = True) -> Tensor:
    """Losses of every target without gradients, (K,) float64, on the CPU where `checked`."""
    with undisturbed(model), torch.no_grad():
        losses = [
            torch.stack([
                loss_of(utility, model, t, part).double() * share
                for part, share in in_parts(utility, model, t, batch)
            ]).sum()
            for t, batch in utility.batches.items()
        ]  # fmt: skip
    return torch.stack([loss.cpu() for loss in losses] if checked else losses)


def curvature(
    utility: Utility,
    model: nn.Module,
    parameters: Mapping[str, Tensor],
    along: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    """H_k g for every target's Hessian H_k and one vector g, by a double backward pass.

    Operations that have no right second derivative run by their formulas: `differentiable_twice`.
    `along` is g, by parameter name; parameters that it leaves out count as 0. By name, (K, *shape).
    """
    used = [parameters[name] for name in along]
    names = list(parameters)
    rows: list[list[Tensor]] = []
    with undisturbed(model), differentiable_twice():
        for target, batch in utility.batches.items():
            row = [torch.zeros_like(p) for p in parameters.values()]
            for part, share in in_parts(utility, model, target, batch):
                loss = loss_of(utility, model, target, part) * share
                first = _gradients(loss, used, create_graph=True)
                product = sum(
                    ((a * b).sum() for a, b in zip(first, along.values(), strict=True)),
                    start=torch.zeros((), device=loss.device),
                )
                if product.requires_grad:  # else the loss is linear in the parameters
                    row = _added(row, _gradients(product, list(parameters.values())))
            rows.append(row)
    return {name: torch.stack([row[i] for row in rows]) for i, name in enumerate(names)}


def _gradients(of: Tensor, parameters: list[Tensor], create_graph: bool = False) -> list[Tensor]:
    found = torch.autograd.grad(of, parameters, allow_unused=True, create_graph=create_graph)
    return [
        torch.zeros_like(p) if gradient is None else gradient
        for p, gradient in zip(parameters, found, strict=True)
    ]
