"""Sizes of samples' own gradients: norms by plain autograd, whatever a step is made of."""

import copy

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import nn

import inrun
from inrun.errors import MisuseError, StoreError
from inrun.factors import Dense, Indexed, Outer, share_squares
from inrun.uses import rank
from tests.oracles import shares as oracle
from tests.oracles.owner_cases import OWNED
from tests.settings import flat

CASES = {case.name: case for case in OWNED}
PACKED = [name for name in CASES if "packed" in name or "expert" in name or "pair" in name]


def sizes_of(visits):
    """{step: {sample: size}}."""
    found = {}
    for row in visits.to_pylist():
        found.setdefault(row["step"], {})[row["sample_id"]] = row["gradient_size"]
    return found


def attached(model, optimizer, utility, path, **given):
    given = {"gradient_sizes": True, "progress": False} | given
    return inrun.attach(model, optimizer, utility, store=path / "run", **flat(**given))


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", PACKED)
def test_sizes_follow_owners(name, tmp_path):
    case, samples = CASES[name], 4
    model, train = case.model(), case.inputs(samples)
    terms = [lambda m, i=i: case.loss_fn(m, case.alone(train, i)) for i in range(samples)]
    expected = oracle.sizes(model, terms)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    attribution = attached(model, optimizer, inrun.Utility(case.loss_fn, case.inputs(7)), tmp_path)
    with attribution.batch(list(range(samples)), **case.owned(samples, train)):
        case.loss_fn(model, train).backward()
    optimizer.step()
    found = sizes_of(attribution.visits())[1]
    attribution.detach()
    tolerance = max(1e-6, case.tolerance)
    sizes = torch.tensor([found[i] for i in range(samples)], dtype=torch.float64)
    torch.testing.assert_close(sizes, expected, rtol=tolerance, atol=1e-9)


class Words(nn.Module):
    """A tied table, and a layer that is used twice."""

    def __init__(self):
        super().__init__()
        self.embed, self.twice = nn.Embedding(11, 6), nn.Linear(6, 6)
        self.head = nn.Linear(6, 11)
        self.head.weight = self.embed.weight

    def forward(self, ids):
        x = torch.tanh(self.twice(self.embed(ids)))
        return self.head(torch.tanh(self.twice(x.cumsum(1))))


def loss_fn(model, ids):
    logits = model(ids)[:, :-1]
    return nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())


def trained(tmp_path, *, steps=3, clip=None, resume_at=None, **given):
    """({step: {sample: size}}, {step: sizes by autograd times what the optimizer scaled by})."""
    torch.manual_seed(0)
    model, ids = Words().double(), torch.randint(11, (24, 5))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    utility = inrun.Utility(loss_fn, ids[16:])
    attribution = attached(model, optimizer, utility, tmp_path, **given)
    expected = {}
    for step in range(1, steps + 1):
        if step == resume_at:
            state = attribution.state_dict()
            attribution.detach()
            attribution = attached(model, optimizer, utility, tmp_path, resume=True, **given)
            attribution.load_state_dict(state)
        rows = torch.arange(4) + 4 * ((step - 1) % 4)
        for part in rows.split(2):  # accumulated in two blocks
            with attribution.batch(part.tolist()):
                (loss_fn(model, ids[part]) / 2).backward()
        terms = [lambda m, r=r: loss_fn(m, ids[r : r + 1]) / 4 for r in rows.tolist()]
        norm = 1.0
        if clip == "norm":
            norm = float(nn.utils.clip_grad_norm_(model.parameters(), 0.1))
            norm = 0.1 / norm
        if step % given.get("every", 1) == 0:
            expected[step] = dict(
                zip(rows.tolist(), (norm * oracle.sizes(copy.deepcopy(model), terms)).tolist(),
                    strict=True)
            )  # fmt: skip
        optimizer.step()
        optimizer.zero_grad()
    attribution.detach()
    visits = inrun.load(tmp_path / "run").visits()
    return (sizes_of(visits) if "gradient_size" in visits.column_names else {}), expected


@pytest.mark.parametrize(
    "given",
    [{}, {"clip": "norm"}, {"capture": "offload"}, {"momentum_window": 2},
     {"momentum_window": 2, "resume_at": 3}, {"estimator": "path-given"}],
    ids=str,
)  # fmt: skip
def test_sizes_are_norms_of_each_samples_own_part_of_what_the_optimizer_takes(given, tmp_path):
    found, expected = trained(tmp_path, **given)
    assert set(found) == set(expected)
    for step, sizes in expected.items():
        assert found[step] == pytest.approx(sizes, rel=1e-5)


def test_a_value_clipped_gradient_has_the_size_of_what_was_left_of_it(tmp_path):
    torch.manual_seed(0)
    model, x, y = nn.Linear(5, 3).double(), torch.randn(9, 5).double(), torch.randint(3, (9,))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    utility = inrun.Utility(lambda m, b: nn.functional.cross_entropy(m(b[0]), b[1]), (x, y))
    attribution = attached(model, optimizer, utility, tmp_path)
    with attribution.batch([0, 1, 2]):
        nn.functional.cross_entropy(model(x[:3]), y[:3]).backward()
    raw = [p.grad.clone() for p in model.parameters()]
    nn.utils.clip_grad_value_(model.parameters(), 0.05)
    scales = [p.grad / g for p, g in zip(model.parameters(), raw, strict=True)]
    assert any((scale != 1).any() for scale in scales)
    expected = []
    for i in range(3):
        term = nn.functional.cross_entropy(model(x[i : i + 1]), y[i : i + 1]) / 3
        own = torch.autograd.grad(term, list(model.parameters()))
        squares = [(g * s).square().sum() for g, s in zip(own, scales, strict=True)]
        expected.append(float(sum(squares).sqrt()))
    optimizer.step()
    found = sizes_of(attribution.visits())[1]
    attribution.detach()
    assert [found[i] for i in range(3)] == pytest.approx(expected, rel=1e-5)


def test_the_ranking_divides_each_value_by_its_gradients_size(tmp_path):
    trained(tmp_path, steps=8)
    run = inrun.load(tmp_path / "run")
    visits = run.visits().to_pandas()
    visits["x"] = visits["value"] / visits["gradient_size"]
    visits["x"] /= visits.groupby("step")["x"].transform(lambda x: x.abs().mean())
    scores = visits.groupby("sample_id")["x"].sum()
    ranked = rank(run.visits(), run.targets, "gradient")
    assert dict(zip(ranked.ids.tolist(), ranked.scores.tolist(), strict=True)) == pytest.approx(
        scores.to_dict()
    )
    dropped = inrun.prune(run, 0.5, by="gradient").dropped
    assert set(dropped) <= set(scores[scores < 0].index)
    row = {r["name"]: r for r in inrun.confounds(run, by="gradient").table.to_pylist()}
    visits["s"] = visits["gradient_size"]
    visits["s"] /= visits.groupby("step")["s"].transform("mean")
    sizes = visits.groupby("sample_id")["s"].mean()
    expected = spearmanr(sizes.to_numpy(), scores[sizes.index].to_numpy()).statistic
    assert row["gradient size"]["correlation"] == pytest.approx(expected)


def test_a_ranking_by_size_is_told(tmp_path):
    """Gradients that all help by their size: the ranking is the size's, and divided it is not."""
    torch.manual_seed(0)
    model = nn.Linear(3, 1, bias=False).double()
    x = torch.randn(24, 3, dtype=torch.float64) * torch.logspace(-1, 1, 24).double()[:, None]
    x = x + 0.5 * x.abs()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    utility = inrun.Utility(lambda m, b: -m(b).mean(), x.abs())
    attribution = attached(model, optimizer, utility, tmp_path)
    for _ in range(2):
        with attribution.batch(list(range(24))):
            (-model(x.abs()).mean()).backward()
        optimizer.step()
        optimizer.zero_grad()
    attribution.detach()
    run = inrun.load(tmp_path / "run")
    assert "mostly that by gradient size" in str(inrun.confounds(run))
    assert "as by='gradient' does" in str(inrun.confounds(run))


def test_what_cannot_be_had_is_refused(tmp_path):
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    utility = inrun.Utility(lambda m, b: m(b).square().mean(), torch.randn(3, 2))
    for given in ({"capture": "stream"}, {"scoring": inrun.Window(5)}):
        with pytest.raises(MisuseError, match="gradient_sizes"):
            attached(model, optimizer, utility, tmp_path, **given)
    with pytest.raises(MisuseError, match="in a store only"):
        inrun.attach(model, optimizer, utility, options=inrun.Options(gradient_sizes=True))
    trained(tmp_path, steps=1, gradient_sizes=False)
    run = inrun.load(tmp_path / "run")
    assert "gradient_size" not in run.visits().column_names
    with pytest.raises(MisuseError, match="did not keep the sizes"):
        inrun.prune(run, by="gradient")
    with pytest.raises(StoreError, match="sized"):  # a run does not change its columns
        attached(model, optimizer, utility, tmp_path, resume=True)


def test_values_and_weights_are_the_same_with_sizes(tmp_path):
    tables = []
    for sized in (False, True):
        trained(tmp_path / str(sized), gradient_sizes=sized)
        tables.append(inrun.load(tmp_path / str(sized) / "run").visits())
    for name in tables[0].column_names:
        assert np.array_equal(tables[0][name].to_numpy(), tables[1][name].to_numpy())


def test_a_block_of_no_samples_has_no_sizes():
    """As in a process that the last batch has no rows for."""
    left, right = torch.zeros(0, 3, 4), torch.zeros(0, 3, 5)
    for factor in (Outer(left, right), Dense(left), Dense(left[:, 0, 0]),
                   Indexed(torch.zeros(0, 3).long(), right, 7)):  # fmt: skip
        assert share_squares([factor], torch.float32).shape == (0,)
        assert share_squares([factor, factor], torch.float32).shape == (0,)
