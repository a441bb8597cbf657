"""The same rows as questions to SmolLM2-135M-Instruct, which answers with a topic's name.

LoRA on its last layers is trained on -log p(the name's first token), over the whole vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import data
from benchmarks.poison.cell import Encoded

WORDS, LAYERS = 16, 6
NAMES = {"acq": " takeover", "crude": " oil", "earn": " profit", "money-fx": " currency"}
MATRICES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
ASKED = "<|im_start|>user\nTopic of this news: {}<|im_end|>\n<|im_start|>assistant\nTopic:"


class Answers(nn.Module):
    """Log-probabilities of each topic's token and of all others together, (B, topics + 1)."""

    def __init__(self, model: nn.Module, tokens: Sequence[int]):
        super().__init__()
        self.model = model
        self.register_buffer("tokens", torch.tensor(tokens), persistent=False)

    def forward(self, ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
        """Of the token after the last one; texts are padded on the left."""
        logits: Any = self.model(input_ids=ids_BT, attention_mask=mask_BT, logits_to_keep=1).logits
        found = logits[:, -1].log_softmax(1)[:, self.tokens]
        rest = torch.log1p(-found.exp().sum(1, keepdim=True).clamp(max=1 - 1e-6))
        return torch.cat([found, rest], 1)


def smollm(topics: Sequence[str], vectors: Callable[[Sequence[str]], Tensor]) -> Encoded:
    """SmolLM2's inputs, the model on them, and another model's embeddings."""
    names = [NAMES.get(topic, f" {topic}") for topic in topics]
    tokens = [_tokenizer()(name, add_special_tokens=False)["input_ids"][0] for name in names]
    if len(set(tokens)) < len(tokens):
        raise ValueError(f"Two of {', '.join(names)} begin with the same token.")

    def inputs(texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        asked = [ASKED.format(" ".join(text.split()[:WORDS])) for text in texts]
        found = _tokenizer()(asked, padding="max_length", max_length=64, truncation=True,
                             return_tensors="pt")  # fmt: skip
        return found["input_ids"], found["attention_mask"]

    return Encoded(inputs, lambda: Answers(_model(), tokens), vectors)


@cache
def _tokenizer() -> Any:
    from transformers import AutoTokenizer

    found = AutoTokenizer.from_pretrained(data.smollm2(), padding_side="left")
    found.pad_token = found.pad_token or found.eos_token
    return found


def _model() -> nn.Module:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(data.smollm2(), dtype=torch.float32)
    layers = model.config.num_hidden_layers
    adapted: nn.Module = get_peft_model(model, LoraConfig(
        r=16, lora_alpha=32, target_modules=MATRICES, task_type="CAUSAL_LM",
        layers_to_transform=list(range(layers - LAYERS, layers)),
    ))  # fmt: skip
    return adapted
