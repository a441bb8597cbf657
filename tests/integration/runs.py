"""Small training runs on which values are compared with exact Shapley values, float64."""

import torch
import torch.nn.functional as F
from torch import nn

import inrun
from tests.oracles import shapley
from tests.oracles import shares as oracle
from tests.oracles.cases import gpt2, llama
from tests.settings import flat

SAMPLES = 6


def mlp():
    return nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 4))


def cnn():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(24, 4),
    )  # fmt: skip


def clusters(*shape):
    """Inputs near one of four centres, a few labels wrong."""

    def draw(generator, samples):
        centres = torch.randn(4, *shape, generator=torch.Generator().manual_seed(9)).double()
        y = torch.randint(4, (samples,), generator=generator)
        x = centres[y] + torch.randn(samples, *shape, generator=generator).double()
        wrong = torch.rand(samples, generator=generator) < 0.2
        return x, torch.where(wrong, (y + 1) % 4, y)

    return draw


def language(generator, samples):
    """Counting up from a random token, with noise."""
    start = torch.randint(23, (samples, 1), generator=generator)
    x = (start + torch.arange(6)) % 23
    noise = torch.rand(x.shape, generator=generator) < 0.15
    return (torch.where(noise, torch.randint(23, x.shape, generator=generator), x),)


def classify(model, x, y):
    return F.cross_entropy(model(x), y, reduction="none")


def predict_next(model, x):
    logits = model(input_ids=x).logits[:, :-1]
    return F.cross_entropy(logits.transpose(1, 2), x[:, 1:], reduction="none").mean(1)


RUNS = {
    "mlp": (mlp, clusters(12), classify),
    "cnn": (cnn, clusters(1, 8, 8), classify),
    "gpt2-tied": (gpt2, language, predict_next),
    "llama": (llama, language, predict_next),
}


def adamw(model):
    return torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1, betas=(0.9, 0.99))


class Run:
    """A training run with clipping, attribution attached, and the truth of chosen steps.

    `played` keeps what the coalitions of a step came to, and its weights, for other runs of the
    same training: no estimator changes it, and both games are in one table.
    """

    def __init__(
        self, name, estimator, capture="hold", optimizer=adamw, samples=SAMPLES, played=None,
        **options,
    ):  # fmt: skip
        build, self.draw, self.terms = RUNS[name]
        self.played, self.taken = {} if played is None else played, 0
        torch.manual_seed(0)
        self.model = build().double()
        self.optimizer = optimizer(self.model)
        self.samples = samples
        self.generator = torch.Generator().manual_seed(3)
        self.validation = self.draw(self.generator, 24)
        self.attribution = inrun.attach(
            self.model,
            self.optimizer,
            inrun.Utility(self.loss_fn, self.validation),
            estimator=estimator,
            **flat(capture=capture, progress=False, **options),
        )
        self.total = torch.zeros(samples, dtype=torch.float64)

    def loss_fn(self, model, batch):
        return self.terms(model, *batch).mean()

    def step(self, game=None):
        """(values, exact values or None) of one step."""
        self.taken += 1
        batch = self.draw(self.generator, self.samples)
        with self.attribution.batch(range(self.samples)):
            self.loss_fn(self.model, batch).backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), 0.5)
        truth = self.truth(batch, float(norm), game) if game else None
        self.optimizer.step()
        self.optimizer.zero_grad()
        before, self.total = self.total, torch.tensor(self.attribution.values()["value"].to_numpy())
        return self.total - before, truth

    def truth(self, batch, norm, game):
        if self.taken not in self.played:
            weights = [p.detach().clone() for p in self.model.parameters()]
            self.played[self.taken] = (weights, self.coalitions(batch, norm))
        weights, table = self.played[self.taken]
        assert all(
            torch.equal(*pair) for pair in zip(weights, self.model.parameters(), strict=True)
        )
        return shapley.values_of(table, game)

    def coalitions(self, batch, norm):
        clip = min(1.0, 0.5 / (norm + 1e-6)) / self.samples
        parameters = dict(self.model.named_parameters())
        shares = oracle.shares(
            self.model, lambda m, rows: clip * self.terms(m, *[t[rows] for t in batch]),
            self.samples, parameters,
        )  # fmt: skip
        judge = lambda m: self.loss_fn(m, self.validation)  # noqa: E731
        return shapley.utility_table(self.model, self.optimizer, shares, judge)


def agreement(name, estimator, game, steps, **options):
    """[(step, Pearson R, ratio of sums)] at the given steps."""
    run, found = Run(name, estimator, **options), []
    for step in range(1, max(steps) + 1):
        values, truth = run.step(game if step in steps else None)
        if truth is not None:
            r = float(torch.corrcoef(torch.stack([values, truth]))[0, 1])
            found.append((step, r, float(values.sum() / truth.sum())))
    return found, run
