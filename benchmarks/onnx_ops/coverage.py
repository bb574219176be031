"""Every op that torch itself has samples of (`op_db`): is it written to .onnx, and read back?

    python -m benchmarks.onnx_ops.coverage [PART OF A NAME …]

One line for an op that is refused, or that our own reader does not take for what was written: where, and why.
Ops that change their operands, draw numbers or return something else than real tensors are left out.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from nncompress.errors import NNCompressError
from nncompress.exporting.write.onnx import write_onnx
from nncompress.ir import Model

SAMPLES = 1  # of each op


class Applied(nn.Module):
    """An op, with tensors in the places of those that its sample has."""

    def __init__(self, op: Any, sample: Any) -> None:
        super().__init__()
        self.op = op
        given, self.form = pytree.tree_flatten(((sample.input, *sample.args), sample.kwargs))
        self.places = [i for i, x in enumerate(given) if isinstance(x, Tensor)]
        self.others = [None if isinstance(x, Tensor) else x for x in given]

    def forward(self, *inputs: Tensor) -> Any:
        given = list(self.others)
        for place, x in zip(self.places, inputs):
            given[place] = x
        args, kwargs = pytree.tree_unflatten(given, self.form)
        return self.op(*args, **kwargs)


def cases() -> Iterator[tuple[str, nn.Module, tuple[Tensor, ...]]]:
    from torch.testing._internal.common_methods_invocations import op_db

    for op in op_db:
        name = f"{op.name}{'.' + op.variant_test_name if op.variant_test_name else ''}"
        if sys.argv[1:] and not any(part in name for part in sys.argv[1:]):
            continue
        dtypes = op.supported_dtypes("cpu")
        dtype = next((d for d in (torch.float32, torch.int64, torch.bool) if d in dtypes), None)
        found = 0
        for sample in op.sample_inputs("cpu", dtype) if dtype else ():
            tensors = [
                x
                for x in pytree.tree_leaves((sample.input, sample.args, sample.kwargs))
                if isinstance(x, Tensor)
            ]
            if not tensors or not all(map(_real, tensors)) or any(x.numel() == 0 for x in tensors):
                continue
            module = Applied(op.op, sample).eval()
            if not _repeats(module, tensors):
                continue
            yield name, module, tuple(x.detach().clone() for x in tensors)
            found += 1
            if found == SAMPLES:
                break


def _real(x: Any) -> bool:
    return isinstance(x, Tensor) and x.layout == torch.strided and not (x.is_complex() or x.is_quantized)


def _repeats(module: nn.Module, tensors: list[Tensor]) -> bool:
    """It returns real tensors, the same ones at every call."""
    try:
        results = [pytree.tree_leaves(module(*(x.detach().clone() for x in tensors))) for _ in range(2)]
    except Exception:  # whatever an operator raises on a sample
        return False
    alike = all(map(_real, results[0])) and results[0]
    return bool(alike) and all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(*results))


def tried(module: nn.Module, inputs: tuple[Tensor, ...]) -> str:
    """What is refused, in words; "" where nothing is."""
    try:
        model = Model.from_module(module, inputs, dynamic_batch=False)
    except NNCompressError as error:
        return f"not loaded: {error.what} {error.got or ''}"
    with TemporaryDirectory() as folder:
        try:
            report = write_onnx(model, Path(folder) / "m.onnx", read_back=True)
        except NNCompressError as error:
            return f"not written: {error.what} {error.got or ''}"
    return f"not read: {report.not_read}" if report.not_read else ""


def main() -> None:
    seen = good = 0
    for name, module, inputs in cases():
        seen += 1
        try:
            refused = tried(module, inputs)
        except Exception as error:  # which no user should see
            refused = f"CRASHED: {type(error).__name__}: {error}"
        good += not refused
        if refused:
            print(f"{name:36} {' '.join(refused.split())[:220]}", flush=True)
    print(f"{good} of {seen} samples are written and read back", flush=True)


if __name__ == "__main__":
    main()
