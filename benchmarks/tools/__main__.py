"""`python -m benchmarks.tools`: measures what is not on disk yet, writes the page.

Tools that are not there are left out: TOOLS_PYTHON names an interpreter that has them, GHOSTSUITE a
checkout of GhostSuite.
"""

from __future__ import annotations

from benchmarks.command import measure_and_write
from benchmarks.tools.cell import AGAIN, CONTROLS, MEMORY, TOOLS, measure, there
from benchmarks.tools.experiment import Setting
from benchmarks.tools.page import write_page

SHORT, LONG = (1e-3, 4), (3e-3, 8)


def grid(quick: bool) -> list[str]:
    """The cells' names."""
    settings = [Setting(*SHORT)] if quick else [Setting(*SHORT), Setting(*LONG)]
    tools = [tool.name for tool in TOOLS if there(tool)]
    keys = [f"{name}: {setting.key}" for setting in settings for name in (CONTROLS, AGAIN, *tools)]
    return keys + [f"{MEMORY}{name}: {settings[0].key}" for name in ("inrun, look-ahead", *tools)]


def main() -> None:
    """Parses the command line, measures, writes the page."""
    measure_and_write("tools", __doc__, "the short training", grid, measure, write_page)


if __name__ == "__main__":
    main()
