"""How a choice of samples did beside its controls, over several seeds.

Differences between arms are taken within a seed. A choice is supported where it beats each of its
controls (the 95 % interval of the difference lies above 0); training on all samples it need only
not be shown to be worse than (the interval reaches 0), since it does less work.

How many trainings there will be is planned with the first call. Once there are as many, and no
more, intervals are Student's; before, and where trainings were added, somebody has looked, and they
are those that hold at every look (`_gain`). A choice that is worth nothing is supported with
probability 0.05 at most then, whenever one stops; of the planned number alone, with 0.025.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import pyarrow as pa

from inrun.answers import Answer
from inrun.uses._gain import Mean, mean_of, next_of, smallest_seen

ALL, PRUNED, RANDOM = ARMS = ("all samples", "pruned", "random control")


@dataclass(frozen=True, repr=False)
class Comparison(Answer):
    """What `inrun.check_pruning` and `inrun.select.check` return.

    Attributes:
        scores: one number per seed for each arm, as `train` returned them: higher is better.
        seconds: mean time of a training, by arm.
        choice: the arm in question; the others are its controls.
        saved: the share of the samples that it leaves out, where that is all that it does.
        planned: how many trainings of each arm there were to be; None where that is not known.
    """

    scores: dict[str, list[float]]
    seconds: dict[str, float]
    choice: str
    saved: float | None = None
    planned: int | None = None

    @property
    def controls(self) -> list[str]:
        """The other arms."""
        return [arm for arm in self.scores if arm != self.choice]

    @property
    def looked(self) -> bool:
        """Whether trainings are fewer or more than planned, for which intervals then allow."""
        return self.planned not in (None, len(self.scores[self.choice]))

    def mean(self, arm: str) -> Mean:
        """An arm's mean score and Student's 95 % interval."""
        return mean_of(self.scores[arm])

    def gain(self, over: str) -> Mean:
        """By how much the choice beats another arm, seed by seed."""
        return mean_of(self._gains(over), looked=self.looked)

    def next_gain(self, over: str) -> Mean:
        """The same mean, and where the gain in one further training is expected with 95 %."""
        return next_of(self._gains(over))

    def smallest_seen(self, over: str) -> float:
        """The mean gain that so many trainings would have shown with a probability of 80 %."""
        return smallest_seen(self._gains(over), looked=self.looked)

    def _gains(self, over: str) -> list[float]:
        return [a - b for a, b in zip(self.scores[self.choice], self.scores[over], strict=True)]

    @property
    def supported(self) -> bool:
        """Whether it beats every control, and is not shown to be worse than all samples."""
        gains = {arm: self.gain(arm) for arm in self.controls}
        return all(gain.high >= 0 if arm == ALL else gain.low > 0 for arm, gain in gains.items())

    @property
    def decided(self) -> bool:
        """Whether more trainings would hardly change the verdict, be it support or loss."""
        return self.supported or any(self.gain(arm).high < 0 for arm in self.controls)

    @property
    def verdict(self) -> str:
        """In a sentence."""
        gains = {arm: self.gain(arm) for arm in self.controls}
        better = " and than ".join(arm for arm, gain in gains.items() if gain.low > 0)
        if self.supported:
            not_worse = "" if gains.get(ALL, (0, 1))[1] > 0 else f", not shown worse than {ALL}"
            saves = f", and saves {self.saved:.0%} of the work of each pass" if self.saved else ""
            return f"Supported: better than {better}{not_worse}{saves}."
        for arm, gain in gains.items():
            if gain.high < 0:
                return f"Not supported: training on {arm} is better."
        rest = " or than ".join(a for a, gain in gains.items() if a != ALL and not gain.low > 0)
        return f"Not supported: {self.choice} is not shown to be better than {rest}."

    def sentences(self) -> list[str]:
        """The verdict, what could have been seen, what to expect of one further training."""
        seeds = len(self.scores[self.choice])
        number = f"{seeds} trainings of each arm"
        said = [self.verdict]
        if self.looked:
            number += f", {self.planned} planned; intervals allow a look after each"
        said.append(f"{number}; low and high are 95 % intervals.")
        for arm in self.controls:
            smallest, ahead = self.smallest_seen(arm), self.next_gain(arm)
            if math.isfinite(smallest):
                said.append(
                    f"Over {arm}, a mean gain of {smallest:.2g} would have been seen four times "
                    f"of five; the next training: {ahead.low:+.2g} to {ahead.high:+.2g}."
                )
        return said

    def to_arrow(self) -> pa.Table:
        """One row per arm: its mean score, what the choice gains over it, and a training's time.

        `gain_low` and `gain_high` are the mean gain's interval; `next_low` and `next_high` are
        where one further training's gain is expected.
        """
        rows = []
        for arm in self.scores:
            own, gain = self.mean(arm), self.gain(arm)
            none = arm == self.choice
            rows.append(
                {
                    "arm": arm, "score": own.mean, "low": own.low, "high": own.high,
                    "gain": None if none else gain.mean,
                    "gain_low": None if none else gain.low,
                    "gain_high": None if none else gain.high,
                    "smallest_seen": None if none else self.smallest_seen(arm),
                    "next_low": None if none else self.next_gain(arm).low,
                    "next_high": None if none else self.next_gain(arm).high,
                    "seconds": self.seconds[arm],
                }
            )  # fmt: skip
        return pa.Table.from_pylist(rows)
