"""TRL's trainers of vision-language models: texts with pictures, one, none or several per sample.

Brute force: the trainer's own loss of the sample alone, by plain autograd at the weights before the
step, over the count of the whole batch.
"""

import copy
import random
import warnings

import numpy as np
import pytest
import torch
import trl
from datasets import Dataset
from PIL import Image
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from inrun.errors import MisuseError
from inrun.integrations._places import collated
from tests.integration.small_trl import WORDS, tokenizer
from tests.integration.tiny_language import LR, agree, gradient, scored, settings

warnings.filterwarnings("ignore", category=FutureWarning)
COUNT, HELD = 12, range(8, 12)
TURNS = (
    "{% for m in messages %}{% for c in m.content %}"
    "{% if c.type == 'image' %} <image> {% else %} {{ c.text }} {% endif %}"
    "{% endfor %}{% endfor %}"
)


def processor():
    made = tokenizer()
    made.add_special_tokens({"additional_special_tokens": ["<image>"]})
    pictures = CLIPImageProcessor(
        size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8}
    )  # fmt: skip
    return LlavaProcessor(
        image_processor=pictures, tokenizer=made, patch_size=4, chat_template=TURNS,
        vision_feature_select_strategy="default", num_additional_image_tokens=1,
    )  # fmt: skip


def model(seed=0):
    torch.manual_seed(seed)
    size = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2}
    words = LlamaConfig(
        **size, vocab_size=len(WORDS) + 1, num_hidden_layers=1, num_key_value_heads=2,
        max_position_embeddings=64, pad_token_id=0, initializer_range=0.2,
    )  # fmt: skip
    vision = CLIPVisionConfig(**size, num_hidden_layers=2, image_size=8, patch_size=4)
    config = LlavaConfig(text_config=words, vision_config=vision, image_token_id=len(WORDS))
    return LlavaForConditionalGeneration(config).double()


def rows(kind, pictures):
    """Chats; of sample i as many pictures as `pictures` says, over and over."""
    draw, pixels = random.Random(0), np.random.default_rng(0)

    def said(role):
        text = " ".join(draw.choices(WORDS[3:], k=draw.randint(1, 4)))
        return [{"role": role, "content": text}]

    def picture():
        return Image.fromarray(pixels.integers(0, 255, (8, 8, 3), dtype=np.uint8))

    counts = [pictures[i % len(pictures)] for i in range(COUNT)]
    data = {"images": [[picture() for _ in range(n)] for n in counts]}
    if kind == "whole chats":
        data["messages"] = [said("user") + said("assistant") for _ in range(COUNT)]
    else:
        data["prompt"] = [said("user") for _ in range(COUNT)]
        answers = ("chosen", "rejected") if kind == "pairs" else ("completion",)
        data |= {name: [said("assistant") for _ in range(COUNT)] for name in answers}
    if kind == "unpaired":
        data["label"] = [i % 3 > 0 for i in range(COUNT)]
    return Dataset.from_dict(data)


KINDS = {
    "whole chats": (trl.SFTTrainer, trl.SFTConfig), "completions": (trl.SFTTrainer, trl.SFTConfig),
    "pairs": (trl.DPOTrainer, trl.DPOConfig), "unpaired": (trl.KTOTrainer, trl.KTOConfig),
}  # fmt: skip


def made(kind, pictures, folder):
    trainer, config = KINDS[kind]
    reference = {"ref_model": model(1)} if kind in ("pairs", "unpaired") else {}
    more = {"loss_type": "apo_zero_unpaired"} if kind == "unpaired" else {}
    return trainer(
        model(), args=config(**settings(folder, max_length=None, **more)), **reference,
        train_dataset=rows(kind, pictures), processing_class=processor(),
    )  # fmt: skip


def by_sample_alone(trainer, ids):
    """{sample: value}."""
    model = trainer.model.eval()

    def batch(positions):
        return dict(trainer.data_collator([trainer.train_dataset[i] for i in positions]))

    target = gradient(trainer.compute_loss(model, batch(HELD)), model)
    whole, values = batch(ids), {}
    model.train()
    for i in ids:
        if "labels" in whole:
            count = (whole["labels"][:, 1:] != -100).sum()
            loss = trainer.compute_loss(model, batch([i]), num_items_in_batch=count)
        else:
            loss = trainer.compute_loss(model, batch([i])) / len(ids)
        values[i] = LR * float(target @ gradient(loss, model))
    return values


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "pictures", [(1,), (2, 0, 1)], ids=["one picture each", "as many as samples, not one each"]
)
def test_a_sample_has_the_value_of_its_texts_and_pictures(kind, pictures, tmp_path, monkeypatch):
    trainer = made(kind, pictures, tmp_path)
    in_order = torch.utils.data.SequentialSampler
    monkeypatch.setattr(trainer, "_get_train_sampler", in_order)
    trainer.args.per_device_train_batch_size = trainer._train_batch_size = 3
    before = copy.deepcopy(trainer.model.state_dict())
    values, attribution, said = scored(trainer, trainer.train_dataset.select(HELD))
    assert sorted(values) == [0, 1, 2]
    assert attribution.covered == 1.0
    assert not said
    trainer.model.load_state_dict(before)
    agree(values, by_sample_alone(trainer, list(values)))


def test_rows_of_texts_and_pictures_are_told_by_collating_each_alone(tmp_path):
    trainer = made("pairs", (2, 0, 1), tmp_path)
    batch, places = collated(trainer.data_collator, [trainer.train_dataset[i] for i in range(3)])
    assert places["input_ids"].tolist() == [0, 1, 2, 0, 1, 2]
    assert places["pixel_values"].tolist() == [0, 0, 2, 0, 0, 2]
    assert len(batch["pixel_values"]) == 6


def test_a_collator_whose_rows_are_other_than_each_items_alone_is_refused(tmp_path):
    trainer = made("pairs", (1,), tmp_path)

    def turned(items):
        batch = trainer.data_collator(items)
        batch["input_ids"] = batch["input_ids"] + len(items)
        return batch

    with pytest.raises(MisuseError, match="do not tell which rows are whose"):
        collated(turned, [trainer.train_dataset[i] for i in range(3)])
