"""The corpus: 3,000 passages, 40 of them sources, and four queries for each source.

Tales of Grimm and Andersen (public domain) and the Brown corpus, cut into passages of about the
sources' length; no other passage shares a sentence with a source. `passages.json` holds, for
each source, the passage itself, the same with three changes, a paraphrase in other words, and a
text on the same topic that tells something else; the last three were written for this benchmark.
"""

from __future__ import annotations

import csv
import json
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from benchmarks import data

DISTANCES = ("exact", "edited", "paraphrase", "topic")
PASSAGES, WORDS = 3000, 38
TOKENS = 56


@dataclass(frozen=True)
class Corpus:
    """`texts[:sources]` are the sources; `queries[distance][s]` asks for source s."""

    texts: list[str]
    sources: int
    queries: dict[str, list[str]]


@cache
def corpus() -> Corpus:
    """The whole, in an order that is always the same."""
    written = json.loads((Path(__file__).parent / "passages.json").read_text())
    sources = [entry["exact"] for entry in written]
    others = [p for p in _tales() if not _shares(p, sources)]
    rest = PASSAGES - len(sources) - len(others)
    texts = sources + others + data.brown_passages(rest, WORDS)
    queries = {name: [entry[name] for entry in written] for name in DISTANCES}
    return Corpus(texts, len(sources), queries)


def _tales() -> list[str]:
    folder = data.texts_folder()
    found = []
    csv.field_size_limit(2**24)
    for name, column in (("grimm-tales-selected.tab", 3), ("andersen.tab", 1)):
        with open(folder / name, encoding="utf-8", newline="") as file:
            rows = list(csv.reader(file, delimiter="\t"))[3:]
        for row in rows:
            if len(row) > column:
                found += _cut(re.sub(r"\s+", " ", row[column]))
    return found


def _sentences(text: str) -> list[str]:
    return re.split(r"(?<=[.!?])[\u2019\u201d\"']?\s+(?=[A-Z\u2018\u201c])", text)


def _cut(text: str) -> list[str]:
    """Whole sentences, until there are about as many words as a source has."""
    passages: list[str] = []
    waiting: list[str] = []
    for sentence in _sentences(text):
        waiting.append(sentence)
        if sum(len(s.split()) for s in waiting) >= WORDS - 8:
            passages.append(" ".join(waiting))
            waiting = []
    return passages


def _shares(passage: str, sources: list[str]) -> bool:
    """Whether it has a sentence, or a good part of one, in common with a source."""
    words = passage.split()
    runs = {" ".join(words[i : i + 8]) for i in range(max(1, len(words) - 7))}
    return any(run in source for source in sources for run in runs)


@dataclass(frozen=True)
class Encoded:
    """Token ids, padded with 0: passages (n, T), queries (K, T); and the tokens' vectors (V, d)."""

    passages: Tensor
    queries: Tensor
    names: list[str]
    vectors: Tensor


@cache
def encoded(vocabulary: int, width: int) -> Encoded:
    """Word pieces of the pretrained encoder, with its vectors for them, reduced to `width`."""
    from safetensors.torch import load_file
    from transformers import AutoTokenizer

    whole, tokenizer = corpus(), AutoTokenizer.from_pretrained(data.minilm())
    texts = whole.texts + [q for name in DISTANCES for q in whole.queries[name]]
    pieces = [tokenizer(text, add_special_tokens=False)["input_ids"][:TOKENS] for text in texts]
    counts = torch.bincount(torch.tensor([i for row in pieces for i in row]))
    common = counts.argsort(descending=True, stable=True)[: vocabulary - 2]
    number = {int(piece): i for i, piece in enumerate(common, start=2)}  # 0 pads, 1 is rare
    ids = torch.zeros(len(texts), TOKENS, dtype=torch.long)
    for row, text in enumerate(pieces):
        ids[row, : len(text)] = torch.tensor([number.get(i, 1) for i in text])
    table = load_file(data.minilm() / "model.safetensors")["embeddings.word_embeddings.weight"]
    known = table[common]
    centred = known - known.mean(0)
    _, _, directions = torch.linalg.svd(centred, full_matrices=False)
    vectors = torch.zeros(vocabulary, width)
    vectors[2 : 2 + len(common)] = centred @ directions[:width].T
    n = len(whole.texts)
    names = [f"{name} {s}" for name in DISTANCES for s in range(whole.sources)]
    return Encoded(ids[:n], ids[n:], names, vectors / vectors.std() * 0.3)
