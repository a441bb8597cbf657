"""What a run of `inrun train` was asked for: kept as `config.json` beside its results.

The file is all that it takes to do the same again (`inrun train --config RUN/config.json`), and to
build model, data and losses once more for whatever is asked of the run later. Each setting is a
field with its help text; the command line is made of them.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from inrun.attribution import Budget, EveryStep, Options, Sampled, Scoring, require_settings
from inrun.errors import MisuseError, StoreError, require_one_of
from inrun.ledger import read_document, write_document

CONFIG, PROBABILITIES = "config.json", "probabilities.parquet"
FORMAT = 2
TASKS = (
    "text-classification", "regression", "multi-label", "token-classification", "causal-lm", "chat",
    "preference", "image-classification",
)  # fmt: skip
ONE_CLASS = ("text-classification", "image-classification")  # tasks whose labels are classes
SPLIT_OFF = 0.1  # of the training rows, for each of validation and test that was not given
PART = "Rows given likewise; else a tenth of the training rows is split off."


def _setting(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides what a run does.

    The fields are the options of `inrun train --help`, where each is explained; `task`, `model` and
    `data` must be given.
    """

    task: str = field(metadata={"help": f"{', '.join(TASKS)}; else seen from the data."})
    model: str = field(metadata={"help": "Folder or hub name for transformers; for images or cnn."})
    data: str = field(
        metadata={
            "help": "Training rows: CSV, JSONL or Parquet file, saved `datasets` folder, folder of "
            "images, hub name."
        }
    )
    validation: str | None = _setting(None, f"The rows that judge. {PART}")
    test: str | None = _setting(None, f"The rows of the score at the end. {PART}")
    text_column: str = _setting("text", "Its name in the data (tokens, messages likewise).")
    label_column: str = _setting("label", "Its name in the data (tags likewise).")
    id_column: str | None = _setting(None, "Its name in the data; row numbers where not given.")
    source_column: str | None = _setting(None, "Who provided a row, for `inrun rollup`.")
    target_column: str | None = _setting(
        None, "Of the validation rows: one target for each of its values, in place of the classes."
    )
    judge: str = _setting(
        "training", "What each class counts: training, its share of the training rows; or even."
    )
    validation_rows: int = _setting(200, "At most so many are passed in each scored step.")
    from_scratch: bool = _setting(False, "Draw the weights; needs the model's config.json only.")
    tokenizer: str | None = _setting(None, "Folder or name, where it is not the model's own.")
    max_length: int | None = _setting(
        None,
        "Tokens of a text; longer ones are cut. Default: 128 (chat, preference: 1024), or the "
        "model's most.",
    )
    lora: int = _setting(0, "Rank of LoRA's matrices; 0 trains all weights.")
    epochs: int = _setting(3, "How often each row is trained on.")
    batch: int = _setting(16, "Rows of one forward pass on one device.")
    accumulate: int = _setting(1, "Forward passes of one step.")
    learning_rate: float | None = _setting(
        None,
        "Default: 5e-5 for pretrained weights, 2e-4 for LoRA (preference: 1e-6, 1e-5), 1e-3 "
        "from scratch.",
    )
    weight_decay: float = _setting(0.01, "Of all weights but biases and norms.")
    warmup: float = _setting(0.05, "Share of the steps in which the learning rate rises.")
    clip: float = _setting(1.0, "The gradient's largest norm; 0 does not clip.")
    seed: int = _setting(0, "Of start, order and split.")
    device: str = _setting("auto", "cpu, cuda, ...; auto: an accelerator if there is one.")
    trainer: dict[str, Any] = field(
        default_factory=dict,
        metadata={
            "help": "Any other argument of transformers.TrainingArguments, as bf16=true; may be "
            "repeated."
        },
    )
    estimator: str = _setting("path", "How a value is computed: docs/methods.md.")
    capture: str = _setting("hold", "hold, offload or stream: docs/evidence/cost.md.")
    contraction: str = _setting("auto", "auto or dense.")
    scored: float = _setting(1, "Score one random step in so many; below 1, this share of steps.")
    budget: float | None = _setting(
        None, "Score as much as this share of the training's time pays for, as 0.05."
    )
    validation_parts: int = _setting(1, "Each validation pass looks at one of so many parts.")
    momentum_window: int = _setting(
        0, "Steps for which a row is also given what momentum does for it later."
    )
    held_in: str | None = _setting(
        None, "Where the momentum window's steps wait: cpu, or a folder. Default: as --capture."
    )
    gradient_sizes: bool = _setting(
        False, "Keep the size of each row's own gradient, for the ranking 'gradient'."
    )
    keep_tokens: bool = _setting(False, "Values for each token (causal-lm).")
    record: bool = _setting(False, "Record the run, for look-ahead.")
    audit: bool = _setting(
        False, "Check values at random steps against exact ones, for `inrun audit`."
    )
    audit_seconds: float = _setting(20.0, "What all of these checks together may take.")
    save_every: float = _setting(60.0, "Seconds between checkpoints.")
    skip_bad_rows: bool = _setting(False, "Leave them out instead of stopping.")
    pictures: str | None = _setting(
        None, "Where files that rows name must lie. Default: the data's own folder alone."
    )

    def __post_init__(self) -> None:
        """Checks the numbers, and what goes together, before anything is loaded.

        Raises:
            MisuseError: one that makes no sense, named, or two that exclude each other.
        """
        require_one_of("task", self.task, TASKS)
        require_one_of("judge", self.judge, ("training", "even"))
        for name in ("epochs", "batch", "accumulate", "validation_rows", "max_length"):
            if (getattr(self, name) or 1) < 1 or getattr(self, name) == 0:
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
        if self.keep_tokens and self.task not in ("causal-lm", "chat"):
            raise MisuseError(
                "keep_tokens is for causal-lm and chat, where each token has a loss term."
            )
        require_settings(**self.attach_settings())
        if self.keep_tokens:
            self._require_tokens()
        if self.record and self.accumulate > 1:
            raise MisuseError(
                "record and accumulate exclude each other: a recording must know each row's term "
                "in the step's loss from its own pass. Use a larger batch, or no recording."
            )

    def _require_tokens(self) -> None:
        """Raises where values for each token cannot be had with another setting."""
        others = {
            "momentum_window": self.momentum_window > 0,
            "capture='stream'": self.capture == "stream",
            "estimator='path-smoothed'": self.estimator == "path-smoothed",
        }
        for name in (name for name, chosen in others.items() if chosen):
            raise MisuseError(
                f"keep_tokens and {name} exclude each other: a token's value is one whole "
                "direction's product with the token's part, by a validation loss, in its step."
            )

    def attach_settings(self) -> dict[str, Any]:
        """What `inrun.attach` is told, apart from model, optimizer, utility and store."""
        whole = self.keep_tokens  # values for each token: directions neither cut nor smoothed
        return {
            "estimator": self.estimator, "scoring": self._scoring(),
            "momentum_window": self.momentum_window,
            "options": Options(
                capture=self.capture, contraction="dense" if whole else self.contraction,
                held_in=self.held_in, gradient_sizes=self.gradient_sizes, progress=False,
                smoothed_steps=0 if whole else Options.smoothed_steps,
            ),
        }  # fmt: skip

    def _scoring(self) -> Scoring:
        parts = self.validation_parts
        if self.budget is None:
            return EveryStep(validation_parts=parts) if self.scored == 1 else Sampled(
                self.scored, validation_parts=parts
            )  # fmt: skip
        if self.scored != 1:
            raise MisuseError("scored says what budget is to find out. Give one of them.")
        return Budget(self.budget, validation_parts=parts)

    def require_place(self) -> None:
        """Looks for the folder of `held_in`, before a training begins.

        Raises:
            StoreError: it is not there.
        """
        place = self.held_in
        if place is not None and place != "cpu" and not Path(place).is_dir():
            raise StoreError(
                f"held_in={place!r} is no folder. Make it, on a disk with room for the steps "
                "that wait, or name another one."
            )

    @property
    def rate(self) -> float:
        """The learning rate really used."""
        if self.learning_rate is not None:
            return self.learning_rate
        if self.from_scratch or self.model == "cnn":
            return 1e-3
        whole, lora = (1e-6, 1e-5) if self.task == "preference" else (5e-5, 2e-4)
        return lora if self.lora else whole

    def write(self, folder: Path, **facts: Any) -> None:
        """Writes `config.json`; `facts` are noted beside it and not read back."""
        content = {"format": FORMAT, "train": dataclasses.asdict(self), **facts}
        write_document(folder / CONFIG, content)


def read_config(path: Path) -> TrainConfig:
    """Reads that of a run's folder, which must be as it was written, or a file that one may edit.

    Raises:
        StoreError: there is none, it is not one, or that of a run was changed.
    """
    file = path / CONFIG if path.is_dir() else path
    if not file.exists():
        raise StoreError(
            f"{path} has no {CONFIG}: it was not written by `inrun train`, so its model and data "
            "cannot be built again from it."
        )
    try:
        content = read_document(file) if path.is_dir() else json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise StoreError(f"{file} cannot be read: {error}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT or "train" not in content:
        raise StoreError(f"{file} is not a configuration of format {FORMAT}.")
    known = {setting.name for setting in dataclasses.fields(TrainConfig)}
    strange = sorted(set(content["train"]) - known)
    if strange:
        raise StoreError(f"{file} holds settings that this version does not know: {strange}.")
    return TrainConfig(**content["train"])
