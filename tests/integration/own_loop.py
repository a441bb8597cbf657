"""A user's own script: trains a small language model on sentences, attributed and recorded.

The sentences are those of scikit-learn's descriptions of its data sets; each description is a
source. Copied into a fresh folder by the tests, as a user would have it there.
"""

import re

import torch
import torch.nn.functional as F
from sklearn import datasets
from torch import nn

import inrun

SOURCES = ("iris", "wine", "breast_cancer", "diabetes", "digits")
WORDS, BEFORE, WIDTH, EPOCHS, BATCH = 20, 3, 16, 3, 16


def sentences():
    """[(text, source)]: one that was delivered by two sources, at the end."""
    found = []
    for source in SOURCES:
        text = getattr(datasets, f"load_{source}")().DESCR
        parts = re.split(r"(?<=[.:])\s+|\n\s*\n", text)
        plain = (re.sub(r"[^A-Za-z ]+", " ", part).split() for part in parts)
        found += [(" ".join(p[:WORDS]), source) for p in plain if len(p) >= 6]
    return [*found, (found[0][0], SOURCES[-1])]


DATA = sentences()
VOCABULARY = sorted({word.lower() for text, _ in DATA for word in text.split()})
NUMBER = {word: k + 1 for k, word in enumerate(VOCABULARY)}  # 0 is padding


def encode(texts):
    """(B, BEFORE + WORDS): words by number, padded on both sides."""
    rows = torch.zeros(len(texts), BEFORE + WORDS, dtype=torch.long)
    for row, text in zip(rows, texts, strict=True):
        numbers = [NUMBER.get(word.lower(), 0) for word in text.split()[:WORDS]]
        row[BEFORE : BEFORE + len(numbers)] = torch.tensor(numbers)
    return rows


class NextWord(nn.Module):
    """The next word from the three before it."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(len(VOCABULARY) + 1, WIDTH)
        self.hidden = nn.Linear(BEFORE * WIDTH, 32)
        self.out = nn.Linear(32, len(VOCABULARY) + 1)

    def forward(self, batch):
        seen = self.embed(batch).unfold(1, BEFORE, 1)[:, :-1]
        return self.out(F.gelu(self.hidden(seen.flatten(2))))


def token_losses(model, batch):
    """(B, WORDS), 0 at padding; they add up to the mean over the batch's words."""
    wanted = batch[:, BEFORE:]
    found = F.cross_entropy(model(batch).transpose(1, 2), wanted, ignore_index=0, reduction="none")
    return found / (wanted != 0).sum()


def losses(model, batch):
    return token_losses(model, batch).sum(1)


def loss_fn(model, batch):
    return losses(model, batch).sum()


def weights(batch):
    return (batch[:, BEFORE:] != 0).sum(1).float()


def fetch(ids):
    return encode([DATA[i][0] for i in ids])


def build(seed=0):
    torch.manual_seed(seed)
    model = NextWord()
    return model, torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0.01)


VALIDATION = list(range(0, len(DATA), 5))
TRAINING = [i for i in range(len(DATA)) if i % 5]


def batches(ids, seed):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(EPOCHS):
        order = torch.randperm(len(ids), generator=generator).tolist()
        for begin in range(0, len(order), BATCH):
            yield [ids[k] for k in order[begin : begin + BATCH]]


def train(folder):
    model, optimizer = build()
    by_source = {
        source: fetch([i for i in VALIDATION if DATA[i][1] == source]) for source in SOURCES
    }
    utility = inrun.Utility(loss_fn, targets=by_source)
    attribution = inrun.attach(
        model, optimizer, utility, store=folder, options=inrun.Options(progress=False)
    )
    recorder = inrun.record(
        model, optimizer, losses, fetch, f"{folder}/trajectory", weights=weights
    )
    for ids in batches(TRAINING, 0):
        with attribution.batch(ids), recorder.batch(ids):
            loss_fn(model, fetch(ids)).backward()
        optimizer.step()
        optimizer.zero_grad()
    attribution.detach()
    recorder.finish()
    inrun.load(folder).describe(
        {
            "sample_id": TRAINING,
            "text": [DATA[i][0] for i in TRAINING],
            "source": [DATA[i][1] for i in TRAINING],
        }
    )


def again():
    """What `inrun trace` needs to play the recorded run again."""
    model, optimizer = build()
    return inrun.Replayable(
        model, optimizer, losses, fetch,
        query_loss=lambda model, row: loss_fn(model, encode([row["text"]])),
        weights=weights,
        token_losses=token_losses,
        tokens=lambda ids: [[f"{word} " for word in DATA[i][0].split()[:WORDS]] for i in ids],
    )  # fmt: skip


def retrain(ids, seed):
    """What `inrun prune --check` calls: a score on unseen sentences, higher is better."""
    model, optimizer = build(seed)
    for part in batches(list(ids), seed):
        loss_fn(model, fetch(part)).backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        return -float(loss_fn(model, fetch(VALIDATION)))


if __name__ == "__main__":
    train("run")
