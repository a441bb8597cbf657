"""Files that are there whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from inrun.errors import StoreError


def write_table(path: Path, table: pa.Table) -> None:
    """Writes a table as Parquet; see `replace_file`."""
    replace_file(path, lambda f: pq.write_table(table, f, compression="zstd"))


def replace_file(path: Path, write: Callable[[Any], Any]) -> None:
    """Writes beside, synchronizes, renames: never a half file under the final name.

    Raises:
        StoreError: the disk refused; what was written before stays readable.
    """
    beside = path.with_name(path.name + ".partial")
    try:
        with open(beside, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise StoreError(
            f"{path} could not be written ({error}). Parts written before are whole and readable."
        ) from error
