"""Which parameters are captured, how, and what share of the update that is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import pyarrow as pa
import torch
from torch import Tensor, nn

from inrun.capture._mode import CaptureMode
from inrun.capture._reading import Reading


class Coverage:
    """What was seen of each parameter so far."""

    def __init__(self, model: nn.Module, trained: Mapping[str, Tensor]):
        self._trained = dict(trained)
        ids = {id(p) for p in trained.values()}
        self._untrained = {n: p for n, p in model.named_parameters() if id(p) not in ids}
        self._how: dict[str, set[str]] = {}
        self._why_not: dict[str, str] = {}
        self._norms: dict[str, float] = {}  # of gradients
        self._squares: dict[str, float] = {}  # of updates
        self._unread: tuple[list[str], Reading] | None = None
        self.gaps: list[str] = []
        self._owners: dict[str, set[str]] = {}
        self.interactions: dict[str, None] = {}
        self.unknown: dict[str, None] = {}
        self.by_exchange: set[str] = set()
        self._checked: dict[str, dict[str, int]] = {}
        self._unchecked: dict[str, str] = {}

    def saw(self, name: str, how: str) -> None:
        """A factor of this parameter was built, in this way."""
        self._how.setdefault(name, set()).add(how)

    def followed(self, mode: CaptureMode) -> None:
        """What following the owners of a block came upon."""
        self._why_not.update(mode.skipped)
        self.by_exchange |= mode.owners.by_exchange
        for use in mode.uses:
            for name in use.roots:
                self._owners.setdefault(name, set()).add(use.owners)
        self.interactions |= dict.fromkeys(mode.owners.interactions)
        if "mixed" in mode.started_from:
            self.interactions[mode.root_why] = None
        if "unknown" in mode.started_from:
            self.unknown[mode.root_why] = None

    def measured(self, norms: Mapping[str, float], gaps: list[str]) -> None:
        """Gradient norms of a step, and the parameters of which it captured nothing."""
        self._norms, self.gaps = dict(norms), gaps

    def checked(self, names: Iterable[str], how: str, step: int) -> None:
        """The owners of these parameters' slots were right in a check."""
        for name in names:
            self._checked.setdefault(name, {})[how] = step

    def not_checked(self, how: str, why: str) -> None:
        self._unchecked[how] = why

    def updated(self, squares: Mapping[str, Tensor]) -> None:
        """Squared norms of what a step's gradients move, lr * (u(g) - u(0)), by parameter."""
        if squares:
            rows = torch.stack([t.detach().float() for t in squares.values()])
            self._unread = list(squares), Reading(rows)

    def wants_updates(self, step: int) -> bool:
        """Whether a step's updates are to be measured.

        Where there are gaps those of every step; else of the 1st, 2nd, 4th, 8th and so on, since
        the share is 1 anyway.
        """
        return bool(self.gaps) or not step & (step - 1)

    def _shares(self) -> dict[str, float]:
        """Of each parameter, of the squared update; of the squared gradient before any step."""
        if self._unread is not None:
            (names, reading), self._unread = self._unread, None
            self._squares = dict(zip(names, reading.wait()[0].tolist(), strict=True))
        found = self._squares or {name: norm**2 for name, norm in self._norms.items()}
        total = sum(found.values())
        return {name: size / total if total > 0 else 0.0 for name, size in found.items()}

    @property
    def share(self) -> float:
        """Captured part of the squared norm of the last step's update by gradients, 0 to 1."""
        if not self.gaps:
            return 1.0
        shares = self._shares()
        return 1.0 - sum(shares.get(name, 0.0) for name in self.gaps)

    def explain(self, name: str) -> str:
        return self._why_not.get(
            name,
            "no torch operation was seen to use it: code that PyTorch compiled, or that is hidden "
            "from it, did",
        )

    def table(self) -> pa.Table:
        """One row per parameter.

        Columns: parameter, shape, elements, status ('captured', 'not captured', 'no gradient',
        'not trained'), captured_as (operation: form), update_share (of the squared norm of what
        gradients moved, in the last step in which it was measured), owners ('followed', 'exchanged'
        or 'given': how it is known whose slots are whose), owners_checked (the checks on training
        batches that agreed, each with its last step, or 'not checked: ' and why).
        """
        shares = self._shares()
        rows = [{**_facts(name, p), **self._row(name, shares)} for name, p in self._trained.items()]
        nothing = {"captured_as": "", "update_share": 0.0, "owners": "", "owners_checked": ""}
        rest = {"status": "not trained", **nothing}
        rows += [{**_facts(name, p), **rest} for name, p in self._untrained.items()]
        return pa.Table.from_pylist(rows)

    def _row(self, name: str, shares: Mapping[str, float]) -> dict[str, object]:
        how = sorted(self._how.get(name, ()))
        missed = name in self.gaps
        return {
            "status": "not captured" if missed else "captured" if how else "no gradient",
            "captured_as": self.explain(name) if missed else ", ".join(how),
            "update_share": shares.get(name, 0.0),
            "owners": "" if missed else ", ".join(sorted(self._owners.get(name, ()))),
            "owners_checked": "" if missed or not how else self._checks_of(name),
        }

    def _checks_of(self, name: str) -> str:
        done = self._checked.get(name)
        if not done:
            reasons = dict.fromkeys(self._unchecked.values()) or ["no block has ended yet"]
            return f"not checked: {'; '.join(reasons)}"
        return ", ".join(f"{how} step {step}" for how, step in done.items())


def _facts(name: str, p: Tensor) -> dict[str, object]:
    shape = "x".join(str(n) for n in p.shape) or "1"
    return {"parameter": name, "shape": shape, "elements": p.numel()}
