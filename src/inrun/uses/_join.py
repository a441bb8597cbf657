"""Samples joined to values: the description of each sample that has a value, in their order."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from inrun.errors import MisuseError


def described(values: pa.Table, samples: pa.Table | None) -> pa.Table:
    """The samples' rows in the order of the values; nulls where a sample was not described.

    Args:
        values: a table with `sample_id`.
        samples: see `Run.describe`; None gives a table of ids alone.

    Raises:
        MisuseError: the samples' ids are not of the run's kind.
    """
    ids = values["sample_id"]
    if samples is None:
        return pa.table({"sample_id": ids})
    known = _alike(samples["sample_id"], ids.type)
    place = pc.index_in(ids, value_set=known.combine_chunks())
    return pa.table(
        {"sample_id": ids}
        | {name: samples[name].take(place) for name in samples.column_names if name != "sample_id"}
    )


def _alike(ids: pa.ChunkedArray, wanted: pa.DataType) -> pa.ChunkedArray:
    try:
        return ids.cast(wanted)
    except pa.ArrowException as error:
        raise MisuseError(
            f"The run's ids are {wanted} and the samples' are not ({error}): they cannot be joined."
        ) from None
