"""Where samples lie in a collated batch: one row each, several rows, or slots of packed rows.

Where rows are not one per sample, the collator itself is asked: it collates the same items a second
time with each token replaced by its sample's number, and the numbers are read where they went. That
is right for every collator that moves tokens and adds padding, whatever it makes of them:
concatenated chosen and rejected rows, packed rows, one long row without padding.

Items of texts and pictures have no tokens yet. They are collated once more one by one, and what
each makes alone is found in the batch: two rows of a pair, one row for each of its pictures.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
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
    """Whose a batch is: ids, and what `Attribution.batch` takes of rows or slots.

    Rows are given by the batch's keys where its tensors have other numbers of rows.
    """

    ids: Sequence[Any]
    rows: Tensor | Mapping[Any, Tensor] | None = None
    slots: Tensor | None = None

    def within(self, batch: Mapping[str, Any]) -> Owned:
        """With the batch's tensors in the places of its keys."""
        if not isinstance(self.rows, Mapping):
            return self
        return replace(self, rows={batch[key]: t for key, t in self.rows.items() if key in batch})


def collated(
    collate: Callable[[list[Any]], Any], items: Sequence[Any]
) -> tuple[Any, Tensor | dict[str, Tensor] | None]:
    """What a collator makes of items, and the places of the samples in it.

    Args:
        collate: the collator; it may draw.
        items: one sample each, or with `seq_lengths` several, which count one by one.

    Returns:
        The batch, and of its rows (R,) or slots (R, T) the places; by key, where the batch's
        tensors have other numbers of rows; None where row j is sample j.

    Raises:
        MisuseError: rows are not one per sample, and the collator's output does not tell.
    """
    draws = torch.get_rng_state(), np.random.get_state(), random.getstate()
    batch = collate(_copies(items))
    counts = [len(item[LENGTHS]) if _is_packed(item) else 1 for item in items]
    if not isinstance(batch, Mapping) or (
        sum(counts) == len(items) and _one_each(batch, len(items)) and not _has_pictures(items)
    ):
        return batch, None
    if _has_pictures(items) or not any(map(_is_tokenized, items)):
        return batch, _places_of_each(collate, items, batch)
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


def _copies(items: Sequence[Any]) -> list[Any]:
    """Items that a collator may write into: TRL's make messages of their texts."""
    return [dict(item) if isinstance(item, dict) else item for item in items]


def _has_pictures(items: Sequence[Any]) -> bool:
    """Whether some items have no picture or several: their tensor's rows are not one per sample."""
    return any(
        isinstance(item, Mapping)
        and isinstance(item.get("images"), (list, tuple))
        and len(item["images"]) != 1
        for item in items
    )


def _is_tokenized(item: Any) -> bool:
    return isinstance(item, Mapping) and any(key.endswith("_ids") for key in item)


def _places_of_each(
    collate: Callable[[list[Any]], Any], items: Sequence[Any], batch: Mapping[str, Any]
) -> dict[str, Tensor]:
    """The places of the rows of each tensor in which they are found; of others nothing is said.

    Raises MisuseError where the batch's tokens are not those that its items have alone.
    """
    with torch.random.fork_rng(devices=[]), states_kept():
        alone = [collate(_copies([item])) for item in items]
    if not all("input_ids" in b and "attention_mask" in b for b in (batch, *alone)):
        raise MisuseError(_untold(batch, len(items)))
    wanted = [_unpadded(b) for b in alone]
    tokens = _unpadded(batch)
    for parts in {len(tokens) // len(items), 1}:  # chosen before rejected; item by item
        order = _laid_out([len(rows) for rows in wanted], parts)
        if order is None or len(order) != len(tokens):
            continue
        seen = [0] * len(items)
        for row, sample in zip(tokens, order, strict=True):
            seen[sample] += 1
            if row != wanted[sample][seen[sample] - 1]:
                break
        else:
            found = {}
            for key, t in batch.items():
                if isinstance(t, Tensor) and t.ndim:
                    laid = _laid_out([len(b[key]) if key in b else 0 for b in alone], parts)
                    if laid is not None and len(laid) == len(t):
                        found[key] = torch.tensor(laid)
            return found
    raise MisuseError(_untold(batch, len(items)))


def _unpadded(batch: Mapping[str, Any]) -> list[list[int]]:
    """Each row's tokens."""
    masks = batch["attention_mask"].bool()
    return [row[mask].tolist() for row, mask in zip(batch["input_ids"], masks, strict=True)]


def _laid_out(counts: Sequence[int], parts: int) -> list[int] | None:
    """Whose rows are, where the first part of all samples' rows comes first; None: uneven parts."""
    if any(count % parts for count in counts):
        return None
    return [
        k for _ in range(parts) for k, count in enumerate(counts) for _ in range(count // parts)
    ]


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


def merged(
    names: Sequence[Any], places: Tensor | Mapping[str, Tensor] | Sequence[int] | None
) -> Owned:
    """An id that comes several times, as the pieces of an example do, is one sample."""
    if places is None:
        return Owned(names)
    ids = list(dict.fromkeys(names))
    index = {name: k for k, name in enumerate(ids)}
    of_piece = torch.tensor([index[name] for name in names] + [-1])  # the last is padding's
    if isinstance(places, Mapping):
        return Owned(ids, rows={key: of_piece[t] for key, t in places.items()})
    found = of_piece[torch.as_tensor(places)]
    return Owned(ids, rows=found) if found.ndim == 1 else Owned(ids, slots=found)
