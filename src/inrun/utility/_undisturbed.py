"""Runs the model on the side and leaves no trace in its training.

Everything that a forward and a backward pass can change is put back: train/eval flags module by
module, random state of every device in use, buffers (running statistics, caches), and hooks that
the user hung on parameters stay silent. Hooks on modules run, since a model may need them to give
its output. Gradients come from `torch.autograd.grad`, which does not touch `.grad`; sharded
parameters, which it does not reach, are put in parts again.

Graphs that are differentiated twice, where torch's second derivative is missing or wrong:

- Fused attention has no second derivative: its plain kernel runs instead.
- `torch._weight_norm` has one that is wrong where it is taken along one axis (`gradgradcheck` fails
  in torch 2.13): its formula v * g / |v| runs instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils import checkpoint

from inrun.distributed import is_sharded, own_part, sharded_afterwards


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Evaluation mode with gradients on, everything as before on leaving."""
    flags = [(module, module.training) for module in model.modules()]
    with ExitStack() as stack:
        stack.enter_context(restored(model))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(swapped(checkpoint, "CheckpointFunction", _WithoutReentry))
        layers = [m for m in model.modules() if _has_checkpoint(m)]
        stack.enter_context(sharded_afterwards(model))
        try:
            model.eval()
            for layer in layers:
                stack.enter_context(_checkpoint_in_evaluation(layer))
            yield
        finally:
            for module, training in flags:
                module.training = training


def own_tensors(model: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """A model's parameters and buffers, each once: of thousands, names are what takes time."""
    modules = list(model.modules())
    parameters, buffers = (
        {id(t): t for table in tables for t in table.values() if t is not None}
        for tables in ([m._parameters for m in modules], [m._buffers for m in modules])
    )
    return list(parameters.values()), list(buffers.values())


@contextmanager
def restored(model: nn.Module) -> Iterator[None]:
    """Random state and buffers as before on leaving; hooks on parameters are silent inside."""
    parameters, held = own_tensors(model)
    buffers = [(buffer, buffer.clone()) for buffer in held]
    devices = sorted({p.device.index for p in parameters if p.is_cuda})
    with torch.random.fork_rng(devices=devices), _hooks_silent(parameters):
        try:
            yield
        finally:
            with torch.no_grad():
                for buffer, before in buffers:
                    _restore(buffer, before)


def _restore(buffer: Tensor, before: Tensor) -> None:
    """Puts a buffer's numbers back; version counters do not tell of all edits.

    On a GPU without asking whether they were changed, which would wait for it, and past the
    counter, as an edit that changes nothing.
    """
    if buffer.device.type == "cuda" and buffer.is_contiguous():
        buffer.data.copy_(before)
    elif not torch.equal(buffer, before):
        buffer.copy_(before)


class _WithoutReentry:
    """Stands in for the re-entrant checkpoint: the other kind, on the same function.

    `torch.autograd.grad` cannot pass a re-entrant one, nor can its layers be seen.
    """

    @staticmethod
    def apply(function: Callable[..., Any], preserve: bool, *args: Any) -> Any:
        return checkpoint.checkpoint(
            function, *args, use_reentrant=False, preserve_rng_state=preserve
        )


@contextmanager
def swapped(holder: Any, name: str, value: Any) -> Iterator[Any]:
    """An attribute has another value inside; gives the one that it had, and has again."""
    before = getattr(holder, name)
    setattr(holder, name, value)
    try:
        yield before
    finally:
        setattr(holder, name, before)


def _has_checkpoint(module: nn.Module) -> bool:
    """Whether transformers has this layer recompute its activations, in training mode alone."""
    on = vars(module).get("gradient_checkpointing") and "_gradient_checkpointing_func" in vars(
        module
    )
    return bool(on) and any(
        c.__name__ == "GradientCheckpointingLayer" for c in type(module).__mro__
    )


@contextmanager
def _checkpoint_in_evaluation(layer: nn.Module) -> Iterator[None]:
    """It does in evaluation mode too, or a validation pass would take more memory than training.

    What asks for training mode is outside of what is recomputed, which runs in evaluation mode.
    """
    checkpointed: Any = layer._gradient_checkpointing_func

    def func(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        def evaluated(*given: Any, **named: Any) -> Any:
            with swapped(layer, "training", False):
                return function(*given, **named)

        return checkpointed(evaluated, *args, **kwargs)

    vars(layer)["_gradient_checkpointing_func"], layer.training = func, True
    try:
        yield
    finally:
        vars(layer)["_gradient_checkpointing_func"] = checkpointed


@contextmanager
def _hooks_silent(parameters: Sequence[Tensor]) -> Iterator[None]:
    """Empties the hook tables of parameters: a backward pass would call what hangs there."""
    hung = [(p._backward_hooks, p._post_accumulate_grad_hooks) for p in parameters]
    tables: list[Any] = [table for both in hung for table in both if table]
    kept = [dict(table) for table in tables]
    for table in tables:
        table.clear()
    try:
        yield
    finally:
        for table, hooks in zip(tables, kept, strict=True):
            table.update(hooks)


@contextmanager
def displaced(displacements: Mapping[Tensor, Tensor | float]) -> Iterator[None]:
    """Parameters moved by -d while inside; afterwards the very same storage as before.

    Sharded ones are moved in place: FSDP gathers from the storage that it knows.
    """
    before = {p: p.data for p in displacements if not is_sharded(p)}
    own = {p: own_part(p) for p in displacements if is_sharded(p)}
    kept = {p: part.clone() for p, part in own.items()}
    try:
        with torch.no_grad():
            for p, d in displacements.items():
                if p in own:
                    own[p].sub_(d)
                else:
                    p.data = p.data - d
        yield
    finally:
        for p, data in before.items():
            p.data = data
        for p, part in own.items():
            part.copy_(kept[p])


Call = Callable[[Callable[..., Any], Sequence[Any], Mapping[str, Any]], Any]


class EachCall(TorchFunctionMode):
    """While it is on, `call(function, args, kwargs)` is made in place of every torch function."""

    def __init__(self, call: Call):
        super().__init__()
        self._call = call

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """What `call` returns."""
        return self._call(func, args, kwargs or {})


@contextmanager
def differentiable_twice() -> Iterator[None]:
    """Every operation with a right second derivative; values and first derivatives as ever."""
    with sdpa_kernel(SDPBackend.MATH), EachCall(_with_formulas):
        yield


def _with_formulas(func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    return (_weight_norm if func is torch._weight_norm else func)(*args, **kwargs)


def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    return v * (g / torch.norm_except_dim(v, 2, dim))
