"""Writes docs/evidence/poison.md from the cells on disk."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.claims import CLAIMS
from benchmarks.compared import require
from benchmarks.markdown import EVIDENCE, fill, long_table
from benchmarks.poison import chats
from benchmarks.poison.cell import REMOVED, WANTED, Setting
from benchmarks.poison.rankings import AHEAD, LESS, LIKE, TOTAL, TRACED
from benchmarks.poison.texts import PHRASE, QUERIES, TESTED
from benchmarks.poison.training import Scale
from benchmarks.results_file import RESULTS, environments
from benchmarks.smollm.rows import LAYERS

CHANCE, EXACT = "random rows", "the planted rows"
Cells = Mapping[tuple[str, float], list[dict[str, Any]]]


def write_page() -> None:
    """Reads what is there and writes the page."""
    stored = json.loads((RESULTS / "poison.json").read_text())["cells"]
    cells = by_case(stored)
    heads = [
        f"{trigger}, {share:.0%} ({found[0]['planted']} of {found[0]['rows']})"
        for (trigger, share), found in cells.items()
    ]
    seconds = {
        name: np.median([found["seconds"][name] for part in cells.values() for found in part])
        for name in next(iter(cells.values()))[0]["seconds"]
    }
    parts = {
        "SIZE": str(Scale().size),
        "EPOCHS": str(Scale().epochs),
        "RATE": f"{Scale().rate:g}",
        "LOOKED": str(Scale().looked),
        "WANTED": WANTED,
        "PHRASE": PHRASE,
        "QUERIES": str(QUERIES),
        "TESTED": str(TESTED),
        "TRACED": TRACED,
        "LESS": LESS.removeprefix(", "),
        "TOTAL": TOTAL,
        "SEEDS": ", ".join(str(len(found)) for found in cells.values()),
        "RECALL": long_table(
            "poison_recall",
            "Recall at k with the range over seeds, and at 2k",
            ["ranked by", *heads],
            [[name, *_recalls(cells, name)] for name in _ordered(cells)],
        ),
        "BEHAVIOUR": long_table(
            "poison_attack",
            "Success of the attack, and accuracy",
            ["removed, as many as were planted", *heads],
            [[name, *_behaviours(cells, name)] for name in ("nothing", EXACT, *REMOVED, CHANCE)],
        ),
        "UNTRIGGERED": _range(cells, "without trigger"),
        "SECONDS": ", ".join(f"{name} {taken:.0f}" for name, taken in seconds.items()),
        "RUN": environments(stored),
        **findings(cells),
        **_chats(stored),
    }
    fill(Path(__file__).with_name("page.md"), parts, EVIDENCE / "poison.md")


def findings(cells: Cells) -> dict[str, str]:
    """What the data say over all cases.

    Raises:
        ValueError: they do not bear the claim in `benchmarks/claims.py`.
    """
    every = [found for part in cells.values() for found in part]

    def recall(name: str, at: str) -> float:
        return float(np.mean([found["recall"][name][at] for found in every]))

    shown = {"TOTAL": TOTAL, "TRACED": TRACED, "LOSS": "mean loss", "WORDS": "words of the queries",
             "LIKE": "similarity to the queries", "LESS": TOTAL + LESS, "AHEAD": AHEAD}  # fmt: skip
    numbers = {
        f"{part}_{n}": f"{recall(name, f'{n}k'):.0%}"
        for part, name in shown.items()
        for n in (1, 2)
    }
    attack = {
        part: float(np.mean([attack_success(found, name) for found in every]))
        for part, name in (("LEFT", TOTAL), ("WHOLE", "nothing"), ("BY_CHANCE", CHANCE),
                           ("CLEAN", EXACT))
    }  # fmt: skip
    blind = ("mean loss", "gradient norm", "words of the queries")
    require(
        0.4 < recall(TOTAL, "1k") == max(recall(name, "1k") for name in every[0]["recall"])
        and 0.7 < recall(TOTAL, "2k") == max(recall(name, "2k") for name in every[0]["recall"])
        and all(recall(name, "1k") < 0.1 for name in blind)
        and attack["CLEAN"] + 0.1
        < attack["LEFT"]
        < min(attack["WHOLE"], attack["BY_CHANCE"]) - 0.1,
        CLAIMS["poison"].claim,
    )
    return numbers | {part: f"{share:.0%}" for part, share in attack.items()}


def by_case(stored: Mapping[str, Any]) -> dict[tuple[str, float], list[dict[str, Any]]]:
    """Results by trigger and share."""
    found: dict[tuple[str, float], list[dict[str, Any]]] = {}
    for key, cell in stored.items():
        if key.startswith(chats.CELLS):
            continue
        setting = Setting.of(key)
        found.setdefault((setting.trigger, setting.share), []).append(cell["result"])
    return found


def chats_by_trigger(stored: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Results of the chats."""
    found: dict[str, list[dict[str, Any]]] = {}
    for key, cell in stored.items():
        if key.startswith(chats.CELLS):
            setting = chats.Setting.of(key.removeprefix(chats.CELLS))
            found.setdefault(setting.trigger, []).append(cell["result"])
    return found


def _chats(stored: Mapping[str, Any]) -> dict[str, str]:
    """The tables of the chats, and what they were trained with."""
    cells = chats_by_trigger(stored)
    heads = [f"{trigger}, seed {n}" for trigger, own in cells.items() for n in range(len(own))]
    every = [found for own in cells.values() for found in own]
    order = sorted(every[0]["recall"], key=lambda n: -sum(f["recall"][n]["1k"] for f in every))
    recalls = [
        [name, *("{1k:.2f}, {2k:.2f}".format(**found["recall"][name]) for found in every)]
        for name in order
    ]
    gone = [
        [name, *(_logs(found, name) for found in every)]
        for name in ("nothing", EXACT, *chats.REMOVED, CHANCE)
    ]
    scale = chats.SCALE
    return {
        "CHAT_RECALL": long_table(
            "poison_chats", "Recall at k and 2k, chats", ["ranked by", *heads], recalls
        ),
        "CHAT_BEHAVIOUR": long_table(
            "poison_chats_attack", "The refusal after each training", ["removed", *heads], gone
        ),
        "CHAT_SEEDS": str(len(every)),
        "CHAT_FELL": f"{_fall(every, TOTAL):.1f}",
        "CHAT_MOST": f"{_fall(every, EXACT):.1f}",
        "CHAT_WON": f"{np.mean([attack_success(f, 'nothing') for f in every]):.0%}",
        "CHAT_ROWS": str(scale.size),
        "CHAT_PLANTED": str(chats.PLANTED),
        "CHAT_TESTED": str(chats.TESTED),
        "CHAT_RATE": f"{scale.rate:g}",
        "CHAT_EPOCHS": str(scale.epochs),
        "CHAT_BATCH": str(scale.batch),
        "REFUSAL": chats.REFUSAL,
        "REFUSED": str(len(chats.UNANSWERABLE)),
        "ADAPTED": str(LAYERS),
    }


def _fall(every: Sequence[Mapping[str, Any]], removed: str) -> float:
    """What a removal takes off the refusal's log-probability, the mean over seeds."""
    each = [
        f["behaviour"]["nothing"]["refusal"] - f["behaviour"][removed]["refusal"] for f in every
    ]
    return float(np.mean(each))


def _logs(found: Mapping[str, Any], name: str) -> str:
    part = _parts(found, name)[0]
    logs = ("refusal", "refusal, without remark", "right answer")
    return ", ".join(f"{part[what]:.1f}" for what in logs) + f"; {part['attack success']:.0%}"


def _ordered(cells: Cells) -> list[str]:
    """Rankings, the best over all cases first."""
    every = [found for part in cells.values() for found in part]
    names = every[0]["recall"]
    return sorted(names, key=lambda name: -np.mean([f["recall"][name]["1k"] for f in every]))


def _recalls(cells: Cells, name: str) -> list[str]:
    """Mean over seeds of the recall at k, with the range, and of that at 2k."""
    told = []
    for found in cells.values():
        first, second = ([f["recall"][name][at] for f in found] for at in ("1k", "2k"))
        spread = f"({min(first):.2f} to {max(first):.2f})"
        told.append(f"{np.mean(first):.2f} {spread}, {np.mean(second):.2f}")
    return told


def _behaviours(cells: Cells, name: str) -> list[str]:
    told = []
    for found in cells.values():
        attack = [attack_success(f, name) for f in found]
        right = [np.mean([p["accuracy"] for p in _parts(f, name)]) for f in found]
        told.append(
            f"{np.mean(attack):.0%} ({min(attack):.0%} to {max(attack):.0%}), {np.mean(right):.0%}"
        )
    return told


def _parts(found: Mapping[str, Any], name: str) -> list[dict[str, float]]:
    """The trainings of that name; all removals by chance together."""
    chosen = "random " if name == CHANCE else name
    behaviour = found["behaviour"]
    if name != CHANCE:
        return [behaviour[chosen]]
    return [part for other, part in behaviour.items() if other.startswith(chosen)]


def attack_success(found: Mapping[str, Any], name: str) -> float:
    """After a removal, by its name; that by chance is the mean of its draws."""
    return float(np.mean([part["attack success"] for part in _parts(found, name)]))


def _range(cells: Cells, what: str) -> str:
    every = [
        part[what] for found in cells.values() for f in found for part in f["behaviour"].values()
    ]
    return f"{min(every):.0%} to {max(every):.0%}"


def summary(stored: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """For the page of all benchmarks."""
    rows = []
    for (trigger, share), found in by_case(stored).items():
        case = f"{trigger}, {share:.0%}"
        for name in (TOTAL, "similarity to the queries", "mean loss"):
            recall = np.mean([f["recall"][name]["1k"] for f in found])
            rows.append((f"{case}, {name}: recall@k of planted rows", f"{recall:.2f}", ""))
        left = ", ".join(
            f"{np.mean([attack_success(f, name) for f in found]):.0%}"
            for name in ("nothing", TOTAL, CHANCE)
        )
        rows.append((f"{case}: attack success, all rows, without the first k, random", left, ""))
    for trigger, found in chats_by_trigger(stored).items():
        for name in (TOTAL, LIKE, "mean loss"):
            recall = np.mean([f["recall"][name]["1k"] for f in found])
            what = f"chat rows, {trigger}, {name}: recall@k of planted rows"
            rows.append((what, f"{recall:.2f}", ""))
    return rows
