"""What of the model is watched: a capture, anew when parameters are added, frozen or thawed."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from torch import Tensor, nn

from inrun.attribution._advice import Advice
from inrun.capture import Capture, are_here, self_test
from inrun.distributed import Processes, agreed, meeting
from inrun.errors import MisuseError
from inrun.optim import Together
from inrun.utility import Utility


class Captures:
    """Holds the present one.

    `here`: whether no device is waited for to read what blocks leave. `sums`: whether the self-test
    compares sums of shares.
    """

    def __init__(
        self,
        kind: type[Capture],
        model: nn.Module,
        optimizers: Together,
        utility: Utility,
        processes: Processes,
        advice: Advice,
        *,
        sums: bool,
    ):
        self._kind, self._model, self._optimizers = kind, model, optimizers
        self._utility, self._processes, self._advice = utility, processes, advice
        self._sums = sums
        self.now = self._made()
        self.here = are_here(self.now.trained.values())

    def refresh(self) -> None:
        """Takes note of parameters that were added, frozen or thawed; windows of momentum go on."""
        present = {id(p) for p in self._optimizers.parameters() if p.requires_grad}
        if present != {id(p) for p in self.now.trained.values()}:
            self.now = self._made()
            self.here = are_here(self.now.trained.values())

    def _made(self) -> Capture:
        capture = self._kind(self._model, self._named(), self._processes)
        if capture.contracts_early and self._processes.size > 1:
            self._processes.apart()  # made here, where all processes are
        with meeting(self._model, self._processes):  # passes of a sharded one call the others
            agreed(self._processes, partial(self._try_out, capture))
        return capture

    def _try_out(self, capture: Capture) -> None:
        """Calls the user's loss on a few rows: whatever is wrong with it shows here first."""
        self_test(capture, self._model, self._utility, sums=self._sums)
        if self._sums:
            self._advice.of_random_loss(self._model, self._utility, capture.called)

    def _named(self) -> dict[str, Tensor]:
        """The optimizers' trainable parameters, under the names that the model gives them."""
        names = {id(p): name for name, p in self._model.named_parameters()}
        trained = {
            names.get(id(p), f"param_groups[{g}].params[{i}]"): p
            for g, group in enumerate(self._optimizers.groups)
            for i, p in enumerate(group["params"])
            if p.requires_grad and p.numel()
        }
        if not set(trained) & set(names.values()):
            raise MisuseError(
                "The optimizer holds none of the model's trainable parameters, so its steps say "
                "nothing about this model. Build it from model.parameters(), after moving the "
                "model to its device."
            )
        return trained


class Before:
    """What `.grad` was when it was looked at: a backward pass adds in place."""

    def __init__(self, parameters: Mapping[str, Tensor]):
        self._parameters = dict(parameters)
        self._there = {n: p.grad for n, p in parameters.items() if p.grad is not None}
        self._versions = {n: g._version for n, g in self._there.items()}
        self._before = {n: g.detach().clone() for n, g in self._there.items()}

    def added(self) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for name, p in self._parameters.items():
            now, before = p.grad, self._before.get(name)
            same = now is self._there.get(name)
            if now is not None and not (same and now._version == self._versions[name]):
                found[name] = now.detach().clone() if before is None else now.detach() - before
        return found
