"""The model called on the side, with arguments of any form, and left as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from inrun.utility import undisturbed

_BY_INDEX = frozenset(
    (
        "embedding", "__getitem__", "__setitem__", "index_select", "index_add", "index_copy",
        "index_fill", "index_put", "gather", "take", "take_along_dim", "scatter", "scatter_add",
        "scatter_reduce",
    )
)  # fmt: skip


@contextmanager
def replaying(model: nn.Module) -> Iterator[None]:
    """As `undisturbed`; also what modules keep in attributes of their own is as before."""
    kept = [(vars(module), _own_attributes(module)) for module in model.modules()]
    contents = [(v, list(v) if isinstance(v, list) else dict(v)) for _, own in kept
                for v in own.values() if type(v) in (list, dict)]  # fmt: skip
    with undisturbed(model):
        try:
            yield
        finally:
            for held, before in contents:
                held.clear()
                held.extend(before) if isinstance(held, list) else held.update(before)
            for attributes, own in kept:
                for name in [n for n in attributes if n not in own and not n.startswith("_")]:
                    del attributes[name]
                attributes.update(own)


def _own_attributes(module: nn.Module) -> dict[str, Any]:
    registries = ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set", "training")
    return {
        name: value
        for name, value in vars(module).items()
        if name not in registries and not name.endswith(("_hooks", "_hooks_with_kwargs"))
    }


class WithinBounds(TorchFunctionMode):
    """Reads indices before they are used: past the end they would end the process, on a GPU."""

    def __torch_function__(
        self, function: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        name = getattr(function, "__name__", "").removesuffix("_")
        if name in _BY_INDEX:
            _check_bounds(name, args)
        return function(*args, **(kwargs or {}))


def _check_bounds(name: str, args: Sequence[Any]) -> None:
    if name in ("__getitem__", "__setitem__", "index_put"):
        index = tuple(args[1]) if name == "index_put" else args[1]
        twin = torch.zeros(()).expand(args[0].shape)  # on the CPU, and one number long
        twin[mapped(index, Tensor.cpu)]
        return
    if name == "embedding":
        index, length = args[0], args[1].shape[0]
    elif name == "take":
        index, length = args[1], args[0].numel()
    else:
        index, length = args[2], args[0].shape[args[1]]
    if index.numel() and not -length <= int(index.min()) <= int(index.max()) < length:
        raise IndexError(f"{name} past the end")


def mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, Mapping):
        items = {key: mapped(item, change) for key, item in value.items()}
        return items if type(value) is dict else type(value)(items)  # type: ignore[call-arg]
    if isinstance(value, (list, tuple)):
        found = [mapped(item, change) for item in value]
        return type(value)(*found) if hasattr(value, "_fields") else type(value)(found)
    return value
