"""A cell's setting, and the name that it has in the results: 'task=digits noise=0.2 seed=0'."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, TypeVar, get_type_hints

Own = TypeVar("Own", bound="Keyed")


@dataclass(frozen=True)
class Keyed:
    """Fields of text, numbers and truth values, in their order."""

    @property
    def key(self) -> str:
        """The cell's name in the results."""
        return " ".join(f"{name}={value}" for name, value in asdict(self).items())

    @classmethod
    def of(cls: type[Own], key: str) -> Own:
        """The setting that a cell's name stands for; what it does not name is as by default."""
        kinds = get_type_hints(cls)
        given = dict(part.split("=") for part in key.split(" "))
        return cls(**{name: _read(kinds[name], text) for name, text in given.items()})


def _read(kind: type, text: str) -> Any:
    return text == "True" if kind is bool else kind(text)
