"""Exact Shapley values of one step: every coalition a real optimizer step on deep copies, float64.

Fixed state: moments, step count, learning rate, decay and the clip coefficient are those of the
full batch's step for every coalition. In the *given history* game only the samples are players and
the past always acts. In the *shared history* game the past (momentum and decay) is one more
player: without it the step's displacement lacks what the step does with no gradient at all.
"""

import copy
from itertools import combinations
from math import comb

import torch
from torch import nn

from inrun.optim import copies


def stepped(model, optimizer, gradients):
    """The weights after the real optimizer's step with these gradients, from deep copies.

    Of the model only its parameters are copied: modules have no part in a step.
    """
    named = dict(model.named_parameters())
    copied, (optimizer,) = copies(nn.ParameterList(named.values()), [optimizer])
    stepping = dict(zip(named, copied, strict=True))
    for name, p in stepping.items():
        p.grad = None if gradients.get(name) is None else gradients[name].clone()
    optimizer.step()
    return {name: p.detach() for name, p in stepping.items()}


def utility_table(model, optimizer, shares, loss):
    """{coalition (tuple of players): V(w) - V(w')}, in which the last player is the past."""
    n = len(next(iter(shares.values())))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    judge = copy.deepcopy(model)
    judged = dict(judge.named_parameters())

    def value(weights):
        with torch.no_grad():
            for name, p in judged.items():
                p.copy_(weights[name])
            return float(loss(judge))

    nothing = {name: torch.zeros_like(s[0]) for name, s in shares.items()}
    idle = stepped(model, optimizer, nothing)
    start, table = value(before), {}
    for size in range(n + 1):
        for coalition in combinations(range(n), size):
            gradient = {name: s[list(coalition)].sum(0) for name, s in shares.items()}
            after = stepped(model, optimizer, gradient)
            table[(*coalition, n)] = start - value(after)
            without = {k: before[k] + after[k] - idle[k] for k in after}
            table[coalition] = start - value(without)
    return table


def shapley(table, players):
    """Shapley values by the definition: the mean marginal over coalitions of each size."""
    values = torch.zeros(players, dtype=torch.float64)
    for i in range(players):
        rest = [j for j in range(players) if j != i]
        for size in range(players):
            for coalition in combinations(rest, size):
                joined = tuple(sorted((*coalition, i)))
                marginal = table[joined] - table[coalition]
                values[i] += marginal / (players * comb(players - 1, size))
    return values


def values_of(table, history):
    """Shapley values of the samples, (n,) float64; in 'given' the past is in every coalition."""
    n = max(map(max, filter(None, table)))
    if history == "given":
        table = {c: table[(*c, n)] for c in table if n not in c}
    return shapley(table, n + (history == "shared"))[:n]


def step_values(model, optimizer, shares, loss, history):
    """Shapley values of the samples in the step's game, (n,) float64."""
    return values_of(utility_table(model, optimizer, shares, loss), history)
