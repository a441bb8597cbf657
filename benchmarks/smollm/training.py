"""TRL's SFTTrainer with packing and its own defaults, on SmolLM2-135M or on a tiny stand-in."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch

import inrun
from benchmarks.data import brown_passages, smollm2

KINDS = {"lora": "LoRA, r=16", "full": "full fine-tuning"}
RATES = {"lora": 2e-4, "full": 2e-5}  # the trainer's default is for full fine-tuning
SHORTEST, LONGEST, HELD_OUT = 12, 36, 8  # words, words, texts
VALIDATION_ROWS = 4
VOCABULARY = [f"w{i}" for i in range(50)]


class Size(NamedTuple):
    """How much is trained: steps of some rows of some tokens, on SmolLM2 or a tiny random model."""

    tiny: bool = False
    steps: int = 8
    rows: int = 8  # the trainer's default
    tokens: int = 64

    def model_and_tokenizer(self, words: Sequence[str] = VOCABULARY) -> tuple[Any, Any]:
        """Loaded, or made for a vocabulary of these words."""
        if self.tiny:
            return stand_in(words)
        from transformers import AutoModelForCausalLM, AutoTokenizer

        folder = smollm2()
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        return model, AutoTokenizer.from_pretrained(folder)

    def texts(self, count: int) -> list[str]:
        """Passages of the Brown corpus, or random words, each cut to a length of its own."""
        draw = random.Random(0)
        words = (
            [" ".join(draw.choices(VOCABULARY, k=LONGEST)) for _ in range(count)]
            if self.tiny
            else brown_passages(count, LONGEST)
        )
        return [" ".join(text.split()[: draw.randint(SHORTEST, LONGEST)]) for text in words]


def stand_in(vocabulary: Sequence[str]) -> tuple[Any, Any]:
    """A random Llama with tied embeddings, and a tokenizer of words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    names = {word: i for i, word in enumerate(["<pad>", "</s>", *vocabulary])}
    words = Tokenizer(models.WordLevel(names, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="</s>")
    config = LlamaConfig(
        vocab_size=len(names), hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, tie_word_embeddings=True, pad_token_id=0,
        bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    return LlamaForCausalLM(config), tokenizer


def lora() -> Any:
    """The configuration that TRL's own examples have."""
    from peft import LoraConfig

    return LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")


def trainer(folder: str, kind: str, size: Size, *, attributed: bool) -> tuple[Any, Any]:
    """An SFTTrainer that is about to train, and the callback on it (or None)."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    model, tokenizer = size.model_and_tokenizer()
    texts = size.texts(HELD_OUT + 3 * size.rows * size.steps)
    data, held = (Dataset.from_dict({"text": t}) for t in (texts[HELD_OUT:], texts[:HELD_OUT]))
    settings = SFTConfig(
        folder, packing=True, max_length=size.tokens, max_steps=size.steps,
        per_device_train_batch_size=size.rows, learning_rate=RATES[kind],
        **what_a_short_run_needs(),
    )  # fmt: skip
    made = SFTTrainer(
        model, settings, train_dataset=data, eval_dataset=held, processing_class=tokenizer,
        peft_config=lora() if kind == "lora" else None,
    )  # fmt: skip
    if not attributed:
        return made, None
    from inrun.integrations.transformers import InRun

    options = inrun.Options(progress=False)
    watching = partial(InRun, examples=data, validation_rows=VALIDATION_ROWS, options=options)
    made.add_callback(callback := watching(made.eval_dataset))
    return made, callback


def what_a_short_run_needs() -> dict[str, Any]:
    """On a CPU, with nothing written and nothing reported."""
    return {
        "use_cpu": True, "bf16": False, "report_to": [], "save_strategy": "no",
        "disable_tqdm": True, "logging_strategy": "no", "dataloader_pin_memory": False,
    }  # fmt: skip
