"""Exchange: whose an output slot is, asked of the operation itself.

The operation is run again, without gradients, with the entries of some samples changed. Sample b
has the number b; for each bit of it one run changes the samples that have the bit, and one those
that have not. A slot that changed in exactly one run of every pair has the owner with those bits;
in none, it is the same for all; in both runs of a pair, several samples are in it. That takes
2 log2(B) + 1 runs and knows nothing of the operation: masks, zeros and routing included. It is the
word on operations without a rule, and the oracle of those that have one.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from inrun.operations import RandomState, outputs_of, repeated, replace
from inrun.owners._map import MIXED, NONE, UNKNOWN, Map, squeezed
from inrun.owners._operation import Found, Op


def exchanged(op: Op) -> Found | None:
    """The outputs' owners, or None where the operation cannot be asked.

    It cannot where it overwrites its arguments, takes no floating-point data of the samples', or
    fails on other numbers.
    """
    if not _repeatable(op):
        return None
    moving = {id(t): (t, m) for t, m in _moving(op)}
    if not moving:
        return None
    samples = op.samples
    bits = max(1, samples.bit_length())  # numbers 0 to B: B stands for what is mixed already
    noise = {key: _other_numbers(t) for key, (t, _) in moving.items()}
    state = op.random or RandomState.now(op.tensors)

    def run(select: Callable[[Tensor], Tensor] | None) -> list[Tensor]:
        def swap(t: Tensor) -> Tensor:
            if select is None or id(t) not in moving:
                return t.detach().clone()
            codes = moving[id(t)][1].codes
            number = torch.where(codes >= 0, codes, samples)
            chosen = (select(number) & (codes != NONE)).to(t.device)
            return torch.where(chosen, noise[id(t)], t.detach())

        with torch._C.DisableTorchFunction(), repeated(state), torch.no_grad():
            args, kwargs = replace(list(op.args), swap), replace(dict(op.kwargs), swap)
            return outputs_of(op.function(*args, **kwargs))

    try:
        base = run(None)
        ones = [run(lambda n, k=k: (n >> k) & 1 == 1) for k in range(bits)]  # type: ignore[misc]
        zeros = [run(lambda n, k=k: (n >> k) & 1 == 0) for k in range(bits)]  # type: ignore[misc]
    except Exception:  # the operation is anybody's; other numbers may not be for it
        return None
    runs = [*ones, *zeros]
    if any(len(r) != len(base) or len(base) != len(op.outs) for r in runs):
        return None
    return [
        _told(b, [r[i] for r in ones], [r[i] for r in zeros], samples, op.name)
        for i, b in enumerate(base)
    ]


def _repeatable(op: Op) -> bool:
    overwrites = op.name.endswith("_") and not op.name.endswith("__")
    overwrites |= op.name.startswith("__i") and op.name not in ("__invert__",)
    given = op.kwargs.get("inplace"), op.kwargs.get("out")
    if (
        overwrites
        or op.name == "__setitem__"
        or any(g is not None and g is not False for g in given)
    ):
        return False
    return all(m.low > UNKNOWN for m in op.maps if m is not None)


def _moving(op: Op) -> list[tuple[Tensor, Map]]:
    """The samples' data that can be exchanged: what carries gradients, if anything does."""
    data = [
        (t, m)
        for t, m in zip(op.tensors, op.maps, strict=True)
        if m is not None and (t.is_floating_point() or t.is_complex())
    ]
    return [(t, m) for t, m in data if t.requires_grad] or data


def _other_numbers(t: Tensor) -> Tensor:
    generator = torch.Generator(t.device).manual_seed(0)
    with torch.no_grad():
        own = t.detach()
        noise = torch.rand(own.shape, generator=generator, device=t.device)
        if t.is_complex():
            noise = torch.complex(noise, noise.flip(-1) if t.ndim else noise) + 0.1j
        finite = torch.nan_to_num(own.abs().float(), 0.0, 0.0, 0.0)
        size = finite.mean() + 1 if own.numel() else 1.0
        return own + (noise * size + 0.1).to(own.dtype)


def _told(
    base: Tensor, ones: list[Tensor], zeros: list[Tensor], samples: int, name: str
) -> Map | None:
    """The map of one output from its values in all runs."""
    if any(r.shape != base.shape for r in (*ones, *zeros)):
        return Map(torch.full((1,) * base.ndim, UNKNOWN, dtype=torch.int32), name)
    owner = torch.zeros(base.shape, dtype=torch.int32, device=base.device)
    both = torch.zeros(base.shape, dtype=torch.bool, device=base.device)
    neither = torch.ones_like(both)
    for k, (one, zero) in enumerate(zip(ones, zeros, strict=True)):
        with_bit, without = _differs(one, base), _differs(zero, base)
        owner += with_bit.int() << k
        both |= with_bit & without
        neither &= ~with_bit & ~without
    owner = torch.where(both | (owner >= samples), MIXED, owner)
    owner = torch.where(neither, NONE, owner).to(torch.int32).cpu()
    return Map(_by_row(owner), name if bool((owner < NONE).any()) else "", "exchanged")


def _differs(a: Tensor, b: Tensor) -> Tensor:
    return (a != b) & ~((a != a) & (b != b))  # two NaN are alike


def _by_row(owner: Tensor) -> Tensor:
    """A feature that happens not to react (relu at zero) goes with its row."""
    if owner.ndim and owner.shape[-1] > 1:
        low = torch.where(owner == NONE, 2**30, owner).amin(-1, keepdim=True)
        high = owner.amax(-1, keepdim=True)
        if bool(((low == high) | (low == 2**30)).all()):
            owner = torch.where(low == 2**30, NONE, high).to(torch.int32)
    return squeezed(owner)
