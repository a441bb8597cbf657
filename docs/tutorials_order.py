"""The order in which the tutorials are listed: the easiest first."""

from __future__ import annotations

from pathlib import Path

ORDER = ("find_wrong_labels", "trace_a_sentence", "what_taught_it", "choose_while_training")


class Order:
    """What sphinx-gallery sorts files by; it is built from the folder and called with a name."""

    def __init__(self, folder: object):
        self.folder = folder

    def __call__(self, filename: str) -> int:
        """The place in `ORDER`; a tutorial that is not named there comes last."""
        name = Path(filename).stem
        return ORDER.index(name) if name in ORDER else len(ORDER)
