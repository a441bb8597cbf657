"""Chats and pairs of answers as batches, and the task that a configuration names.

Of a chat the answers are learnt, of a pair each answer: where they stand in the text is found by
rendering the messages before them with the tokenizer's chat template.
Letters: B samples, T tokens.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from inrun.errors import InRunWarning, MisuseError
from inrun.training._config import TrainConfig
from inrun.training._models import Pictures, SmallPictures, Task
from inrun.training._objectives import Batch, Preferences
from inrun.training._samples import Sample
from inrun.training._texts import Texts, Words, require_fast

LONG = 1024  # tokens of a chat or a pair where nothing else is said
AT_ONCE = 16  # pairs of a pass that asks the model before the first step
Span = tuple[int, int]  # characters of a text


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
        require_fast(self.processor, "where an answer begins")
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
