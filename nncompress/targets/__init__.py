"""The places where a model runs, each one file that says what is known of it.

| target     | runs                             | module     |
|------------|----------------------------------|------------|
| `ort-cpu`  | `.onnx`, `.ort` in ONNX Runtime  | `ort_cpu`  |
| `openvino` | `.onnx`, `.xml` in OpenVINO      | `openvino` |
| `xnnpack`  | `.pte` in ExecuTorch             | `xnnpack`  |
| `ort-cuda` | `.onnx` in ONNX Runtime on CUDA  | `ort_cuda` |
| `tensorrt` | `.onnx`, written only            | `tensorrt` |

A file that is written for none is plain: standard ops, signed weights with the zero point 0, the same
whatever processor wrote it. A new target is one file, its import and its entry in `OURS`; one of another
package is an entry point that names a `Target` (docs/extending.md).
"""

from __future__ import annotations

from typing import Any

from nncompress.errors import UsageError
from nncompress.extensions import Registry
from nncompress.extras import EXTRAS
from nncompress.targets import openvino, ort_cpu, ort_cuda, tensorrt, xnnpack
from nncompress.targets.base import SAID, Rewrite, Target

__all__ = ["OURS", "SAID", "TARGETS", "Rewrite", "Target", "for_file", "target"]

OURS = tuple(each.TARGET for each in (ort_cpu, openvino, xnnpack, ort_cuda, tensorrt))


def _fault(name: str, found: Any) -> str:
    """What is wrong with a target of another package."""
    if not isinstance(found, Target):
        return f"{found!r:.80} is no nncompress.targets.Target"
    if found.name != name:
        return f"the target calls itself {found.name!r}"
    if found.suffixes != (".onnx",):
        return f"its files have to be ('.onnx',), not {found.suffixes!r}"
    if found.extra and found.extra not in EXTRAS:
        return f"nncompress has no extra {found.extra!r}: a package brings its runtime by itself"
    if not set(found.rewrites) <= set(SAID):
        return f"its rewrites may be {', '.join(SAID)}, not {found.rewrites!r}"
    if not found.runtime:
        return ""
    from nncompress.runtimes import RUNTIMES  # which imports torch, and the names of targets do not

    if found.runtime not in RUNTIMES:
        return f"there is no runtime {found.runtime!r}"
    return "" if found.device == "cpu" else f"one that has a runtime is on the 'cpu', not {found.device!r}"


TARGETS: Registry[Target] = Registry("nncompress.targets", {each.name: each for each in OURS}, _fault)
OWN = {".ort": "ort-cpu", ".xml": "openvino", ".pte": "xnnpack"}  # formats that only one target reads


def target(name: str) -> Target:
    """The target of this name.

    Raises:
        UsageError: there is none.
    """
    if name not in TARGETS:
        raise UsageError("there is no such target", got=name, expected=", ".join(TARGETS))
    return TARGETS[name]


def for_file(suffix: str, name: str | None) -> Target | None:
    """The target that a file of this suffix is written for; None: for any.

    Args:
        name: what the user asked for.
    Raises:
        UsageError: there is no such target, or it does not read such files.
        MissingExtraError: it is one whose runtime would have to check the file, and that is not installed.
    """
    if name is None:
        return TARGETS[OWN[suffix]] if suffix in OWN else None
    chosen = target(name)
    if suffix not in chosen.suffixes:
        raise UsageError(
            f"--target {name} does not read such a file",
            got=suffix or "no suffix",
            expected=", ".join(chosen.suffixes),
            remedy=f"-o NAME{chosen.suffixes[0]}, or leave --target out",
        )
    if chosen.device != "cuda":  # what needs a GPU is checked on the CPU
        chosen.need()
    return chosen
