"""States of a training as named tensors, and which of a run's are kept.

A state is what one optimizer step changes, and nothing else:

    parameter/<name>        each parameter that the optimizer holds
    state/<name>/<key>      the optimizer's tensors for it, moments and step counts
    buffer/<name>           the model's buffers

Frozen parameters are not in it: no step changes them. Beside it stands the random state of the
devices that a model lives on, by device: {'cpu': state, 'cuda:0': state, ...}.

A run of T steps has the states 0 to T. Those at multiples of an interval are kept, with the last;
going backward, each segment between two kept states is played again from its first one. Letters: T
steps, n interval, C states that the budget has room for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from math import ceil, isqrt, sqrt
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from inrun.errors import MisuseError, NotSupportedError, StoreError
from inrun.optim import trained_parameters

Snapshot = dict[str, Tensor]


def names_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's parameters by their names in the model; a tied one has one name."""
    held = {id(p) for p in trained_parameters(optimizer)}
    named: dict[str, Tensor] = {n: p for n, p in model.named_parameters() if id(p) in held}
    if len(named) != len(held):
        raise MisuseError(
            f"The optimizer holds {len(held) - len(named)} parameters that are not the model's. A "
            "run is replayed from the model alone: put them into one module with it."
        )
    return named


def take(
    named: Mapping[str, Tensor], model: nn.Module, optimizer: torch.optim.Optimizer
) -> Snapshot:
    """A copy of the present state; `named` as from `names_of`."""
    snapshot: Snapshot = {}
    for name, p in named.items():
        snapshot[f"parameter/{name}"] = p.detach().clone(memory_format=torch.contiguous_format)
        for key, value in optimizer.state.get(p, {}).items():
            if isinstance(value, Tensor):
                kept = value.detach().clone(memory_format=torch.contiguous_format)
                snapshot[f"state/{name}/{key}"] = kept
            elif value is not None:
                raise NotSupportedError(
                    f"{type(optimizer).__name__} keeps {key!r} of {name} as a "
                    f"{type(value).__name__}; only tensors are recorded."
                )
    for name, buffer in model.named_buffers():
        snapshot[f"buffer/{name}"] = buffer.detach().clone()
    return snapshot


def place(
    snapshot: Mapping[str, Tensor],
    named: Mapping[str, Tensor],
    model: nn.Module,
    optimizer: Any,
    *,
    lend: bool = False,
) -> None:
    """Puts model and optimizer into that state; the snapshot stays what it is.

    With `lend` the optimizer reads the snapshot's own tensors, and must not step.
    """
    buffers = dict(model.named_buffers())
    missing = sorted(f"parameter/{n}" for n in named if f"parameter/{n}" not in snapshot)
    if missing:
        raise StoreError(
            f"The recorded state has no {missing[0]}: it is of another model or optimizer. Build "
            "both as they were when the run was recorded."
        )
    for p in named.values():
        optimizer.state.pop(p, None)
    with torch.no_grad():
        for key, value in snapshot.items():
            kind, _, name = key.partition("/")
            if kind == "parameter":
                _fitting(key, named.get(name), value).copy_(value)
            elif kind == "buffer":
                _fitting(key, buffers.get(name), value).copy_(value)
            else:
                name, _, entry = name.rpartition("/")
                p = named[name]
                optimizer.state[p][entry] = value.to(_home(value, p, optimizer), copy=not lend)


def _home(value: Tensor, p: Tensor, optimizer: torch.optim.Optimizer) -> torch.device:
    """Moments live with their parameter; step counts do so only where the optimizer wants it."""
    if value.shape == p.shape and p.dim():
        return p.device
    for group in optimizer.param_groups:
        if any(q is p for q in group["params"]):
            return p.device if group.get("capturable") or group.get("fused") else value.device
    return value.device


def _fitting(key: str, target: Tensor | None, value: Tensor) -> Tensor:
    if target is None or target.shape != value.shape:
        has = "no such tensor" if target is None else f"shape {tuple(target.shape)}"
        raise StoreError(
            f"The recorded state has {key} of shape {tuple(value.shape)}, the model has {has}. "
            "Build the model as it was when the run was recorded."
        )
    return target


def distance(a: Snapshot, b: Snapshot) -> float:
    total = sum(
        float((a[key].double() - b[key].double()).square().sum())
        for key in a
        if key.startswith("parameter/")
    )
    return sqrt(total)


def size_of(snapshot: Snapshot) -> int:
    return sum(t.numel() * t.element_size() for t in snapshot.values())


def write(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Saves tensors beside the path and renames: there whole or not at all."""
    beside = path.with_name(path.name + ".partial")
    try:
        save_file(dict(tensors), beside)
        beside.replace(path)
    except (OSError, SafetensorError) as error:
        with suppress(OSError):
            beside.unlink(missing_ok=True)
        raise StoreError(f"{path} could not be written ({error}).") from error


def read(path: Path) -> Snapshot:
    try:
        return load_file(path)
    except Exception as error:  # a broken file makes the parser raise errors of any kind
        raise StoreError(
            f"{path} is missing or torn ({error}). A replay starts from it: record the run again."
        ) from error


def _devices(model: nn.Module) -> list[int]:
    found = {p.device.index for p in model.parameters() if p.device.type == "cuda"}
    return sorted(i for i in found if i is not None)


def random_state(model: nn.Module) -> dict[str, Tensor]:
    """Of the CPU and of the model's own devices."""
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


def interval_for(steps: int, capacity: int) -> int:
    """The interval for a run whose length is known.

    Every state where they all fit; every sqrt(T)-th where those fit (more would only save memory
    in the replay, which holds at most one segment); else as many as fit.

    Args:
        steps: T.
        capacity: C, at least 2.

    Example:
        >>> [interval_for(100, capacity) for capacity in (200, 50, 5)]
        [1, 10, 25]
    """
    if steps + 1 <= capacity:
        return 1
    root = max(1, isqrt(steps - 1) + 1)
    if ceil(steps / root) + 1 <= capacity:
        return root
    return ceil(steps / max(1, capacity - 1))


def kept_states(steps: int, capacity: int) -> int:
    """How many states a run of a known length keeps, the last one among them.

    Example:
        >>> [kept_states(100, capacity) for capacity in (200, 50, 5)]
        [101, 11, 5]
    """
    return ceil(steps / interval_for(steps, max(2, capacity))) + 1


class Schedule:
    """Says which state to keep next, and which kept ones to give up, as training goes.

    Without a known length every state is kept until the budget is full; then the interval doubles
    and every second one goes.
    """

    def __init__(self, capacity: int, steps: int | None = None):
        self.capacity = max(2, capacity)
        self.interval = 1 if steps is None else interval_for(steps, self.capacity)
        self.kept: list[int] = []

    def due(self, state: int) -> bool:
        """Whether the state after this many steps is to be kept."""
        return state % self.interval == 0

    def keep(self, state: int) -> list[int]:
        """Notes a kept state; returns the states that must go to make room for a last one."""
        self.kept.append(state)
        gone: list[int] = []
        while len(self.kept) >= self.capacity:
            self.interval *= 2
            gone += [s for s in self.kept if s % self.interval]
            self.kept = [s for s in self.kept if s % self.interval == 0]
        return gone


def stops(first: int, last: int, copies: int) -> list[int]:
    """States to hold on the way from `first` to `last`, at most `copies`, `first` among them.

    Example:
        >>> stops(0, 6, 8), stops(0, 6, 3)
        ([0, 1, 2, 3, 4, 5], [0, 2, 4])
    """
    return list(range(first, last, ceil((last - first) / copies)))
