"""Run an artifact in the runtime that owns its format.

    runner = open_artifact("model.onnx", threads=1)
    (logits,) = runner.run(images)

| artifact            | runtime      | module            |
|---------------------|--------------|-------------------|
| `.onnx`, `.ort`     | ONNX Runtime | `on_onnxruntime`  |
| `.xml`              | OpenVINO     | `on_openvino`     |
| `.pte`              | ExecuTorch   | `on_executorch`   |
| a loaded `Model`    | torch        | `on_torch`        |

OpenVINO runs `.onnx` files, too, where it is asked for: `open_artifact("model.onnx", runtime="openvino")`.
`cuda.on_cuda.open_on_cuda` runs models and `.onnx` files on a GPU.
A new runtime is one module with an `open_*` function and one line in `_OWN`; one of another package is
an entry point that names a `Runtime` (docs/extending.md), and runs what it is asked to run.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from nncompress.errors import ModelFileError, UsageError
from nncompress.extensions import Registry, named
from nncompress.extras import module_version
from nncompress.files.folders import said_beside
from nncompress.files.leftovers import complete
from nncompress.ir import Model
from nncompress.ir.stated_constants import Constant
from nncompress.memory import bounded_memory
from nncompress.options import check_whole
from nncompress.runtimes.base import Runner
from nncompress.runtimes.external_data import stored_bytes
from nncompress.runtimes.with_constants import with_constants

__all__ = ["ON_CPU", "OPENERS", "RUNTIMES", "Runner", "Runtime", "load_runtime", "open_artifact", "version"]


@dataclass(frozen=True)
class Runtime:
    """Something that runs files.

    Attributes:
        opener: "module:function", imported when first needed: a runtime may be an extra, or slow to import.
        suffixes: of the files that it takes.
        precisions: it can be asked for the precision of floats.
        device: of `bench` on which it runs files: "cpu" or "mobile".
    """

    opener: str
    suffixes: tuple[str, ...]
    precisions: bool = False
    device: str = "cpu"


_OWN: dict[str, Runtime | str] = {  # the first one that takes a suffix owns it
    "onnxruntime": Runtime("nncompress.runtimes.on_onnxruntime:open_onnx", (".onnx", ".ort")),
    "executorch": Runtime("nncompress.runtimes.on_executorch:open_pte", (".pte",), device="mobile"),
    "openvino": Runtime("nncompress.runtimes.on_openvino:open_openvino", (".onnx", ".xml"), precisions=True),
}
RUNTIMES: Registry[Runtime] = Registry(
    "nncompress.runtimes",
    _OWN,
    lambda name, it: "" if isinstance(it, Runtime) else f"{it!r:.80} is no nncompress.runtimes.Runtime",
)
ON_CPU = (*(name for name in _OWN if RUNTIMES[name].device == "cpu"), "torch")  # ours; torch runs no files
OPENERS: dict[str, str] = {}  # suffix -> the name of our runtime that owns it
for _name in _OWN:
    for _suffix in RUNTIMES[_name].suffixes:
        OPENERS.setdefault(_suffix, _name)


def open_artifact(
    artifact: str | Path | Model,
    threads: int = 1,
    *,
    runtime: str | None = None,
    precision: str | None = None,
    constants: Sequence[Constant] = (),
) -> Runner:
    """Open a file, or take a loaded model, in the runtime it belongs to, or in another that takes it.

    Args:
        artifact: a path whose suffix is in `OPENERS`, or a `Model`, which torch runs.
        threads: how many threads one run may use.
        runtime: a key of `RUNTIMES`, for a file.
        precision: of floats ("float32", "bfloat16"), for a runtime that can be asked.
        constants: inputs of a file that have the same value in every run; runs take the others.
    Raises:
        UsageError: there is no such runtime, it does not take such a file or a precision, or the file has no
            such input as a constant is stated for.
        ModelFileError: the file is missing, damaged, or no runtime owns its kind.
        UnsafeFileError: the file reaches for files outside its folder.
        UnsupportedError: the runtime cannot run what is in it.
    """
    check_whole("the number of threads", threads)
    if isinstance(artifact, Model):
        from nncompress.runtimes.on_torch import TorchRunner

        return TorchRunner(artifact, threads)
    path = Path(artifact)
    suffix = path.suffix.lower()
    name = runtime or OPENERS.get(suffix)
    if name is None:
        raise ModelFileError(
            f"no runtime runs {path} as a file",
            got=path.suffix or "no suffix",
            expected=", ".join(OPENERS),
            remedy="load it first (nncompress.load), or export it to one of these",
        )
    if name not in RUNTIMES:
        raise UsageError("there is no such runtime", got=name, expected=", ".join(RUNTIMES))
    chosen = RUNTIMES[name]
    if suffix not in chosen.suffixes:
        raise UsageError(f"{name} does not run {path}", got=suffix, expected=", ".join(chosen.suffixes))
    if precision is not None and not chosen.precisions:
        raise UsageError(f"{name} runs a file in the precision that it has", got=precision)
    complete(path)
    if not os.path.isfile(path):
        raise ModelFileError(f"there is no file {path}", remedy=said_beside(path, OPENERS))
    opened: Callable[..., Runner] = named(chosen.opener)
    with bounded_memory(path, stored_bytes(path)):
        runner = opened(path, threads, *((precision,) if chosen.precisions else ()))
    return with_constants(runner, constants, str(path))


def version(runtime: str) -> str:
    """What is installed of it; one that another package adds is as old as that: "shrink-tools 1.2"."""
    return RUNTIMES.origin(runtime) or module_version(runtime) or ""


def load_runtime(path: Path, runtime: str | None = None) -> None:
    """Import what runs files of this suffix, without opening the file."""
    name = runtime or OPENERS[path.suffix.lower()]
    module = import_module(RUNTIMES[name].opener.partition(":")[0])
    for loader in ("runtime", "core"):  # what is imported apart from their modules
        getattr(module, loader, lambda: None)()
