"""Files that are there whole or not at all, and that say when they are not what was written.

A table is a Parquet file that carries, in its key-value metadata, whose it is (`inrun.run`), what
(`inrun.kind`, `inrun.number`) and the SHA-256 of the whole file (`inrun.sha256`), computed with the
digest's own 64 digits as zeros. Any Parquet reader reads it. Here the digest is checked before a
byte is parsed, so that a flipped bit is never a number, and never an error of the parser's.

Files are read as bytes and parsed from memory: no path is ever read as a pattern, or as
`column=value`.

A state is plain tensors and strings, digested in the same way:

    {"format": 1, "header": JSON text, "digest": SHA-256 of header and tensors, "tensors": {...}}

`torch.save` and `torch.load(weights_only=True)` take it, and so do frameworks' checkpoints; there
is nothing in it that a loader would have to run. `write_state` and `read_state` keep it in a file
of the safetensors format.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from inrun.errors import MisuseError, StoreError

MARK, _ZEROS = b"inrun-sha256:", b"0" * 64
STATE_FORMAT = 1
PARTS = {"format", "header", "digest", "tensors"}


class PartId(NamedTuple):
    """Whose a table is and what: the run's id ('' where it had none yet), kind and number."""

    kind: str
    run: str = ""
    number: int = 0


def store_path(given: object, what: str = "store") -> Path:
    """The path of a folder or file that somebody named.

    Raises:
        MisuseError: it is empty, or can be no file's name.
    """
    try:
        path = os.fspath(given)  # type: ignore[call-overload]  # what is no path is said below
        os.fsencode(path)
    except (TypeError, UnicodeEncodeError) as error:
        raise MisuseError(f"{what}={given!r} is no path ({error}). Name a folder.") from None
    if not isinstance(path, str):
        raise MisuseError(f"{what}={given!r} is a path in bytes. Pass it as text.")
    if not path.strip() or "\0" in path:
        wrong = "holds a NUL character" if path.strip() else "is empty"
        raise MisuseError(
            f"{what}={given!r} {wrong}, so it names no folder. Name one; '.' is the present one."
        )
    return Path(path)


def is_there(path: Path) -> bool:
    """Whether a file or folder exists."""
    try:
        return path.exists()
    except OSError as error:
        raise StoreError(f"{path} cannot be looked at ({error}).") from error


def write_table(path: Path, table: pa.Table, part_id: PartId) -> None:
    """Writes a table as Parquet with its digest; see `replace_file`."""
    replace_file(path, lambda file: file.write(_with_digest(table, part_id)))


def read_table(path: Path, part_id: PartId, *, digested: bool) -> pa.Table:
    """The table that `write_table` was given.

    `digested`: it must carry a digest; files of older versions do not.

    Raises:
        StoreError: it is not there, torn, changed, or another one (a run '' is not compared).
    """
    return parsed(path, checked_bytes(path, part_id, digested=digested))


def checked_bytes(path: Path, part_id: PartId, *, digested: bool) -> bytes:
    """A file's content, once it was found to be that part; see `read_table`."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise StoreError(f"{path} cannot be read ({error}).") from error
    at = content.rfind(MARK) + len(MARK)  # the last: the metadata come after all columns
    if at < len(MARK) or len(content) < at + len(_ZEROS):
        if digested:
            raise StoreError(
                f"{path} is torn, or was not written by this run: it has no checksum, and the "
                "run's files have one. Put the original back."
            )
        return content
    found, plain = content[at : at + 64], content[:at] + _ZEROS + content[at + 64 :]
    if hashlib.sha256(plain).hexdigest().encode() != found:
        raise changed_file(path)
    _require_part_id(path, content, part_id)
    return content


def changed_file(path: Path) -> StoreError:
    """What is said of a file that is not as it was written."""
    return StoreError(
        f"{path} is torn or was changed: its content does not fit its checksum, so what it "
        "says cannot be relied on. Put the original back."
    )


def _require_part_id(path: Path, content: bytes, part_id: PartId) -> None:
    """Raises where a whole file is not the one that belongs here."""
    about = pq.read_metadata(pa.BufferReader(content)).metadata or {}
    run, kind, number = (
        about.get(f"inrun.{name}".encode(), b"").decode() for name in ("run", "kind", "number")
    )
    if run and part_id.run and run != part_id.run:
        raise StoreError(
            f"{path} is of another run ({run}, and this one is {part_id.run}): its visits would be "
            "counted here. Take it away, or put the original back."
        )
    if (kind, number) != (part_id.kind, str(part_id.number)):
        raise StoreError(
            f"{path} is part {number} of {kind!r}, and part {part_id.number} of {part_id.kind!r} "
            "belongs here: it would be counted twice. Take it away, or put the original back."
        )


def parsed(path: Path, content: bytes) -> pa.Table:
    """The table of a Parquet file's content."""
    try:
        table = pq.ParquetFile(pa.BufferReader(content)).read()
        table.validate(full=True)
    except Exception as error:  # a broken file makes the parser raise errors of any kind
        raise StoreError(f"{path} is torn or not a Parquet file ({error}).") from error
    return table.replace_schema_metadata(None)


def _with_digest(table: pa.Table, part_id: PartId) -> bytes:
    about = {
        "inrun.kind": part_id.kind,
        "inrun.run": part_id.run,
        "inrun.number": str(part_id.number),
        "inrun.sha256": (MARK + _ZEROS).decode(),
    }
    sink = io.BytesIO()
    pq.write_table(table.replace_schema_metadata(about), sink, compression="zstd")
    content = sink.getvalue()
    at = content.rfind(MARK) + len(MARK)
    digest = hashlib.sha256(content).hexdigest().encode()
    return content[:at] + digest + content[at + 64 :]


def replace_file(path: Path, write: Callable[[Any], Any]) -> None:
    """Writes beside, synchronizes, renames: never a half file under the final name."""
    beside = path.with_name(path.name + ".partial")
    try:
        with open(beside, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError as error:
        with suppress(OSError):  # a file system that cannot be written to keeps it
            beside.unlink(missing_ok=True)
        raise StoreError(
            f"{path} could not be written ({error}). Parts written before are whole and readable."
        ) from error


def pack_state(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """A state of a header (whatever JSON holds) and tensors, which are copied to the CPU."""
    text = json.dumps(header)
    kept = {name: t.detach().cpu().clone().contiguous() for name, t in tensors.items()}
    return {"format": STATE_FORMAT, "header": text, "digest": _digest(text, kept), "tensors": kept}


def unpack_state(state: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Header and tensors.

    Raises:
        StoreError: it is not a state, of another format, or not as it was digested.
    """
    if not isinstance(state, Mapping) or not set(state) >= PARTS:
        raise StoreError(
            "This is not an attribution's state: pass what Attribution.state_dict() returned."
        )
    if state["format"] != STATE_FORMAT:
        raise StoreError(f"The state is of format {state['format']!r:.40}, not {STATE_FORMAT}.")
    try:
        tensors = {name: t.cpu() for name, t in state["tensors"].items()}
        fits = _digest(state["header"], tensors) == state["digest"]
        header = json.loads(state["header"]) if fits else {}
    except Exception as error:  # what is no header or no tensor fails in any way
        raise StoreError(
            f"The attribution's state is malformed ({type(error).__name__}: {error}). Resume from "
            "another checkpoint, or start a new run."
        ) from error
    if not fits:
        raise StoreError(
            "The attribution's state was changed or cut off since it was written: its digest does "
            "not fit. Resume from another checkpoint, or start a new run."
        )
    if not isinstance(header, dict):
        raise StoreError("The attribution's state is malformed: its header is no JSON object.")
    return header, tensors


def _digest(header: str, tensors: Mapping[str, Tensor]) -> str:
    found = hashlib.sha256(header.encode())
    for name in sorted(tensors):
        t = tensors[name].contiguous()
        found.update(f"{name} {t.dtype} {tuple(t.shape)}".encode())
        found.update(t.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def as_tensor(table: pa.Table) -> Tensor:
    """A table as bytes."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return torch.frombuffer(bytearray(sink.getvalue()), dtype=torch.uint8)


def as_table(stream: Tensor) -> pa.Table:
    """The table that `as_tensor` was given."""
    with pa.ipc.open_stream(pa.py_buffer(stream.numpy().tobytes())) as reader:
        return reader.read_all()


def write_state(path: str | os.PathLike[str], state: Mapping[str, Any]) -> None:
    """Writes a state to a file, whole or not at all.

    Raises:
        StoreError: the disk refused.
    """
    metadata = {name: str(state[name]) for name in ("format", "header", "digest")}
    content = save(dict(state["tensors"]), metadata)
    replace_file(Path(path), lambda file: file.write(content))


def read_state(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads what `write_state` wrote.

    Raises:
        StoreError: no such file, or it is torn or not a state.
    """
    try:
        with safe_open(path, framework="pt") as file:
            found = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return {
            "format": int(found["format"]),
            "header": found["header"],
            "digest": found["digest"],
            "tensors": tensors,
        }
    except Exception as error:  # a broken file makes the parser raise errors of any kind
        raise StoreError(
            f"{path} is no attribution's state, or torn ({type(error).__name__}: {error})."
        ) from error
