"""What kinds of numbers are called everywhere: in inputs, files, messages and JSON."""

from __future__ import annotations

# of an input that can be stated, and kept in a file
INPUTS = ("float32", "float16", "bfloat16", "float64", "int64", "int32", "int16", "int8", "uint8", "bool")


def dtype_name(dtype: object) -> str:
    """ "float32" of torch's or numpy's own."""
    return str(dtype).removeprefix("torch.")
