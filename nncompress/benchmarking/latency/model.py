"""Whole models against their original in a target, for passes that have a latency to reach."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from nncompress.analysis.cost import cost
from nncompress.benchmarking import Candidate, benchmark
from nncompress.benchmarking.inputs import inputs_of_model
from nncompress.benchmarking.latency.target import clocked, floats_in
from nncompress.errors import NNCompressError
from nncompress.exporting import write
from nncompress.ir import Model
from nncompress.progress import Progress
from nncompress.results import Estimate
from nncompress.targets import Target

SECONDS = 3.0  # of measuring, per comparison
GLANCE = 1.0  # where a line in a report, or a trial among many, asks
LARGEST = 1e9  # MACs of a model that a report times: a larger one takes longer to export and open than to run


class ModelLatency:
    """Exports the original once; one thread, one sample of the sizes that it is used at, CPU time,
    in turns.

    Args:
        target: where they run; the files are written for it.
        precision: of floats there; None: as the target computes them by itself.
        finish: what a model becomes before it runs; None: it runs as it is.

    Raises:
        UnsupportedError: the original cannot be exported to the target's format.
    """

    def __init__(
        self,
        original: Model,
        progress: Progress,
        target: Target,
        *,
        precision: str | None = None,
        finish: Callable[[Model], Model] | None = None,
    ) -> None:
        self.target = target
        self._precision = floats_in(target, precision)
        self._finish = finish
        self._folder = tempfile.TemporaryDirectory(prefix="nncompress-")
        self._progress = progress
        self._inputs = inputs_of_model(original, original.least_batch)
        self._original = self._other = self._kept = self._export(original, "original")

    def seconds(self) -> float:
        """Of the original, for one sample."""
        result = benchmark(
            [self._candidate("original", self._original)],
            inputs=self._inputs,
            time_budget=SECONDS,
            memory=False,
        )
        if result.interrupted:
            raise KeyboardInterrupt
        return (result.candidates[0].cpu or result.candidates[0].wall).median

    def share(self, other: Model, seconds: float | None = None) -> Estimate:
        """What `other` takes, as a share of what the original takes, with its interval."""
        self._other = self._export(other, "other")
        return self._compared(self._original, seconds or SECONDS)

    def keep(self) -> None:
        """The model whose share was asked for last is what `beside` compares with from now on."""
        self._kept = self._other.replace(self._other.with_stem("kept"))

    def beside(self) -> Estimate:
        """What the model whose share was asked for last takes, as a share of the one kept, in turns."""
        return self._compared(self._kept, SECONDS)

    def _compared(self, first: Path, seconds: float) -> Estimate:
        candidates = [self._candidate("original", first), self._candidate("other", self._other)]
        result = benchmark(
            candidates,
            inputs=self._inputs,
            time_budget=seconds,
            memory=False,
            energy=False,
            progress=self._progress,
        )
        if result.interrupted:  # which a bench shows as far as it came, and a pass must not choose by
            raise KeyboardInterrupt
        speedup = result.candidates[1].speedup
        assert speedup is not None
        return Estimate(1 / speedup.value, 1 / speedup.high, 1 / speedup.low, speedup.confidence)

    def glance(self, other: Model) -> Estimate:
        """As `share`, in less time."""
        return self.share(other, GLANCE)

    def close(self) -> None:
        self._folder.cleanup()

    def __enter__(self) -> ModelLatency:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _export(self, model: Model, name: str) -> Path:
        path = Path(self._folder.name) / f"{name}{self.target.suffixes[0]}"
        ready = model if self._finish is None else self._finish(model)
        write(ready, path, target=self.target.name, read_back=False)  # measured, and then gone
        return path

    def _candidate(self, name: str, path: Path) -> Candidate:
        return Candidate(name, path, runtime=self.target.runtime, precision=self._precision)


def speed_note(before: Model, after: Model, progress: Progress, target: str | None = None) -> str:
    """One sentence: what a saving is worth here, or why that was not measured.

    Args:
        target: where; None: where it is fastest.
    """
    old, new = cost(before), cost(after)
    saved = " and ".join(
        f"{1 - b / a:.0%} fewer {what}"
        for what, a, b in (("MACs", old.macs, new.macs), ("parameters", old.parameters, new.parameters))
        if b < a
    )
    told = f"{saved or 'nothing saved'}: speed not measured"
    if old.macs > LARGEST:
        return f"{told} (above {LARGEST:.0e} MACs); nncompress bench ORIGINAL RESULT measures it"
    progress.step("measuring the speed", 0, 1)
    try:
        with ModelLatency(before, progress, clocked(target)) as latency:
            share = latency.glance(after)
    except NNCompressError as error:
        return f"{told} ({error.what})"
    finally:
        progress.step("measuring the speed", 1, 1)
    times = f"{1 / share.value:.2f}x [{1 / share.high:.2f}, {1 / share.low:.2f}]"
    verdict = "" if share.high < 1 else ": slower" if share.low > 1 else ": nothing measurable"
    where = f"{latency.target.runtime_name} (batch 1, one thread)"
    return f"{saved or 'nothing saved'}, {times} as fast here in {where}{verdict}"
