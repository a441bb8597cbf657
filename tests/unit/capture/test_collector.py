"""The garbage collector rests inside, and is afterwards as it was before."""

import gc

import pytest

from inrun.capture import Resting


@pytest.mark.parametrize("on", [True, False])
def test_the_collector_is_afterwards_as_it_was_before(on):
    try:
        (gc.enable if on else gc.disable)()
        with pytest.raises(KeyError), Resting():
            with Resting():
                assert not gc.isenabled()
            assert not gc.isenabled()
            raise KeyError
        assert gc.isenabled() == on
    finally:
        gc.enable()
