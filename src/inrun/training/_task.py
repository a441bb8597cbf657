"""What a task makes of samples: a model, batches, and a loss term a row.

Letters: B rows, T tokens, C classes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from inrun.training._config import TrainConfig
from inrun.training._loading import Batch, Text, peft, pretrained, quiet
from inrun.training._samples import Sample


class Task(ABC):
    """One task; built from a configuration and the classes' names.

    Raises:
        NotSupportedError: a package is missing; the message names the line that installs it.
        MisuseError: the model cannot be loaded.
    """

    def __init__(self, config: TrainConfig, classes: Sequence[str]):
        self.config, self.classes = config, tuple(classes)

    @abstractmethod
    def build(self) -> nn.Module:
        """The model before its first step; what is drawn comes from torch's random state."""

    @abstractmethod
    def collate(self, samples: Sequence[Sample]) -> Batch:
        """Samples as one batch, in their order."""

    @abstractmethod
    def forward(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """Terms (B,) that add up to the batch's loss, and logits (B, C) where there are classes."""

    def losses(self, model: nn.Module, batch: Batch) -> Tensor:
        """Terms (B,) that add up to the batch's loss."""
        return self.forward(model, batch)[0]

    def weights(self, batch: Batch) -> Tensor:
        """What each row weighs in the batch's mean, (B,)."""
        return torch.ones(len(batch["labels"]), device=batch["labels"].device)

    def loss_fn(self, model: nn.Module, batch: Batch) -> Tensor:
        """The batch's mean loss."""
        return self.losses(model, batch).sum()

    @abstractmethod
    def save(self, model: nn.Module, folder: Path) -> None:
        """Writes the trained model, in the form that its own library reads."""

    @abstractmethod
    def load(self, folder: Path) -> nn.Module:
        """The model that `save` wrote."""

    @abstractmethod
    def score(self, model: nn.Module, batch: Batch) -> Tensor:
        """How well each row is done, (B,): 1 or 0 for a class, minus the loss for a text."""


class Classification(Task):
    """Cross-entropy over classes."""

    def _labels(self, samples: Sequence[Sample]) -> Tensor:
        number = {name: k for k, name in enumerate(self.classes)}
        return torch.tensor([number[str(sample.label)] for sample in samples])

    @abstractmethod
    def logits(self, model: nn.Module, batch: Batch) -> Tensor:
        """(B, C)."""

    def forward(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """See `Task.forward`: each row's cross-entropy over the number of rows."""
        logits = self.logits(model, batch).float()
        found = nn.functional.cross_entropy(logits, batch["labels"], reduction="none")
        return found / len(found), logits.detach()

    def score(self, model: nn.Module, batch: Batch) -> Tensor:
        """See `Task.score`."""
        return (self.logits(model, batch).argmax(1) == batch["labels"]).float()


class TextModel(Task):
    """A text model of `transformers`, whole or with LoRA."""

    auto = lora_kind = ""

    def __init__(self, config: TrainConfig, classes: Sequence[str]):
        super().__init__(config, classes)
        self.text = Text(config)

    def _plain(self, config: TrainConfig) -> nn.Module:
        """Without LoRA."""
        settings = {"num_labels": len(self.classes)} if self.classes else {}
        model = pretrained(config, self.auto, **settings)
        model.config.pad_token_id = self.text.tokenizer.pad_token_id  # type: ignore[union-attr]
        return model

    def build(self) -> nn.Module:
        """See `Task.build`."""
        model = self._plain(self.config)
        if not self.config.lora:
            return model
        lora, rank = peft(), self.config.lora
        setting = lora.LoraConfig(
            task_type=self.lora_kind, r=rank, lora_alpha=2 * rank, lora_dropout=0.0,
            target_modules="all-linear",
        )  # fmt: skip
        with quiet():
            return lora.get_peft_model(model, setting)  # type: ignore[no-any-return]

    def save(self, model: nn.Module, folder: Path) -> None:
        """See `Task.save`: `save_pretrained`, with the tokenizer; of LoRA the adapter alone."""
        with quiet():
            model.save_pretrained(folder)  # type: ignore[operator]
            self.text.tokenizer.save_pretrained(folder)

    def load(self, folder: Path) -> nn.Module:
        """See `Task.load`."""
        if not self.config.lora:
            return self._plain(replace(self.config, model=str(folder), from_scratch=False))
        torch.manual_seed(self.config.seed)  # a head that is drawn is the run's own
        model = self._plain(self.config)
        with quiet():
            return peft().PeftModel.from_pretrained(model, folder)  # type: ignore[no-any-return]


class TextClassification(TextModel, Classification):
    """A sequence classifier."""

    auto, lora_kind = "AutoModelForSequenceClassification", "SEQ_CLS"

    def collate(self, samples: Sequence[Sample]) -> Batch:
        """See `Task.collate`."""
        return self.text.encode([s.content for s in samples]) | {"labels": self._labels(samples)}

    def logits(self, model: nn.Module, batch: Batch) -> Tensor:
        """See `Classification.logits`."""
        found: Tensor = model(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]
        ).logits
        return found


class LanguageModel(TextModel):
    """The next token, by a causal language model; the mean is over tokens."""

    auto, lora_kind = "AutoModelForCausalLM", "CAUSAL_LM"

    def collate(self, samples: Sequence[Sample]) -> Batch:
        """See `Task.collate`; `labels` is -100 where a position is padding."""
        batch = self.text.encode([s.content for s in samples])
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        return batch | {"labels": labels}

    def token_losses(self, model: nn.Module, batch: Batch) -> Tensor:
        """Loss of predicting each token, (B, T); 0 for the first one and at padding."""
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[
            :, :-1
        ]
        found = nn.functional.cross_entropy(
            logits.float().transpose(1, 2), batch["labels"][:, 1:], reduction="none",
            ignore_index=-100,
        )  # fmt: skip
        return nn.functional.pad(found, (1, 0))

    def token_terms(self, model: nn.Module, batch: Batch) -> Tensor:
        """Terms (B, T) that add up to the batch's loss."""
        return self.token_losses(model, batch) / self.weights(batch).sum().clamp_min(1)

    def weights(self, batch: Batch) -> Tensor:
        """See `Task.weights`: how many tokens are predicted."""
        return (batch["labels"][:, 1:] != -100).sum(1).float()

    def forward(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """See `Task.forward`: each row's sum over its tokens, over the batch's tokens."""
        return self.token_terms(model, batch).sum(1), None

    def score(self, model: nn.Module, batch: Batch) -> Tensor:
        """See `Task.score`: minus the mean loss of the row's tokens."""
        return -self.token_losses(model, batch).sum(1) / self.weights(batch).clamp_min(1)


def task_of(config: TrainConfig, classes: Sequence[str], samples: Sequence[Sample]) -> Task:
    """The task that a configuration names; `samples` tell images' size."""
    if config.task == "text-classification":
        return TextClassification(config, classes)
    if config.task == "causal-lm":
        return LanguageModel(config, ())
    from inrun.training._images import image_task

    return image_task(config, classes, samples)
