"""What the samples are: a table beside the values, so that people see rows and not only ids.

    sample_id    the run's own ids, each once
    text         string, optional
    image        PNG bytes, optional
    label        string or int, optional
    source       string, optional: who provided the sample
    ...          any other columns of plain values, shown as a table's row

A run's folder holds it as `samples.parquet`, and that of the validation rows, where somebody wants
to show them, as `validation.parquet`.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from inrun.errors import MisuseError, require_extra

ID, ROW = "sample_id", ":row"
Picture = Callable[[Any], "bytes | None"]
FILES = {"training": "samples.parquet", "validation": "validation.parquet"}


def samples_table(samples: Any, id_type: str | None, picture: Picture | None = None) -> pa.Table:
    """Samples in the form that a run keeps.

    Args:
        samples: a pyarrow table, a data frame, a mapping from column names to values, or a sequence
            of mappings, one per row; with a column `sample_id`. Rows of a data set of `datasets`
            without it are known by their positions.
        id_type: 'int64' or 'string', the run's; None where it has no visits yet.
        picture: how a cell of `image` becomes PNG; `png` where not given.

    Raises:
        MisuseError: no ids, ids twice or of another kind, or an image that is not one.
    """
    picture = picture or png
    table = _as_table(samples, picture)
    if ID not in table.column_names:
        raise MisuseError(
            f"The samples have no column {ID!r}, so no value can be joined to them. They have "
            f"{', '.join(table.column_names) or 'no columns'}; rename the one that holds the ids "
            "given to attribution.batch(ids)."
        )
    table = _with_ids(table, id_type)
    columns = {name: _plain(name, table[name], picture) for name in table.column_names}
    return pa.table({ID: columns.pop(ID), **columns})


def _as_table(samples: Any, picture: Picture) -> pa.Table:
    if isinstance(samples, pa.Table):
        return samples
    if isinstance(samples, Mapping):
        columns = {str(name): _column(str(name), list(v), picture) for name, v in samples.items()}
        lengths = {len(column) for column in columns.values()}
        if len(lengths) > 1:
            raise MisuseError(f"The samples' columns have different lengths: {sorted(lengths)}.")
        return pa.table(columns)
    if hasattr(samples, "with_format") and hasattr(samples, "column_names"):  # of `datasets`
        rows: pa.Table = samples.with_format("arrow")[:]
        numbered = ID in rows.column_names
        return rows if numbered else rows.append_column(ID, pa.array(range(rows.num_rows)))
    if isinstance(samples, Sequence) and all(isinstance(row, Mapping) for row in samples):
        names = list(dict.fromkeys(str(name) for row in samples for name in row))
        return _as_table({name: [row.get(name) for row in samples] for name in names}, picture)
    if hasattr(samples, "columns") and hasattr(samples, "to_dict"):
        return pa.Table.from_pandas(samples, preserve_index=False)
    raise MisuseError(
        f"Samples came as {type(samples).__name__}; pass a pyarrow table, a data frame, a mapping "
        "{'sample_id': [...], 'text': [...]}, or a list of mappings."
    )


def _column(name: str, values: list[Any], picture: Picture) -> pa.Array:
    if name == "image":
        return pa.array([None if v is None else picture(v) for v in values], type=pa.binary())
    return plain_column(name, values)


def plain_column(name: str, values: list[Any]) -> pa.Array:
    """Plain values; as text where they are of several kinds."""
    plain = [v.item() if hasattr(v, "item") else v for v in values]
    try:
        return pa.array(plain)
    except pa.ArrowException:
        return pa.array([None if v is None else _text(v) for v in plain])
    except UnicodeEncodeError as error:
        raise MisuseError(
            f"A cell of the column {name!r} is no text and cannot be stored ({error}). Decode it."
        ) from None


def _with_ids(table: pa.Table, id_type: str | None) -> pa.Table:
    column = table[ID]
    if not (pa.types.is_integer(column.type) or pa.types.is_string(column.type)):
        column = column.cast(pa.string())
    try:
        if id_type is not None:
            column = column.cast(pa.string() if id_type == "string" else pa.int64())
    except pa.ArrowException as error:
        raise MisuseError(
            f"The run's ids are integers and the samples' are not ({error}): they cannot be joined."
        ) from None
    if column.null_count:
        raise MisuseError(f"{column.null_count} of the samples have no id.")
    counts = pc.value_counts(column.combine_chunks())
    twice = [entry["values"].as_py() for entry in counts if entry["counts"].as_py() > 1][:3]
    if twice:
        raise MisuseError(
            f"Samples must be there once each; {', '.join(map(repr, twice))} came more often. "
            "Rows that are equal may have different ids, but one id is one sample."
        )
    return table.set_column(table.column_names.index(ID), ID, column)


def _plain(name: str, column: pa.ChunkedArray, picture: Picture) -> pa.ChunkedArray:
    """Plain values as they are, images as PNG, anything nested as JSON."""
    kind = column.type
    if name == "image":
        return pa.chunked_array([_column(name, column.to_pylist(), picture)])
    if pa.types.is_dictionary(kind):
        return column.cast(kind.value_type)
    if pa.types.is_nested(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        cells = [None if v is None else _text(v) for v in column.to_pylist()]
        return pa.chunked_array([pa.array(cells, type=pa.string())])
    return column


def _text(value: Any) -> str:
    if isinstance(value, bytes):
        return f"{len(value)} bytes"
    return value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)


MOST_PIXELS = 50_000_000  # a small file can say that it is of any size


def png(image: Any) -> bytes:
    """An image as PNG: a PIL image, a file's path or bytes, or an array.

    Arrays are (H, W), (H, W, 3) or (3, H, W), bytes or 0 to 1.
    """
    require_extra("report", "PIL")
    import numpy as np
    from PIL import Image

    try:
        if isinstance(image, dict):  # as Hugging Face's data sets store them
            image = image.get("bytes") or image.get("path")
        if isinstance(image, bytes) and image.startswith(b"\x89PNG"):
            return image
        if isinstance(image, (bytes, str, Path)):
            image = Image.open(io.BytesIO(image) if isinstance(image, bytes) else image)
        elif not isinstance(image, Image.Image):
            image = Image.fromarray(_pixels(np.asarray(image)))
        if image.width * image.height > MOST_PIXELS:
            raise ValueError(f"it says that it has {image.width} x {image.height} pixels")
        buffer = io.BytesIO()
        image.convert("RGB" if image.mode not in ("L", "RGBA") else image.mode).save(buffer, "PNG")
    except Exception as error:  # a damaged image makes PIL raise errors of any kind
        raise MisuseError(f"A cell of the column 'image' is not an image: {error}") from error
    return buffer.getvalue()


def opened_picture(content: bytes) -> Any | None:
    """A stored picture as PIL has it.

    None where it cannot be read, or says that it has more than `MOST_PIXELS` pixels.
    """
    require_extra("report", "PIL")
    from PIL import Image

    try:
        image = Image.open(io.BytesIO(content))
        if image.width * image.height > MOST_PIXELS:
            return None
        image.load()
    except Exception:  # a damaged image makes PIL raise errors of any kind
        return None
    return image


class Pictures:
    """Pictures of a table that somebody else may have written: they are read from one folder alone.

    A cell that cannot be read, or names a file elsewhere, stays empty; `left_out` says which.

    Args:
        folder: where files may lie; relative names begin there.
    """

    def __init__(self, folder: Path):
        self._folder, self.left_out = folder, list[str]()

    def __call__(self, cell: Any) -> bytes | None:
        """A cell's picture as PNG, or None."""
        try:
            return png(self._own(cell))
        except MisuseError as error:
            self.left_out.append(str(error))
            return None

    def _own(self, cell: Any) -> Any:
        if isinstance(cell, Mapping):
            cell = cell.get("bytes") or cell.get("path")
        if not isinstance(cell, str):
            return cell
        try:
            file = (self._folder / cell).resolve()
            inside = file.is_relative_to(self._folder.resolve())
        except (OSError, ValueError, RuntimeError) as error:
            raise MisuseError(f"{cell!r} can be no file: {error}") from None
        if not inside:
            raise MisuseError(
                f"{cell!r} is not in {str(self._folder)!r}, the data's own folder, and other files "
                "are not read. Name the pictures' folder: --pictures FOLDER."
            )
        return file


def _pixels(array: Any) -> Any:
    if array.ndim == 3 and array.shape[0] in (1, 3) and array.shape[2] not in (1, 3):
        array = array.transpose(1, 2, 0)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.dtype.kind == "f":
        array = array.clip(0, 1) * 255
    return array.astype("uint8")
