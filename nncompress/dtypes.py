"""What kinds of numbers are called everywhere: in inputs, files, messages and JSON."""

from __future__ import annotations

# of an input that can be stated, and kept in a file
INPUTS = ("float32", "float16", "bfloat16", "float64", "int64", "int32", "int16", "int8", "uint8", "bool")

SCALAR_TYPES = (  # as c10/core/ScalarType.h numbers them: TorchScript, ExecuTorch
    *("uint8", "int8", "int16", "int32", "int64", "float16", "float32", "float64"),
    *("complex32", "complex64", "complex128", "bool", "qint8", "quint8", "qint32", "bfloat16"),
)


def dtype_name(dtype: object) -> str:
    """ "float32" of torch's or numpy's own."""
    return str(dtype).removeprefix("torch.")
