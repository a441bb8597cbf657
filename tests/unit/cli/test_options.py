"""The options of `inrun train` and `inrun plan` are what a configuration can say."""

import dataclasses
import inspect

from inrun.cli import _train
from inrun.training import TrainConfig


def test_every_setting_has_an_option_and_every_option_a_setting():
    settings = {field.name for field in dataclasses.fields(TrainConfig)}
    assert set(_train.SHARED) - {"config"} == settings


def test_both_verbs_take_the_same_options_and_their_own():
    train, plan = (set(inspect.signature(verb).parameters) for verb in (_train.train, _train.plan))
    assert train - plan == {"out", "resume"}
    assert plan <= train
    assert plan == set(_train.SHARED)
