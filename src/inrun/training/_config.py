"""What a run of `inrun train` was asked for: kept as `config.json` beside its results.

The file is all that it takes to do the same again (`inrun train --config RUN/config.json`), and to
build model, data and losses once more for whatever is asked of the run later.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inrun.attribution import Budget, Options, Sampled, Scoring, demand_settings
from inrun.errors import MisuseError, StoreError

CONFIG = "config.json"
FORMAT = 1
TASKS = ("text-classification", "causal-lm", "image-classification")
SPLIT_OFF = 0.1  # of the training rows, for each of validation and test that was not given


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides what a run does.

    Attributes:
        task: 'text-classification', 'causal-lm' or 'image-classification'.
        model: a folder or hub name that `transformers` loads, or 'cnn' for images.
        data: training rows: CSV, JSONL or Parquet file, a saved `datasets` folder, a folder of
            images (one folder a class), or a hub name.
        validation: the rows that judge, given likewise; None splits off a tenth of `data`.
        test: the rows of the score at the end, given likewise; None splits off a tenth of `data`.
        from_scratch: take the model's configuration and draw its weights.
        tokenizer: a folder or name, where it is not the model's.
        text_column: its name in the data.
        label_column: its name in the data.
        id_column: its name in the data; None takes row numbers.
        source_column: its name in the data; None where rows have no provider.
        target_column: a column of the validation rows that names targets; None is one target a
            class where there are at most 20, and the whole validation set otherwise.
        validation_rows: at most so many are passed in every step.
        max_length: tokens; longer texts are cut.
        lora: rank of LoRA's matrices; 0 trains all weights.
        learning_rate: None takes 5e-5 for pretrained weights, 2e-4 for LoRA, 1e-3 from scratch.
        batch: rows of a forward pass; `accumulate` of them make a step.
        warmup: share of the steps over which the learning rate rises; then it falls to 0, linearly.
        clip: the gradient's largest norm; 0 does not clip.
        estimator: as of `inrun.attach`, like `capture`, `contraction`, `payout`, `payout_to`,
            `every` and `max_overhead`.
        rotating: as of `inrun.Utility`: each validation pass looks at one of so many parts.
        keep_tokens: keep values a token.
        record: keep the trajectory, for look-ahead.
        save_every: seconds between checkpoints.
        skip_bad_rows: leave them out instead of stopping.
        pictures: the folder in which files that rows name must lie; None is the data's own.
    """

    task: str
    model: str
    data: str
    validation: str | None = None
    test: str | None = None
    from_scratch: bool = False
    tokenizer: str | None = None
    text_column: str = "text"
    label_column: str = "label"
    id_column: str | None = None
    source_column: str | None = None
    target_column: str | None = None
    validation_rows: int = 200
    max_length: int = 128
    lora: int = 0
    epochs: int = 3
    batch: int = 16
    accumulate: int = 1
    learning_rate: float | None = None
    weight_decay: float = 0.01
    warmup: float = 0.05
    clip: float = 1.0
    seed: int = 0
    device: str = "auto"
    estimator: str = "path"
    capture: str = "hold"
    contraction: str = "auto"
    payout: int = 0
    payout_to: str | None = None
    every: float = 1
    max_overhead: float | None = None
    rotating: int = 1
    keep_tokens: bool = False
    record: bool = False
    save_every: float = 60.0
    skip_bad_rows: bool = False
    pictures: str | None = None

    def __post_init__(self) -> None:
        """Checks the numbers, and what goes together, before anything is loaded.

        Raises:
            MisuseError: one that makes no sense, named, or two that exclude each other.
        """
        if self.task not in TASKS:
            raise MisuseError(f"task {self.task!r} is not one of {', '.join(TASKS)}.")
        for name in ("epochs", "batch", "accumulate", "validation_rows", "max_length", "rotating"):
            if getattr(self, name) < 1:
                raise MisuseError(f"{name} is {getattr(self, name)}; it must be at least 1.")
        for name in ("lora", "weight_decay", "clip", "save_every"):
            if getattr(self, name) < 0:
                raise MisuseError(f"{name} is {getattr(self, name)}; it cannot be negative.")
        if not 0 <= self.warmup < 1:
            raise MisuseError(f"warmup is {self.warmup}; it is a share of the steps, below 1.")
        if self.learning_rate is not None and not self.learning_rate > 0:
            raise MisuseError(f"learning_rate is {self.learning_rate}; it must be positive.")
        if self.lora and self.task == "image-classification":
            raise MisuseError("lora is for text models here; train all weights of an image model.")
        if self.keep_tokens and self.task != "causal-lm":
            raise MisuseError("keep_tokens is for causal-lm, where each token has a loss term.")
        demand_settings(
            estimator=self.estimator, scoring=self.scoring, momentum_window=self.payout,
            options=self.options(),
        )  # fmt: skip
        self._demand_alone()

    def _demand_alone(self) -> None:
        """Raises where two settings exclude each other here."""
        tokens = {
            "payout": self.payout > 0,
            "capture='stream'": self.capture == "stream",
            "estimator='path-smoothed'": self.estimator == "path-smoothed",
        }
        for name, chosen in tokens.items():
            if self.keep_tokens and chosen:
                raise MisuseError(
                    f"keep_tokens and {name} exclude each other: a value a token is one whole "
                    "direction's product with the token's part, by a validation loss, in its step."
                )
        if self.record and self.accumulate > 1:
            raise MisuseError(
                "record and accumulate exclude each other: a recording must know each row's term "
                "in the step's loss from its own pass. Use a larger batch, or no recording."
            )

    @property
    def scoring(self) -> Scoring:
        """How much is looked at, for `inrun.attach`."""
        parts = self.rotating
        if self.max_overhead is not None:
            if self.every != 1:
                raise MisuseError("every says what max_overhead is to find out. Give one of them.")
            return Budget(self.max_overhead, validation_parts=parts)
        return Sampled(self.every, validation_parts=parts)

    def options(self, **more: Any) -> Options:
        """The rest, for `inrun.attach`."""
        whole = self.keep_tokens  # values per token need directions neither cut nor smoothed
        chosen = {"smoothed_steps": 0} if whole else {}
        return Options(
            capture=self.capture, contraction="dense" if whole else self.contraction,
            held_in=self.payout_to, progress=False, **{**chosen, **more},
        )  # fmt: skip

    def demand_place(self) -> None:
        """Looks for the folder of `payout_to`, before a training begins.

        Raises:
            StoreError: it is not there.
        """
        place = self.payout_to
        if place is not None and place != "cpu" and not Path(place).is_dir():
            raise StoreError(
                f"payout_to={place!r} is no folder. Make it, on a disk with room for the steps "
                "that wait, or name another one."
            )

    @property
    def rate(self) -> float:
        """The learning rate really used."""
        if self.learning_rate is not None:
            return self.learning_rate
        fresh = self.from_scratch or self.model == "cnn"
        return 1e-3 if fresh else 2e-4 if self.lora else 5e-5

    def write(self, folder: Path, **facts: Any) -> None:
        """Writes `config.json`; `facts` are noted beside it and not read back."""
        content = {"format": FORMAT, "train": dataclasses.asdict(self), **facts}
        (folder / CONFIG).write_text(json.dumps(content, indent=2) + "\n")


def read_config(path: Path) -> TrainConfig:
    """Reads a `config.json`, or that of a run's folder.

    Raises:
        StoreError: there is none, or it is not one.
    """
    file = path / CONFIG if path.is_dir() else path
    try:
        content = json.loads(file.read_text())
    except FileNotFoundError:
        raise StoreError(
            f"{path} has no {CONFIG}: it was not written by `inrun train`, so its model and data "
            "cannot be built again from it."
        ) from None
    except (OSError, ValueError) as error:
        raise StoreError(f"{file} cannot be read: {error}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT or "train" not in content:
        raise StoreError(f"{file} is not a configuration of format {FORMAT}.")
    known = {field.name for field in dataclasses.fields(TrainConfig)}
    strange = sorted(set(content["train"]) - known)
    if strange:
        raise StoreError(f"{file} holds settings that this version does not know: {strange}.")
    return TrainConfig(**content["train"])
