"""Gains, biases, scales, shifts, position tables: parameters that meet activations entry by entry.

For y = x * p the output gradient times x, summed over every axis along which p was broadcast, is
p's share; for y = x + p it is the summed output gradient.

Normalizations are y = gain * x_hat + bias, with x_hat the input normalized within the sample. The
share of the gain is the sum over positions of b * x_hat; x_hat is computed again, without gain and
bias, from the input that the operation saw. Of batch normalization in training mode x_hat is
normalized with the statistics of the whole batch, which belong to the step.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from inrun.factors import Dense, Factor
from inrun.operations._call import Call, Slots, operation, over_rows

PIECE = 262_144  # elements that are normalized at a time


def _unbroadcast(call: Call, products: Tensor, parameter: Tensor) -> Factor | None:
    """Sums products (of the output's shape) to (B, *shape of the parameter), sample by sample."""
    shape = list(parameter.shape)
    if products.shape != call.gradient.shape:
        products = products.expand(call.gradient.shape)
    axes = call.layout.axes if isinstance(call.layout, Slots) else (call.layout.axis,)
    for axis in sorted((a for a in axes if a is not None), reverse=True):
        own = axis - (products.ndim - parameter.ndim)
        if own >= 0 and shape.pop(own) != 1:
            return None  # the parameter itself was spread over samples before
    one = call.layout.axis is None
    split = products.unsqueeze(0) if one else call.summed(products)
    while split.ndim - 1 > len(shape):
        split = split.sum(1)
    for position, size in enumerate(shape, start=1):
        if size == 1 and split.shape[position] != 1:
            split = split.sum(position, keepdim=True)
    return Dense(
        split if split.shape[1:] == parameter.shape else split.reshape(-1, *parameter.shape)
    )


@operation("mul", "multiply", "__mul__", "__rmul__", signature="input other")
def mul(call: Call, argument: str) -> Factor | None:
    """Input * other."""
    other = call["other" if argument == "input" else "input"]
    return _unbroadcast(call, call.gradient * other, call[argument])


@operation("add", "__add__", "__radd__", signature="input other")
def add(call: Call, argument: str) -> Factor | None:
    """Input + alpha * other."""
    alpha = call["alpha"] if argument == "other" and call["alpha"] is not None else 1
    return _unbroadcast(
        call, call.gradient * alpha if alpha != 1 else call.gradient, call[argument]
    )


@operation("sub", "subtract", "__sub__", signature="input other")
def sub(call: Call, argument: str) -> Factor | None:
    """Input - other; the scaled form goes to the fallback."""
    if call["alpha"] not in (None, 1):
        return None
    return _unbroadcast(
        call, -call.gradient if argument == "other" else call.gradient, call[argument]
    )


@operation("div", "divide", "true_divide", "__truediv__", signature="input other")
def div(call: Call, argument: str) -> Factor | None:
    """Input / other, for the numerator's share; the denominator's goes to the fallback."""
    if argument != "input" or call["rounding_mode"] is not None:
        return None
    return _unbroadcast(call, call.gradient / call["other"], call["input"])


def _over_positions(call: Call, products: Tensor, parameter: Tensor) -> Factor:
    """Shares of a parameter that lies over the last axes of the output."""
    if parameter.ndim == 1:
        return Dense(over_rows(call.rows(products.reshape(call.gradient.shape))))
    split = call.split(products.reshape(call.gradient.shape))
    leading = tuple(range(1, split.ndim - parameter.ndim))
    return Dense(split.sum(leading))


def _gain(
    call: Call, parameter: Tensor, normalized: Callable[[Tensor], Tensor],
    met: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> Factor:  # fmt: skip
    """Shares of a gain over the last axes; of one axis on a CPU a few samples at a time.

    Two arrays as large as the input, for a moment, would cost more than what is done with them.
    `met`: the sum of products in one, where there is a faster way.
    """
    gradient = call.gradient
    if parameter.ndim != 1 or gradient.device.type != "cpu":
        return _over_positions(call, gradient * normalized(call["input"]), parameter)
    rows_BTN, b_BTN = call.rows(call["input"]), call.rows(gradient)
    block = max(1, PIECE // max(1, rows_BTN[:1].numel()))
    pairs = zip(rows_BTN.split(block), b_BTN.split(block), strict=True)
    met = met or (lambda rows, b: over_rows(b * normalized(rows)))
    return Dense(torch.cat([met(rows, b) for rows, b in pairs]))


def _centred(rows_BTN: Tensor, b_BTN: Tensor, eps: float) -> Tensor:
    """Sum over positions of b * x_hat, (B, N), x_hat a layer norm's; each row's scale comes last.

    The library's normalization makes both statistics in one slow pass over each row.
    """
    centred_BTN = rows_BTN - rows_BTN.mean(2, keepdim=True)
    variance_BT = torch.linalg.vector_norm(centred_BTN, dim=2).square_() / rows_BTN.shape[2]
    return torch.bmm((variance_BT + eps).rsqrt().unsqueeze(1), centred_BTN.mul_(b_BTN)).squeeze(1)


def _by_channel(call: Call, argument: str, normalized: Callable[[], Tensor]) -> Factor | None:
    """Shares of a gain or a bias that lies over axis 1 of the output (N, C, *space)."""
    if call.layout.axis not in (None, 0) or argument not in ("weight", "bias"):
        return None
    products = call.gradient if argument == "bias" else call.gradient * normalized()
    split = call.images(products, batched=True)  # (B, S, C, *space)
    return Dense(split.flatten(3).sum((1, 3)) if split.ndim > 3 else split.sum(1))


@operation("layer_norm", signature="input normalized_shape weight bias eps")
def layer_norm(call: Call, argument: str) -> Factor | None:
    """torch.nn.functional.layer_norm."""
    if argument == "bias":
        return _over_positions(call, call.gradient, call["bias"])
    if argument != "weight":
        return None
    shape, eps = call["normalized_shape"], _eps(call, 1e-5)
    kinds = {call["input"].dtype, call.gradient.dtype}
    met = partial(_centred, eps=eps) if kinds in ({torch.float32}, {torch.float64}) else None
    return _gain(call, call["weight"], lambda x: F.layer_norm(x, shape, eps=eps), met)


@operation("rms_norm", signature="input normalized_shape weight eps")
def rms_norm(call: Call, argument: str) -> Factor | None:
    """torch.nn.functional.rms_norm; norms written out in a model's own code arrive as `mul`."""
    if argument != "weight":
        return None
    shape, eps = call["normalized_shape"], call["eps"]
    return _gain(call, call["weight"], lambda x: F.rms_norm(x, shape, eps=eps))


@operation("group_norm", signature="input num_groups weight bias eps")
def group_norm(call: Call, argument: str) -> Factor | None:
    """torch.nn.functional.group_norm."""
    return _by_channel(
        call,
        argument,
        lambda: F.group_norm(call["input"], call["num_groups"], eps=_eps(call, 1e-5)),
    )


@operation(
    "batch_norm",
    signature="input running_mean running_var weight bias training momentum eps",
)
def batch_norm(call: Call, argument: str) -> Factor | None:
    """torch.nn.functional.batch_norm, by the batch's statistics or by running ones."""
    by_batch = bool(call["training"])

    def normalized() -> Tensor:
        mean, var = (None, None) if by_batch else (call["running_mean"], call["running_var"])
        return F.batch_norm(call["input"], mean, var, training=by_batch, eps=_eps(call, 1e-5))

    return _by_channel(call, argument, normalized)


def _eps(call: Call, default: float) -> float:
    return default if call["eps"] is None else float(call["eps"])
