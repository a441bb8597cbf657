"""What a training took: seconds, memory, disk. Bytes throughout."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class Measured:
    """`memory` is the process's growth at its highest, on a GPU the allocator's own peak."""

    seconds: float
    steps: int
    overhead: float
    memory: int
    disk_values: int
    disk_tokens: int
    disk_trajectory: int
    disk_model: int


class Meter:
    """Time from now on, and the highest memory that was seen."""

    def __init__(self, device: torch.device, before: float = 0.0):
        self._device, self._before, self._began = device, before, time.perf_counter()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        else:
            _forget_peak()
        self._start = resident("VmRSS")
        self._highest = 0

    @property
    def seconds(self) -> float:
        """So far, those before a cut included."""
        return self._before + time.perf_counter() - self._began

    @property
    def memory(self) -> int:
        """At the highest point so far."""
        return max(self._highest, self._now())

    def look(self) -> None:
        """Takes note of memory."""
        self._highest = max(self._highest, self._now())

    def _now(self) -> int:
        if self._device.type == "cuda":
            return int(torch.cuda.max_memory_allocated(self._device))
        return max(0, resident("VmHWM") - self._start)

    def result(self, run: Path, seconds: float, overhead: float, steps: int) -> Measured:
        """What it came to, with what lies on disk."""
        return Measured(
            seconds=seconds,
            steps=steps,
            overhead=overhead,
            memory=self.memory,
            disk_values=folder_bytes(run / "visits") + folder_bytes(run / "ledger"),
            disk_tokens=folder_bytes(run / "tokens"),
            disk_trajectory=folder_bytes(run / "trajectory"),
            disk_model=folder_bytes(run / "model"),
        )


def folder_bytes(folder: Path) -> int:
    """What all files below take; 0 where there is no folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def resident(what: str) -> int:
    """Resident memory of this process, in bytes: 'VmRSS' now, 'VmHWM' at its highest."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:  # not Linux: the highest is all there is to ask for
        import resource
        import sys

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
    return int(next(line for line in lines if line.startswith(what)).split()[1]) * 1024


def _forget_peak() -> None:
    """The highest point is counted from now on, where the system can do that."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def in_time(seconds: float) -> str:
    """For people."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def in_bytes(size: float) -> str:
    """For people."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            break
        size /= 1000
    return f"{size:.0f} {unit}" if size >= 100 or unit == "B" else f"{size:.1f} {unit}"
