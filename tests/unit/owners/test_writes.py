"""Writes through views and bases: random programs, every tensor's owners against brute force."""

import warnings
from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.oracles import owners as oracle
from tests.oracles.owners import Data
from tests.unit.owners.test_rules_against_exchange import Watching, followed

SAMPLES = 3


def view(random, t):
    """A view of a tensor, of one axis or more."""
    kinds = ["whole", "flip", "data", "narrow", "transpose"]
    if t.ndim > 1:
        kinds += ["select", "unbind", "split", "row", "column", "flat"]
    kind = random.choice(kinds)
    axis = random.randrange(t.ndim)
    place = random.randrange(t.shape[axis])
    if kind == "select":
        return t.select(axis, place)
    if kind == "unbind":
        return t.unbind(axis)[place]
    if kind == "split":
        return t.split(1, axis)[place]
    if kind == "narrow":
        return t.narrow(axis, place, 1)
    if kind == "row":
        return t[place % len(t)]
    if kind == "column":
        return t[:, place % t.shape[1]]
    if kind == "transpose":
        return t.transpose(0, -1)
    if kind == "flat":
        return t.reshape(-1)
    return t.data if kind == "data" else t.view_as(t)


def write(random, into, x):
    """Overwrites a part of `into`, or adds to it; `x` has samples in its rows."""
    row = x[random.randrange(len(x))]
    value = row[: into.shape[-1]] if into.shape[-1] <= len(row) else row[0]
    axis = random.randrange(into.ndim)
    place = torch.tensor([random.randrange(into.shape[axis])])
    kind = random.choice(
        [
            "copy",
            "fill",
            "zero",
            "add",
            "mul",
            "set",
            "index_add",
            "index_copy",
            "masked",
            "iadd",
            "out",
            "put",
            "set_many",
        ]
    )
    if kind == "copy":
        into.copy_(value)
    elif kind == "fill":
        into.fill_(2.0)
    elif kind == "zero":
        into.zero_()
    elif kind == "add":
        into.add_(value)
    elif kind == "mul":
        into.mul_(1.5)
    elif kind == "set":
        into[random.randrange(len(into))] = value if into.ndim > 1 else row[0]
    elif kind == "set_many":
        into[place % len(into)] = value if into.ndim > 1 else row[0]
    elif kind == "index_add":
        into.index_add_(
            axis, place, row[0].expand([1 if i == axis else n for i, n in enumerate(into.shape)])
        )
    elif kind == "index_copy":
        into.index_copy_(
            axis, place, row[0].expand([1 if i == axis else n for i, n in enumerate(into.shape)])
        )
    elif kind == "masked":
        into.masked_fill_(torch.arange(into.numel()).view(into.shape) % 2 == 0, 0.5)
    elif kind == "put":
        into.index_put_((place % len(into),), row[0])
    elif kind == "out":
        torch.add(into, value, out=into)
    else:
        into += row[0]


def program(seed):
    """A function that makes tensors, views of them, and writes; it gives all of them."""

    def run(x, y):
        random = Random(seed)
        live = [x * 1.0, torch.zeros(3, 4, dtype=x.dtype), y + 0.0, torch.ones(4, dtype=x.dtype)]
        for _ in range(random.randint(2, 7)):
            t = random.choice(live)
            if random.random() < 0.5:
                live.append(view(random, t))
            else:
                write(random, t, random.choice([x, y]))
        return [*live, *[t.sin() for t in live[:4]]]

    return run


def owned(random):
    slots = torch.arange(SAMPLES)[:, None].expand(3, 4)
    if random.random() < 0.5:
        return slots
    return torch.tensor([random.randrange(-1, SAMPLES) for _ in range(12)]).view(3, 4)


def check(run, data):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        outs, maps, owners = followed(Watching, run, data, SAMPLES)
        seen = oracle.seen(run, data, SAMPLES)
    for place, (out, m, each) in enumerate(zip(outs, maps, seen, strict=True)):
        fault = oracle.faults(None if m is None else m.codes, each)
        assert not fault, (
            f"{fault}: tensor {place}, map {m and m.codes.tolist()}, why {m and m.why}\n"
            f"{[d.owner.tolist() for d in data]}\n{each.depends.int().tolist()}"
        )
        yield out, m, each


@settings(max_examples=400, deadline=None, derandomize=True)
@given(st.integers(0, 2**32))
def test_every_tensor_over_written_memory_reads_its_own_owners(seed):
    random = Random(seed)
    x = torch.randn(3, 4, dtype=torch.float64)
    data = [Data(x, owned(random)), Data(x.cos(), owned(random))]
    for _ in check(program(seed), data):
        pass


def buffer_row_by_row(x):
    buffer = torch.zeros(3, 4, dtype=x.dtype)
    for k in range(3):
        buffer[k].copy_(x[k])
    return buffer


def buffer_column(x):
    buffer = torch.zeros(3, 4, dtype=x.dtype)
    buffer[:, 0] = x[:, 1]
    return buffer


def added_at(x):
    buffer = torch.zeros(3, 4, dtype=x.dtype)
    buffer[torch.tensor([2, 0, 1])] += x
    return buffer


def view_before_the_write(x):
    buffer = torch.zeros(3, 4, dtype=x.dtype)
    view = buffer[1]
    buffer[1] = x[2]
    return view


def base_after_a_views_write(x):
    buffer = torch.zeros(3, 4, dtype=x.dtype)
    for part, row in zip(buffer.unbind(0), x.flip(0), strict=True):
        part.add_(row)
    return buffer


def by_data(x):
    buffer = torch.zeros(3, 4, dtype=x.dtype)
    buffer.data[2] = x.detach()[0]
    return buffer[2]


def by_out(x):
    buffer = torch.zeros(3, 4, dtype=x.dtype)
    torch.mul(x.detach(), 2, out=buffer)
    return buffer


def narrow_and_split(x):
    buffer = torch.zeros(3, 4, dtype=x.dtype)
    buffer.narrow(0, 0, 2).copy_(x[1:])
    buffer.split(2)[1].copy_(x[:1])
    return buffer


@pytest.mark.parametrize(
    "run",
    [buffer_row_by_row, buffer_column, added_at, view_before_the_write, base_after_a_views_write,
     by_data, by_out, narrow_and_split],
)  # fmt: skip
def test_a_buffer_that_is_filled_sample_by_sample_is_known_slot_by_slot(run):
    owner = torch.arange(SAMPLES)[:, None].expand(3, 4)
    data = [Data(torch.randn(3, 4, dtype=torch.float64), owner)]
    for _, m, each in check(run, data):
        assert m is not None
        assert m.low >= 0
        assert not oracle.faults(m.codes, each, each)
