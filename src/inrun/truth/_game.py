"""One optimizer step as a cooperative game, played out: every coalition a real step.

U(S) = V(w) - V(w'(S)) under the fixed-state assumption: moments, step count, learning rate, decay
and the clip coefficient are those of the full batch's step for every coalition S. In the *given
history* game the samples are the players and momentum and decay always act. In the *shared history*
game the past is one more player: without it, what the step does with no gradient at all is taken
off its displacement.

Letters: n players that are samples or groups of samples, P players in all (n, or n + 1 with the
past last), K targets. A coalition is the integer whose bit i says whether player i is in it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import comb
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from inrun.errors import MisuseError
from inrun.optim import copies, state_copy
from inrun.utility import Utility, losses_of

History = Literal["shared", "given"]
MOST_PLAYERS = 15


class Sampled(NamedTuple):
    """Shapley values from random permutations, (n, K), and their standard errors, (n, K)."""

    values: np.ndarray
    standard_errors: np.ndarray


def sample_shares(
    model: nn.Module, term: Callable[[int], Tensor], samples: int
) -> dict[str, Tensor]:
    """Each sample's gradient share by plain autograd, one backward pass per sample.

    Args:
        model: the model that is trained.
        term: `term(i)` is sample i's own term in the batch's loss, as a scalar with a graph: for a
            mean over the batch its loss divided by the batch size.
        samples: how many.

    Returns:
        By parameter name, (samples, *shape).
    """
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    shares = {
        name: torch.zeros(samples, *p.shape, dtype=p.dtype, device=p.device)
        for name, p in parameters.items()
    }
    for i in range(samples):
        found = torch.autograd.grad(term(i), list(parameters.values()), allow_unused=True)
        for share, gradient in zip(shares.values(), found, strict=True):
            if gradient is not None:
                share[i] = gradient
    return shares


class StepGame:
    """The coming step of a model and its optimizer, as a game. Both are copied and left alone.

    Args:
        model: at w_t.
        optimizer: with its state before the step, or several that step together.
        shares: by parameter name, (samples, *shape), summing to the gradient that the optimizer
            would consume (so scaled by the clip coefficient, if there is clipping).
        utility: the validation loss.
        history: 'shared' (momentum and decay are one more player) or 'given' (they always act).
        fixed: gradients by parameter name that are in every coalition because no player owns them.
        groups: one label per sample, for players that are groups of samples (sources, classes); the
            players then come in the order of their labels' first appearance.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer],
        shares: Mapping[str, Tensor],
        utility: Utility,
        *,
        history: History = "shared",
        fixed: Mapping[str, Tensor] | None = None,
        groups: Sequence[object] | None = None,
    ):
        self._shares, self._fixed = _grouped(shares, groups), dict(fixed or {})
        self._utility, self._history = utility, history
        several = [optimizer] if isinstance(optimizer, torch.optim.Optimizer) else optimizer
        self._model, self._optimizers = copies(model, several)
        self._named = dict(self._model.named_parameters())
        self._before = {name: p.detach().clone() for name, p in self._named.items()}
        self._states = [state_copy(one.state_dict()) for one in self._optimizers]
        self._start = losses_of(utility, self._model).numpy()
        self.players = len(next(iter(self._shares.values())))
        self._idle = self._displacement([])
        self._known: dict[int, np.ndarray] = {}

    @property
    def all_players(self) -> int:
        """P, the samples or groups, and the past where it plays."""
        return self.players + (self._history == "shared")

    def utility(self, coalition: int) -> np.ndarray:
        """U of a coalition, (K,) float64; remembered."""
        if coalition not in self._known:
            members = [i for i in range(self.players) if coalition >> i & 1]
            displacement = self._displacement(members)
            if self._history == "shared" and not coalition >> self.players & 1:
                displacement = {n: d - self._idle[n] for n, d in displacement.items()}
            self._place(displacement)
            self._known[coalition] = self._start - losses_of(self._utility, self._model).numpy()
        return self._known[coalition]

    def _displacement(self, members: Sequence[int]) -> dict[str, Tensor]:
        """W - w' of a real step with these players' shares, from the step's own state."""
        self._place({})
        for optimizer, state in zip(self._optimizers, self._states, strict=True):
            # load_state_dict keeps tensors that fit as they are; the step would overwrite ours
            optimizer.load_state_dict(state_copy(state))
        for name, p in self._named.items():
            p.grad = self._gradient(name, members, p)
        for optimizer in self._optimizers:
            optimizer.step()
        return {name: self._before[name] - p.detach() for name, p in self._named.items()}

    def _gradient(self, name: str, members: Sequence[int], p: Tensor) -> Tensor | None:
        """What the optimizer gets for one parameter; None where it would get nothing at all."""
        share, fixed = self._shares.get(name), self._fixed.get(name)
        own = None if share is None else share[list(members)].sum(0)
        both = [g for g in (own, fixed) if g is not None]
        return torch.stack(both).sum(0).to(p.dtype) if both else None

    def _place(self, displacement: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, p in self._named.items():
                moved = displacement.get(name)
                before = self._before[name]
                p.copy_(before if moved is None else before - moved)

    def exact(self) -> np.ndarray:
        """Shapley values of the samples or groups by enumerating all coalitions, (n, K).

        Raises:
            MisuseError: too many players to enumerate.
        """
        return shapley_values(self.table())[: self.players]

    def table(self) -> np.ndarray:
        """U of every coalition, (2^P, K). In 'shared' its upper half is the 'given' game's table.

        Raises:
            MisuseError: too many players to enumerate.
        """
        if self.all_players > MOST_PLAYERS:
            raise MisuseError(
                f"{self.all_players} players have {2**self.all_players:,} coalitions, each a step "
                f"and a validation pass. At most {MOST_PLAYERS} are enumerated: choose fewer "
                "samples, group them, or sample permutations."
            )
        return np.stack([self.utility(c) for c in range(2**self.all_players)])

    def permutations(self, count: int, seed: int = 0) -> Sampled:
        """Shapley values from random orders, each with its reverse (which halves the noise).

        Args:
            count: pairs of orders, at least 2.
            seed: of the orders.
        """
        rng = np.random.default_rng(seed)
        pairs = []
        for _ in range(count):
            order = rng.permutation(self.all_players)
            pairs.append((self._marginals(order) + self._marginals(order[::-1])) / 2)
        each = np.stack(pairs)[:, : self.players]
        return Sampled(each.mean(0), each.std(0, ddof=1) / np.sqrt(count))

    def _marginals(self, order: np.ndarray) -> np.ndarray:
        """Each player's marginal when players join in this order, (P, K)."""
        found = np.zeros((self.all_players, len(self._start)))
        coalition, before = 0, self.utility(0)
        for player in order:
            coalition |= 1 << int(player)
            after = self.utility(coalition)
            found[player], before = after - before, after
        return found


def _grouped(shares: Mapping[str, Tensor], groups: Sequence[object] | None) -> dict[str, Tensor]:
    if groups is None:
        return dict(shares)
    labels = list(dict.fromkeys(groups))
    rows = {label: [i for i, g in enumerate(groups) if g == label] for label in labels}
    return {
        name: torch.stack([share[rows[label]].sum(0) for label in labels])
        for name, share in shares.items()
    }


def shapley_values(table: np.ndarray) -> np.ndarray:
    """Shapley values from the utility of every coalition.

    Args:
        table: (2^P,) or (2^P, K), indexed by the coalition's integer.

    Returns:
        (P,) or (P, K).

    Example:
        >>> import numpy as np
        >>> table = np.array([0.0, 1.0, 2.0, 5.0])  # {}, {0}, {1}, {0, 1}
        >>> shapley_values(table)
        array([2., 3.])
    """
    players = len(table).bit_length() - 1
    coalitions = np.arange(len(table))
    sizes = np.array([int(c).bit_count() for c in coalitions])
    weights = np.array([1.0 / (players * comb(players - 1, size)) for size in range(players)])
    values = []
    for i in range(players):
        without = coalitions[coalitions >> i & 1 == 0]
        marginal = table[without | 1 << i] - table[without]
        values.append(np.tensordot(weights[sizes[without]], marginal, axes=1))
    return np.array(values)


class Agreement(NamedTuple):
    """Pearson's and Spearman's R, the ratio of the sums, and the whole vector's relative error.

    Correlations say little where the true values hardly differ, and are NaN where they do not
    differ at all; the relative error then tells.
    """

    pearson: float
    spearman: float
    sum_ratio: float
    relative_error: float


def agreement(values: np.ndarray, truth: np.ndarray) -> Agreement:
    """Compares values with the truth, both (n,).

    Example:
        >>> import numpy as np
        >>> agreement(np.array([2.0, 4.0, 6.0]), np.array([1.0, 2.0, 3.0]))
        Agreement(pearson=1.0, spearman=1.0, sum_ratio=2.0, relative_error=1.0)
    """
    from scipy.stats import rankdata  # a second to import, and attaching needs none of it

    a, b = np.asarray(values, dtype=np.float64), np.asarray(truth, dtype=np.float64)
    total, size = float(b.sum()), float(np.linalg.norm(b))
    return Agreement(
        _correlation(a, b),
        _correlation(rankdata(a), rankdata(b)),
        float(a.sum()) / total if total else float("nan"),
        float(np.linalg.norm(a - b)) / size if size else float("nan"),
    )


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    da, db = a - a.mean(), b - b.mean()
    spread = float(np.sqrt((da @ da) * (db @ db)))
    return float(da @ db) / spread if spread > 0 else float("nan")
