"""Random state of the devices that a model lives on, as tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def _devices(model: nn.Module) -> list[int]:
    found = {p.device.index for p in model.parameters() if p.device.type == "cuda"}
    return sorted(i for i in found if i is not None)


def random_state(model: nn.Module) -> dict[str, Tensor]:
    """{'cpu': state, 'cuda:0': state, ...}."""
    states = {"cpu": torch.get_rng_state()}
    return states | {f"cuda:{i}": torch.cuda.get_rng_state(i) for i in _devices(model)}


def drawn_since(before: Mapping[str, Tensor], model: nn.Module) -> bool:
    """Whether random numbers were drawn."""
    now = random_state(model)
    return any(not torch.equal(now[device], state) for device, state in before.items())


def set_random_state(states: Mapping[str, Tensor]) -> None:
    """Puts the devices back to these states."""
    for device, state in states.items():
        if device == "cpu":
            torch.set_rng_state(state)
        else:
            torch.cuda.set_rng_state(state, device)


@contextmanager
def undisturbed_random(model: nn.Module) -> Iterator[None]:
    """Random state is afterwards what it was before."""
    before = random_state(model)
    try:
        yield
    finally:
        set_random_state(before)
