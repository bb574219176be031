"""A benchmark's result as a file: `.json` with everything in it, `.csv` with a row per model and batch."""

from __future__ import annotations

import csv
import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from nncompress.benchmarking import baseline
from nncompress.errors import OutputError, UsageError
from nncompress.files.atomic import replacing
from nncompress.files.json_file import write_json
from nncompress.files.targets import check_target
from nncompress.results import SCHEMA, BenchSuite

RESERVED = 4 << 20  # bytes that must be free: raw samples of a long run


def check_files(paths: Iterable[str | Path], protect: Iterable[str | Path] = ()) -> None:
    """Try to write beside each path, before the measurement that would be lost.

    Raises:
        UsageError: a suffix names no format.
        OutputError: the folder is missing, may not be written to, or is full; or the target is protected.
    """
    protect = tuple(protect)
    for path in map(Path, paths):
        if path.suffix.lower() not in WRITERS:
            raise UsageError(
                f"--output {path}: cannot tell the format",
                got=path.suffix or "no suffix",
                expected=" or ".join(WRITERS),
            )
        check_target(path, protect)
        try:
            with tempfile.TemporaryFile(dir=path.parent) as file:
                file.write(bytes(RESERVED))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise OutputError(
                f"cannot write {path}; nothing was measured",
                got=error.strerror or str(error),
                remedy="another folder, or free some space",
            ) from error


def write_file(suite: BenchSuite, path: str | Path) -> None:
    """Write the result in the format that the suffix names.

    Raises:
        OutputError: it cannot be written; `path` is what it was.
    """
    WRITERS[Path(path).suffix.lower()](suite, Path(path))


def rows(suite: BenchSuite) -> list[dict[str, Any]]:
    """A flat row per model and batch; seconds, bytes, joules. What was not measured is None."""
    found = []
    for run in suite.runs:
        for candidate in run.candidates:
            speedup, accuracy = candidate.speedup, candidate.accuracy
            found.append(
                {
                    "schema": SCHEMA,
                    "model": candidate.name,
                    "batch": run.batch,
                    "phase": run.phase and run.phase.name,
                    "context_tokens": run.phase and run.phase.context,
                    "tokens_per_s": run.tokens_per_second(candidate),
                    "threads": run.threads,
                    "runtime": candidate.runtime,
                    "clock": run.clock,
                    "median_s": candidate.latency.median,
                    "p90_s": candidate.latency.p90,
                    "p99_s": candidate.latency.p99,
                    "wall_median_s": candidate.wall.median,
                    "cpu_median_s": candidate.cpu and candidate.cpu.median,
                    "speedup": speedup and speedup.value,
                    "speedup_low": speedup and speedup.low,
                    "speedup_high": speedup and speedup.high,
                    "rounds": len(candidate.samples.wall_ns),
                    "sessions": len(run.rounds_per_session),
                    "load_s": candidate.load_s,
                    "cold_start_s": candidate.cold_start_s,
                    "peak_memory_bytes": candidate.peak_memory,
                    "energy_j": None if candidate.energy is None else sum(candidate.energy.values()),
                    "file_bytes": candidate.file_size,
                    "parameters": candidate.parameters,
                    "macs": candidate.macs,
                    "top1": accuracy and accuracy.top1,
                    "rmse": accuracy and accuracy.rmse,
                    "mse": accuracy and accuracy.mse,
                    "metric": accuracy and accuracy.metric,
                    "metric_value": accuracy and accuracy.value,
                    "cpu": run.environment.get("cpu"),
                    "seed": run.seed,
                    "interrupted": run.interrupted,
                    "warnings": len(run.warnings),
                }
            )
    return found


def _write_json(suite: BenchSuite, path: Path) -> None:
    write_json(path, suite.to_json(), indent=None, most_bytes=baseline.LARGEST)


def _write_csv(suite: BenchSuite, path: Path) -> None:
    table = rows(suite)
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(table[0]))
        writer.writeheader()
        writer.writerows(table)


WRITERS: dict[str, Callable[[BenchSuite, Path], None]] = {".json": _write_json, ".csv": _write_csv}
