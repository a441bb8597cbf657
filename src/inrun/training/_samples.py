"""Rows made into samples: checked, with ids and labels, split where nothing else is said."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from inrun.errors import InRunWarning, MisuseError
from inrun.ledger import Pictures, png, samples_table
from inrun.training._cells import (
    PAIR,
    columns_of,
    content_column,
    label_column,
    read_cells,
    shown_content,
    shown_label,
)
from inrun.training._config import SPLIT_OFF, TrainConfig
from inrun.training._objectives import ANSWERS
from inrun.training._rows import BadRows, Row, read_rows, require_columns

Id = int | str
TEXTS = ("text-classification", "regression", "multi-label", "causal-lm")
FAR = 10.0  # mean or deviation of numbers to be learnt, above which it is told


@dataclass(frozen=True)
class Sample:
    """One sample: `content` and `label` as `_cells.py` says; an image is PNG."""

    id: Id
    content: Any
    label: Any
    row: Row


@dataclass(frozen=True)
class Splits:
    """All samples, the classes' or tags' names, if any, and what was left out."""

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
    order = _spread(training, config)
    taken, count = 0, max(1, round(SPLIT_OFF * len(training)))
    parts = []
    for name, source in (("validation", config.validation), ("test", config.test)):
        if source is not None:
            parts.append(_samples(config, source, name, bad))
        else:
            parts.append([training[i] for i in sorted(order[taken : taken + count])])
            taken += count
    kept = [training[i] for i in sorted(order[taken:])]
    classes = _classes(kept)
    if classes:
        _tell_likely_same(classes)
        for sample in (*parts[0], *parts[1]):
            strange = [name for name in names_of(sample.label) if name not in classes]
            if strange:
                bad.add(sample.row.where, f"label {strange[0]!r} is in no training row")
        parts = [[s for s in part if set(names_of(s.label)) <= set(classes)] for part in parts]
    if config.task == "regression":
        _tell_size(kept)
    bad.pay_out()
    _require_rows(config, kept, parts[0])
    _require_single_ids(kept)
    return Splits(kept, parts[0], parts[1], classes, tuple(bad.found))


def _spread(samples: Sequence[Sample], config: TrainConfig) -> list[int]:
    """An order, by the seed, any stretch of which has each label and source by its share.

    The k-th of n rows of a label and source stands at (k - u) / n of the way, with u drawn for each
    group: so a tenth of the rows has a tenth of every group, to within one row of it.
    """
    rng = np.random.default_rng(config.seed)
    groups: dict[tuple[Any, Any], list[int]] = {}
    for i, sample in enumerate(samples):
        source = sample.row.cells.get(config.source_column) if config.source_column else None
        groups.setdefault((sample.label, str(source)), []).append(i)
    places = np.empty(len(samples))
    for rows in groups.values():
        places[rng.permutation(rows)] = (np.arange(len(rows)) + rng.random()) / len(rows)
    order: list[int] = np.argsort(places, kind="stable").tolist()
    return order


def _samples(config: TrainConfig, source: str, split: str, bad: BadRows) -> list[Sample]:
    rows, place = read_rows(source, split, bad), Path(source)
    if config.task == "image-classification" and place.is_dir():
        config = dataclasses.replace(config, label_column="label")  # a folder's name
    image, wanted = config.task == "image-classification", columns_of(config)
    of_split = {"train": (config.id_column, config.source_column),
                "validation": (config.target_column,)}  # fmt: skip
    wanted += [name for name in of_split.get(split, ()) if name is not None]
    require_columns(source, rows, wanted)
    folder = config.pictures or (place.parent if place.is_file() else place)
    pictures, found = Pictures(Path(folder)), []
    for number, row in enumerate(rows):
        sample_id = number if config.id_column is None else row.cells.get(config.id_column)
        if split != "train" and sample_id is None:  # only training samples are known by their ids
            sample_id = number
        try:
            content, label = read_cells(config, row.cells)
            if image:
                content = pictures(content)
                if content is None:
                    raise ValueError(pictures.left_out[-1])
            if split == "train" and not isinstance(sample_id, (int, str)):
                raise ValueError(f"its id is {sample_id!r}, and ids are whole numbers or strings")
        except ValueError as error:
            bad.add(row.where, str(error))
            continue
        found.append(Sample(sample_id, content, label, row))  # type: ignore[arg-type]
    return found


def asked(config: TrainConfig, classes: Sequence[str], row: Mapping[str, Any]) -> Sample:
    """One new row: its text or image, and its label where the task has labels.

    Raises:
        MisuseError: the row lacks a column that the run's own rows have.
    """
    content, wanted = content_column(config), columns_of(config)
    if content == "image" or config.task in TEXTS:
        row = {content: row.get("text")} | dict(row)
    missing = [name for name in wanted if row.get(name) is None]
    if missing:
        raise MisuseError(
            f"The query has no {missing[0]!r}, and the loss of {config.task} needs it. Pass a "
            f"file with the columns {', '.join(wanted)}, one row per query."
        )
    try:
        found, label = read_cells(config, row)
    except ValueError as error:
        raise MisuseError(f"The query cannot be read: {error}.") from None
    strange = [name for name in names_of(label) if name not in (*classes, *ANSWERS)]
    if strange:
        raise MisuseError(f"The query's label {strange[0]!r} is not one of {', '.join(classes)}.")
    found = png(found) if content == "image" else found
    return Sample(0, found, label, Row(dict(row), "the query"))


def names_of(label: Any) -> tuple[str, ...]:
    """The classes that a label names."""
    return label if isinstance(label, tuple) else (label,) if isinstance(label, str) else ()


def _classes(samples: Sequence[Sample]) -> tuple[str, ...]:
    names = {str(name) for sample in samples for name in names_of(sample.label)} - set(ANSWERS)
    return tuple(sorted(names, key=int if all(name.isdigit() for name in names) else None))


def _tell_size(samples: Sequence[Sample]) -> None:
    """Warns of numbers that a model, which begins near 0, would take long to reach."""
    numbers = [sample.label for sample in samples]
    mean, spread = float(np.mean(numbers)), float(np.std(numbers))
    if max(abs(mean), spread) > FAR:
        warnings.warn(
            f"The labels have mean {mean:.3g} and standard deviation {spread:.3g}, and a model "
            "begins near 0: train on (label - mean) / deviation, or it learns their size alone.",
            InRunWarning, stacklevel=2,
        )  # fmt: skip


def _tell_likely_same(classes: Sequence[str]) -> None:
    """Warns of classes that are likely one, and of numbers beside names."""
    by_letters: dict[str, list[str]] = {}
    for name in classes:
        by_letters.setdefault(" ".join(name.casefold().split()), []).append(name)
    same = [" and ".join(map(repr, names)) for names in by_letters.values() if len(names) > 1]
    if same:
        warnings.warn(
            f"The labels {'; '.join(same[:5])} differ in case or spaces alone, and are trained as "
            "classes of their own. If each is one class, write it in one way.",
            InRunWarning, stacklevel=2,
        )  # fmt: skip
    numbers = [name for name in classes if name.lstrip("+-").replace(".", "", 1).isdigit()]
    if numbers and len(numbers) < len(classes):
        names = [name for name in classes if name not in numbers]
        warnings.warn(
            f"Some labels are numbers ({', '.join(numbers[:5])}) and some are names "
            f"({', '.join(names[:5])}). If they stand for the same classes, write them in one way.",
            InRunWarning, stacklevel=2,
        )  # fmt: skip


def _require_rows(config: TrainConfig, training: list[Sample], validation: list[Sample]) -> None:
    if len(training) < config.batch or not validation:
        raise MisuseError(
            f"{len(training)} training and {len(validation)} validation rows are too few for "
            f"batches of {config.batch}. Pass more data, --validation FILE, or a smaller --batch."
        )
    if label_column(config) is not None and len({s.label for s in training}) < 2:
        raise MisuseError("All training rows have the same label: there is nothing to learn.")


def _require_single_ids(samples: Sequence[Sample]) -> None:
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
    """Samples as a run keeps them: `sample_id`, text or image, label, source, the other cells."""
    content = "image" if config.task == "image-classification" else "text"
    own: set[str | None] = {*columns_of(config), config.text_column, config.label_column}
    own |= {config.id_column, config.source_column, *(PAIR if config.task == "preference" else ())}
    rows = []
    for sample in samples:
        row = {"sample_id": sample.id, content: shown_content(config.task, sample.content)}
        if sample.label is not None:
            row["label"] = shown_label(config.task, sample.label)
        if config.source_column is not None:
            row["source"] = sample.row.cells.get(config.source_column)
        others = {name: cell for name, cell in sample.row.cells.items() if name not in own}
        rows.append(others | row)
    return samples_table(rows, None)
