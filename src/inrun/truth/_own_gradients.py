"""Each sample's own gradient in a block, by plain autograd and without what the capture followed.

The block's calls of the model are made again with the entries of one sample alone, and with the
gradient that the block's own backward pass brought to that sample's outputs. Which slots of the
outputs are a sample's its lone outputs say: they are the ones that are equal. Where the model drew
random numbers (dropout) a sample alone would draw others: its lone outputs are then compared in
evaluation mode, and its gradient is that of its outputs in the whole batch with the same draws.

First the calls with all samples are made again. A parameter whose gradient comes out otherwise than
in the block is used beyond these calls, and is not judged.

Letters: B samples, G groups.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from inrun.capture import CannotReplayError, Capture, ModelCall, taken

CHECKED = "checked"
Found = dict[str, Tensor]


Own = tuple[Mapping[str, Tensor], str]
"""Sums over groups by parameter, (G, *shape), of those that could be judged; and a sentence."""


def own_gradients(
    capture: Capture, calls: Sequence[ModelCall], label_B: Tensor, groups: int,
    captured: Mapping[str, Tensor],
) -> Own:  # fmt: skip
    """Sums of samples' own gradients over groups.

    Args:
        capture: whose block has ended.
        calls: of the model in it.
        label_B: the group of each sample.
        groups: G.
        captured: by parameter name, (G, *shape): sums of the shares that are judged.
    """
    if not captured:
        return {}, "not checked: no share was captured"
    if capture.sharded:
        return {}, "not checked: parameters are sharded"
    parameters = {name: capture.trained[name] for name in captured}
    known = next(iter(capture.coverage.interactions), "")
    try:
        replays = []
        with capture.owner_checks.hidden():
            for call in calls:
                replays.append(_Replay(call, capture.owner_checks.model, parameters, known))
            judged, reason = _reproduced(captured, [r.total for r in replays])
            if not judged:
                raise CannotReplayError(reason)
            sums = {name: torch.zeros_like(captured[name]) for name in judged}
            for replay in replays:
                replay.add_to(sums, label_B, groups)
    except CannotReplayError as reason_why:
        return {}, f"not checked: {reason_why}"
    except Exception as error:  # the model is the user's: it need not take the same call twice
        line = (str(error).splitlines() or [type(error).__name__])[0]
        return {}, f"not checked: the model cannot be called again ({line[:120]})"
    return sums, f"{CHECKED}, but {reason}" if reason else CHECKED


def _reproduced(captured: Mapping[str, Tensor], totals: Sequence[Found]) -> tuple[list[str], str]:
    """Parameters whose gradient the calls give again, and what is to be said of the others."""
    if not any(totals):
        return [], "no output of the model that leads to the loss is slot by slot some sample's"
    sums = {name: sum((t[name] for t in totals if name in t), torch.zeros_like(shares[0]))
            for name, shares in captured.items()}  # fmt: skip
    whole = {name: shares.sum(0) for name, shares in captured.items()}
    norms = {name: float(torch.linalg.vector_norm(t)) for name, t in whole.items()}
    rounding = max(torch.finfo(t.dtype).eps for found in totals for t in found.values())
    floor = 100 * rounding * max(norms.values())
    allowed = 1e-6 if rounding < 1e-12 else 2e-3 if rounding < 1e-6 else 5e-2
    judged = [
        name for name, t in sums.items()
        if float(torch.linalg.vector_norm(t - whole[name])) <= allowed * norms[name] + floor
    ]  # fmt: skip
    rest = [name for name in captured if name not in judged]
    if not rest:
        return judged, ""
    if not judged:
        return [], "made again, the model's calls do not give the block's gradient"
    return judged, f"not {rest[0]} ({len(rest)} in all), which is used beyond the model's call too"


class _Replay:
    """One call, made again."""

    def __init__(
        self, call: ModelCall, model: nn.Module, parameters: Mapping[str, Tensor], known: str
    ):
        call.check_untouched()
        self._call, self._model, self._parameters, self._known = call, model, parameters, known
        self._paths = call.sinks()
        self._codes = {path: call.outputs[path].codes for path in self._paths}
        self._gradients = {path: call.gradients[path] for path in self._paths}
        with call.as_it_was():
            self._outputs = call.whole(model)
        self.total = self._gradient(self._outputs, self._gradients, retain=True)

    def add_to(self, sums: Mapping[str, Tensor], label_B: Tensor, groups: int) -> None:
        """Adds each sample's own gradient to its group's sum."""
        place_of: dict[int, int] = {}
        there = self._call.present()
        reference = self._reference()
        for sample in there if self._paths else ():
            with self._mode():
                own = self._call.alone(self._model, sample)
            place_of[sample] = self._place(reference, own, sample, there)
            if not self._call.drew:
                gradients = {
                    path: taken(g, self._codes[path], place_of[sample])
                    for path, g in self._gradients.items()
                }
                self._add(sums, int(label_B[sample]), self._gradient(own, gradients))
        if self._call.drew:
            for group in range(groups):
                places = [p for s, p in place_of.items() if int(label_B[s]) == group]
                self._add(sums, group, self._of_outputs(places))

    def _mode(self) -> AbstractContextManager[None]:
        return self._call.in_evaluation(self._model) if self._call.drew else self._call.as_it_was()

    def _reference(self) -> Found:
        """All samples' outputs, to compare a lone sample's with."""
        if not self._call.drew:
            return self._outputs
        with self._mode(), torch.no_grad():
            return self._call.whole(self._model)

    def _place(self, whole: Found, own: Found, sample: int, there: Sequence[int]) -> int:
        """The sample to which the slots are ascribed that have this one's outputs."""
        for place in (sample, *[s for s in there if s != sample]):
            if all(self._equal(whole[p], own.get(p), self._codes[p], place) for p in self._paths):
                return place
        if self._known:
            raise CannotReplayError(f"samples interact before the loss ({self._known})")
        return sample

    @staticmethod
    def _equal(whole: Tensor, own: Tensor | None, codes: Tensor, place: int) -> bool:
        there = taken(whole.detach(), codes, place)
        if not isinstance(there, Tensor) or own is None:
            return False
        if there.shape != own.shape:
            raise CannotReplayError("alone, a sample has outputs of another shape")
        off = torch.linalg.vector_norm((own.detach() - there).double())
        eps = torch.finfo(own.dtype).eps
        allowed = 1e-5 if eps < 1e-12 else 2e-3 if eps < 1e-6 else 1e-1
        return bool(off <= allowed * torch.linalg.vector_norm(there.double()))

    def _of_outputs(self, places: Sequence[int]) -> Found:
        """The gradient of some samples' outputs in the whole batch."""
        chosen = torch.tensor(places, dtype=torch.int32)
        masked = {
            path: g * torch.isin(self._codes[path], chosen).to(g.device)
            for path, g in self._gradients.items()
        }
        return self._gradient(self._outputs, masked, retain=True)

    def _gradient(self, outputs: Found, gradients: Found, *, retain: bool = False) -> Found:
        if not gradients:
            return {}
        found = torch.autograd.grad(
            [outputs[path] for path in gradients], list(self._parameters.values()),
            list(gradients.values()), retain_graph=retain, allow_unused=True,
        )  # fmt: skip
        named = zip(self._parameters, found, strict=True)
        return {name: g for name, g in named if g is not None}

    @staticmethod
    def _add(sums: Mapping[str, Tensor], group: int, found: Found) -> None:
        for name, g in found.items():
            if name in sums:
                sums[name][group] += g.to(sums[name].dtype)
