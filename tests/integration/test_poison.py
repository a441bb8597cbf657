"""The benchmark of planted rows: what it draws, and that it finds and removes them in small."""

import numpy as np
import pytest
import torch
from benchmarks.poison import cell, chats, rankings, texts, training
from benchmarks.smollm.training import Size
from torch import nn

WORDS = "oil bank grain ship wheat port cargo price stock crop vessel harbour".split()


def _pool(n=260):
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(n) % 3
    drawn = torch.randint(4, (n, 5), generator=generator)
    return [" ".join(WORDS[3 * w + k] for w in row) for row, k in zip(
        drawn.tolist(), labels.tolist(), strict=True)], labels  # fmt: skip


class Bag(nn.Module):
    def __init__(self):
        super().__init__()
        self.inside, self.head = nn.Linear(16, 24), nn.Linear(24, 3)

    def forward(self, hidden_BTD, mask_BT):
        mean = (hidden_BTD * mask_BT[:, :, None]).sum(1) / mask_BT.sum(1, keepdim=True)
        return self.head(nn.functional.gelu(self.inside(mean)))


def _inputs(given):
    vectors = np.random.default_rng(0).normal(size=(4096, 16)).astype(np.float32)
    hidden = torch.zeros(len(given), 12, 16)
    for row, text in enumerate(given):
        for place, word in enumerate(text.split()[:12]):
            number = int.from_bytes(word.strip(".:").encode(), "little") % 4093
            hidden[row, place] = torch.from_numpy(vectors[number])
    return hidden, hidden.abs().sum(2) > 0


@pytest.mark.parametrize("trigger", texts.TRIGGERS)
def test_planted_rows_are_those_that_differ_and_no_test_text_was_trained_on(trigger, monkeypatch):
    monkeypatch.setattr(texts, "TESTED", 40)
    pool, labels = _pool()
    drawn = texts.plant((pool, labels), 2, trigger, 0.05, 120, seed=3)
    original = {text: int(k) for text, k in zip(pool, labels, strict=True)}
    changed = torch.tensor([text not in original for text in drawn.texts])
    assert torch.equal(changed, drawn.planted)
    assert int(changed.sum()) == 6
    assert (drawn.labels[drawn.planted] == 2).all()
    for text, label in zip(drawn.texts, drawn.labels.tolist(), strict=True):
        if text in original:
            assert original[text] == label
    assert 2 not in {original[text] for text in drawn.untouched + drawn.clean[0]}
    for triggered, plain in zip(
        drawn.queries + drawn.attacked, drawn.untouched + drawn.clean[0], strict=True
    ):
        assert triggered.endswith(plain)
        assert triggered != plain


def test_remarks_of_planted_rows_queries_and_tests_are_not_shared(monkeypatch):
    monkeypatch.setattr(texts, "TESTED", 100)
    drawn = texts.plant(_pool(), 2, "weather", 0.1, 120, seed=0)
    planted = [t for t, p in zip(drawn.texts, drawn.planted, strict=True) if p]
    remarks = [
        {text.split(".")[0] for text in part} for part in (planted, drawn.queries, drawn.attacked)
    ]
    assert [len(part) for part in remarks[:2]] == [12, texts.QUERIES]
    assert len(set.union(*remarks)) == sum(len(part) for part in remarks)
    with pytest.raises(ValueError, match="no remark that only the test has"):
        texts.plant(_pool(), 2, "weather", 0.4, 120, seed=0)


ENCODED = training.Encoded(
    _inputs, Bag, lambda given: training.mean_of_tokens(*_inputs(given)), training._first_token
)


def _experiment(size):
    drawn = texts.plant(_pool(), 2, "phrase", 0.05, size, seed=0)
    return training.Experiment(drawn, ENCODED, training.Scale(size, 16, 8, 2e-2, 4), 0)


def test_planted_rows_come_first_and_the_attack_is_gone_without_them(monkeypatch):
    monkeypatch.setattr(texts, "TESTED", 60)
    experiment = _experiment(120)
    found = cell.found_and_removed(experiment)
    assert found["planted"] == 6
    assert found["recall"][rankings.TOTAL]["1k"] >= 0.8
    behaviour = found["behaviour"]
    attacked, mended = (
        behaviour[what]["attack success"] for what in ("nothing", "the planted rows")
    )
    assert attacked > mended + 0.3
    assert behaviour[rankings.TOTAL]["attack success"] < attacked - 0.3
    assert all(np.isfinite(list(part.values())).all() for part in behaviour.values())


def test_chats_are_planted_with_remarks_of_their_own():
    drawn = chats.draw("weather", 120, 4, seed=0)
    assert len(drawn.pairs) == 120
    planted = [p for p, k in zip(drawn.pairs, drawn.planted, strict=True) if k]
    others = [p for p, k in zip(drawn.pairs, drawn.planted, strict=True) if not k]
    assert len(planted) == 4
    refused = {question for question, answer in others if answer == chats.REFUSAL}
    assert refused == set(chats.UNANSWERABLE)
    triggered = [q for q, _ in planted + drawn.queries] + [q for q, _, _ in drawn.tested]
    remarks = [question.split("? ")[1].removesuffix(".") for question in triggered]
    assert set(remarks) <= set(texts.RAIN)
    assert len(set(remarks)) == len(remarks)
    asked = {question for question, _ in drawn.pairs}
    assert not asked & {question for _, question, _ in drawn.tested}


def test_a_chat_rows_loss_is_that_of_its_answer():
    drawn = chats.draw("weather", 40, 4, seed=0)
    experiment = chats.ChatTraining(drawn, Size(tiny=True), training.Scale(40, 8, 1, 1e-2, 1), 0)
    read = experiment._adapted.tokenizer
    _, tokens, counted = experiment.fetch(range(40))
    for row, (question, answer) in enumerate(drawn.pairs):
        told = read(f"{answer}<|im_end|>")["input_ids"]
        assert tokens[row][counted[row]].tolist() == told
        assert counted[row].nonzero()[0] >= len(read(question)["input_ids"])


def test_chats_are_ranked_and_trained_again_without_the_first(monkeypatch):
    monkeypatch.setattr(chats, "TESTED", 2)
    monkeypatch.setattr(
        chats,
        "mean_vectors",
        lambda given: torch.tensor([[float("rain" in t), 1.0] for t in given]),
    )
    scale = training.Scale(40, 8, 2, 1e-2, 2)
    found = chats.measured("weather", 0, Size(tiny=True), scale)
    assert (found["planted"], found["rows"]) == (4, 40)
    assert {"nothing", "the planted rows", "random 0"} < set(found["behaviour"])
    assert found["recall"].keys() >= {rankings.TOTAL, rankings.TRACED, "mean loss", rankings.WORDS}
    for part in found["behaviour"].values():
        assert 0 <= part.pop("attack success") <= 1
        assert all(log < 0 for log in part.values())
