"""Rounding to bytes and back has the bits of the formulas that torch states for it."""

from __future__ import annotations

import pytest
import torch
import torch.ao.quantization.fx._decomposed as stated

import nncompress.ir.formats.qdq_kernels  # noqa: F401

ops = torch.ops.quantized_decomposed


@pytest.mark.parametrize("bounds", [(0, 255, torch.uint8), (-128, 127, torch.int8), (-7, 7, torch.int8)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_bits_of_the_formula(bounds, dtype):
    generator = torch.Generator().manual_seed(1)
    for scale, zero in ((0.0213, bounds[0]), (1.7e-3, 3), (2.0**-60, 0)):
        steps = torch.randint(-400, 400, (5, 300), generator=generator) / 2  # half of them between two
        x = (steps * scale).to(dtype)
        x[0, :3] = torch.tensor([-0.0, torch.inf, -torch.inf])
        given = x.clone()
        codes = ops.quantize_per_tensor(x, scale, zero, *bounds)
        assert torch.equal(codes, stated.quantize_per_tensor(x, scale, zero, *bounds))
        assert torch.equal(x, given)
        for out in (None, torch.float16):
            back = ops.dequantize_per_tensor(codes, scale, zero, *bounds, out_dtype=out)
            assert back.dtype == (out or torch.float32)
            expected = stated.dequantize_per_tensor(codes, scale, zero, *bounds, out_dtype=out)
            assert torch.equal(back.view(torch.uint8), expected.view(torch.uint8))


def test_strided_values_are_read_in_their_order():
    x = torch.randn(4, 6).T[::2]
    codes = ops.quantize_per_tensor(x, 0.02, 128, 0, 255, torch.uint8)
    assert torch.equal(codes, stated.quantize_per_tensor(x, 0.02, 128, 0, 255, torch.uint8))


def test_other_types_are_refused_as_before():
    with pytest.raises(AssertionError, match="float32"):
        ops.quantize_per_tensor(torch.ones(2, dtype=torch.float64), 0.1, 0, 0, 255, torch.uint8)
    with pytest.raises(AssertionError, match="uint8"):
        ops.dequantize_per_tensor(torch.ones(2, dtype=torch.int8), 0.1, 0, 0, 255, torch.uint8)
