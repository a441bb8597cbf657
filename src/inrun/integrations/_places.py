"""Where samples lie in a collated batch: one row each, several rows, or slots of packed rows.

Where rows are not one per sample, the collator itself is asked: it collates the same items a second
time with each token replaced by its sample's number, and the numbers are read where they went. That
is right for every collator that moves tokens and adds padding, whatever it makes of them:
concatenated chosen and rejected rows, packed rows, one long row without padding.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from inrun.errors import MisuseError

LENGTHS = "seq_lengths"  # an item's column: lengths of the examples that were packed into it
FIRST = 1 << 24  # tokens are smaller numbers, so that padding is told from samples
_NO_TOKENS = ("position_ids", "token_type_ids")


@dataclass(frozen=True)
class Owned:
    """Whose a batch is: ids, and what `Attribution.batch` takes of rows or slots."""

    ids: Sequence[Any]
    rows: Tensor | None = None
    slots: Tensor | None = None


def of_collated(
    batch: Mapping[str, Any], collate: Callable[[list[Any]], Any], items: Sequence[Any]
) -> Tensor | None:
    """Places of the samples of a batch: None where row j is sample j; of rows (R,) or slots (R, T).

    Args:
        batch: what the collator made of the items.
        collate: the collator.
        items: one sample each, or with `seq_lengths` several, which count one by one.

    Raises:
        MisuseError: rows are not one per sample, and the collator's output does not tell.
    """
    counts = [len(item[LENGTHS]) if _is_packed(item) else 1 for item in items]
    lengths = [len(t) for t in batch.values() if isinstance(t, Tensor) and t.ndim]
    if sum(counts) == len(items) and (not lengths or _one_each(batch, len(items))):
        return None
    with random_as_before():
        asked = collate(list(_numbered(items, counts)))
    found = {
        key: torch.where(t >= FIRST, t - FIRST, -1)
        for key, t in asked.items()
        if isinstance(t, Tensor) and not t.is_floating_point() and bool((t >= FIRST).any())
    }
    if not found:
        raise MisuseError(
            f"The collator made {max(lengths, default=0)} rows of {sum(counts)} samples, and items "
            "have no tokens (keys that end with 'ids') to tell by which rows are whose. Use a data "
            "set that is tokenized before it is collated, or a loop of your own: "
            "attribution.batch(ids, rows=...)."
        )
    places = found.get("input_ids", next(iter(found.values())))
    if places.ndim != 2:
        return places
    lowest = torch.where(places < 0, sum(counts), places).amin(1)
    alone = (places == lowest.unsqueeze(1)) | (places < 0)
    return lowest if bool(alone.all()) and int(lowest.max()) < sum(counts) else places


def _one_each(batch: Mapping[str, Any], samples: int) -> bool:
    """Whether rows are one per sample; the tokens' rows tell, where there are tokens."""
    tokens = batch.get("input_ids")
    if isinstance(tokens, Tensor) and tokens.ndim:
        return len(tokens) == samples
    return any(len(t) == samples for t in batch.values() if isinstance(t, Tensor) and t.ndim)


def _numbered(items: Sequence[Any], counts: Sequence[int]) -> Iterator[Any]:
    """The items with each token replaced by its sample's number."""
    first = FIRST
    for item, count in zip(items, counts, strict=True):
        numbers = range(first, first + count)
        first += count
        if not isinstance(item, Mapping):
            yield item
            continue
        lengths = item[LENGTHS] if _is_packed(item) else None
        yield {
            key: _with(value, numbers, lengths)
            if key.endswith("_ids") and key not in _NO_TOKENS
            else value
            for key, value in item.items()
        }


def _with(tokens: Any, numbers: range, lengths: Sequence[int] | None) -> Any:
    if not isinstance(tokens, (list, Tensor, np.ndarray)):
        return tokens
    if lengths is None:
        numbered = [numbers[0]] * len(tokens)
    else:
        numbered = [n for n, length in zip(numbers, lengths, strict=True) for _ in range(length)]
    if isinstance(tokens, Tensor):
        return tokens.new_tensor(numbered)
    return numbered if isinstance(tokens, list) else np.array(numbered)


def _is_packed(item: Any) -> bool:
    return isinstance(item, Mapping) and LENGTHS in item


def merged(names: Sequence[Any], places: Tensor | Sequence[int] | None) -> Owned:
    """An id that comes several times, as the pieces of an example do, is one sample.

    Args:
        names: ids of the pieces.
        places: see `of_collated`.
    """
    if places is None:
        return Owned(names)
    ids = list(dict.fromkeys(names))
    index = {name: k for k, name in enumerate(ids)}
    of_piece = torch.tensor([index[name] for name in names] + [-1])  # the last is padding's
    found = of_piece[torch.as_tensor(places)]
    return Owned(ids, rows=found) if found.ndim == 1 else Owned(ids, slots=found)


@contextmanager
def random_as_before() -> Iterator[None]:
    """A collator may draw (masks, augmentations); training must not notice."""
    python, array = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(array)
