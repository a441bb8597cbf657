"""Sample ids that ride with the batch: from the sampler's position through workers and collators.

A loader's dataset is wrapped so that each item knows its position, and its collator so that the
positions are put into the batch under a key of their own. Nothing between the two can lose them:
shuffling, grouping by length, worker processes, prefetching, skipped batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from inrun.errors import MisuseError

KEY = "inrun_ids"


class Item(NamedTuple):
    """A dataset's item and its position."""

    position: int
    content: Any


class Numbered(Dataset[Item]):
    """A dataset whose items know their positions."""

    def __init__(self, dataset: Any):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, position: int) -> Item:
        return Item(int(position), self.dataset[position])

    def __getitems__(self, positions: Sequence[int]) -> list[Item]:
        if hasattr(self.dataset, "__getitems__"):
            contents = self.dataset.__getitems__(positions)
        else:
            contents = [self.dataset[position] for position in positions]
        return [Item(int(i), content) for i, content in zip(positions, contents, strict=True)]

    def __getattr__(self, name: str) -> Any:
        if name == "dataset":  # asked for while it is unpickled in a worker
            raise AttributeError(name)
        return getattr(self.dataset, name)


class NumberedCollate:
    """A collator of numbered items that puts positions, or a column of ids, into the batch.

    Args:
        collate: the loader's own; its batches are mappings.
        column: the items' key that holds their ids; None for positions.
    """

    def __init__(self, collate: Callable[[list[Any]], Any], column: str | None):
        self.collate, self._column = collate, column

    def __call__(self, items: list[Any]) -> Any:
        ids: Any
        if self._column is None:
            ids = torch.tensor([item.position for item in items])
            contents = [item.content for item in items]
        else:
            taken = [_taken(item, self._column) for item in items]
            ids, contents = [i for i, _ in taken], [content for _, content in taken]
        batch = self.collate(list(contents))
        if not isinstance(batch, Mapping):
            raise MisuseError(
                f"The collator returns a {type(batch).__name__}. Sample ids ride in the batch "
                "under a key of their own, so it must return a dict."
            )
        demand_rows(batch, len(items))
        batch[KEY] = ids  # type: ignore[index]  # every mapping that collators return can take it
        return batch


def _taken(item: Any, column: str) -> tuple[Any, Any]:
    """An item's id, and the item without it."""
    content = dict(item.content if isinstance(item, Item) else item)
    demand_column(content, column)
    return content.pop(column), content


def demand_column(item: Any, column: str) -> None:
    """Raises if an item has no id.

    Raises:
        MisuseError: it is no mapping with that key.
    """
    if not isinstance(item, Mapping) or column not in item:
        has = f"it has {', '.join(item)}" if isinstance(item, Mapping) else "it is no dict"
        raise MisuseError(
            f"An item has no {column!r}, which ids were to be taken from; {has}. With "
            "transformers, columns that the model does not take are removed before: set "
            "remove_unused_columns=False."
        )


def demand_rows(batch: Mapping[str, Any], samples: int) -> None:
    """Raises if no tensor of the batch has a row a sample.

    Raises:
        MisuseError: samples were packed into one row, or dropped.
    """
    lengths = [len(t) for t in batch.values() if isinstance(t, Tensor) and t.ndim]
    if lengths and samples not in lengths:
        raise MisuseError(
            f"The collator made {max(lengths)} rows of {samples} samples, so that a row is not one "
            "sample. Packing and padding-free collation do this: switch them off (packing=False, "
            "padding_free=False), or let the data set itself consist of packed rows."
        )


class Numbering:
    """A loader whose batches carry ids, until `undo`.

    Args:
        loader: a `DataLoader`, or `accelerate`'s wrapper of one.
        column: see `NumberedCollate`.

    Raises:
        MisuseError: an iterable data set without a column of ids: its items have no positions.
    """

    def __init__(self, loader: Any, column: str | None):
        self._loader: DataLoader[Any] = getattr(loader, "base_dataloader", loader)
        self._dataset = self._loader.dataset
        self._collate = cast(Callable[[list[Any]], Any], self._loader.collate_fn)
        if isinstance(self._dataset, IterableDataset):
            if column is None:
                raise MisuseError(
                    "The training data is an iterable data set, whose items have no positions to "
                    "tell them by. Name a column that holds ids: InRun(..., ids='id')."
                )
        else:
            self._put(Numbered(self._dataset))
        self._loader.collate_fn = NumberedCollate(self._collate, column)

    def undo(self) -> None:
        """The loader as it was."""
        self._put(self._dataset)
        self._loader.collate_fn = self._collate

    def _put(self, dataset: Any) -> None:
        # DataLoader refuses this assignment, since a sampler may belong to the dataset; positions
        # are the same in both
        object.__setattr__(self._loader, "dataset", dataset)

    @property
    def collate(self) -> Callable[[list[Any]], Any]:
        """The loader's own collator."""
        return self._collate

    def first(self) -> Any:
        """An item of the data set."""
        iterator: Iterator[Any] = iter(self._dataset)
        return next(iterator)
