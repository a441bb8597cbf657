"""Rows made into samples: checked, with ids and labels, split where nothing else is said."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from inrun.errors import MisuseError
from inrun.training._config import SPLIT_OFF, TrainConfig
from inrun.training._rows import BadRows, Row, read_rows

Id = int | str


@dataclass(frozen=True)
class Sample:
    """One sample: `content` is its text, or its image as `transformers` and PIL take it."""

    id: Id
    content: Any
    label: str | None
    row: Row


@dataclass(frozen=True)
class Splits:
    """All samples, the classes' names (none for a language model), and what was left out."""

    training: list[Sample]
    validation: list[Sample]
    test: list[Sample]
    classes: tuple[str, ...]
    skipped: tuple[str, ...]


def read_splits(config: TrainConfig) -> Splits:
    """Reads training, validation and test samples.

    Raises:
        MisuseError: a column is missing, rows are bad, ids come twice, or there are too few rows.
    """
    bad = BadRows(config.skip_bad_rows)
    training = _samples(config, config.data, "train", bad)
    given = {"validation": config.validation, "test": config.test}
    parts = {
        name: _samples(config, source, name, bad) if source is not None else None
        for name, source in given.items()
    }
    order = np.random.default_rng(config.seed).permutation(len(training)).tolist()
    taken = 0
    count = max(1, round(SPLIT_OFF * len(training)))
    for name in given:
        if parts[name] is None:
            parts[name] = [training[i] for i in sorted(order[taken : taken + count])]
            taken += count
    kept = [training[i] for i in sorted(order[taken:])]
    validation, test = parts["validation"] or [], parts["test"] or []
    classes: tuple[str, ...] = ()
    if config.task != "causal-lm":
        classes = _classes(kept)
        for sample in (*validation, *test):
            if sample.label not in classes:
                bad.add(sample.row.where, f"label {sample.label!r} is in no training row")
        validation = [s for s in validation if s.label in classes]
        test = [s for s in test if s.label in classes]
    bad.settle()
    _demand_rows(config, kept, validation)
    _demand_single_ids(kept)
    return Splits(kept, validation, test, classes, tuple(bad.found))


def _samples(config: TrainConfig, source: str, split: str, bad: BadRows) -> list[Sample]:
    rows = read_rows(source, split, bad)
    image = config.task == "image-classification"
    content = "image" if image else config.text_column
    labelled = config.task != "causal-lm"
    label = "label" if image and Path(source).is_dir() else config.label_column
    wanted = [content, *([label] if labelled else [])]
    if split == "train" and config.id_column is not None:
        wanted.append(config.id_column)
    for column in wanted:
        if rows and not any(column in row.cells for row in rows):
            raise MisuseError(
                f"{source} has no column {column!r}; it has "
                f"{', '.join(map(str, rows[0].cells))}. Name the right one, for instance with "
                "--text-column, --label-column or --id-column."
            )
    folder = _pictures_folder(config, source) if image else None
    found = []
    for number, row in enumerate(rows):
        if image:
            row = _with_own_picture(row, folder)
        problem = _problem(row, content, label if labelled else None, image)
        if problem is not None:
            bad.add(row.where, problem)
            continue
        sample_id = number if config.id_column is None else row.cells.get(config.id_column)
        if split != "train" and sample_id is None:  # only training samples are known by their ids
            sample_id = number
        if split == "train" and not isinstance(sample_id, (int, str)):
            bad.add(row.where, f"its id is {sample_id!r}, and ids are whole numbers or strings")
            continue
        name = _label(row.cells[label]) if labelled else None
        found.append(Sample(sample_id, row.cells[content], name, row))  # type: ignore[arg-type]
    return found


def _pictures_folder(config: TrainConfig, source: str) -> Path | None:
    """Where files that rows name must lie; None where that was not said and the data has none."""
    if config.pictures is not None:
        return Path(config.pictures)
    place = Path(source)
    return place if place.is_dir() else place.parent if place.is_file() else None


def _with_own_picture(row: Row, folder: Path | None) -> Row:
    """The row with a file that it names as `_Elsewhere`, unless it lies in the folder."""
    value = row.cells.get("image")
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if not isinstance(value, str):
        return row
    found: Any = _Elsewhere(value)
    if folder is not None:
        try:
            for file in (folder / value, Path(value)):
                if file.resolve().is_relative_to(folder.resolve()) and file.exists():
                    found = str(file)
                    break
        except (OSError, ValueError, RuntimeError):  # a name that no file can have
            pass
    return Row({**row.cells, "image": found}, row.where)


class _Elsewhere(str):
    """The name of a file that is not there, or outside the folder that pictures are read from."""


def _problem(row: Row, content: str, label: str | None, image: bool) -> str | None:
    """What is wrong with a row, or None."""
    value = row.cells.get(content)
    if value is None:
        return f"no {content!r}"
    if not image and not isinstance(value, str):
        return f"{content!r} is a {type(value).__name__}, not a text"
    if not image and not value.strip():
        return f"{content!r} is empty"
    if isinstance(value, _Elsewhere):
        return (
            f"its picture {str(value)!r} is not in the data's own folder, and others are not read: "
            "name theirs with --pictures FOLDER"
        )
    if image:
        try:
            open_image(value)
        except Exception as error:  # PIL raises many kinds
            return f"not an image that can be read ({error})"
    if label is not None:
        named = row.cells.get(label)
        if named is None or (isinstance(named, str) and not named.strip()):
            return f"no {label!r}"
        if not isinstance(named, (str, int)):
            return f"{label!r} is a {type(named).__name__}, not a name or a whole number"
    return None


def _label(value: Any) -> str:
    return str(value).strip()


def open_image(value: Any) -> Any:
    """A PIL image, from one, from a file's path, or as Parquet files and data sets store them."""
    from PIL import Image

    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        value = io.BytesIO(value)
    image = value if isinstance(value, Image.Image) else Image.open(value)
    image.load()
    return image


def _classes(samples: Sequence[Sample]) -> tuple[str, ...]:
    names = {sample.label for sample in samples if sample.label is not None}
    if all(name.isdigit() for name in names):
        return tuple(sorted(names, key=int))
    return tuple(sorted(names))


def _demand_rows(config: TrainConfig, training: list[Sample], validation: list[Sample]) -> None:
    if len(training) < config.batch or not validation:
        raise MisuseError(
            f"{len(training)} training and {len(validation)} validation rows are too few for "
            f"batches of {config.batch}. Pass more data, --validation FILE, or a smaller --batch."
        )
    if config.task != "causal-lm" and len({s.label for s in training}) < 2:
        raise MisuseError("All training rows have the same label: there is nothing to learn.")


def _demand_single_ids(samples: Sequence[Sample]) -> None:
    seen: dict[Id, str] = {}
    if len({type(sample.id) for sample in samples}) > 1:
        raise MisuseError("Some ids are whole numbers and some are strings. Use one kind.")
    for sample in samples:
        if sample.id in seen:
            raise MisuseError(
                f"The id {sample.id!r} stands at {seen[sample.id]} and at {sample.row.where}: one "
                "id is one sample. Give each row its own, or leave --id-column out."
            )
        seen[sample.id] = sample.row.where


def samples_of(samples: Sequence[Sample], config: TrainConfig) -> pa.Table:
    """Samples as a run keeps them: `sample_id`, text or image, label, source, other plain cells."""
    image = config.task == "image-classification"
    columns: dict[str, Any] = {"sample_id": [sample.id for sample in samples]}
    columns["image" if image else "text"] = [
        _png(sample.content) if image else sample.content for sample in samples
    ]
    if config.task != "causal-lm":
        columns["label"] = [sample.label for sample in samples]
    if config.source_column is not None:
        columns["source"] = [_cell(s.row.cells.get(config.source_column)) for s in samples]
    own = {config.text_column, config.label_column, config.id_column, config.source_column}
    rest = dict.fromkeys(name for sample in samples for name in sample.row.cells)
    for name in rest:
        if name not in own | set(columns):
            cells = [_cell(sample.row.cells.get(name)) for sample in samples]
            if len({type(cell) for cell in cells if cell is not None}) == 1:
                columns[name] = cells
    return pa.table({name: pa.array(column) for name, column in columns.items()})


def _cell(value: Any) -> Any:
    plain = isinstance(value, (str, int, float, bool)) or value is None
    return value if plain else str(value)


def _png(value: Any) -> bytes:
    buffer = io.BytesIO()
    image = open_image(value)
    image.convert("RGB" if image.mode not in ("L", "RGB", "RGBA") else image.mode).save(
        buffer, "PNG"
    )
    return buffer.getvalue()
