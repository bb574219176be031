"""Whole models against their original in ONNX Runtime, for passes that have a latency to reach."""

from __future__ import annotations

import tempfile
from pathlib import Path

from nncompress.bench import Arm, benchmark
from nncompress.export import write_onnx
from nncompress.ir import Model
from nncompress.progress import Progress
from nncompress.results import Estimate

SECONDS = 3.0  # of measuring, per comparison


class ModelLatency:
    """Exports the original once; one thread, one record, CPU time of the thread, in turns.

    Raises:
        UnsupportedError: the original cannot be exported to ONNX.
    """

    def __init__(self, original: Model, progress: Progress) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="nncompress-")
        self._progress = progress
        self._original = self._export(original, "original")

    def seconds(self) -> float:
        """Of the original, for one record."""
        result = benchmark([Arm("original", self._original)], time_budget=SECONDS, memory=False)
        return (result.arms[0].cpu or result.arms[0].wall).median

    def share(self, other: Model) -> Estimate:
        """What `other` takes, as a share of what the original takes, with its interval."""
        arms = [Arm("original", self._original), Arm("other", self._export(other, "other"))]
        result = benchmark(arms, time_budget=SECONDS, memory=False, progress=self._progress)
        speedup = result.arms[1].speedup
        assert speedup is not None
        return Estimate(1 / speedup.value, 1 / speedup.high, 1 / speedup.low, speedup.confidence)

    def close(self) -> None:
        self._folder.cleanup()

    def __enter__(self) -> ModelLatency:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _export(self, model: Model, name: str) -> Path:
        path = Path(self._folder.name) / f"{name}.onnx"
        write_onnx(model, path)
        return path
