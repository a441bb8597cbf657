"""Docstrings as they are written here, made into what sphinx reads.

They are plain text for a reader of the source: a star is a star (`*shape`), and an indented
paragraph is code or an equation. In reStructuredText both need a mark, which is put in when the
site is built.
"""

from __future__ import annotations

import re

_OPEN_STAR = re.compile(r"(?<=, )\*(?=\w)|(?<=\()\*(?=\w)")  # as in (K, *shape)
_SECTION = re.compile(r"^\s*(Args|Attributes|Returns|Raises|Yields|Example|Examples):\s*$")


def prepare(
    app: object, what: str, name: str, obj: object, options: object, lines: list[str]
) -> None:
    """Sphinx's event `autodoc-process-docstring`: changes the lines in place."""
    lines[:] = _with_code_marked(lines)


def _with_code_marked(lines: list[str]) -> list[str]:
    """Paragraphs that stand four or more to the right of the one before them become literal."""
    done: list[str] = []
    margin, inside, section = 0, False, False
    for number, line in enumerate(lines):
        if not line.strip():
            done.append(line)
            continue
        indent = len(line) - len(line.lstrip())
        after_blank = number > 0 and not lines[number - 1].strip()
        if inside and indent > margin:
            done.append(line)
            continue
        inside = False
        section = (indent > 0 and section) or bool(_SECTION.match(line))
        if after_blank and indent >= margin + 4 and not section:
            done += ["::", ""]
            inside = True
        else:
            margin = 0 if section else indent
        done.append(line if inside or line.lstrip().startswith((">>>", "...")) else _plain(line))
    return done


def _plain(line: str) -> str:
    """Stars and bars that mean nothing but themselves."""
    return _OPEN_STAR.sub(r"\*", line).replace("|", r"\|")
