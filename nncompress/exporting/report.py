"""What a writer says about the file it wrote."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

ANY = "any"  # target of a file that is the same for all


@dataclass(frozen=True)
class Int8Speed:
    """Int8 beside float32 on this machine, at batch 1 on one thread.

    Attributes:
        ratio: float32's median CPU time per call over int8's: above 1, int8 is faster.
        slower: where it is not faster, (layer, float32's time over int8's) of those on integer kernels that
            are below 1, worst first.
        conversions: and the share of int8's time that goes into rounding and back.
    """

    ratio: float
    slower: tuple[tuple[str, float], ...] = ()
    conversions: float = 0.0

    def summary(self, *, advise: bool) -> str:
        """ "1.78x as fast as float32 here", or why not.

        Args:
            advise: say what would ask the clock; where the file is for no target, that was not done yet.
        """
        text = f"{self.ratio:.2f}x as fast as float32 here (batch 1, one thread)"
        if self.ratio < 1.05:
            if self.slower:
                named = ", ".join(f"{name} ({ratio:.2f}x)" for name, ratio in self.slower[:3])
                text += f"; slower in int8: {named}" + (", …" if len(self.slower) > 3 else "")
                text += "; for ONNX Runtime, quantize --target ort-cpu asks the clock of each" * advise
            if self.conversions:
                text += f"; {self.conversions:.0%} of its time is rounding to int8 and back"
        return text


# What times an int8 file beside its float32 graph: (that graph's bytes, the file, one sample by input).
TimeInt8 = Callable[[bytes, Path, dict[str, np.ndarray]], Int8Speed]


@dataclass(frozen=True)
class ExportReport:
    """One written file.

    Attributes:
        path: where it is.
        bytes: its size, external data included.
        seconds: what writing and checking it took.
        max_abs_diff: largest difference between its runtime's outputs and the graph's, on random inputs that
            are like the calibration data; None where no other runtime was asked.
        relative_error: the same as ‖difference‖₂ / ‖output‖₂, the worst of the outputs.
        runtime: the runtime that was asked ("onnxruntime 1.31.1"), or "".
        batches: the batch sizes tried.
        int8: for a quantized model, which heavy ops the runtime really runs in int8 here, which not and why,
            and whether that is faster here than float32.
        int8_speedup: float32's time over int8's, here, at batch 1; None where it was not measured.
        choices: of a quantized model that chooses (top-k, arg-max, a comparison): how often the runtime,
            whose kernels round otherwise, chooses as the graph does; "" where all outputs agree.
        left: weights beside the file that it does not use: of an export that was killed, or of a graph that
            was moved away.
        state: of each tensor that the model changes in every call, the input and the output that it became.
        portable: ops that the delegate of a mobile runtime leaves to slower kernels.
        target: what it was written for (`nncompress.targets`), "any" for a plain `.onnx`, "" for a file that
            no runtime opens.
        not_read: of an `.onnx` or `.safetensors`, why nncompress cannot read it again; "" where it can.
        rounding: of a quantized model whose outputs are farther from the graph's than kernels usually are:
            how far both are from float; "" where they are near.
        overflow: of a quantized model whose 8-bit sums may overflow in the runtime on processors like this
            one: what to do about it; "" where they cannot.
        not_compared: of a file that was read back, why its outputs were not compared; "" where they were.
    """

    path: Path
    bytes: int
    seconds: float
    max_abs_diff: float | None = None
    relative_error: float | None = None
    runtime: str = ""
    batches: tuple[int, ...] = ()
    int8: str = ""
    portable: tuple[str, ...] = ()
    int8_speedup: float | None = None
    choices: str = ""
    left: tuple[str, ...] = ()
    state: tuple[tuple[str, str], ...] = ()
    not_compared: str = ""
    not_read: str = ""
    target: str = ""
    rounding: str = ""
    overflow: str = ""

    def to_json(self) -> dict[str, Any]:
        return {
            **asdict(self),
            "path": str(self.path),
            "batches": list(self.batches),
            "left": list(self.left),
            "portable": list(self.portable),
            "state": [list(pair) for pair in self.state],
        }
