"""Reports: one self-contained HTML file, from tables to charts, pictures and words."""

from inrun.report import _charts as charts
from inrun.report._page import Figure, Page, Picture, Section, Table

__all__ = ["Figure", "Page", "Picture", "Section", "Table", "charts"]
