"""Images for classification: a small convolutional network, or a model of `transformers`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from inrun.errors import MisuseError
from inrun.training._config import TrainConfig
from inrun.training._loading import Batch, pretrained
from inrun.training._samples import Sample, open_image
from inrun.training._task import Classification

WEIGHTS = "weights.safetensors"
LARGEST = 64  # pixels a side that the small network is given at most


def image_task(
    config: TrainConfig, classes: Sequence[str], samples: Sequence[Sample]
) -> Classification:
    """The built-in network for 'cnn', a model of `transformers` for any other name."""
    if config.model == "cnn":
        return SmallImages(config, classes, samples)
    return PretrainedImages(config, classes)


class Images(Classification):
    """Pixels (B, channels, size, size) from -1 to 1."""

    size, channels = 32, 3
    mean: Tensor | float = 0.5
    spread: Tensor | float = 0.5

    def collate(self, samples: Sequence[Sample]) -> Batch:
        """See `Task.collate`."""
        return {
            "pixel_values": torch.stack([self._pixels(s) for s in samples]),
            "labels": self._labels(samples),
        }

    def _pixels(self, sample: Sample) -> Tensor:
        image = open_image(sample.content).convert("L" if self.channels == 1 else "RGB")
        if image.size != (self.size, self.size):
            image = image.resize((self.size, self.size), resample=2)  # bilinear
        values = torch.from_numpy(np.asarray(image, dtype=np.float32).copy()) / 255
        chw = values.unsqueeze(0) if values.ndim == 2 else values.permute(2, 0, 1)
        return (chw - self.mean) / self.spread


class SmallImages(Images):
    """Two convolutions and a linear layer on at most 64 x 64 pixels: trains from scratch."""

    def __init__(self, config: TrainConfig, classes: Sequence[str], samples: Sequence[Sample]):
        super().__init__(config, classes)
        first = open_image(samples[0].content)
        self.size = min(LARGEST, max(first.size))
        self.channels = 1 if first.mode in ("1", "L", "I", "I;16", "F") else 3

    def build(self) -> nn.Module:
        """See `Task.build`."""
        side = min(4, max(1, self.size // 2))
        return nn.Sequential(
            nn.Conv2d(self.channels, 16, 3, padding=1), nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU(),
            nn.AdaptiveAvgPool2d(side), nn.Flatten(),
            nn.Linear(32 * side * side, len(self.classes)),
        )  # fmt: skip

    def logits(self, model: nn.Module, batch: Batch) -> Tensor:
        """See `Classification.logits`."""
        found: Tensor = model(batch["pixel_values"])
        return found

    def save(self, model: nn.Module, folder: Path) -> None:
        """See `Task.save`."""
        folder.mkdir()
        save_file(model.state_dict(), folder / WEIGHTS)

    def load(self, folder: Path) -> nn.Module:
        """See `Task.load`."""
        model = self.build()
        model.load_state_dict(load_file(folder / WEIGHTS))
        return model


class PretrainedImages(Images):
    """An image classifier of `transformers`."""

    def __init__(self, config: TrainConfig, classes: Sequence[str]):
        super().__init__(config, classes)
        shape, facts = self._plain(config).config, _pixel_facts(config)
        self.size, self.channels = _side(shape), getattr(shape, "num_channels", 3)
        for name, key in (("mean", "image_mean"), ("spread", "image_std")):
            if key in facts:
                setattr(self, name, torch.tensor(facts[key]).view(-1, 1, 1))

    def build(self) -> nn.Module:
        """See `Task.build`."""
        return self._plain(self.config)

    def _plain(self, config: TrainConfig) -> nn.Module:
        return pretrained(
            config, "AutoModelForImageClassification", num_labels=len(self.classes),
            ignore_mismatched_sizes=True,
        )  # fmt: skip

    def save(self, model: nn.Module, folder: Path) -> None:
        """See `Task.save`."""
        model.save_pretrained(folder)  # type: ignore[operator]

    def load(self, folder: Path) -> nn.Module:
        """See `Task.load`."""
        return self._plain(replace(self.config, model=str(folder), from_scratch=False))

    def logits(self, model: nn.Module, batch: Batch) -> Tensor:
        """See `Classification.logits`."""
        found: Tensor = model(pixel_values=batch["pixel_values"]).logits
        return found


def _pixel_facts(config: TrainConfig) -> dict[str, Any]:
    """How the model wants its pixels, where its folder says so."""
    file = Path(config.model) / "preprocessor_config.json"
    return json.loads(file.read_text()) if file.exists() else {}


def _side(shape: object) -> int:
    side = getattr(shape, "image_size", 224)
    if not isinstance(side, int):
        if len(set(side)) != 1:
            raise MisuseError(f"The model wants images of {side}; only square ones are made here.")
        side = side[0]
    return int(side)
