"""`.xml` and `.bin`: OpenVINO's own format, made of a checked `.onnx` by OpenVINO, run before it is kept."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from nncompress.analysis.distance.precision import precision_of
from nncompress.devices import processor
from nncompress.exporting.check import openvino as check
from nncompress.exporting.check.compare import refuse_changing
from nncompress.exporting.lower.openvino.fourier import spell_transforms
from nncompress.exporting.report import ExportReport
from nncompress.exporting.write.onnx import write_onnx
from nncompress.extras import need
from nncompress.files.atomic import replacing
from nncompress.files.targets import check_chosen
from nncompress.ir import Model
from nncompress.runtimes.on_openvino import SATURATING, WEIGHTS, read_graph
from nncompress.runtimes.onnx_files.saturation import saturating_weights
from nncompress.runtimes.silence import silent
from nncompress.targets import TARGETS
from nncompress.targets.written_for import record

MARK = b"nncompress weights, sha256: "
SEAL = len(MARK) + hashlib.sha256().digest_size


def write_xml(model: Model, path: str | Path, *, protect: Iterable[str | Path] = ()) -> ExportReport:
    """Export to ONNX, convert, compare in OpenVINO; the history is inside, the weights in NAME.bin.

    The `.xml` has the digest of its weights, since two files cannot be replaced in one step: where an export
    was killed between the two, the runner says so. By the seal behind the weights the next export knows them.

    Raises:
        MissingExtraError: OpenVINO is not installed.
        UnsupportedError: ONNX or OpenVINO has no such op, or the model changes its own tensors.
        VerificationError: OpenVINO computes something else; nothing is written.
        OutputError: the file cannot be written, or NAME.bin is a file that is not ours.
    """
    need("openvino", Path(path).name)
    start = time.perf_counter()
    refuse_changing(model, "an .xml")
    check_chosen(Path(path).with_suffix(".bin"), are_our_weights, "")
    with replacing(path, protect, are_our_weights) as temporary, TemporaryDirectory() as folder:
        onnx = Path(folder) / "model.onnx"
        report = write_onnx(model, onnx, target=TARGETS["openvino"], run_there=False)
        spell_transforms(onnx)
        int8 = precision_of(model) == "int8"
        overflow = len(saturating_weights(onnx)) if int8 else 0
        with silent():
            import openvino

            with check.refusing(model, Path(path)):
                graph = read_graph(onnx, Path(path))
            kept = record(TARGETS["openvino"], {}) | {SATURATING: str(overflow)}
            for key, text in kept.items():
                graph.set_rt_info(text, ["framework", key])
            _save(openvino, graph, temporary)
            seal = _seal(temporary.with_suffix(".bin"))
            digest = _digest(temporary.with_suffix(".bin"))
            digest.update(seal)
            graph.set_rt_info(digest.hexdigest(), ["framework", WEIGHTS])
            _save(openvino, graph, temporary)
            with temporary.with_suffix(".bin").open("ab") as weights:
                weights.write(seal)
        cut_off = overflow > 0 and processor().saturates
        found = check.compare(model, temporary, source=onnx, integers=not cut_off)
        told = [check.coverage(model, temporary)] if int8 else []
        warned = ""
        if cut_off:
            warned = (
                f"its integer kernels were not compared: without VNNI, as here, sums with {overflow} of its "
                "weights may overflow; quantize --weight-bits 7 is right everywhere"
            )
            told.append(warned)
        written = sum(file.stat().st_size for file in temporary.parent.iterdir())
    return replace(
        report,
        path=Path(path),
        bytes=written,
        seconds=time.perf_counter() - start,
        max_abs_diff=found.max_abs_diff,
        relative_error=found.relative_error,
        runtime=found.runtime,
        batches=found.batches,
        int8="; ".join(told),
        int8_speedup=None,
        choices="",
        rounding=found.rounding,
        target="openvino",
        overflow=warned,
    )


def _save(openvino: Any, graph: Any, file: Path) -> None:
    """Write `file` and its weights beside it.

    Raises:
        OSError: there is no room for them.
    """
    try:
        openvino.save_model(graph, file, compress_to_fp16=False)
    except RuntimeError as error:  # of a C++ stream, which tells no more
        if "iostream error" in str(error):
            raise OSError("OpenVINO cannot write it to the end") from error
        raise


def are_our_weights(path: Path) -> bool:
    """Whether this is a `.bin` that we wrote, whatever `.xml` an export that was killed left beside it."""
    try:
        with path.open("rb") as weights:
            weights.seek(-SEAL, os.SEEK_END)
            return not path.is_symlink() and weights.read() == _seal(path, weights.tell() - SEAL)
    except OSError:  # unreadable, or shorter than a seal
        return False


def _seal(path: Path, length: int | None = None) -> bytes:
    """What follows the weights, where OpenVINO, which reads them by offset, does not look."""
    return MARK + _digest(path, length).digest()


def _digest(path: Path, length: int | None = None) -> hashlib._Hash:
    """SHA-256 of the first `length` bytes, None for all."""
    digest = hashlib.sha256()
    left = path.stat().st_size if length is None else length
    with path.open("rb") as file:
        while left > 0 and (block := file.read(min(left, 2**20))):
            digest.update(block)
            left -= len(block)
    return digest
