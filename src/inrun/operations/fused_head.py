"""Heads that are fused with their loss: `ChunkedLogProbFunction` of TRL, and Liger's cross-entropy.

Both are custom autograd functions that never have the logits of the whole batch. Their rules say
of which form the loss's gradient in the logits is (see `inrun.factors.FusedHead`); shares are
computed again from hidden states, tile by tile, as the functions do themselves.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from inrun.errors import NotSupportedError
from inrun.factors import Coefficients, Factor, FusedHead, Head, partition
from inrun.operations._call import Call, operation


@operation(
    "ChunkedLogProbFunction.apply",
    signature="hidden weight bias targets temperature chunk_size softcap logit_scale outputs",
    per_row=True,
)
def log_probabilities(call: Call, argument: str) -> Factor | None:
    """Log-probabilities of targets (N,), and entropies of the distributions (N,).

    With log p = y - log Z and H the entropy:  d log p_target / d y = 1_target - p,  and
    d H / d y = -p (log p + H). TRL computes in single precision whatever its arguments are.
    """
    if argument not in ("weight", "bias"):
        return None
    scale, cap = call["logit_scale"], call["softcap"]
    head = Head(
        call["weight"], call["bias"], scale=1.0 if scale is None else scale, softcap=cap,
        temperature=call["temperature"],
    )  # fmt: skip
    named = call["outputs"]
    with_entropy = named is None or "entropy" in named
    of_entropy = call.others[0] if with_entropy and call.others else None
    hidden, targets = call.rows(call["hidden"]), call.split(call["targets"]).flatten(1)
    log, mean = partition(head, hidden, torch.float32)
    g = call.split(call.gradient).flatten(1).to(log)
    if of_entropy is None:
        coefficients = Coefficients(-g, g)
    else:
        g_entropy = call.split(of_entropy).flatten(1).to(log)
        coefficients = Coefficients(-g - g_entropy * (log - mean), g, -g_entropy)
    return FusedHead(hidden, targets, log, coefficients, head, of_bias=argument == "bias")


def _check(arguments: Mapping[str, Any]) -> None:
    if arguments.get("use_token_scaling"):
        raise NotSupportedError(
            "Liger's fused linear cross-entropy with use_token_scaling=True multiplies each "
            "token's loss by its probability, and no rule knows the shares of that. Set "
            "use_token_scaling=False, or compute the loss from logits."
        )


@operation(
    "LigerFusedLinearCrossEntropyFunction.apply",
    signature="input weight target bias ce_weight ignore_index lse_square_scale label_smoothing "
    "reduction softcap return_z_loss accum_dtype use_token_scaling",
    check=_check,
    per_row=True,
)
def cross_entropy(call: Call, argument: str) -> Factor | None:
    """Cross-entropy with label smoothing e, class weights w and a penalty s (log Z)^2.

    In y:  (1 - e) w_target (p - 1_target) + e/V (sum(w) p - w) + 2 s log Z p, and of the mean the
    first two over the sum of the targets' weights, the last over the number of targets.
    """
    if argument not in ("weight", "bias"):
        return None
    w_V: Tensor | None = call["ce_weight"]
    head = Head(call["weight"], call["bias"], w_V, softcap=call["softcap"])
    hidden, targets = call.rows(call["input"]), call.split(call["target"]).flatten(1)
    dtype = torch.promote_types(hidden.dtype, torch.float32)
    log, _ = partition(head, hidden, dtype)
    ignored = -100 if call["ignore_index"] is None else call["ignore_index"]
    counts = (targets != ignored).to(dtype)
    targets = targets.masked_fill(targets == ignored, 0)
    mean = call["reduction"] in (None, "mean")
    own = counts if w_V is None else counts * w_V.to(dtype)[targets]
    upstream = call.gradient.to(dtype)
    g = counts * (upstream if upstream.ndim == 0 else call.split(upstream).flatten(1))
    g_ce = g / _summed(call, w_V) if mean else g
    V, smooth = len(head.weight), call["label_smoothing"] or 0.0
    hard = (1 - smooth) * g_ce * own
    all_weights = V if w_V is None else w_V.to(dtype).sum()
    softmax = hard + g_ce * (smooth / V * all_weights)
    penalty = call["lse_square_scale"] or 0.0
    if penalty:
        softmax = softmax + 2 * penalty * log * (g / _summed(call, None) if mean else g)
    coefficients = Coefficients(softmax, -hard, weights=-smooth / V * g_ce if smooth else None)
    return FusedHead(hidden, targets, log, coefficients, head, of_bias=argument == "bias")


def _summed(call: Call, w_V: Tensor | None) -> Tensor:
    """How much all targets of the batch that count weigh, whosever they are."""
    target = call["target"]
    there = target[target != (-100 if call["ignore_index"] is None else call["ignore_index"])]
    return torch.tensor(there.numel()) if w_V is None else w_V[there].sum()
