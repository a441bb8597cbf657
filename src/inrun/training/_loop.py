"""The loop behind `inrun train`: a plain one, with `inrun.attach` and what must survive a cut.

RUN/config.json         what was asked for            RUN/run.json, visits/, ledger/  the values
RUN/samples.parquet     the training samples          RUN/tokens/                     values a token
RUN/validation.parquet  those that judged             RUN/trajectory/                 a recording
RUN/checkpoint.pt       while it goes on              RUN/model/                      the result
RUN/measured.json       time, memory and disk         RUN/probabilities.parquet  of classes
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from math import isfinite
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from rich.console import Console
from torch import nn

from inrun.attribution import Attribution, Tokens, attach
from inrun.errors import NotSupportedError, StoreError
from inrun.ledger import Run, Seal, write_table
from inrun.replay import Recorder, record
from inrun.training import _checkpoint as checkpoint
from inrun.training._interrupt import Interrupt
from inrun.training._loading import Batch
from inrun.training._measured import Measured, Meter, in_bytes
from inrun.training._progress import TrainingProgress
from inrun.training._samples import Id, samples_of
from inrun.training._seen import Seen
from inrun.training._task import LanguageModel
from inrun.training._training import MODEL, TRAJECTORY, Training

SAMPLES, VALIDATION = "samples.parquet", "validation.parquet"
MEASURED, PROBABILITIES = "measured.json", "probabilities.parquet"


@dataclass(frozen=True)
class Outcome:
    """How a training ended. `score` is on the test samples: accuracy, or minus a text's loss."""

    steps: int
    score: float
    measured: Measured


class TrainingInterrupt(Exception):  # noqa: N818 (a signal, no error)
    """The user stopped the training; it can go on from its checkpoint."""


def train(training: Training, run: Path, console: Console, *, resume: bool = False) -> Outcome:
    """Trains with attribution, and writes everything into the run's folder.

    Raises:
        StoreError: the folder holds a run and is not resumed, or is resumed and holds none.
        TrainingInterrupt: by the keyboard; a checkpoint was written.
    """
    return _Loop(training, run, console, resume).run_through()


class _Loop:
    def __init__(self, training: Training, run: Path, console: Console, resume: bool):
        self.training, self.run, self.console = training, run, console
        self.config = training.config
        state = _opened(training, run, resume)
        self.meter = Meter(training.device, 0.0 if state is None else float(state["seconds"]))
        self.model, self.optimizer = training.start()
        self.steps, self.done = training.steps(), 0
        self.schedule = training.scheduler(self.optimizer, self.steps)
        if state is not None:
            self.done = int(state["done"])
            checkpoint.restore(state, self.model, self.optimizer, self.schedule)
        self._announced = False
        self.attribution = self._attach(resume)
        self.tokens = self._tokens(state)
        self.recorder = self._recorder()
        classes = len(training.splits.classes)
        self.seen = Seen(training.ids, classes, None if state is None else state["seen"])
        if state is not None:
            self.attribution.load_state_dict(state["attribution"])

    def _attach(self, resume: bool) -> Attribution:
        config = self.config
        return attach(
            self.model, self.optimizer, self.training.judged_by(), estimator=config.estimator,
            store=self.run, resume=resume, scoring=config.scoring,
            momentum_window=config.payout, options=config.options(),
        )  # fmt: skip

    def _tokens(self, state: dict[str, Any] | None) -> Tokens | None:
        if not self.config.keep_tokens:
            return None
        task = self.training.task
        assert isinstance(task, LanguageModel)
        tokens = self.attribution.per_token(task.token_terms, self.run)
        if state is not None:
            tokens.load_state_dict(state["tokens"])
        return tokens

    def _recorder(self) -> Recorder | None:
        if not self.config.record:
            return None
        training = self.training
        return record(
            self.model, self.optimizer, training.losses, training.fetch, self.run / TRAJECTORY,
            clip_norm=self.config.clip or None, weights=training.weights, steps=self.steps,
        )  # fmt: skip

    def run_through(self) -> Outcome:
        """All steps that are left, then the result."""
        saved, progress = time.monotonic(), TrainingProgress(self.console, self.steps, self.done)
        with Interrupt() as interrupt, progress:
            for parts in self._left():
                loss = self._step(parts)
                progress.step(self.done, self._facts(loss))
                if interrupt.asked or time.monotonic() - saved > self.config.save_every:
                    self._save()
                    saved = time.monotonic()
                if interrupt.asked:
                    self.attribution.detach()
                    raise TrainingInterrupt(f"after step {self.done} of {self.steps}")
        return self._finish()

    def _left(self) -> Iterator[list[list[Id]]]:
        for number, parts in enumerate(self.training.batches()):
            if number >= self.done:
                yield parts

    def _step(self, parts: Sequence[Sequence[Id]]) -> float:
        loss = 0.0
        for ids, (batch, share) in zip(parts, self.training.weighted(parts), strict=True):
            with self._watched(ids, batch, share):
                losses, logits = self.training.task.forward(self.model, batch)
                (losses.sum() * share).backward()
            loss += float(losses.detach().sum()) * share
            self.seen.add(ids, losses, logits, batch, self.training.weights(batch))
        self.training.clip(self.model)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.schedule.step()
        self.done += 1
        if self.config.payout:
            self._announce()
        self.meter.look()
        return loss

    @contextmanager
    def _watched(self, ids: Sequence[Id], batch: Batch, share: float) -> Iterator[None]:
        with ExitStack() as blocks:
            if self.recorder is not None:
                blocks.enter_context(self.recorder.batch(ids))
            blocks.enter_context(self.attribution.batch(ids))
            if self.tokens is not None:
                task = self.training.task
                assert isinstance(task, LanguageModel)
                words = [task.text.pieces(text) for text in self.training.contents(ids)]
                blocks.enter_context(self.tokens.batch(ids, batch, words, share))
            yield

    def _facts(self, loss: float) -> str:
        validation = self.attribution.latest.get("closing_loss", float("nan"))
        known = f"validation loss {validation:.4f}, " if isfinite(validation) else ""
        return f"loss {loss:.4f}, {known}attribution +{self.attribution.overhead:.0%} time"

    def _announce(self) -> None:
        """What steps that wait for momentum will take, as soon as that is known."""
        waiting = self.attribution.waiting
        if waiting["steps"] == min(2, self.config.payout) and not self._announced:
            self._announced = True
            full, disk = in_bytes(waiting["full_bytes"]), waiting["full_disk_bytes"]
            where = full + (f" and {in_bytes(disk)} on disk" if disk else "")
            self.console.print(
                f"payout={self.config.payout} will hold {where} once its window is full.",
                soft_wrap=True, highlight=False,
            )  # fmt: skip

    def _save(self) -> None:
        if self.recorder is not None:
            return
        rest: dict[str, Any] = {"attribution": self.attribution.state_dict()}
        if self.tokens is not None:
            rest["tokens"] = self.tokens.state_dict()
        checkpoint.save(
            self.run, self.model, self.optimizer, self.schedule, done=self.done,
            seen=self.seen.state(), seconds=self.meter.seconds, **rest,
        )  # fmt: skip

    def _finish(self) -> Outcome:
        overhead = self.attribution.overhead
        self.attribution.detach()
        if self.tokens is not None:
            self.tokens.flush()
        if self.recorder is not None:
            self.recorder.finish()
        seconds = self.meter.seconds
        stored = Run(self.run)
        table = stored.samples()
        assert table is not None
        for name, column in self.seen.columns().items():
            table = table.append_column(name, column)
        stored.write_samples(table)
        classes = self.training.splits.classes
        if classes:
            mean = dict(zip(classes, self.seen.probabilities.T, strict=True))
            seen = pa.table({":id": table["sample_id"]} | mean)
            write_table(self.run / PROBABILITIES, seen, Seal("probabilities"))
        self.training.task.save(self.model, self.run / MODEL)
        score = self.training.score(self.model)
        (self.run / checkpoint.CHECKPOINT).unlink(missing_ok=True)
        measured = self.meter.result(self.run, seconds, overhead, self.steps)
        content = asdict(measured) | {"score": score}
        (self.run / MEASURED).write_text(json.dumps(content, indent=2) + "\n")
        return Outcome(self.steps, score, measured)


def _opened(training: Training, run: Path, resume: bool) -> dict[str, Any] | None:
    """Makes the folder, or finds the checkpoint in it.

    Raises:
        StoreError: it holds a run that is not to be resumed, or nothing to resume.
        NotSupportedError: a recorded run is resumed.
    """
    config = training.config
    if not resume:
        if (run / "run.json").exists():
            raise StoreError(
                f"{run} holds a run already. Go on with it by --resume, or name a new folder."
            )
        run.mkdir(parents=True, exist_ok=True)
        config.write(run, versions={"torch": torch.__version__})
        trained_on = samples_of(training.splits.training, config)
        write_table(run / SAMPLES, trained_on, Seal("training"))
        write_table(run / VALIDATION, samples_of(training.judges(), config), Seal("validation"))
        return None
    if config.record:
        raise NotSupportedError(
            "A run that is recorded for look-ahead cannot be resumed yet. Start it again, or "
            "train without --record."
        )
    if (run / MODEL).exists():
        raise StoreError(f"{run} is finished: there is nothing left to train.")
    state = checkpoint.read(run)
    if state is None:
        raise StoreError(
            f"{run} has no checkpoint: it was cut off before the first one was written. Remove the "
            "folder and start again."
        )
    return state


def count_trained(model: nn.Module) -> int:
    """Elements that are trained."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
