"""Builds the capture of an optimizer's parameters, in the way that was asked for."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from inrun.attribution._scorer import Scorer
from inrun.capture import Capture, Hold, Stream
from inrun.distributed import Processes
from inrun.errors import MisuseError
from inrun.factors import Factor
from inrun.optim import Together


def build_capture(
    kind: type[Hold] | type[Stream],
    model: nn.Module,
    optimizers: Together,
    scorer: Scorer,
    processes: Processes | None = None,
) -> Capture:
    """A capture of the parameters that the optimizers train now.

    Raises:
        MisuseError: the optimizer holds none of the model's parameters.
    """
    capture = kind(model, _named(model, optimizers), processes)
    if isinstance(capture, Stream):
        if capture.processes.size > 1:
            capture.processes.apart()  # made here, where all processes are

        def contract(name: str, factors: Sequence[Factor]) -> list[Tensor]:
            return scorer.stream_contraction(capture, name, factors)

        capture.contract = contract
    return capture


def _named(model: nn.Module, optimizers: Together) -> dict[str, Tensor]:
    """The optimizer's trainable parameters, under the names that the model gives them."""
    names = {id(p): name for name, p in model.named_parameters()}
    trained = {
        names.get(id(p), f"param_groups[{g}].params[{i}]"): p
        for g, group in enumerate(optimizers.groups)
        for i, p in enumerate(group["params"])
        if p.requires_grad and p.numel()
    }
    if not set(trained) & set(names.values()):
        raise MisuseError(
            "The optimizer holds none of the model's trainable parameters, so its steps say "
            "nothing about this model. Build it from model.parameters(), after moving the model "
            "to its device."
        )
    return trained
