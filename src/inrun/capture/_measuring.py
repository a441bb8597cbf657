"""Gradients along their random directions, with their norms, as numbers on the host."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from inrun.capture._probe import Probes
from inrun.capture._reading import Reading
from inrun.capture._small import is_small, of_gradients
from inrun.capture._taken_down import Measured, Rows
from inrun.distributed import Processes, is_sharded, own_part, parts


class Measuring:
    """Takes gradients down now, and reads them later; of sharded parameters of all processes."""

    def __init__(self, parameters: Mapping[str, Tensor], probes: Probes, processes: Processes):
        self._parameters, self._probes, self._processes = dict(parameters), probes, processes

    @torch.no_grad()
    def measure(self, gradients: Mapping[str, Tensor]) -> Rows:
        """Probe and norm of each gradient; of sharded parameters this process's part."""
        own = {name: own_part(g) for name, g in gradients.items()}
        small = {name: g for name, g in own.items() if is_small(self._parameters[name])}
        groups = of_gradients(self._probes, small)
        large = [name for name in own if name not in small]
        if large:
            rows = torch.stack([self._probes[name].and_norm(own[name]) for name in large])
            groups.append((large, rows))
        return Rows.of(groups)

    def read(self, found: Rows) -> dict[str, Measured]:
        """The same as numbers, of the whole parameters."""
        whole = {name: self._parameters[name] for name in found.names}
        cut = {name: parts(p) for name, p in whole.items() if is_sharded(p)}
        if cut:
            (rows,) = found.reading.wait()
            rows = self._summed(rows, torch.tensor([cut.get(name, 0) for name in found.names]))
            found = Rows(found.names, Reading(rows))
        return {name: Measured(*row) for name, row in found.read().items()}

    def _summed(self, rows: Tensor, cut: Tensor) -> Tensor:
        """Parts' probes and norms as those of the whole, where a parameter is cut at all."""
        squared = torch.stack((rows[:, 0], rows[:, 1].square()), 1)
        whole = self._processes.mean(squared) * cut.unsqueeze(1)
        whole[:, 1] = whole[:, 1].sqrt()
        return torch.where((cut > 0).unsqueeze(1), whole, rows)
