"""How tensors of few values or many zeros are stored in a file."""

from __future__ import annotations

from typing import Literal

# plain:   as they are
# packed:  as codebook and indices, bitmap and values (`nncompress.ir.formats.packed`), where that is smaller
# entropy: packed, then entropy-coded (`nncompress.ir.formats.deflate`); not in .onnx, which has no op for it
Storage = Literal["plain", "packed", "entropy"]
