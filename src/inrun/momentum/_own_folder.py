"""Folders that go with their process: by `close`, at the program's end, at SIGTERM; or else later.

A scheduler ends jobs by SIGTERM, at which Python runs nothing of its own: while such a folder is
there, and where the program has no handler for it, one is set that removes the folders and then
ends the process as the signal would have. After a kill -9 nothing can be removed. Each folder
therefore holds a lock (see `inrun.ledger.Lock`), which goes with its process, and the next run that
is given the same place removes those whose process has ended on this machine, or that are of the
run which it goes on with.
"""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import threading
import weakref
from contextlib import suppress
from pathlib import Path
from types import FrameType

from inrun.errors import StoreError
from inrun.ledger import Lock, machine

_PREFIX = "inrun-payout-"
_open: weakref.WeakSet[OwnFolder] = weakref.WeakSet()


class OwnFolder:
    """A folder of one's own within the given one, which must be there."""

    def __init__(self, within: Path):
        self.path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=within))
        self._lock = Lock(self.path)
        self._close = weakref.finalize(self, _remove, self.path, self._lock, os.getpid())
        _open.add(self)
        _heed_sigterm()

    def adopt(self, run: str | None) -> None:
        """Says whose the folder is, and removes those that an ended process of its has left.

        `run` is the stored run's id, whose lock is held; None without a store.
        """
        if run is not None:
            self._lock.say(run=run)
        for other in self.path.parent.glob(_PREFIX + "*"):
            if other != self.path:
                _remove_abandoned(other, run)

    def close(self) -> None:
        """Removes it. May be called twice."""
        self._close()
        _open.discard(self)
        if not _open:
            _heed_sigterm_no_more()


def _remove(path: Path, lock: Lock, process: int) -> None:
    if os.getpid() == process:  # a child that was forked off has no right to it
        shutil.rmtree(path, ignore_errors=True)
        lock.release()


def _remove_abandoned(path: Path, run: str | None) -> None:
    said = Lock.said(path)
    here, same = said.get("machine") == machine(), run is not None and said.get("run") == run
    if not (here or same):
        return  # of another machine, where it may be in use, or without a lock yet
    with suppress(StoreError):  # its process goes on
        lock = Lock(path, take_over=False)
        shutil.rmtree(path, ignore_errors=True)
        lock.release()


def _heed_sigterm() -> None:
    """Has folders removed at SIGTERM, where that is left to Python's default."""
    if threading.current_thread() is not threading.main_thread():
        return  # elsewhere no handler can be set
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _terminated)


def _heed_sigterm_no_more() -> None:
    if threading.current_thread() is not threading.main_thread():
        return
    if signal.getsignal(signal.SIGTERM) is _terminated:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _terminated(number: int, frame: FrameType | None) -> None:
    for folder in list(_open):
        folder._close()
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
