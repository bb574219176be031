"""What `bench` measures: every model on the device, in the runtime and the precisions that were asked for."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nncompress import targets
from nncompress.analysis.cost import cost
from nncompress.benchmarking import Candidate
from nncompress.cli.console import say
from nncompress.cli.work import artifacts
from nncompress.cli.work.in_target import not_run
from nncompress.devices import need_cuda
from nncompress.errors import DeviceError, UsageError
from nncompress.exporting import write
from nncompress.extensions import offered
from nncompress.extras import need
from nncompress.ir import Model
from nncompress.ir.formats.precision import in_precision, is_quantized
from nncompress.ir.layers.weights import Layer, layers
from nncompress.progress import Progress
from nncompress.runtimes import ON_CPU, RUNTIMES
from nncompress.runtimes.cuda.linear import is_semi_structured
from nncompress.runtimes.cuda.on_cuda import Cuda
from nncompress.runtimes.on_openvino import PRECISIONS as FLOATS
from nncompress.runtimes.on_openvino import precisions

SPARSE = "-2:4"  # behind a precision: linear layers with 2:4 weights on sparse tensor cores
PRECISIONS = ("float32", "float16", "bfloat16", f"float16{SPARSE}", f"bfloat16{SPARSE}")
MODES = ("eager", "graphs", "compile")

SHORT = {"f32": "float32", "fp32": "float32", "bf16": "bfloat16", "f16": "float16", "fp16": "float16"}


@dataclass(frozen=True)
class Target:
    """Where and how the models run.

    Attributes:
        device: "cpu", "mobile" or "cuda".
        runtimes: of `ON_CPU` and other packages'; each model is measured in each; on "mobile" it is
            ExecuTorch, on "cuda" ONNX Runtime or torch.
        precisions: each model is measured in each: on the GPU, and of floats in OpenVINO ("" as it comes).
        modes: torch's on the GPU.
    """

    device: str = "cpu"
    runtimes: tuple[str, ...] = ("onnxruntime",)
    precisions: tuple[str, ...] = ("float32",)
    modes: tuple[str, ...] = ("eager",)

    @property
    def runtime(self) -> str:
        """The only one, or the first."""
        return self.runtimes[0]


def from_targets(names: str, device: str, runtime: str) -> tuple[str, str]:
    """(--device, --runtime) of what --target names.

    Raises:
        UsageError: there is no such target, it runs nothing here, several do not go together, or --device or
            --runtime was given, too.
    """
    if (device, runtime) != ("cpu", "onnxruntime"):
        raise UsageError("bench: --target says device and runtime", remedy="leave --device and --runtime out")
    chosen = named(names)
    for each in chosen:
        if not each.runtime:
            raise not_run("bench", each.name)
    devices = list(dict.fromkeys(each.device for each in chosen))
    if len(devices) > 1 or (len(chosen) > 1 and devices != ["cpu"]):
        raise UsageError(
            "bench: several targets have to be on the processor",
            got=names,
            remedy="--target ort-cpu,openvino",
        )
    if devices == ["mobile"]:
        return "mobile", "onnxruntime"  # which --device mobile takes for "not torch"
    return devices[0], ",".join(dict.fromkeys(each.runtime for each in chosen))


def named(names: str) -> list[targets.Target]:
    """The targets of `--target`.

    Raises:
        UsageError: there is no such target.
    """
    return [targets.target(name.strip()) for name in names.split(",")]


def target(device: str, runtime: str, precision: str | None, mode: str | None) -> Target:
    """The options together; what cannot be had is refused before any file is opened.

    Raises:
        UsageError: options that do not go together.
        DeviceError, MissingExtraError: there is no GPU, or the extra is not installed.
    """
    runtimes = _listed(runtime, (*ON_CPU, *offered("nncompress.runtimes")), "--runtime")
    if device != "cpu" and (len(runtimes) > 1 or runtime not in ("onnxruntime", "torch")):
        raise UsageError(f"{runtime} is for --device cpu", got=f"--device {device}")
    if device == "cpu" and "openvino" in runtimes:
        return _with_openvino(runtimes, precision, mode)
    if device == "mobile":
        if runtime == "torch":
            raise UsageError("--device mobile runs models in ExecuTorch", got="--runtime torch")

        need("mobile", "bench --device mobile")
    if device == "cuda":
        need_cuda(runtime, "bench --device cuda")
    elif precision is not None or mode is not None:
        raise UsageError(
            "--precision and --mode are for --device cuda",
            got=f"--device {device}",
            remedy="leave --mode out, or --device cuda"
            if mode is not None
            else "on a CPU, --runtime openvino takes a --precision",
        )
    precisions = _precisions(precision or "float32", PRECISIONS)
    modes = _listed(mode or "eager", MODES, "--mode")
    if device == "cuda" and runtime == "onnxruntime":
        if mode is not None:
            raise UsageError("--mode is torch's", remedy="--runtime torch")
        other = [name for name in precisions if name not in ("float32", "float16")]
        if other:
            raise UsageError(
                f"ONNX files are not measured in {', '.join(other)}", remedy="--runtime torch, or float16"
            )
    return Target(device, runtimes, precisions, modes)


def _with_openvino(runtimes: tuple[str, ...], precision: str | None, mode: str | None) -> Target:
    """Refuse a precision that this CPU does not compute in before anything is exported."""
    need("openvino", "bench in OpenVINO")
    if mode is not None:
        raise UsageError("--mode is for torch on --device cuda", got=f"--mode {mode}")
    if precision is None:
        return Target("cpu", runtimes, ("",))
    wanted = _precisions(precision, tuple(FLOATS))
    lacking = [name for name in wanted if name not in precisions()]
    if lacking:
        raise DeviceError(
            f"OpenVINO does not compute in {', '.join(lacking)} on this CPU", expected=", ".join(precisions())
        )
    return Target("cpu", runtimes, wanted)


def _precisions(text: str, known: tuple[str, ...]) -> tuple[str, ...]:
    """As `_listed`, also by the short names that `--for` takes."""
    names = (SHORT.get(name.strip(), name) for name in text.split(","))
    return _listed(",".join(names), known, "--precision")


def _listed(text: str, known: tuple[str, ...], option: str) -> tuple[str, ...]:
    named = tuple(dict.fromkeys(part.strip() for part in text.split(",")))
    if not set(named) <= set(known):
        raise UsageError(f"{option} {text}: not known", expected=", ".join(known))
    return named


def candidates_of(
    artifact: artifacts.Artifact, name: str, to: Target, base: Path, bar: Progress
) -> list[Candidate]:
    """The artifact as it is to be measured, with its cost where its graph is known.

    Args:
        base: exported files are written beside this path, under its name.
    """
    with artifact.path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    candidate = Candidate(
        name,
        artifact.path,
        sha256=digest,
        inputs=artifact.inputs,
        sizes=artifact.sizes,
        constants=artifact.constants,
    )
    if artifact.model is not None:
        costs = cost(artifact.model)
        candidate = replace(
            candidate,
            artifact=artifact.model,
            parameters=costs.parameters,
            macs=costs.macs,
            inputs=(),
            sizes={},
            constants=(),
        )
    if to.device == "cuda":
        return _on_gpu(candidate, to, base, bar)
    if to.device == "cpu" and to.runtimes != ("onnxruntime",):
        return _on_cpu(candidate, to, base, bar)
    if artifact.model is None:
        return [candidate]
    suffix, target = (".pte", None) if to.device == "mobile" else (".onnx", "ort-cpu")
    return [
        replace(candidate, artifact=_exported(artifact.model, base.with_suffix(suffix), name, bar, target))
    ]


def _on_cpu(candidate: Candidate, to: Target, base: Path, bar: Progress) -> list[Candidate]:
    """One candidate per runtime, and per precision in OpenVINO; a float model is exported once for all."""
    candidates = []
    model = candidate.artifact if isinstance(candidate.artifact, Model) else None
    file: Path | None = None if model is not None else Path(candidate.artifact)  # type: ignore[arg-type]
    for runtime in to.runtimes:
        if runtime == "torch":
            candidates.append(
                replace(candidate, name=f"{candidate.name} torch" if len(to.runtimes) > 1 else candidate.name)
            )
            continue
        if model is not None and (file is None or is_quantized(model)):
            file = _exported(
                model,
                base.with_suffix(f".{runtime}.onnx"),
                candidate.name,
                bar,
                target="ort-cpu" if runtime == "onnxruntime" else None,
            )
        assert file is not None
        if file.suffix.lower() not in RUNTIMES[runtime].suffixes:
            raise UsageError(
                f"{runtime} does not run {candidate.name}",
                got=file.suffix,
                expected=", ".join(RUNTIMES[runtime].suffixes),
                remedy="export the model to .onnx, which both run",
            )
        own = replace(candidate, artifact=file, runtime=runtime)
        if not RUNTIMES[runtime].precisions:
            name = f"{candidate.name} {runtime}" if len(to.runtimes) > 1 else candidate.name
            candidates.append(replace(own, name=name))
            continue
        for precision in to.precisions:
            words = (candidate.name, runtime if len(to.runtimes) > 1 else "", precision)
            candidates.append(replace(own, name=" ".join(filter(None, words)), precision=precision or None))
    return candidates


def _on_gpu(candidate: Candidate, to: Target, base: Path, bar: Progress) -> list[Candidate]:
    """One candidate per precision and mode; an `.onnx` and a quantized model have the precision they have."""
    if not isinstance(candidate.artifact, Model):
        if to.runtime != "onnxruntime" or Path(candidate.artifact).suffix.lower() != ".onnx":
            raise UsageError(
                f"{candidate.name} does not run in {to.runtime} on a GPU",
                expected="an .onnx, or a loadable model",
            )
        return [replace(candidate, cuda=Cuda("onnxruntime"))]
    candidates = []
    quantized = is_quantized(candidate.artifact)
    for precision in ("int8",) if quantized else to.precisions:
        model = (
            candidate.artifact
            if quantized
            else in_precision(candidate.artifact, precision.removesuffix(SPARSE))
        )
        sparse = precision.endswith(SPARSE)
        if sparse and not any(is_semi_structured(layer.weight.value()) for layer in _linear(model)):
            say(f"{candidate.name} has no linear layer that is 2:4: not in {precision} (prune --pattern 2:4)")
            continue
        name = f"{candidate.name} {precision}" if len(to.precisions) > 1 else candidate.name
        if to.runtime == "onnxruntime":
            file = _exported(model, base.with_suffix(f".{precision}.onnx"), name, bar)
            candidates.append(replace(candidate, name=name, artifact=file, cuda=Cuda("onnxruntime")))
            continue
        for mode in to.modes:
            full = f"{name} {mode}" if len(to.modes) > 1 else name
            cuda = Cuda("torch", mode, sparse)  # type: ignore[arg-type]
            candidates.append(replace(candidate, name=full, artifact=model, cuda=cuda))
    return candidates


def _linear(model: Model) -> list[Layer]:
    return [layer for layer in layers(model) if layer.kind == "linear"]


def _exported(model: Any, path: Path, name: str, bar: Progress, target: str | None = None) -> Path:
    bar.step(f"exporting {name}", 0, None)
    write(model, path, target=target)
    return path
