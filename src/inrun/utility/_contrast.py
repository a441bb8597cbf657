"""A behaviour as a utility: the margin of a wanted over an unwanted answer, beside its control.

With L the loss of an answer (the mean negative log-probability of its tokens), over the same rows:

    margin     V = L(wanted) - L(unwanted)           falls as the wanted answer becomes likelier
    control    V = (L(wanted) + L(unwanted)) / 2     falls as either answer does

A training sample that only resembles the rows (their format, topic, length) makes both answers
likelier: it moves the control and not the margin. A ranking by the margin that is the control's too
says little of the behaviour; `inrun.confounds` and the report compare the two. Several behaviours
have a margin and a control each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from inrun.errors import MisuseError
from inrun.utility._rows import row_count
from inrun.utility._utility import LossFunction, Utility

MARGIN, CONTROL = "margin", "control"


class _Answers(NamedTuple):
    """Both answers to the same rows, and what the unwanted one's loss is multiplied by."""

    wanted: Any
    unwanted: Any
    sign: float


class _Loss:
    """The loss of one answer, or of two together."""

    def __init__(self, of_one: LossFunction):
        self._of_one = of_one

    def __call__(self, model: nn.Module, batch: Any) -> Tensor:
        if not isinstance(batch, _Answers):
            return self._of_one(model, batch)
        both = self._of_one(model, batch.wanted) + batch.sign * self._of_one(model, batch.unwanted)
        return both if batch.sign < 0 else both / 2


def _own_loss(model: nn.Module, batch: Any) -> Tensor:
    """What a Hugging Face model returns of a batch with labels."""
    loss: Tensor = model(**batch).loss
    return loss


def controls_of(targets: Sequence[str]) -> dict[str, str]:
    """Each behaviour's target among these, and the target that is its control."""
    if CONTROL in targets:
        return {MARGIN: CONTROL}
    pairs = {name: f"{name} {CONTROL}" for name in targets}
    return {name: control for name, control in pairs.items() if control in targets}


def contrast(
    good: Any,
    bad: Any = None,
    *,
    control: Any = None,
    loss_fn: LossFunction = _own_loss,
    batch_size: int | None = None,
) -> Utility:
    """The margin of the wanted over the unwanted answer as a utility, with a control beside it.

    The total is the margin alone; `control` is a target of weight 0, so that every sample has a
    value for it too. Of several behaviours it is the margins' mean, and each has a target of its
    own name with its control: 'refuses' and 'refuses control'.

    Args:
        good: prompts with the wanted answers: one batch, as `loss_fn` takes it. Or several
            behaviours: `{"refuses": (good, bad), "flatters": (good, bad, control)}`.
        bad: the same prompts, row for row, with the unwanted answers; not with several.
        control: a batch of something benign that has nothing to do with the behaviour; where not
            given, the control is the mean loss of both answers.
        loss_fn: `loss_fn(model, batch)`, the mean loss of the answers in a batch; where not given,
            `model(**batch).loss`, with -100 as the label of the prompt's tokens.
        batch_size: see `inrun.Utility`; the loss must then be a mean over rows.

    Returns:
        A utility with the targets 'margin' and 'control', or a pair for each behaviour. Positive
        values made the wanted answer likelier against the unwanted one, in the units of the loss.

    Raises:
        MisuseError: good and bad have not the same number of rows, or several behaviours are not
            given as pairs by name.

    Example:
        >>> import torch, inrun
        >>> from torch import nn
        >>> x = torch.randn(6, 3)
        >>> loss_fn = lambda model, batch: nn.functional.cross_entropy(model(batch[0]), batch[1])
        >>> wanted, unwanted = (x, torch.ones(6).long()), (x, torch.zeros(6).long())
        >>> utility = inrun.contrast(wanted, unwanted, loss_fn=loss_fn)
        >>> utility.targets, utility.weights
        (('margin', 'control'), (1.0, 0.0))
    """
    one = bad is not None
    several = {MARGIN: (good, bad, control)} if one else _pairs(good, control)
    targets, weights = dict[str, Any](), dict[str, float]()
    for name, (wanted, unwanted, benign) in several.items():
        _require_alike(name, row_count(wanted), row_count(unwanted))
        beside = CONTROL if one else f"{name} {CONTROL}"
        targets[name] = _Answers(wanted, unwanted, -1.0)
        targets[beside] = _Answers(wanted, unwanted, 1.0) if benign is None else benign
        weights |= {name: 1.0, beside: 0.0}
    return Utility(_Loss(loss_fn), targets=targets, weights=weights, batch_size=batch_size)


def _pairs(given: Any, control: Any) -> dict[str, tuple[Any, Any, Any]]:
    """Good, bad and control or None by the behaviour's name."""
    well = isinstance(given, Mapping) and given and control is None
    if not well or not all(isinstance(p, tuple) and len(p) in (2, 3) for p in given.values()):
        raise MisuseError(
            "contrast takes good and bad, or one mapping of several behaviours by name: "
            '{"refuses": (good, bad), "flatters": (good, bad, control)}, each with its own control.'
        )
    return {str(name): (*pair, None)[:3] for name, pair in given.items()}


def _require_alike(name: str, good: int | None, bad: int | None) -> None:
    if None not in (good, bad) and good != bad:
        of = "" if name == MARGIN else f" of {name!r}"
        raise MisuseError(
            f"good{of} has {good} rows and bad {bad}. A margin compares two answers to the same "
            "prompt: give both one row per prompt, in the same order."
        )
