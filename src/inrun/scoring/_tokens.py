"""Values per token: what each term of a sample's loss did, adding up to the sample's value.

The value is <Q, share>, and a language model's share is the sum of the gradients of its tokens'
losses, so token t's part is <Q, gradient of its loss at w_t>. All of them come from one forward and
a double backward pass at the weights before the step: put a weight omega = 1 on each token's term,
s = <Q, grad_w L(w, omega)>; then ds/domega is every token's value. That knows no layers, so it
holds for any architecture.

Letters: B samples, T tokens of the longest, K targets, N samples of the step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from inrun.capture import Capture
from inrun.errors import InvariantError, MisuseError
from inrun.ledger import TokenFolder
from inrun.owners import IdReader, ownership
from inrun.scoring._scorer import Scorer
from inrun.utility import differentiable_twice, undisturbed

TokenLosses = Callable[[nn.Module, Any], Tensor]
CLOSE = 1e-2  # of the step's largest value: how far a sample's tokens may be from their sum


@dataclass(frozen=True)
class _Pass:
    """One forward pass of a step, to be done again."""

    ids: list[Any]
    batch: Any
    tokens: Sequence[Sequence[str]]
    share: float
    owners: np.ndarray | None
    modes: dict[nn.Module, bool]
    random: Tensor
    random_cuda: list[Tensor]


def require_whole_directions(scorer: Scorer, capture: Capture, *, window: bool) -> None:
    """Refuses settings under which a value is not one direction's product with a share."""
    exact = scorer.contraction.exact
    if capture.contracts_early or not exact or not scorer.one_direction:
        raise MisuseError(
            "Values per token need each sample's value to be one direction's product with its "
            "share, exactly. Attach with capture='hold', contraction='dense' and "
            "smoothed_steps=0, and not with estimator='path-smoothed'."
        )
    if window:
        raise MisuseError(
            "Values per token are those of a step alone, and momentum_window adds what momentum "
            "did later. Attach with momentum_window=0."
        )


class Tokens:
    """Built by `Attribution.per_token`; see there."""

    def __init__(
        self,
        model: nn.Module,
        weights: Sequence[float],
        trained: Callable[[], Mapping[str, Tensor]],
        pending: Callable[[], int],
        token_losses: TokenLosses,
        folder: TokenFolder | None,
    ):
        self._model, self._trained = model, trained
        self._pending, self._ids = pending, IdReader()
        self._weights, self._losses, self._folder = np.asarray(weights), token_losses, folder
        self._passes: list[_Pass] = []
        self._before: dict[str, Tensor] = {}
        self._directions: dict[str, Tensor] = {}
        self.latest: list[dict[str, Any]] = []

    @contextmanager
    def batch(
        self,
        ids: Iterable[Any],
        batch: Any,
        tokens: Sequence[Sequence[str]],
        share: float = 1.0,
        *,
        rows: Any = None,
        slots: Any = None,
    ) -> Iterator[None]:
        """Put round the same forward and backward pass as `attribution.batch`, inside of it.

        Args:
            ids: the same as there.
            batch: what `token_losses` takes.
            tokens: each sample's tokens as text, in the order of its terms.
            share: what the loop multiplies the pass's loss with, as accumulation does.
            rows: where a sample has several rows of terms, the place of each row's sample in ids.
            slots: where rows of terms hold several samples, the same for each term, -1 for none.

        Raises:
            MisuseError: places out of range, or for each of several tensors.
        """
        names = self._ids.read(ids)
        owned = ownership(len(names), rows, slots)
        if owned.tensors is not None:
            raise MisuseError(
                "rows= is a mapping of tensors here, but token_losses has one kind of rows: give "
                "the places of the rows that its terms lie in."
            )
        places = owned.rows if owned.slots is None else owned.slots
        owners = None if places is None else places.numpy()
        self._keep_pending()
        if not self._passes:
            self._before = {name: p.detach().clone() for name, p in self._trained().items()}
        modes = {module: module.training for module in self._model.modules()}
        random = torch.get_rng_state()
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
        yield
        self._passes.append(_Pass(names, batch, tokens, share, owners, modes, random, cuda))

    def _keep_pending(self) -> None:
        """Forgets passes whose gradients were zeroed, or whose step was skipped or not scored."""
        count = self._pending()
        self._passes = self._passes[-count:] if count else []

    def flush(self) -> None:
        """Writes to the store what is still waiting."""
        if self._folder is not None:
            self._folder.flush()

    def state_dict(self) -> dict[str, int]:
        """For a training checkpoint: how much is stored."""
        self.flush()
        return {} if self._folder is None else self._folder.state()

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Goes on from a checkpoint; what was stored after it is removed."""
        if self._folder is not None:
            self._folder.restore(state)

    def direction(self, name: str, directions_K: Tensor) -> None:
        """See `DirectionWatcher.direction`: the weighted total alone is kept."""
        weights = torch.as_tensor(
            self._weights, dtype=directions_K.dtype, device=directions_K.device
        )
        self._directions[name] = torch.tensordot(weights, directions_K, dims=1)

    def scored(self, step: int, weight: float, values_NK: np.ndarray) -> None:
        """See `DirectionWatcher.scored`.

        Raises:
            InvariantError: tokens do not add up to the samples' values.
            MisuseError: a pass of the step was not wrapped.
        """
        self._keep_pending()
        passes, self._passes = self._passes, []
        directions, self._directions = self._directions, {}
        values = values_NK @ self._weights
        if sum(len(p.ids) for p in passes) != len(values):
            raise MisuseError(
                "Values per token need tokens.batch(ids, batch, tokens) inside every "
                "attribution.batch(ids) block of a step."
            )
        begin, rows = 0, []
        with self._weights_before():
            for one in passes:
                found = _by_sample(self._values(one, directions), one)
                self._check(found, values[begin : begin + len(one.ids)], values)
                begin += len(one.ids)
                rows += [
                    {
                        "sample_id": i,
                        "tokens": list(words),
                        "values": (weight * row[: len(words)]).tolist(),
                    }
                    for i, words, row in zip(one.ids, one.tokens, found, strict=True)
                ]
        self.latest = rows
        if self._folder is not None:
            self._folder.add(step, rows)

    @contextmanager
    def _weights_before(self) -> Iterator[None]:
        """The weights of the step's beginning, in the parameters themselves."""
        trained = self._trained()
        after = {name: p.data for name, p in trained.items()}
        try:
            for name, p in trained.items():
                p.data = self._before[name]
            yield
        finally:
            for name, p in trained.items():
                p.data = after[name]
            self._before = {}

    def _values(self, one: _Pass, directions: Mapping[str, Tensor]) -> np.ndarray:
        """(B, T), float64."""
        trained = self._trained()
        with undisturbed(self._model), differentiable_twice():
            for module, training in one.modes.items():
                module.training = training
            torch.set_rng_state(one.random)
            if one.random_cuda:
                torch.cuda.set_rng_state_all(one.random_cuda)
            terms_BT = self._losses(self._model, one.batch) * one.share
            omega_BT = torch.ones_like(terms_BT, requires_grad=True)
            names = [name for name in directions if name in trained]
            gradients = torch.autograd.grad(
                (terms_BT * omega_BT).sum(), [trained[name] for name in names],
                create_graph=True, allow_unused=True,
            )  # fmt: skip
            along = [
                (gradient.to(directions[name].dtype) * directions[name]).sum()
                for name, gradient in zip(names, gradients, strict=True)
                if gradient is not None
            ]
            (found_BT,) = torch.autograd.grad(torch.stack(along).sum(), omega_BT)
        return found_BT.detach().double().cpu().numpy()

    @staticmethod
    def _check(found: Sequence[np.ndarray], values: np.ndarray, step: np.ndarray) -> None:
        sums = np.array([row.sum() for row in found])
        off = np.abs(sums - values).max(initial=0.0)
        size = np.abs(step).max(initial=0.0)
        if off > CLOSE * size:
            raise InvariantError(
                f"Tokens' values add up to something else than the sample's: off by {off:.3g}, and "
                f"the step's largest value is {size:.3g}. token_losses must give the very terms "
                "whose sum the loop calls backward() on (times share), and the pass must be "
                "repeatable: dropout inside a fused attention kernel is not."
            )


def _by_sample(found_RT: np.ndarray, one: _Pass) -> Sequence[np.ndarray]:
    """Each sample's terms in their order, from rows that may hold several or a part of one."""
    if one.owners is None:
        return list(found_RT)
    owners = one.owners
    if owners.ndim == 1 and len(owners) == len(found_RT) and found_RT.ndim == 2:
        owners = np.repeat(owners[:, None], found_RT.shape[1], 1)
    if owners.size != found_RT.size:
        raise MisuseError(
            f"token_losses gives terms of shape {found_RT.shape}, and rows= or slots= of "
            f"tokens.batch has shape {one.owners.shape}: one place per row, or per term, is needed."
        )
    flat, places = found_RT.reshape(-1), owners.reshape(-1)
    return [flat[places == b] for b in range(len(one.ids))]
