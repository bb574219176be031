"""Writing a model to a file: `.pt2`, `.onnx`, `.ort`, `.xml`, `.pte`, `.safetensors`.

| suffix         | holds                                            | checked before it is kept            |
|----------------|--------------------------------------------------|--------------------------------------|
| `.pt2`         | graph, weights, inputs, history; it loads again  | read back: same tensors and outputs  |
| `.onnx`        | graph, weights, history                          | the same, and read back by our own   |
| `.ort`         | the same for ONNX Runtime Mobile                 | same outputs as ours in ONNX Runtime |
| `.xml`         | the same for OpenVINO, weights in a `.bin`       | same outputs as ours in OpenVINO     |
| `.pte`         | the same for ExecuTorch, heavy ops in XNNPACK    | same outputs as ours in ExecuTorch   |
| `.safetensors` | weights by their dotted names                    | read back: same tensors              |

A target appears whole or not at all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from nncompress.errors import UsageError
from nncompress.exporting.check.int8_coverage import Coverage, int8_coverage
from nncompress.exporting.origin import is_ours
from nncompress.exporting.report import ExportReport, TimeInt8
from nncompress.exporting.storage import Storage
from nncompress.exporting.write import external_data
from nncompress.exporting.write.onnx import refuse_ops, write_onnx
from nncompress.exporting.write.ort import write_ort
from nncompress.exporting.write.pt2 import write_pt2
from nncompress.exporting.write.pte import write_pte
from nncompress.exporting.write.safetensors import write_safetensors
from nncompress.exporting.write.xml import are_our_weights, write_xml
from nncompress.files.atomic import replacing
from nncompress.files.signed_text import is_signed
from nncompress.ir import Model
from nncompress.targets import for_file

WRITERS: dict[str, Callable[..., ExportReport]] = {
    ".pt2": write_pt2,
    ".onnx": write_onnx,
    ".ort": write_ort,
    ".xml": write_xml,
    ".pte": write_pte,
    ".safetensors": write_safetensors,
}

THROUGH_ONNX = (".onnx", ".ort", ".xml")
STORAGES: dict[str, tuple[Storage, ...]] = {  # besides "packed"
    ".pt2": ("plain", "entropy"),
    ".onnx": ("plain",),
    ".safetensors": ("plain", "entropy"),
}

__all__ = [
    "WRITERS",
    "Coverage",
    "ExportReport",
    "Storage",
    "check_ops",
    "int8_coverage",
    "write",
    "write_onnx",
    "write_ort",
    "write_pt2",
    "write_pte",
    "write_safetensors",
    "write_together",
    "write_xml",
]


def check_ops(model: Model, path: Path) -> None:
    """Refuse a model with ops that the format of `path` cannot hold, before the work that would be lost.

    Raises:
        UnsupportedError: naming the op and its layer; of ONNX and what is made of it.
    """
    if path.suffix.lower() in THROUGH_ONNX:
        refuse_ops(model)


def write(
    model: Model,
    path: str | Path,
    *,
    protect: Iterable[str | Path] = (),
    storage: Storage = "packed",
    target: str | None = None,
    read_back: bool = True,
    time_int8: TimeInt8 | None = None,
) -> ExportReport:
    """Write `model` in the format that the suffix of `path` names.

    Args:
        protect: files that must not be overwritten: the ones the model was read from.
        storage: how weights of few values or many zeros are stored (`nncompress.exporting.storage`).
        target: where it will run (`nncompress.targets`); None: plain, the same whatever processor wrote it,
            but for formats that one runtime alone reads.
        read_back: of an `.onnx`, which is compared in its runtime, say whether it loads again here, too.
        time_int8: what measures a quantized model beside float32 in ONNX Runtime on this machine
            (`nncompress.benchmarking.latency.int8_speed`); None: it is not measured.

    Raises:
        UsageError: the suffix names no format we write, the format has no such storage, or the target does
            not read it.
        MissingExtraError: the target's runtime, which checks the file, is not installed.
        OutputError: the target is protected, or cannot be written.
        UnsupportedError: the format cannot express an op of the model.
        VerificationError: the written file does not compute what the model computes.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in WRITERS:
        raise UsageError(
            f"cannot tell a format from the name {Path(path).name}",
            got=suffix or "no suffix",
            expected=", ".join(WRITERS),
        )
    chosen = for_file(suffix, target)
    given: dict[str, Any] = {"time_int8": time_int8} if suffix in (".onnx", ".ort") else {}
    if suffix == ".onnx":
        given |= {"target": chosen, "read_back": read_back}
    if storage == "packed":  # which every format means as far as it can
        return WRITERS[suffix](model, path, protect=protect, **given)
    if storage not in STORAGES.get(suffix, ()):
        raise UsageError(
            f"a {suffix} file has no storage of that kind",
            got=storage,
            expected=", ".join((*STORAGES.get(suffix, ()), "packed")),
            remedy="leave --storage out, or write "
            + " or ".join(s for s, kinds in STORAGES.items() if storage in kinds),
        )
    return WRITERS[suffix](model, path, protect=protect, storage=storage, **given)


def write_together(
    models: Sequence[Model], paths: Sequence[Path], *, protect: Iterable[str | Path] = (), **how: Any
) -> list[ExportReport]:
    """Write several models that belong together, in one folder: all of their files are replaced, or none.

    Args:
        how: as of `write`.

    Raises:
        UsageError: the paths are in several folders, or two are the same.
        NNCompressError: as of `write`; or the name of one after the first is that of a file that is not ours.
    """
    if len({path.parent.resolve() for path in paths}) > 1 or len({path.name for path in paths}) < len(paths):
        raise UsageError(
            "models that belong together are written to one folder, under a name each",
            got=", ".join(map(str, paths)),
            remedy="give them different names in the same folder",
        )
    replaced = [external_data.named_by(path, external_data.beside(path)) for path in paths]
    reports = []
    with replacing(paths[0], protect, _is_any_of_ours) as staged:
        for model, path in zip(models, paths, strict=True):
            reports.append(write(model, staged.with_name(path.name), protect=protect, **how))
    left = [external_data.remove_replaced(path, before) for path, before in zip(paths, replaced)]
    return [
        replace(report, path=path, left=tuple(map(str, others)))
        for report, path, others in zip(reports, paths, left)
    ]


def _is_any_of_ours(path: Path) -> bool:
    return is_ours(path) or external_data.is_ours(path) or are_our_weights(path) or is_signed(path)
