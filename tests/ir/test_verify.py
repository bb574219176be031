import pytest
import torch
from torch import nn

from nncompress.errors import VerificationError
from nncompress.ir import Model
from nncompress.ir.verify import drift, not_finite, outputs_checked


def complex_model() -> Model:
    torch.manual_seed(0)
    return Model.from_module(nn.Linear(3, 2, dtype=torch.complex64), (torch.randn(2, 3).cfloat(),))


def test_complex_weights_and_outputs_that_are_not_numbers_are_seen():
    model = complex_model()
    assert not_finite(model) is None
    with torch.no_grad():
        model.tensor("bias")[1] = complex(0, float("nan"))
    assert not_finite(model) == "bias"
    with pytest.raises(VerificationError, match="NaN"):
        outputs_checked(model, model.example_inputs(), "the model")


def test_drift_counts_imaginary_parts():
    y = torch.tensor([[3.0 + 4.0j]])
    (row,) = drift(complex_model(), (y.real + 0j,), (y,))
    assert (row.relative, row.largest) == (pytest.approx(0.8), pytest.approx(4.0))
