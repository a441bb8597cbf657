"""How much is scored within a share of the training's time: what is chosen, and by which times.

For some tens of steps both kinds of step are timed: scored ones, and those that are left out. What
is chosen is the most faithful of these that stays within the share,

    every step | every step, half of the validation rows per pass | scoring windows | one step in n

Windows are tried where they are known for the training: three of four steps, timed as well. With a
step inside one costing `inside` and its last one `border`, beyond a plain step and relative to it,
a window of n steps costs inside + (border - inside) / n, and the shortest that fits is taken.
Where the ends of windows turn (see `inrun.scoring`), single steps are scored instead, for a while.

Times are medians, and those of several processes are averaged, so that all of them choose alike. A
choice depends on steps before it alone: weighted totals stay unbiased.
"""

from __future__ import annotations

import copy
import math
import time
from collections import deque
from collections.abc import Mapping
from statistics import median
from typing import Any, NamedTuple

import torch

from inrun.attribution._frequency import Frequency, Ways, draw
from inrun.ledger import TOLD, promised
from inrun.scoring import AUDITED, LONGEST

KINDS = {"plain": 24, "first": 9, "exact": 9, "opening": 9, "inside": 24, "border": 9, "audited": 9}
"""Kinds of step, and how many times of each are looked at: left out; scored among the unusual first
ones; scored later; in a window that follows none, within one, its last; in an audited window."""
UNUSUAL = 12  # first steps: Adam's first are smoothed, ranks are on trial
FIRST, MEASURING = 8, 4  # steps of which one is scored, among the unusual ones and while measuring
ENOUGH = 3  # times of a kind to go by
TRIAL = 4  # steps of a window that is tried
HOPELESS = 20  # shares that an exact step costs, from where on no window is tried
GROWTH = 4  # times that n may be larger than the one before, while it is not sure
MOST = 1000  # steps that one scored step may stand for
REPAID = 100  # steps in which what was spent beyond the share is to come in again
CHECKED = 50  # steps after which a training of which every step is scored is looked at again
AGAIN = 4  # times the step at which windows were given up, when they are tried again
KEPT = (
    "begins", "length", "n", "place", "counts", "costs", "paid", "guess", "again", "tried", "way",
    "words",
)  # fmt: skip
"""What a checkpoint keeps as it is."""


class _Began(NamedTuple):
    """A step under way: whether it is scored, its clock, and windows that were over at its start.

    `kind`: of a step that is not in a window; of one in a window that of an opening one, or ''.
    """

    step: int
    weight: float
    kind: str
    clock: float
    over: int


class WithinBudget(Frequency):
    """Asked at each step's beginning; see the module."""

    def __init__(self, share: float, ways: Ways):
        self._share, (self._processes, self._halves, self._windows) = share, ways
        self._begins = self._length = 0  # of the present stratum, or of what is scored as a whole
        self._n, self._place = FIRST, -1  # steps that a scored one stands for; the one drawn
        self._times = {kind: deque[float](maxlen=most) for kind, most in KINDS.items()}
        self._counts = dict.fromkeys(KINDS, 0)
        self._costs: dict[str, float] = {}  # beyond a plain step, relative to it
        self._paid = 0.0  # in plain steps, by steps whose times are looked at no more
        self._guess: float | None = None  # an exact step's cost, from before its price changed
        self._again, self._tried = 0, 0  # when windows are tried again; those over before that
        self._began: _Began | None = None
        self._way, self._words = "", "not made yet: the ways to score are being timed"

    def weight(self, step: int) -> float:
        """How many steps this one stands for: 1 in windows, and where every step is scored."""
        if self._began is not None and self._began.step == step:
            return self._began.weight  # asked again, it says the same
        self._time(step)
        windows = self._windows
        fresh = not self.windowed or self._began is None
        if windows is None or not windows.is_open:
            if self.windowed or step >= self._begins + self._length:
                self._choose(step)
            fresh |= not self.windowed
        if self.windowed:
            assert windows is not None
            kind, weight = "opening" if fresh else "", 1.0
            if windows.audits:
                kind = "audited"
        else:
            scored = self._n == 1 or step - self._begins == self._place
            kind = ("first" if step < UNUSUAL else "exact") if scored else "plain"
            weight = float(self._n) if scored else 0.0
        over = 0 if windows is None else len(windows.told)
        self._began = _Began(step, weight, kind, time.perf_counter(), over)
        return weight

    # ---- times

    def _time(self, step: int) -> None:
        """Takes the time of the step before, where this one follows it."""
        began = self._began
        if began is None or began.step != step - 1:
            return
        kind = began.kind
        if not kind:
            assert self._windows is not None
            kind = "border" if len(self._windows.told) > began.over else "inside"
        if kind != "plain" or began.step >= UNUSUAL:
            self._times[kind].append(time.perf_counter() - began.clock)
            self._counts[kind] += 1

    def _measured(self) -> dict[str, float]:
        """By kind, what a step costs beyond a plain one, relative to it: in all processes alike."""
        own = [median(times) if times else math.nan for times in self._times.values()]
        found = self._processes.mean(torch.tensor(own, dtype=torch.float64)).tolist()
        times = dict(zip(self._times, found, strict=True))
        plain = times.pop("plain")
        if len(self._times["plain"]) < ENOUGH or not plain > 0:
            return {}
        return {k: max(0.0, t / plain - 1) for k, t in times.items() if math.isfinite(t)}

    def _settle(self, *kinds: str) -> None:
        """Steps of these kinds cost something else from now on."""
        for kind in kinds:
            self._paid += self._counts[kind] * self._costs.get(kind, 0.0)
            self._counts[kind] = 0
            self._times[kind].clear()

    @property
    def _spent(self) -> float:
        """What scoring took so far, in plain steps."""
        costs = self._costs
        return self._paid + sum(self._counts[kind] * cost for kind, cost in costs.items())

    def _allowed(self, step: int) -> float:
        """What a step may cost now: the share, less what is to come in again."""
        return self._share - max(0.0, self._spent - self._share * (step - 1)) / REPAID

    # ---- the choice

    def _choose(self, step: int) -> None:
        """What is scored from this step on, until it is asked again."""
        self._begins, self.windowed = step, False
        self._costs = self._measured()
        extra = self._costs.get("exact", self._guess)
        if extra is None:
            self._stratum(FIRST if step <= UNUSUAL else MEASURING)
            return
        sure = len(self._times["exact"]) >= ENOUGH
        hopeless = extra > HOPELESS * self._share
        if not sure and not hopeless and not self._tried:
            self._stratum(MEASURING)
        elif sure and extra <= self._share:
            self._every()
        elif sure and self.parts == 1 and self._halves and extra / 2 <= self._share:
            self._halve(extra)
            self._stratum(MEASURING)
        elif hopeless or not self._in_windows(step, extra):
            self._sampled(step, extra, sure)

    def _stratum(self, n: int) -> None:
        """One random step of the next n."""
        self._n = self._length = n
        self._place = draw(self._begins, n)

    def _every(self) -> None:
        self._n, self._length = 1, CHECKED
        half = " on half of the validation rows per pass" if self.parts > 1 else ""
        self._decide("every", f"every step is scored{half}: values are exact")

    def _halve(self, extra: float) -> None:
        """Passes look at half of the rows each from now on."""
        self.parts, self._guess = 2, extra
        self._settle("exact")

    def _in_windows(self, step: int, extra: float) -> bool:
        """Opens a window, where windows fit and their ends do not turn."""
        windows = self._windows
        if windows is None or step < self._again:
            return False
        if self._again or not self._tried:  # a trial begins
            self._settle("inside", "border")
            self._again, self._tried = 0, len(windows.told) + 1
        n = TRIAL
        if len(self._times["border"]) >= ENOUGH:
            audits = extra / AUDITED
            fits = self._shortest(self._allowed(step), audits)
            fits = fits or self._shortest(self._share, audits)
            last = windows.told[self._tried - 1 :][-3:]
            seen = [w.cosine for w in last if w.steps <= (fits or 0)]
            turned = len(seen) == 3 and median(seen) < TOLD
            if fits is None or turned:
                self._again = AGAIN * step
                return False
            n = fits
            cost = self._of_windows(n) + audits
            words = promised(windows.told[-1].cosine, n)
            self._decide(
                "windows",
                f"scoring windows, of {n} steps at first: where their ends turn as little as so "
                f"far, trainings had {words} with exact values. They add {cost:.1%} to the time; "
                f"every step would add {extra:.1%}",
            )
        self.parts = 1  # both ends of a window see the same rows
        self.windowed = True
        self._n = self._length = n
        windows.set_length(n)
        return True

    def _of_windows(self, n: int) -> float:
        """What a step costs in windows of n."""
        inside, border = self._costs["inside"], self._costs["border"]
        return inside + (border - inside) / n

    def _shortest(self, allowed: float, audits: float) -> int | None:
        """The shortest window that costs no more; None where none does."""
        if not {"inside", "border"} <= self._costs.keys():
            return None
        lengths = range(1, LONGEST + 1)
        return next((n for n in lengths if self._of_windows(n) + audits <= allowed), None)

    def _sampled(self, step: int, extra: float, sure: bool) -> None:
        if self._halves and self.parts == 1:
            self._halve(extra)
            sure = False
        allowed = self._allowed(step)
        n = math.ceil(extra / allowed - 1e-9) if allowed > 0 else MOST
        n = max(1, min(MOST, n))
        self._stratum(n if sure else min(n, GROWTH * self._n))
        steady = max(1, math.ceil(extra / self._share - 1e-9))
        self._decide(
            "sampled",
            f"one random step in about {steady}, which stands for the others: sums over many "
            "samples are unbiased, single samples' values err as relative_error says. Every step "
            f"would add {extra:.1%} to the time; windows {self._why_no_windows(extra)}",
        )

    def _why_no_windows(self, extra: float) -> str:
        if self._windows is None:
            return "are not known for this optimizer or these settings"
        if extra > HOPELESS * self._share:
            return "were not tried, since they cannot be so much cheaper"
        told = self._windows.told[-3:]
        if told and median(w.cosine for w in told) < TOLD:
            return f"turn too much within (cosine {median(w.cosine for w in told):.2f})"
        return f"of {LONGEST} steps would add {self._of_windows(LONGEST):.1%}"

    def _decide(self, way: str, words: str) -> None:
        """Takes a way to score; where it is another one than before, that is news."""
        if way != self._way:
            self._way, self._news = way, words
        self._words = words

    # ---- from outside

    def leave_windows(self) -> bool:
        self._windows, self.windowed, self._began = None, False, None
        return True

    def state(self) -> dict[str, Any]:
        kept = copy.deepcopy({name: getattr(self, f"_{name}") for name in KEPT})
        times = {kind: list(seen) for kind, seen in self._times.items()}
        return {**kept, "times": times, "parts": self.parts, "windowed": self.windowed}

    def restore(self, state: Mapping[str, Any]) -> None:
        for name in KEPT:
            setattr(self, f"_{name}", copy.deepcopy(state[name]))
        self.parts, self.windowed = state["parts"], state["windowed"]
        for kind, seen in self._times.items():
            seen.clear()
            seen.extend(state["times"][kind])
        self._began = None

    def describe(self) -> dict[str, Any]:
        window = float(self._length) if self.windowed else 0.0
        every = 1.0 if self.windowed else float(self._n)
        told = {
            "budget": self._share, "every": every, "window": window, "parts": float(self.parts),
            "choice": self._words,
        }  # fmt: skip
        extra = self._costs.get("exact", self._guess)
        if extra is None:
            return told
        timed = {"inside", "border"} <= self._costs.keys()
        expected = extra / every
        if self.windowed:
            expected = self._of_windows(self._length) if timed else math.nan
        return {**told, "extra": extra, "expected": expected, "spent": self._spent}
