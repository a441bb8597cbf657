"""A validation loss that fails in one process of two: both say it, and both go on."""

import json

import pytest

from tests.integration import failing_processes as script
from tests.processes import run_together


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    folder = tmp_path_factory.mktemp("failing")
    run_together(script, folder, 2)
    return [json.loads((folder / f"said-{rank}").read_text()) for rank in range(2)]


@pytest.mark.parametrize("what", script.WHAT)
def test_every_process_says_it_leaves_out_the_same_step_and_goes_on(said, what):
    first, last = ({k: v for k, v in one.items() if k.startswith(what)} for one in said)
    assert first.keys() == last.keys()
    assert len(first) > 5
    for name, found in first.items():
        other = last[name]
        assert found["steps"] == other["steps"]
        assert len(found["steps"]) == 5
        assert found["values"] == other["values"]
        assert len(found["said"]) == len(other["said"]) == 1
        word = {"loss": "not finite", "gradient": "its gradient is not"}.get(what, "not there")
        assert word in found["said"][0]
        assert word in other["said"][0]


@pytest.mark.parametrize("what", script.AT_ATTACH)
def test_an_attach_that_fails_in_one_process_is_said_by_all_and_can_be_done_again(said, what):
    first, last = (one["attach"][what] for one in said)
    for found in (first, last):
        assert len(found["said"]) == 1
        assert ("StoreError" if what == "store" else "not there") in found["said"][0]
        assert found["steps"] == [1]
    who, number = (last, 0) if what == "store" else (first, 1)
    assert f"failed in process {number} of 2" in who["said"][0]
