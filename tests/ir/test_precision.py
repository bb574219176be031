import networks
import pytest
import torch
from records import images

from nncompress.errors import UnsupportedError
from nncompress.ir.precision import in_precision
from nncompress.passes import Context, Quantize


@pytest.mark.parametrize(("precision", "tolerance"), [("float16", 0.01), ("bfloat16", 0.06)])
@pytest.mark.parametrize("name", ["residual", "attention", "tied"])
def test_outputs_stay_close_in_half_precision(name, precision, tolerance):
    model = networks.model(name)
    half = in_precision(model, precision)
    dtypes = {tensor.dtype for tensor in half.state_dict().values() if tensor.is_floating_point()}
    assert dtypes == {getattr(torch, precision)}
    inputs = networks.inputs(name, 8)
    expected = model(*inputs).detach()
    got = half(*(x.to(spec.torch_dtype()) for x, spec in zip(inputs, half.inputs))).detach()
    assert got.dtype == getattr(torch, precision)
    assert 0 < float((got.float() - expected).norm() / expected.norm()) < tolerance
    assert model.inputs[0].dtype != precision


def test_a_quantized_model_has_no_half_precision():
    model = networks.model("residual")
    Quantize().apply(model, Context(data=images(32, None)))
    with pytest.raises(UnsupportedError, match="quantized"):
        in_precision(model, "float16")
