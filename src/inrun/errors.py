"""What can go wrong, by kind, so that a reader of a message knows what to do about it.

Every message says what is wrong, why it matters, how to mend it, and names the layer or the sample.
Three kinds of refusal: it does not work yet (`NotSupportedError`), a layer must be replaced
(`ReplaceLayerError`), or the library was called in a way that it does not mean (`MisuseError`).
The first two are also `NotImplementedError`, the third is a `ValueError`. Beside them
`InvariantError`, a check of the library on itself that failed, `StoreError`, a stored run that
cannot be read or may not be written, and `MissingExtraError`, an extra that is not installed.
"""

import importlib.util
from collections.abc import Iterable


class InRunError(Exception):
    """Base of every error that this library raises on purpose."""


class NotSupportedError(InRunError, NotImplementedError):
    """What was asked could be done, but is not done yet; the message names the way round."""


class ReplaceLayerError(InRunError, NotImplementedError):
    """A layer makes samples depend on each other; the message names what to put in its place."""


class MisuseError(InRunError, ValueError):
    """The library was called in an order or with values that it does not mean."""


class InvariantError(InRunError):
    """A check that runs with every step failed: the numbers would be wrong, so there are none."""


class StoreError(InRunError):
    """A stored run is torn, incomplete or not one, or a new run would overwrite an old one."""


class MissingExtraError(InRunError, ImportError):
    """A package that only an extra needs is not installed; the message has the `pip install`."""


def require_extra(extra: str, *packages: str) -> None:
    """Raises where a package of an extra is not installed.

    Args:
        extra: its name, as in `pip install 'inrun[report]'`.
        packages: as they are imported.

    Raises:
        MissingExtraError: one of them is not there.
    """
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingExtraError(
            f"This needs {' and '.join(missing)}, not installed here: pip install 'inrun[{extra}]'"
        )


def require_one_of(name: str, value: object, choices: Iterable[str]) -> None:
    """Raises where an argument is none of the words that it may be.

    Raises:
        MisuseError: it names them.
    """
    known = list(choices)
    if value not in known:
        raise MisuseError(f"{name} {value!r} is not one of {', '.join(known)}.")


class InRunWarning(UserWarning):
    """Something is less exact than it looks; the message says what and how to see it."""
