"""What is taken from `transformers` and `peft`; both are imported when they are asked for."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from inrun.errors import MisuseError, NotSupportedError
from inrun.training._config import TrainConfig

Batch = dict[str, Tensor]


class Text:
    """Tokens of a text, for whoever has a configuration."""

    def __init__(self, config: TrainConfig):
        transformers = _transformers()
        with quiet():
            try:
                tokenizer = transformers.AutoTokenizer.from_pretrained(
                    config.tokenizer or config.model
                )
            except Exception as error:  # missing files, no network, unknown kinds
                raise MisuseError(
                    f"No tokenizer could be loaded from {config.tokenizer or config.model}: "
                    f"{error}. Name a folder that has one with --tokenizer."
                ) from error
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
        if tokenizer.pad_token is None:
            raise MisuseError(
                f"The tokenizer of {config.tokenizer or config.model} has neither a padding nor an "
                "end token, so texts of different lengths cannot be put into one batch. Add one to "
                "its configuration."
            )
        self.tokenizer, self._length = tokenizer, config.max_length

    def pieces(self, text: str) -> list[str]:
        """What each token stands for, so that they put together are the text, as far as it goes."""
        if not self.tokenizer.is_fast:
            ids = self.tokenizer(text, truncation=True, max_length=self._length)["input_ids"]
            return list(self.tokenizer.convert_ids_to_tokens(ids))
        encoded = self.tokenizer(
            text, truncation=True, max_length=self._length, return_offsets_mapping=True
        )
        found, end = [], 0
        for (begin, stop), i in zip(encoded["offset_mapping"], encoded["input_ids"], strict=True):
            special = begin == stop and i in self.tokenizer.all_special_ids
            found.append(self.tokenizer.convert_ids_to_tokens(i) if special else text[end:stop])
            end = max(end, stop)
        return found

    def encode(self, texts: Sequence[str]) -> Batch:
        """`input_ids` and `attention_mask`, (B, T), padded on the right to the longest."""
        encoded = self.tokenizer(
            list(texts), truncation=True, max_length=self._length, padding=True,
            padding_side="right", return_tensors="pt",
        )  # fmt: skip
        return {name: encoded[name] for name in ("input_ids", "attention_mask")}


def pretrained(config: TrainConfig, kind: str, **settings: Any) -> nn.Module:
    """A model of `transformers` by the configuration's name, or of its shape with drawn weights.

    Raises:
        MisuseError: it cannot be loaded.
    """
    transformers = _transformers()
    auto = getattr(transformers, kind)
    with quiet():
        try:
            if config.from_scratch:
                shape = transformers.AutoConfig.from_pretrained(config.model, **settings)
                model = auto.from_config(shape)
            else:
                model = auto.from_pretrained(config.model, **settings)
        except Exception as error:  # missing files, no network, unknown architectures
            raise MisuseError(
                f"The model {config.model} could not be loaded: {error}. Name a folder in the form "
                "that `transformers` saves, or, with network, a name on the hub; --from-scratch "
                "needs the folder's config.json only."
            ) from error
    return model  # type: ignore[no-any-return]


def peft() -> Any:
    """The package.

    Raises:
        NotSupportedError: it is not installed.
    """
    try:
        import peft as package
    except ImportError:
        raise NotSupportedError(
            "LoRA needs the package `peft`, which is not installed: pip install 'inrun[train]'."
        ) from None
    return package


@contextmanager
def quiet() -> Iterator[None]:
    """Without the loader's bars and reports: that a head is new is known here."""
    logging = _transformers().utils.logging
    shown, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of each other
            yield
    finally:
        logging.set_verbosity(level)
        if shown:
            logging.enable_progress_bar()


def _transformers() -> Any:
    try:
        import transformers
    except ImportError:
        raise NotSupportedError(
            "Text and large image models are those of the package `transformers`, which is not "
            "installed: pip install 'inrun[train]'. --model cnn for images needs nothing extra."
        ) from None
    return transformers
