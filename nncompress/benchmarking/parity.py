"""Do the candidates compute the same?"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from nncompress.analysis.accuracy import compare
from nncompress.benchmarking.inputs import Inputs, inputs_for
from nncompress.data import Batch
from nncompress.errors import VerificationError
from nncompress.results import CompareResult
from nncompress.runtimes import Runner


def compare_outputs(
    names: Sequence[str], runners: Sequence[Runner], inputs: Inputs
) -> tuple[list[CompareResult | None], tuple[str, ...]]:
    """Every candidate's outputs against the first candidate's.

    Returns:
        per candidate the comparison (None for the first, and where outputs cannot be compared), and warnings.
    """
    dims = tuple(spec.batch_dim for spec in runners[0].inputs)
    batch = Batch(tuple(torch.from_numpy(array) for array in inputs), None, dims)
    calls = [partial(_run, runner, name) for runner, name in zip(runners, names)]
    results: list[CompareResult | None] = [None]
    found = []
    for i in range(1, len(runners)):
        try:
            results.append(compare(calls[0], calls[i], [batch]))
        except VerificationError as problem:
            results.append(None)
            found.append(f"{names[i]} cannot be compared with {names[0]}: {problem.what}.")
    return results, tuple(found)


def _run(runner: Runner, name: str, *inputs: Tensor) -> tuple[np.ndarray, ...]:
    return runner.run(*inputs_for(runner, tuple(x.numpy() for x in inputs), name))
