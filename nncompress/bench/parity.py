"""Do the arms compute the same?"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from nncompress.analysis.accuracy import compare
from nncompress.bench.inputs import Inputs, inputs_for
from nncompress.errors import VerificationError
from nncompress.results import CompareResult
from nncompress.runtimes import Runner


def compare_outputs(
    names: Sequence[str], runners: Sequence[Runner], inputs: Inputs
) -> tuple[list[CompareResult | None], tuple[str, ...]]:
    """Every arm's outputs against the first arm's.

    Returns:
        per arm the comparison (None for the first, and where outputs cannot be compared), and warnings.
    """
    own = [inputs_for(runner, inputs, name) for runner, name in zip(runners, names)]
    batch = tuple(torch.from_numpy(array) for array in inputs)
    results: list[CompareResult | None] = [None]
    found = []
    for i in range(1, len(runners)):
        try:
            results.append(
                compare(lambda *_: runners[0].run(*own[0]), lambda *_, i=i: runners[i].run(*own[i]), [batch])
            )
        except VerificationError as problem:
            results.append(None)
            found.append(f"{names[i]} cannot be compared with {names[0]}: {problem.what}.")
    return results, tuple(found)
