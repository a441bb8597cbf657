"""How `make docs` builds the site: Markdown pages, the API from docstrings, the command's own help.

Builds are strict (-W -n): a link to nothing or a reference to nothing fails. Nothing is fetched,
neither while building nor by a reader's browser.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import inrun

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
from docstrings import prepare  # noqa: E402  (found beside this file, wherever sphinx was started)

ROOT = HERE.parent

project = "InRun"
author = "InRun's contributors"
project_copyright = "InRun's contributors, Apache-2.0"
release = version = inrun.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["_build", "tutorials/GALLERY_HEADER.rst", "tutorials/README.rst"]
suppress_warnings = ["config.cache"]  # the gallery's settings hold functions; nothing is lost by it

# ---- pages

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
myst_links_external_new_tab = False

# ---- the API

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autodoc_default_options = {"members": True, "show-inheritance": True}
autoclass_content = "class"
default_role = "code"
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
add_module_names = False
python_use_unqualified_type_names = True

# What other packages document: their inventories are not fetched, so their names stay plain text.
_FOREIGN = (
    "torch|nn|Tensor|abc|numpy|np|pyarrow|pa|altair|pathlib|collections|contextlib|os|lightning|"
    "transformers"
)
# Names that signatures show and that nobody has to build: type variables and records of the inside.
_INSIDE = (
    "Setting|State|Settled|Step|Sample|Passage|Card|Results|Memory|Arm|Waiting|Valued|Processes|"
    "Scoring|Scorer|Windows|Frequency|Ways|Losses|Fetch|Buildable|Capture|Block|ReadStep|Batches|Check"
)
nitpick_ignore_regex = [
    (r"py:.*", rf"({_FOREIGN})(\..*)?"),
    (r"py:.*", rf"(inrun\.\w+\._\w+\.)?({_INSIDE})"),
    (r"py:class", r"dict\[str"),  # half of a parameter that has two
]

# ---- the tutorials: run as they stand when the site is built, and by the tests

sphinx_gallery_conf = {
    "examples_dirs": [str(ROOT / "examples" / "tutorials")],
    "gallery_dirs": ["tutorials"],
    "filename_pattern": r"/\w+\.py",
    "within_subsection_order": "tutorials_order.Order",
    "download_all_examples": False,
    "show_memory": False,
    "show_signature": False,
    "remove_config_comments": True,
    "abort_on_example_error": True,
    "reset_modules_order": "before",
    "min_reported_time": 0,
}

# ---- how it looks

html_theme = "furo"
pygments_dark_style = "github-dark"
html_title = "InRun"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_copy_source = False
html_theme_options = {
    "navigation_with_keys": True,
    "light_css_variables": {
        "color-brand-primary": "#0b6e8a",
        "color-brand-content": "#0b6e8a",
        "font-stack": "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif",
        "font-stack--monospace": "ui-monospace, 'SF Mono', Menlo, Consolas, monospace",
    },
    "dark_css_variables": {
        "color-brand-primary": "#5cc3de",
        "color-brand-content": "#5cc3de",
    },
}


def _write_command_reference(*_: object) -> None:
    """The command's verbs and options, as typer itself writes them down."""
    made = subprocess.run(
        [sys.executable, "-m", "typer", "inrun.cli._main", "utils", "docs", "--name", "inrun"],
        capture_output=True, text=True, check=True, cwd=HERE,
    ).stdout  # fmt: skip
    build = HERE / "_build"
    build.mkdir(exist_ok=True)
    (build / "command.md").write_text(made, encoding="utf-8")


# A line that is a link to a CSV file alone: the site shows the table below it.
_TABLE = re.compile(r"^\[[^\]]+\]\(([\w/]+\.csv)\)$", re.MULTILINE)


def _show_tables(app: Any, page: str, source: list[str]) -> None:
    """Sphinx's event `source-read`: puts each linked table below its link."""
    shown = r"\g<0>\n\n```{csv-table}\n:file: \1\n:header-rows: 1\n```"
    source[0] = _TABLE.sub(shown, source[0])


def setup(app: Any) -> None:
    """Called by sphinx."""
    app.connect("builder-inited", _write_command_reference)
    app.connect("source-read", _show_tables)
    app.connect("autodoc-process-docstring", prepare, priority=400)  # before napoleon reads it
