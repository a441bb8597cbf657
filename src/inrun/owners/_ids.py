"""Sample ids in the forms in which data loaders give them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from torch import Tensor

from inrun.errors import MisuseError

Ids = list[int] | list[str]


class IdReader:
    """Reads ids as ints or as strings ('int', 'str'), as the first batch had; never a mixture."""

    def __init__(self, kind: str | None = None) -> None:
        self._kind = None if kind is None else {"int": int, "str": str}[kind]

    @property
    def kind(self) -> str | None:
        """What ids are: 'int', 'str', or None before the first."""
        return None if self._kind is None else self._kind.__name__

    def read(self, ids: Iterable[Any]) -> Ids:
        """The ids as plain ints or plain strings.

        Raises:
            MisuseError: neither ints nor strings, or not of the kind that came before.
        """
        if isinstance(ids, (str, bytes)):
            raise MisuseError(
                f"ids is the single string {ids!r}; pass a sequence with one id per row."
            )
        try:
            values = (
                ids.tolist() if isinstance(ids, (Tensor, np.ndarray)) else [_plain(i) for i in ids]
            )
        except TypeError:
            raise MisuseError(
                f"ids is a {type(ids).__name__}; pass a sequence with one id per row."
            ) from None
        if not isinstance(values, list):
            raise MisuseError("ids is a single number; pass a sequence with one id per row.")
        for position, value in enumerate(values):
            if type(value) not in (int, str):
                raise MisuseError(
                    f"The id at position {position} is {value!r} ({type(value).__name__}); sample "
                    "ids are ints or strings, so that they can be stored and found again."
                )
            if isinstance(value, int) and not -(2**63) <= value < 2**63:
                raise MisuseError(
                    f"The id at position {position} is {value}, which does not fit 64 bits. Pass "
                    "it as a string."
                )
            if isinstance(value, str) and not _is_text(value):
                raise MisuseError(
                    f"The id at position {position} is {value!r}, which is no text: it holds half "
                    "of a surrogate pair and cannot be stored. Pass the id decoded."
                )
            if self._kind is None:
                self._kind = type(value)
            if type(value) is not self._kind:
                raise MisuseError(
                    f"The id at position {position} is {value!r}, but ids were "
                    f"{self._kind.__name__} before. Use one kind throughout a run."
                )
        return values


def read_ids(ids: Iterable[Any]) -> Ids:
    """The ids of one batch by itself; see `IdReader.read`."""
    return IdReader().read(ids)


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, (np.generic, Tensor)) else value
