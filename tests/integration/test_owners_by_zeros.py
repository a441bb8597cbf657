"""Samples that zeros keep apart in a product: routing masks, graphs in blocks, bags of tokens."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import inrun
from tests.integration.test_owners_found import B, check, double, rows  # noqa: F401

TOLD = (inrun.errors.InRunError, inrun.errors.InRunWarning)


def lengths():
    n = torch.randint(1, 7, (60,))
    n[:B] = torch.tensor([2, 5, 1, 6, 3, 4])
    return n


class Dispatched(nn.Module):
    """Tokens go to experts and come back by products with one-hot masks."""

    def __init__(self):
        super().__init__()
        self.first, self.router = nn.Linear(6, 6), nn.Linear(6, 3)
        self.experts, self.head = nn.Parameter(torch.randn(3, 6, 8)), nn.Linear(8, 3)

    def forward(self, x):
        tokens = torch.tanh(self.first(x)).flatten(0, 1)
        weight, expert = self.router(tokens).softmax(-1).max(-1)
        chosen = F.one_hot(expert, 3).to(tokens)
        place = (chosen.cumsum(0) * chosen).sum(1).long() - 1
        dispatch = F.one_hot(place, len(tokens)).to(tokens)[:, None] * chosen[:, :, None]
        taken = torch.einsum("nec,nd->ecd", dispatch, tokens)
        made = torch.tanh(torch.bmm(taken, self.experts))
        combine = dispatch * weight[:, None, None]
        back = torch.einsum("nec,ecd->nd", combine, made)
        return self.head(back.view(len(x), -1, 8).mean(1))


def test_tokens_that_a_one_hot_mask_sends_to_experts_stay_their_samples():
    check(Dispatched(), *rows())


class Graphs(nn.Module):
    """Nodes of all graphs in one tensor; a matrix in blocks passes messages, another one pools."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x, n):
        nodes = torch.cat([row[:count] for row, count in zip(x, n, strict=True)])
        edges = torch.block_diag(*[torch.ones(c, c) / c for c in n.tolist()])
        pool = torch.block_diag(*[torch.ones(1, c) / c for c in n.tolist()])
        hidden = torch.tanh(self.second(edges @ torch.tanh(self.first(nodes))))
        return self.head(pool @ hidden)


def test_graphs_in_one_block_diagonal_matrix_do_not_meet():
    x, y = rows()
    check(Graphs(), x, lengths(), y)


class Leaking(Graphs):
    """One edge joins the first two graphs."""

    def forward(self, x, n):
        nodes = torch.cat([row[:count] for row, count in zip(x, n, strict=True)])
        edges = torch.block_diag(*[torch.ones(c, c) / c for c in n.tolist()])
        edges[0, int(n[0])] = 1.0
        pool = torch.block_diag(*[torch.ones(1, c) / c for c in n.tolist()])
        return self.head(pool @ torch.tanh(self.second(edges @ torch.tanh(self.first(nodes)))))


def test_an_edge_between_two_graphs_is_told():
    x, y = rows()
    with pytest.raises(TOLD, match="matmul"):
        check(Leaking(), x, lengths(), y)


class Closed(nn.Module):
    """A learned matrix that begins at zero lets gradients pass from every row to every other."""

    def __init__(self):
        super().__init__()
        self.first, self.head = nn.Linear(6, 8), nn.Linear(8, 3)
        self.between = nn.Parameter(torch.zeros(B, B))

    def forward(self, x):
        hidden = torch.tanh(self.first(x.mean(1)))
        return self.head(hidden + self.between @ hidden if len(x) == B else hidden)


def test_zeros_that_are_learned_keep_nobody_apart():
    x, y = rows()
    with pytest.raises(TOLD, match=r"Samples interact|matmul"):
        check(Closed(), x, y)


class Bags(nn.Module):
    """Offsets that the model makes of all lengths do not say whose a bag is; its tokens do."""

    def __init__(self, mode):
        super().__init__()
        self.table, self.head = nn.EmbeddingBag(12, 6, mode=mode), nn.Linear(6, 3)

    def forward(self, tokens, n):
        flat = torch.cat([row[:count] for row, count in zip(tokens, n, strict=True)])
        return self.head(torch.tanh(self.table(flat, F.pad(n.cumsum(0), (1, 0))[:-1])))


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_bags_of_tokens_that_the_model_put_together_are_their_tokens_samples(mode):
    check(Bags(mode), torch.randint(12, (60, 6)), lengths(), torch.randint(3, (60,)))
