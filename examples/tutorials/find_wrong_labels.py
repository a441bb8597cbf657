"""Find wrong labels, and mend them
================================

Some of the labels in most data sets are wrong, and nobody knows which. This tutorial trains a small
network on handwritten digits, a third of them mislabelled on purpose, and asks what each of them
did while it trained: which labels look wrong, what they should be, and what mending them gains.

The digits ship with scikit-learn.
"""

# %%
# Data with wrong labels
# ----------------------
#
# 700 digits to train on, of which 233 get another label at random; 300 clean ones to judge by,
# and the rest to test on. Which labels are wrong is known here, and used only to see how well it
# went.

import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score
from torch import nn

import inrun
from inrun.uses import harm_sums

TRAIN, JUDGE, CLASSES, EPOCHS = 700, 300, 10, 15

digits = load_digits()
generator = torch.Generator().manual_seed(0)
order = torch.randperm(len(digits.target), generator=generator)
x = torch.tensor(digits.images, dtype=torch.float32)[order].unsqueeze(1) / 16
truth = torch.tensor(digits.target)[order]

labels = truth[:TRAIN].clone()
wrong = torch.randperm(TRAIN, generator=generator)[: TRAIN // 3]
labels[wrong] = (labels[wrong] + torch.randint(1, 10, (len(wrong),), generator=generator)) % 10
is_wrong = (labels != truth[:TRAIN]).numpy()
print(f"{is_wrong.sum()} of {TRAIN} labels are wrong")

# %%
# Train, attached
# ---------------
#
# One named target per class: a value then says what a sample did to the loss on the zeros, on the
# ones, and so on. The loop also keeps each sample's loss and probabilities, which cost nothing.


def network():
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(),
        nn.Conv2d(16, 16, 3, stride=2, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Linear(256, CLASSES),
    )  # fmt: skip


def loss_fn(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


def batches(seed, rows=TRAIN):
    shuffle = torch.Generator().manual_seed(seed)
    return [b for _ in range(EPOCHS) for b in torch.randperm(rows, generator=shuffle).split(32)]


judges, judged = x[TRAIN : TRAIN + JUDGE], truth[TRAIN : TRAIN + JUDGE]
by_class = {str(c): (judges[judged == c], judged[judged == c]) for c in range(CLASSES)}

STORE = Path(tempfile.mkdtemp(), "run")
torch.manual_seed(0)
model = network()
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
attribution = inrun.attach(model, optimizer, inrun.Utility(loss_fn, targets=by_class), store=STORE)
losses, probabilities = np.zeros(TRAIN), np.zeros((TRAIN, CLASSES))
for ids in batches(seed=0):
    with attribution.batch(ids):
        logits = model(x[ids])
        terms = F.cross_entropy(logits, labels[ids], reduction="none")
        terms.mean().backward()
    losses[ids] += terms.detach().numpy() / EPOCHS
    probabilities[ids] += logits.detach().softmax(1).numpy() / EPOCHS
    optimizer.step()
    optimizer.zero_grad()
attribution.detach()
print(f"The books leave {attribution.residual_share:.2%} of their entries unexplained")

# %%
# Which labels look wrong?
# ------------------------
#
# A sample's harm profile, its loss and its probabilities together rank the labels by doubt, the
# most doubtful first, and name the label that each sample should rather have.

run = inrun.load(STORE)
classes = [str(c) for c in range(CLASSES)]
seen = {"sample_id": range(TRAIN), "label": [str(c) for c in labels.tolist()], "mean_loss": losses}
doubts = inrun.label_doubts(run, seen | dict(zip(classes, probabilities.T, strict=True)))
print(doubts)
rows = doubts.to_arrow().sort_by("sample_id")
doubt, suggested = (
    -rows["doubt_rank"].to_numpy(),
    np.array(rows["suggested_label"].to_pylist(), int),
)
first = np.argsort(-doubt)

figure, axes = plt.subplots(3, 8, figsize=(9, 4.9))
for axis, i in zip(axes.flat, first, strict=False):
    axis.imshow(x[i, 0], cmap="gray_r")
    right = suggested[i] == truth[i]
    axis.set_title(f"{labels[i]} → {suggested[i]}", color="tab:green" if right else "tab:red")
    axis.axis("off")
figure.suptitle("The 24 most doubtful labels → what they should be (green: it is so)")
figure.tight_layout()

# %%
# How well did it go? Here the wrong labels are known:

named = (suggested == truth[:TRAIN].numpy())[is_wrong].mean()
print(f"AUC of the doubts {roc_auc_score(is_wrong, doubt):.4f}")
print(f"AUC of the mean loss alone {roc_auc_score(is_wrong, losses):.4f}")
print(f"{named:.0%} of the wrong labels: the suggestion is the true one")

# %%
# What does a wrong label do?
# ---------------------------
#
# The profile of the most doubtful one: values for each class, negative where the sample raised
# that class's loss. It harms the class that it belongs to, from which its label pulls the model
# away.

worst = first[0]
figure, axis = plt.subplots(figsize=(6, 2.6))
colors = ["tab:red" if c == truth[worst] else "tab:blue" for c in range(CLASSES)]
axis.bar(classes, harm_sums(run.visits(), run.targets)[1][worst], color=colors)
axis.axhline(0, color="black", linewidth=0.8)
axis.set(xlabel="validation class (red: its true one)", ylabel="normalised value")
axis.set_title(f"sample {worst}, labelled {labels[worst]}, truly {truth[worst]}")
figure.tight_layout()

# %%
# Mend, and train again
# ---------------------
#
# Look at as many labels as there is time for; here the most doubtful third is given the suggested
# label without looking. The controls: nothing changed, as many *random* samples dropped, the most
# doubtful dropped, and all labels right. Three starts each, tested on digits that nobody has seen.

MENDED = 233
test = (x[TRAIN + JUDGE :], truth[TRAIN + JUDGE :])


def accuracy(rows, given, seed):
    torch.manual_seed(100 + seed)
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for ids in batches(100 + seed, len(rows)):
        loss_fn(model, (x[rows[ids]], given[rows[ids]])).backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        return (model(test[0]).argmax(1) == test[1]).float().mean().item()


everyone = torch.arange(TRAIN)
doubtful = torch.from_numpy(first[:MENDED].copy())
mended = labels.clone()
mended[doubtful] = torch.from_numpy(suggested)[doubtful]
without = everyone[~torch.isin(everyone, doubtful)]
fewer = torch.randperm(TRAIN, generator=generator)[MENDED:]
trainings = {
    "as it came": (everyone, labels),
    f"{MENDED} random ones dropped": (fewer, labels),
    f"{MENDED} most doubtful dropped": (without, labels),
    f"{MENDED} most doubtful mended": (everyone, mended),
    "all labels right": (everyone, truth[:TRAIN]),
}
scores = {name: [accuracy(*what, seed) for seed in range(3)] for name, what in trainings.items()}

figure, axis = plt.subplots(figsize=(7, 2.6))
for row, (name, numbers) in enumerate(scores.items()):
    axis.plot(numbers, [row] * 3, "o", color="tab:blue", alpha=0.5)
    axis.plot(np.mean(numbers), row, "|", color="black", markersize=18, markeredgewidth=2)
    print(f"{name:28} {np.mean(numbers):.1%}")
axis.set_yticks(range(len(scores)), list(scores))
axis.invert_yaxis()
axis.set_xlabel("accuracy on unseen digits (dots: starts, bar: mean)")
figure.tight_layout()

# %%
# On your own data the same is one command, ``inrun train``, and its report shows the labels to
# check first: :doc:`/training` and :doc:`/uses/labels`. :doc:`/evidence/mislabelled` has the
# measurements, on three data sets and beside other detectors.
