"""Look-ahead against training again with another weight on one sample, float64."""

import numpy as np
import pytest
import torch
from torch import nn

import inrun
from tests.integration.runs import RUNS
from tests.oracles.trajectories import Training

SAMPLES, STEPS = 12, 6


def llama_in_double():
    """Llama with norms in the model's own precision: its own go through float32, whose rounding a
    central difference would magnify.
    """
    model = RUNS["llama"][0]()
    for parent in list(model.modules()):
        for name, module in list(parent.named_children()):
            if type(module).__name__ == "LlamaRMSNorm":
                norm = nn.RMSNorm(module.weight.shape, eps=module.variance_epsilon)
                setattr(parent, name, norm)
    return model


MODELS = RUNS | {"llama": (llama_in_double, *RUNS["llama"][1:])}


def adamw(model):
    return torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.1, betas=(0.8, 0.95))


def adam(model):
    return torch.optim.Adam(model.parameters(), lr=3e-3, weight_decay=0.1, betas=(0.8, 0.95))


def momentum(model):
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)


def groups(model):
    """Two groups of other rates and decay, one with amsgrad."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim <= 1]
    return torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.3}, {"params": rest, "lr": 1e-2, "amsgrad": True}],
        lr=3e-3, betas=(0.8, 0.95),
    )  # fmt: skip


def training(name, optimizer=adamw, clip=None, blocks=1, steps=STEPS, rows=4):
    """Batches over a few samples, so that each comes several times."""
    build, draw, terms = MODELS[name]
    generator = torch.Generator().manual_seed(4)
    data = draw(generator, SAMPLES + 10)
    batches = []
    while len(batches) < steps:
        order = torch.randperm(SAMPLES, generator=generator)[: rows * blocks]
        batches.append([block.tolist() for block in order.split(rows)])
    return Training(build, optimizer, terms, data, batches, clip)


def judge(train, model, first=SAMPLES, last=SAMPLES + 10):
    return train.terms(model, *[t[first:last] for t in train.data]).mean()


def utility(train):
    return inrun.Utility(
        lambda model, batch: train.terms(model, *batch).mean(),
        tuple(t[SAMPLES:] for t in train.data),
    )


def recorded(train, **options):
    return train.record(
        lambda model, optimizer: inrun.record(
            model, optimizer, train.losses, train.fetch, clip_norm=train.clip, **options
        )
    )


def truth(train, samples, states, removal):
    """{state: values of the samples}: what taking each out would do to first order."""
    renormalise = removal == "renormalise"
    rows = len(train.batches[0][0])
    scale = rows / (rows - 1) if renormalise else 1.0
    slopes = [train.slope(i, lambda m: judge(train, m), states, renormalise) for i in samples]
    return {s: np.array([-scale * slope[s] for slope in slopes]) for s in states}


def values_of(result, samples):
    found = result.values()
    by_id = dict(zip(found["sample_id"].to_pylist(), found["value"].to_pylist(), strict=True))
    return np.array([by_id.get(i, 0.0) for i in samples])


def close(found, wanted, tolerance=1e-5):
    assert np.abs(found - wanted).max() <= tolerance * np.abs(wanted).max(), (found, wanted)


CASES = [(name, optimizer, {}) for name in MODELS for optimizer in (adamw, adam, momentum)]
CASES += [(name, adamw, {"clip": 0.3, "blocks": 2}) for name in MODELS]
CASES += [
    ("mlp", groups, {}), ("mlp", momentum, {"clip": 0.3}), ("mlp", adam, {"blocks": 2}),
    ("mlp", groups, {"clip": 0.3, "blocks": 2}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "optimizer", "how"), CASES, ids=lambda x: getattr(x, "__name__", str(x))
)
def test_values_are_central_differences_of_training_again(name, optimizer, how):
    train, chosen = training(name, optimizer, **how), (0, 3, 7)
    run = recorded(train)
    if "clip" in how:
        assert min(step.clip for step in run.steps) < 0.9
    wanted = truth(train, chosen, [STEPS], "drop")[STEPS]
    close(values_of(inrun.lookahead(run, utility(train), removal="drop"), chosen), wanted)


@pytest.mark.parametrize("name", ["mlp", "gpt2-tied"])
def test_renormalised_values_are_central_differences_of_the_mean(name):
    train, chosen = training(name, clip=0.3, blocks=2), (0, 3, 7)
    wanted = truth(train, chosen, [STEPS], "renormalise")[STEPS]
    close(values_of(inrun.lookahead(recorded(train), utility(train)), chosen), wanted)
