"""Muon as its author's package has it, written down from its formula; a stand-in of it.

Its classes have these names and groups. `Muon` and `MuonWithAuxAdam` divide the work among
processes; with one process they step as those for a single device.
"""

import torch


def orthogonalized(x):
    """Five Newton-Schulz steps in bfloat16: about U V^T of x = U S V^T."""
    a, b, c = 3.4445, -4.7750, 2.0315
    y = x.bfloat16()
    wide = y.size(-2) <= y.size(-1)
    y = y if wide else y.mT
    y = y / (y.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        square = y @ y.mT
        y = a * y + (b * square + c * square @ square) @ y
    return y if wide else y.mT


class SingleDeviceMuon(torch.optim.Optimizer):
    """For hidden weights: momentum by Nesterov, orthogonalized, scaled by the matrix's shape."""

    def __init__(self, params, lr=0.02, weight_decay=0, momentum=0.95):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self.move(p, group)

    def move(self, p, group):
        state = self.state[p]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(p)
        buffer = state["momentum_buffer"].lerp_(p.grad, 1 - group["momentum"])
        update = p.grad.lerp_(buffer, group["momentum"])  # the package overwrites gradients, too
        scale = max(1, update.size(-2) / update.size(-1)) ** 0.5
        update = orthogonalized(update.flatten(1) if update.ndim == 4 else update)
        update *= scale
        p.mul_(1 - group["lr"] * group["weight_decay"])
        p.add_(update.reshape(p.shape), alpha=-group["lr"])


class Muon(SingleDeviceMuon):
    """The same, divided among processes."""

    @torch.no_grad()
    def step(self):
        super().step()


class SingleDeviceMuonWithAuxAdam(SingleDeviceMuon):
    """Groups without `use_muon` are left to AdamW."""

    def __init__(self, param_groups):
        defaults = {
            True: {"lr": 0.02, "momentum": 0.95, "weight_decay": 0},
            False: {"lr": 3e-4, "betas": (0.9, 0.95), "eps": 1e-10, "weight_decay": 0},
        }
        groups = [{**defaults[group["use_muon"]], **group} for group in param_groups]
        torch.optim.Optimizer.__init__(self, groups, {})

    def move(self, p, group):
        if group["use_muon"]:
            super().move(p, group)
            return
        state, (b1, b2) = self.state[p], group["betas"]
        if not state:
            state.update(exp_avg=torch.zeros_like(p), exp_avg_sq=torch.zeros_like(p), step=0)
        state["step"] += 1
        first = state["exp_avg"].lerp_(p.grad, 1 - b1) / (1 - b1 ** state["step"])
        second = state["exp_avg_sq"].lerp_(p.grad.square(), 1 - b2) / (1 - b2 ** state["step"])
        p.mul_(1 - group["lr"] * group["weight_decay"])
        p.add_(first / (second.sqrt() + group["eps"]), alpha=-group["lr"])


class MuonWithAuxAdam(SingleDeviceMuonWithAuxAdam):
    """The same, divided among processes."""

    @torch.no_grad()
    def step(self):
        super().step()
