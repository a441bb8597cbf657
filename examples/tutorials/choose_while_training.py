"""Choose data while training
=============================

More data than compute is the usual case: of each batch of candidates only some can be trained on.
Which? This tutorial reads a stream of handwritten digits of which two fifths are mislabelled, takes
the 16 most valuable of each 64 as it goes, and compares that with taking 16 at random, with taking
those of the largest loss, and with training on all 64.

The digits ship with scikit-learn.
"""

# %%
# A stream with wrong labels
# --------------------------

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

import inrun

TRAIN, JUDGE, CANDIDATES, KEPT, STEPS = 1000, 200, 64, 16, 150

digits = load_digits()
generator = torch.Generator().manual_seed(0)
order = torch.randperm(len(digits.target), generator=generator)
x = torch.tensor(digits.data, dtype=torch.float32)[order] / 16
truth = torch.tensor(digits.target)[order]

labels = truth.clone()
wrong = torch.randperm(TRAIN, generator=generator)[: 2 * TRAIN // 5]
labels[wrong] = (labels[wrong] + torch.randint(1, 10, (len(wrong),), generator=generator)) % 10
is_wrong = labels != truth
judges = (x[TRAIN : TRAIN + JUDGE], truth[TRAIN : TRAIN + JUDGE])
test = (x[TRAIN + JUDGE :], truth[TRAIN + JUDGE :])


def loss_fn(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


def losses(model, batch):
    """Terms that add up to the loss; only ``by="loss"`` asks for them."""
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none") / len(batch[0])


def fetch(ids):
    rows = torch.as_tensor(ids)
    return x[rows], labels[rows]


# %%
# Four ways to train
# ------------------
#
# ``inrun.select.online`` wraps the forward and backward pass over the candidates. When the block
# ends, the gradients are those of training on the chosen alone, from what that one pass left. A
# candidate's value is what training on it would take off the validation loss, in the optimizer's
# own step, beside the average of the candidates; places are filled in rounds, each seeing what was
# chosen before.


def train(by, seed):
    """Accuracy after each ten steps, and the share of wrong labels among what was trained on."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    stream = torch.Generator().manual_seed(seed)
    keep = CANDIDATES if by == "all" else KEPT
    selection = inrun.select.online(
        model, optimizer, inrun.Utility(loss_fn, judges), keep,
        by="value" if by == "all" else by, loop=inrun.select.Loop(losses, fetch),
    )  # fmt: skip
    accuracy, bad = [], []
    for step in range(STEPS):
        ids = torch.randint(TRAIN, (CANDIDATES,), generator=stream)
        with selection.batch(ids.tolist()):
            loss_fn(model, fetch(ids)).backward()
        optimizer.step()
        optimizer.zero_grad()
        bad.append(is_wrong[selection.chosen].float().mean().item())
        if step % 10 == 9:
            with torch.no_grad():
                accuracy.append((model(test[0]).argmax(1) == test[1]).float().mean().item())
    selection.detach()
    return accuracy, bad


WAYS = {
    "value": "16 of 64 by value",
    "random": "16 of 64 at random",
    "loss": "16 of 64 by largest loss",
    "all": "all 64",
}
COLORS = {"value": "tab:green", "random": "tab:gray", "loss": "tab:red", "all": "tab:blue"}
runs = {by: [train(by, seed) for seed in range(3)] for by in WAYS}

# %%
# What came of it
# ---------------
#
# Mean over three starts; all four see the same candidates in the same order.

figure, axes = plt.subplots(1, 2, figsize=(10, 3.6))
for by, said in WAYS.items():
    accuracy = np.mean([run[0] for run in runs[by]], axis=0)
    bad = np.mean([run[1] for run in runs[by]], axis=0).reshape(-1, 10).mean(1)
    steps = 10 * np.arange(1, len(accuracy) + 1)
    axes[0].plot(steps, accuracy, color=COLORS[by], label=said)
    axes[1].plot(steps, bad, color=COLORS[by])
    print(f"{said:26} accuracy {accuracy[-1]:.1%}, {bad.mean():.0%} of it with wrong labels")
axes[0].set(xlabel="step", ylabel="accuracy on unseen digits")
axes[1].set(xlabel="step", ylabel="share of wrong labels trained on", ylim=(0, 1))
axes[0].legend(loc="lower right", fontsize=8)
figure.tight_layout()

# %%
# What was chosen
# ---------------
#
# The history holds every candidate with its score. Digits that were offered often and never taken,
# beside those that were taken whenever they came:

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10))
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
with inrun.select.online(model, optimizer, inrun.Utility(loss_fn, judges), KEPT) as selection:
    for _ in range(STEPS):
        ids = torch.randint(TRAIN, (CANDIDATES,), generator=generator)
        with selection.batch(ids.tolist()):
            loss_fn(model, fetch(ids)).backward()
        optimizer.step()
        optimizer.zero_grad()
by_sample = selection.history().group_by("sample_id")
offered = by_sample.aggregate([("chosen", "mean"), ("step", "count")]).to_pylist()
seen = [row for row in offered if row["step_count"] >= 8]
ranked = [row["sample_id"] for row in sorted(seen, key=lambda row: row["chosen_mean"])]

figure, axes = plt.subplots(2, 10, figsize=(9, 2.6))
for line, chosen in zip(axes, (ranked[:10], ranked[::-1][:10]), strict=True):
    for axis, i in zip(line, chosen, strict=True):
        axis.imshow(x[i].reshape(8, 8), cmap="gray_r")
        axis.set_title(f"{labels[i]}", color="tab:red" if is_wrong[i] else "tab:green", fontsize=10)
        axis.axis("off")
figure.suptitle("seldom chosen (above) and often chosen (below), with their labels (red: wrong)")
figure.tight_layout()

# %%
# Whether choosing pays depends on the data: here much of it is wrong, and the judges are right. On
# clean data expect little, and always look at the random control. ``horizon=`` looks further ahead
# than the next step; the reference has all of ``inrun.select`` (:doc:`/api/uses`).
