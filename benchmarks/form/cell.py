"""One cell: values of every group of rows for every group of questions, and trainings without."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import inrun
from benchmarks.form.rows import Group, drawn

WIDTH, LAYERS, HEADS, BATCH, EPOCHS, RATE = 32, 2, 2, 16, 40, 2e-3
METHODS = ("path, total", "look-ahead")

Batch = tuple[Tensor, Tensor]


def terms(model: nn.Module, batch: Batch) -> Tensor:
    """Each row's loss: of the word after the prompt."""
    logits: Any = model(input_ids=batch[0]).logits[:, -1]
    return F.cross_entropy(logits, batch[1], reduction="none")


def loss_fn(model: nn.Module, batch: Batch) -> Tensor:
    """Mean loss."""
    return terms(model, batch).mean()


def losses(model: nn.Module, batch: Batch) -> Tensor:
    """Terms that add up to the training loss."""
    return terms(model, batch) / len(batch[1])


class Experiment:
    """One draw of facts and of everything else."""

    def __init__(self, seed: int, epochs: int = EPOCHS):
        self.seed, self.epochs = seed, epochs
        self.rows, self.asked, self.words = drawn(seed)

    @property
    def groups(self) -> list[Group]:
        """Tasks in formats."""
        return list(dict.fromkeys(self.rows.groups))

    def start(self) -> tuple[nn.Module, torch.optim.Optimizer]:
        """A small random Llama and its optimizer."""
        from transformers import LlamaConfig, LlamaForCausalLM

        torch.manual_seed(self.seed)
        model = LlamaForCausalLM(LlamaConfig(
            vocab_size=self.words, hidden_size=WIDTH, intermediate_size=2 * WIDTH,
            num_hidden_layers=LAYERS, num_attention_heads=HEADS, num_key_value_heads=HEADS,
            tie_word_embeddings=True, pad_token_id=None, bos_token_id=None, eos_token_id=None,
        )).train()  # fmt: skip
        return model, torch.optim.AdamW(model.parameters(), RATE, weight_decay=0.01)

    def train(
        self,
        rows: Tensor,
        watch: Callable[[nn.Module, torch.optim.Optimizer], Any] | None = None,
    ) -> tuple[nn.Module, Any]:
        """A training on some rows, and what watched it."""
        model, optimizer = self.start()
        watching = watch(model, optimizer) if watch else None
        generator = torch.Generator().manual_seed(self.seed)
        for _ in range(self.epochs):
            for ids in rows[torch.randperm(len(rows), generator=generator)].split(BATCH):
                if watching is None:
                    loss_fn(model, self.rows.batch(ids)).backward()
                else:
                    with watching.batch(ids.tolist()):
                        loss_fn(model, self.rows.batch(ids)).backward()
                optimizer.step()
                optimizer.zero_grad()
        return model, watching

    def utility(self) -> inrun.Utility:
        """A target per group of questions."""
        return inrun.Utility(
            loss_fn, targets={told(g): self.asked.batch(self.asked.of(g)) for g in self.groups}
        )

    def fetch(self, ids: Any) -> Batch:
        """A training batch."""
        return self.rows.batch(torch.as_tensor(ids))

    def answered(self, model: nn.Module) -> dict[str, dict[str, float]]:
        """Loss and share of right answers by group of questions."""
        model.eval()
        found = {}
        with torch.no_grad():
            for group in self.groups:
                batch = self.asked.batch(self.asked.of(group))
                logits = model(input_ids=batch[0]).logits[:, -1]
                found[told(group)] = {
                    "loss": float(F.cross_entropy(logits, batch[1])),
                    "right": float((logits.argmax(1) == batch[1]).float().mean()),
                }
        return found


def told(group: Group) -> str:
    """A group's name."""
    return " ".join(group)


def values(experiment: Experiment) -> dict[str, np.ndarray]:
    """By method, (targets, rows): what each row took off each group of questions."""
    everything = torch.arange(len(experiment.rows.answers))
    utility = experiment.utility()
    _, attribution = experiment.train(
        everything,
        lambda model, optimizer: inrun.attach(
            model, optimizer, utility, options=inrun.Options(progress=False)
        ),
    )
    attribution.detach()
    _, recorder = experiment.train(
        everything,
        lambda model, optimizer: inrun.record(model, optimizer, losses, experiment.fetch),
    )
    tables = (attribution.values(), inrun.lookahead(recorder.finish(), utility).values())
    return {
        method: np.stack([table.sort_by("sample_id")[n].to_numpy() for n in utility.targets])
        for method, table in zip(METHODS, tables, strict=True)
    }


def measure(key: str) -> dict[str, Any]:
    """By target and group of rows: the values' sums, and what training without the group does.

    Half of a group's rows are left out, those of facts that are trained in both formats, so that
    no question's own fact is among them.
    """
    return measured(Experiment(int(key.removeprefix("seed="))))


def measured(experiment: Experiment) -> dict[str, Any]:
    """What `measure` returns, of any experiment."""
    rows, names = experiment.rows, [told(g) for g in experiment.groups]
    everything = torch.arange(len(rows.answers))
    full = experiment.answered(experiment.train(everything)[0])
    found = values(experiment)
    truth, sums = {}, {method: {} for method in METHODS}
    for group in experiment.groups:
        gone = left_out(experiment, group)
        without = experiment.answered(
            experiment.train(everything[~torch.isin(everything, gone)])[0]
        )
        truth[told(group)] = {n: without[n]["loss"] - full[n]["loss"] for n in names}
        for method, each in found.items():
            part = each[:, gone.numpy()].sum(1)
            sums[method][told(group)] = dict(zip(names, part.tolist(), strict=True))
    return {
        "answered": full,
        "sums": sums,
        "retrained": truth,
        "own fact": {method: own_ranks(experiment, each) for method, each in found.items()},
    }


def left_out(experiment: Experiment, group: Group) -> Tensor:
    """A group's rows whose facts nobody asks for."""
    asked = set(experiment.asked.facts)
    return torch.tensor([
        i for i in experiment.rows.of(group).tolist() if experiment.rows.facts[i] not in asked
    ])  # fmt: skip


def own_ranks(experiment: Experiment, each: np.ndarray) -> list[float]:
    """Of each group's questions: the mean rank of their own facts' rows, over the mean of all.

    1 is chance; those rows are in the other format.
    """
    found = []
    for number, group in enumerate(experiment.groups):
        own = {experiment.asked.facts[i] for i in experiment.asked.of(group).tolist()}
        rows = [i for i, fact in enumerate(experiment.rows.facts) if fact in own]
        rank = np.empty(each.shape[1])
        rank[np.argsort(-each[number])] = np.arange(1, each.shape[1] + 1)
        found.append(float(rank[rows].mean() / rank.mean()))
    return found
