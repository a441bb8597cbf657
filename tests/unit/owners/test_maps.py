"""Maps vary along as few axes as they can: rules take a sample's slots together then."""

import pytest
import torch

from inrun.owners._map import reshaped


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ((6, 5), (2, 3, 5), (2, 1, 1)),  # tokens in one axis, as HF's Conv1D leaves them
        ((6, 5), (2, 3, 1, 5), (2, 1, 1, 1)),
        ((6,), (2, 3), (2, 1)),
        ((2, 3, 5), (6, 5), (6, 1)),
    ],
)
def test_a_batch_axis_that_is_put_apart_again_varies_alone(before, after, expected):
    owner = torch.arange(2, dtype=torch.int32).repeat_interleave(3)
    rows = owner if before[0] == 6 else owner.reshape(2, 3)[:, :1]
    codes = rows.reshape(rows.shape + (1,) * (len(before) - rows.ndim))
    found = reshaped(codes, torch.Size(before), torch.Size(after))
    assert found.shape == expected
    spread = codes.expand(before).reshape(after)  # entry by entry
    assert torch.equal(found.expand(after), spread)
