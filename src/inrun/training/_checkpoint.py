"""A training's state on disk, whole or not at all, so that it goes on where it was cut off."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from inrun.errors import StoreError

CHECKPOINT = "checkpoint.pt"


def save(
    run: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    **rest: Any,
) -> None:
    """Writes a checkpoint in place of the last one. Of frozen weights nothing is kept."""
    trained = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    state = {
        "trained": trained,
        "buffers": dict(model.named_buffers()),
        "optimizer": optimizer.state_dict(),
        "schedule": schedule.state_dict(),
        "random": torch.get_rng_state(),
        "random_cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        **rest,
    }
    beside = run / (CHECKPOINT + ".part")
    torch.save(state, beside)
    beside.replace(run / CHECKPOINT)


def read(run: Path) -> dict[str, Any] | None:
    """The last checkpoint, or None. Read without running any code that it might hold.

    Raises:
        StoreError: it cannot be read.
    """
    path = run / CHECKPOINT
    if not path.exists():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torn files raise many kinds
        raise StoreError(f"{path} cannot be read: {error}") from error
    return state


def restore(
    state: dict[str, Any],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
) -> None:
    """Puts a checkpoint into model, optimizer and schedule, and the random state as it was."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.requires_grad:
                p.copy_(state["trained"][name])
        for name, buffer in model.named_buffers():
            buffer.copy_(state["buffers"][name])
    optimizer.load_state_dict(state["optimizer"])
    schedule.load_state_dict(state["schedule"])
    torch.set_rng_state(state["random"])
    if state["random_cuda"]:
        torch.cuda.set_rng_state_all(state["random_cuda"])
