"""What the Trainer is told: our options in its words, and its own as they were given."""

from __future__ import annotations

from inrun.errors import require_extra

require_extra("train", "transformers", "accelerate")

# ruff: noqa: E402 - an extra that is not there is named before anything of it is imported

import dataclasses
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from inrun.errors import MisuseError, NotSupportedError
from inrun.training._config import TrainConfig

CHECKPOINTS = "checkpoints"
FIXED: dict[str, Any] = {
    "save_strategy": "no",  # the callback says when
    "save_steps": 500, "save_total_limit": 2,  # the last whole one while one is written
    "save_only_model": False, "resume_from_checkpoint": None, "load_best_model_at_end": False,
    "max_steps": -1, "remove_unused_columns": False, "prediction_loss_only": True,
    "label_smoothing_factor": 0.0, "average_tokens_across_devices": True,
}  # fmt: skip
SILENT = {
    "logging_strategy": "no",
    "eval_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
}


def arguments_of(config: TrainConfig, folder: Path, **changes: Any) -> TrainingArguments:
    """What the Trainer is told for a run in a folder; `changes` go before everything.

    Raises:
        MisuseError: an argument that it does not know, that is an option of our own, or that it
            refuses.
        NotSupportedError: one that excludes what else was asked for.
    """
    ours: dict[str, Any] = {
        "output_dir": str(folder / CHECKPOINTS),
        "num_train_epochs": config.epochs, "per_device_train_batch_size": config.batch,
        "gradient_accumulation_steps": config.accumulate, "learning_rate": config.rate,
        "weight_decay": config.weight_decay, "warmup_steps": config.warmup,
        "max_grad_norm": config.clip, "seed": config.seed,
    } | FIXED  # fmt: skip
    known = {argument.name for argument in dataclasses.fields(TrainingArguments)}
    for name in config.trainer:
        if name not in known:
            raise MisuseError(f"--trainer {name}: transformers.TrainingArguments has no such one.")
        if name in ours:
            raise MisuseError(
                f"--trainer {name} is set by the other options of `inrun train`, or cannot be "
                "changed."
            )
    seen = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if config.device not in ("auto", "cpu") and (seen is None or seen.type != config.device):
        raise MisuseError(
            f"--device {config.device}: PyTorch sees no such device here, it sees "
            f"{'cpu alone' if seen is None else f'cpu and {seen.type}'}."
        )
    defaults: dict[str, Any] = {
        "per_device_eval_batch_size": 64, "use_cpu": seen is None or config.device == "cpu",
        "disable_tqdm": True, "report_to": "none", "logging_steps": 0.1,
        "dataloader_pin_memory": torch.cuda.is_available(),
    }  # fmt: skip
    try:
        made = TrainingArguments(**(defaults | config.trainer | ours | changes))
    except Exception as error:  # of many kinds: types, values, devices that are not there
        raise MisuseError(f"The Trainer refuses its arguments: {error}") from error
    if config.record and (made.bf16 or made.fp16):
        raise NotSupportedError(
            "record and half precision exclude each other: a run is played again in the weights' "
            "own precision. Leave --trainer bf16 or fp16 out, or --record."
        )
    if made.world_size > 1 and (config.record or config.keep_tokens):
        raise NotSupportedError(
            "record and keep_tokens are for one process: leave them out, or start one."
        )
    return made
