"""Every elementwise op of torch, written to .onnx: which digits does it lose that torch keeps?

    python -m benchmarks.onnx_ops.precision [PART OF A NAME …]

Arguments are of 1e-8 to 1e8 and of both signs, the truth is torch's in float64. A loss is a relative error
above 1e-5 and above ten times that of torch in float32. What ONNX Runtime's own kernels of Elu and Sigmoid
round (to 6e-8 of 1) is shown, too.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from nncompress.errors import NNCompressError
from nncompress.exporting.write.onnx import write_onnx
from nncompress.ir import Model
from nncompress.runtimes import open_artifact

MAGNITUDES = torch.cat(
    [10 ** torch.linspace(-8, 8, 161), torch.linspace(0.05, 20, 100), 1 - 10 ** torch.linspace(-7, -1, 20)]
)
NUMBER = 1.7  # in the place of a number among the arguments


class Called(nn.Module):
    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.function(*inputs)


def elementwise() -> Iterator[tuple[str, Any, list[str]]]:
    """Name, op and kinds of its arguments, of those that take tensors and numbers alone."""
    for name in sorted(dir(torch.ops.aten)):
        packet = getattr(torch.ops.aten, name)
        for overload in packet.overloads() if hasattr(packet, "overloads") and name[0] != "_" else ():
            op = getattr(packet, overload)
            needed = [a for a in op._schema.arguments if not a.has_default_value() and not a.kwarg_only]
            kinds = [str(a.type) for a in needed]
            results = [str(each.type) for each in op._schema.returns]
            plain = not op._schema.is_mutable and not any(a.is_out for a in op._schema.arguments)
            listed = torch.Tag.pointwise in op.tags or name.startswith("special_")
            taken = results == ["Tensor"] and "Tensor" in kinds and {*kinds} <= {"Tensor", "number"}
            if listed and plain and taken:
                yield f"{name}.{overload}", op, kinds


def lost(op: Any, kinds: list[str], inputs: list[Tensor]) -> str:
    """In words; "" where nothing is."""

    def function(*given: Tensor) -> Tensor:
        tensors = iter(given)
        return op(*(next(tensors) if kind == "Tensor" else NUMBER for kind in kinds))

    try:
        exact = function(*(x.double() for x in inputs))
        own = function(*inputs)
    except (RuntimeError, ValueError) as error:
        return f"not run by torch on floats: {str(error)[:60]}"
    if not exact.is_floating_point():
        return ""
    try:
        model = Model.from_module(Called(function).eval(), tuple(inputs), notice=print)
        with TemporaryDirectory() as folder:
            write_onnx(model, Path(folder) / "m.onnx")
            runner = open_artifact(Path(folder) / "m.onnx")
            got = torch.from_numpy(runner.run(*inputs)[0])
    except NNCompressError as error:
        return f"refused: {error.what[:80]}"
    normal = exact.isfinite() & (exact.abs() > 1e-37) & (exact.abs() < 1e38)
    away, torchs = (((y.double() - exact) / exact).abs().nan_to_num(torch.inf) for y in (got, own))
    worse = (normal & (away > 1e-5) & (away > 10 * torchs)).nonzero().flatten().tolist()
    if not worse:
        return ""
    place = max(worse, key=lambda i: float(away[i]))
    at = ", ".join(f"{float(x[place]):.6g}" for x in inputs)
    return (
        f"at {len(worse)} of {len(exact)}: f({at}) = {float(exact[place]):.6g}, got {float(got[place]):.6g}"
    )


def main() -> None:
    x = torch.cat([MAGNITUDES, -MAGNITUDES])
    shuffled = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(0))]
    for name, op, kinds in elementwise():
        if sys.argv[1:] and not any(part in name for part in sys.argv[1:]):
            continue
        found = lost(op, kinds, [x, shuffled, x.flip(0)][: kinds.count("Tensor")])
        if found:
            print(f"{name:32} {found}", flush=True)


if __name__ == "__main__":
    main()
