"""One writer per run: a lock in the folder that names the process and the machine which hold it.

The lock is the system's own (`flock` on `run.lock`): it goes with its process, however that ends,
so that no killed run leaves one behind. The file's text says who holds it. A program that attaches
again to a run that it holds itself, as a notebook's cell that is run twice does, takes the lock
over; so does a process on a file system that keeps no locks between machines. Whoever held it
before is refused at its next part: visits are never mixed.
"""

from __future__ import annotations

import importlib
import json
import os
import socket
import uuid
import weakref
from contextlib import suppress
from pathlib import Path
from typing import Any

from inrun.errors import StoreError

fcntl: Any = None  # on Windows: the process that the file names is looked for instead
with suppress(ImportError):
    fcntl = importlib.import_module("fcntl")

LOCK = "run.lock"
_held: weakref.WeakSet[Lock] = weakref.WeakSet()


class Lock:
    """Holds a folder from when it is made until `release`, or its process ends.

    Args:
        folder: which must be there.
        take_over: whether it is had although this program holds it already.

    Raises:
        StoreError: another process holds it, or the disk refused.
    """

    def __init__(self, folder: Path, *, take_over: bool = True):
        self._path = folder / LOCK
        self._about = {**_own(), "token": uuid.uuid4().hex}
        for other in list(_held) if take_over else ():
            if other._is_of(self._path):
                other.release()
        try:
            self._file = self._taken()
            self.say()
        except OSError as error:
            raise StoreError(
                f"{folder} cannot be locked for this run ({error}). Without a lock two processes "
                "could write into it at once."
            ) from error
        self._release = weakref.finalize(self, _let_go, self._file, self._path)
        _held.add(self)

    def _taken(self) -> int:
        """The lock's open file, locked."""
        while True:
            file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                if not _locked(file, self._path):
                    raise _in_use(self._path)
                with suppress(FileNotFoundError):  # it was removed in between, by its last holder
                    if os.path.samestat(os.fstat(file), os.stat(self._path)):
                        return file
            except BaseException:
                os.close(file)
                raise
            os.close(file)

    def _is_of(self, path: Path) -> bool:
        try:
            return self._release.alive and os.path.samestat(os.fstat(self._file), os.stat(path))
        except OSError:
            return False

    def say(self, **about: str) -> None:
        """Writes into the lock who holds it, and what else there is to say.

        Raises:
            OSError: the disk refused.
        """
        self._about |= about
        content = json.dumps(self._about).encode()
        os.lseek(self._file, 0, os.SEEK_SET)
        os.write(self._file, content)
        os.ftruncate(self._file, len(content))

    @staticmethod
    def said(folder: Path) -> dict[str, Any]:
        """What a folder's lock says; nothing where there is none that can be read."""
        return _said(folder / LOCK)

    def is_held(self) -> bool:
        """Whether nobody else has taken the folder over."""
        return self._release.alive and _said(self._path).get("token") in (
            self._about["token"],
            None,
        )

    def demand(self) -> None:
        """Raises where somebody else has taken the folder over.

        Raises:
            StoreError: so it is.
        """
        if not self.is_held():
            raise StoreError(
                f"{self._path.parent} was taken over by {_who(_said(self._path))}, which goes on "
                "with this run. Nothing more is written here; what was written before is whole."
            )

    def release(self) -> None:
        """Lets the folder go. May be called twice."""
        self._release()


def _locked(file: int, path: Path) -> bool:
    """Whether the lock could be had."""
    if fcntl is not None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:  # a file system without locks
            return not _lives(_said(path))
        return True
    return not _lives(_said(path))


def _lives(found: dict[str, Any]) -> bool:
    """Whether the process that a lock names is known to run."""
    own = _own()
    if found.get("machine") != own["machine"] or found.get("process") in (own["process"], None):
        return False
    try:
        os.kill(int(found["process"]), 0)
    except PermissionError:
        return True
    except (OSError, ValueError):
        return False
    return True


def machine() -> str:
    """This machine's name."""
    return socket.gethostname()


def _own() -> dict[str, Any]:
    return {"process": os.getpid(), "machine": machine()}


def _said(path: Path) -> dict[str, Any]:
    """What a lock's file says; nothing where it says nothing that can be read."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _who(found: dict[str, Any]) -> str:
    if "process" not in found:
        return "another process"
    return f"process {found['process']} on machine {found.get('machine')!r}"


def _in_use(path: Path) -> StoreError:
    return StoreError(
        f"{path.parent} is being written by {_who(_said(path))}: two at once would mix their "
        "visits and lose some. Wait until it has ended, end it, or name another folder."
    )


def _let_go(file: int, path: Path) -> None:
    """Removes the lock's file, if it is still this one's, and unlocks."""
    with suppress(OSError):
        if os.path.samestat(os.fstat(file), os.stat(path)):
            os.unlink(path)
    with suppress(OSError):
        os.close(file)


def _forget_in_child() -> None:
    """After a fork: the lock is the parent's, and its file is closed here."""
    for lock in list(_held):
        if lock._release.detach() is not None:
            with suppress(OSError):
                os.close(lock._file)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)
