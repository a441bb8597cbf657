"""Places filled one by one from a single look: what the chosen do to each other is told ahead.

Filling places one by one needs each candidate's value anew after every choice. With c_i candidate
i's share, f_i its part of the block's mean, J the step's derivative in its gradient and H the
curvature of the validation loss where the step lands, choosing S in place of the average changes
the gradient by sum_j d_j c_j, and so the loss's derivative along i by

    sum_j M_ij d_j,   M_ij = (J c_i)^T H (J c_j)

For H stands the candidates' own gradients' second moment, sum_n c_n c_n^T / f_n, so that M takes
the shares' inner products through the step, and no further validation pass:

    M = A^T diag(1 / f) A,   A_nj = c_n^T J c_j

The bend of the optimizer's own step is not in it, for which `STRENGTH` multiplies it
(docs/evidence/selection.md says how it was chosen). Letters: N candidates, k places.
"""

from __future__ import annotations

import torch
from torch import Tensor

from inrun.uses._candidates import Candidates, Gradient
from inrun.uses._choosers import Chosen, Look

STRENGTH = 10.0


class ByOneLook:
    """Greedily by K-step value, one place after the other, with one look at the step."""

    def __init__(self, look: Look):
        self._look = look

    def choose(self, candidates: Candidates, places: int, step: int) -> Chosen:
        """See `Chooser.choose`; scores are the first look's values."""
        anticipated, p = self._look.at(candidates, [], places, step)
        slopes, rows = None, []
        for shares in candidates.built():
            slopes = met(candidates, shares, p)[0] if slopes is None else slopes
            rows.append(met(candidates, shares, anticipated.carried_back(shares)))
        assert slopes is not None
        A = torch.cat(rows)
        return _filled(candidates, places, slopes, STRENGTH * coupled(A, candidates.shares_of_mean))


def met(candidates: Candidates, shares: Gradient, directions: Gradient) -> Tensor:
    """Directions, (K, *shape) per parameter, with all candidates' shares: (K, N) float64.

    `shares` are those that are built at the moment.
    """
    if len(next(iter(shares.values()))) < len(candidates):
        return candidates.contracted(directions).T
    parts = [p.flatten(1) @ shares[name].flatten(1).T for name, p in directions.items()]
    return torch.stack(parts).sum(0).double().cpu()


def coupled(A: Tensor, shares_of_mean: Tensor | None) -> Tensor:
    """M, (N, N): how a candidate's weight changes another's slope.

    Where the loss is a sum (no f), the validation loss is taken to be like its mean.
    """
    f = A.new_full((len(A),), float(len(A))) if shares_of_mean is None else shares_of_mean
    scaled = A * torch.where(f > 0, f.rsqrt(), 0.0)[:, None]
    return scaled.T @ scaled


def _filled(candidates: Candidates, places: int, slopes: Tensor, coupling: Tensor) -> Chosen:
    """Takes the best candidate for each place, with those chosen so far in the step."""
    rows: list[int] = []
    opening = candidates.filled([], places)
    first = candidates.worth(slopes, opening)
    for _ in range(places):
        filled = candidates.filled(rows, places)
        moved = slopes + coupling @ (filled.weights - opening.weights)
        left = candidates.worth(moved, filled)
        left[rows] = -torch.inf
        rows.append(int(left.argmax()))
    return Chosen(sorted(rows), first)
