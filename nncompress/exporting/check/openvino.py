"""An exported file in OpenVINO: run, compared with the graph, and asked in what each layer ran.

Up to three times: as it is written, in floats; on its integer kernels, with floats in float32; and as
OpenVINO runs it by itself, which is in bfloat16 on a processor that can.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from nncompress.analysis.distance.precision import precision_of
from nncompress.errors import DataError, ModelFileError, UnsupportedError, VerificationError
from nncompress.exporting.check import compare as verify
from nncompress.exporting.check.compare import Comparison
from nncompress.extras import version
from nncompress.ir import Model
from nncompress.ir.formats.precision import MAKE_FLOAT32, has_other_floats
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
        as_written = _run(model, path, "float32", integers=False)
        found = verify.compare(
            model,
            as_written,
            f"{runtime} in floats",
            precision=f"{own} as written",
            proof=lambda: verify.differs_without_rounding(
                model, source or path, lambda file: _run(model, file, "float32", integers=False)
            ),
        )
        told = found.rounding
    if found is None or integers:
        found = verify.compare(model, _run(model, path, "float32"), runtime, proven=as_written)
        found = replace(found, rounding=found.rounding or told)
    floats = by_itself()
    if floats != "float32" and integers:
        precision = own if quantized else floats
        try:
            verify.compare(
                model,
                _run(model, path, None),
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
    with refusing(model, path):
        layers = OpenVinoRunner(path, 1).layers(*verification_inputs(model, batch=max(low, 1)))
    left = [each.name.partition("/")[0] for each in layers if each.kind in HEAVY and each.precision != "int8"]
    named = ", ".join(left[:NAMED]) + (", …" if left[NAMED:] else "")
    return f"{summary(layers)} in OpenVINO" + (f" ({named})" if left else "")


@contextmanager
def refusing(model: Model, path: Path) -> Iterator[None]:
    """Within, what OpenVINO does not take of a file of ours is told of the model: the file will be gone.

    Raises:
        UnsupportedError: it does not read it, or does not run it on inputs that the model takes.
    """
    try:
        yield
    except (DataError, ModelFileError, UnsupportedError) as error:
        raise UnsupportedError(
            error.what.replace(str(path), path.name),
            got=error.got.replace(str(path), path.name),
            remedy=MAKE_FLOAT32
            if has_other_floats(model)
            else error.remedy or "a plain .onnx, and report it",
        ) from error


def _run(
    model: Model, path: Path, precision: str | None, *, integers: bool = True
) -> Callable[[tuple[Tensor, ...]], list[Tensor]]:
    with refusing(model, path):
        runner = OpenVinoRunner(path, 1, precision, integers=integers)

    def run(inputs: tuple[Tensor, ...]) -> list[Tensor]:
        with refusing(model, path):
            return [torch.from_numpy(output) for output in runner.run(*inputs)]

    return run
