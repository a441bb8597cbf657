"""Other models and losses in the Trainer of transformers, with its own defaults.

Brute force: the trainer's loss of a sample's rows alone out of the very batch that it trained on,
over the same count; where samples interact, the gradient of the whole loss that passes through the
rows of one sample.
"""

import copy

import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForTokenClassification,
    CLIPConfig,
    CLIPModel,
    DataCollatorForLanguageModeling,
    DataCollatorForSeq2Seq,
    DataCollatorForTokenClassification,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    T5Config,
    T5ForConditionalGeneration,
    Trainer,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
    WhisperConfig,
    WhisperForConditionalGeneration,
    YolosConfig,
    YolosForObjectDetection,
)

import inrun
from inrun.integrations.transformers import InRun
from tests.integration.small_trl import WORDS, tokenizer
from tests.integration.tiny_language import LR, agree, gradient, scored, settings

TOKENIZER = tokenizer()
TOKENIZER.add_special_tokens({"mask_token": "<unk>"})
COUNT, HELD = 16, range(10, 16)
SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
         "intermediate_size": 24, "hidden_dropout_prob": 0.0,
         "attention_probs_dropout_prob": 0.0}  # fmt: skip


def tokens(draw, shortest=3, longest=8):
    length = int(torch.randint(shortest, longest, (), generator=draw))
    return torch.randint(3, len(WORDS), (length,), generator=draw).tolist()


def items(make):
    draw = torch.Generator().manual_seed(0)
    return [make(draw, i) for i in range(COUNT)]


def stacked(batch):
    """A collator of images and features, in double precision."""
    return {
        key: [item[key] for item in batch]
        if isinstance(batch[0][key], dict)
        else torch.stack([torch.as_tensor(item[key]) for item in batch])
        for key in batch[0]
    }


def remembering(kind):
    class Remembering(kind):
        seen = None

        def compute_loss(self, model, inputs, *args, num_items_in_batch=None, **kwargs):
            if self.seen is None and model.training:
                self.seen = copy.deepcopy(dict(inputs)), num_items_in_batch
            return super().compute_loss(
                model, inputs, *args, num_items_in_batch=num_items_in_batch, **kwargs
            )

    return Remembering


def made(settings, model, data, collate, kind=Trainer, arguments=TrainingArguments):
    return remembering(kind)(
        model.double(), arguments(**settings), train_dataset=data, data_collator=collate
    )


def taken(batch, row):
    return {key: value[row : row + 1] for key, value in batch.items()}


def counted(batch):
    """How many terms each row has in a mean."""
    labels = batch["labels"]
    if isinstance(labels, list):
        return [1] * len(labels)
    return (labels.reshape(len(labels), -1) != -100).sum(1).tolist()


def by_rows_alone(trainer, ids, target):
    """{id: value}; a mean over labels is a sum of means, each with its part of the labels."""
    model, (batch, count) = trainer.model.train(), trainer.seen
    losses = [
        trainer.compute_loss(model, taken(batch, row), num_items_in_batch=count)
        for row in range(len(ids))
    ]
    whole = trainer.compute_loss(model, dict(batch), num_items_in_batch=count)
    if not torch.isclose(sum(losses), whole):  # the model does not look at the count
        terms = counted(batch)
        losses = [loss * n / sum(terms) for loss, n in zip(losses, terms, strict=True)]
        torch.testing.assert_close(sum(losses), whole)
    shares = [gradient(loss, model) for loss in losses]
    return {i: LR * float(target @ share) for i, share in zip(ids, shares, strict=True)}


class Ids:
    """Remembers whose the rows of the first block are."""

    def __init__(self, monkeypatch):
        self.seen = []
        before = inrun.Attribution.open_batch

        def open_batch(attribution, ids, **owned):
            self.seen.append((list(getattr(ids, "tolist", lambda: ids)()), owned))
            return before(attribution, ids, **owned)

        monkeypatch.setattr(inrun.Attribution, "open_batch", open_batch)


def masked_language(settings):
    model = BertForMaskedLM(BertConfig(vocab_size=len(WORDS), **SMALL))
    data = items(lambda draw, i: {"input_ids": tokens(draw)})
    return made(
        settings, model, data, DataCollatorForLanguageModeling(TOKENIZER, mlm_probability=0.6)
    )


def token_classes(settings):
    model = BertForTokenClassification(BertConfig(vocab_size=len(WORDS), num_labels=3, **SMALL))

    def one(draw, i):
        own = tokens(draw)
        return {"input_ids": own, "labels": [t % 3 for t in own]}

    return made(settings, model, items(one), DataCollatorForTokenClassification(TOKENIZER))


def translation(settings):
    model = T5ForConditionalGeneration(
        T5Config(
            vocab_size=len(WORDS), d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2,
            dropout_rate=0.0, decoder_start_token_id=0,
        )
    )  # fmt: skip
    data = items(lambda draw, i: {"input_ids": tokens(draw), "labels": tokens(draw)})
    collate = DataCollatorForSeq2Seq(TOKENIZER, model)
    return made(settings, model, data, collate, Seq2SeqTrainer, Seq2SeqTrainingArguments)


def smoothed_translation(settings):
    """The trainer takes the labels away and computes the loss itself."""
    return translation({**settings, "label_smoothing_factor": 0.1, "predict_with_generate": True})


def speech(settings):
    model = WhisperForConditionalGeneration(
        WhisperConfig(
            vocab_size=len(WORDS), d_model=16, encoder_layers=1, decoder_layers=1,
            encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=24,
            decoder_ffn_dim=24, num_mel_bins=4, max_source_positions=10, max_target_positions=16,
            pad_token_id=0, decoder_start_token_id=2, bos_token_id=2, eos_token_id=2, dropout=0.0,
        )
    )  # fmt: skip

    def one(draw, i):
        labels = torch.full((8,), -100)
        own = tokens(draw)
        labels[: len(own)] = torch.tensor(own)
        features = torch.randn(4, 20, generator=draw, dtype=torch.float64)
        return {"input_features": features, "labels": labels}

    return made(settings, model, items(one), stacked, Seq2SeqTrainer, Seq2SeqTrainingArguments)


def picture(draw):
    return torch.randn(3, 8, 8, generator=draw, dtype=torch.float64)


def images(settings):
    model = ViTForImageClassification(
        ViTConfig(image_size=8, patch_size=4, num_labels=3, **SMALL)
    )  # fmt: skip
    data = items(lambda draw, i: {"pixel_values": picture(draw), "labels": i % 3})
    return made(settings, model, data, stacked)


def boxes(settings, count=4):
    """As many boxes in each picture as there are pictures: shapes say nothing."""
    model = YolosForObjectDetection(
        YolosConfig(
            image_size=[8, 8], patch_size=4, num_detection_tokens=5, num_labels=3,
            use_mid_position_embeddings=False, **SMALL,
        )
    )  # fmt: skip

    def one(draw, i):
        corners = torch.rand(count, 4, generator=draw) * 0.4 + 0.1
        labels = {"class_labels": torch.arange(count) % 3, "boxes": corners}
        return {"pixel_values": picture(draw).float(), "labels": labels}

    trainer = made(settings, model, items(one), stacked)
    trainer.model.float()  # the loss has weights in single precision
    return trainer


class TwoPasses(Trainer):
    """R-Drop: two passes of the same rows, and what keeps them together."""

    def compute_loss(self, model, inputs, *args, **kwargs):
        first, second = (model(**inputs).logits for _ in range(2))
        loss = nn.functional.cross_entropy(first, inputs["labels"])
        loss = loss + nn.functional.cross_entropy(2 * second, inputs["labels"])
        apart = first.log_softmax(-1) - (2 * second).log_softmax(-1)
        return loss + apart.square().mean()


def two_passes(settings):
    trainer = images(settings)
    return made(settings, trainer.model, trainer.train_dataset, stacked, TwoPasses)


INDEPENDENT = [
    masked_language, token_classes, translation, smoothed_translation, speech, images, boxes,
    two_passes,
]  # fmt: skip


@pytest.mark.parametrize("make", INDEPENDENT, ids=lambda make: make.__name__)
def test_a_sample_has_the_value_of_its_rows_alone(make, tmp_path, monkeypatch):
    torch.manual_seed(0)
    trainer, ids = make(settings(tmp_path)), Ids(monkeypatch)
    before = copy.deepcopy(trainer.model.state_dict())
    held = trainer.data_collator([trainer.train_dataset[i] for i in HELD])

    def loss_fn(model, batch):
        return trainer.compute_loss(model, dict(batch))

    target = gradient(loss_fn(trainer.model.eval(), held), trainer.model)
    values, attribution, said = scored(trainer, inrun.Utility(loss_fn, held))
    assert attribution.covered == 1.0
    assert not said
    trainer.model.load_state_dict(before)
    agree(values, by_rows_alone(trainer, ids.seen[0][0], target))


# ---- samples that interact


class Towers(nn.Module):
    """What encodes both columns."""

    def __init__(self):
        super().__init__()
        self.embed, self.last = nn.Embedding(len(WORDS), 16), nn.Linear(16, 16)

    def forward(self, input_ids, attention_mask):
        h = torch.tanh(self.last(self.embed(input_ids))) * attention_mask[..., None]
        return nn.functional.normalize(h.sum(1), dim=-1)


class InBatchNegatives(Trainer):
    """The shape of sentence-transformers' trainer: columns with prefixes, a loss of its own."""

    def compute_loss(self, model, inputs, *args, **kwargs):
        anchors, positives = (
            model(inputs[f"{name}_input_ids"], inputs[f"{name}_attention_mask"])
            for name in ("anchor", "positive")
        )
        scores = 20 * anchors @ positives.T
        return nn.functional.cross_entropy(scores, torch.arange(len(scores)))


def columns(batch):
    found = {}
    for name in ("anchor", "positive"):
        padded = TOKENIZER.pad({"input_ids": [item[name] for item in batch]}, return_tensors="pt")
        found |= {f"{name}_{key}": padded[key] for key in ("input_ids", "attention_mask")}
    return found


def two_towers(settings):
    data = items(lambda draw, i: {"anchor": tokens(draw), "positive": tokens(draw)})
    kept = {**settings, "remove_unused_columns": False}  # as sentence-transformers has it
    trainer = made(kept, Towers(), data, columns, InBatchNegatives)
    return trainer, [trainer.model]


def clip(settings):
    tower = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1,
             "num_attention_heads": 2}  # fmt: skip
    model = CLIPModel(
        CLIPConfig(
            text_config={**tower, "vocab_size": len(WORDS), "max_position_embeddings": 8,
                         "eos_token_id": 2, "bos_token_id": 2, "pad_token_id": 0},
            vision_config={**tower, "image_size": 8, "patch_size": 4}, projection_dim=16,
        )
    )  # fmt: skip

    def one(draw, i):
        text = torch.randint(3, len(WORDS), (6,), generator=draw)
        return {"input_ids": text, "pixel_values": picture(draw)}

    def collate(batch):
        return {**stacked(batch), "return_loss": True}

    trainer = made(settings, model, items(one), collate)
    return trainer, [model.text_projection, model.visual_projection]


def by_own_rows(trainer, towers, ids, target):
    """{id: value}: the whole batch's gradient as far as it passes through a sample's embeddings."""
    model, (batch, _) = trainer.model.train(), trainer.seen

    def share(row):
        def only(module, args, output):
            keep = torch.zeros(len(output), 1).to(output)
            keep[row] = 1
            output.register_hook(lambda g: g * keep)

        handles = [tower.register_forward_hook(only) for tower in towers]
        found = gradient(trainer.compute_loss(model, dict(batch)), model)
        for handle in handles:
            handle.remove()
        return found

    return {i: LR * float(target @ share(row)) for row, i in enumerate(ids)}


@pytest.mark.parametrize("make", [two_towers, clip], ids=lambda make: make.__name__)
def test_in_batch_negatives_interact_and_a_value_is_of_the_pairs_own_rows(
    make, tmp_path, monkeypatch
):
    torch.manual_seed(0)
    (trainer, towers), ids = make(settings(tmp_path)), Ids(monkeypatch)
    if make is clip:
        trainer.model.logit_scale.requires_grad_(False)
    before = copy.deepcopy(trainer.model.state_dict())
    data = trainer.train_dataset
    held = trainer.data_collator([data[i] for i in HELD])
    target = gradient(trainer.compute_loss(trainer.model.eval(), held), trainer.model)
    values, attribution, said = scored(trainer, [data[i] for i in HELD])
    assert attribution.covered == 1.0
    assert len([text for text in said if "interact" in text]) == 1
    trainer.model.load_state_dict(before)
    agree(values, by_own_rows(trainer, towers, ids.seen[0][0], target))


def test_the_temperature_of_in_batch_negatives_is_no_samples(tmp_path):
    trainer, _ = clip(settings(tmp_path))
    _, attribution, said = scored(trainer, [trainer.train_dataset[i] for i in HELD])
    gaps = [r for r in attribution.coverage().to_pylist() if r["status"] != "captured"]
    assert [row["parameter"] for row in gaps] == ["logit_scale"]
    assert any("logit_scale" in text for text in said)


EVERY = [*INDEPENDENT[1:], two_towers]


@pytest.mark.filterwarnings("ignore:Samples interact")
@pytest.mark.parametrize("make", EVERY, ids=lambda make: make.__name__)
def test_the_books_close_with_the_trainers_own_loss_and_optimizer(make, tmp_path):
    torch.manual_seed(0)
    changes = {"max_steps": 6, "optim": "adamw_torch", "learning_rate": 1e-3, "max_grad_norm": 1.0}
    found = make(settings(tmp_path, **changes))
    trainer = found[0] if isinstance(found, tuple) else found
    trainer.add_callback(callback := InRun([trainer.train_dataset[i] for i in HELD]))
    trainer.train()
    assert callback.attribution.covered == 1.0
    for row in callback.attribution.ledger().to_pylist()[2:]:
        assert abs(row["residual"]) < 0.02 * (abs(row["samples"]) + abs(row["momentum"]))
