"""Texts as batches: with a class, a number or several classes, for the next token, words with tags.

Letters: B samples, T tokens, K classes.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from inrun.errors import MisuseError, require_extra
from inrun.training._config import TrainConfig
from inrun.training._models import Task, loading, pretrained, quiet, transformers
from inrun.training._objectives import Batch, NextToken, Numbers, SeveralClasses
from inrun.training._samples import Sample

LENGTH = 128  # tokens of a text where nothing else is said


class Texts(Task):
    """Texts with labels, or for the next token; whole weights or LoRA."""

    length = LENGTH

    def __init__(self, config: TrainConfig, classes: Sequence[str]):
        super().__init__(config, classes)
        self.processor = _tokenizer(config)
        self.longest = self._longest()

    def _longest(self) -> int:
        """Tokens of a text, at most.

        Raises:
            MisuseError: more were asked for than the model takes.
        """
        name = self.config.model
        with loading("configuration of the model", name):
            shape = transformers().AutoConfig.from_pretrained(name)
        limit = min(
            self.processor.model_max_length, getattr(shape, "max_position_embeddings", None) or 1e9
        )
        asked = self.config.max_length
        if asked is not None and asked > limit:
            raise MisuseError(
                f"--max-length {asked} is more than the {limit:.0f} tokens that {name} takes."
            )
        return int(min(limit, self.length)) if asked is None else asked

    def encoded(self, texts: Sequence[Any], **settings: Any) -> Any:
        """Texts cut to their longest and padded on the right, (B, T)."""
        return self.processor(
            list(texts), truncation=True, padding=True, max_length=self.longest,
            padding_side="right", return_tensors="pt", **settings,
        )  # fmt: skip

    def collate(self, samples: Sequence[Sample]) -> Batch:
        """(B, T), padded on the right; `labels` as the objective says."""
        found = self.encoded([sample.content for sample in samples])
        batch = {name: found[name] for name in ("input_ids", "attention_mask")}
        return batch | {"labels": self.labels(samples, batch)}

    def labels(self, samples: Sequence[Sample], batch: Batch) -> Tensor:
        """See the objective."""
        if isinstance(self.objective, NextToken):
            labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
            labels[:, 0] = -100  # no token comes before it
            return labels
        if isinstance(self.objective, Numbers):
            return torch.tensor([float(sample.label) for sample in samples])
        if isinstance(self.objective, SeveralClasses):
            rows = [[float(name in sample.label) for name in self.classes] for sample in samples]
            return torch.tensor(rows)
        return self._labels(samples)

    def build(self, saved: Path | None = None) -> nn.Module:
        """See `Task.build`; of LoRA the adapter alone was saved."""
        rank, causal = self.config.lora, self.objective.kind == "CAUSAL_LM"
        settings = {} if causal else {"num_labels": max(1, len(self.classes))}
        model = pretrained(self.config, self.objective.auto, None if rank else saved, **settings)
        model.config.pad_token_id = self.processor.pad_token_id  # type: ignore[union-attr]
        if causal:
            _require_causal(model, self.config.model)
        if not rank:
            return model
        peft = _peft()
        with quiet():
            if saved is not None:
                return peft.PeftModel.from_pretrained(model, saved)  # type: ignore[no-any-return]
            setting = peft.LoraConfig(
                task_type=self.objective.kind, r=rank, lora_alpha=2 * rank, lora_dropout=0.0,
                target_modules="all-linear",
            )  # fmt: skip
            return peft.get_peft_model(model, setting)  # type: ignore[no-any-return]

    def pieces(self, sample: Sample) -> list[str]:
        """What each token stands for, so that they put together are the text, as far as it goes."""
        text = self.text(sample)
        cut = {"truncation": True, "max_length": self.longest, **self.special}
        if not self.processor.is_fast:
            return list(
                self.processor.convert_ids_to_tokens(self.processor(text, **cut)["input_ids"])
            )
        encoded = self.processor(text, return_offsets_mapping=True, **cut)
        found, end = [], 0
        for (begin, stop), i in zip(encoded["offset_mapping"], encoded["input_ids"], strict=True):
            special = begin == stop and i in self.processor.all_special_ids
            found.append(self.processor.convert_ids_to_tokens(i) if special else text[end:stop])
            end = max(end, stop)
        return found

    special: dict[str, Any] = {}  # noqa: RUF012 (what the tokenizer is told of special tokens)

    def text(self, sample: Sample) -> str:
        """What is tokenized of a sample."""
        return str(sample.content)


class Words(Texts):
    """Words with a tag each, which is the label of a word's first token."""

    def collate(self, samples: Sequence[Sample]) -> Batch:
        """See `Texts.collate`."""
        require_fast(self.processor, "which token begins a word")
        found = self.encoded([s.content for s in samples], is_split_into_words=True)
        number = {name: k for k, name in enumerate(self.classes)}
        labels = torch.full_like(found["input_ids"], -100)
        for row, sample in enumerate(samples):
            before = None
            for place, word in enumerate(found.word_ids(row)):
                if word is not None and word != before:
                    labels[row, place] = number[sample.label[word]]
                before = word
        names = ("input_ids", "attention_mask")
        return {name: found[name] for name in names} | {"labels": labels}


def require_fast(tokenizer: Any, why: str) -> None:
    """Raises where a tokenizer does not know which characters a token stands for.

    Raises:
        MisuseError: what that is needed for.
    """
    if not tokenizer.is_fast:
        raise MisuseError(
            f"The tokenizer {type(tokenizer).__name__} does not tell {why}: use one with a "
            "tokenizer.json."
        )


def _require_causal(model: nn.Module, name: str) -> None:
    """Raises where an earlier place's logits see a later token.

    Raises:
        MisuseError: so that the next token's loss would be no prediction.
    """
    tokens = torch.tensor([[1, 2, 3], [1, 2, 4]])
    was_training = model.training
    with torch.no_grad():
        first, second = model.eval()(input_ids=tokens)["logits"][:, 0]
    model.train(was_training)
    if not torch.allclose(first, second, rtol=1e-3, atol=1e-4):
        raise MisuseError(
            f"{name} is an encoder: each place sees the tokens after it, so that the next token is "
            "no prediction. --task causal-lm needs a model that was made to continue texts; with "
            "labels, --task text-classification takes this one."
        )


def _tokenizer(config: TrainConfig) -> Any:
    name = config.tokenizer or config.model
    with loading("tokenizer", name, " Name a folder that has one with --tokenizer."):
        tokenizer = transformers().AutoTokenizer.from_pretrained(name)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    if tokenizer.pad_token is None:
        raise MisuseError(
            f"The tokenizer of {name} has neither a padding nor an end token, so texts of "
            "different lengths cannot be put into one batch. Add one to its configuration."
        )
    return tokenizer


def _peft() -> Any:
    require_extra("train", "peft")
    return importlib.import_module("peft")
