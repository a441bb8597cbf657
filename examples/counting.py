"""The task of TRL's examples: a small model learns to count; a tenth of the data is bad."""

import random

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

NUMBERS = "one two three four five six seven eight nine ten eleven twelve".split()
TRAINED, HELD = 300, 40


def tokenizer():
    """A word for each number."""
    words = {word: i for i, word in enumerate(["<pad>", "<end>", *NUMBERS])}
    made = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", eos_token="<end>")


def model():
    """A small Llama, the same every time."""
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=2 + len(NUMBERS), hidden_size=32, intermediate_size=64,
            num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=64,
            pad_token_id=0, bos_token_id=1, eos_token_id=1,
        )
    )  # fmt: skip


def counted(count, shortest, longest, seed):
    """Lists of numbers in their order."""
    draw = random.Random(seed)
    lengths = [draw.randint(shortest, longest) for _ in range(count)]
    begins = [draw.randint(0, len(NUMBERS) - length) for length in lengths]
    return [NUMBERS[k : k + n] for k, n in zip(begins, lengths, strict=True)]


def is_bad(i):
    """Every tenth is."""
    return i % 10 == 0


def show(attribution):
    """How many of the thirty most harmful samples are the bad ones."""
    worst = attribution.values().sort_by("value_normalised").slice(0, 30)
    found = sum(map(is_bad, worst["sample_id"].to_pylist()))
    print(f"{found} of the 30 most harmful samples are among the {TRAINED // 10} bad ones")
