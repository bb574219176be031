"""Run an artifact in the runtime that owns its format.

    runner = open_artifact("model.onnx", threads=1)
    (logits,) = runner.run(images)

| artifact            | runtime      | module            |
|---------------------|--------------|-------------------|
| `.onnx`, `.ort`     | ONNX Runtime | `on_onnxruntime`  |
| `.pte`              | ExecuTorch   | `on_executorch`   |
| a loaded `Model`    | torch        | `on_torch`        |

`on_cuda.open_on_cuda` runs models and `.onnx` files on a GPU.
A new runtime is one module with an `open_*` function and one line in `OPENERS`.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from nncompress.errors import ModelFileError, UsageError
from nncompress.ir import Model
from nncompress.runtimes.base import Runner

__all__ = ["OPENERS", "Runner", "load_runtime", "open_artifact"]

# suffix → "module:function", imported when first needed: a runtime may be an extra, or slow to import
OPENERS: dict[str, str] = {
    ".onnx": "nncompress.runtimes.on_onnxruntime:open_onnx",
    ".ort": "nncompress.runtimes.on_onnxruntime:open_onnx",
    ".pte": "nncompress.runtimes.on_executorch:open_pte",
}


def open_artifact(artifact: str | Path | Model, threads: int = 1) -> Runner:
    """Open a file, or take a loaded model, in the runtime it belongs to.

    Args:
        artifact: a path whose suffix is in `OPENERS`, or a `Model`, which torch runs.
        threads: how many threads one run may use.
    Raises:
        ModelFileError: the file is missing, damaged, or no runtime owns its kind.
        UnsafeFileError: the file reaches for files outside its folder.
        UnsupportedError: the runtime cannot run what is in it.
    """
    if threads < 1:
        raise UsageError("the number of threads must be at least 1", got=str(threads))
    if isinstance(artifact, Model):
        from nncompress.runtimes.on_torch import TorchRunner

        return TorchRunner(artifact, threads)
    path = Path(artifact)
    opener = OPENERS.get(path.suffix.lower())
    if opener is None:
        raise ModelFileError(
            f"no runtime runs {path} as a file",
            got=path.suffix or "no suffix",
            expected=", ".join(OPENERS),
            remedy="load it first (nncompress.load), or export it to one of these",
        )
    if not path.is_file():
        raise ModelFileError(f"there is no file {path}")
    module, _, function = opener.partition(":")
    opened: Callable[[Path, int], Runner] = getattr(import_module(module), function)
    return opened(path, threads)


def load_runtime(path: Path) -> None:
    """Import what runs files of this suffix, without opening the file."""
    module = import_module(OPENERS[path.suffix.lower()].partition(":")[0])
    getattr(module, "runtime", lambda: None)()  # of ExecuTorch, which is imported apart from its module
