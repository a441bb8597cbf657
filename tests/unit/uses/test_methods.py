"""Values of every method of a recorded run, beside what autograd and a formula written out say."""

import math
import re

import numpy as np
import pytest
import torch

import inrun
from inrun.errors import MisuseError
from inrun.replay import gradient_likeness
from inrun.uses import Contents, bm25, values_by_method
from tests.unit.replay.test_lookahead import momentum, recorded, training, utility


@pytest.fixture(scope="module")
def trained():
    train = training("mlp", momentum, clip=0.3, blocks=2)
    return train, recorded(train)


def own_gradients(train, run):
    """(n, d) of each sample's own loss in the last state, by autograd, one after the other."""
    model = run.finished()
    parameters = list(run.replica.parameters.values())
    found = []
    for i in run.sample_ids():
        loss = train.terms(model, *(t[i : i + 1] for t in train.data)).sum()
        found.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)]))
    return torch.stack(found)


def test_likeness_is_that_of_each_samples_gradient_with_the_querys(trained):
    train, run = trained
    judge = utility(train)
    found = gradient_likeness(run, judge)
    assert found.ids == run.sample_ids()
    own = own_gradients(train, run)
    model = run.finished()
    loss = judge.loss_fn(model, next(iter(judge.batches.values())))
    query = torch.cat(
        [g.flatten() for g in torch.autograd.grad(loss, list(run.replica.parameters.values()))]
    )
    np.testing.assert_allclose(found.dot[:, 0], own @ query, rtol=1e-9)
    np.testing.assert_allclose(found.norm, own.norm(dim=1), rtol=1e-9)
    cosine = torch.nn.functional.cosine_similarity(own, query[None])
    np.testing.assert_allclose(found.cosine[:, 0], cosine, rtol=1e-9)


def test_a_words_weight_is_okapis():
    texts = ["a cat sat", "the cat, the Cat and the dog", "", "dogs"]
    queries = ["Cat dog cat", "unknown"]
    split = [re.findall(r"\w+", t.lower()) for t in texts]
    mean = sum(map(len, split)) / len(split)
    wanted = np.zeros((4, 2))
    for i, own in enumerate(split):
        for word in ("cat", "dog", "cat"):
            having = sum(word in other for other in split)
            rarity = math.log(1 + (4 - having + 0.5) / (having + 0.5))
            f = own.count(word)
            wanted[i, 0] += rarity * f * 2.5 / (f + 1.5 * (0.25 + 0.75 * len(own) / mean))
    np.testing.assert_allclose(bm25(texts, queries), wanted, rtol=1e-12)


def test_every_method_has_a_row_for_every_sample(trained):
    train, run = trained
    ids = run.sample_ids()
    loss = lambda m, batch: train.terms(m, *batch).mean()  # noqa: E731
    parts = {"a": tuple(t[12:15] for t in train.data), "b": tuple(t[15:] for t in train.data)}
    contents = Contents(
        dict.fromkeys(ids, "one text"), {i: i % 2 for i in ids}, ("text", "one"), (0, 1)
    )
    found = values_by_method(run, inrun.Utility(loss, targets=parts), contents)
    assert list(found) == [
        "look-ahead", "look-ahead, finite push", "look-ahead, between", "in-step",
        "in-step, paid out", "TracIn",
        "gradient dot", "gradient cosine", "gradient norm", "loss", "BM25", "length", "same class",
        "random",
    ]  # fmt: skip
    for table in found.values():
        assert sorted(table["sample_id"].to_pylist()) == sorted(ids)
        assert np.isfinite([table["a"].to_numpy(), table["b"].to_numpy()]).all()
    same = dict(zip(found["same class"]["sample_id"].to_pylist(),
                    found["same class"]["b"].to_pylist(), strict=True))  # fmt: skip
    assert same == {i: float(i % 2 == 1) for i in ids}
    assert found["length"]["a"].to_pylist() == [2.0] * len(ids)


def test_methods_without_contents_are_left_out_and_refused_where_named(trained):
    train, run = trained
    said = []
    found = values_by_method(run, utility(train), methods=["loss", "random"], tick=said.append)
    assert list(found) == said == ["loss", "random"]
    assert found["loss"].column_names == ["sample_id", "value"]
    with pytest.raises(MisuseError, match="'BM25' is unknown here"):
        values_by_method(run, utility(train), methods=["BM25"])
