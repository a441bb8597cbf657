"""Settings of every optimizer that has a rule, and gradients to try them on."""

import itertools
from typing import Any, NamedTuple

import lion_pytorch
import pytorch_optimizer
import schedulefree
import torch
from torch import optim
from transformers.optimization import Adafactor

from tests.unit.optim import published_muon


class Case(NamedTuple):
    """An optimizer's class with options; `what` the tests may expect of it."""

    kind: type
    options: dict[str, Any]

    @property
    def name(self):
        told = "-".join(f"{k}={v}" for k, v in self.options.items() if v)
        return f"{self.kind.__module__.split('.')[0]}.{self.kind.__name__}-{told}"

    def build(self, groups, lr=0.01, **how):
        if self.kind.__name__.endswith("WithAuxAdam"):
            return self.kind([self.told(group, lr) for group in groups], **how)
        optimizer = self.kind(groups, **{"lr": lr, **self.options, **how})
        if hasattr(optimizer, "train"):
            optimizer.train()  # schedule-free
        return optimizer

    def told(self, group, lr):
        """A group, or a parameter, for Muon if it is made of matrices and else for Adam."""
        group = group if isinstance(group, dict) else {"params": [group]}
        return {
            "lr": lr, **group, "use_muon": group["params"][0].ndim > 1,
            "weight_decay": self.options.get("weight_decay", 0.0),
        }  # fmt: skip


def grid(kind, **choices):
    """One case for every combination of the choices."""
    return [
        Case(kind, dict(zip(choices, chosen, strict=True)))
        for chosen in itertools.product(*choices.values())
    ]


PLAIN = {"weight_decay": (0.0, 0.1), "maximize": (False, True)}
SGDS = [
    case
    for case in grid(
        optim.SGD, momentum=(0.0, 0.9), dampening=(0.0, 0.3), nesterov=(False, True), **PLAIN
    )
    if not (
        case.options["nesterov"] and (not case.options["momentum"] or case.options["dampening"])
    )
]
BETAS = ((0.9, 0.999), (0.8, 0.95))
ADAMS = [
    *grid(optim.Adam, amsgrad=(False, True), betas=BETAS, **PLAIN),
    *grid(optim.AdamW, amsgrad=(False, True), betas=BETAS, **PLAIN),
]
KIN = [
    *grid(optim.Adamax, betas=BETAS, **PLAIN),
    *grid(optim.NAdam, decoupled_weight_decay=(False, True), momentum_decay=(4e-3, 0.1), **PLAIN),
    *grid(optim.RAdam, decoupled_weight_decay=(False, True), betas=BETAS, **PLAIN),
]
SECOND_MOMENTS = [
    *grid(optim.Adadelta, rho=(0.9, 0.5), **PLAIN),
    *grid(optim.Adagrad, lr_decay=(0.0, 0.1), initial_accumulator_value=(0.0, 0.1), **PLAIN),
    *grid(optim.RMSprop, alpha=(0.99, 0.7), centered=(False, True), momentum=(0.0, 0.9), **PLAIN),
]
AVERAGED = [
    *grid(optim.ASGD, lambd=(1e-4, 0.1), alpha=(0.75,), t0=(1e6, 3.0), **PLAIN),
    *grid(
        schedulefree.AdamWScheduleFree, weight_decay=(0.0, 0.1), warmup_steps=(0, 5), r=(0.0, 1.0),
        foreach=(False, True),
    ),
]  # fmt: skip
SIGNS = [
    *grid(optim.Rprop, etas=((0.5, 1.2), (0.3, 1.5)), step_sizes=((1e-6, 50), (0.008, 0.012)),
          maximize=(False, True)),
    *grid(lion_pytorch.Lion, weight_decay=(0.0, 0.1), decoupled_weight_decay=(False, True)),
    *grid(pytorch_optimizer.Lion, weight_decouple=(False, True), fixed_decay=(False, True),
          foreach=(False, None), **PLAIN),
]  # fmt: skip
ELEMENTWISE = [*SGDS, *ADAMS, *KIN, *SECOND_MOMENTS, *AVERAGED, *SIGNS]
SIGN_LIKE = SIGNS
MUONS = (
    grid(
        optim.Muon, momentum=(0.0, 0.95), nesterov=(False, True), weight_decay=(0.0, 0.1),
        adjust_lr_fn=(None, "match_rms_adamw"),
    )
    if hasattr(optim, "Muon")
    else []
)  # fmt: skip
PUBLISHED = [
    *grid(published_muon.SingleDeviceMuon, momentum=(0.0, 0.95), weight_decay=(0.0, 0.1)),
    *grid(published_muon.Muon, weight_decay=(0.1,)),
]
FACTORED = [
    *grid(Adafactor, scale_parameter=(False, True), relative_step=(False,), weight_decay=(0.0, 0.1),
          beta1=(None, 0.9), clip_threshold=(1.0, 0.5)),
    *grid(Adafactor, lr=(None,), scale_parameter=(False, True), relative_step=(True,),
          warmup_init=(False, True), decay_rate=(-0.8, -0.3)),
]  # fmt: skip
MATRIX = [
    *MUONS,
    *PUBLISHED,
    *grid(published_muon.SingleDeviceMuonWithAuxAdam, weight_decay=(0.0, 0.1)),
    *grid(published_muon.MuonWithAuxAdam, weight_decay=(0.1,)),
    *FACTORED,
    *grid(optim.Adafactor, d=(1.0, 1.5), beta2_decay=(-0.8, -0.3), **PLAIN),
    *grid(pytorch_optimizer.Lamb, weight_decouple=(False, True), fixed_decay=(False, True),
          grad_averaging=(True, False), adam=(False, True), foreach=(False, None), **PLAIN),
]  # fmt: skip


def parameters(case, dtype=torch.float64):
    """Two parameters in groups with rates of their own: a matrix, and a vector where one goes."""
    torch.manual_seed(0)
    p = torch.nn.Parameter(torch.randn(7, 3, dtype=dtype))
    second = (
        torch.randn(3, 5, dtype=dtype)
        if case in [*MUONS, *PUBLISHED]
        else torch.randn(5, dtype=dtype)
    )
    return [p, torch.nn.Parameter(second)]


def optimizer_of(case, dtype=torch.float64, lr=0.01, **how):
    params = parameters(case, dtype)
    p, q = params
    own = {} if "lr" in case.options else {"lr": 3 * lr}
    return params, case.build([{"params": [p]}, {"params": [q], **own}], lr=lr, **how)


def give_gradients(params, step):
    """Gradients that shrink and vanish here and there, so that amsgrad's maximum matters."""
    for p in params:
        p.grad = torch.randn_like(p) * (0.3 ** min(step, 9) if step % 3 else 1.0)
        p.grad.view(-1)[step % 4] = 0.0
