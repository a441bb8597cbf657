"""Sample ids that ride with the batch: from the sampler's position through workers and collators.

A loader's dataset is wrapped so that each item knows its position, and its collator so that the
ids are put into the batch under a key of their own, with the rows or slots that are each sample's.
Nothing between the two can lose them: shuffling, grouping by length, worker processes, prefetching,
skipped batches.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from typing import Any, NamedTuple, cast

from torch.utils.data import DataLoader, Dataset, IterableDataset

from inrun.errors import MisuseError
from inrun.integrations._places import LENGTHS, Owned, collated, merged

KEY = "inrun_ids"


class Item(NamedTuple):
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
    """A collator of numbered items that puts `Owned` into the batch.

    An item is one sample, or, with `seq_lengths`, as many as it has lengths.

    Args:
        collate: the loader's own. Its batches are mappings, or lists of the items themselves, each
            of which then gets its id.
        column: the items' key that holds their ids; None for positions.
        examples: of packed rows, the ids of the examples in each row, by position; without them an
            example is "row:place".
    """

    def __init__(
        self,
        collate: Callable[[list[Any]], Any],
        column: str | None,
        examples: Sequence[Sequence[Any]] | None = None,
    ):
        self.collate, self._column, self._examples = collate, column, examples

    def __call__(self, items: list[Any]) -> Any:
        read = [self._read(item) for item in items]
        ids, contents = [names for names, _ in read], [content for _, content in read]
        batch, places = collated(self.collate, contents)
        if isinstance(batch, list) and len(batch) == len(ids) and isinstance(batch[0], dict):
            whole = [item.content if isinstance(item, Item) else item for item in items]
            return [
                {**all_columns, **own, KEY: name}  # rewards may be computed from the ids' column
                for all_columns, own, (name,) in zip(whole, batch, ids, strict=True)
            ]
        if not isinstance(batch, Mapping):
            raise MisuseError(
                f"The collator returns a {type(batch).__name__}. Sample ids ride in the batch "
                "under a key of their own, so it must return a dict."
            )
        flat = [name for names in ids for name in names]
        put = cast(dict[str, Any], batch)  # a dict, or one that is like it
        put[KEY] = merged(flat, places)
        return batch

    def _read(self, item: Any) -> tuple[list[Any], Any]:
        """The ids of an item's samples, and the item without them."""
        content = item.content if isinstance(item, Item) else item
        if self._column is not None:
            require_column(content, self._column)
            content = dict(content)
            names = content.pop(self._column)
            return (list(names) if isinstance(names, (list, tuple)) else [names]), content
        if not isinstance(content, Mapping) or LENGTHS not in content:
            return [item.position], content
        if self._examples is not None:
            return list(self._examples[item.position]), content
        return [f"{item.position}:{k}" for k in range(len(content[LENGTHS]))], content


def taken_out(batch: Any) -> tuple[Owned | None, Any]:
    """Whose a batch is, None where nothing rides in it, and the batch without that.

    The batch itself stays as it was: a trainer may take it again.
    """
    if not isinstance(batch, Mapping) or KEY not in batch:
        return None, batch
    batch = cast(dict[str, Any], copy(batch))
    found = batch.pop(KEY)
    if isinstance(found, list):  # one id per row
        found = merged(found, range(len(found)))
    return found if isinstance(found, Owned) else None, batch


def require_column(item: Any, column: str) -> None:
    """Raises MisuseError if an item is no mapping with that key."""
    if not isinstance(item, Mapping) or column not in item:
        has = f"it has {', '.join(item)}" if isinstance(item, Mapping) else "it is no dict"
        raise MisuseError(
            f"An item has no {column!r}, which ids were to be taken from; {has}. With "
            "transformers, columns that the model does not take are removed before: set "
            "remove_unused_columns=False."
        )


class Numbering:
    """A `DataLoader`, or accelerate's wrapper of one, whose batches carry ids, until `undo`."""

    def __init__(self, loader: Any):
        self._loader: DataLoader[Any] = getattr(loader, "base_dataloader", loader)
        self.dataset = self._loader.dataset
        self.collate = cast(Callable[[list[Any]], Any], self._loader.collate_fn)

    def begin(self, column: str | None, examples: Sequence[Sequence[Any]] | None = None) -> None:
        """Numbers the items; see `NumberedCollate`.

        Raises MisuseError for an iterable data set without a column of ids.
        """
        if isinstance(self.dataset, IterableDataset):
            if column is None:
                raise MisuseError(
                    "The training data is an iterable data set, whose items have no positions to "
                    "tell them by. Name a column that holds ids: InRun(..., ids='id')."
                )
        else:
            self._put(Numbered(self.dataset))
        self._loader.collate_fn = NumberedCollate(self.collate, column, examples)

    def undo(self) -> None:
        self._put(self.dataset)
        self._loader.collate_fn = self.collate

    def _put(self, dataset: Any) -> None:
        # DataLoader refuses this assignment, since a sampler may belong to the dataset; positions
        # are the same in both
        object.__setattr__(self._loader, "dataset", dataset)

    def first(self) -> Any:
        return next(iter(self.dataset))
