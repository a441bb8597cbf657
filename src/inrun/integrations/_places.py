"""Where samples lie in a collated batch: one row each, several rows, or slots of packed rows.

Where rows are not one per sample, the collator itself is asked: it collates the same items a second
time with each token replaced by its sample's number, and the numbers are read where they went. That
is right for every collator that moves tokens and adds padding, whatever it makes of them:
concatenated chosen and rejected rows, packed rows, one long row without padding.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from inrun.errors import MisuseError
from inrun.utility import states_kept

LENGTHS = "seq_lengths"  # an item's column: lengths of the examples that were packed into it
FIRST = 1 << 24  # tokens are smaller numbers, so that padding is told from samples
_NO_TOKENS = ("position_ids", "token_type_ids")


@dataclass(frozen=True)
class Owned:
    """Whose a batch is: ids, and what `Attribution.batch` takes of rows or slots."""

    ids: Sequence[Any]
    rows: Tensor | None = None
    slots: Tensor | None = None


def collated(
    collate: Callable[[list[Any]], Any], items: Sequence[Any]
) -> tuple[Any, Tensor | None]:
    """What a collator makes of items, and the places of the samples in it.

    Args:
        collate: the collator; it may draw.
        items: one sample each, or with `seq_lengths` several, which count one by one.

    Returns:
        The batch, and of its rows (R,) or slots (R, T) the places; None where row j is sample j.

    Raises:
        MisuseError: rows are not one per sample, and the collator's output does not tell.
    """
    draws = torch.get_rng_state(), np.random.get_state(), random.getstate()
    batch = collate(list(items))
    counts = [len(item[LENGTHS]) if _is_packed(item) else 1 for item in items]
    if not isinstance(batch, Mapping) or (
        sum(counts) == len(items) and _one_each(batch, len(items))
    ):
        return batch, None
    with torch.random.fork_rng(devices=[]), states_kept():
        torch.set_rng_state(draws[0])
        np.random.set_state(draws[1])
        random.setstate(draws[2])
        asked = collate(list(_numbered(items, counts)))
    found = {
        key: torch.where(t >= FIRST, t - FIRST, -1)
        for key, t in asked.items()
        if isinstance(t, Tensor) and not t.is_floating_point() and bool((t >= FIRST).any())
    }
    if not found or any(t.shape != batch[key].shape for key, t in found.items()):
        raise MisuseError(_untold(batch, sum(counts)))
    places = found.get("input_ids", next(iter(found.values())))
    if places.ndim != 2:
        return batch, places
    lowest = torch.where(places < 0, sum(counts), places).amin(1)
    alone = (places == lowest.unsqueeze(1)) | (places < 0)
    of_rows = bool(alone.all()) and int(lowest.max()) < sum(counts)
    return batch, lowest if of_rows else places


def _untold(batch: Mapping[str, Any], samples: int) -> str:
    rows = max((len(t) for t in batch.values() if isinstance(t, Tensor) and t.ndim), default=0)
    return (
        f"The collator made {rows} rows of {samples} samples, and its tokens do not tell which "
        "rows are whose: items have none (keys that end with 'ids'), or it makes others of them. "
        "Use a data set that is tokenized before it is collated, or a loop of your own: "
        "attribution.batch(ids, rows=...)."
    )


def _one_each(batch: Mapping[str, Any], samples: int) -> bool:
    """Whether rows are one per sample; the tokens' rows tell, where there are tokens."""
    tokens = batch.get("input_ids")
    if isinstance(tokens, Tensor) and tokens.ndim:
        return len(tokens) == samples
    lengths = [len(t) for t in batch.values() if isinstance(t, Tensor) and t.ndim]
    return not lengths or samples in lengths


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
        places: see `collated`.
    """
    if places is None:
        return Owned(names)
    ids = list(dict.fromkeys(names))
    index = {name: k for k, name in enumerate(ids)}
    of_piece = torch.tensor([index[name] for name in names] + [-1])  # the last is padding's
    found = of_piece[torch.as_tensor(places)]
    return Owned(ids, rows=found) if found.ndim == 1 else Owned(ids, slots=found)
