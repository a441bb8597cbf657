"""Where tensors wait for steps to come: where they are, on the CPU, or in files.

A store gives each tensor back as it was put there: the same numbers in the same order in memory and
on the same device, so that products of it are rounded alike wherever it waited.

On a disk each tensor is a file of the safetensors format in a folder that the store makes for
itself; the file goes with the tensor, the folder with the store. A tensor that a full
disk refuses stays in memory, and `failure` says so: what is under way is never lost half way.
"""

from __future__ import annotations

import itertools
import os
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from inrun.errors import StoreError
from inrun.ledger import store_path
from inrun.momentum._own_folder import OwnFolder

HOST = torch.device("cpu")


@dataclass(frozen=True)
class Holding:
    """Bytes in memory and on disk."""

    memory: int
    disk: int

    def __add__(self, other: Holding) -> Holding:
        return Holding(self.memory + other.memory, self.disk + other.disk)

    def times(self, n: int) -> Holding:
        return Holding(n * self.memory, n * self.disk)


class Kept:
    """A tensor on a tensor_store: here the very tensor.

    `held` is what of it is in memory, `disk` the bytes of its file.
    """

    disk = 0

    def __init__(self, t: Tensor):
        self.held: Tensor | None = t
        self._version = t._version

    def look(self) -> Tensor:
        """The tensor, which stays where it is."""
        assert self.held is not None
        return self.held

    def take(self) -> Tensor:
        """The tensor, which is whoever's it was given to now."""
        t = self.look()
        self.let_go()
        return t

    def let_go(self) -> None:
        """It is not needed any more: memory goes by itself."""

    @property
    def touched(self) -> bool:
        """Whether somebody else has written into it since."""
        return self.held is not None and self.held._version != self._version


class _Moved(Kept):
    """A copy on the CPU."""

    def __init__(self, t: Tensor):
        super().__init__(t.detach().to(HOST, copy=True))
        self._device = t.device

    def look(self) -> Tensor:
        return super().look().to(self._device)


class _Filed(Kept):
    """A file. Strides are those of a copy that keeps the order of elements in memory."""

    def __init__(self, t: Tensor, path: Path):
        self.held = None
        like = torch.empty_like(t, device="meta")
        self._stride, self._device, self._path = like.stride(), t.device, path
        content = save({"t": t.detach().contiguous()})
        self.disk = len(content)
        try:
            path.write_bytes(content)
        except OSError:
            with suppress(OSError):  # a file system that cannot be written to any more
                path.unlink(missing_ok=True)
            raise

    def look(self) -> Tensor:
        try:
            with safe_open(self._path, framework="pt") as file:
                found = file.get_tensor("t")
                t = torch.empty_strided(
                    found.shape, self._stride, dtype=found.dtype, device=self._device
                )
                return t.copy_(found)
        except (OSError, SafetensorError) as error:
            raise StoreError(
                f"{self._path}, in which payout keeps what later steps need, cannot be read "
                f"({error}). Leave the folder of held_in alone while training goes on."
            ) from error

    def let_go(self) -> None:
        with suppress(OSError):  # the folder goes with the tensor_store, or with the next run
            self._path.unlink(missing_ok=True)


class TensorStore:
    """A place for tensors: here wherever they are. One strategy a subclass.

    `failure` says why something could not be put here and stays in memory, `can_refuse` whether
    that can happen.
    """

    failure: StoreError | None = None
    can_refuse = False

    def begin_anew(self) -> None:
        """What was refused was told."""
        self.failure = None

    def keep(self, t: Tensor) -> Kept:
        """Puts a tensor here. It may be the very tensor that waits."""
        return Kept(t)

    def leaves(self, t: Tensor) -> bool:
        """Whether the very tensor waits, and no copy."""
        return True

    def held(self, size: int) -> Holding:
        """What a tensor of so many bytes takes here."""
        return Holding(size, 0)

    def free(self, device: torch.device) -> int | None:
        """Bytes that are left for tensors of a device; None where that is not known."""
        return _free_memory(device)

    def adopt(self, run: str | None) -> None:
        """Says whose it is, and clears away what killed processes left in its place.

        `run` is the stored run's id, whose lock is held; None without a store.
        """

    def close(self) -> None:
        """Nothing that was kept is needed any more."""


class OnHost(TensorStore):
    """Copies on the CPU of tensors that are elsewhere."""

    def keep(self, t: Tensor) -> Kept:
        return Kept(t) if self.leaves(t) else _Moved(t)

    def leaves(self, t: Tensor) -> bool:
        return t.device == HOST

    def free(self, device: torch.device) -> int | None:
        return _free_memory(HOST)


class OnDisk(TensorStore):
    """A file each, in a folder of its own within the given one, which must be there."""

    can_refuse = True

    def __init__(self, folder: str | os.PathLike[str]):
        try:
            self._own = OwnFolder(store_path(folder, "held_in"))
        except (OSError, StoreError) as error:
            raise StoreError(
                f"held_in={str(folder)!r} cannot take files ({error}). Name a folder that is "
                "there, on a disk with room for the steps that wait."
            ) from error
        self._folder, self._numbers = self._own.path, itertools.count()

    def adopt(self, run: str | None) -> None:
        self._own.adopt(run)

    def keep(self, t: Tensor) -> Kept:
        """A file; in memory where the disk refuses."""
        try:
            return _Filed(t, self._folder / f"{next(self._numbers):08d}.safetensors")
        except OSError as error:
            self.failure = StoreError(
                f"{self._folder} cannot take what payout keeps for later steps ({error}). Every "
                "step that waited was paid what momentum did for it so far, and this one has its "
                "in-step values; nothing is kept any more. Make room and go on, or attach with a "
                "smaller payout."
            )
            return Kept(t)

    def leaves(self, t: Tensor) -> bool:
        return False

    def held(self, size: int) -> Holding:
        return Holding(0, size)

    def free(self, device: torch.device) -> int | None:
        try:
            return shutil.disk_usage(self._folder).free
        except OSError:
            return None

    def close(self) -> None:
        self._own.close()


def tensor_store_of(place: str | os.PathLike[str] | None) -> TensorStore:
    """The tensor_store that was asked for: None where tensors are, 'cpu', or a folder."""
    if place is None:
        return TensorStore()
    return OnHost() if place == "cpu" else OnDisk(place)


def holding(kept: list[Kept]) -> Holding:
    """What all of them take: each storage in memory once, each file."""
    tensors = [k.held for k in kept if k.held is not None]
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return Holding(sum(storages.values()), sum({id(k): k.disk for k in kept}.values()))


def _free_memory(device: torch.device) -> int | None:
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + unused
    if device.type != "cpu":
        return None
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:  # not Linux
        return None
    found = [line for line in lines if line.startswith("MemAvailable:")]
    return int(found[0].split()[1]) * 1024 if found else None
