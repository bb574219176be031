"""Weights as integers with scales, and as factors: what is stored means what it should, or is refused."""

import pytest
import torch

from nncompress.ir.formats.reduced import restore_reduced, store_integers


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 8])
@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("zeros", [False, True])
def test_integers_come_back_exactly(bits, groups, zeros):
    codes = torch.randint(-(2 ** (bits - 1)), 2 ** (bits - 1), (9, 20), dtype=torch.int8)
    scales = torch.rand(9, groups) + 0.1
    points = torch.randint(-2, 2, (9, groups), dtype=torch.int8) if zeros else None
    parts = store_integers(codes, bits, scales, points)
    assert parts["codes"].numel() == -(-180 * {2: 2, 3: 4, 4: 4, 5: 8, 8: 8}[bits] // 8)
    shifted = codes.float() - (0 if points is None else points.float().repeat_interleave(20 // groups, 1))
    assert torch.equal(restore_reduced(parts, (9, 20)), shifted * scales.repeat_interleave(20 // groups, 1))


GOOD = store_integers(torch.zeros(8, 16, dtype=torch.int8), 4, torch.ones(8, 2))
BAD = {
    "too few codes": {**GOOD, "codes": GOOD["codes"][:-1]},
    "no codes": {"scales": GOOD["scales"]},
    "scales of other rows": {**GOOD, "scales": torch.ones(9, 2)},
    "groups that do not divide": {**GOOD, "scales": torch.ones(8, 3)},
    "no groups": {**GOOD, "scales": torch.ones(8, 0)},
    "scales in double": {**GOOD, "scales": torch.ones(8, 2).double()},
    "zero points of another shape": {**GOOD, "zeros": torch.zeros(8, 1, dtype=torch.int8)},
    "codes of floats": {**GOOD, "codes": GOOD["codes"].float()},
    "one factor": {"second": torch.ones(8, 2)},
    "factors that do not meet": {"first": torch.ones(3, 16), "second": torch.ones(8, 2)},
    "factors of another weight": {"first": torch.ones(2, 17), "second": torch.ones(8, 2)},
    "integer factors": {"first": torch.ones(2, 16).int(), "second": torch.ones(8, 2).int()},
}


@pytest.mark.parametrize("name", BAD)
def test_parts_that_do_not_fit_are_refused(name):
    with pytest.raises(ValueError, match=r"scales|codes|zero points|factors"):
        restore_reduced(BAD[name], (8, 16))
