"""A state as plain tensors and strings, sealed: what was changed or cut off on disk is noticed.

    {"format": 1, "header": JSON text, "digest": SHA-256 of header and tensors, "tensors": {...}}

`torch.save` and `torch.load(weights_only=True)` take it, and so do frameworks' checkpoints; there
is nothing in it that a loader would have to run. `write_state` and `read_state` keep it in a file
of the safetensors format.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from inrun.errors import StoreError
from inrun.ledger._files import replace_file

STATE_FORMAT = 1
PARTS = {"format", "header", "digest", "tensors"}


def seal(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """A state of a header (whatever JSON holds) and tensors, which are copied to the CPU."""
    text = json.dumps(header)
    kept = {name: t.detach().cpu().clone().contiguous() for name, t in tensors.items()}
    return {
        "format": STATE_FORMAT,
        "header": text,
        "digest": _digest(text, kept),
        "tensors": kept,
    }


def unseal(state: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Header and tensors.

    Raises:
        StoreError: it is not a state, of another format, or not as it was sealed.
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
