"""Errors are caught by the names that Python has for such errors, and by the library's own."""

import pytest

from inrun import errors

KINDS = [
    (errors.MisuseError, ValueError),
    (errors.NotSupportedError, NotImplementedError),
    (errors.ReplaceLayerError, NotImplementedError),
]


@pytest.mark.parametrize(("kind", "builtin"), KINDS)
def test_an_error_is_also_python_s_own(kind, builtin):
    for caught in (builtin, errors.InRunError):
        with pytest.raises(caught, match="what to do"):
            raise kind("what to do")


def test_every_error_of_the_library_has_one_base():
    classes = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    kinds = [kind for kind in classes if kind.__module__ == errors.__name__]
    assert errors.MisuseError in kinds
    assert all(issubclass(kind, (errors.InRunError, errors.InRunWarning)) for kind in kinds)
