"""The command `inrun` run in a folder as a user would, with what it printed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from benchmarks.data import UnavailableError

WIDTH = 100


def printed(folder: Path, command: str) -> str:
    """What `inrun ...` prints in that folder, without the folder's own name.

    Raises:
        UnavailableError: the command failed, with what it said.
    """
    program = Path(sys.executable).with_name("inrun")
    done = subprocess.run(
        [str(program), *command.split()[1:]],
        cwd=folder, capture_output=True, text=True, check=False,
        env=os.environ | {"COLUMNS": str(WIDTH), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    if done.returncode not in (0, 3):  # 3: a pruning that its check did not support
        raise UnavailableError(f"{command} failed: {done.stderr.strip()[-1000:]}")
    text = done.stdout.replace(f"{folder.resolve()}/", "")
    return "\n".join(line.rstrip() for line in text.strip().splitlines())


def transcript(folder: Path, *commands: str) -> str:
    """The commands with a prompt, each followed by what it printed."""
    return "\n\n".join(f"$ {command}\n{printed(folder, command)}" for command in commands)
