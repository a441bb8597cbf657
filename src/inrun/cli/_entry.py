"""A function of the user's own, named on the command line as `module:function`."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from inrun.errors import MisuseError


def entry(name: str) -> Callable[..., Any]:
    """The function that `module:function` names; modules of the present folder are found too.

    Raises:
        MisuseError: no such module or function; an error inside the module is raised as it is.
    """
    module, colon, function = name.partition(":")
    if not (module and colon and function):
        raise MisuseError(f"--entry {name!r} must read module:function, as in train:retrain.")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        loaded = importlib.import_module(module.removesuffix(".py"))
    except ModuleNotFoundError as error:
        if error.name != module.split(".")[0]:
            raise
        raise MisuseError(
            f"--entry names the module {module!r}, which is neither installed nor in {here}."
        ) from None
    found = getattr(loaded, function, None)
    if not callable(found):
        raise MisuseError(f"{module} has no function {function!r}.")
    return found  # type: ignore[no-any-return]  # the user's own
