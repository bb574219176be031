"""`.pte` in bfloat16, which numpy has not: results come as float32, and inputs cannot be given."""

import pytest
import torch
from torch import nn

from nncompress import extras
from nncompress.errors import UnsupportedError
from nncompress.exporting import write
from nncompress.ir import Model

pytestmark = pytest.mark.skipif(
    not extras.installed("mobile"), reason="executorch is not installed: pip install 'nncompress[mobile]'"
)


class Rounded(nn.Linear):
    def forward(self, x):
        return super().forward(x).bfloat16()


def test_an_output_of_bfloat16_is_compared_as_the_float32_that_runtimes_give(tmp_path):
    model = Model.from_module(Rounded(8, 4).eval(), (torch.randn(2, 8),))
    report = write(model, tmp_path / "m.pte")
    assert report.max_abs_diff < 0.1


def test_inputs_of_bfloat16_are_refused_by_name_with_the_way_to_float32(tmp_path):
    module = nn.Linear(8, 4).eval().bfloat16()
    model = Model.from_module(module, (torch.randn(2, 8).bfloat16(),))
    with pytest.raises(UnsupportedError, match=r"bfloat16.*input input") as refused:
        write(model, tmp_path / "m.pte")
    assert "--precision float32" in refused.value.remedy
    assert not list(tmp_path.iterdir())
