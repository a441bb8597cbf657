"""What momentum did for one sample in one later step, by taking that step twice, float64.

The later step is taken by the real optimizer on copies, without any gradient: once with the memory
that it had, once with the sample's part taken out of it. The difference in where the weights land,
along the later step's mean validation gradient, is what the sample is owed.
"""

import copy

import torch

MEMORY = ("exp_avg", "momentum_buffer")


class Step:
    """One step of a run: what must be kept of it.

    Args:
        optimizer: before the step, with its gradients in place.
        shares: by parameter number, (B, *shape), adding up to the consumed gradient.
    """

    def __init__(self, optimizer, shares):
        self.before = copy.deepcopy(optimizer)
        self.shares = shares
        self.gradients = []  # (K, *shape) a parameter, known when the step is over

    def kept(self):
        """What of a memory is left after this step."""
        group = self.before.param_groups[0]
        return group["betas"][0] if "betas" in group else group["momentum"]

    def entered(self):
        """What of this step's gradient the memory took."""
        group = self.before.param_groups[0]
        sign = -1.0 if group["maximize"] else 1.0
        if "betas" in group:
            return sign * (1 - group["betas"][0])
        return sign * (1 - group["dampening"] if self.before.state else 1.0)


def landing(optimizer, memories):
    """The weights after a step without gradient and without decay, with these memories."""
    other = copy.deepcopy(optimizer)
    parameters = [p for group in other.param_groups for p in group["params"]]
    for group in other.param_groups:
        group["weight_decay"] = 0.0
    for p, memory in zip(parameters, memories, strict=True):
        (name,) = [name for name in MEMORY if name in other.state[p]]
        other.state[p][name] = memory.clone()
        p.grad = torch.zeros_like(p)
    other.step()
    return [p.detach() for p in parameters]


def paid(steps, t, s):
    """What step s's momentum did for each sample of step t, (B, K); steps are numbered from 0."""
    later, own = steps[s], steps[t]
    parameters = [p for group in later.before.param_groups for p in group["params"]]
    names = [next(n for n in MEMORY if n in later.before.state[p]) for p in parameters]
    memories = [later.before.state[p][n] for p, n in zip(parameters, names, strict=True)]
    left = own.entered()
    for between in steps[t + 1 : s]:
        left *= between.kept()
    whole = landing(later.before, memories)
    rows = []
    for sample in range(len(own.shares[0])):
        parts = [left * shares[sample] for shares in own.shares]
        without = landing(later.before, [m - part for m, part in zip(memories, parts, strict=True)])
        rows.append(
            sum(
                torch.tensordot(g.flatten(1), (b - a).flatten(), dims=1)
                for g, a, b in zip(later.gradients, whole, without, strict=True)
            )
        )
    return torch.stack(rows)


def balance(steps, window):
    """(3, K): what momentum did so far that is paid, that is still in it, and the rest of it.

    Paid is what it did within the window of steps whose window is over, still in it the same of the
    others, and the rest what it did later. No gradient came before the first step.
    """
    now = len(steps) - 1
    parts = torch.zeros(3, len(steps[0].gradients[0]), dtype=torch.float64)
    for t in range(now + 1):
        for s in range(t + 1, now + 1):
            within, over = s - t <= window, now - t >= window
            parts[(0 if over else 1) if within else 2] += paid(steps, t, s).sum(0)
    return parts
