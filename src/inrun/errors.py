"""What can go wrong, by kind, so that a reader of a message knows what to do about it.

Every message says what is wrong, why it matters, how to mend it, and names the layer or the sample.
Three kinds of refusal: it does not work yet (`NotSupportedError`), a layer must be replaced
(`ReplaceLayerError`), or the library was called in a way that it does not mean (`MisuseError`).
The first two are also `NotImplementedError`, the third is a `ValueError`. Beside them
`InvariantError`, a check of the library on itself that failed, and `StoreError`, a stored run that
cannot be read or may not be written.
"""


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


class InRunWarning(UserWarning):
    """Something is less exact than it looks; the message says what and how to see it."""
