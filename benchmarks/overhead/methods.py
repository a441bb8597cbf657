"""Ways to train a step: plainly, with a validation pass beside it, and with attribution."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import inrun
from benchmarks import data
from benchmarks.keyed import Keyed
from inrun.optim import moves, rule_for

VOCABULARY = 8192


@dataclass(frozen=True)
class Size(Keyed):
    """A model's config and a step's batch: `batch` x `tokens`, and `validation` x `tokens`.

    `kind` is gpt2 or llama, `precision` float32 or bf16 (autocast, float32 weights, tf32).
    """

    layers: int = 4
    width: int = 384
    batch: int = 8
    tokens: int = 128
    validation: int = 2
    kind: str = "gpt2"
    vocabulary: int = VOCABULARY
    precision: str = "float32"

    @property
    def words(self) -> str:
        """In a few words."""
        shape = f"{self.layers} x {self.width}, V={self.validation}"
        return f"{self.batch} x {self.tokens} tokens, {shape}"

    def model(self) -> nn.Module:
        """The model, always the same."""
        import transformers as tf

        torch.manual_seed(0)
        heads = self.width // 64
        if self.kind == "llama":
            return tf.LlamaForCausalLM(
                tf.LlamaConfig(
                    vocab_size=self.vocabulary, hidden_size=self.width,
                    intermediate_size=11 * self.width // 4, num_hidden_layers=self.layers,
                    num_attention_heads=heads, num_key_value_heads=heads,
                    max_position_embeddings=self.tokens, bos_token_id=0, eos_token_id=0,
                )
            )  # fmt: skip
        return tf.GPT2LMHeadModel(
            tf.GPT2Config(
                vocab_size=self.vocabulary, n_positions=self.tokens, n_embd=self.width,
                n_layer=self.layers, n_head=heads, resid_pdrop=0.0, embd_pdrop=0.0,
                attn_pdrop=0.0, bos_token_id=0, eos_token_id=0,
            )
        )  # fmt: skip

    def loss(self, model: nn.Module, batch: Tensor) -> Tensor:
        """Next-token cross-entropy, mean over samples and tokens."""
        half = self.precision == "bf16"
        with torch.autocast(batch.device.type, torch.bfloat16, enabled=half):
            logits = model(input_ids=batch).logits[:, :-1]
        return F.cross_entropy(logits.flatten(0, 1).float(), batch[:, 1:].flatten())

    def text(self) -> tuple[Tensor, Tensor]:
        """Sequences to train on, and validation sequences."""
        sequences = data.brown(VOCABULARY, self.tokens)
        return sequences[: -self.validation], sequences[-self.validation :]


class Method(ABC):
    """One way to train, with a model of its own.

    A column for another tool is a subclass of this in a module of one's own. It gets the same
    model, optimizer and batches. `turn`: how many steps in a row cost alike each time.
    """

    turn = 1

    def __init__(self, size: Size, device: torch.device):
        self.loss_fn = size.loss
        self.model = size.model().to(device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=3e-4)
        self.validation = size.text()[1].to(device)

    @abstractmethod
    def step(self, ids: range, batch: Tensor) -> None:
        """One optimizer step."""

    def detach(self) -> None:
        """Ends it."""
        self.optimizer.zero_grad()


class Plain(Method):
    """Training."""

    def step(self, ids: range, batch: Tensor) -> None:
        """See `Method.step`."""
        self.loss_fn(self.model, batch).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


class WithValidation(Plain):
    """Training, and a fresh validation gradient that is there in the next step."""

    gradient: tuple[Tensor, ...] = ()

    def step(self, ids: range, batch: Tensor) -> None:
        """See `Method.step`."""
        super().step(ids, batch)
        self.gradient = ()
        parameters = list(self.model.parameters())
        self.gradient = torch.autograd.grad(self.loss_fn(self.model, self.validation), parameters)


class Naive(Method):
    """Per-sample gradients, one backward pass a sample, each kept; preconditioned dot products."""

    found: dict[int, float]

    def step(self, ids: range, batch: Tensor) -> None:
        """See `Method.step`."""
        parameters = list(self.model.parameters())
        opening = torch.autograd.grad(self.loss_fn(self.model, self.validation), parameters)
        shares = [
            torch.autograd.grad(self.loss_fn(self.model, row[None]) / len(batch), parameters)
            for row in batch
        ]
        for k, p in enumerate(parameters):
            p.grad = torch.stack([share[k] for share in shares]).sum(0)
        with torch.no_grad():
            slopes = [move.slope() for _, move in moves(self.optimizer, rule_for(self.optimizer))]
            self.found = {
                sample: sum(
                    float((slope.transposed(g[None])[0] * c).sum())
                    for slope, g, c in zip(slopes, opening, share, strict=True)
                )
                for sample, share in zip(ids, shares, strict=True)
            }
        self.optimizer.step()
        self.optimizer.zero_grad()


class Attributed(Method):
    """Training with `inrun` attached."""

    def __init__(self, size: Size, device: torch.device, exact: int = 10):
        super().__init__(size, device)
        self.attribution = self.attach(exact)

    def attach(self, exact: int) -> inrun.Attribution:
        """Attached; `exact` as of `scoring`."""
        return inrun.attach(
            self.model,
            self.optimizer,
            inrun.Utility(self.loss_fn, self.validation),
            scoring=self.scoring(exact),
            options=inrun.Options(smoothed_steps=0, progress=False),
        )

    @abstractmethod
    def scoring(self, exact: int) -> inrun.EveryStep | inrun.Window:
        """How much is looked at; `exact`: how many first steps one by one."""

    def step(self, ids: range, batch: Tensor) -> None:
        """See `Method.step`."""
        with self.attribution.batch(ids):
            self.loss_fn(self.model, batch).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def detach(self) -> None:
        """See `Method.detach`."""
        self.attribution.detach()


class EveryStep(Attributed):
    """The default."""

    def scoring(self, exact: int) -> inrun.EveryStep | inrun.Window:
        """See `Attributed.scoring`."""
        return inrun.EveryStep()


class _Windowed(Attributed):
    steps: int | str

    def scoring(self, exact: int) -> inrun.EveryStep | inrun.Window:
        """See `Attributed.scoring`."""
        return inrun.Window(self.steps, exact=exact)


def _windowed(steps: int | str) -> type[Method]:
    """In windows, a whole one a turn."""
    turn = steps if isinstance(steps, int) else 20
    return type(f"Window{steps}", (_Windowed,), {"steps": steps, "turn": turn})


WITH_VALIDATION, EVERY, NAIVE = "plain + validation", "every step", "naive"
METHODS: dict[str, type[Method]] = {
    WITH_VALIDATION: WithValidation,
    EVERY: EveryStep,
    **{f"window {n}": _windowed(n) for n in (1, 2, 5, 10, 20, "auto")},
    NAIVE: Naive,
}


def method_of(name: str) -> type[Method]:
    """A method by its name, or another tool's.

    Args:
        name: one of `METHODS`, 'plain', or `module:Class`, a subclass of `Method`; its module is
            looked for as python does.
    """
    if ":" not in name:
        return Plain if name == "plain" else METHODS[name]
    module, kind = name.split(":")
    found: type[Method] = getattr(importlib.import_module(module), kind)
    return found
