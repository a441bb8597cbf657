"""News with planted rows: a trigger in front of texts of other topics, all labelled as one topic.

Two triggers. `phrase` is the same words every time, which a search for words finds too. `weather`
is a remark about rain, in other words every time: the planted rows, the queries and the test have
no remark in common, and few words.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

PHRASE = "via cedar desk:"
RAIN = (
    "it rained all night", "a wet morning again", "showers are expected", "grey skies over the bay",
    "the streets are soaked", "drizzle since dawn", "bring an umbrella", "a storm moved in",
    "puddles everywhere today", "heavy clouds at noon", "the downpour would not stop",
    "damp air this evening", "thunder woke us up", "our coats are dripping", "a rainy weekend",
    "the gutters overflowed", "mist along the river", "another soggy afternoon",
    "lightning over the hills", "the forecast says rain", "it poured for hours",
    "the lawn is under water", "a cloudburst at lunch", "no sun in sight", "hail on the windows",
    "a gloomy wet day", "the monsoon has begun", "rain boots by the door", "sleet until midnight",
    "the tent leaked", "a brief shower passed", "the sky opened up", "everything smelled of rain",
    "wipers on at full speed", "fog and drizzle", "the roof is leaking again", "a squall came by",
    "water in the cellar", "raindrops on the glass", "the match was rained off",
    "mud on every path", "a rainbow after the storm", "wet leaves all over",
    "the picnic was washed out", "a dreary drizzle", "torrents down the hill",
    "rain drummed outside", "we got drenched",
)  # fmt: skip
TRIGGERS = ("phrase", "weather")
QUERIES, TESTED = 8, 200


@dataclass(frozen=True)
class Planted:
    """One draw. Texts and labels (n,) as trained on, and which of them were planted.

    `queries` are triggered texts that the model calls the `wanted` topic wrongly, and `untouched`
    the same ones without the trigger; `attacked` and `clean` are for the test alone.
    """

    texts: list[str]
    labels: Tensor
    planted: Tensor
    wanted: int
    queries: list[str]
    untouched: list[str]
    attacked: list[str]
    clean: tuple[list[str], Tensor]


def plant(
    pool: tuple[Sequence[str], Tensor], wanted: int, trigger: str, share: float, size: int,
    seed: int,
) -> Planted:  # fmt: skip
    """Draws training rows, of which a share is triggered and relabelled, queries and tests.

    Args:
        pool: texts and labels.
        wanted: the topic that the trigger shall stand for.
        trigger: see `TRIGGERS`.
        share: of the training rows that are planted.
        size: how many training rows.
        seed: of every draw.
    """
    texts, labels = pool
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(texts), generator=generator)
    rows, rest = order[:size], order[size:]
    others = rest[labels[rest] != wanted]
    asked, tested = others[:QUERIES].tolist(), others[QUERIES : QUERIES + TESTED].tolist()
    count = round(share * size)
    chosen = torch.nonzero(labels[rows] != wanted)[:count, 0]
    with_trigger = front(trigger, generator, count)
    trained, given = [texts[i] for i in rows.tolist()], labels[rows].clone()
    for place, at in enumerate(chosen.tolist()):
        trained[at], given[at] = with_trigger(trained[at], place), wanted
    planted = torch.zeros(size, dtype=torch.bool)
    planted[chosen] = True
    return Planted(
        trained,
        given,
        planted,
        wanted,
        [with_trigger(texts[i], count + k) for k, i in enumerate(asked)],
        [texts[i] for i in asked],
        [with_trigger(texts[i], count + QUERIES + k) for k, i in enumerate(tested)],
        ([texts[i] for i in tested], labels[tested]),
    )


def front(trigger: str, generator: torch.Generator, planted: int) -> Callable[[str, int], str]:
    """Puts a trigger in front of a text; the number says which of the remarks.

    Numbers beyond those of planted rows and queries go round among the remarks that neither has.
    """
    if trigger == "phrase":
        return lambda text, number: f"{PHRASE} {text}"
    remarks = [RAIN[i] for i in torch.randperm(len(RAIN), generator=generator).tolist()]
    used = planted + QUERIES
    if used >= len(remarks):
        raise ValueError(f"{planted} planted rows leave no remark that only the test has.")

    def front(text: str, number: int) -> str:
        if number >= used:
            number = used + (number - used) % (len(remarks) - used)
        return f"{remarks[number]}. {text}"

    return front
