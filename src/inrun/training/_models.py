"""What a task makes of samples: a model of `transformers` or a small one of our own, and batches.

Both kinds are called with what a batch has of `INPUTS`, and their output has `logits`; texts are in
`_texts.py`. The packages are imported when a model is asked for.
"""

from __future__ import annotations

import importlib
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from logging import ERROR, getLogger
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from inrun.errors import MisuseError, require_extra
from inrun.ledger import opened_picture
from inrun.training._config import TrainConfig
from inrun.training._objectives import OBJECTIVES, Batch
from inrun.training._samples import Sample

INPUTS = ("input_ids", "attention_mask", "pixel_values")
LONGEST_REASON = 200  # characters of another library's error that are repeated
LARGEST = 64  # pixels per side that the small network is given at most


class Task(ABC):
    """One task, from a configuration and the classes' names (none for a language model).

    Raises:
        MissingExtraError: a package is missing; the message names the line that installs it.
        MisuseError: the model's or the tokenizer's folder cannot be read.
    """

    processor: Any = None  # the model's tokenizer or image processor, saved beside it

    def __init__(self, config: TrainConfig, classes: Sequence[str]):
        self.config, self.classes = config, tuple(classes)
        self.objective = OBJECTIVES[config.task]

    def __call__(self, items: list[Any]) -> Batch:
        """As a collator of the Trainer's items, see `item`."""
        return self.collate([item["sample"] for item in items])

    def item(self, sample: Sample) -> dict[str, Any]:
        """What the Trainer's data set holds of a sample, beside its id."""
        return {"sample": sample}

    def prepare(self, samples: Sequence[Sample], start: Callable[[], nn.Module]) -> None:  # noqa: B027
        """Finds what batches of samples will need; `start` makes the model before training."""

    def losses(self, model: nn.Module, batch: Batch) -> Tensor:
        """The loss of each label, (B, L), 0 for none."""
        return self.objective.losses(self.logits(model, batch), batch)

    @staticmethod
    def logits(model: nn.Module, batch: Batch) -> Tensor:
        """The model's."""
        return model(**{n: t for n, t in batch.items() if n in INPUTS})["logits"]  # type: ignore

    @abstractmethod
    def collate(self, samples: Sequence[Sample]) -> Batch:
        """Samples as one batch, in their order, with `labels`."""

    @abstractmethod
    def build(self, saved: Path | None = None) -> nn.Module:
        """The model before its first step, or as `Trainer.save_model` left it in a folder.

        What is drawn comes from torch's random state.
        """

    def _labels(self, samples: Sequence[Sample]) -> Tensor:
        number = {name: k for k, name in enumerate(self.classes)}
        return torch.tensor([number[str(sample.label)] for sample in samples])


class Pictures(Task):
    """Images with labels, as the model's own image processor makes its pixels."""

    def __init__(self, config: TrainConfig, classes: Sequence[str]):
        super().__init__(config, classes)
        with loading("image processor", config.model, " It is preprocessor_config.json there."):
            self.processor = transformers().AutoImageProcessor.from_pretrained(config.model)

    def collate(self, samples: Sequence[Sample]) -> Batch:
        """`pixel_values` (B, 3, height, width)."""
        images = [_picture(sample, "RGB") for sample in samples]
        pixels: Tensor = self.processor(images, return_tensors="pt")["pixel_values"]
        return {"pixel_values": pixels, "labels": self._labels(samples)}

    def build(self, saved: Path | None = None) -> nn.Module:
        """A model of `transformers` for the task, with the weights that were saved, if any."""
        return pretrained(
            self.config, "AutoModelForImageClassification", saved, num_labels=len(self.classes),
            ignore_mismatched_sizes=True,
        )  # fmt: skip


class SmallPictures(Task):
    """Images with labels, made square, for the small network; the first tells size and colour."""

    def __init__(self, config: TrainConfig, classes: Sequence[str], first: Sample):
        super().__init__(config, classes)
        image: Any = opened_picture(first.content)
        self._side = min(LARGEST, max(image.size))
        self._mode = "L" if image.mode == "L" else "RGB"

    def collate(self, samples: Sequence[Sample]) -> Batch:
        """`pixel_values` (B, channels, side, side), from -1 to 1."""
        size = (self._side, self._side)
        images = [_picture(sample, self._mode).resize(size, resample=2) for sample in samples]
        pixels = torch.from_numpy(np.stack([np.atleast_3d(image) for image in images]))
        values = pixels.permute(0, 3, 1, 2).float() / 127.5 - 1
        return {"pixel_values": values, "labels": self._labels(samples)}

    def build(self, saved: Path | None = None) -> nn.Module:
        """A model of `transformers` for the task, with the weights that were saved, if any."""
        model = SmallNetwork(len(self._mode), self._side, len(self.classes))
        if saved is not None:
            model.load_state_dict(load_file(saved / "model.safetensors"))
        return model


def _picture(sample: Sample, mode: str) -> Any:
    image: Any = opened_picture(sample.content)
    return image.convert(mode)


class SmallNetwork(nn.Module):
    """Two convolutions and a linear layer: trains from scratch in seconds."""

    def __init__(self, channels: int, size: int, classes: int):
        super().__init__()
        side = min(4, max(1, size // 2))
        self.layers = nn.Sequential(
            nn.Conv2d(channels, 16, 3, padding=1), nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU(),
            nn.AdaptiveAvgPool2d(side), nn.Flatten(), nn.Linear(32 * side * side, classes),
        )  # fmt: skip

    def forward(self, pixel_values: Tensor) -> dict[str, Tensor]:
        """`logits` (B, classes)."""
        return {"logits": self.layers(pixel_values)}


def pretrained(config: TrainConfig, kind: str, saved: Path | None, **settings: Any) -> nn.Module:
    """A model of `transformers` by the configuration's name, or of its shape with drawn weights.

    `kind` is the class that loads it, `saved` a folder in the name's place, `settings` are of the
    model's own configuration.
    """
    name, auto = saved or config.model, getattr(transformers(), kind)
    with loading("model", name):
        if saved or not config.from_scratch:
            return auto.from_pretrained(name, **settings)  # type: ignore[no-any-return]
        shape = transformers().AutoConfig.from_pretrained(name, **settings)
        return auto.from_config(shape)  # type: ignore[no-any-return]


@contextmanager
def loading(what: str, name: str | Path, advice: str = "") -> Iterator[None]:
    """Whatever fails inside is said in one way."""
    place = Path(name)
    if not place.is_dir() and (str(name).startswith((".", "/", "~")) or str(name).count("/") > 1):
        raise MisuseError(f"The {what} {name} could not be loaded: there is no such folder.")
    with quiet():
        try:
            yield
        except Exception as error:  # missing files, no network, unknown architectures
            here = "" if place.is_dir() else "there is no such folder here, and "
            why = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
            why = why if len(why) <= LONGEST_REASON else why[:LONGEST_REASON] + "..."
            raise MisuseError(
                f"The {what} {name} could not be loaded: {here}{why}. Name a folder in the form "
                "that `transformers` saves, or, with network, a name on the hub; --from-scratch "
                f"needs the folder's config.json only.{advice}"
            ) from error


@contextmanager
def quiet() -> Iterator[None]:
    """Without the loader's bars and reports: that a head is new is known here."""
    logging, hub = transformers().utils.logging, getLogger("huggingface_hub")
    shown, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    of_hub = hub.level
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    hub.setLevel(ERROR)  # it tells of each time that it tries again
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of each other
            yield
    finally:
        logging.set_verbosity(level)
        hub.setLevel(of_hub)
        if shown:
            logging.enable_progress_bar()


def transformers() -> Any:
    """The package.

    Raises:
        MissingExtraError: it, or the one that its Trainer runs on, is not installed.
    """
    require_extra("train", "transformers", "accelerate")
    return importlib.import_module("transformers")
