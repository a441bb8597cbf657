"""The memory that a training takes, and its numbers for people. Bytes throughout."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import torch


class Meter:
    """The highest memory from now on: the process's growth, on a GPU the allocator's own peak."""

    def __init__(self, device: torch.device):
        self._device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        with suppress(OSError):  # not Linux, or not allowed: the highest of its whole life
            Path("/proc/self/clear_refs").write_text("5")
        self._start = _resident("VmRSS")

    @property
    def memory(self) -> int:
        """At the highest point so far."""
        if self._device.type == "cuda":
            return int(torch.cuda.max_memory_allocated(self._device))
        return max(0, _resident("VmHWM") - self._start)


def _resident(what: str) -> int:
    """Resident memory of this process, in bytes: 'VmRSS' now, 'VmHWM' at its highest."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:  # not Linux: the highest is all there is to ask for
        import resource
        import sys

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
    return int(next(line for line in lines if line.startswith(what)).split()[1]) * 1024


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
