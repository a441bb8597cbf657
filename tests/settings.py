"""`attach`'s settings by their plain names, for tests that go through many of them."""

from dataclasses import fields, replace

import inrun

OPTIONS = {field.name for field in fields(inrun.Options)}
PARTS = ("validation_parts", "validation_every")


def flat(**given):
    """Keyword arguments of `attach`: options, and how much is scored, put where they belong."""
    options = {name: given.pop(name) for name in list(given) if name in OPTIONS}
    parts = {name: given.pop(name) for name in PARTS if name in given}
    if "every" in given:
        given["scoring"] = inrun.Sampled(given.pop("every"), **parts)
    elif "budget" in given:
        given["scoring"] = inrun.Budget(given.pop("budget"), **parts)
    elif parts:
        given["scoring"] = inrun.EveryStep(**parts)
    if options:
        given["options"] = replace(given.get("options", inrun.Options()), **options)
    return given
