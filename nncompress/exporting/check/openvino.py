"""An exported file in OpenVINO: run, compared with the graph, and asked in what each layer ran.

Up to three times: as it is written, in floats; on its integer kernels, with floats in float32; and as
OpenVINO runs it by itself, which is in bfloat16 on a processor that can.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from nncompress.analysis.distance.precision import precision_of
from nncompress.errors import VerificationError
from nncompress.exporting.check import compare as verify
from nncompress.exporting.check.compare import Comparison
from nncompress.extras import version
from nncompress.ir import Model
from nncompress.ir.formats.samples import verification_inputs
from nncompress.runtimes.on_openvino import HEAVY, OpenVinoRunner, by_itself, summary

NAMED = 5  # layers in float that a report names


def compare(model: Model, path: Path, *, source: Path | None = None, integers: bool = True) -> Comparison:
    """See `nncompress.exporting.check.compare.compare`.

    Args:
        source: the `.onnx` that an `.xml` was made of (default: `path` is one).
        integers: False: integer kernels of this processor are known to be wrong about it, and not compared.
    Raises:
        MissingExtraError: OpenVINO is not installed.
        UnsupportedError: it has no such op.
        VerificationError: the outputs differ by more than the tolerance; which way of running it, is said.
    """
    runtime = f"openvino {version('openvino')}"
    own = precision_of(model)
    quantized = own in ("int8", "int4")
    found, told, as_written = None, "", None
    if quantized:
        as_written = _run(path, "float32", integers=False)
        found = verify.compare(
            model,
            as_written,
            f"{runtime} in floats",
            precision=f"{own} as written",
            proof=lambda: verify.differs_without_rounding(
                model, source or path, lambda file: _run(file, "float32", integers=False)
            ),
        )
        told = found.rounding
    if found is None or integers:
        found = verify.compare(model, _run(path, "float32"), runtime, proven=as_written)
        found = replace(found, rounding=found.rounding or told)
    floats = by_itself()
    if floats != "float32" and integers:
        precision = own if quantized else floats
        try:
            verify.compare(
                model,
                _run(path, None),
                f"{runtime} as it comes",
                precision=precision,
                proven=as_written,
            )
        except VerificationError as error:
            raise VerificationError(
                f"right in float32, but {error.what}",
                got=error.got,
                expected=error.expected,
                remedy="export a plain .onnx (without --target), and run it with the precision hint f32",
            ) from error
    return found


def coverage(model: Model, path: Path) -> str:
    """In what the heavy layers run as OpenVINO runs the file by itself, those left in float by name.

    "19 of 21 in int8, 2 in bfloat16 (stem, head)".
    """
    low, _ = model.dynamic.get("batch", (1, None))
    layers = OpenVinoRunner(path, 1).layers(*verification_inputs(model, batch=max(low, 1)))
    left = [each.name.partition("/")[0] for each in layers if each.kind in HEAVY and each.precision != "int8"]
    named = ", ".join(left[:NAMED]) + (", …" if left[NAMED:] else "")
    return f"{summary(layers)} in OpenVINO" + (f" ({named})" if left else "")


def _run(
    path: Path, precision: str | None, *, integers: bool = True
) -> Callable[[tuple[Tensor, ...]], list[Tensor]]:
    runner = OpenVinoRunner(path, 1, precision, integers=integers)
    return lambda inputs: [torch.from_numpy(output) for output in runner.run(*inputs)]
