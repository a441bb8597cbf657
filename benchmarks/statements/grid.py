"""Which cells there are, of five kinds, and what measures one."""

from __future__ import annotations

from typing import Any

from benchmarks.statements import audits, cell, flips, halves, tails


def grid(quick: bool) -> list[str]:
    """The standard cells, or one of them."""
    kinds = [("imbalanced", 0.0), ("imbalanced", 0.2), ("balanced", 0.2), ("mnist", 0.2)]
    trained = [(shares, noise, data) for data in range(4) for shares, noise in kinds]
    trained += [("r8", noise, data) for data in range(2) for noise in (0.0, 0.2)]
    draws_of = {
        "balanced": (10, 11, 12, 13, 20, 21),
        "mnist": (10, 11, 20, 21),
        "r8": (10, 11),
    }  # others than the count was made with
    planted = [
        flips.Setting(kind, shares, noise, data).key
        for shares, draws in draws_of.items()
        for data in draws
        for kind in flips.KINDS
        for noise in (0.0, 0.05, 0.1, 0.2, 0.4)
    ]
    cells = [audits.Setting(name, data).key for data in range(3) for name in audits.CHANGES]
    cells += [tails.Setting(kind, noise).key for kind in tails.TAILS for noise in tails.NOISES]
    cells += planted
    cells += [halves.Setting(*setting).key for setting in trained]
    cells += [cell.Setting(*setting).key for setting in trained]
    return cells[:1] if quick else cells


def measure(key: str) -> dict[str, Any]:
    """A cell of any of the kinds; its name begins with the kind's first field."""
    kinds: dict[str, Any] = {"shares": cell, "flips": flips, "audit": audits}
    kinds |= {"halves": halves, "tails": tails}
    measured: dict[str, Any] = kinds[key.split("=")[0]].measure(key)
    return measured
