"""A small language model trained on topics of Python's own help, and texts traced through it.

The texts are those that `help("...")` prints, cut into sentences; they come with Python. The model
is a GPT-2 config from scratch over whole words, so that nothing is fetched.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections import Counter
from pathlib import Path
from pydoc_data.topics import topics

from benchmarks.shown.shell import transcript

CHOSEN = (
    "with", "try", "raise", "for", "while", "if", "class", "function", "lambda", "import",
    "comparisons", "booleans", "assignment", "del", "global", "yield", "return", "assert",
    "numbers", "strings", "typesseq", "typesmapping", "subscriptions", "slicings", "power",
)  # fmt: skip
WORDS, FEWEST, LENGTH = 1500, 6, 40
QUERIES = {  # sentences of the help, told a little differently
    "finally": "If the finally clause raises an exception of its own , the saved exception is set "
    "as the context of the new one .",
    "break": "A break statement in the first suite ends the loop and skips the else clause .",
    "dots": "Two dots mean up one level in the package .",
}
TRAIN = (
    "inrun train --model model --from-scratch --data help.jsonl --task causal-lm "
    "--source-column topic --epochs 15 --max-length 40 --validation questions.jsonl "
    "--target-column query --out run"
)


def shown() -> dict[str, str]:
    """The transcripts by name."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_rows(folder)
        questions = [{"text": text, "query": name} for name, text in QUERIES.items()]
        _write(folder / "questions.jsonl", questions)
        asked = [f"inrun trace run --target {name} --top 3" for name in QUERIES]
        return {"topics": transcript(folder, TRAIN), "trace": transcript(folder, *asked)}


def _write(path: Path, rows: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def sentences() -> list[dict[str, str]]:
    """The chosen topics' sentences of moderate length, with the topic's name."""
    rows = []
    for topic in CHOSEN:
        prose = [
            paragraph
            for paragraph in topics.get(topic, "").split("\n\n")
            if not paragraph.startswith((" ", "*", "+", "|")) and "::=" not in paragraph
        ]
        text = " ".join(" ".join(prose).translate(str.maketrans("", "", '*`"_')).split())
        for sentence in re.split(r"(?<=[.:;]) (?=[A-Z])", text):
            words = re.findall(r"\w+|[^\w\s]", sentence)
            if FEWEST <= len(words) <= LENGTH:
                rows.append({"text": " ".join(words), "topic": topic})
    return rows


def write_rows(folder: Path) -> None:
    """`help.jsonl` and the folder `model`: a configuration and a tokenizer of whole words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import GPT2Config, PreTrainedTokenizerFast

    rows = sentences()
    _write(folder / "help.jsonl", rows)
    counts = Counter(word for row in rows for word in row["text"].split())
    words = ["[PAD]", "[UNK]", *(word for word, _ in counts.most_common(WORDS))]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", model_max_length=LENGTH
    ).save_pretrained(folder / "model")
    GPT2Config(
        vocab_size=len(words), n_embd=64, n_layer=2, n_head=4, n_positions=LENGTH,
        bos_token_id=0, eos_token_id=0, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    ).save_pretrained(folder / "model")  # fmt: skip
