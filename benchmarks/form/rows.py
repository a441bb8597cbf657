"""Facts of two tasks, written in two formats; some are trained in one format alone.

A fact is a word and its answer: a country's capital, a word's opposite. Every fact is trained,
most in both formats, so that a model can learn that the formats say the same. Of each task
`ALONE` facts per format are trained in it alone, and asked for in the other one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

FACTS = {
    "capital": (
        "spain:madrid italy:rome germany:berlin poland:warsaw greece:athens norway:oslo "
        "sweden:stockholm finland:helsinki denmark:copenhagen portugal:lisbon ireland:dublin "
        "austria:vienna hungary:budapest egypt:cairo kenya:nairobi japan:tokyo china:beijing "
        "india:delhi iran:tehran iraq:baghdad canada:ottawa cuba:havana peru:lima chile:santiago "
        "russia:moscow turkey:ankara thailand:bangkok vietnam:hanoi nepal:kathmandu ghana:accra"
    ),
    "opposite": (
        "hot:cold big:small tall:short fast:slow old:young rich:poor hard:soft light:dark "
        "early:late happy:sad clean:dirty full:empty near:far high:low open:closed strong:weak "
        "thick:thin wide:narrow wet:dry right:wrong loud:quiet sweet:bitter smooth:rough "
        "sharp:blunt deep:shallow first:last brave:cowardly cheap:expensive safe:dangerous "
        "simple:complicated"
    ),
}
FORMATS = {"question": "what is the {task} of {word} ?", "code": "{task} ( {word} ) ="}
TASKS = tuple(FACTS)
ALONE, LENGTH = 5, 7  # facts per task and format; tokens of a prompt, the shorter padded in front
Group = tuple[str, str]  # a task and a format


@dataclass(frozen=True)
class Rows:
    """Prompts (n, LENGTH) and answers (n,) as word numbers, the group and the fact of each."""

    prompts: Tensor
    answers: Tensor
    groups: list[Group]
    facts: list[str]

    def of(self, group: Group) -> Tensor:
        """Numbers of a group's rows."""
        return torch.tensor([i for i, own in enumerate(self.groups) if own == group])

    def batch(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Prompts and answers."""
        return self.prompts[rows], self.answers[rows]


def drawn(seed: int) -> tuple[Rows, Rows, int]:
    """Training rows, what is asked, and how many words there are."""
    generator = torch.Generator().manual_seed(seed)
    trained, asked = [], []
    for task, told in FACTS.items():
        pairs = [tuple(pair.split(":")) for pair in told.split()]
        order = torch.randperm(len(pairs), generator=generator).tolist()
        for place, number in enumerate(order):
            for at, form in enumerate(FORMATS):
                alone_elsewhere = place // ALONE == 1 - at
                (asked if alone_elsewhere else trained).append((task, form, *pairs[number]))
    words = {"<pad>": 0}
    for task, form, word, answer in trained:
        for part in [*_prompt(task, form, word), answer]:
            words.setdefault(part, len(words))
    return _rows(trained, words), _rows(asked, words), len(words)


def _prompt(task: str, form: str, word: str) -> list[str]:
    return FORMATS[form].format(task=task, word=word).split()


def _rows(chosen: list[tuple[str, str, str, str]], words: dict[str, int]) -> Rows:
    prompts = []
    for task, form, word, _ in chosen:
        told = [words[part] for part in _prompt(task, form, word)]
        prompts.append([0] * (LENGTH - len(told)) + told)
    return Rows(
        torch.tensor(prompts),
        torch.tensor([words[answer] for *_, answer in chosen]),
        [(task, form) for task, form, *_ in chosen],
        [f"{task} {word}" for task, _, word, _ in chosen],
    )
