"""sentence-transformers' own trainer with its defaults: a pair or triplet is one sample.

Brute force: the trainer's loss of the very batch by plain autograd, of which only the gradient that
passes through the embeddings of one sample's texts is kept.
"""

import copy

import pytest
import torch
from datasets import Dataset
from transformers import BertConfig, BertModel

from inrun.errors import MisuseError
from inrun.integrations.transformers import InRun
from tests.integration.small_trl import WORDS, tokenizer
from tests.integration.tiny_language import LR, agree, gradient, scored, sentences, settings

package = pytest.importorskip("sentence_transformers")
losses = pytest.importorskip("sentence_transformers.losses")

HELD = list(range(10, 16))


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """A folder with a tiny encoder and its tokenizer."""
    folder = str(tmp_path_factory.mktemp("encoder"))
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=24, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        max_position_embeddings=32, pad_token_id=0,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def texts(*columns, count=16):
    return Dataset.from_dict(
        {name: sentences(count, 2, 6, seed) for seed, name in enumerate(columns)}
    )


def scores():
    return texts("sentence1", "sentence2").add_column("score", [i / 16 for i in range(16)])


PAIRS, TRIPLETS = ("anchor", "positive"), ("anchor", "positive", "negative")
INTERACT = {
    "pairs": (lambda: texts(*PAIRS), losses.MultipleNegativesRankingLoss),
    "triplets": (lambda: texts(*TRIPLETS), losses.MultipleNegativesRankingLoss),
    "two negatives": (lambda: texts(*TRIPLETS, "other"), losses.MultipleNegativesRankingLoss),
    "sorted scores": (scores, losses.CoSENTLoss),
}
INDEPENDENT = {
    "scores": (scores, losses.CosineSimilarityLoss),
    "margins": (lambda: texts(*TRIPLETS), losses.TripletLoss),
}


def made(case, encoder, folder, **changes):
    data, loss = {**INTERACT, **INDEPENDENT}[case]
    parts = pytest.importorskip("sentence_transformers.models")
    model = package.SentenceTransformer(
        modules=[parts.Transformer(encoder), parts.Pooling(16)], device="cpu"
    ).double()
    given = settings(folder, **changes)
    return package.SentenceTransformerTrainer(
        model, package.SentenceTransformerTrainingArguments(**given), train_dataset=data(),
        loss=loss(model),
    )  # fmt: skip


def by_own_embeddings(trainer, ids):
    """{sample: value}."""
    model, data = trainer.model, trainer.train_dataset

    def share(positions, sample=None):
        def only(module, args, output):
            rows = torch.arange(len(output["sentence_embedding"])) % len(positions)
            keep = (rows == sample).double()[:, None]  # columns may be embedded in one call
            output["sentence_embedding"].register_hook(lambda g: g * keep)

        handle = model.register_forward_hook(only) if sample is not None else None
        batch = dict(trainer.data_collator([data[i] for i in positions]))
        found = gradient(trainer.compute_loss(model, batch), model)
        if handle is not None:
            handle.remove()
        return found

    model.eval()
    target = share(HELD)
    model.train()
    return {i: LR * float(target @ share(ids, k)) for k, i in enumerate(ids)}


@pytest.mark.parametrize("case", [*INTERACT, *INDEPENDENT])
def test_a_pair_or_triplet_has_the_value_of_its_own_texts(case, encoder, tmp_path):
    trainer = made(case, encoder, tmp_path)
    before = copy.deepcopy(trainer.model.state_dict())
    values, attribution, said = scored(trainer, trainer.train_dataset.select(HELD))
    assert attribution.covered == 1.0
    assert len([text for text in said if "interact" in text]) == (case in INTERACT)
    trainer.model.load_state_dict(before)
    agree(values, by_own_embeddings(trainer, list(values)))


@pytest.mark.filterwarnings("ignore:Samples interact")
def test_the_books_close_with_the_trainers_own_optimizer(encoder, tmp_path):
    changes = {"optim": "adamw_torch", "learning_rate": 1e-3, "max_steps": 6}
    trainer = made("triplets", encoder, tmp_path, **changes)
    trainer.add_callback(callback := InRun(trainer.train_dataset.select(HELD)))
    trainer.train()
    assert callback.attribution.covered == 1.0
    for row in callback.attribution.ledger().to_pylist()[2:]:
        assert abs(row["residual"]) < 0.02 * (abs(row["samples"]) + abs(row["momentum"]))


def test_a_loss_with_backward_passes_of_its_own_is_refused(encoder, tmp_path):
    trainer = made("pairs", encoder, tmp_path)
    trainer.loss = losses.CachedMultipleNegativesRankingLoss(trainer.model, mini_batch_size=2)
    trainer.add_callback(InRun(trainer.train_dataset.select(HELD)))
    with pytest.raises(MisuseError, match="backward passes of their own"):
        trainer.train()
    assert "compute_loss" not in vars(trainer)
