"""`inrun train` on numbers, several classes per row, tagged words, chats and pairs of answers.

Brute force: one step of SGD over all rows, in which a sample's value is the learning rate times the
product of two gradients by plain autograd: of the validation loss, and of the sample's part of the
training loss, both as `transformers` computes them, of pairs as TRL does.
"""

import io
import json
import warnings

import numpy as np
import pytest
import torch
from rich.console import Console
from transformers import AutoTokenizer

import inrun
from inrun.errors import InRunWarning, MisuseError
from inrun.report import write_report
from inrun.training import TrainConfig, Training, run_training, task_seen
from inrun.uses import note_label_doubts
from tests.integration.train_data import WORDS, jsonl, still, texts

ROWS, RATE = 24, 0.1
TURNS = (
    "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
    "{% endgeneration %}{% else %}{{ m.content }}{% endif %} {% endfor %}"
)


def words_of(row):
    return row["text"].split()


def message(role, content):
    return {"role": role, "content": content}


def pair(row, other):
    words = words_of(row)
    return {"prompt": " ".join(words[:2]), "chosen": " " + " ".join(words[1:]),
            "rejected": " " + " ".join(words_of(other)[1:])}  # fmt: skip


def rows_of(task, count=ROWS):
    """Rows from which the task is seen."""
    given = texts(count)
    for row, other in zip(given, given[1:] + given[:1], strict=True):
        words, sea = words_of(row), row["label"] == "sea"
        if task == "regression":
            yield {"text": row["text"], "label": (1.5 if sea else -1.5) + 0.1 * len(words)}
        elif task == "multi-label":
            yield {"text": row["text"], "label": [row["label"]] + ["long"] * (len(words) > 4)}
        elif task == "token-classification":
            mixed = words[:2] + words_of(other)[:2]
            tags = ["SEA" if w in WORDS["sea"] else "WOOD" for w in mixed]
            yield {"tokens": mixed, "tags": tags}
        elif task == "chat":
            said = [message("user", words[0]), message("assistant", words[1])]
            yield {"messages": [*said, message("user", words[2]), message("assistant", words[0])]}
        else:
            yield pair(row, other)


TASKS = ("regression", "multi-label", "token-classification", "chat", "preference")
SEEN_BY = {
    "regression": "numbers that are not whole", "multi-label": "lists in the column 'label'",
    "token-classification": "the columns 'tokens' and 'tags'", "chat": "the column 'messages'",
    "preference": "the column 'chosen' and the column 'rejected'",
}  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tasks")
    still(folder / "bert", "bert")
    still(folder / "gpt", "gpt2")
    tokenizer = AutoTokenizer.from_pretrained(folder / "gpt")
    tokenizer.chat_template, tokenizer.eos_token = TURNS, "[UNK]"
    tokenizer.save_pretrained(folder / "gpt")
    for task in TASKS:
        jsonl(folder / f"{task}.jsonl", list(rows_of(task)))
    return folder


def config_of(place, task, **changes):
    data = str(place / f"{task}.jsonl")
    setting = {
        "model": str(place / ("gpt" if task in ("chat", "preference") else "bert")), "data": data,
        "validation": data, "test": data, "from_scratch": True, "epochs": 1, "batch": ROWS,
        "warmup": 0.0, "clip": 0.0, "weight_decay": 0.0, "learning_rate": RATE,
    }  # fmt: skip
    return TrainConfig(task, **{**setting, **changes})


def trained(folder, config):
    training = Training(config, folder)
    run_training(training, folder, Console(file=io.StringIO()))
    return training, inrun.load(folder)


def own_loss(task, model, batch):
    """The sum of the losses of all labels, by other code than ours."""
    if task == "preference":
        return trl_loss(model, batch)
    logits_count = {"chat": lambda t: (t[:, 1:] != -100).sum(),
                    "token-classification": lambda t: (t != -100).sum(),
                    "multi-label": lambda t: t.numel()}.get(task, len)(batch["labels"])  # fmt: skip
    model.config.problem_type = {"regression": "regression",
                                 "multi-label": "multi_label_classification"}.get(task)  # fmt: skip
    return model(**batch).loss * logits_count


def trl_loss(model, batch):
    """Minus the log-likelihood that the chosen row is liked, by the formula of DPO's paper."""
    rows = torch.stack([
        torch.stack([
            model(input_ids=ids[None, :n]).logits[0, t - 1].log_softmax(0)[ids[t]]
            for t in range(n) if mask[t]
        ]).sum()
        for ids, mask, n in zip(
            batch["input_ids"], batch["completion_mask"], batch["attention_mask"].sum(1),
            strict=True,
        )
    ])  # fmt: skip
    half = len(rows) // 2
    margin = rows[:half] - rows[half:] - batch["labels"][:, 1]
    return (1 + (-0.1 * margin).exp()).log().sum()


def gradient(loss, model):
    found = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    return torch.cat([g.double().flatten() for g in found if g is not None])


@pytest.mark.parametrize("task", TASKS)
def test_values_are_products_of_gradients(place, task, tmp_path):
    assert task_seen(str(place / f"{task}.jsonl"))[0] == task
    assert SEEN_BY[task] in task_seen(str(place / f"{task}.jsonl"))[1]
    config = config_of(place, task, estimator="sgd", contraction="dense",
                       trainer={"optim": "sgd", "lr_scheduler_type": "constant"})  # fmt: skip
    training, run = trained(tmp_path, config)
    model, _ = training.start()
    count = float(training.weights(training.fetch(training.ids)).sum())
    target = gradient(own_loss(task, model, training.collate(training.splits.validation)), model)
    values = dict(
        zip(*run.values().select(["sample_id", "value"]).to_pydict().values(), strict=True)
    )
    assert sorted(values) == training.ids
    own = [gradient(own_loss(task, model, training.fetch([i])), model) for i in training.ids]
    alone = np.array([RATE * float(target @ g) / count**2 for g in own])
    found = np.array([values[i] for i in training.ids])
    np.testing.assert_allclose(found, alone, rtol=2e-3, atol=2e-3 * np.abs(alone).max())


def test_the_loss_of_pairs_and_chats_is_trls(place, tmp_path):
    """At other weights than those before the first step, which DPO's loss is against."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

    shared = {"output_dir": str(tmp_path), "per_device_train_batch_size": ROWS, "use_cpu": True,
              "report_to": [], "bf16": False, "max_length": 16, "disable_tqdm": True}  # fmt: skip
    kinds = {
        "preference": (DPOTrainer, DPOConfig(**shared, remove_unused_columns=False)),
        "chat": (SFTTrainer, SFTConfig(**shared, assistant_only_loss=True)),
    }
    for task, (kind, settings) in kinds.items():
        training = Training(config_of(place, task))
        model = training.drawn()
        rows = Dataset.from_list(list(rows_of(task)))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer = kind(
                model, args=settings, train_dataset=rows,
                processing_class=AutoTokenizer.from_pretrained(place / "gpt"),
                **({"ref_model": training.drawn()} if task == "preference" else {}),
            )  # fmt: skip
        with torch.no_grad():
            for p in model.parameters():
                p += 0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel()))
        batch = trainer.data_collator([trainer.train_dataset[i] for i in range(ROWS)])
        known = trainer.compute_loss(model.eval(), batch)
        found = training.loss_fn(model, training.fetch(training.ids))
        assert found.item() == pytest.approx(known.item(), rel=1e-4), task
        assert abs(known.item()) > 0.01


def spoiled(task, row, number):
    """The row with one label changed, and what was changed: the place and what it was."""
    if task == "regression":
        return row | {"label": -row["label"]}, (None, row["label"])
    if task == "multi-label":
        wrong = {"sea": "wood", "wood": "sea"}
        was = next(name for name in row["label"] if name in wrong)
        return row | {"label": [n for n in row["label"] if n != was]}, (was, "yes")
    if task == "token-classification":
        k = number % len(row["tags"])
        tags = list(row["tags"])
        was, tags[k] = tags[k], "WOOD" if tags[k] == "SEA" else "SEA"
        return row | {"tags": tags}, (f"{k + 1} {row['tokens'][k]}", was)
    return row | {"chosen": row["rejected"], "rejected": row["chosen"]}, (None, "exchanged")


@pytest.mark.parametrize(
    "task", ["regression", "multi-label", "token-classification", "preference"]
)
def test_changed_labels_come_first_and_are_put_right(place, task, tmp_path):
    """8 of 96 rows."""
    rows = list(rows_of(task, 96))
    if task == "preference":  # a rule that can be learnt: an answer stays with its prompt's words
        sea, wood = (" ".join(WORDS[name][:3]) for name in ("sea", "wood"))
        rows = [
            {"prompt": " ".join(words_of(row)[:2]), "chosen": f" {sea}", "rejected": f" {wood}"}
            for row in texts(96)
        ]
    known = {}
    for number in range(3, 96, 12):
        rows[number], known[number] = spoiled(task, rows[number], number)
    data = jsonl(tmp_path / "spoiled.jsonl", rows)
    config = config_of(place, task, batch=8, epochs=8, learning_rate=1e-2, scored=4, data=str(data),
                       validation_rows=24)  # fmt: skip
    _, run = trained(tmp_path / "run", config)
    table = inrun.label_doubts(run).table
    first = table.slice(0, len(known)).to_pylist()
    right = 0
    for row in first:
        place_of, was = known.get(row["sample_id"], ("", ""))
        if task == "regression":
            right += row["sample_id"] in known and row["suggested_label"] * was > 0
        else:
            right += row.get("place") == place_of and row["suggested_label"] == was
    assert right >= 6, first
    note_label_doubts(run)
    samples = inrun.load(tmp_path / "run").samples().sort_by("doubt_rank").to_pylist()
    assert len({row["sample_id"] for row in samples[:8]} & set(known)) >= 6
    if task == "multi-label":
        assert run.targets == ("long", "sea", "wood")
        assert ": yes, not no" in samples[0]["suggested_label"]


@pytest.mark.parametrize(
    ("task", "row", "says"),
    [
        ("regression", {"text": "wave", "label": "many"}, "'label' is no number"),
        ("regression", {"text": "wave", "label": "inf"}, "not a number of finite size"),
        ("multi-label", {"text": "wave", "label": 3}, "'label' is no list of names"),
        ("token-classification", {"tokens": ["wave", "ship"], "tags": ["SEA"]},
         "2 'tokens' have 1 'tags'"),
        ("chat", {"messages": [message("user", "wave")]}, "must begin with a question and end"),
        ("chat", {"messages": "wave"}, "'messages' is no list of messages"),
        ("chat", {"messages": [{"role": "user"}]}, "has not the texts 'role' and 'content'"),
        ("preference", {"prompt": "wave", "chosen": "ship", "rejected": "ship"}, "are the same"),
        ("preference", {"prompt": "wave", "chosen": "ship"}, "no 'rejected'"),
        ("text-classification", {"text": "wave", "label": 0.5}, "numbers of any size are --task"),
    ],
)  # fmt: skip
def test_a_row_that_is_not_of_its_task_is_named(place, task, row, says, tmp_path):
    good = list(rows_of(task)) if task in TASKS else texts(ROWS)
    data = jsonl(tmp_path / "bad.jsonl", [*good, row])
    with pytest.raises(MisuseError, match="line 25: ") as told:
        Training(config_of(place, task, data=str(data), validation=str(data), test=str(data)))
    assert says in str(told.value)


def test_what_a_tokenizer_lacks_or_a_model_would_not_learn_is_said(place, tmp_path):
    still(tmp_path / "plain", "gpt2")
    with pytest.raises(MisuseError, match="has no chat template"):
        Training(config_of(place, "chat", model=str(tmp_path / "plain"))).utility()
    with pytest.warns(InRunWarning, match="the answer lies beyond --max-length 1 tokens"):
        Training(config_of(place, "chat", max_length=1)).utility()
    far = [row | {"label": 1000 + row["label"]} for row in rows_of("regression")]
    data = jsonl(tmp_path / "far.jsonl", far)
    with pytest.warns(InRunWarning, match="a model begins near 0"):
        Training(config_of(place, "regression", data=str(data)))


def test_messages_of_pairs_and_names_in_one_cell_are_read(place, tmp_path):
    talks = [
        {"chosen": [message("user", row["prompt"]), message("assistant", row["chosen"])],
         "rejected": [message("user", row["prompt"]), message("assistant", row["rejected"])]}
        for row in rows_of("preference")
    ]  # fmt: skip
    data = jsonl(tmp_path / "talks.jsonl", talks)
    batch = Training(config_of(place, "preference", data=str(data))).fetch([0, 1])
    assert batch["input_ids"].shape[0] == 4
    assert batch["completion_mask"].any(1).all()
    table = tmp_path / "named.csv"
    lines = [f"{r['text']},{'|'.join(r['label'])}" for r in rows_of("multi-label")]
    table.write_text("\n".join(["text,label", *lines]))
    config = config_of(place, "multi-label", data=str(table), validation=None, test=None, batch=4)
    training = Training(config)
    assert training.splits.classes == ("long", "sea", "wood")
    listed = {r["text"]: r["label"] for r in map(dict, rows_of("multi-label"))}
    for sample in training.splits.training:
        assert list(sample.label) == listed[sample.content]
        json.dumps(sample.row.cells)


@pytest.mark.parametrize("task", ["regression", "preference"])
def test_a_recorded_run_is_looked_ahead_along(place, task, tmp_path):
    """The sums of effects are those that training again without a sample shows to first order."""
    config = config_of(place, task, batch=8, epochs=2, record=True, learning_rate=1e-3)
    training, run = trained(tmp_path, config)
    found = inrun.lookahead(training.trajectory(), training.utility()).values()
    assert found["sample_id"].to_pylist() == run.values()["sample_id"].to_pylist()
    assert np.isfinite(found["value"].to_numpy()).all()
    row = next(iter(rows_of(task)))
    query = training.query(row)
    own = training.fetch([0])
    with torch.no_grad():
        losses = [training.loss_fn(training.trained(), batch).item() for batch in (query, own)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    note_label_doubts(run)
    write_report(inrun.load(tmp_path), tmp_path / "report.html")
    assert "No validation row has the label" not in (tmp_path / "report.html").read_text()
