"""Settings of optimizers whose rules are not elementwise, for the tests of this folder."""

import itertools

import torch

MUONS = [
    (torch.optim.Muon, {"momentum": mu, "nesterov": nag, "weight_decay": wd, "adjust_lr_fn": how})
    for mu, nag, wd, how in itertools.product(
        (0.0, 0.95), (False, True), (0.0, 0.1), (None, "match_rms_adamw")
    )
]
MATRIX_CASES = [MUONS[-1], MUONS[-4]]


def name(case):
    kind, setting = case
    return kind.__name__ + "-" + "-".join(f"{k}={v}" for k, v in setting.items() if v)
