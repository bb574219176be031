"""nncompress: make a trained PyTorch model smaller and faster, and know that it is.

    import nncompress

    model = nncompress.load("model.pt2")
    model = nncompress.compress(model, [nncompress.passes.Prune(std=0.5)], data="val.npz")
    nncompress.save(model, "smaller.onnx")

Importing this package does not import torch; the first attribute used does.
"""

from __future__ import annotations

__version__ = "0.1.0"
