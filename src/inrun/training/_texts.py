"""Texts as batches: with a class, a number or several classes, words with tags, chats, and pairs.

Of a chat the answers are learnt, of a pair each answer: where they stand in the text is found by
rendering the messages before them with the tokenizer's chat template.
Letters: B samples, T tokens, K classes.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from inrun.errors import InRunWarning, MisuseError, require_extra
from inrun.training._config import TrainConfig
from inrun.training._models import (
    Pictures,
    SmallPictures,
    Task,
    loading,
    pretrained,
    quiet,
    transformers,
)
from inrun.training._objectives import Batch, NextToken, Numbers, Preferences, SeveralClasses
from inrun.training._samples import Sample

LENGTH, LONG = 128, 1024  # tokens where nothing else is said: of a text; of a chat or a pair
AT_ONCE = 16  # pairs of a pass that asks the model before the first step
Span = tuple[int, int]  # characters of a text


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
        _require_fast(self.processor, "which token begins a word")
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


class Chats(Texts):
    """Messages, of which the assistant's are learnt."""

    length = LONG
    special = {"add_special_tokens": False}  # noqa: RUF012 (the template has them)

    def text(self, sample: Sample) -> str:
        """All messages as the template writes them."""
        return self.rendered(sample.content)

    def rendered(self, messages: Sequence[Any], *, asking: bool = False) -> str:
        """Messages as the template writes them, `asking` for the next answer.

        Raises:
            MisuseError: there is no template, or it does not take these messages.
        """
        if not self.processor.chat_template:
            raise MisuseError(
                f"The tokenizer of {self.config.tokenizer or self.config.model} has no chat "
                "template, which says how messages are written: name one that has with --tokenizer."
            )
        try:
            return str(
                self.processor.apply_chat_template(
                    list(messages), tokenize=False, add_generation_prompt=asking
                )
            )
        except Exception as error:  # a template raises what it likes
            raise MisuseError(f"The chat template does not take the messages: {error}.") from error

    def answers(self, messages: Sequence[Any]) -> list[Span]:
        """Where the assistant's messages stand in the rendered text.

        Raises:
            MisuseError: the template writes earlier messages in another way once there are more.
        """
        whole, found = self.rendered(messages), []
        for k, message in enumerate(messages):
            if message["role"] == "assistant":
                before, after = (
                    self.rendered(messages[:k], asking=True),
                    self.rendered(messages[: k + 1]),
                )
                if not (whole.startswith(before) and whole.startswith(after.rstrip())):
                    raise MisuseError(
                        "The chat template writes messages in another way once others follow, so "
                        "that answers cannot be told from questions: split chats into rows that "
                        "end with the answer to be learnt."
                    )
                found.append((len(before), len(after.rstrip())))
        return found

    def collate(self, samples: Sequence[Sample]) -> Batch:
        """See `Texts.collate`; -100 where no answer stands."""
        texts, spans = [self.text(s) for s in samples], [self.answers(s.content) for s in samples]
        found = self.spanned(texts, spans, [s.row.where for s in samples], **self.special)
        labels = found["input_ids"].masked_fill(~found.pop("spanned"), -100)
        labels[:, 0] = -100
        return found | {"labels": labels}

    def spanned(
        self,
        texts: Sequence[str],
        spans: Sequence[Sequence[Span]],
        names: Sequence[str],
        **settings: Any,
    ) -> Batch:
        """Encoded texts, and `spanned`, which tokens begin in one of the spans."""
        _require_fast(self.processor, "where an answer begins")
        found = self.encoded(texts, return_offsets_mapping=True, **settings)
        begins, ends = found["offset_mapping"].unbind(-1)
        mask = torch.zeros_like(begins, dtype=torch.bool)
        for row, own in enumerate(spans):
            for begin, end in own:
                mask[row] |= (
                    (begins[row] >= begin) & (begins[row] < end) & (ends[row] > begins[row])
                )
            if not mask[row].any():
                warnings.warn(
                    f"{names[row]}: the answer lies beyond --max-length {self.longest} tokens, so "
                    "nothing is learnt from this row.",
                    InRunWarning, stacklevel=2,
                )  # fmt: skip
        return {n: found[n] for n in ("input_ids", "attention_mask")} | {"spanned": mask}


class Pairs(Chats):
    """Prompts with a chosen and a rejected answer; 2B rows of a batch, the chosen before.

    How much the model before the first step likes the chosen answers more is asked once, in
    `prepare`.
    """

    def __init__(self, config: TrainConfig, classes: Sequence[str]):
        super().__init__(config, classes)
        self._reference: dict[int, float] = {}

    def _rows(self, sample: Sample) -> tuple[list[str], Span]:
        """Both texts, and where answers begin in them (they end with the text)."""
        prompt, chosen, rejected = sample.content
        if isinstance(prompt, str):
            end = self.processor.eos_token or ""
            answers = [a if end and a.endswith(end) else a + end for a in (chosen, rejected)]
            return [prompt + answer for answer in answers], (len(prompt), 1 << 30)
        asked = self.rendered(prompt, asking=True)
        texts = [self.rendered((*prompt, *answer)) for answer in (chosen, rejected)]
        if not all(text.startswith(asked) for text in texts):
            raise MisuseError(
                "The chat template writes the prompt in another way once an answer follows, so "
                "that where answers begin cannot be told: give prompts and answers as texts."
            )
        return texts, (len(asked), 1 << 30)

    def item(self, sample: Sample) -> dict[str, Any]:
        """Tokens of both rows, so that it is seen whose a batch's rows are."""
        texts, span = self._rows(sample)
        special = {} if isinstance(sample.content[0], str) else self.special
        found = self.spanned(texts, [[span]] * 2, [sample.row.where] * 2, **special)
        lengths = found["attention_mask"].sum(1).tolist()
        rows = [row[:n].tolist() for row, n in zip(found["input_ids"], lengths, strict=True)]
        begins = [
            int(m[:n].logical_not().sum()) for m, n in zip(found["spanned"], lengths, strict=True)
        ]
        return {
            "chosen_ids": rows[0], "rejected_ids": rows[1], "begins": begins,
            "reference": self._reference.get(id(sample), 0.0),
        }  # fmt: skip

    def __call__(self, items: list[Any]) -> Batch:
        """Chosen rows, then rejected ones."""
        rows = [item[name] for name in ("chosen_ids", "rejected_ids") for item in items]
        begins = torch.tensor([item["begins"][k] for k in (0, 1) for item in items])
        lengths = torch.tensor([len(row) for row in rows])
        ids = pad_sequence(
            [torch.tensor(row) for row in rows], batch_first=True,
            padding_value=self.processor.pad_token_id,
        )  # fmt: skip
        place = torch.arange(ids.shape[1])
        known = place < lengths.unsqueeze(1)
        reference = torch.tensor([item["reference"] for item in items])
        return {
            "input_ids": ids, "attention_mask": known.long(),
            "completion_mask": known & (place >= begins.unsqueeze(1)),
            "labels": torch.stack([torch.full_like(reference, -100), reference], 1),
            "pairs": torch.tensor(0),  # without rows: a batch is never cut along them
        }  # fmt: skip

    def collate(self, samples: Sequence[Sample]) -> Batch:
        """See the class."""
        return self([self.item(sample) for sample in samples])

    def prepare(self, samples: Sequence[Sample], start: Callable[[], nn.Module]) -> None:
        """See `Task.prepare`."""
        model = start().eval()
        device = next(model.parameters()).device
        for begin in range(0, len(samples), AT_ONCE):
            some = samples[begin : begin + AT_ONCE]
            batch = {name: t.to(device) for name, t in self.collate(some).items()}
            with torch.no_grad():
                margins = Preferences.margins(self.logits(model, batch), batch)
            self._reference |= dict(zip(map(id, some), margins.tolist(), strict=True))


def task_of(config: TrainConfig, classes: Sequence[str], samples: Sequence[Sample]) -> Task:
    """The task that a configuration names; the first sample tells the small network's size."""
    kinds = {"token-classification": Words, "chat": Chats, "preference": Pairs}
    if config.task != "image-classification":
        return kinds.get(config.task, Texts)(config, classes)
    if config.model == "cnn":
        return SmallPictures(config, classes, samples[0])
    return Pictures(config, classes)


def _require_fast(tokenizer: Any, why: str) -> None:
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
