"""Which parameter a tensor is that FSDP put in a parameter's place for a forward pass."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from inrun.capture._sources import Root
from inrun.distributed import is_sharded
from inrun.errors import NotSupportedError


class GatheredParameters:
    """Looks gathered copies up by the name under which the model holds them at that moment.

    A copy stays the same object from pass to pass, with its storage freed in between, so that it is
    looked up once. What it holds can be read only inside the forward and the backward pass.

    Args:
        model: with modules under `fully_shard`.
        trained: the sharded parameters by name.
    """

    def __init__(self, model: nn.Module, trained: Mapping[str, Tensor]):
        self._model, self._trained = model, set(trained)
        self._known: dict[int, Root] = {}

    def root_of(self, t: Tensor) -> Root | None:
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
