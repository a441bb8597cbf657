"""Shares sum to the gradient: the invariant, and what became of the gradient before the step.

Sum over samples of <r, share_i> = <r, grad>, for a random r a parameter (see `_probe`), is checked
when a batch block ends. From then to the optimizer's step the gradient may be scaled (unscaling,
clipping by norm, averaging): the factor k is read off the gradient itself. Where no one factor
explains the change, it was elementwise (clipping by value), and the raw gradient is needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from inrun.capture._probe import Probe, tolerance
from inrun.errors import InvariantError, MisuseError
from inrun.factors import Factor


class Fingerprint(NamedTuple):
    """A gradient as it was when the last block ended."""

    gradient: Tensor
    version: int
    probe: float
    norm: float


class GradientCheck:
    """The invariant over the blocks of one step."""

    def __init__(self, parameters: Mapping[str, Tensor], seed: int = 0):
        self._parameters = dict(parameters)
        generator = torch.Generator().manual_seed(seed)
        self._probes = {name: Probe(p, generator) for name, p in parameters.items()}
        self._block: dict[str, tuple[Tensor, Tensor]] = {}
        self._before: dict[str, tuple[float, float]] = {}
        self._fingerprints: dict[str, Fingerprint] = {}

    def add(self, name: str, factor: Factor) -> None:
        """Adds a factor's shares to the present block's sum."""
        products = self._probes[name].of_shares(factor)
        total, size = self._block.get(name, (products.new_zeros(()), products.new_zeros(())))
        self._block[name] = total + products.sum(), size + products.abs().sum()

    def discard_block(self) -> None:
        """Forgets the present block's sums."""
        self._block = {}

    def end_block(self, gradients: Mapping[str, Tensor | None], low_precision: bool) -> bool:
        """Compares sums with gradients; True if only this block's samples are in them.

        Gradients may have been zeroed since the last block: then earlier blocks of the step
        do not count any more.

        Raises:
            InvariantError: the shares do not sum to the gradient, by whichever reading.
        """
        held = {name: g for name, g in gradients.items() if g is not None}
        found = self._measure(held)
        sums = self._fetch_block()
        together = {
            name: (
                sums.get(name, (0.0, 0.0))[0] + before[0],
                sums.get(name, (0.0, 0.0))[1] + before[1],
            )
            for name, before in self._before.items()
        }
        together = {**sums, **together}
        wrong = self._disagreements(together, found, low_precision)
        alone = bool(wrong) and not self._disagreements(sums, found, low_precision)
        if wrong and not alone:
            self._raise(wrong, together, found)
        self._before, self._block = sums if alone else together, {}
        self._fingerprints = {
            name: Fingerprint(g, g._version, *found[name]) for name, g in held.items()
        }
        return alone

    def scale(self, name: str, gradient: Tensor) -> float | None:
        """K with gradient = k * (sum of shares), None where no such number exists.

        Raises:
            MisuseError: the gradient is not finite, or appeared after the last block.
        """
        mark = self._fingerprints.get(name)
        if mark is None:
            raise MisuseError(
                f"{name} got a gradient outside every attribution.batch(ids) block, so no sample "
                "accounts for it. Run every backward() of a scored step inside a block, or the "
                "whole step inside attribution.paused()."
            )
        if gradient is mark.gradient and gradient._version == mark.version:
            probe, norm = mark.probe, mark.norm
        else:
            probe, norm = self._measure({name: gradient})[name]
        if not torch.isfinite(torch.tensor([probe, norm])).all():
            raise MisuseError(
                f"The gradient of {name} is not finite in this step: no contribution can be "
                "computed. Nothing was changed; skip the step or lower the learning rate."
            )
        if mark.norm == 0:
            return 1.0 if norm == 0 else None
        k = norm / mark.norm
        informative = abs(mark.probe) > 1e-2 * mark.norm
        if informative and probe * mark.probe < 0:
            k = -k
        if abs(probe - k * mark.probe) > 1e-3 * (norm + abs(probe)):
            return None
        return k

    def next_step(self) -> None:
        """Starts the sums of a new step."""
        self._block, self._before, self._fingerprints = {}, {}, {}

    @property
    def norms(self) -> dict[str, float]:
        """Each gradient's norm when the last block ended."""
        return {name: mark.norm for name, mark in self._fingerprints.items()}

    def _measure(self, gradients: Mapping[str, Tensor]) -> dict[str, tuple[float, float]]:
        """(<r, gradient>, norm) of each, with one transfer from the device."""
        if not gradients:
            return {}
        pairs = [
            torch.stack(
                (
                    self._probes[name].of_gradient(g).double(),
                    torch.linalg.vector_norm(g.detach()).double(),
                )
            )
            for name, g in gradients.items()
        ]
        rows = torch.stack([pair.cpu() for pair in pairs]).tolist()
        return {name: (row[0], row[1]) for name, row in zip(gradients, rows, strict=True)}

    def _fetch_block(self) -> dict[str, tuple[float, float]]:
        if not self._block:
            return {}
        rows = torch.stack([torch.stack(pair).double().cpu() for pair in self._block.values()])
        return {
            name: (row[0], row[1]) for name, row in zip(self._block, rows.tolist(), strict=True)
        }

    def _disagreements(
        self,
        sums: Mapping[str, tuple[float, float]],
        found: Mapping[str, tuple[float, float]],
        low_precision: bool,
    ) -> list[str]:
        wrong = []
        whole = max((norm for _, norm in found.values()), default=0.0)
        for name, (total, size) in sums.items():
            probe, norm = found.get(name, (0.0, 0.0))
            p = self._parameters[name]
            # a gradient that is zero but for rounding (attention's key bias) is compared with
            # the largest one: its shares are rounding too
            noise = 100 * torch.finfo(p.dtype).eps * whole
            allowed = tolerance(p, low_precision) * (norm + size) + noise
            if abs(total - probe) > allowed:  # False for NaN: scale() names what is not finite
                wrong.append(name)
        return wrong

    def _raise(
        self,
        wrong: list[str],
        sums: Mapping[str, tuple[float, float]],
        found: Mapping[str, tuple[float, float]],
    ) -> None:
        name = wrong[0]
        probe, norm = found.get(name, (0.0, 0.0))
        raise InvariantError(
            f"The gradient shares of {name} do not sum to its gradient: along a random direction "
            f"the samples' shares give {sums[name][0]:.6g}, the gradient {probe:.6g} (norm "
            f"{norm:.3g}; {len(wrong)} parameters disagree). Likely reasons: a backward pass "
            "outside attribution.batch(ids) left its gradient there (call zero_grad before the "
            "block), a hook on the parameter changes its gradient, or a custom autograd function "
            "uses it where no operation can be seen."
        )
