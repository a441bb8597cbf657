"""Reports: one self-contained HTML file, from tables to charts, pictures and words."""

from inrun.errors import require_extra

require_extra("report", "altair", "jinja2", "vl_convert", "PIL")

# ruff: noqa: E402 - an extra that is not there is named before anything of it is imported
from inrun.report import _charts as charts
from inrun.report._answers import write_diff, write_rollup, write_trace
from inrun.report._page import Figure, Page, Paragraph, Section, Table
from inrun.report._report import Told, write_report

__all__ = [
    "Figure",
    "Page",
    "Paragraph",
    "Section",
    "Table",
    "Told",
    "charts",
    "write_diff",
    "write_report",
    "write_rollup",
    "write_trace",
]
