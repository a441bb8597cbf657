"""Every rule's owner map against brute force: one sample's entries are changed, slots looked at."""

import warnings

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from inrun.capture._mode import CaptureMode
from inrun.owners import Axes, Entries, Map, Owners, Roots, exchanged, families, ownership
from tests.oracles import owners as oracle
from tests.unit.owners.calls import CALLS
from tests.unit.owners.drawn import Draw

NOWHERE = 99  # the axis of the batch in tensors that the data does not name: weights, indices

# what picks entries: whose they are is told for the choice as it is, so changes are small
PICKS = frozenset(
    "max min amax amin median nanmedian mode kthvalue sort topk msort aminmax quantile nanquantile "
    "fmod remainder floor_divide nextafter __floordiv__ __rfloordiv__ __mod__ __rmod__ "
    "cummax cummin maximum minimum fmax fmin max_unpool2d fractional_max_pool2d".split()
)

# a slot that is given up though just now it depends on one sample: another number would change it
GIVEN_UP = frozenset()

# operations that no call here can reach
UNREACHED = frozenset()

bulk = settings(
    max_examples=60, deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)  # fmt: skip


class Watching(Owners):
    """Owners that remember which operations came by."""

    met: set

    def begin(self, function, name, args, kwargs, tensors):
        self.met.add(name)
        return super().begin(function, name, args, kwargs, tensors)


class RulesAlone(Watching):
    """What the rules say before an exchange corrects them."""

    def _refined(self, op, found):
        return found

    @staticmethod
    def _ruled(registered, op):
        return registered.rule(op)


class ByExchange(Watching):
    """What an exchange says, without any rule."""

    def _found(self, op):
        return self._asked(op)


def followed(kind, function, data, samples):
    """The outputs, their maps, and the owners that followed the call."""
    owners = kind(Entries(ownership(samples), Axes(NOWHERE), Roots()), ())
    owners.met = set()
    for d in data:
        codes = None if d.owner is None else d.owner.to(torch.int32)
        if codes is not None:
            for axis in range(codes.ndim):  # as maps are: axes over one owner have length 1
                first = codes.narrow(axis, 0, 1)
                codes = first if codes.shape[axis] and bool((codes == first).all()) else codes
        owners.give(d.tensor, None if codes is None else Map(codes.contiguous()))
    torch.manual_seed(0)
    with CaptureMode([], frozenset(), owners):
        returned = function(*[d.tensor for d in data])
    outs = oracle.outputs(returned)
    return outs, [owners.of(out) for out in outs], owners


def drawn(make, name, random, samples):
    return make(Draw(random, samples), name)


def check(kind, name, make, random, samples, *, exact):
    function, data = drawn(make, name, random, samples)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        outs, maps, owners = followed(kind, function, data, samples)
        picks = name in PICKS or "max_pool" in name
        seen = oracle.seen(function, data, samples, size=1e-7 if picks else 1.0)
    if owners.interactions:
        return  # it is told that slots read other samples'
    for out, m, each in zip(outs, maps, seen, strict=True):
        if each is None or not (out.is_floating_point() or out.is_complex()):
            continue
        fault = oracle.faults(None if m is None else m.codes, each, exact=exact)
        assert not fault, (
            f"{fault}\nmap {None if m is None else m.codes.tolist()}\n"
            f"data {[(tuple(d.tensor.shape), d.tensor.requires_grad, None if d.owner is None else d.owner.tolist()) for d in data]}\n"
            f"depends {each.depends.int().tolist()}"
        )


ALL = [
    pytest.param(name, make, id=f"{name}-{make.__name__}")
    for name, makes in CALLS.items()
    for make in makes
]


@pytest.mark.parametrize(("name", "make"), ALL)
def test_no_rule_gives_a_slot_to_a_sample_that_is_not_alone_in_it(name, make):
    @bulk
    @given(st.randoms(use_true_random=False), st.integers(1, 4))
    def holds(random, samples):
        check(RulesAlone, name, make, random, samples, exact=False)

    holds()


@pytest.mark.parametrize(("name", "make"), ALL)
def test_following_is_right_and_gives_up_no_slot_of_one_sample(name, make):
    @bulk
    @given(st.randoms(use_true_random=False), st.integers(1, 4))
    def holds(random, samples):
        check(Watching, name, make, random, samples, exact=name not in GIVEN_UP)

    holds()
