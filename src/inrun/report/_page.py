"""One self-contained HTML file: words, charts, pictures and tables, opened without a network.

Everything that comes from data goes through the template's escaping, or into JSON whose every `<`
is escaped: a sample's text stays text.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import altair as alt
import numpy as np
import vl_convert
from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image


@dataclass(frozen=True)
class Picture:
    """An image with a line or two below it."""

    pixels: np.ndarray  # (H, W) or (H, W, 3), 0 to 1
    lines: Sequence[str]
    alt: str
    enlarge: int = 8

    @property
    def data_uri(self) -> str:
        """The image as PNG inside the page."""
        image = Image.fromarray((np.clip(self.pixels, 0, 1) * 255).astype(np.uint8))
        large = image.resize(
            (image.width * self.enlarge, image.height * self.enlarge), Image.Resampling.NEAREST
        )
        buffer = io.BytesIO()
        large.save(buffer, format="PNG", optimize=True)
        return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


@dataclass(frozen=True)
class Table:
    """A small table; cells are shown as they are given."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass
class Section:
    """A heading, what to see in it, and what is shown."""

    title: str
    words: Sequence[str] = ()
    charts: list[alt.TopLevelMixin] = field(default_factory=list)
    pictures: Sequence[Picture] = ()
    tables: Sequence[Table] = ()


@dataclass(frozen=True)
class Figure:
    """A headline number."""

    value: str
    meaning: str


@dataclass(frozen=True)
class Page:
    """A report."""

    title: str
    lead: str
    figures: Sequence[Figure]
    sections: Sequence[Section]
    footer: str

    def write(self, path: Path) -> None:
        """Writes the page."""
        environment = Environment(
            loader=PackageLoader("inrun.report", "assets"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        specs = [chart.to_dict() for section in self.sections for chart in section.charts]
        assets = resources.files("inrun.report") / "assets"
        text = environment.get_template("page.html").render(
            page=self,
            style=(assets / "page.css").read_text(),
            script=(assets / "page.js").read_text(),
            renderer=_inside_script(vl_convert.javascript_bundle("window.vegaEmbed=vegaEmbed;")),
            specs=_json_inside_script(specs),
        )
        path.write_text(text, encoding="utf-8")


def _json_inside_script(value: Any) -> str:
    """JSON that cannot end the script element that it stands in."""
    return json.dumps(value).replace("<", "\\u003c").replace("\u2028", "\\u2028")


def _inside_script(code: str) -> str:
    return code.replace("</script", "<\\/script")
