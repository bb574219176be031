"""`.ort`: the format of ONNX Runtime Mobile, by its own converter; run before it is kept."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from nncompress.errors import UnsupportedError
from nncompress.exporting.check.onnxruntime import compare, compare_steps
from nncompress.exporting.lower.onnxruntime.state_io import state_as_inputs
from nncompress.exporting.report import ExportReport, TimeInt8
from nncompress.exporting.write.onnx import write_onnx
from nncompress.files.atomic import replacing
from nncompress.files.signed_text import is_signed, signed
from nncompress.files.targets import check_chosen
from nncompress.ir import Model
from nncompress.runtimes.silence import silent
from nncompress.targets import TARGETS

OPERATORS = ".required_operators.config"


def write_ort(
    model: Model,
    path: str | Path,
    *,
    protect: Iterable[str | Path] = (),
    time_int8: TimeInt8 | None = None,
) -> ExportReport:
    """Export to ONNX, convert for any processor, compare in ONNX Runtime.

    The graph is optimised now, not on the device, but without what would tie it to this processor (the
    blocked layout of x86). Beside the file, `NAME.required_operators.config` lists its operators: what a
    minimal build of the runtime needs.

    Raises:
        UnsupportedError: ONNX or the runtime has no such op, or the weights exceed 2 GiB.
        VerificationError: ONNX Runtime computes something else; nothing is written.
        OutputError: the file cannot be written, or the list's name is that of another file.
    """
    start = time.perf_counter()
    check_chosen(Path(path).with_suffix(OPERATORS), is_signed, "")
    with replacing(path, protect, is_signed) as temporary, tempfile.TemporaryDirectory() as folder:
        onnx = Path(folder) / "model.onnx"
        report = write_onnx(model, onnx, target=TARGETS["ort-cpu"], time_int8=time_int8)
        if len(list(onnx.parent.iterdir())) > 1:
            raise UnsupportedError("a .ort holds at most 2 GiB of weights", remedy="export it to .onnx")
        _convert(onnx)
        shutil.copyfile(onnx.with_suffix(".ort"), temporary)
        operators = onnx.with_suffix(OPERATORS)
        if operators.exists():
            text = operators.read_text(encoding="utf-8").replace(
                str(onnx.with_suffix(".ort")), temporary.name
            )
            temporary.with_suffix(OPERATORS).write_text(signed(text), encoding="utf-8")
        stateless, states = state_as_inputs(model)
        found = compare(stateless, temporary)
        compare_steps(stateless, temporary, states)
        size = temporary.stat().st_size
    return replace(
        report,
        path=Path(path),
        bytes=size,
        seconds=time.perf_counter() - start,
        max_abs_diff=found.max_abs_diff,
        relative_error=found.relative_error,
        choices=found.choices,
        rounding=found.rounding,
    )


def _convert(onnx: Path) -> None:
    try:
        with silent():
            from onnxruntime.tools.convert_onnx_models_to_ort import (
                OptimizationStyle,
                convert_onnx_models_to_ort,
            )

            convert_onnx_models_to_ort(onnx, optimization_styles=[OptimizationStyle.Fixed])
    except Exception as error:  # the runtime's own exception classes share no base but Exception
        if "Failed to save ORT format" in str(error):  # of a C++ stream, which tells no more
            raise OSError("ONNX Runtime cannot write it to the end") from error
        raise UnsupportedError(
            "ONNX Runtime cannot convert this model to its mobile format",
            got=str(error).splitlines()[0][:300],
            remedy="export it to .onnx",
        ) from error
