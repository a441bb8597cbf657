"""The Trainer of `transformers` on our rows, scored by our callback, and what a run keeps beside.

The loss is each label's over the number of labels in the whole step, whatever the passes and
processes it is spread over. `RunScoring` is the callback: it keeps what training met at each row,
values for each token, a recording, and saves all of it with the Trainer's checkpoints.
"""

from __future__ import annotations

from inrun.errors import require_extra

require_extra("train", "transformers", "accelerate")

# ruff: noqa: E402 - an extra that is not there is named before anything of it is imported

import shlex
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import reduce
from rich.console import Console
from torch import Tensor, nn
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainingArguments

from inrun.attribution import Tokens
from inrun.integrations.transformers import InRun
from inrun.ledger import Jumps, pack_state, read_state, unpack_state, write_state
from inrun.replay import Recorder, record
from inrun.training._checkpoints import STATE, checksums
from inrun.training._models import INPUTS, quiet
from inrun.training._samples import Sample
from inrun.training._seen import Seen
from inrun.training._training import TRAJECTORY, Training

APART = 20  # steps between two jumps of the loss that are told


class RowTrainer(Trainer):
    """The Trainer on samples; with `scoring` each pass is also told to what a run keeps."""

    def __init__(
        self,
        training: Training,
        model: nn.Module,
        arguments: TrainingArguments,
        samples: Sequence[Sample],
        scoring: RunScoring | None = None,
        callbacks: Sequence[Any] = (),
    ):
        self._training, self._scoring = training, scoring
        super().__init__(
            model, arguments, data_collator=training.task, train_dataset=self._items(samples),
            eval_dataset=self._items(training.judges()), compute_loss_func=self._loss,
            callbacks=[*callbacks, *([scoring] if scoring else [])],
            processing_class=training.task.processor,
        )  # fmt: skip
        self.remove_callback(PrinterCallback)

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> Tensor:
        """One forward and backward pass; see `Trainer`."""
        with ExitStack() as self._pass:
            return super().training_step(model, inputs, num_items_in_batch)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Any,
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """See `Trainer`; what a run keeps of the pass is open until its backward pass is over."""
        if self._scoring is not None and torch.is_grad_enabled():
            self._scoring.enter(self._pass, inputs, num_items_in_batch)
        self._batch = dict(inputs)
        given = {name: t for name, t in inputs.items() if name in (*INPUTS, "labels")}
        return super().compute_loss(model, given, return_outputs, num_items_in_batch)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """See `Trainer`; without its bar, also where a checkpoint is written."""
        with quiet():
            super().save_model(output_dir, _internal_call)

    def _loss(self, outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
        objective, batch = self._training.task.objective, self._batch
        losses = objective.losses(outputs["logits"], batch)
        if self._scoring is not None and torch.is_grad_enabled():
            self._scoring.note(losses.detach(), outputs["logits"].detach(), batch)
        count = objective.known(batch).sum() if num_items_in_batch is None else num_items_in_batch
        return losses.sum() / count

    def _items(self, samples: Sequence[Sample]) -> list[dict[str, Any]]:
        """Samples as the callback tells them apart: by the key `sample_id`."""
        task = self._training.task
        return [{"sample_id": sample.id, **task.item(sample)} for sample in samples]


class RunScoring(InRun):
    """Scores a run of `inrun train`, and keeps what else its folder is to hold.

    Args:
        training: what is trained.
        run: its folder.
        console: where the lines go that say how far it is.
        at: is told what is being done.
    """

    def __init__(self, training: Training, run: Path, console: Console, at: Callable[[str], None]):
        config = training.config
        super().__init__(
            training.utility(), ids="sample_id", store=run, **config.attach_settings()
        )  # fmt: skip
        self._training, self._run, self._console, self._at = training, run, console, at
        self.seen = Seen(training.places(), len(training.columns))
        self.interrupted, self.overhead, self._before = False, 0.0, 0.0
        self._began = self._saved = time.monotonic()
        self._tokens: Tokens | None = None
        self._recorder: Recorder | None = None
        self._jumps, self._jumped = Jumps(), -APART
        self.ids: Sequence[Any] = ()  # of the pass under way

    @property
    def seconds(self) -> float:
        """So far, those before a cut included."""
        return self._before + time.monotonic() - self._began

    # ---- called by the trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Attaches, and goes on with a checkpoint's state where there is one."""
        self._began = self._saved = time.monotonic()
        training, config = self._training, self._training.config
        self._at("attaching, with a check on a few validation rows")
        if config.record:  # before there are hooks, since it copies the model
            self._recorder = record(
                kwargs["model"], kwargs["optimizer"].optimizer, training.losses, training.fetch,
                self._run / TRAJECTORY, clip_norm=config.clip or None, weights=training.weights,
                steps=state.max_steps,
            )  # fmt: skip
        super().on_train_begin(args, state, control, **kwargs)
        if config.audit:
            left = state.max_steps - state.global_step
            self.attribution.audit(seconds=config.audit_seconds, steps=left, seed=config.seed)
        if config.keep_tokens:
            self._tokens = self.attribution.per_token(training.label_losses, self._run)
        if state.global_step:
            self._restore(_checkpoint(args, state), state.is_world_process_zero)
        self._at(f"step {state.global_step + 1} of {state.max_steps}, the first, is the longest")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Saves once in a while; after the keyboard's interrupt saves and stops.

        A step whose loss jumped is told.
        """
        row = self.attribution.latest
        self._at(self._words(state))
        words = self._jumps.words(row) if row.get("step") == state.global_step else None
        if words and state.global_step - self._jumped >= APART:
            self._jumped = state.global_step
            words = words.replace("explain RUN", f"explain {shlex.quote(str(self._run))}")
            self._console.print(
                words, style="yellow", soft_wrap=True, highlight=False, markup=False
            )
        stop, save = self.interrupted, self._due()
        if args.world_size > 1:  # all processes do the same
            asked = torch.tensor([stop, save], dtype=torch.float, device=args.device)
            stop, save = (n > 0 for n in reduce(asked, "sum").tolist())
        self.interrupted = stop
        control.should_training_stop = control.should_training_stop or stop
        if (stop or save) and self._recorder is None:
            control.should_save = True

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """See `InRun`; and a line for people."""
        super().on_log(args, state, control, logs, **kwargs)
        if "loss" in (logs or {}):
            loss, took = f"loss {float(logs['loss']):.4f}, ", f"{self.seconds:.0f} s, "
            words = self._words(state, loss, took)
            self._console.print(words, soft_wrap=True, highlight=False)
        elif "eval_loss" in (logs or {}):
            self._console.print(f"evaluation: loss {logs['eval_loss']:.4f}", highlight=False)

    def _words(self, state: Any, loss: str = "", took: str = "") -> str:
        """How far it is."""
        validation = self.attribution.latest.get("closing_loss", float("nan"))
        known = f"validation loss {validation:.4f}, " if isfinite(validation) else ""
        left = self.seconds / state.global_step * (state.max_steps - state.global_step)
        return (
            f"step {state.global_step} of {state.max_steps}: {loss}{known}attribution "
            f"+{self.attribution.overhead:.0%} time; {took}about {left:.0f} s left"
        )

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """See `InRun`, whose state is written last: a checkpoint that has it is whole."""
        header: dict[str, Any] = {
            "seconds": self.seconds, "tokens": self._tokens and self._tokens.state_dict(),
        }  # fmt: skip
        sums = reduce(self.seen.sums.to(args.device), "sum").cpu()
        if state.is_world_process_zero:
            folder = _checkpoint(args, state)  # in which all processes have written theirs by now
            header["files"] = checksums(folder)
            write_state(folder / STATE, pack_state(header, {"seen": sums}))
        super().on_save(args, state, control, **kwargs)
        self._saved = time.monotonic()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Detaches, once all values are stored."""
        self.overhead = self.attribution.overhead
        super().on_train_end(args, state, control, **kwargs)
        if self._tokens is not None:
            self._tokens.flush()
        if self._recorder is not None and not self.interrupted:
            self._recorder.finish()
        self.seen.sums = reduce(self.seen.sums.to(args.device), "sum").cpu()

    def _due(self) -> bool:
        return time.monotonic() - self._saved > self._training.config.save_every

    def _before_loss(self, owned: Any) -> None:
        self.ids = owned.ids
        super()._before_loss(owned)

    def _restore(self, folder: Path, first: bool) -> None:
        header, tensors = unpack_state(read_state(folder / STATE))
        self._before = header["seconds"]
        if first:  # sums of all processes are added in the end
            self.seen.sums = tensors["seen"]
        if self._tokens is not None:
            self._tokens.load_state_dict(header["tokens"])

    # ---- called in a pass

    def note(self, losses: Tensor, logits: Tensor, batch: dict[str, Any]) -> None:
        """What training met at the labels of a pass; of texts a row's tokens are one."""
        objective = self._training.task.objective
        if self._training.has_tokens:
            losses = objective.mean(losses, batch).unsqueeze(1)
            known, columns = torch.ones_like(losses, dtype=torch.bool), losses[:, :, None][:, :, :0]
        else:
            known, columns = objective.known(batch), objective.met(logits, batch)
        self.seen.add(self.ids, losses, known, columns)

    def enter(self, blocks: ExitStack, batch: dict[str, Any], count: Any) -> None:
        """Enters what is put round a pass; `count` labels are in the whole step."""
        if self._recorder is not None:
            blocks.enter_context(self._recorder.batch(self.ids))
        if self._tokens is not None:
            words = self._training.pieces(self.ids)
            blocks.enter_context(self._tokens.batch(self.ids, dict(batch), words, 1 / float(count)))


def _checkpoint(args: TrainingArguments, state: Any) -> Path:
    return Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"


class Bar(ProgressCallback):
    """The Trainer's bar alone: what it logs is said in lines of our own."""

    def on_log(self, *_: Any, **__: Any) -> None:
        """Says nothing."""


@contextmanager
def interruptible(scoring: RunScoring) -> Iterator[None]:
    """The first Ctrl-C ends the training after its step; a second is a KeyboardInterrupt."""
    if threading.current_thread() is not threading.main_thread():  # elsewhere none can be set
        yield
        return

    def note(*_: Any) -> None:
        scoring.interrupted = True
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
