"""The task of all examples: scikit-learn's handwritten digits, a tenth of them mislabelled."""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import Dataset

TRAINED, HELD = 300, 120


def rows(begin, end):
    """Pictures (N, 64) and labels (N,)."""
    digits = load_digits()
    x = torch.tensor(digits.data[begin:end] / 16, dtype=torch.float32)
    return x, torch.tensor(digits.target[begin:end])


def mislabelled():
    """Rows to train on, every tenth with the next class for its label."""
    x, y = rows(0, TRAINED)
    y[::10] = (y[::10] + 1) % 10
    return x, y


def held_out():
    """Rows to judge by."""
    return rows(TRAINED, TRAINED + HELD)


def network():
    """A small classifier, the same every time."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10))


def loss_fn(model, batch):
    """Mean cross-entropy of (pictures, labels)."""
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


class Digits(Dataset):
    """Items that know their own id."""

    def __init__(self):
        self.x, self.y = mislabelled()

    def __len__(self):
        return len(self.y)

    def __getitem__(self, i):
        return {"x": self.x[i], "y": self.y[i], "id": i}


def show(attribution):
    """How many of the thirty most harmful samples are the mislabelled ones."""
    worst = attribution.values().sort_by("value_normalised").slice(0, 30)
    found = sum(i % 10 == 0 for i in worst["sample_id"].to_pylist())
    print(f"{found} of the 30 most harmful samples are among the 30 mislabelled ones")
