"""What of an attribution goes into a training checkpoint, and how it comes back.

With the model's and the optimizer's own state, this is all that the next step's values depend on.
What is not in it is computed again: the opening validation pass, and where samples lie in each
operation. An audit that was going on is in it too, and goes on where the loop begins one again.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from inrun.attribution._loop import Loop
from inrun.attribution._record import Record
from inrun.errors import InRunError, MisuseError, StoreError
from inrun.ledger import pack_state, unpack_state
from inrun.momentum import Payouts
from inrun.owners import IdReader
from inrun.scoring import Scorer, Windows


class Checkpoint:
    """Gathers the parts' states and hands them out again.

    `kind` is what must be the same in both runs: estimator, targets, weights.
    """

    def __init__(
        self, kind: Mapping[str, Any], loop: Loop, scorer: Scorer, window: Payouts | None,
        record: Record, windows: Windows | None = None,
    ):  # fmt: skip
        self._kind, self._loop, self._record = kind, loop, record
        self._processes = scorer.processes
        paying = None if window is None else window.contraction
        self._parts: dict[str, Any] = {"scorer": scorer, "paying": paying, "windows": windows}

    def state(self, ids: IdReader) -> dict[str, Any]:
        """What a checkpoint needs, as plain tensors and strings; see `Attribution.state_dict`."""
        self._loop.finish()
        if self._loop.pending:
            raise MisuseError(
                "state_dict() was called between backward() and optimizer.step(). The gradients "
                "of that step are in no checkpoint, so its samples would be lost. Call it after "
                "the step."
            )
        self._loop.close_window()
        kept: dict[str, Any] = {"record": self._record.state(self._loop.booking.owed())}
        for name, part in self._parts.items():
            kept[name] = ({}, {}) if part is None else part.state()
        header = {
            "kind": self._kind,
            "taken": self._loop.taken,
            "scored": self._loop.booking.scored,
            "frequency": self._loop.frequency.state(),
            "ids": ids.kind,
            "audit": self._loop.audit_state(),
            **{name: told for name, (told, _) in kept.items()},
        }
        named = {f"{part}/{n}": t for part, (_, found) in kept.items() for n, t in found.items()}
        return pack_state(header, named)

    def restore(self, state: Mapping[str, Any]) -> IdReader:
        """See `Attribution.load_state_dict`.

        It returns who reads ids of the kind that the run had.
        """
        header, tensors = unpack_state(state)
        try:
            return self._restore(header, tensors)
        except InRunError:
            raise
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise StoreError(
                f"The attribution's state is malformed ({type(error).__name__}: {error}): another "
                "version or program wrote it. Resume from another checkpoint, or start a new run."
            ) from error

    def _restore(self, header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> IdReader:
        """The same, of a state whose digest fits."""
        for name, now in self._kind.items():
            then = header["kind"].get(name)
            if then != now:
                raise MisuseError(
                    f"The state is of a run with {name} {then!r}, and this one has {now!r}. Attach "
                    "as before, or start a new run without the state."
                )
        if self._loop.inside or self._loop.pending:
            raise MisuseError("load_state_dict() came within a step. Call it before the loop.")

        found: dict[str, dict[str, Tensor]] = defaultdict(dict)
        for name, t in tensors.items():
            of, _, own = name.partition("/")
            found[of][own] = t
        self._record.restore(header["record"], found["record"])
        if self._processes.size > 1 and header["record"]["store"] is not None:
            self._record.take_books(self._processes.gathered(self._record.stored_books())[0])
        for of, part in self._parts.items():
            if part is not None:
                part.restore(header[of], found[of])
        ids = IdReader(header["ids"])
        self._loop.frequency.restore(header["frequency"])
        self._loop.booking.go_on(header["scored"])
        self._loop.go_on(header["taken"], header.get("audit"))
        return ids
