"""Heads fused with their loss, as cases: TRL's own function, and a stand-in of Liger's.

Liger's function needs Triton and is not among the tests' packages. The stand-in has its name, its
arguments and its way: gradients are made in the forward pass, a chunk of rows at a time, and
multiplied by what comes in the backward pass. `cross_entropy` says what it computes, from logits.
"""

import torch
import torch.nn.functional as F
from torch import nn

from tests.oracles.cases import Function
from tests.oracles.owner_cases import Owned, document, given_slots, packed_rows

WORDS, WIDTH, ROWS = 13, 4, 3
IGNORED = -100


def cross_entropy(x, weight, target, bias, w, smoothing, penalty, softcap):
    """The loss of each row; 0 where its target is ignored."""
    z = F.linear(x, weight, bias)
    y = softcap * torch.tanh(z / softcap) if softcap else z
    own = F.cross_entropy(
        y, target, w, ignore_index=IGNORED, reduction="none", label_smoothing=smoothing
    )
    return own + penalty * y.logsumexp(-1) ** 2 * (target != IGNORED)


class LigerFusedLinearCrossEntropyFunction(torch.autograd.Function):
    """Liger's signature up to `use_token_scaling`; no logits of more than three rows."""

    @staticmethod
    def forward(
        ctx, _input, weight, target, bias=None, ce_weight=None, ignore_index=IGNORED,
        lse_square_scale=0.0, label_smoothing=0.0, reduction="mean", softcap=None,
        return_z_loss=False, accum_dtype=None, use_token_scaling=False,
    ):  # fmt: skip
        assert ignore_index == IGNORED
        there = target != IGNORED
        w = torch.ones(len(weight), dtype=weight.dtype) if ce_weight is None else ce_weight
        divisor, count = (w[target[there]].sum(), there.sum()) if reduction == "mean" else (1, 1)
        grad_x, grad_w = torch.zeros_like(_input), torch.zeros_like(weight)
        grad_b, losses = torch.zeros(len(weight), dtype=weight.dtype), []
        for start in range(0, len(_input), ROWS):
            rows = slice(start, start + ROWS)
            x, t, y_rows = _input[rows], target[rows].clamp(min=0), torch.arange(len(_input[rows]))
            z = F.linear(x, weight, bias)
            tanh = torch.tanh(z / softcap) if softcap else None
            y = softcap * tanh if softcap else z
            log, p = y.logsumexp(-1, keepdim=True), y.softmax(-1)
            hard = (1 - label_smoothing) * w[t][:, None] * p
            hard[y_rows, t] -= (1 - label_smoothing) * w[t]
            soft = label_smoothing / len(weight) * (p * w.sum() - w)
            g = (hard + soft) / divisor + 2 * lse_square_scale * log * p / count
            g = g * (1 - tanh**2) if softcap else g
            g = g * there[rows, None]
            grad_x[rows] = g @ weight
            grad_w += g.T @ x
            grad_b += g.sum(0)
            own = (1 - label_smoothing) * w[t] * (log[:, 0] - y[y_rows, t])
            own = own + label_smoothing / len(weight) * (w * (log - y)).sum(-1)
            own = own / divisor + lse_square_scale * log[:, 0] ** 2 / count
            losses.append(own * there[rows])
        ctx.save_for_backward(grad_x, grad_w, grad_b)
        ctx.with_bias = bias is not None
        losses = torch.cat(losses)
        return losses if reduction == "none" else losses.sum(), None, None, None

    @staticmethod
    def backward(ctx, gradient, *_):
        assert not gradient.ndim  # Liger knows no gradient for each row either
        x, w, b = (t * gradient for t in ctx.saved_tensors)
        return x, w, None, b if ctx.with_bias else None, *[None] * 9


def model(bias=True):
    return lambda: Function(
        None, table=nn.Embedding(WORDS, WIDTH), a=nn.Linear(WIDTH, WIDTH),
        head=nn.Linear(WIDTH, WORDS, bias=bias),
    )  # fmt: skip


def tied():
    built = model(bias=False)()
    built.head.weight = built.table.weight
    return built


def rows(samples):
    return (torch.randint(WORDS, (samples, 6)),)


def labels_of(x, owner=None):
    """The next token, of which some do not count, nor do those of the next document."""
    out = x[:, 1:] % 4 == 0
    if owner is not None:
        out |= owner[:, 1:] != owner[:, :-1]
    return torch.where(out, IGNORED, x[:, 1:])


def states(m, x):
    return torch.tanh(m.a(m.table(x)))[:, :-1]


def trl(*, compact=False, entropy=True):
    """`ChunkedLogProbFunction` as TRL's heads call it, on each position or on those that count."""

    def run(m, x, owner=None):
        from trl.kernels import ChunkedLogProbFunction

        hidden, labels = states(m, x), labels_of(x, owner)
        there = labels != IGNORED
        flat = (hidden[there], labels[there]) if compact else (
            hidden.reshape(-1, WIDTH), labels.clamp(min=0).reshape(-1)
        )  # fmt: skip
        wanted = ("log_probs", "entropy", "is_top1") if entropy else ("log_probs",)
        found = ChunkedLogProbFunction.apply(
            flat[0], m.head.weight, m.head.bias, flat[1], 0.7, 5, 3.0 if entropy else None, 1.3,
            wanted,
        )  # fmt: skip
        out = [t for t in found[:2] if t is not None]
        spread = out if compact else [t.view(there.shape).masked_fill(~there, 0) for t in out]
        return [t.unsqueeze(-1) for t in spread]

    return run


def liger(reduction="sum", penalty=0.0, smoothing=0.0, softcap=None, weights=False):
    def run(m, x):
        labels = labels_of(x).reshape(-1)
        w = torch.linspace(0.5, 1.5, WORDS, dtype=m.head.weight.dtype) if weights else None
        loss = LigerFusedLinearCrossEntropyFunction.apply(
            states(m, x).reshape(-1, WIDTH), m.head.weight, labels, m.head.bias, w, IGNORED,
            penalty, smoothing, reduction, softcap,
        )[0]  # fmt: skip
        there = labels[labels != IGNORED]
        if reduction == "mean":  # back to a sum, which one sample alone has a part of
            loss = loss * (len(there) if w is None else w[there].sum())
        return loss

    return run


SINGLE = {"tolerance": 1e-3, "dtype": torch.float32}  # TRL's function computes in it

HEADS = [
    Owned("trl-head", model(), rows, trl(), **SINGLE),
    Owned("trl-head-compact", model(), rows, trl(compact=True), **SINGLE),
    Owned("trl-head-tied", tied, rows, trl(entropy=False), **SINGLE),
    Owned(
        "trl-head-packed", model(), packed_rows(vocabulary=WORDS), trl(), given=given_slots,
        alone=document, **SINGLE,
    ),
    Owned("liger-sum", model(), rows, liger()),
    Owned("liger-mean", tied, rows, liger("mean")),
    Owned("liger-penalty", model(), rows, liger("mean", penalty=0.1)),
    Owned("liger-smooth", model(), rows, liger("mean", smoothing=0.2, weights=True)),
    Owned("liger-capped", model(), rows, liger(softcap=3.0, smoothing=0.1)),
]  # fmt: skip
