"""TRL's SFTTrainer with packing and padding-free rows: every example is a sample."""

import copy
import warnings

import pytest
import torch
from datasets import Dataset
from transformers import DataCollatorWithFlattening, Trainer, TrainingArguments
from trl import SFTConfig, SFTTrainer

import inrun
from inrun.errors import MisuseError
from inrun.integrations.transformers import InRun
from tests.integration.tiny_language import (
    LR,
    TOKENIZER,
    agree,
    gradient,
    language_model,
    scored,
    sentences,
    settings,
)

warnings.filterwarnings("ignore", category=FutureWarning)
TEXTS = Dataset.from_dict(
    {"text": sentences(24, 4, 12, 0), "name": [f"text {i}" for i in range(24)]}
)
LONGEST = 24
PACKED = {"packing": True, "max_length": LONGEST}


def sft(folder, attention="sdpa", data=TEXTS, collator=None, **changes):
    return SFTTrainer(
        language_model(attn_implementation=attention),
        SFTConfig(**settings(folder, **{"max_length": LONGEST, **changes})),
        train_dataset=data, processing_class=TOKENIZER, data_collator=collator,
    )  # fmt: skip


def held(folder):
    """Validation rows that are not packed, whose loss needs no trainer."""
    return sft(folder, data=Dataset.from_dict({"text": sentences(6, 4, 12, 1)})).train_dataset


def tokens_of(text):
    return torch.tensor([*TOKENIZER(text)["input_ids"], TOKENIZER.eos_token_id])


def summed(model, tokens):
    """The next-token loss of one text alone in its row, summed over tokens."""
    logits = model(input_ids=tokens[None]).logits[0, :-1].float()
    return torch.nn.functional.cross_entropy(logits, tokens[1:], reduction="sum")


def mean_loss(model, batch):
    """Of padded rows, without the trainer."""
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    return torch.nn.functional.cross_entropy(
        logits[:, :-1].float().flatten(0, 1), batch["labels"][:, 1:].flatten()
    )


def padded(rows):
    longest = max(len(row["input_ids"]) for row in rows)
    more = [longest - len(row["input_ids"]) for row in rows]
    return {
        "input_ids": torch.tensor(
            [r["input_ids"] + [0] * n for r, n in zip(rows, more, strict=True)]
        ),
        "attention_mask": torch.tensor([[1] * (longest - n) + [0] * n for n in more]),
        "labels": torch.tensor([r["labels"] + [-100] * n for r, n in zip(rows, more, strict=True)]),
    }


def by_texts_alone(trainer, pieces):
    """{id: value} of a step over these {id: tokens of its pieces}, each alone in a row."""
    model = trainer.model.eval()
    target = gradient(mean_loss(model, padded(list(held(trainer.args.output_dir)))), model)
    counted = sum(len(piece) - 1 for own in pieces.values() for piece in own)
    return {
        name: LR * float(target @ sum(gradient(summed(model, p), model) for p in own)) / counted
        for name, own in pieces.items()
    }


def compare(trainer, pieces_of, folder, **given):
    before = copy.deepcopy(trainer.model.state_dict())
    utility = inrun.Utility(mean_loss, padded(list(held(folder))))
    values, attribution, said = scored(trainer, utility, **given)
    assert attribution.covered == 1.0
    assert not said
    trainer.model.load_state_dict(before)
    agree(values, by_texts_alone(trainer, {name: pieces_of(name) for name in values}))
    return values


def text(i):
    return [tokens_of(TEXTS["text"][i])]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("changes", [{}, {"gradient_accumulation_steps": 2}], ids=str)
def test_a_packed_example_has_the_value_that_it_has_alone_in_a_row(attention, changes, tmp_path):
    trainer = sft(tmp_path, attention, **PACKED, **changes, per_device_train_batch_size=3)
    assert max(len(row["seq_lengths"]) for row in trainer.train_dataset) > 1
    values = compare(trainer, text, tmp_path, examples=TEXTS)
    assert len(values) > 3 * changes.get("gradient_accumulation_steps", 1)  # more than rows


def test_without_the_examples_a_packed_one_is_its_place_in_its_row(tmp_path):
    trainer = sft(tmp_path, **PACKED)

    def pieces(name):
        row, place = map(int, name.split(":"))
        packed = trainer.train_dataset[row]
        return [torch.tensor(packed["input_ids"]).split(packed["seq_lengths"])[place]]

    compare(trainer, pieces, tmp_path)


def test_an_example_that_is_cut_over_two_rows_is_one_sample(tmp_path):
    data = Dataset.from_dict({"text": sentences(8, 10, 20, 3), "name": list("abcdefgh")})
    trainer = sft(
        tmp_path, data=data, packing=True, packing_strategy="bfd_split", max_length=9,
        per_device_train_batch_size=40,
    )  # fmt: skip
    assert len(trainer.train_dataset) < 40  # all in one step

    def pieces(name):
        return tokens_of(data["text"][data["name"].index(name)]).split(9)

    values = compare(trainer, pieces, tmp_path, examples=data, ids="name")
    assert sorted(values) == list("abcdefgh")
    assert max(len(pieces(name)) for name in values) > 1


def test_padding_free_rows_have_the_values_of_padded_ones(tmp_path):
    compare(sft(tmp_path, padding_free=True, max_length=None), text, tmp_path)
    changes = {"padding_free": True, "max_length": None, "pad_to_multiple_of": 64}
    compare(sft(tmp_path, **changes), text, tmp_path)


def test_padded_rows_too(tmp_path):
    compare(sft(tmp_path), text, tmp_path)


def test_a_plain_trainer_with_a_flattening_collator(tmp_path):
    rows = [{"input_ids": tokens_of(t).tolist()} for t in TEXTS["text"]]
    trainer = Trainer(
        language_model(), TrainingArguments(**settings(tmp_path)), train_dataset=rows,
        data_collator=DataCollatorWithFlattening(return_flash_attn_kwargs=True),
    )  # fmt: skip
    compare(trainer, text, tmp_path)


def test_rows_that_were_packed_before_bring_their_ids(tmp_path):
    packed = sft(tmp_path, **PACKED).train_dataset
    numbers = iter(range(100, 200))
    ids = [[f"my {next(numbers)}" for _ in row["seq_lengths"]] for row in packed]
    trainer = sft(
        tmp_path, data=packed.add_column("own", ids), padding_free=True, max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True}, remove_unused_columns=False,
    )  # fmt: skip
    where = {name: (i, k) for i, row in enumerate(ids) for k, name in enumerate(row)}

    def pieces(name):
        row, place = where[name]
        return [torch.tensor(packed[row]["input_ids"]).split(packed[row]["seq_lengths"])[place]]

    compare(trainer, pieces, tmp_path, ids="own")


def test_rows_that_are_cut_anywhere_are_samples_themselves(tmp_path):
    wrapped = {"packing": True, "packing_strategy": "wrapped", "max_length": LONGEST}
    trainer = sft(tmp_path, **wrapped)
    compare(trainer, lambda i: [torch.tensor(trainer.train_dataset[i]["input_ids"])], tmp_path)
    trainer = sft(tmp_path, **wrapped)
    trainer.add_callback(InRun(trainer.train_dataset.select(range(4)), examples=TEXTS))
    with pytest.raises(MisuseError, match="a row is the sample"):
        trainer.train()


def test_examples_that_were_not_packed_are_refused(tmp_path):
    trainer = sft(tmp_path, **PACKED)
    rows = trainer.train_dataset
    trainer.add_callback(InRun(rows.select(range(2)), examples=TEXTS.select(range(5))))
    with pytest.raises(MisuseError, match="whole and as it was before packing"):
        trainer.train()
    assert trainer.callback_handler.train_dataloader.base_dataloader.dataset is not None
    assert "compute_loss" not in vars(trainer)


@pytest.mark.parametrize("changes", [PACKED, {"padding_free": True, "max_length": None}], ids=str)
def test_the_books_close_with_the_trainers_own_optimizer(changes, tmp_path):
    trainer = sft(
        tmp_path, **changes, max_steps=6, optim="adamw_torch", learning_rate=1e-3,
        max_grad_norm=1.0, lr_scheduler_type="linear",
    )  # fmt: skip
    rows = trainer.train_dataset
    trainer.add_callback(callback := InRun(rows.select(range(4))))
    trainer.train()
    assert callback.attribution.covered == 1.0
    for row in callback.attribution.ledger().to_pylist()[2:]:
        assert abs(row["residual"]) < 0.02 * (abs(row["samples"]) + abs(row["momentum"]))


def test_a_stored_run_knows_the_texts_and_sources_of_what_was_packed(tmp_path):
    texts = TEXTS.add_column("source", ["one", "two", "three"] * 8)
    trainer = sft(tmp_path / "out", data=texts, max_steps=2, **PACKED)
    callback = InRun(trainer.train_dataset.select(range(2)), examples=texts, store=tmp_path / "run")
    trainer.add_callback(callback)
    trainer.train()
    told = inrun.load(tmp_path / "run").samples().to_pylist()
    ids = callback.attribution.values()["sample_id"].to_pylist()
    assert told == [{"sample_id": i, **texts[i]} for i in ids]
    groups = inrun.rollup(inrun.load(tmp_path / "run"), "source").table
    samples = groups["value"].to_numpy().sum()
    ledger = callback.attribution.ledger()
    assert samples == pytest.approx(ledger["samples"].to_numpy().sum(), rel=1e-6)
