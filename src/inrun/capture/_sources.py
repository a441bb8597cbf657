"""What a tensor owes to parameters: a parameter itself, or something computed from parameters only.

A model does not always hand a parameter to an operation as it is: it slices it (attention's packed
projections), looks rows up that are the same for all samples (position tables), normalizes it
(weight norm). Such a tensor is *derived*; when it meets activations its shares are known, and they
are carried back to the parameters, through the transpose of the map where it is linear.

`GatheredParameters` knows which parameter a tensor is that FSDP puts in its place for a forward
pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from inrun.distributed import is_sharded
from inrun.errors import NotSupportedError
from inrun.factors import Dense, Derived, Factor
from inrun.operations import RandomState, outputs_of, repeated, replace

_CASTS = {"to", "float", "half", "bfloat16", "double", "type", "type_as"}
_LINEAR = _CASTS | {
    "__getitem__", "chunk", "contiguous", "embedding", "expand", "expand_as", "flatten",
    "index_select", "movedim", "narrow", "permute", "repeat", "reshape", "select", "split",
    "squeeze", "t", "transpose", "unbind", "unflatten", "unsqueeze", "view",
}  # fmt: skip
_LINEAR_GETTERS = {torch.Tensor.T.__get__, torch.Tensor.mT.__get__}  # type: ignore[attr-defined]


class Root:
    """A parameter; `scored` if the attributed optimizer trains it."""

    def __init__(self, name: str, parameter: Tensor, *, scored: bool = True):
        self.name, self.parameter, self.scored = name, parameter, scored

    @property
    def roots(self) -> tuple[Root, ...]:
        return (self,)

    def pull_back(self, factor: Factor) -> Iterator[tuple[str, Factor]]:
        yield self.name, factor


class DerivedTensor:
    """A tensor computed from parameters alone, and how."""

    def __init__(
        self,
        function: Callable[..., Any],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        sources: Mapping[int, Source],
        output: int,
        random: RandomState | None = None,
    ):
        self._function, self._args, self._kwargs = function, args, kwargs
        self._sources, self._output, self._random = sources, output, random
        self.roots: tuple[Root, ...] = tuple(
            {root.name: root for source in sources.values() for root in source.roots}.values()
        )

    @property
    def is_linear(self) -> bool:
        """Whether this is a linear map of one parameter."""
        named = getattr(self._function, "__name__", "") in _LINEAR
        own = named or self._function in _LINEAR_GETTERS
        (source, *others) = self._sources.values()
        return own and not others and (isinstance(source, Root) or source.is_linear)

    def evaluate(self, values: Mapping[str, Tensor], *, cast: bool) -> Tensor:
        """The tensor with other values in the parameters' places; dtype casts are optional."""

        def value_of(source: Source) -> Tensor:
            if isinstance(source, Root):
                return values[source.name]
            return source.evaluate(values, cast=cast)

        if not cast and getattr(self._function, "__name__", "") in _CASTS:
            return value_of(next(iter(self._sources.values())))

        def swap(t: Tensor) -> Tensor:
            source = self._sources.get(id(t))
            return t if source is None else value_of(source)

        args, kwargs = replace(list(self._args), swap), replace(dict(self._kwargs), swap)
        with repeated(self._random):  # a mask that is drawn on a weight is drawn once
            return outputs_of(self._function(*args, **kwargs))[self._output]

    def pull_back(self, factor: Factor) -> Iterator[tuple[str, Factor]]:
        """(parameter's name, its shares) for each parameter behind this tensor."""
        if self.is_linear:
            (root,) = self.roots
            yield (
                root.name,
                Derived(
                    root.parameter.shape,
                    lambda Q: self.evaluate({root.name: Q}, cast=False),
                    factor,
                ),
            )
            return
        leaves = [root.parameter.detach().clone().requires_grad_() for root in self.roots]
        names = [root.name for root in self.roots]
        with torch.enable_grad():
            tensor = self.evaluate(dict(zip(names, leaves, strict=True)), cast=True)
        shares_B = factor.materialize(tensor.dtype)
        pulled = [torch.autograd.grad(tensor, leaves, s, retain_graph=True) for s in shares_B]
        for position, (name, leaf) in enumerate(zip(names, leaves, strict=True)):
            rows = [shares[position] for shares in pulled]
            yield name, Dense(torch.stack(rows) if rows else leaf.new_zeros(0, *leaf.shape))


Source = Root | DerivedTensor


def scored_roots(sources: Iterable[Source]) -> set[Root]:
    """The parameters behind these that the attributed optimizer trains."""
    return {root for source in sources for root in source.roots if root.scored}


class GatheredParameters:
    """Looks gathered copies up by the name under which the model holds them at that moment.

    A copy stays the same object from pass to pass, with its storage freed in between, so that it is
    looked up once. What it holds can be read only inside the forward and the backward pass.
    """

    def __init__(self, model: nn.Module, trained: Mapping[str, Tensor]):
        self._model, self._trained = model, set(trained)
        self._known: dict[int, Root] = {}

    def learn(
        self, given: Sequence[Tensor], sources: dict[int, Source], constants: set[int]
    ) -> None:
        """Takes note of parameters that were put in sharded ones' places."""
        for t in given:
            if isinstance(t, nn.Parameter) and id(t) not in sources and id(t) not in constants:
                root = self._root_of(t)
                if root is not None and (root.scored or t.requires_grad):
                    sources[id(t)] = root
                elif root is not None:
                    constants.add(id(t))

    def _root_of(self, t: Tensor) -> Root | None:
        """The parameter; None while the model does not hold `t`, as when FSDP is still making it.

        Raises:
            NotSupportedError: the gathered copy is itself spread over processes.
        """
        if id(t) not in self._known:
            name = next((name for name, p in self._model.named_parameters() if p is t), None)
            if name is None:
                return None
            if is_sharded(t):
                raise NotSupportedError(
                    f"{name} is spread over processes while the model runs (tensor parallelism). "
                    "Shard by data alone."
                )
            self._known[id(t)] = Root(name, t, scored=name in self._trained)
        return self._known[id(t)]
