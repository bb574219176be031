"""What an artifact costs in a process of its own: memory beyond its runtime, and its first call.

    python -m nncompress.benchmarking.own_process model.onnx inputs.npz --threads 1
    {"peak_memory": bytes, "cold_start_s": seconds}

The process imports the runtime and warms it up first, notes its memory, then loads and runs the artifact: the
difference between its peak and that note is the artifact's, and the time until the first result its cold
start. The system may hold the file in memory already; only a restart of the machine would change that.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from nncompress.benchmarking.inputs import Inputs, inputs_for
from nncompress.ir import Model
from nncompress.runtimes import load_runtime, open_artifact

RUNS = 3
LONGEST_S = 600


@dataclass(frozen=True)
class OwnProcess:
    """What the process saw; None where it could not tell.

    Attributes:
        peak_memory: bytes beyond the runtime itself.
        cold_start_s: seconds to open the artifact and run it once.
    """

    peak_memory: int | None = None
    cold_start_s: float | None = None


def in_own_process(
    artifact: str | Path | Model,
    inputs: Inputs,
    threads: int = 1,
    *,
    runtime: str | None = None,
    precision: str | None = None,
) -> OwnProcess:
    """Load and run the artifact in a new process.

    Args:
        inputs: of one call.
        runtime, precision: as of `open_artifact`.
    """
    with tempfile.TemporaryDirectory() as folder:
        if isinstance(artifact, Model):
            path = Path(folder) / "model.pt2"
            torch.export.save(artifact.exported_program(), path)
        else:
            path = Path(artifact).resolve()
        np.savez(Path(folder) / "inputs.npz", *inputs)
        # -P and PYTHONPATH: the process imports what this one would, and nothing that lies in the directory.
        command = [sys.executable, "-P", "-m", __name__, str(path), str(Path(folder) / "inputs.npz")]
        try:
            done = subprocess.run(
                [
                    *(*command, "--threads", str(threads)),
                    *(("--runtime", runtime) if runtime else ()),
                    *(("--precision", precision) if precision else ()),
                ],
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                capture_output=True,
                text=True,
                timeout=LONGEST_S,
                check=True,
            )
            seen = json.loads(done.stdout.splitlines()[-1])
            peak = seen["peak_memory"]
            return OwnProcess(None if peak is None else int(peak), float(seen["cold_start_s"]))
        except (subprocess.SubprocessError, OSError, ValueError, KeyError, IndexError):
            return OwnProcess()


def _measure(
    path: Path, inputs: Inputs, threads: int, runtime: str | None = None, precision: str | None = None
) -> OwnProcess:
    if path.suffix == ".pt2":
        _warm_up_torch(path.parent)
    else:
        load_runtime(path, runtime)  # it is not the artifact's memory
    before = _reset_peak()
    start = time.perf_counter()
    # The .pt2 was written a moment ago by `in_own_process`, so it is trusted: users' files come through load.
    artifact = Model.from_exported(torch.export.load(path)) if path.suffix == ".pt2" else path
    runner = open_artifact(artifact, threads, runtime=runtime, precision=precision)
    own = inputs_for(runner, inputs, str(path))
    runner.run(*own)
    cold_start = time.perf_counter() - start
    for _ in range(RUNS - 1):
        runner.run(*own)
    peak = _peak()
    return OwnProcess(None if peak is None or before is None else max(0, peak - before), cold_start)


def _warm_up_torch(folder: Path) -> None:
    """Load and run a tiny program, so that torch's own modules are in memory before the artifact is."""
    tiny = folder / "tiny.pt2"
    example = (torch.zeros(2, 1),)
    torch.export.save(torch.export.export(torch.nn.Linear(1, 1), example), tiny)
    open_artifact(Model.from_exported(torch.export.load(tiny)), 1).run(example[0])


def _reset_peak() -> int | None:
    """Forget the peak so far; the bytes in memory now. None: not told here."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
        return _status("VmRSS")
    except (OSError, KeyError):
        return _peak()


def _peak() -> int | None:
    """VmHWM begins anew with the program; `ru_maxrss` may be the memory of whoever started it.

    None: not told here.
    """
    try:
        return _status("VmHWM")
    except (OSError, KeyError):
        if sys.platform == "win32":
            return None
        import resource

        scale = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale


def _status(key: str) -> int:
    """Bytes of an entry of Linux's /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    entries = {name: value for name, _, value in (line.partition(":") for line in lines)}
    return int(entries[key].split()[0]) * 1024


def main() -> None:
    """The process of its own."""
    parser = argparse.ArgumentParser()
    parser.add_argument("artifact", type=Path)
    parser.add_argument("inputs", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runtime")
    parser.add_argument("--precision")
    arguments = parser.parse_args()
    with np.load(arguments.inputs, allow_pickle=False) as file:
        inputs = tuple(file[f"arr_{i}"] for i in range(len(file.files)))
    how = (arguments.threads, arguments.runtime, arguments.precision)
    print(json.dumps(asdict(_measure(arguments.artifact, inputs, *how))))


if __name__ == "__main__":
    main()
