"""Where a run computes, and how precisely.

Mixed precision: matrix products in 16 bits, weights and sums in 32 (Micikevicius et al. 2018).
"""

from __future__ import annotations

import torch

from nncompress.errors import DeviceError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Precision:
    """How the forward pass computes.

    Attributes:
        scaler: keeps small gradients of fp16 above zero; passes everything through in the other precisions.

    Raises:
        DeviceError: the device does not have that precision.
    """

    def __init__(self, name: str, device: torch.device) -> None:
        if name == "fp16" and device.type != "cuda":
            raise DeviceError(
                "train: --precision fp16 needs a GPU, and there is none here",
                remedy="--precision bf16, which a CPU has too",
            )
        if name == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported():
            raise DeviceError("train: this GPU has no bf16", remedy="--precision fp16")
        self._device, self._dtype = device.type, DTYPES[name]
        self.scaler = torch.amp.GradScaler(device.type, enabled=name == "fp16")

    def forward(self) -> torch.autocast:
        """The context of a forward pass."""
        return torch.autocast(self._device, self._dtype, enabled=self._dtype != torch.float32)


def device_of(name: str) -> torch.device:
    """The device that --device names.

    Raises:
        DeviceError: it is not here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise DeviceError("train: there is no CUDA device here", remedy="--device cpu")
    return torch.device(name)
