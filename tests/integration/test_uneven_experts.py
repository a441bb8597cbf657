"""Experts that get no token, one token, and as many tokens as there are samples."""

import warnings

import pytest
import torch
import torch.nn.functional as F

import inrun
from tests.integration.test_trl_experts import experts

ROWS, LENGTH, EXPERTS = 4, 6, 4
WANTED = [0, ROWS, 1, ROWS * LENGTH]


def routed(router, counts):
    """A router that sends the batch's tokens so, with its own weights' probabilities."""
    closed = torch.full((ROWS * LENGTH, EXPERTS), -1e3)
    closed[:, 3] = 0.0  # every token
    closed[::LENGTH, 1] = 0.0  # each sample's first one
    closed[3, 2] = 0.0
    chosen = torch.where(closed == 0.0, 1, 0)

    def forward(hidden):
        hidden = hidden.reshape(-1, hidden.shape[-1])
        logits = F.linear(hidden, router.weight)
        if len(hidden) != ROWS * LENGTH:  # validation rows choose for themselves
            weight, index = logits.softmax(-1).topk(2, dim=-1)
            return logits, weight, index
        weight = (logits + closed.to(logits.dtype)).softmax(-1)
        weight, index = weight.topk(2, dim=-1)
        # a token with one expert is sent to it twice, the second time with no weight
        index = torch.where(chosen.gather(1, index) == 1, index, 3)
        counts.append([int((index == e).any(1).sum()) for e in range(EXPERTS)])
        return logits, weight, index

    router.forward = forward


def mean_loss(model, rows):
    logits = model(input_ids=rows).logits[:, :-1].float()
    return F.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())


@pytest.mark.parametrize(
    ("implementation", "dtype", "tolerance"),
    [("eager", torch.float64, 1e-5), (None, torch.float32, 1e-4), (None, torch.bfloat16, 5e-2)],
)
def test_values_are_each_samples_own_however_many_tokens_an_expert_gets(
    implementation, dtype, tolerance
):
    model, counts = experts("mixtral", implementation).to(dtype), []
    for name, module in model.named_modules():
        if name.endswith("gate"):
            routed(module, counts)
    generator = torch.Generator().manual_seed(1)
    size = model.config.vocab_size
    rows = torch.randint(5, size, (ROWS, LENGTH), generator=generator)
    held = torch.randint(5, size, (9, LENGTH), generator=generator)
    weights = list(model.parameters())
    direction = torch.autograd.grad(mean_loss(model, held), weights)
    logits = model(input_ids=rows).logits[:, :-1].float()
    terms = F.cross_entropy(logits.transpose(1, 2), rows[:, 1:], reduction="none").mean(1) / ROWS
    truth = []
    for term in terms:
        own = torch.autograd.grad(term, weights, retain_graph=True)
        pairs = zip(direction, own, strict=True)
        truth.append(0.01 * sum(float((p.double() * q.double()).sum()) for p, q in pairs))
    optimizer = torch.optim.SGD(weights, lr=0.01)
    settings = inrun.Options(progress=False, contraction="dense")
    with warnings.catch_warnings():
        # alone a sample is routed as validation rows are: the check of lone rows says so
        warnings.simplefilter("ignore", inrun.errors.InRunWarning)
        attribution = inrun.attach(
            model, optimizer, inrun.Utility(mean_loss, held), estimator="sgd", options=settings
        )
        with attribution.batch(range(ROWS)):
            mean_loss(model, rows).backward()
        optimizer.step()
    assert counts[-1] == WANTED
    found = torch.tensor(attribution.values().sort_by("sample_id")["value"].to_pylist())
    error = (found - torch.tensor(truth)).norm() / torch.tensor(truth).norm()
    assert error < tolerance
    assert attribution.covered == pytest.approx(1.0, abs=1e-6)
