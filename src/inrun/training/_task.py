"""What a task makes of samples: a model, batches, and a loss term a row.

Letters: B rows, T tokens, C classes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from inrun.errors import MisuseError, NotSupportedError
from inrun.training._config import TrainConfig
from inrun.training._samples import Sample

Batch = dict[str, Tensor]


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


class Text:
    """Tokens of a text, for whoever has a configuration."""

    def __init__(self, config: TrainConfig):
        transformers = _transformers()
        with _quiet():
            try:
                tokenizer = transformers.AutoTokenizer.from_pretrained(
                    config.tokenizer or config.model
                )
            except Exception as error:  # missing files, no network, unknown kinds
                raise MisuseError(
                    f"No tokenizer could be loaded from {config.tokenizer or config.model}: "
                    f"{error}. Name a folder that has one with --tokenizer."
                ) from error
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
        if tokenizer.pad_token is None:
            raise MisuseError(
                f"The tokenizer of {config.tokenizer or config.model} has neither a padding nor an "
                "end token, so texts of different lengths cannot be put into one batch. Add one to "
                "its configuration."
            )
        self.tokenizer, self._length = tokenizer, config.max_length

    def pieces(self, text: str) -> list[str]:
        """What each token stands for, so that they put together are the text, as far as it goes."""
        if not self.tokenizer.is_fast:
            ids = self.tokenizer(text, truncation=True, max_length=self._length)["input_ids"]
            return list(self.tokenizer.convert_ids_to_tokens(ids))
        encoded = self.tokenizer(
            text, truncation=True, max_length=self._length, return_offsets_mapping=True
        )
        found, end = [], 0
        for (begin, stop), i in zip(encoded["offset_mapping"], encoded["input_ids"], strict=True):
            special = begin == stop and i in self.tokenizer.all_special_ids
            found.append(self.tokenizer.convert_ids_to_tokens(i) if special else text[end:stop])
            end = max(end, stop)
        return found

    def encode(self, texts: Sequence[str]) -> Batch:
        """`input_ids` and `attention_mask`, (B, T), padded on the right to the longest."""
        encoded = self.tokenizer(
            list(texts), truncation=True, max_length=self._length, padding=True,
            padding_side="right", return_tensors="pt",
        )  # fmt: skip
        return {name: encoded[name] for name in ("input_ids", "attention_mask")}


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
        peft, rank = _peft(), self.config.lora
        setting = peft.LoraConfig(
            task_type=self.lora_kind, r=rank, lora_alpha=2 * rank, lora_dropout=0.0,
            target_modules="all-linear",
        )  # fmt: skip
        return peft.get_peft_model(model, setting)  # type: ignore[no-any-return]

    def save(self, model: nn.Module, folder: Path) -> None:
        """See `Task.save`: `save_pretrained`, with the tokenizer; of LoRA the adapter alone."""
        with _quiet():
            model.save_pretrained(folder)  # type: ignore[operator]
            self.text.tokenizer.save_pretrained(folder)

    def load(self, folder: Path) -> nn.Module:
        """See `Task.load`."""
        if not self.config.lora:
            return self._plain(replace(self.config, model=str(folder), from_scratch=False))
        torch.manual_seed(self.config.seed)  # a head that is drawn is the run's own
        model = self._plain(self.config)
        return _peft().PeftModel.from_pretrained(model, folder)  # type: ignore[no-any-return]


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


def pretrained(config: TrainConfig, kind: str, **settings: Any) -> nn.Module:
    """A model of `transformers` by the configuration's name, or of its shape with drawn weights.

    Raises:
        MisuseError: it cannot be loaded.
    """
    transformers = _transformers()
    auto = getattr(transformers, kind)
    with _quiet():
        try:
            if config.from_scratch:
                shape = transformers.AutoConfig.from_pretrained(config.model, **settings)
                model = auto.from_config(shape)
            else:
                model = auto.from_pretrained(config.model, **settings)
        except Exception as error:  # missing files, no network, unknown architectures
            raise MisuseError(
                f"The model {config.model} could not be loaded: {error}. Name a folder in the form "
                "that `transformers` saves, or, with network, a name on the hub; --from-scratch "
                "needs the folder's config.json only."
            ) from error
    return model  # type: ignore[no-any-return]


def _peft() -> Any:
    try:
        import peft
    except ImportError:
        raise NotSupportedError(
            "LoRA needs the package `peft`, which is not installed: pip install 'inrun[train]'."
        ) from None
    return peft


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the loader's bars and reports: that a head is new is known here."""
    logging = _transformers().utils.logging
    shown, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if shown:
            logging.enable_progress_bar()


def _transformers() -> Any:
    try:
        import transformers
    except ImportError:
        raise NotSupportedError(
            "Text and large image models are those of the package `transformers`, which is not "
            "installed: pip install 'inrun[train]'. --model cnn for images needs nothing extra."
        ) from None
    return transformers


def task_of(config: TrainConfig, classes: Sequence[str], samples: Sequence[Sample]) -> Task:
    """The task that a configuration names; `samples` tell images' size."""
    if config.task == "text-classification":
        return TextClassification(config, classes)
    if config.task == "causal-lm":
        return LanguageModel(config, ())
    from inrun.training._images import image_task

    return image_task(config, classes, samples)
