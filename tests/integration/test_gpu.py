"""On a GPU: values and books are the CPU's, and a step waits for the device two or three times.

Skipped where there is none. `python -m benchmarks.overhead --large` measures there.
"""

import warnings
from contextlib import contextmanager, nullcontext

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import inrun
from tests.settings import flat

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
OPTIONS = {
    "hold": {},
    "stream": {"capture": "stream"},
    "offload": {"capture": "offload"},
    "dense": {"contraction": "dense"},
    "momentum_window": {"momentum_window": 3},
    "sgd": {"estimator": "sgd"},
    "path-given": {"estimator": "path-given"},
}


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.norm = nn.Embedding(50, 256), nn.LayerNorm(256)
        self.hidden, self.head = nn.Linear(256, 512), nn.Linear(512, 50)

    def forward(self, x):
        return self.head(F.gelu(self.hidden(self.norm(self.embed(x)))))


def loss_fn(model, batch):
    with torch.autocast(batch.device.type, torch.bfloat16, enabled=loss_fn.half):
        logits = model(batch[:, :-1])
    return F.cross_entropy(logits.flatten(0, 1).float(), batch[:, 1:].flatten())


def trained(device, steps=8, half=False, fused=False, around=None, clip=0.5, **options):
    torch.manual_seed(0)
    loss_fn.half = half
    model, text = Net().to(device), torch.randint(50, (8 * steps + 4, 33))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=fused)
    utility = inrun.Utility(loss_fn, text[-4:].to(device))
    attribution = inrun.attach(
        model, optimizer, utility, **flat(smoothed_steps=0, progress=False, **options)
    )
    for step in range(steps):
        batch = text[8 * step : 8 * step + 8].to(device)
        # the first step compiles, and fetches step counters
        with around() if around is not None and step else nullcontext():
            with attribution.batch(range(8 * step, 8 * step + 8)):
                loss_fn(model, batch).backward()
            nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
            optimizer.zero_grad()
    attribution.detach()
    return attribution


def correlation(a, b):
    """From the third step on: in its first two Adam acts like a sign, and rounding decides."""
    late = [x.values()["value"].to_numpy()[16:] for x in (a, b)]
    return np.corrcoef(*late)[0, 1]


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("fused", [False, True])
def test_values_and_books_are_those_of_the_cpu(options, fused):
    there, here = trained("cuda", fused=fused, **options), trained("cpu", **options)
    assert correlation(there, here) > 0.999
    for column in ("opening_loss", "closing_loss", "samples", "momentum", "residual"):
        found, want = (x.ledger()[column].to_numpy()[2:] for x in (there, here))
        np.testing.assert_allclose(found, want, atol=2e-2 * np.abs(want).max())


def test_bf16_under_autocast_is_near_single_precision():
    assert correlation(trained("cuda", half=True), trained("cuda")) > 0.99


@contextmanager
def few_waits():
    """At most three operations of a step wait for the device."""
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len([w for w in caught if "synchroniz" in str(w.message)]) <= 3


@pytest.mark.parametrize("capture", ["hold", "stream"])
@pytest.mark.parametrize("fused", [False, True])
def test_a_step_hardly_waits_for_the_device(capture, fused):
    options = {"capture": capture, "contraction": "dense", "fused": fused}
    quiet = trained("cuda", around=few_waits, **options)
    assert correlation(quiet, trained("cuda", **options)) > 0.99999


def test_stream_takes_hardly_more_memory_than_hold():
    def peak(**options):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        trained("cuda", **options)
        return torch.cuda.max_memory_allocated()

    trained("cuda", capture="stream")  # compiled, and workspaces are there
    assert peak(capture="stream") <= 1.05 * peak(capture="hold")
