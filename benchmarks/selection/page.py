"""Writes docs/evidence/selection.md and its plot from the cells on disk."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.claims import CLAIMS
from benchmarks.classification.tasks import RECIPES, split
from benchmarks.compared import Gain, above, below, by_seed, compared, listed, require, sentence
from benchmarks.markdown import fill, long_table
from benchmarks.results_file import RESULTS, environments
from benchmarks.selection.cell import BATCH, HORIZONS, KEPT, ROUNDS, TASK, VALIDATION, Setting, told
from benchmarks.selection.plot import Cells, of_setting, plot, titled
from benchmarks.selection.price import ONE_LOOK, PRICE, STEPS, TIMED
from inrun.uses import half_interval
from inrun.uses._one_look import STRENGTH

DOCS = Path(__file__).parents[2] / "docs"
CONTROLS = ("full", "random", "loss")
FIRST, ROUNDS_16 = "online 1", "online 1, rounds 16"


def write_page() -> None:
    """Reads what is there and writes the page."""
    stored = json.loads((RESULTS / "selection.json").read_text())["cells"]
    cells, priced = of_kind(stored, ""), of_kind(stored, PRICE)
    here, recipe = Path(__file__).parent, RECIPES[TASK]
    parts = {
        "STEPS": str(next(iter(stored.values()))["result"]["steps"]),
        "BATCH": str(BATCH),
        "KEPT": str(KEPT),
        "SHARE": f"{KEPT / BATCH:g}",
        "TRAINING": f"{recipe.training:,}",
        "VALIDATION": str(VALIDATION),
        "TEST": str(len(split(TASK, 0.0, 0).test[1])),
        "PARAMETERS": f"{sum(p.numel() for p in recipe.build().parameters()):,}",
        "NOISES": " or ".join(titled(noise) for noise in _noises(cells)),
        "SEEDS": _seeds(cells),
        **findings(cells),
        **_price(cells, priced),
        "FINDINGS": (here / "findings.md").read_text().strip(),
        "ACCURACY": _table(cells, "accuracy", lambda x: _spread(100 * np.array(x), 1)),
        "LOSS": _table(cells, "test_loss", lambda x: _spread(np.array(x), 2)),
        "GAINS": _gains(cells),
        "RUN": environments(stored),
    }
    fill(here / "page.md", parts, DOCS / "evidence" / "selection.md")
    plot(cells, DOCS / "img" / "selection.svg")


def of_kind(stored: Mapping[str, Any], kind: str) -> Cells:
    """Arms by setting, of the cells whose keys begin so."""
    return {
        Setting.of(key.removeprefix(kind)): cell["result"]["arms"]
        for key, cell in stored.items()
        if key.startswith(PRICE) == bool(kind)
    }


def _seeds(cells: Cells) -> str:
    """How many seeds every setting has, in words where they differ."""
    counts = {
        len(of_setting(cells, noise, rate)) for noise in _noises(cells) for rate in _rates(cells)
    }
    return str(counts.pop()) if len(counts) == 1 else f"{min(counts)} to {max(counts)}"


def arms() -> list[str]:
    """Names of all arms, as tables show them."""
    each = [f"{kind} {told(h)}" for kind in ("online", "offline") for h in HORIZONS]
    rounds = [f"online 1, rounds {n}" for n in ROUNDS]
    return [*CONTROLS, *each[: len(HORIZONS)], *rounds, *each[len(HORIZONS) :],
            "offline, random", "offline, loss"]  # fmt: skip


def _noises(cells: Cells) -> list[float]:
    return sorted({s.noise for s in cells}, reverse=True)


def _rates(cells: Cells) -> list[float]:
    return sorted({s.rate for s in cells})


def _spread(numbers: np.ndarray, digits: int) -> str:
    if not len(numbers):
        return "not measured"
    if len(numbers) == 1:
        return f"{numbers[0]:.{digits}f} (1)"
    half = half_interval(numbers)
    return f"{numbers.mean():.{digits}f} ± {half:.{digits}f} ({len(numbers)})"


def _table(cells: Cells, figure: str, told_as: Callable[[list[float]], str]) -> str:
    rates = _rates(cells)
    rows = [
        [
            titled(noise),
            name,
            *(told_as([a[name][figure] for a in of_setting(cells, noise, r)]) for r in rates),
        ]
        for noise in _noises(cells)
        for name in arms()
    ]
    head = ["labels", "arm", *(f"rate {r:g}" for r in rates)]
    caption = f"{figure.replace('_', ' ').capitalize()} by labels, arm and learning rate"
    return long_table(f"selection_{figure}", caption, head, rows)


def against(
    cells: Cells, control: str, noise: float, kind: str = "", names: Sequence[str] = ()
) -> dict[str, Gain]:
    """Gains of arms (of all, if none are named) whose name begins so over another, in points."""
    chosen = [name for name in names or arms() if name.startswith(kind) and name != control]
    return compared({name: _seeds_gains(cells, name, control, noise) for name in chosen})


def _seeds_gains(
    cells: Cells, name: str, control: str, noise: float, rate: float | None = None
) -> list[float]:
    chosen = [(s, a) for s, a in cells.items() if s.noise == noise and rate in (None, s.rate)]
    return by_seed(
        chosen,
        lambda c: c[0].seed,
        lambda c: 100 * (c[1][name]["accuracy"] - c[1][control]["accuracy"]),
    )


def _gains(cells: Cells) -> str:
    found = {noise: against(cells, "random", noise) for noise in _noises(cells)}
    rows = []
    for name in arms():
        row = [name]
        for gains in found.values():
            row.append(f"{gains[name].told(1)} ({gains[name].p:.3f})" if name in gains else "")
        wrong = [a[name]["wrong"] for s, a in cells.items() if s.noise]
        times = [a[name]["seconds"] / a["random"]["seconds"] for a in cells.values()]
        rows.append([*row, f"{np.mean(wrong):.0%}", f"{np.median(times):.1f}"])
    head = ["arm", *(titled(noise) for noise in _noises(cells)), "wrong among trained", "time"]
    return long_table("selection", "Gains over `random`", head, rows)


def _price(cells: Cells, priced: Cells) -> dict[str, str]:
    """The table of arms in turn, and one look beside sixteen rounds over all settings.

    Raises:
        ValueError: they do not bear the claim in `benchmarks/claims.py`.
    """
    ours, theirs = _points_over_random(priced, ONE_LOOK), _points_over_random(cells, ROUNDS_16)
    plain = _points_over_random(priced, next(iter(TIMED)))
    require(theirs - 0.5 < ours < plain and _times(priced, ONE_LOOK) < 2, CLAIMS["selection"].claim)
    names, rows = [*STEPS, *TIMED], []
    found = {n: against(priced, "random", n, names=names) for n in _noises(priced)}
    for name in names:
        told = [f"{g[name].told(1)} ({g[name].p:.3f})" if name in g else "" for g in found.values()]
        wrong = np.mean([a[name]["wrong"] for s, a in priced.items() if s.noise])
        steps = np.median([a[name]["steps"] for a in priced.values()])
        rows.append([name, *told, f"{wrong:.0%}", f"{steps:.0f}", f"{_times(priced, name):.2f}"])
    head = ["arm", *map(titled, found), "wrong among trained", "steps", "time"]
    return {
        "PRICE": long_table("selection_price", "All arms in turn", head, rows),
        "PRICED": str(len(priced)),
        "ONE_GAIN": f"{ours:+.1f}",
        "ONE_TIME": f"{_times(priced, ONE_LOOK):.2f}",
        "ROUNDS_GAIN": f"{theirs:+.1f}",
        "ONE_LOOK": ONE_LOOK,
        "ROUNDS_TIME": f"{_times(cells, ROUNDS_16):.0f}",
        "STRENGTH": f"{STRENGTH:g}",
    }


def _times(priced: Cells, name: str) -> float:
    """Seconds over those of `random`, median over cells."""
    return float(np.median([a[name]["seconds"] / a["random"]["seconds"] for a in priced.values()]))


def _points_over_random(cells: Cells, name: str) -> float:
    gains = [a[name]["accuracy"] - a["random"]["accuracy"] for a in cells.values()]
    return 100 * float(np.mean(gains))


def _horizons(cells: Cells) -> str:
    """A list of what the data say of online arms, by labels."""
    found = {noise: against(cells, FIRST, noise, "online") for noise in _noises(cells)}
    return "\n".join(
        f"  - {titled(noise)}: {sentence(gains, f'`{FIRST}`', rest=False)}."
        for noise, gains in found.items()
    )


def _by_rate(cells: Cells, control: str, kind: str) -> str:
    """Arms above another at a single rate, corrected for arms and rates together."""
    said = []
    for noise in _noises(cells):
        gains = {
            (name, rate): _seeds_gains(cells, name, control, noise, rate)
            for rate in _rates(cells)
            for name in arms()
            if name.startswith(kind) and name != control
        }
        found = compared(gains)
        chosen = sorted(above(found))
        for rate in sorted({rate for _, rate in chosen}):
            names = listed(name for name, at in chosen if at == rate)
            said.append(f"{names} ({titled(noise)}, {rate:g})")
    return "; ".join(said) or "none is told"


def findings(cells: Cells) -> dict[str, str]:
    """What the data say, in words.

    Raises:
        ValueError: they do not bear the claim in `benchmarks/claims.py`.
    """
    nearer = [against(cells, FIRST, noise, "online") for noise in _noises(cells)]
    chance = [against(cells, "random", noise) for noise in _noises(cells)]
    far = {"online 8", "online 16", "online run"}
    require(
        all(ROUNDS_16 in above(f) and far <= set(below(f)) for f in nearer)
        and all(above(f) == ["full"] for f in chance),
        CLAIMS["selection"].claim,
    )
    offline = [against(cells, "offline, random", noise, "offline") for noise in _noises(cells)]
    require(not any(above(f) for f in offline), "no offline horizon is told from its control")
    times = [np.median([a[name]["seconds"] for a in cells.values()]) for name in (FIRST, ROUNDS_16)]
    return {
        "ARMS": str(len(arms()) - 1),
        "RANDOM_RATES": _by_rate(cells, "random", ""),
        "HORIZON": _horizons(cells),
        "OFFLINE_RATES": _by_rate(cells, "offline, random", "offline"),
        "ROUNDS": f"{times[0] / times[1]:.0%}",
    }


def summary(cells: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """For the page of all benchmarks."""
    plain, priced = of_kind(cells, ""), of_kind(cells, PRICE)
    ours = f"{_points_over_random(priced, ONE_LOOK):+.1f}, {_times(priced, ONE_LOOK):.2f}"
    rows = [("one look (`rounds=None`): points over `random`, times its time", ours, "")]
    for name in ("full", FIRST, ROUNDS_16, "online 8", "offline 1", "loss"):
        gain = f"{_points_over_random(plain, name):+.1f}"
        rows.append((f"`{name}`: points of accuracy over `random`", gain, ""))
    return rows
