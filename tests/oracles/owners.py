"""Whose an output slot is, by brute force: change one sample's entries, see which slots change.

B runs and one more, float64. Knows nothing of operations and shares nothing with the library.
"""

from typing import NamedTuple

import torch

NONE, MIXED, SUM, UNKNOWN = -1, -2, -3, -4


class Data(NamedTuple):
    """A tensor that goes into an operation.

    `owner` has the tensor's shape: a sample's number or NONE for each entry; None where it is the
    same for all samples. `below`: integers stay below this number.
    """

    tensor: torch.Tensor
    owner: torch.Tensor | None = None
    below: int | None = None


class Seen(NamedTuple):
    """What one output does: `depends` (B, *shape), and `adds` (*shape).

    `depends`: which samples a slot reacts to. `adds`: whether it reacts to all of them together as
    to the sum of each alone.
    """

    depends: torch.Tensor
    adds: torch.Tensor


def moving(data):
    """Data that is changed: what carries gradients, or else other numbers, or else integers."""
    owned = [d for d in data if d.owner is not None]
    numbers = [d for d in owned if d.tensor.is_floating_point() or d.tensor.is_complex()]
    return [d for d in numbers if d.tensor.requires_grad] or numbers or owned


def changed(data, seed, size):
    """The same tensor with all its entries changed, numbers by about `size`."""
    generator = torch.Generator().manual_seed(seed)
    t = data.tensor.detach()
    if t.dtype == torch.bool:
        return ~t
    if not (t.is_floating_point() or t.is_complex()):
        below = data.below or 2
        step = torch.randint(1, max(below, 2), t.shape, generator=generator)
        return ((t + step) % below).to(t.dtype)
    step = 0.1 + torch.rand(t.shape, generator=generator, dtype=torch.float64)
    return t + (step * size).to(t.dtype)


def outputs(value):
    """The tensors among what an operation returned."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, (list, tuple)):
        return [t for item in value for t in outputs(item)]
    return []


def run(function, tensors):
    """The operation on copies, from the same random state each time."""
    torch.manual_seed(0)
    with torch.no_grad():
        return [
            t.detach().clone() for t in outputs(function(*[t.detach().clone() for t in tensors]))
        ]


def seen(function, data, samples, size=1.0):
    """A `Seen` for each output; None for one whose shape is another when numbers are others."""
    move = {id(d.tensor) for d in moving(data)}
    base = run(function, [d.tensor for d in data])

    def with_changed(who, seed=0):
        tensors = []
        for place, d in enumerate(data):
            t = d.tensor.detach()
            if id(d.tensor) in move:
                mine = torch.zeros_like(d.owner, dtype=torch.bool)
                for b in who:
                    mine |= d.owner == b
                t = torch.where(mine, changed(d, place + seed, size), t)
            tensors.append(t)
        return run(function, tensors)

    alone = [with_changed([b]) for b in range(samples)]
    again = [with_changed([b], seed=100) for b in range(samples)]
    together = with_changed(range(samples))
    found = []
    for i, out in enumerate(base):
        if any(r[i].shape != out.shape for r in (*alone, *again, together)):
            found.append(None)
            continue
        depends = torch.stack([differs(r[i], out) for r in alone])
        depends |= torch.stack([differs(r[i], out) for r in again])
        number = out.is_floating_point() or out.is_complex()
        wide = torch.complex128 if out.is_complex() else torch.float64
        apart = sum(r[i].to(wide) - out.to(wide) for r in alone)
        digits = torch.finfo(out.dtype).eps if number else 0
        scale = 1 + out.to(wide).abs().amax() if out.numel() else 1
        adds = (together[i].to(wide) - out.to(wide) - apart).abs() <= 1e6 * digits * scale
        found.append(Seen(depends, adds | ~torch.isfinite(apart)))
    return found


def differs(a, b):
    """Where two results are not the same; two NaN are."""
    return (a != b) & ~(a.isnan() & b.isnan() if a.is_floating_point() or a.is_complex() else False)


def faults(codes, seen, loose=None):
    """What is wrong with an owner map, in words; empty where nothing is.

    Args:
        codes: of the map, which broadcasts to the output; None says the same for all samples.
        seen: what the output does.
        loose: what it does under other changes; if given, a slot that is given up (MIXED, SUM,
            UNKNOWN) though it depends on one sample at most is wrong as well.
    """
    samples, shape = len(seen.depends), seen.depends.shape[1:]
    codes = torch.tensor(NONE) if codes is None else codes
    if codes.ndim not in (0, len(shape)):
        return f"a map of {codes.ndim} axes for a tensor of shape {tuple(shape)}"
    try:
        codes = codes.expand(shape)
    except RuntimeError:
        return f"a map of shape {tuple(codes.shape)} for a tensor of shape {tuple(shape)}"
    others = seen.depends.clone()
    for b in range(samples):
        others[b] &= codes != b
    found = []
    if bool((others.any(0) & (codes >= NONE)).any()):
        found.append("a slot depends on another sample than its owner")
    if bool(((codes == SUM) & ~seen.adds).any()):
        found.append("a SUM is no sum of terms of one sample each")
    if loose is not None:
        count = (seen.depends | loose.depends).sum(0)
        if bool(((codes < NONE) & (count <= 1)).any()):
            found.append("a slot of one sample is given up")
    return "; ".join(found)
