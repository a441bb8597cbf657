"""Gradient shares, slow and obviously right: one sample at a time through plain autograd, float64.

A case's loss is written as one term a sample, so that the batch loss is their sum; sample i's share
is the gradient of its term when the model sees sample i alone.
"""

import torch


def shares(model, terms, samples, parameters):
    """{name: (B, *shape)}: `terms(model, rows)` gives one loss term for each of these rows."""
    out = {name: torch.zeros(samples, *p.shape, dtype=p.dtype) for name, p in parameters.items()}
    for i in range(samples):
        term = terms(model, [i]).sum()
        gradients = torch.autograd.grad(term, list(parameters.values()), allow_unused=True)
        for name, gradient in zip(parameters, gradients, strict=True):
            if gradient is not None:
                out[name][i] = gradient
    return out


def sizes(model, terms):
    """Norms (B,) of the gradients of all trained parameters: `terms[i](model)` is sample i's term
    of the batch loss, computed from sample i alone."""
    trained = [p for p in model.parameters() if p.requires_grad]
    norms = []
    for term in terms:
        gradients = torch.autograd.grad(term(model), trained, allow_unused=True)
        norms.append(sum(float(g.square().sum()) for g in gradients if g is not None) ** 0.5)
    return torch.tensor(norms, dtype=torch.float64)
