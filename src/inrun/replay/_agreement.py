"""Does a replay do what the run did? If not, why.

Checked against the record: the gradient itself at the first step, the gradient's length at every
step, the parameters at every kept state. A replay goes from step to step by the optimizer alone, so
while recording, each step's opening weights and moments are held against the last one's closing
ones: weights that were clipped, averaged or reset in between are states that it never comes to.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from inrun.errors import InvariantError, MisuseError
from inrun.optim import trained_parameters
from inrun.replay import _snapshot
from inrun.replay._folder import Step
from inrun.replay._replica import Replica, clipping

Marks = dict[str, tuple[object, ...]]
"""By what is marked: its place and a sum of its bits."""


def tolerance(replica: Replica) -> float:
    """Relative difference that rounding may make over a segment, for what computes in it."""
    return 1e-7 if replica.double else 5e-3


def check_first_step(
    replica: Replica, step: Step, snapshot: _snapshot.Snapshot, live: Mapping[str, Tensor]
) -> None:
    """Holds `losses` and `fetch` against the gradient that the loop itself computed."""
    replica.put(snapshot)
    replica.set_groups(step)
    norm = replica.backward(step)
    wanted, found = _flat(live) / (step.clip or 1.0), _flat(replica.parameters)
    near = max(tolerance(replica), 1e-6)
    if float((wanted - found).norm()) <= near * step.norm:
        return
    ratio = float(wanted @ found) / max(norm**2, 1e-300)
    if float((wanted - ratio * found).norm()) <= near * step.norm:
        raise MisuseError(
            f"The terms of losses() add up to {1 / ratio:.6g} times the training loss: their "
            "gradient has that length and the same direction. They must add up to the loss that "
            "backward() was called on. For a mean over the batch, divide each by the batch size; "
            "with accumulation, by the number of blocks too."
        )
    again = replica.backward(step)
    repeated = _flat(replica.parameters)
    raise (InvariantError if not torch.equal(found, repeated) else MisuseError)(
        _why(replica, step, again, norm)
        + " The replayed gradient differs from the loop's by "
        + f"{float((wanted - found).norm()) / max(step.norm, 1e-300):.2g} of its length."
    )


def check_norm(replica: Replica, step: Step, norm: float) -> None:
    """Holds a replayed gradient's length against the recorded one."""
    near = tolerance(replica)
    if abs(norm - step.norm) <= near * max(norm, step.norm):
        return
    again = replica.backward(step) if replica.task else norm
    raise InvariantError(
        f"The replay left the run at step {step.number}: its gradient has length {norm:.8g}, "
        f"recorded was {step.norm:.8g}. " + _why(replica, step, again, norm)
    )


def check_state(
    replica: Replica, number: int, wanted: _snapshot.Snapshot, start: _snapshot.Snapshot
) -> None:
    """Holds a replayed state against the kept one, relative to the way since the last kept one."""
    found = replica.take()
    missed, way = _snapshot.distance(found, wanted), _snapshot.distance(start, wanted)
    if missed > tolerance(replica) * way:
        raise InvariantError(
            f"After {number} steps the replay is {missed:.3g} away from the recorded parameters, "
            f"{missed / max(way, 1e-300):.2g} of the way since the last kept state. Each step's "
            "gradient was right, so something besides optimizer.step() moved the parameters "
            "(weight averaging, a clamp, another optimizer), or small differences grew because "
            "training is unstable at this learning rate: keep more states (a larger budget)."
        )


def _why(replica: Replica, step: Step, again: float, before: float) -> str:
    """What is not deterministic, as far as it can be told."""
    if again != before:
        return (
            "The same pass gives another gradient each time: losses() or fetch() draws random "
            "numbers that are not torch's (numpy, random), or a kernel is not deterministic (see "
            "torch.use_deterministic_algorithms)."
        )
    if any(block.random for block in step.blocks):
        return (
            "The step draws random numbers (dropout), which are put back to where the block began: "
            "draw nothing else inside it that losses() does not draw, such as a random crop."
        )
    return (
        "The pass repeats exactly, so it is not the one that was recorded: losses() is not the "
        "loop's loss, fetch(ids) gives other rows, gradients were not zeroed before the block, or "
        "the model, its frozen parameters or its buffers are others."
    )


def _flat(parameters: Mapping[str, Tensor]) -> Tensor:
    parts = [
        (torch.zeros_like(p) if p.grad is None else p.grad).detach().reshape(-1).double().cpu()
        for p in parameters.values()
    ]
    return torch.cat(parts)


def unexpected(before: float, now: float, limit: float | None) -> str | None:
    """What happened to a gradient's length, in words, where it is something else than clipping."""
    found, wanted = now / before if before else 1.0, clipping(before, limit)
    if not abs(found - wanted) > 1e-3 * max(found, wanted):  # so too where it is NaN
        return None
    return (
        f"the gradient's length was {before:.6g} after the last block and {now:.6g} in "
        f"optimizer.step(), a factor of {found:.6g}; with clip_norm={limit} it should be "
        f"{wanted:.6g}."
    )


def marks(named: Mapping[str, Tensor], optimizer: torch.optim.Optimizer) -> Marks:
    """Of the weights and the optimizer's state, and of which parameters it holds."""
    held = {id(p) for p in trained_parameters(optimizer)}
    marked: dict[str, Tensor] = {}
    for name, p in named.items():
        marked[name] = p.detach()
        for key, value in optimizer.state.get(p, {}).items():
            if isinstance(value, Tensor):
                marked[f"the optimizer's {key} of {name}"] = value.detach()
    sums = [_bits(t) for t in marked.values()]
    device = sums[0].device if sums else None
    there = torch.stack([s.to(device) for s in sums]).tolist() if sums else []  # one wait
    found: Marks = {"the optimizer's parameters": (held == {id(p) for p in named.values()},)}
    for (what, t), number in zip(marked.items(), there, strict=True):
        found[what] = tuple(t.shape), t.dtype, number
    return found


def edited(before: Marks, now: Marks) -> str | None:
    """What is not as it was, if anything."""
    for what in [*before, *now]:
        if before.get(what) != now.get(what):
            return what
    return None


def _bits(t: Tensor) -> Tensor:
    """A sum of the bits, as integers of 64, in which each place counts otherwise."""
    octets = t.reshape(-1).contiguous().view(torch.uint8)
    filled = octets.new_zeros(-(-len(octets) // 8) * 8)
    filled[: len(octets)] = octets
    words = filled.view(torch.int64)
    return (words * (2 * torch.arange(len(words), device=t.device) + 1)).sum()
