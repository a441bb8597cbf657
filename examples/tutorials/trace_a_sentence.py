"""Which sources made my language model say this?
==============================================

A small language model is trained on sentences of Python's own help, and then continues a prompt.
Which of them made it say that? The same training, attached, with what it said as the target, says
what every sentence did to the model's loss on it, word by word.

The texts are those that ``help("try")`` prints, and ship with Python.
"""

# %%
# Sentences with a source
# -----------------------

import re
import tempfile
from collections import Counter
from contextlib import contextmanager, nullcontext
from pathlib import Path
from pydoc_data.topics import topics

import matplotlib.pyplot as plt
import numpy as np
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from torch import nn

import inrun

CHOSEN = [
    "try", "with", "raise", "for", "while", "function", "class", "import", "assignment", "del",
    "global", "return", "yield", "assert", "break", "lambda", "booleans", "comparisons",
]  # fmt: skip
LENGTH, WIDTH, EPOCHS, BATCH = 24, 48, 50, 16
NOTHING, UNKNOWN = 0, 1  # numbers of "no word" and of words that come once

sentences, sources = [], []
for topic in CHOSEN:
    prose = [
        paragraph
        for paragraph in topics[topic].split("\n\n")
        if not paragraph.startswith((" ", "*", "+", "|")) and "::=" not in paragraph
    ]
    text = " ".join(" ".join(prose).translate(str.maketrans("", "", '*`"_')).split())
    for sentence in re.split(r"(?<=[.:;]) (?=[A-Z])", text):
        words = re.findall(r"\w+|[^\w\s]", sentence)
        if 6 <= len(words) <= LENGTH:
            sentences.append(words)
            sources.append(topic)

counts = Counter(word for words in sentences for word in words)
vocabulary = ["", "?", *(word for word, count in counts.most_common() if count > 1)]
number = {word: i for i, word in enumerate(vocabulary)}
tokens = torch.full((len(sentences), LENGTH), NOTHING)
for row, words in zip(tokens, sentences, strict=True):
    row[: len(words)] = torch.tensor([number.get(word, UNKNOWN) for word in words])
print(f"{len(sentences)} sentences from {len(CHOSEN)} topics, {len(vocabulary)} words")

# %%
# A model
# -------
#
# One attention layer over whole words: enough to learn these sentences nearly by heart.


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(len(vocabulary), WIDTH)
        self.places = nn.Embedding(LENGTH, WIDTH)
        self.attend = nn.Linear(WIDTH, 3 * WIDTH)
        self.first, self.second = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.think = nn.Sequential(nn.Linear(WIDTH, 128), nn.GELU(), nn.Linear(128, WIDTH))

    def forward(self, ids):
        h = self.words(ids) + self.places(torch.arange(ids.shape[1]))
        q, k, v = self.attend(self.first(h)).chunk(3, -1)
        seen = (q @ k.transpose(1, 2) / WIDTH**0.5).masked_fill(
            torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool).triu(1), float("-inf")
        )
        h = h + seen.softmax(-1) @ v
        h = h + self.think(self.second(h))
        return h @ self.words.weight.T


def token_losses(model, ids):
    """What each word but the first contributes to the training loss, (B, T - 1)."""
    logits = model(ids[:, :-1]).transpose(1, 2)
    terms = F.cross_entropy(logits, ids[:, 1:], reduction="none", ignore_index=NOTHING)
    return terms / terms.numel()


def train(rows, attach=None):
    """A training on some of the sentences, the same every time; ``attach`` may look on."""
    torch.manual_seed(0)
    model = Model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    look_on, finish = attach(model, optimizer) if attach else (lambda ids: nullcontext(), None)
    for _ in range(EPOCHS):
        for ids in rows[torch.randperm(len(rows))].split(BATCH):
            with look_on(ids.tolist()):
                token_losses(model, tokens[ids]).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    if finish:
        finish()
    return model


everything = torch.arange(len(sentences))
model = train(everything)

# %%
# What does it say?
# -----------------

PROMPT = ["If", "the", "finally"]
said = [number[word] for word in PROMPT]
with torch.no_grad():
    while len(said) < LENGTH and vocabulary[said[-1]] != ".":
        said.append(int(model(torch.tensor([said]))[0, -1, UNKNOWN + 1 :].argmax()) + UNKNOWN + 1)
print(" ".join(vocabulary[i] for i in said))

# %%
# What made it say so?
# --------------------
#
# What was said is a query: a validation loss of its own. The same training once more, bit for
# bit, now with that loss as the target of an attribution, and with a value for each word.

STORE = Path(tempfile.mkdtemp(), "run")


def query_loss(model, ids):
    logits = model(ids[:, :-1]).transpose(1, 2)
    terms = F.cross_entropy(logits, ids[:, 1:], reduction="none")
    return terms[:, len(PROMPT) - 1 :].mean()  # what the model said, not what it was given


query = torch.tensor([said, said])  # twice: two rows show which axis is the rows
utility = inrun.Utility(query_loss, targets={"said": query})


def attach(model, optimizer):
    attribution = inrun.attach(
        model,
        optimizer,
        utility,
        store=STORE,
        options=inrun.Options(contraction="dense", smoothed_steps=0),
    )
    by_word = attribution.per_token(token_losses, STORE)

    @contextmanager
    def look_on(ids):
        words = [sentences[i] + [""] * (LENGTH - len(sentences[i])) for i in ids]
        with (
            attribution.batch(ids),
            by_word.batch(ids, tokens[ids], [row[1:] for row in words]),
        ):
            yield

    def finish():
        by_word.flush()
        attribution.detach()

    return look_on, finish


train(everything, attach)
run = inrun.load(STORE)
found = inrun.trace(run, "said").of("said")
best = found.slice(0, 6).to_pylist()
for row in best:
    i = row["sample_id"]
    print(f"{row['rank']}. score {row['score']:6.1f}  {sources[i]}: {' '.join(sentences[i])}")

# %%
# Ranked by *standardised* values: each visit's value beside those of its own step. What is
# visited early lowers every loss; only the comparison within a step tells what a sentence did
# itself.
#
# Word by word: a value is the sum of one value for each predicted word. Green words made what was
# said more likely, red ones less.

by_word = run.path / "tokens"
visits = pq.read_table(by_word).to_pylist()
figure, axis = plt.subplots(figsize=(9, 3.4))
axis.axis("off")
for line, row in enumerate(best):
    i = row["sample_id"]
    values = np.sum([visit["values"] for visit in visits if visit["sample_id"] == i], axis=0)
    most = np.abs(values).max()
    at = axis.text(0, 0.92 - 0.17 * line, f"{sources[i]}:  ", fontsize=8, weight="bold")
    for word, value in zip(sentences[i][1:], values, strict=False):
        color = (0.16, 0.62, 0.56) if value > 0 else (0.82, 0.29, 0.36)
        box = {"facecolor": (*color, 0.8 * abs(value) / most), "edgecolor": "none", "pad": 1}
        at = axis.annotate(f"{word} ", (1, 0), xycoords=at, fontsize=7, va="bottom", bbox=box)

# %%
# Summed up by source
# -------------------
#
# The topics by their sentences' values: the books of this loss, by who delivered.

run.describe({
    "sample_id": range(len(sentences)),
    "text": [" ".join(words) for words in sentences],
    "source": sources,
})  # fmt: skip
worth = inrun.rollup(run, "source").table.to_pylist()

figure, axis = plt.subplots(figsize=(6, 3.6))
axis.barh(
    [row["group"] for row in worth][::-1],
    [row["value"] for row in worth][::-1],
    color=["tab:green" if row["value"] > 0 else "tab:red" for row in worth][::-1],
)
axis.axvline(0, color="black", linewidth=0.8)
axis.set_xlabel("taken off the loss on what was said")
figure.tight_layout()

# %%
# Check it: train again without them
# ----------------------------------
#
# The answer can be tried. Without its six best sources the model should find its own words less
# likely; without six random ones, hardly.

top = np.array([row["sample_id"] for row in best])
random = np.random.default_rng(0).permutation(np.setdiff1d(np.arange(len(sentences)), top))[:6]
print(f"loss on it, trained on all  {query_loss(model, query).item():.3f}")
for name, left_out in (("the six best sources", top), ("six random ones", random)):
    rest = everything[~torch.isin(everything, torch.from_numpy(left_out))]
    print(f"without {name:19} {query_loss(train(rest), query).item():.3f}")

# %%
# A second training is cheap for a small model. For a large one, name the questions before
# training, or record the run and look ahead (:doc:`/uses/lookahead`), where its error proxy says
# that one can: a model that learns its data by heart, as this one, is where one cannot.
# :doc:`/evidence/tracing` compares values with text search, and :doc:`/uses/trace` has the command.
