"""Small data and models from scratch for `inrun train`: nothing is fetched."""

import csv
import json

import numpy as np
from sklearn.datasets import load_digits

WORDS = {"sea": ["wave", "ship", "salt", "tide", "gull", "foam", "deck"],
         "wood": ["tree", "moss", "fern", "bark", "deer", "path", "leaf"]}  # fmt: skip


def texts(rows, seed=0):
    """Rows of a few words; the words tell the label."""
    rng = np.random.default_rng(seed)
    found = []
    for number in range(rows):
        label = ("sea", "wood")[number % 2]
        words = rng.choice(WORDS[label], 3 + number % 4).tolist()
        found.append({"text": " ".join(words), "label": label, "who": f"author {number % 3}"})
    return found


def jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def table(path, rows, delimiter=","):
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return path


def model_folder(folder, kind):
    """Configuration and word tokenizer of a tiny BERT or GPT-2, as `--from-scratch` takes them."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, GPT2Config, PreTrainedTokenizerFast

    words = ["[PAD]", "[UNK]", *WORDS["sea"], *WORDS["wood"]]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", model_max_length=16
    )
    fast.save_pretrained(folder)
    if kind == "bert":
        shape = BertConfig(
            vocab_size=len(words), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
            intermediate_size=32, max_position_embeddings=16, pad_token_id=0,
        )  # fmt: skip
    else:
        shape = GPT2Config(
            vocab_size=len(words), n_embd=16, n_layer=1, n_head=2, n_positions=16,
            bos_token_id=0, eos_token_id=0,
        )  # fmt: skip
    shape.save_pretrained(folder)
    return folder


def still(folder, kind):
    """The same model without dropout."""
    file = model_folder(folder, kind) / "config.json"
    shape = json.loads(file.read_text())
    file.write_text(json.dumps(shape | {name: 0.0 for name in shape if "drop" in name}))
    return folder


def images(folder, rows=60):
    """Digits 0 and 1, a folder each."""
    from PIL import Image

    digits = load_digits(n_class=2)
    for number in range(rows):
        place = folder / f"digit {digits.target[number]}"
        place.mkdir(parents=True, exist_ok=True)
        pixels = (digits.images[number] * 15.9).astype(np.uint8)
        Image.fromarray(pixels).save(place / f"{number:03d}.png")
    return folder
