"""A lone sample: has it alone the outputs and the gradient share that it has in its batch?

The model's call of a training batch is made again in evaluation mode, with all samples under the
capture and a random gradient at its outputs, and with the entries of one sample alone under plain
autograd. Its outputs must be those at its slots, and its share of every parameter the lone call's
gradient. Nothing that was followed is trusted but which slots of the outputs are whose, and that
the outputs themselves tell.

Where outputs differ and are those of another sample's slots, owners are wrong. Where they are no
sample's, samples depend on each other inside the model, and what the capture owes is the gradient
of the sample's outputs: parameters whose shares are not that either are wrong.

It is made when a step is over, so that at its peak there is what a step of training has: the graph
of one batch. Shares meet their probe inside the backward pass, and gradients are let go of as they
come.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from inrun.capture._block_setting import opaque_calls
from inrun.capture._calls import CannotReplayError, ModelCall, same_state, taken
from inrun.capture._mode import CaptureMode
from inrun.capture._probe import Probe, norm_of
from inrun.capture._tinted import Verdict, tolerance_of_ratio
from inrun.capture._uses import Use
from inrun.operations import RandomState
from inrun.utility import swapped

Found = dict[str, Tensor]


def lone(
    call: ModelCall, mode: CaptureMode, model: nn.Module, trained: Mapping[str, Tensor],
    sample: int, hidden: Callable[[], AbstractContextManager[None]],
) -> Verdict:  # fmt: skip
    """Makes the call twice and compares.

    `mode` is a new one, for the call with all samples; `hidden` makes a context in which calls
    leave no trace, so that both find the same model. Raises CannotReplayError where there is
    nothing to compare.
    """
    call.check_untouched()
    with torch.enable_grad():
        with hidden():
            before = RandomState.now(model.parameters())
            mode.owners.entries.any = mode.owners.in_model = True
            with opaque_calls(mode.opaque), mode:
                whole = call.whole(model, mode.owners.give)
            if not same_state(before, RandomState.now(model.parameters())):
                raise CannotReplayError("the model draws random numbers in evaluation mode too")
        maps = {path: mode.owners.of(t) for path, t in whole.items() if t.requires_grad}
        codes = {path: m.codes for path, m in maps.items() if m is not None and m.owned}
        if call.reached:  # an output that no loss is made of would cost memory and time for nothing
            codes = {path: of for path, of in codes.items() if path in call.reached}
        outputs = {path: whole[path] for path in codes}
        if not outputs:
            raise CannotReplayError("the model's outputs are not slot by slot some sample's")
        with hidden():
            own = call.alone(model, sample)
        found = _Comparison(mode, trained, outputs, own, codes, sample)
        del whole, outputs, own  # the graph is then let go of as the backward pass goes
        if call.raw and not found.same:
            raise CannotReplayError("the model is called with data that ids do not divide")
        with hidden():
            return found.verdict()


class _Comparison:
    def __init__(
        self, mode: CaptureMode, trained: Mapping[str, Tensor], outputs: Found, own: Found,
        codes: Mapping[str, Tensor], sample: int,
    ):  # fmt: skip
        self._mode, self._trained, self._codes, self._sample = mode, trained, codes, sample
        self._outputs, self._own = outputs, own
        self._dtype = min((t.dtype for t in (*outputs.values(), *trained.values())),
                          key=lambda d: -torch.finfo(d).eps)  # fmt: skip
        generator = torch.Generator().manual_seed(0)
        self._gradients = {
            path: torch.randn(t.shape, generator=generator).to(t.device, t.dtype)
            for path, t in outputs.items()
        }
        self._probes = {name: Probe(p, generator) for name, p in trained.items()}
        self._products: dict[str, Tensor] = {}  # of the sample's shares with them
        self.same = self._has_outputs_of(sample)

    def verdict(self) -> Verdict:
        shares = self._captured()
        if self.same:
            self._outputs = {}
            gradients = {
                path: taken(g, self._codes[path], self._sample)
                for path, g in self._gradients.items()
            }
            wrong = self._differing(shares, self._gradient(self._own, gradients))
            why = "its share in the batch is not the gradient that the sample alone has"
            return self._verdict(shares, wrong, why)
        other = next((s for s in self._samples() if self._has_outputs_of(s)), None)
        if other is not None:
            why = (f"the outputs of the sample at place {self._sample} of the ids alone are those "
                   f"that in the batch are taken for place {other}'s")  # fmt: skip
            return self._verdict(shares, set(shares), why)
        wrong = self._differing(shares, self._of_outputs())
        why = "samples depend on each other inside the model, and its share is not one sample's"
        known = self._mode.owners.interactions
        note = "" if known else (
            "A sample alone does not have the outputs that it has in its batch, in evaluation "
            "mode: samples depend on each other inside the model, where following their owners "
            "does not see it. A value is what passes through the sample's own slots, with the "
            "others as they are."
        )  # fmt: skip
        return self._verdict(shares, set() if known else wrong, why, note)

    def _verdict(
        self, shares: Mapping[str, Tensor], wrong: set[str], why: str, note: str = ""
    ) -> Verdict:
        told = dict.fromkeys(sorted(wrong), f"{why} (a lone sample)")
        right = frozenset() if note else frozenset(set(shares) - wrong)
        return Verdict(right, told, note)

    def _samples(self) -> Sequence[int]:
        return sorted({s for codes in self._codes.values() for s in codes.unique().tolist()})

    def _has_outputs_of(self, sample: int) -> bool:
        """Whether the lone outputs are those at a sample's slots."""
        same = [self._is_close(self._own[path], taken(t, self._codes[path], sample))
                for path, t in self._outputs.items() if path in self._own]  # fmt: skip
        if not same:
            raise CannotReplayError("alone, a sample has outputs of another form")
        return all(same)

    def _is_close(self, own: Tensor, there: Any) -> bool:
        if not isinstance(there, Tensor):
            return False
        if own.shape != there.shape:
            raise CannotReplayError("alone, a sample has outputs of another shape")
        off = norm_of(own.detach() - there.detach())
        return bool(off <= tolerance_of_ratio(self._dtype) * norm_of(there.detach()))

    def _captured(self) -> dict[str, Tensor]:
        """The probe of the sample's share by parameter, as the capture has it."""
        self._mode.when_complete = self._take
        self._gradient(self._outputs, self._gradients, retain=not self.same)
        self._mode.when_complete = None
        for use in self._mode.uses:
            if use.reached and use.held:  # only some of its outputs got a gradient
                self._take(use)
        skipped = self._mode.skipped
        return {name: product for name, product in self._products.items() if name not in skipped}

    def _take(self, use: Use) -> None:
        with torch.no_grad():
            for name, _, factor in use.factors():
                # a layer may compute in less than its parameters' precision
                kinds = [t.dtype for t in factor.held if t.is_floating_point()]
                self._dtype = max([self._dtype, *kinds], key=lambda d: torch.finfo(d).eps)
                product = self._probes[name].of_shares(factor)[self._sample]
                self._products[name] = self._products.get(name, product.new_zeros(())) + product
        use.release()

    def _of_outputs(self) -> Found:
        """The gradient of the sample's outputs in the batch, through all samples' slots."""
        gradients = {
            path: g * (self._codes[path] == self._sample).to(g.device)
            for path, g in self._gradients.items()
        }
        with swapped(self._mode, "tinting", lambda *_: None):
            return self._gradient(self._outputs, gradients)

    def _gradient(self, outputs: Found, gradients: Found, *, retain: bool = False) -> Found:
        """Each parameter's gradient, as its product with the probe and its norm, (2,)."""
        parameters = {name: p for name, p in self._trained.items() if p.requires_grad}
        paths = [path for path in gradients if path in outputs and outputs[path].requires_grad]
        found: Found = {}

        def measure(name: str) -> Callable[[Tensor], Tensor]:
            def take(g: Tensor) -> Tensor:
                found[name] = self._probes[name].and_norm(g)
                return g.new_zeros(()).expand_as(g)  # the pass holds no gradient that is measured

            return take

        with ExitStack() as hooks:
            for name, p in parameters.items():
                hooks.callback(p.register_hook(measure(name)).remove)
            torch.autograd.grad(
                [outputs[path] for path in paths], list(parameters.values()),
                [gradients[path] for path in paths], retain_graph=retain, allow_unused=True,
            )  # fmt: skip
        return found

    def _differing(self, shares: Mapping[str, Tensor], own: Found) -> set[str]:
        """Parameters whose share is not the gradient, by more than rounding."""
        largest = max((float(norm) for _, norm in own.values()), default=0.0)
        floor = 100 * torch.finfo(self._dtype).eps * largest
        wrong = set()
        for name, share in shares.items():
            product, norm = map(float, own.get(name, (0.0, 0.0)))
            size = norm + abs(float(share))
            allowed = tolerance_of_ratio(self._dtype) * size + floor
            if not abs(float(share) - product) <= allowed:
                wrong.add(name)
        return wrong
