"""Every rule's owner map against brute force: one sample's entries are changed, slots looked at."""

import warnings
from functools import cached_property
from random import Random

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from inrun.capture._mode import CaptureMode
from inrun.operations import RandomState
from inrun.owners import Axes, Entries, Map, Owners, Roots, families, ownership
from inrun.owners._operation import find, names, stem
from tests.oracles import owners as oracle
from tests.unit.owners.calls import CALLS
from tests.unit.owners.drawn import Draw

NOWHERE = 99  # the axis of the batch in tensors that the data does not name: weights, indices

# what picks entries or is flat nearly everywhere: whose slots are is told as gradients would pass,
# so changes are small
LOCAL = names(
    "max min amax amin median nanmedian mode kthvalue sort topk msort aminmax quantile "
    "nanquantile fmod remainder floor_divide nextafter __floordiv__ __rfloordiv__ __mod__ "
    "__rmod__ cummax cummin clamp clip clamp_min ldexp rnn_relu heaviside maximum minimum fmax "
    "fmin max_unpool2d fractional_max_pool2d"
)

# where a slot may be given up though just now it depends on one sample alone
GIVEN_UP = LOCAL | names(
    "cumsum cumulative_trapezoid diff "  # sums of some along an axis: the ends are one sample's
    "unique _unique2 unique_consecutive "  # a value that two samples have
    "fft_irfft fft_hfft fft_irfft2 fft_irfftn "  # coefficients of zero
    "kl_div multi_margin_loss multilabel_margin_loss hinge_embedding_loss margin_ranking_loss "
    "cosine_embedding_loss triplet_margin_loss triplet_margin_with_distance_loss "  # terms of zero
    "scatter_reduce index_reduce"  # the largest of several
)

# in the table, but no function of this PyTorch or CPU has the name or gives numbers
UNREACHED = names(
    # other names of operations that are called
    "__abs__ __add__ __div__ __ge__ __gt__ __le__ __lt__ __matmul__ __mod__ __mul__ __ne__ __neg__ "
    "__pos__ __pow__ __radd__ __rand__ __rmul__ __ror__ __rtruediv__ __rxor__ __sub__ __truediv__ "
    "_unique2 expit logsigmoid multi_dot upsample split_with_sizes equal grouped_mm "
    "adaptive_max_pool1d_with_indices max_pool1d_with_indices max_pool3d_with_indices "
    # made of no tensor
    "eye linspace logspace ones rand randint randn randperm tril_indices triu_indices zeros full "
    "empty arange combinations histc is_floating_point "
    "tensor "  # a copy, which PyTorch warns of
    # not on this machine, or in other versions
    "cuda pin_memory im2col col2im _unsafe_view _reshape_alias convolution linear_cross_entropy "
    "grouped_linear grouped_mm_fallback max_unpool1d max_unpool3d resize set_ "
    # custom autograd functions, which are cases of tests/oracles/fused_heads.py
    "ChunkedLogProbFunction.apply LigerFusedLinearCrossEntropyFunction.apply"
)

bulk = settings(
    max_examples=8, deadline=None, derandomize=True, phases=[Phase.generate],
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

    def begin(self, function, name, args, kwargs, tensors):
        op = super().begin(function, name, args, kwargs, tensors)
        op.random = RandomState.now(tensors)
        return op

    def _found(self, op):
        return self._asked(op)


class WithinModel(Watching):
    """Where a map that is kept is told without its rule."""

    def __init__(self, *given):
        super().__init__(*given)
        self.in_model = True


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


class Example:
    """An operation with what it was called with, and what it does by brute force."""

    def __init__(self, name, make, random, samples):
        self.name, self.samples = name, samples
        self.function, self.data = make(Draw(random, samples), name)
        self.local = name in LOCAL or "max_pool" in name
        self.wide = oracle.seen(self.function, self.data, samples)

    @cached_property
    def near(self):
        """Under such changes as gradients tell, where `wide` are large ones."""
        return oracle.seen(self.function, self.data, self.samples, size=1e-7)

    def check(self, kind, *, exact=False):
        """No map of this kind may be wrong; `exact`: none may give up what it need not."""
        outs, maps, owners = followed(kind, self.function, self.data, self.samples)
        if owners.interactions:
            return  # it is told that slots read other samples'
        seen = self.near if self.local or owners.by_exchange else self.wide
        exact &= self.name not in GIVEN_UP and "max_pool" not in self.name
        for out, m, each, wide in zip(outs, maps, seen, self.wide, strict=True):
            if each is None or not (out.is_floating_point() or out.is_complex()):
                continue
            fault = oracle.faults(None if m is None else m.codes, each, wide if exact else None)
            assert not fault, f"{fault}\nmap {m and m.codes.tolist()}\n{self}{each.depends.int()}"

    def __str__(self):
        return "".join(
            f"shape {tuple(d.tensor.shape)}, gradients {d.tensor.requires_grad}, "
            f"owners {None if d.owner is None else d.owner.tolist()}\n"
            for d in self.data
        )


def _examples(holds, name, make):
    @bulk
    @given(st.integers(0, 2**32), st.integers(1, 4))
    def each(seed, samples):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            holds(Example(name, make, Random(seed), samples))

    each()


ALL = [
    pytest.param(name, make, id=f"{name}-{make.__name__}")
    for name, makes in CALLS.items()
    for make in makes
]


@pytest.mark.parametrize(("name", "make"), ALL)
def test_a_slot_depends_on_its_owner_alone_and_none_is_given_up(name, make):
    """By rules alone, by rules that an exchange corrects, by exchange alone, and by no rule."""
    registered = find(None, name)

    def holds(example):
        example.check(RulesAlone)
        example.check(Watching, exact=True)
        example.check(ByExchange)
        if registered is not None and (registered.pointwise or registered.rows):
            example.check(WithinModel, exact=True)

    _examples(holds, name, make)


def test_every_name_with_a_rule_is_called():
    named = {name for names in families().values() for name in names}
    met = set()
    for seed in range(12):
        for name, make in ((name, make) for name, makes in CALLS.items() for make in makes):
            random = Random(seed)
            function, data = make(Draw(random, random.randint(1, 4)), name)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                met |= followed(Watching, function, data, 4)[2].met
        met |= {stem(name) for name in met}
        if not named - met - UNREACHED:
            break
    assert sorted(named - met - UNREACHED) == []
