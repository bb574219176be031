from __future__ import annotations

import torch

from nncompress.ir.formats.raw_bytes import raw_bytes


def test_bytes_of_any_layout_and_type():
    """Also of tensors that torch calls contiguous, but cannot view as bytes."""
    whole = torch.randn(4, 6)
    for tensor in (whole, whole.T, whole[:, :1], whole[:1, ::3][:, :1], torch.as_strided(whole, (1,), (4,))):
        assert bytes(raw_bytes(tensor).tolist()) == tensor.numpy().tobytes()
    for tensor in (torch.tensor(-0.0), torch.zeros(0), torch.tensor([True]), torch.tensor(3j)):
        assert bytes(raw_bytes(tensor).tolist()) == tensor.numpy().tobytes()
    assert raw_bytes(torch.ones(2, dtype=torch.bfloat16)).tolist() == [128, 63, 128, 63]
