"""What this machine can run models on.

The processor is read off the system, the GPUs off NVIDIA's driver, the runtimes off what is installed; those
that take a moment to import are, each in a process of its own, as one that lacks a library runs nothing.
"""

from __future__ import annotations

import ctypes
import os
import platform
import subprocess
import sys
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from nncompress.errors import DeviceError, MissingExtraError
from nncompress.extras import EXTRAS, command, fault, installed, module_version, reinstall, version

# Dot products of 8-bit integers in one instruction: without one, int8 gains little over float32.
INT8_INSTRUCTIONS = {
    "avx512_vnni": "AVX512-VNNI",
    "avx_vnni": "AVX-VNNI",
    "amx_int8": "AMX",
    "asimddp": "NEON dot product",
    "i8mm": "I8MM",
}
FLOAT_INSTRUCTIONS = {"avx512f": "AVX512", "avx2": "AVX2", "asimd": "NEON", "sve": "SVE"}

# The instructions that decide how fast float and int8 kernels are.
INSTRUCTION_SETS = (
    *("sse4_2", "avx", "fma", "avx2", "avx512f", "avx512bw", "avx512_vnni", "avx_vnni", "avx512_bf16"),
    *("avx512_fp16", "amx_tile", "amx_int8", "amx_bf16", "neon", "asimd", "asimddp", "i8mm", "bf16", "sve"),
)


@dataclass(frozen=True)
class Processor:
    """This machine's CPU.

    Attributes:
        flags: instruction sets by their names in /proc/cpuinfo; empty where the system does not tell.
    """

    name: str
    cores: int
    flags: frozenset[str] = field(repr=False)

    @property
    def int8(self) -> tuple[str, ...]:
        """Instructions for products of 8-bit integers."""
        return tuple(name for flag, name in INT8_INSTRUCTIONS.items() if flag in self.flags)

    @property
    def saturates(self) -> bool:
        """Its 8-bit products (unsigned × signed) are summed in pairs in 16 bits, and sums beyond are cut off.

        x86 processors before VNNI, whose one instruction for it is VPMADDUBSW.
        """
        return "sse4_1" in self.flags and not self.int8

    @property
    def bfloat16(self) -> bool:
        """It has instructions for products of bfloat16."""
        return bool({"amx_bf16", "avx512_bf16"} & self.flags)

    @property
    def vector(self) -> tuple[str, ...]:
        """Instructions for floats."""
        return tuple(name for flag, name in FLOAT_INSTRUCTIONS.items() if flag in self.flags)


@dataclass(frozen=True)
class Gpu:
    """An NVIDIA GPU: name, bytes of memory, compute capability (8, 0)."""

    name: str
    memory: int
    capability: tuple[int, int]


@dataclass(frozen=True)
class Ability:
    """One runtime on one device.

    Attributes:
        runs: precisions; empty where it cannot be used.
        note: what limits it, or why it cannot be used.
    """

    device: str
    runtime: str
    runs: tuple[str, ...]
    note: str = ""


def processor() -> Processor:
    """Read off /proc/cpuinfo; elsewhere Python's own names."""
    try:
        first = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
    except OSError:
        first = ""
    entries = {
        key.strip(): value.strip() for key, _, value in (li.partition(":") for li in first.splitlines())
    }
    flags = frozenset((entries.get("flags") or entries.get("Features") or "").split())
    name = entries.get("model name") or _macos_cpu() or platform.processor() or platform.machine()
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return Processor(name, usable or 1, flags)


def machine() -> dict[str, Any]:
    """What latencies depend on: they are compared within one machine."""
    cpu = processor()
    return {
        "cpu": cpu.name,
        "architecture": platform.machine(),
        "cores": os.cpu_count(),
        "instruction_sets": [name for name in INSTRUCTION_SETS if name in cpu.flags],
    }


def _macos_cpu() -> str | None:
    if platform.system() != "Darwin":
        return None
    command = ["sysctl", "-n", "machdep.cpu.brand_string"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or None


@cache
def gpus() -> tuple[Gpu, ...]:
    """What NVIDIA's driver finds; empty without the driver."""
    try:
        cuda = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return ()
    count = ctypes.c_int()
    if cuda.cuInit(0) != 0 or cuda.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return ()
    return tuple(_gpu(cuda, number) for number in range(count.value))


def _gpu(cuda: ctypes.CDLL, number: int) -> Gpu:
    device, name, memory = ctypes.c_int(), ctypes.create_string_buffer(256), ctypes.c_size_t()
    cuda.cuDeviceGet(ctypes.byref(device), number)
    cuda.cuDeviceGetName(name, 256, device)
    cuda.cuDeviceTotalMem_v2(ctypes.byref(memory), device)
    capability = []
    for attribute in (75, 76):  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, _MINOR
        value = ctypes.c_int()
        cuda.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
        capability.append(value.value)
    return Gpu(name.value.decode(errors="replace"), memory.value, (capability[0], capability[1]))


def need_cuda(runtime: str, what: str) -> None:
    """Go on only with a GPU and a runtime for it.

    Args:
        runtime: "onnxruntime" or "torch".
        what: what needs it, for the message.
    Raises:
        DeviceError: there is no NVIDIA GPU.
        MissingExtraError: the runtime is not installed, or not built for CUDA.
    """
    if not gpus():
        raise DeviceError(
            f"{what}: there is no NVIDIA GPU on this machine, or no driver for it",
            remedy="--device cpu",
        )
    if runtime == "onnxruntime" and not installed("cuda"):
        raise MissingExtraError(f"{what} needs {EXTRAS['cuda'].package}: {command('cuda')}")
    if not torch_has_cuda():
        raise MissingExtraError(f"{what} needs a torch built for CUDA; torch {version('torch')} is for CPUs")


def torch_has_cuda() -> bool:
    """Told by the version: builds for CPUs are marked "+cpu" (and on macOS there are no others)."""
    return sys.platform != "darwin" and not str(version("torch")).endswith("+cpu")


def abilities() -> list[Ability]:
    """Every runtime on every device of this machine, those that are missing included."""
    found = processor()
    onnxruntime = module_version("onnxruntime")
    executorch = version("executorch") if installed("mobile") else None
    int8 = f"int8 by {', '.join(found.int8)}" if found.int8 else "no int8 instructions: little gain"
    rows = [
        Ability("CPU", f"torch {version('torch')}", ("float32", "bfloat16"), "int8 simulated in float32"),
        _imported("onnxruntime", Ability("CPU", f"ONNX Runtime {onnxruntime}", ("float32", "int8"), int8)),
        _openvino(found, int8),
        Ability("mobile", f"ExecuTorch {executorch}", ("float32", "int8"), int8)
        if executorch
        else Ability("mobile", "ExecuTorch", (), "not installed"),
    ]
    for gpu in gpus():
        rows += _on(gpu)
    if not gpus():
        rows.append(Ability("cuda", "", (), "no NVIDIA GPU, or no driver for it"))
    return rows


def _openvino(found: Processor, int8: str) -> Ability:
    """What OpenVINO computes in here: floats in bfloat16 by itself where the CPU has instructions."""
    if not installed("openvino"):
        return Ability("CPU", "OpenVINO", (), "not installed")
    floats = ["float32"]
    floats += ["bfloat16"] if found.bfloat16 else []
    floats += ["float16"] if {"amx_fp16", "avx512_fp16"} & found.flags else []
    by_itself = "; floats in bfloat16 unless told otherwise" if found.bfloat16 else ""
    row = Ability("CPU", f"OpenVINO {version('openvino')}", (*floats, "int8"), int8 + by_itself)
    return _imported("openvino", row)


def _imported(module: str, row: Ability) -> Ability:
    """As it is, where the module of its runtime can be imported."""
    if not (why := fault(module)):
        return row
    return replace(row, runs=(), note=f"cannot be imported ({why}): {reinstall(module)}")


def _on(gpu: Gpu) -> list[Ability]:
    """torch and ONNX Runtime on one GPU."""
    bfloat16 = ("bfloat16",) if gpu.capability >= (8, 0) else ()
    if not torch_has_cuda():  # its CUDA libraries and events serve both
        why = "torch is built for CPUs only"
        return [Ability(gpu.name, "torch", (), why), Ability(gpu.name, "ONNX Runtime", (), why)]
    linear = "linear layers also in int8" + (" and 2:4" if bfloat16 else "")  # sparse tensor cores came along
    torch = Ability(gpu.name, f"torch {version('torch')}", ("float32", "float16", *bfloat16), linear)
    if not installed("cuda"):
        return [torch, Ability(gpu.name, "ONNX Runtime", (), "onnxruntime-gpu is not installed")]
    runtime = f"ONNX Runtime {version('onnxruntime-gpu')}"
    return [torch, Ability(gpu.name, runtime, ("float32", "float16"))]
