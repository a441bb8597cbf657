"""One self-contained HTML file: words, charts, pictures and tables, opened without a network.

A sample's text stays text, three times over: it goes through the template's escaping, or into JSON
whose every `<` is escaped, or into compressed data that the page's script puts in as text only; and
the page's own policy lets the browser run no script but those whose hashes it lists.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import altair as alt
import vl_convert
from jinja2 import Environment, PackageLoader, StrictUndefined

from inrun.errors import StoreError

TITLES = (
    "What to do",
    "Labels to check",
    "The map",
    "The books",
    "By group",
    "Value against step",
    "How values are spread",
    "The most harmful samples",
    "The most helpful samples",
    "Duplicates and outliers",
    "All samples",
)


@dataclass(frozen=True)
class Table:
    """A small table; cells are shown as they are given."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Passage:
    """A text, shaded by a value per token."""

    head: str
    facts: Sequence[str]
    tokens: Sequence[str]
    values: Sequence[float]

    @property
    def shaded(self) -> list[tuple[str, str]]:
        """Tokens with their background, a CSS colour."""
        most = max((abs(v) for v in self.values), default=0.0) or 1.0
        return [
            (token, f"rgb({'209 73 91' if v < 0 else '42 157 143'} / {0.75 * abs(v) / most:.3f})")
            for token, v in zip(self.tokens, self.values, strict=False)
        ]


class Card(NamedTuple):
    """A row of the data to look at: its text, or its image as a PNG in base64."""

    head: str
    fact: str
    text: str = ""
    image: str = ""


@dataclass
class Section:
    """A heading, what to see in it, and what is shown."""

    title: str
    words: Sequence[str] = ()
    charts: list[alt.TopLevelMixin] = field(default_factory=list)
    tables: Sequence[Table] = ()
    passages: Sequence[Passage] = ()
    cards: Sequence[Card] = ()
    folded: bool = False


@dataclass(frozen=True)
class Figure:
    """A headline number."""

    value: str
    meaning: str


class Paragraph(NamedTuple):
    """A question, its answer in a few words, what it rests on, and a list that the script fills."""

    title: str
    sentences: Sequence[str]
    answer: str = ""
    fills: str = ""


@dataclass(frozen=True)
class Samples:
    """The samples of a page: filtered, charted, listed and downloaded by its script.

    `data` as `inrun.report._payload` makes it, `charts` by the names that the script knows.
    """

    data: Mapping[str, Any]
    charts: Mapping[str, Mapping[str, Any]]
    titles: Sequence[str] = TITLES

    @property
    def left_out(self) -> Sequence[str]:
        """What did not fit into the page."""
        found: Sequence[str] = self.data["left_out"]
        return found


@dataclass(frozen=True)
class Page:
    """A report: words first, then samples if there are any, then sections."""

    title: str
    lead: str
    figures: Sequence[Figure]
    sections: Sequence[Section]
    footer: str
    summary: Sequence[Paragraph] = ()
    samples: Samples | None = None

    def write(self, path: Path) -> None:
        """Writes the page.

        Raises:
            StoreError: it cannot be written.
        """
        environment = Environment(
            loader=PackageLoader("inrun.report", "assets"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        scripts = self._scripts()
        specs = {
            "fixed": [chart.to_dict() for section in self.sections for chart in section.charts],
            "live": self.samples.charts if self.samples else {},
        }
        text = environment.get_template("page.html").render(
            page=self,
            style=_asset("page.css"),
            scripts=scripts,
            hashes=" ".join(_hash(script) for script in scripts),
            specs=_json_inside_script(specs),
            data=_packed(self.samples.data) if self.samples else "",
        )
        try:
            path.write_text(text, encoding="utf-8", newline="\n")
        except OSError as error:
            raise StoreError(f"The page {path} could not be written: {error}") from error

    def _scripts(self) -> list[str]:
        own = ["page.js"]
        if self.samples:
            own += [
                "data.js",
                "places.js",
                "charts.js",
                "show.js",
                "issues.js",
                "export.js",
                "table.js",
            ]
        return [_inside_script(code) for code in [_renderer(), *map(_asset, own)]]


@cache
def _renderer() -> str:
    """The charts' renderer; putting it together takes seconds."""
    return str(vl_convert.javascript_bundle("window.vegaEmbed=vegaEmbed;"))


def _asset(name: str) -> str:
    return (resources.files("inrun.report") / "assets" / name).read_text(encoding="utf-8")


def _hash(script: str) -> str:
    """What allows exactly this script: any other, slipped in by data, is not run by the browser."""
    digest = hashlib.sha256(script.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


def _packed(data: Mapping[str, Any]) -> str:
    """JSON, compressed, in base64: nothing in it can be taken for markup."""
    plain = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return base64.b64encode(gzip.compress(plain.encode("utf-8", "replace"), 6, mtime=0)).decode()


def _json_inside_script(value: Any) -> str:
    """JSON that cannot end the script element that it stands in."""
    return json.dumps(value).replace("<", "\\u003c").replace("\u2028", "\\u2028")


def _inside_script(code: str) -> str:
    return code.replace("\r\n", "\n").replace("</script", "<\\/script")
