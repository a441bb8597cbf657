"""What a task's labels are and what they cost: one object per kind of label, on tensors alone.

A row has labels at L places: one class, a class per token, a number, a yes or no per class, or
which of two answers is liked. The loss is the mean over all labels of a step; what training met at
a label is kept for `inrun.label_doubts`. The margin of a class is its logit less the largest other
one: Area Under the Margin (Pleiss et al., 2020) is its mean over visits.
Letters: B rows of a pass, T tokens, L labels of a row, K classes, C columns that are kept.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn

Batch = dict[str, Tensor]
ANSWERS = ("as given", "exchanged")  # the label of a pair
BETA = 0.1  # of DPO: how dear it is to move away from the model before the first step


class Objective(ABC):
    """Abstract: see the file's head. `auto` loads the model, `kind` is LoRA's name of it."""

    auto: ClassVar[str] = "AutoModelForSequenceClassification"
    kind: ClassVar[str] = "SEQ_CLS"
    score: ClassVar[str] = "accuracy"  # what `scores` is called, less its sign

    @abstractmethod
    def losses(self, logits: Tensor, batch: Batch) -> Tensor:
        """The loss of each label, (B, L), 0 where there is none."""

    def known(self, batch: Batch) -> Tensor:
        """Where labels are, (B, L) bool; -100 is none."""
        labels = batch["labels"]
        return labels.reshape(len(labels), -1) != -100

    @abstractmethod
    def scores(self, logits: Tensor, batch: Batch) -> Tensor:
        """How well each row is done, (B,): the higher the better."""

    def columns(self, classes: tuple[str, ...]) -> tuple[str, ...]:
        """Names of what `met` returns."""
        return classes

    def met(self, logits: Tensor, batch: Batch) -> Tensor:
        """What is kept of each label beside its loss, (B, L, C)."""
        return logits.float().softmax(-1).reshape(len(logits), -1, logits.shape[-1])

    def mean(self, terms: Tensor, batch: Batch) -> Tensor:
        """Mean of (B, L) terms over a row's labels, (B,)."""
        return terms.sum(1) / self.known(batch).sum(1).clamp_min(1)


class OneClass(Objective):
    """One class per row, `labels` (B,)."""

    def losses(self, logits: Tensor, batch: Batch) -> Tensor:
        """Cross entropy, (B, 1)."""
        found = nn.functional.cross_entropy(logits.float(), batch["labels"], reduction="none")
        return found.unsqueeze(1)

    def scores(self, logits: Tensor, batch: Batch) -> Tensor:
        """1 or 0."""
        return (logits.argmax(1) == batch["labels"]).float()

    def columns(self, classes: tuple[str, ...]) -> tuple[str, ...]:
        """The margin, then each class's probability."""
        return ("mean_margin", *classes)

    def met(self, logits: Tensor, batch: Batch) -> Tensor:
        """See `columns`."""
        own = batch["labels"].unsqueeze(1)
        margin = logits.gather(1, own) - logits.scatter(1, own, -torch.inf).amax(1, keepdim=True)
        return torch.cat([margin.float(), logits.float().softmax(1)], 1).unsqueeze(1)


class NextToken(Objective):
    """The next token at each place of a text, `labels` (B, T), that of the first place -100."""

    auto, kind, score = "AutoModelForCausalLM", "CAUSAL_LM", "loss per token"

    def losses(self, logits: Tensor, batch: Batch) -> Tensor:
        """Cross entropy of each token but the first, (B, T)."""
        logits, labels = logits[:, :-1].float().transpose(1, 2), batch["labels"][:, 1:]
        found = nn.functional.cross_entropy(logits, labels, reduction="none", ignore_index=-100)
        return nn.functional.pad(found, (1, 0))

    def known(self, batch: Batch) -> Tensor:
        """All but the first."""
        return nn.functional.pad(super().known(batch)[:, 1:], (1, 0))

    def scores(self, logits: Tensor, batch: Batch) -> Tensor:
        """Minus the mean loss of a row's tokens."""
        return -self.mean(self.losses(logits, batch), batch)


class Tags(Objective):
    """A class at the first token of each word, `labels` (B, T)."""

    auto, kind = "AutoModelForTokenClassification", "TOKEN_CLS"

    def losses(self, logits: Tensor, batch: Batch) -> Tensor:
        """Cross entropy, (B, T)."""
        return nn.functional.cross_entropy(
            logits.float().transpose(1, 2), batch["labels"], reduction="none", ignore_index=-100
        )

    def scores(self, logits: Tensor, batch: Batch) -> Tensor:
        """The share of a row's words that are right."""
        right = (logits.argmax(2) == batch["labels"]).float()
        return self.mean(right, batch)


class Numbers(Objective):
    """A number per row, `labels` (B,)."""

    score = "squared error"

    def losses(self, logits: Tensor, batch: Batch) -> Tensor:
        """The squared error, (B, 1)."""
        return (logits.float() - batch["labels"].unsqueeze(1)).square()

    def scores(self, logits: Tensor, batch: Batch) -> Tensor:
        """Minus the squared error."""
        return -self.losses(logits, batch)[:, 0]

    def columns(self, classes: tuple[str, ...]) -> tuple[str, ...]:
        """The prediction."""
        return ("mean_prediction",)

    def met(self, logits: Tensor, batch: Batch) -> Tensor:
        """See `columns`."""
        return logits.float().unsqueeze(1)


class SeveralClasses(Objective):
    """A yes or no per class, `labels` (B, K) of 1 and 0, -100 where one is not asked."""

    score = "labels right"
    choices = ("no", "yes")

    def losses(self, logits: Tensor, batch: Batch) -> Tensor:
        """Binary cross entropy, (B, K)."""
        found = nn.functional.binary_cross_entropy_with_logits(
            logits.float(), batch["labels"].clamp_min(0), reduction="none"
        )
        return found * self.known(batch)

    def scores(self, logits: Tensor, batch: Batch) -> Tensor:
        """The share of a row's labels that are right."""
        right = ((logits > 0) == (batch["labels"] > 0)) & self.known(batch)
        return self.mean(right.float(), batch)

    def columns(self, classes: tuple[str, ...]) -> tuple[str, ...]:
        """The probabilities of no and of yes."""
        return self.choices

    def met(self, logits: Tensor, batch: Batch) -> Tensor:
        """See `columns`."""
        yes = logits.float().sigmoid()
        return torch.stack([1 - yes, yes], 2)


class Preferences(Objective):
    """Pairs of answers, by direct preference optimization (Rafailov et al., 2023).

    A batch has 2B rows, the chosen answers before the rejected ones, and `completion_mask` (2B, T).
    `labels` (B, 2) hold in their second column by how much more the model before the first step
    likes the chosen answer: log-probabilities, a difference. The first is -100, since the Trainer
    does not count the first label where a model predicts next tokens.

        loss = -log sigmoid(BETA * (margin - margin before the first step))
    """

    auto, kind = "AutoModelForCausalLM", "CAUSAL_LM"

    @staticmethod
    def margins(logits: Tensor, batch: Batch) -> Tensor:
        """By how much more the chosen answer is liked, (B,)."""
        wanted = batch["input_ids"][:, 1:, None]
        of_token = logits[:, :-1].float().log_softmax(-1).gather(-1, wanted).squeeze(-1)
        chosen, rejected = (of_token * batch["completion_mask"][:, 1:]).sum(1).chunk(2)
        return chosen - rejected

    def _moved(self, logits: Tensor, batch: Batch) -> Tensor:
        return BETA * (self.margins(logits, batch) - batch["labels"][:, 1])

    def losses(self, logits: Tensor, batch: Batch) -> Tensor:
        """See the class, (B, 1)."""
        return -nn.functional.logsigmoid(self._moved(logits, batch)).unsqueeze(1)

    def known(self, batch: Batch) -> Tensor:
        """One per pair."""
        return torch.ones_like(batch["labels"][:, :1], dtype=torch.bool)

    def scores(self, logits: Tensor, batch: Batch) -> Tensor:
        """1 where training moved towards the chosen answer, else 0."""
        return (self._moved(logits, batch) > 0).float()

    def columns(self, classes: tuple[str, ...]) -> tuple[str, ...]:
        """The probabilities that the answers are as given, and exchanged."""
        return ANSWERS

    def met(self, logits: Tensor, batch: Batch) -> Tensor:
        """See `columns`."""
        kept = self._moved(logits, batch).sigmoid()
        return torch.stack([kept, 1 - kept], 1).unsqueeze(1)


OBJECTIVES: dict[str, Objective] = {
    "text-classification": OneClass(), "image-classification": OneClass(),
    "multi-label": SeveralClasses(), "regression": Numbers(), "token-classification": Tags(),
    "causal-lm": NextToken(), "chat": NextToken(), "preference": Preferences(),
}  # fmt: skip
