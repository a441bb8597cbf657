"""Real digits as sequences of tokens of unequal length, and a small classifier of them."""

import torch
from sklearn.datasets import load_digits
from torch.utils.data import Dataset
from transformers import BertConfig, BertForSequenceClassification

PAD = 0


class Pixels(Dataset):
    """A digit's grey values, row by row, up to its last dark pixel; +1, since 0 is padding."""

    def __init__(self, begin, end):
        digits = load_digits()
        self.labels = digits.target[begin:end].tolist()
        self.tokens = [
            [int(value) + 1 for value in picture[16 : int(picture.nonzero()[0][-1]) + 1 - 16]]
            for picture in digits.data[begin:end]
        ]

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, i):
        return {
            "input_ids": self.tokens[i],
            "labels": self.labels[i],
            "length": len(self.tokens[i]),
        }


def collate(items):
    longest = max(len(item["input_ids"]) for item in items)
    rows = [item["input_ids"] + [PAD] * (longest - len(item["input_ids"])) for item in items]
    ids = torch.tensor(rows)
    labels = torch.tensor([item["labels"] for item in items])
    return {"input_ids": ids, "attention_mask": (ids != PAD).long(), "labels": labels}


def classifier(dropout=0.0):
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=18, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=24, max_position_embeddings=64, num_labels=10,
        hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout,
    )  # fmt: skip
    return BertForSequenceClassification(config)
