"""What a row's cells say, by task: its content, its label, and how both are shown.

| task | content | label |
|---|---|---|
| text-classification, regression, multi-label | a text | a name, a number, names |
| causal-lm | a text | none |
| token-classification | words | a tag per word |
| chat | messages, each with `role` and `content` | none |
| preference | prompt, chosen and rejected answer: texts or messages | none |
| image-classification | a picture | a name |
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from inrun.training._config import TrainConfig
from inrun.training._objectives import ANSWERS

MISSING = {"", "nan", "none", "null", "<na>"}  # what a missing label is written as
CONTENT = {"image-classification": "image", "token-classification": "tokens", "chat": "messages"}
LABEL = {"token-classification": "tags"}
UNLABELLED = ("causal-lm", "chat", "preference")
PAIR = ("prompt", "chosen", "rejected")


def content_column(config: TrainConfig) -> str:
    """The column that holds a row's content; of a pair the chosen answer's."""
    if config.task == "preference":
        return "chosen"
    if config.task == "image-classification" or config.text_column == "text":
        return CONTENT.get(config.task, config.text_column)
    return config.text_column


def label_column(config: TrainConfig) -> str | None:
    """The column that holds a row's label, None where the task has none."""
    if config.task in UNLABELLED:
        return None
    named = config.label_column
    return LABEL.get(config.task, named) if named == "label" else named


def columns_of(config: TrainConfig) -> list[str]:
    """The columns that a row must have."""
    label = label_column(config)
    content = content_column(config)
    return [*(PAIR[1:] if config.task == "preference" else [content]), *([label] if label else [])]


def read_cells(config: TrainConfig, cells: Mapping[str, Any]) -> tuple[Any, Any]:
    """A row's content and label.

    Raises:
        ValueError: what is wrong with them, in a few words.
    """
    task, column, label = config.task, content_column(config), label_column(config)
    if task == "preference":
        return _pair(cells), ANSWERS[0]
    if task == "chat":
        return _messages(column, _present(cells, column)), None
    if task == "image-classification":
        content = _present(cells, column)
    elif task == "token-classification":
        content = _names(column, _present(cells, column))
    else:
        content = _text(column, _present(cells, column))
    if label is None:
        return content, None
    if task == "multi-label":  # an empty list is a label: none of them
        return content, tuple(dict.fromkeys(_names(label, cells.get(label), empty=True)))
    if task == "token-classification":
        tags = _names(label, _present(cells, label))
        if len(tags) != len(content):
            raise ValueError(f"{len(content)} {column!r} have {len(tags)} {label!r}")
        return content, tags
    return content, (_number if task == "regression" else _name)(label, cells.get(label))


def _present(cells: Mapping[str, Any], column: str) -> Any:
    if cells.get(column) is None:
        raise ValueError(f"no {column!r}")
    return cells[column]


def _text(column: str, value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{column!r} is a {type(value).__name__}, not a text")
    if not value.strip():
        raise ValueError(f"{column!r} is empty")
    return value


def _name(column: str, value: Any) -> str:
    if value is None or str(value).strip().lower() in MISSING:
        raise ValueError(f"no {column!r}")
    if not isinstance(value, (str, int)):
        raise ValueError(
            f"{column!r} is a {type(value).__name__}, not a name or a whole number; numbers of "
            "any size are --task regression, lists of names --task multi-label"
        )
    return str(value).strip()


def _number(column: str, value: Any) -> float:
    try:
        found = float(_name(column, str(value)))
    except ValueError as error:
        missing = str(error).startswith("no ")
        raise ValueError(f"no {column!r}" if missing else f"{column!r} is no number") from None
    if not math.isfinite(found):
        raise ValueError(f"{column!r} is {value}, not a number of finite size")
    return found


def _names(column: str, value: Any, *, empty: bool = False) -> tuple[str, ...]:
    """A list, its JSON, or a text with names apart by '|'."""
    if value is None:
        raise ValueError(f"no {column!r}")
    if isinstance(value, str):
        text = value.strip()
        value = json.loads(text) if text.startswith("[") else [p for p in text.split("|") if p]
    if not isinstance(value, Sequence) or not all(isinstance(v, (str, int)) for v in value):
        raise ValueError(f"{column!r} is no list of names")
    found = tuple(str(v).strip() for v in value)
    if not found and not empty:
        raise ValueError(f"{column!r} is empty")
    return found


def _messages(column: str, value: Any) -> tuple[dict[str, str], ...]:
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        raise ValueError(f"{column!r} is no list of messages")
    found = []
    for message in value:
        if not isinstance(message, Mapping) or not all(
            isinstance(message.get(key), str) for key in ("role", "content")
        ):
            raise ValueError(f"a message in {column!r} has not the texts 'role' and 'content'")
        found.append({key: message[key] for key in ("role", "content")})
    if found[-1]["role"] != "assistant" or found[0]["role"] == "assistant":
        raise ValueError(f"{column!r} must begin with a question and end with role 'assistant'")
    return tuple(found)


def _pair(cells: Mapping[str, Any]) -> tuple[Any, Any, Any]:
    """Prompt, chosen and rejected, all texts or all tuples of messages."""
    chosen, rejected = (_present(cells, name) for name in PAIR[1:])
    prompt = cells.get("prompt")
    found: tuple[Any, Any, Any]
    if isinstance(chosen, str) and isinstance(rejected, str):
        prompt, chosen, rejected = (_text(n, _present(cells, n)) for n in PAIR)
        found = prompt, chosen, rejected
    elif isinstance(chosen, str) or isinstance(rejected, str) or isinstance(prompt, str):
        if not isinstance(prompt, str) or isinstance(chosen, str) or isinstance(rejected, str):
            raise ValueError("'prompt', 'chosen' and 'rejected' must be all texts or all messages")
        asked = [{"role": "user", "content": prompt}]
        return _pair({"chosen": [*asked, *chosen], "rejected": [*asked, *rejected]})
    else:
        whole = [_messages(n, [*(prompt or []), *cells[n]]) for n in PAIR[1:]]
        common = 0
        while common < min(map(len, whole)) - 1 and whole[0][common] == whole[1][common]:
            common += 1
        found = (whole[0][:common], whole[0][common:], whole[1][common:])
        if not common:
            raise ValueError("'chosen' and 'rejected' begin with different questions")
    if found[1] == found[2]:
        raise ValueError("'chosen' and 'rejected' are the same")
    return found


def shown_content(task: str, content: Any) -> Any:
    """As one text, where it is of several parts."""
    if task == "token-classification":
        return " ".join(content)
    if task == "chat":
        return _lines(content)
    if task == "preference":
        prompt, chosen, rejected = map(_lines, content)
        return f"{prompt}\nchosen: {chosen}\nrejected: {rejected}"
    return content


def shown_label(task: str, label: Any) -> Any:
    """As one name, where it is of several."""
    if isinstance(label, tuple):
        return (" " if task == "token-classification" else ", ").join(label)
    return label


def _lines(part: str | Iterable[Mapping[str, str]]) -> str:
    return (
        part if isinstance(part, str) else "\n".join(f"{m['role']}: {m['content']}" for m in part)
    )
