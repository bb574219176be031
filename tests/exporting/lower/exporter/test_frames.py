"""The inverse of a short-time Fourier transform, said in other ops."""

import pytest
import torch

from nncompress.errors import UnsupportedError
from nncompress.exporting import write
from nncompress.exporting.lower.exporter.frames import istft
from nncompress.ir import Model


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"length": 30},
        {"length": 60},
        {"win_length": 12, "window": torch.hann_window(12)},
        {"normalized": True},
        {"center": False, "window": torch.hamming_window(16)},
        {"window": None},
    ],
)
@pytest.mark.filterwarnings("ignore:The length of signal", "ignore:A window was not provided")
def test_it_is_that_of_torch(how):
    how = {"n_fft": 16, "hop_length": 4, "window": torch.hann_window(16)} | how
    frames = torch.randn(2, 3, 9, 10, dtype=torch.complex64)
    torch.testing.assert_close(
        istft(frames, **how), torch.stack([torch.istft(each, **how) for each in frames])
    )


def test_a_shift_that_follows_from_the_batch_is_refused_by_name(tmp_path):
    class Shifted(torch.nn.Module):
        def forward(self, x):
            return torch.fft.fftshift(torch.fft.fft(x)).abs()  # over the batch, too

    with pytest.raises(UnsupportedError, match="roll"):
        write(Model.from_module(Shifted(), (torch.randn(2, 8),)), tmp_path / "m.onnx")
