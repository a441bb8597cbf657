"""One optimizer step as a cooperative game, played out: every coalition a real step.

U(S) = V(w) - V(w'(S)) under the fixed-state assumption: moments, step count, learning rate, decay
and the clip coefficient are those of the full batch's step for every coalition S. In the *given
history* game the samples are the players and momentum and decay always act. In the *shared history*
game the past is one more player: without it, what the step does with no gradient at all is taken
off its displacement.

Letters: n samples, P players (n, or n + 1 with the past last), K targets. A coalition is the
integer whose bit i says whether player i is in it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from math import comb
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from inrun.errors import MisuseError
from inrun.utility import Utility, losses_of

History = Literal["shared", "given"]
MOST_PLAYERS = 15


def sample_shares(
    model: nn.Module, term: Callable[[int], Tensor], samples: int
) -> dict[str, Tensor]:
    """Each sample's gradient share by plain autograd, one backward pass a sample.

    Args:
        model: the model that is trained.
        term: `term(i)` is sample i's own term in the batch's loss, as a scalar with a graph: for a
            mean over the batch its loss divided by the batch size.
        samples: n.

    Returns:
        By parameter name, (n, *shape).
    """
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    shares = {
        name: torch.zeros(samples, *p.shape, dtype=p.dtype, device=p.device)
        for name, p in parameters.items()
    }
    for i in range(samples):
        found = torch.autograd.grad(term(i), list(parameters.values()), allow_unused=True)
        for (_, share), gradient in zip(shares.items(), found, strict=True):
            if gradient is not None:
                share[i] = gradient
    return shares


def exact_shapley(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    shares: Mapping[str, Tensor],
    utility: Utility,
    *,
    history: History = "shared",
) -> np.ndarray:
    """Shapley values of the coming step, by enumerating all coalitions of its samples.

    The model and the optimizer are copied and left as they are.

    Args:
        model: at w_t.
        optimizer: with its state before the step.
        shares: by parameter name, (n, *shape), summing to the gradient that the optimizer would
            consume (so scaled by the clip coefficient, if there is clipping).
        utility: the validation loss.
        history: 'shared' (momentum and decay are one more player) or 'given' (they always act).

    Returns:
        (n, K) float64: one column a target, in units of the validation loss.

    Raises:
        MisuseError: too many samples to enumerate.
    """
    samples = len(next(iter(shares.values())))
    players = samples + (history == "shared")
    if players > MOST_PLAYERS:
        raise MisuseError(
            f"{players} players have {2**players:,} coalitions, each a step and a validation pass. "
            f"At most {MOST_PLAYERS} are enumerated: choose fewer samples."
        )
    table = coalition_table(model, optimizer, shares, utility, history)
    return shapley_values(table)[:samples]


def coalition_table(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    shares: Mapping[str, Tensor],
    utility: Utility,
    history: History,
) -> np.ndarray:
    """U of every coalition, (2^P, K) float64, indexed by the coalition's integer."""
    samples = len(next(iter(shares.values())))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    start = losses_of(utility, model).numpy()
    judge = copy.deepcopy(model)
    held = dict(judge.named_parameters())

    def utility_of(weights: Mapping[str, Tensor]) -> np.ndarray:
        with torch.no_grad():
            for name, p in held.items():
                p.copy_(weights[name])
        gain: np.ndarray = start - losses_of(utility, judge).numpy()
        return gain

    idle = _after_step(
        model, optimizer, {name: torch.zeros_like(s[0]) for name, s in shares.items()}
    )
    table = np.zeros((2 ** (samples + (history == "shared")), len(utility.targets)))
    for coalition in range(2**samples):
        members = [i for i in range(samples) if coalition >> i & 1]
        gradients = {name: s[members].sum(0) for name, s in shares.items()}
        after = _after_step(model, optimizer, gradients)
        if history == "given":
            table[coalition] = utility_of(after)
        else:
            table[coalition | 1 << samples] = utility_of(after)
            without = {name: before[name] + after[name] - idle[name] for name in before}
            table[coalition] = utility_of(without)
    return table


def _after_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, gradients: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The weights after the real optimizer's step with these gradients, taken by copies."""
    stepping, stepper = copy.deepcopy((model, optimizer))
    for name, p in stepping.named_parameters():
        p.grad = gradients[name].clone() if name in gradients else None
    stepper.step()
    return {name: p.detach() for name, p in stepping.named_parameters()}


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
