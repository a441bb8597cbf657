"""Where a recorded run is kept: on disk, or in memory for a run that ends with its process.

On disk there is what a replay needs, and nothing that could run code:

    trajectory.json               format, steps, interval, clip norm, parameters, modes, digests
    steps.jsonl                   one line per step, appended as training goes
    states/00000000.safetensors   the state after that many steps, see `_snapshot.py`
    random/00000001.safetensors   random state before each block of that step, where it was used

The manifest keeps a digest of every file, and one over everything else in it: what was changed
since is refused. Recordings of format 1 have none.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from inrun.errors import StoreError
from inrun.ledger import file_digest, read_versioned, write_document
from inrun.replay import _snapshot

FORMAT = 2
MANIFEST = "trajectory.json"
FILES = ("steps.jsonl", "states/*.safetensors", "random/*.safetensors")

Ids = list[int] | list[str]


@dataclass(frozen=True)
class Block:
    """One forward and backward pass: whose, in which mode, and whether it drew random numbers."""

    ids: Ids
    mode: int
    random: bool


@dataclass(frozen=True)
class Step:
    """One optimizer step: its blocks, the groups' settings, the gradient's length, the clip.

    `norm` is the length of the gradient as the blocks left it, `clip` what it was multiplied with
    before the optimizer consumed it.
    """

    number: int
    blocks: tuple[Block, ...]
    groups: tuple[Mapping[str, Any], ...]
    norm: float
    clip: float

    @property
    def samples(self) -> int:
        """Rows over all blocks."""
        return sum(len(block.ids) for block in self.blocks)


class Memory:
    """Keeps a run in memory, for as long as the process lives; knows nothing of models."""

    def __init__(self) -> None:
        self._steps: list[Step] = []
        self._states: dict[int, _snapshot.Snapshot] = {}
        self._random: dict[int, dict[str, Tensor]] = {}

    def __repr__(self) -> str:
        return "memory"

    def create(self) -> None:
        """Nothing: it is empty."""

    def add(self, step: Step) -> None:
        """Appends a step."""
        self._steps.append(step)

    def steps(self) -> list[Step]:
        """All steps."""
        return self._steps

    def keep(self, state: int, snapshot: _snapshot.Snapshot) -> None:
        """Keeps a state."""
        self._states[state] = snapshot

    def give_up(self, states: Sequence[int]) -> None:
        """Forgets states."""
        for state in states:
            self._states.pop(state, None)

    def state(self, state: int) -> _snapshot.Snapshot:
        """A kept state."""
        return self._states[state]

    def kept(self) -> list[int]:
        """Numbers of the kept states, ascending."""
        return sorted(self._states)

    def keep_random(self, step: int, states: dict[str, Tensor]) -> None:
        """Keeps a step's random states."""
        self._random[step] = states

    def random(self, step: int) -> dict[str, Tensor]:
        """A step's random states."""
        return self._random[step]

    def finish(self, manifest: Mapping[str, Any]) -> None:
        """Nothing: the run ends with the process."""

    def size(self) -> int:
        """Bytes on disk: none."""
        return 0


class Folder:
    """Keeps a run in files; the same methods as `Memory`."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._written: tuple[Mapping[str, Any], ...] | None = None
        self._digests: Mapping[str, str] | None = None

    def __repr__(self) -> str:
        return repr(str(self.path))

    def create(self) -> None:
        if (self.path / MANIFEST).exists() or (self.path / "steps.jsonl").exists():
            raise StoreError(
                f"{self.path} holds a recorded run already. Name a new folder, or remove it first."
            )
        try:
            for part in ("states", "random"):
                (self.path / part).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"No run can be recorded in {self.path}: {error}") from error

    def finish(self, manifest: Mapping[str, Any]) -> None:
        """Writes what the run is, whole or not at all."""
        told = {"format": FORMAT, **manifest, "files": _file_digests(self.path)}
        write_document(self.path / MANIFEST, told)

    def manifest(self) -> dict[str, Any]:
        """What the run is."""
        if not (self.path / MANIFEST).exists():
            raise StoreError(
                f"{self.path} is not a recorded run: it has no {MANIFEST}. A recording is complete "
                "after recorder.finish()."
            )
        found = read_versioned(self.path / MANIFEST)
        self._digests = found.get("files")
        return found

    def add(self, step: Step) -> None:
        """Appends a step; settings are written where they changed."""
        line = {
            "number": step.number,
            "blocks": [vars(block) for block in step.blocks],
            "groups": None if step.groups == self._written else list(step.groups),
            "norm": step.norm,
            "clip": step.clip,
        }
        self._written = step.groups
        try:
            with open(self.path / "steps.jsonl", "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        except (OSError, TypeError) as error:
            raise StoreError(f"Step {step.number} could not be recorded: {error}") from error

    def steps(self) -> list[Step]:
        found: list[Step] = []
        groups: tuple[Mapping[str, Any], ...] = ()
        path = self.path / "steps.jsonl"
        self._require(path)
        try:
            for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
                line = json.loads(text)
                groups = groups if line["groups"] is None else tuple(line["groups"])
                blocks = tuple(Block(**block) for block in line["blocks"])
                if line["number"] != number:
                    raise ValueError(f"line {number} is of step {line['number']}")
                found.append(Step(number, blocks, groups, line["norm"], line["clip"]))
        except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
            raise StoreError(f"{path} is torn ({error}): record the run again.") from error
        return found

    def _state(self, state: int) -> Path:
        return self.path / "states" / f"{state:08d}.safetensors"

    def keep(self, state: int, snapshot: _snapshot.Snapshot) -> None:
        _snapshot.write(self._state(state), snapshot)

    def give_up(self, states: Sequence[int]) -> None:
        for state in states:
            self._state(state).unlink(missing_ok=True)

    def state(self, state: int) -> _snapshot.Snapshot:
        return self._read(self._state(state))

    def kept(self) -> list[int]:
        return sorted(int(path.stem) for path in (self.path / "states").glob("*.safetensors"))

    def keep_random(self, step: int, states: dict[str, Tensor]) -> None:
        _snapshot.write(self.path / "random" / f"{step:08d}.safetensors", states)

    def random(self, step: int) -> dict[str, Tensor]:
        return self._read(self.path / "random" / f"{step:08d}.safetensors")

    def _require(self, path: Path) -> None:
        """Raises where a file is not the one that was recorded."""
        if self._digests is None:
            return  # an older recording, or one that is still being made
        try:
            found = file_digest(path)
        except OSError as error:
            raise StoreError(
                f"{path} is missing or torn ({error}). A replay starts from it: record the run "
                "again."
            ) from error
        if self._digests.get(path.relative_to(self.path).as_posix()) != found:
            raise StoreError(
                f"{path} is torn or was changed since it was recorded: its digest does not fit. "
                "Put the original back, or record the run again."
            )

    def _read(self, path: Path) -> dict[str, Tensor]:
        self._require(path)
        return _snapshot.read(path)

    def size(self) -> int:
        return sum(path.stat().st_size for path in self.path.rglob("*") if path.is_file())


Keeper = Memory | Folder


def _file_digests(folder: Path) -> dict[str, str]:
    """SHA-256 of each file in a recording, by its path in it; the manifest is not among them."""
    files = [path for part in FILES for path in sorted(folder.glob(part))]
    return {path.relative_to(folder).as_posix(): file_digest(path) for path in files}
