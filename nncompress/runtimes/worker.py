"""Runs of a runtime that may end its process: in a process of its own, which stays for the next run.

ExecuTorch ends the process on programs that it finds inconsistent. The worker reads a request a line, JSON,
and answers with one; arrays pass through files.
"""

from __future__ import annotations

import atexit
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from nncompress import errors
from nncompress.errors import NNCompressError, UnsupportedError

LONGEST_S = 600


def run_apart(path: Path, inputs: Sequence[Tensor], threads: int = 1) -> list[np.ndarray]:
    """The outputs of the artifact in `path`, as `open_artifact(path).run(*inputs)` gives them.

    Raises:
        NNCompressError: as there.
        UnsupportedError: the runtime ended its process, or did not answer.
    """
    with tempfile.TemporaryDirectory() as folder:
        given, taken = Path(folder) / "inputs.npz", Path(folder) / "outputs.npz"
        np.savez(given, *(each.detach().numpy() for each in inputs))
        answer = _ask(
            {"path": str(path.resolve()), "inputs": str(given), "outputs": str(taken), "threads": threads}
        )
        if answer is None:
            raise UnsupportedError(
                f"the runtime of {path.suffix} files cannot run this program",
                got=_fate(),
                expected="an answer",
                remedy="export it to .onnx, and report the model",
            )
        if answer:
            kind = getattr(errors, str(answer.pop("kind")), NNCompressError)
            raise kind(answer.pop("what"), **answer)
        with np.load(taken, allow_pickle=False) as file:
            return [file[f"arr_{position}"] for position in range(len(file.files))]


@cache
def _worker(owner: int) -> subprocess.Popen[str]:
    """The process that answers the process `owner`: one that was forked from it would take its answers."""
    # -P and PYTHONPATH: the process imports what this one would, and nothing that lies in the directory.
    worker = subprocess.Popen(
        [sys.executable, "-P", "-m", __name__],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    atexit.register(lambda: worker.kill() if os.getpid() == owner else None)
    return worker


_last: list[int | None] = []


def _ask(request: dict[str, Any]) -> dict[str, Any] | None:
    """The answer, {} for success; None where the worker is gone."""
    worker = _worker(os.getpid())
    assert worker.stdin is not None
    assert worker.stdout is not None
    try:
        worker.stdin.write(json.dumps(request) + "\n")
        worker.stdin.flush()
        line = worker.stdout.readline() if select.select([worker.stdout], [], [], LONGEST_S)[0] else ""
    except OSError:
        line = ""
    if line:
        answer: dict[str, Any] = json.loads(line)
        return answer
    late = worker.poll() is None and not select.select([worker.stdout], [], [], 0)[0]
    worker.kill()
    _last[:] = [None if late else worker.wait()]
    _worker.cache_clear()
    return None


def _fate() -> str:
    code = _last[0]
    if code is None:
        return f"no answer within {LONGEST_S} s"
    return f"its process ended with {signal.Signals(-code).name if code < 0 else f'exit code {code}'}"


def main() -> None:
    """The process of its own."""
    from nncompress.runtimes import open_artifact

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what libraries print is no answer
    for line in sys.stdin:
        request = json.loads(line)
        answer: dict[str, Any] = {}
        try:
            with np.load(request["inputs"], allow_pickle=False) as file:
                inputs = [file[f"arr_{position}"] for position in range(len(file.files))]
            outputs = open_artifact(request["path"], request["threads"]).run(*inputs)
            np.savez(request["outputs"], *outputs)
        except NNCompressError as error:
            answer = {"kind": type(error).__name__, "what": error.what, "got": error.got}
            answer |= {"expected": error.expected, "remedy": error.remedy}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
