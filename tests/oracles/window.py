"""Values of a scoring window, slow and obviously right: dense shares, dense directions, float64.

One window of n steps. Per parameter: the opening and the closing direction per unit of learning
rate, Q = gV * slope of the null update (K, *shape), and each step's gradient shares, scaled as the
step consumed them (N, *shape). The value of step j's sample b is

    sum over parameters of lr_j * <(1 - x) P Q_open + x P Q_close / captured, share_b>

with x = (j + 1/2) / n, P the projection on the bases of Q_open and captured = |P Q_close| /
|Q_close|; where that is below 0.7 the second end is left out.
"""

import numpy as np
import torch


def sgd_direction(g_K, state, group, square):
    """Of `torch.optim.SGD` after its first step: the buffer takes (1 - dampening) of a gradient."""
    gain = 1 - group["dampening"] if group["momentum"] else 1.0
    if group["momentum"] and group["nesterov"]:
        gain = 1 + group["momentum"] * gain
    return g_K * gain


def adam_direction(g_K, state, group, square):
    """Of Adam and AdamW: v as if the last gradient's mean square came in once more."""
    b1, b2 = group["betas"]
    step = int(state["step"]) + 1
    v = (b2 * state["exp_avg_sq"] + (1 - b2) * square) / (1 - b2**step)
    return g_K * (1 - b1) / (1 - b1**step) / (v.sqrt() + group["eps"])


def bases(Q_MN, start_Nr, rank, place=(1, 0)):
    """(L, R) by one step of a power iteration; from random numbers where none is known by two.

    `place`: of how many matrices it is which, of one target.
    """
    rank = min(rank, *Q_MN.shape)
    if start_Nr is None:
        generator = torch.Generator().manual_seed(0)
        shape = place[0], Q_MN.shape[1], rank
        random = torch.randn(shape, generator=generator, dtype=Q_MN.dtype)[place[1]]
        start_Nr = Q_MN.T @ torch.linalg.qr(Q_MN @ random).Q
    left = torch.linalg.qr(Q_MN @ start_Nr).Q
    return left, torch.linalg.qr(Q_MN.T @ left).Q


def window_values(opening, closing, shares, rates, rank, starts, complete=(), stacks=()):
    """([(N, K) per step], the next window's starts by parameter).

    Args:
        opening: by parameter, (K, *shape).
        closing: the same at the window's end.
        shares: per step, by parameter (N, *shape).
        rates: per step, its learning rate.
        rank: of the bases.
        starts: by parameter and target, the last window's right basis.
        complete: parameters whose bases hold everything, since each part of them has its own.
        stacks: parameters that are stacks of matrices, each with bases of its own.
    """
    found, following = [0.0] * len(shares), {}
    for name, Q_K in opening.items():
        pairs = []
        for k, (first, last) in enumerate(zip(Q_K, closing[name], strict=True)):
            if first.ndim > 1 and first.numel() > 1024 and name not in complete:
                shape = first.shape
                # one matrix, or each of a stack
                each = [(Q if name in stacks else Q[None]).flatten(2) for Q in (first, last)]
                parts = []
                for e, (a, b) in enumerate(zip(*each, strict=True)):
                    left, right = bases(a, starts.get((name, k, e)), rank, (len(each[0]), e))
                    following[name, k, e] = right
                    parts.append([left @ (left.T @ Q @ right) @ right.T for Q in (a, b)])
                first, kept = (torch.stack(some) for some in zip(*parts, strict=True))
                last = each[1]
                captured = kept.norm() / last.norm()
                last = first if captured < 0.7 else kept / captured
                # the opening end as it is, where the closing one is not to be trusted
                first, last = first.reshape(shape), last.reshape(shape)
            pairs.append((first, last))
        for j, (step, rate) in enumerate(zip(shares, rates, strict=True)):
            x = (j + 0.5) / len(shares)
            rows = [
                [float(rate * (((1 - x) * a + x * b) * share).sum()) for a, b in pairs]
                for share in step[name]
            ]
            found[j] = found[j] + np.array(rows)
    return found, following
