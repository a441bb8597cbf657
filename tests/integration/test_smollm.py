"""The benchmark of a real language model, on a tiny random one: the same code."""

import gc
import math

import pytest
import torch
from benchmarks import EXACT
from benchmarks.smollm.cell import in_turns, trained
from benchmarks.smollm.exact import agreement_with_exact
from benchmarks.smollm.halves import METHODS, Scale, Tuning, halves
from benchmarks.smollm.rows import Adapted, row_losses
from benchmarks.smollm.training import KINDS, Size, trainer

from inrun.factors import Factor
from inrun.utility import losses_of

TINY = Size(tiny=True, steps=3, rows=2, tokens=64)
SMALL = Scale(tales=4, queries=2, held_out=2, tokens=12, asked=12, batch=4, epochs=2, halves=12)


@pytest.mark.parametrize("kind", KINDS)
def test_attributed_training_leaves_the_same_bits_and_covers_every_text(kind):
    plain = trained(kind, TINY, attributed=False)
    attributed = trained(kind, TINY, attributed=True)
    assert attributed["weights"] == plain["weights"]
    assert trained(kind, TINY._replace(steps=2), attributed=False)["weights"] != plain["weights"]
    assert attributed["covered"] == 1.0
    assert attributed["visits"] == attributed["samples"] > TINY.steps * TINY.rows  # packed
    assert len(attributed["residual_shares"]) == TINY.steps


def test_nothing_of_a_step_is_kept_until_the_next(tmp_path):
    """The first step's graph is looked at for where sums over samples begin."""
    from transformers import TrainerCallback

    alive = []

    class Counting(TrainerCallback):
        def on_step_begin(self, *_, **__):
            gc.collect()
            alive.append(sum(isinstance(o, Factor) for o in gc.get_objects()))

    trained_here, _ = trainer(str(tmp_path), "lora", TINY, attributed=True)
    gc.collect()
    before = sum(isinstance(o, Factor) for o in gc.get_objects())
    trained_here.add_callback(Counting())
    trained_here.train()
    assert alive == [before] * TINY.steps


def test_steps_of_two_trainings_are_taken_in_turns():
    found = in_turns("lora", TINY, warm_up=1)
    assert {name: len(times) for name, times in found["seconds"].items()} == {
        "plain": 2, "attributed": 2,
    }  # fmt: skip
    assert all(t > 0 for times in found["seconds"].values() for t in times)


@pytest.mark.parametrize("kind", KINDS)
def test_values_are_beside_exact_ones(kind):
    (record,) = agreement_with_exact(kind, TINY, checked=(3,))["records"]
    assert math.isclose(sum(record["values"]), sum(record["shared"]), rel_tol=0.2)
    assert record["agreement"]["shared"]["pearson"] > 0.99


def test_rows_through_frozen_layers_first_have_the_whole_models_losses():
    adapted = Adapted(TINY, 1e-3, seed=0)
    model, _ = TINY.model_and_tokenizer()
    batch = adapted.batch([([3, 4, 5, 6, 7], 1), ([8, 9, 3], 2)])
    scores = model(input_ids=batch.tokens).logits.log_softmax(2)
    first = -sum(scores[0, i, i + 4] for i in range(4)) / 4
    found = row_losses(adapted.model, batch)
    assert torch.allclose(found, torch.stack([first, -scores[1, 1, 3]]))
    assert torch.allclose(row_losses(adapted.model, batch.rows([1])), found[1:])


def test_a_training_without_rows_is_the_recorded_one_played_again_without_them():
    tuning, gone = Tuning(TINY, SMALL, seed=0), [0, 3, 4, 5]
    run, _ = tuning.watched()
    whole = losses_of(tuning.utility, run.finished())
    replayed = losses_of(tuning.utility, run.retrain(gone))
    assert torch.allclose(losses_of(tuning.utility, tuning.finished()), whole, rtol=1e-6)
    assert torch.allclose(losses_of(tuning.utility, tuning.retrain(gone)), replayed, rtol=1e-6)
    assert not torch.allclose(whole, replayed, rtol=1e-4)


def test_every_method_is_scored_on_the_same_halves():
    found = halves("lora", TINY, 0, SMALL)
    assert set(found["scores"]) == set(found["by query"]) == {*METHODS, EXACT}
    for method, scores in found["by query"].items():
        assert sum(scores) / 3 == pytest.approx(found["scores"][method]["score"])
    assert found["scores"]["path"]["score"] > 0.5
    tuning = Tuning(TINY, SMALL, seed=0)
    first = losses_of(tuning.utility, tuning.retrain(found["left out"][0])).tolist()
    assert first == pytest.approx(found["losses"][0])
    assert sorted(found["left out"][0] + found["left out"][1]) == list(range(12))
