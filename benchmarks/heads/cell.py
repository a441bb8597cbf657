"""TRL's SFTTrainer on random tokens, each way in its own process, whose peak is read (Linux)."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

VOCABULARY, ROWS, TOKENS, STEPS = 49_152, 4, 512, 2
WIDTHS, LAYERS = (16, 64), 2
MEGABYTE = 1e6
WAYS = {
    "fused": "the trainer's default, not attributed",
    "fused, hold": "attributed as attached",
    "fused, stream": 'attributed, `capture="stream"`',
    "logits": "the loss from logits, not attributed",
}


def grid() -> list[str]:
    """The cells' names: all ways at each width."""
    return [f"{width}: {way}" for width in WIDTHS for way in WAYS]


def measure(key: str) -> dict[str, Any]:
    """Peak of a process beyond what it had when the training began, in bytes; processor time."""
    command = [sys.executable, "-m", "benchmarks.heads.cell", *key.split(": ")]
    freed = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(2**20)}  # what is freed is not kept
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=freed)
    peak, seconds, covered = done.stdout.split()[-3:]
    return {
        "peak_bytes": int(peak),
        "seconds": float(seconds),
        "covered": None if covered == "None" else float(covered),
    }


def trainer(folder: str, width: int, way: str, vocabulary: int = VOCABULARY) -> Any:
    """A small Llama with a large vocabulary, about to be trained."""
    from datasets import Dataset
    from tokenizers import Tokenizer, models
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
    from trl import SFTConfig, SFTTrainer

    torch.manual_seed(0)
    words = Tokenizer(models.WordLevel({"<pad>": 0, "</s>": 1}, unk_token="<pad>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="</s>")
    tokens = torch.randint(2, vocabulary, (ROWS * STEPS, TOKENS)).tolist()
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=width, intermediate_size=2 * width, pad_token_id=0,
        num_hidden_layers=LAYERS, num_attention_heads=4, max_position_embeddings=TOKENS,
    )  # fmt: skip
    settings = SFTConfig(
        output_dir=folder, max_steps=STEPS, per_device_train_batch_size=ROWS, report_to=[],
        use_cpu=True, bf16=False, save_strategy="no", disable_tqdm=True, max_length=TOKENS,
        dataloader_pin_memory=False, logging_strategy="no",
    )  # fmt: skip
    made = SFTTrainer(
        LlamaForCausalLM(config), settings, train_dataset=Dataset.from_dict({"input_ids": tokens}),
        processing_class=tokenizer, compute_loss_func=from_logits if way == "logits" else None,
    )  # fmt: skip
    if "," in way:
        import inrun
        from inrun.integrations.transformers import InRun

        options = inrun.Options(progress=False, capture=way.split(", ")[1])
        held = made.train_dataset.select(range(ROWS))
        made.add_callback(InRun(held, validation_rows=ROWS, options=options))
    return made


def from_logits(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> Any:
    """The next token's cross-entropy, from logits of the whole batch."""
    z, wanted = outputs["logits"][:, :-1].float(), labels[:, 1:]
    total = nn.functional.cross_entropy(z.flatten(0, 1), wanted.flatten(), reduction="sum")
    return total / num_items_in_batch


def print_peak(width: int, way: str) -> None:
    """Trains, and prints by how much this process grew at most, its time, and what is covered."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        if "," in way:  # what is loaded and compiled once is no memory of the training
            trainer(folder, width, way, vocabulary=100).train()
        made = trainer(folder, width, way)
        Path("/proc/self/clear_refs").write_text("5")  # the peak so far was loading
        before = _status("VmRSS")
        began = time.process_time()
        made.train()
        seconds = time.process_time() - began
        peak = _status("VmHWM") - before
    found = [c.attribution.covered for c in made.callback_handler.callbacks
             if hasattr(c, "attribution")]  # fmt: skip
    print(peak, seconds, found[0] if found else None)


def _status(name: str) -> int:
    """A figure of this process, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) * 1024


if __name__ == "__main__":
    print_peak(int(sys.argv[1]), sys.argv[2])
