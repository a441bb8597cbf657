"""How much is looked at: which steps are scored, and with how many of the validation rows."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from typing import ClassVar

from inrun.attribution._budget import WithinBudget
from inrun.attribution._frequency import All, Coin, Frequency, OneInEach, Ways
from inrun.errors import MisuseError, NotSupportedError
from inrun.scoring import Scorer, Windows


@dataclass(frozen=True, kw_only=True, repr=False)
class Scoring(ABC):
    """How much of a training is looked at.

    Args:
        validation_parts: each validation pass looks at one of so many parts of the rows, in turn.
            It costs as much less, and each step's values are those for the part's loss: over a run
            they average out. By how much a step lowered the loss is not known then, nor is the
            residual.
        validation_every: a validation pass after every so many steps only; the steps between are
            judged by the last pass's gradient. Totals over a run keep most of their agreement
            (docs/evidence/budget.md), but in a single step an older gradient can be worth nothing
            or less (training swings along sharp directions), so this is warned about. The losses
            of steps without a pass are not known, nor is their residual.

    Raises:
        MisuseError: a number that is none of parts or steps.
    """

    only_windows: ClassVar[bool] = False

    validation_parts: int = 1
    validation_every: int = 1

    def __post_init__(self) -> None:
        for name in ("validation_parts", "validation_every"):
            given = getattr(self, name)
            if isinstance(given, bool) or not isinstance(given, int) or given < 1:
                raise MisuseError(f"{name}={given!r} is not a whole number of at least 1.")

    def __repr__(self) -> str:
        told = [(f, getattr(self, f.name)) for f in fields(self)]
        said = ", ".join(f"{f.name}={value!r}" for f, value in told if value != f.default)
        return f"{type(self).__name__}({said})"

    @property
    @abstractmethod
    def sampled(self) -> bool:
        """Whether steps may be left out."""

    @abstractmethod
    def frequency(self, ways: Ways) -> Frequency:
        """What is asked at each step's beginning."""

    def windows(self, scorer: Scorer) -> Windows | None:
        """The windows that share a direction; None where each step has its own.

        Raises:
            NotSupportedError: windows are not known for its model or its optimizers.
        """
        return None


@dataclass(frozen=True, kw_only=True, repr=False)
class EveryStep(Scoring):
    """Every step is scored, the default; see `Scoring` for what it takes.

    Example:
        >>> import inrun
        >>> inrun.EveryStep(validation_parts=2)
        EveryStep(validation_parts=2)
    """

    sampled = False

    def frequency(self, ways: Ways) -> Frequency:
        return All()


@dataclass(frozen=True, repr=False)
class Sampled(Scoring):
    """A share of the steps is scored, drawn at random; the others cost nothing.

    Scored steps stand for the others: values are multiplied so that totals stay unbiased, and
    `values()` has their `standard_error`.

    Args:
        every: score one random step of each so many, or, below 1, each step with this probability.
        validation_parts: see `Scoring`.
        validation_every: see `Scoring`.

    Raises:
        MisuseError: neither a number of steps nor a probability.

    Example:
        >>> import inrun
        >>> inrun.Sampled(4)
        Sampled(every=4)
    """

    every: int | float

    def __post_init__(self) -> None:
        super().__post_init__()
        every = self.every
        if isinstance(every, bool) or not isinstance(every, int | float) or not every > 0:
            raise MisuseError(f"every={every!r} is neither a number of steps nor a probability.")
        if every > 1 and every != int(every):
            raise MisuseError(
                f"every={every} is no whole number of steps, and above 1 no probability either."
            )

    @property
    def sampled(self) -> bool:
        """Whether steps are left out."""
        return self.every != 1

    def frequency(self, ways: Ways) -> Frequency:
        if self.every == 1:
            return All()
        return Coin(float(self.every)) if self.every < 1 else OneInEach(int(self.every))


@dataclass(frozen=True, repr=False)
class Window(Scoring):
    """Steps are scored in windows that share one direction: the mode that costs least.

    A validation pass at each window's border only, and inside the backward pass a few numbers per
    sample and layer; nothing else is kept. Values are written at the window's end. Each window's
    rows of the ledger say by its ends' cosine how well such values agree with those of `EveryStep`:
    where the validation gradient turns within a window, they do not (docs/uses/spend-less.md).

    Args:
        steps: of a window, or 'auto': from 1 to 20, twice as many where the ends' cosine is above
            0.9, half as many below 0.7, and no more than a tenth of the steps before it.
        rank: of the bases in which large matrices' shares are kept.
        exact: how many first steps are scored one by one, as with `EveryStep`, while moments are
            young; at least 1.
        books: whether a window's books are kept with a residual. It takes two copies of the
            weights, and one more for each further target.

    Raises:
        MisuseError: a number that is none of steps, or parts of the validation rows.

    Example:
        >>> import inrun
        >>> inrun.Window(10)
        Window(steps=10)
    """

    steps: int | str = "auto"
    rank: int = 16
    exact: int = 10
    books: bool = True
    sampled = False
    only_windows = True

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("steps", "rank", "exact"):
            given = getattr(self, name)
            if name == "steps" and given == "auto":
                continue
            if isinstance(given, bool) or not isinstance(given, int) or given < 1:
                words = ", nor 'auto'" if name == "steps" else ""
                raise MisuseError(f"{name}={given!r} is no whole number of at least 1{words}.")
        if self.validation_parts > 1 or self.validation_every > 1:
            raise MisuseError(
                "A window meets the same validation rows at both ends: inrun.Window goes without "
                "validation_parts and validation_every. Longer windows cost less."
            )

    def frequency(self, ways: Ways) -> Frequency:
        return All(self.exact)

    def windows(self, scorer: Scorer) -> Windows:
        """See `Scoring.windows`."""
        steps = self.steps if isinstance(self.steps, int) else None
        return _windows(scorer, steps, self.rank, books=self.books)


def _windows(scorer: Scorer, steps: int | None, rank: int = 16, *, books: bool = True) -> Windows:
    """Windows whose direction is formed before their steps."""
    for member, rule in zip(scorer.optimizers.members, scorer.optimizers.rules, strict=True):
        if not rule.elementwise or rule.jumps:
            raise NotSupportedError(
                f"{type(member).__name__} has no slope before its gradient is known (it takes "
                "signs, or mixes a matrix's elements), and a scoring window's direction is "
                "formed before its steps. Use scoring=inrun.EveryStep() or inrun.Sampled(4)."
            )
    return Windows(scorer, steps, rank, books=books)


@dataclass(frozen=True, repr=False)
class Budget(Scoring):
    """What is scored is what a share of the training's time allows.

    For some tens of steps each way to score is timed. Then, whichever is the first that the share
    pays for: every step; every step by half of the validation rows per pass; scoring windows, as
    short as it pays for (see `Window`), where the validation gradient does not turn within them;
    or one random step in n. `Attribution.sampling` says what was chosen, what it costs, and which
    accuracy to expect; so does the note of the ledger's first row from then on.

    Args:
        share: of the training's time that scoring may add: 0.05 for 5 %.
        validation_parts: see `Scoring`.
        validation_every: see `Scoring`.

    Raises:
        MisuseError: a share that leaves no time.

    Example:
        >>> import inrun
        >>> inrun.Budget(0.05)
        Budget(share=0.05)
    """

    share: float
    sampled = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.share, bool) or not isinstance(self.share, int | float):
            raise MisuseError(f"Budget({self.share!r}) is no share of the training's time.")
        if not 0 < self.share < math.inf:
            raise MisuseError(
                f"Budget({self.share}) leaves no time. Give the share of the training's time that "
                "scoring may add, such as 0.05, or use inrun.attach only where needed."
            )

    def frequency(self, ways: Ways) -> Frequency:
        return WithinBudget(float(self.share), ways)

    def windows(self, scorer: Scorer) -> Windows | None:
        # where they are not known others are chosen among
        if self.validation_parts > 1 or self.validation_every > 1:
            return None
        try:
            return _windows(scorer, 1)
        except NotSupportedError:
            return None
