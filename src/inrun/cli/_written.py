"""Tables written where the command line says."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from inrun.cli._formulas import defused_table
from inrun.errors import MisuseError, StoreError


def write_table(path: Path, table: pa.Table) -> None:
    """A table as .csv, whose texts are no formulas, or .parquet; an older one is replaced.

    Raises:
        MisuseError: the name says neither form.
        StoreError: it cannot be written.
    """
    try:
        if path.suffix == ".parquet":
            with open(path, "wb") as file:
                pq.write_table(table, file)
        elif path.suffix == ".csv":
            pyarrow.csv.write_csv(defused_table(table), path)
        else:
            raise MisuseError(f"{path} must end in .csv or .parquet, which says its form.")
    except OSError as error:
        raise StoreError(f"{path} could not be written: {error}") from error
