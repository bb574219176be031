"""A metric of the user's own: `file.py:NAME` or `package.module:NAME`.

A function of (output, batch) that gives one score per sample, [N]; its mean is the value. Or a class, made
without arguments, whose objects take `update(output, batch)` and give a number by `compute()` at the end.
`output` are the answers [N, ...]; `batch` has `inputs` and `labels`. What the function or class has as
`higher_is_better`, `share` or `title` is respected.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nncompress.analysis.metrics.base import Metric, Scores
from nncompress.analysis.metrics.resampled import ResampledScores
from nncompress.analysis.metrics.summed import MeanMetric
from nncompress.data import Batch
from nncompress.errors import RAISED_BY_OTHERS, DataError, UsageError
from nncompress.user_code import imported, last_line, offered

FORM = (
    "file.py:NAME or package.module:NAME: a function of (output, batch) that gives one score per sample, "
    "or a class with update(output, batch) and compute()"
)


def user_metric(spec: str) -> Metric:
    """The metric that the user's own code is.

    Raises:
        UsageError: it cannot be imported, or is neither a function nor a class.
    """
    return metric_of_code(spec, _found(spec))


def metric_of_code(name: str, code: Any) -> Metric:
    """The metric that a function or class is, under this name."""
    if isinstance(code, type) and issubclass(code, Metric):
        try:
            made: Metric = code()
        except RAISED_BY_OTHERS as error:
            raise UsageError(
                f"--metric {name} cannot be made", got=last_line(error), expected=FORM
            ) from error
        return made
    return (_OfClass if isinstance(code, type) else _OfFunction)(name, code)


class _Own(Metric):
    needs_labels = False
    masked = True

    def __init__(self, spec: str, code: Any) -> None:
        self.name, self._code = spec, code
        self.title = str(getattr(code, "title", spec.rpartition(":")[2]))
        self.share = bool(getattr(code, "share", False))
        self.higher_is_better = bool(getattr(code, "higher_is_better", True))

    def fits(self, output: Tensor, batch: Batch, classes: int | None) -> bool:
        return True

    def _run(self, call: Callable[[], Any]) -> Any:
        try:
            with torch.inference_mode():
                return call()
        except RAISED_BY_OTHERS as error:
            raise DataError(f"--metric {self.name} raised an error", got=last_line(error)) from error


class _OfFunction(_Own, MeanMetric):
    """The mean over samples of what the user's function gives for each."""

    def sums(self, output: Tensor, batch: Batch, origin: str, first_sample: int) -> np.ndarray:
        scores = self._run(lambda: _real(self._code(output.clone(), batch)).reshape(-1))
        if len(scores) != len(output):
            raise DataError(
                f"--metric {self.name} does not give one score per sample",
                got=f"{len(scores)} scores for {len(output)} samples",
                expected=FORM,
            )
        if not np.isfinite(scores).all():
            sample = first_sample + int(np.argmin(np.isfinite(scores)))
            raise DataError(f"--metric {self.name} gives NaN or infinity for sample {sample}")
        return np.stack([scores, np.ones(len(scores))], axis=1)


class _OfClass(_Own):
    """What an object computes after all samples."""

    def begin(self) -> Scores:
        missing = [name for name in ("update", "compute") if not callable(getattr(self._code, name, None))]
        if missing:
            raise UsageError(f"--metric {self.name} has no {' and no '.join(missing)}", expected=FORM)
        return ResampledScores(
            self,
            lambda: _Guarded(self, self._run(self._code)),
            self._number,
        )

    def _number(self, each: _Guarded) -> float:
        found = self._run(lambda: _real(each.compute()))
        if found.size != 1:
            raise DataError(
                f"--metric {self.name}: compute() gives {found.size} numbers", expected="one number"
            )
        return float(found.item())


class _Guarded:
    """An object of the user's, whose errors are told as such."""

    def __init__(self, metric: _Own, own: Any) -> None:
        self._metric, self._own = metric, own

    def update(self, output: Tensor, batch: Batch) -> None:
        self._metric._run(lambda: self._own.update(output.clone(), batch))

    def compute(self) -> Any:
        return self._own.compute()


def _real(given: Any) -> np.ndarray:
    """float64 of what the user's code gave.

    Raises:
        TypeError, ValueError: it is no real numbers.
    """
    if isinstance(given, Tensor):
        given = given.detach().cpu()
        given = given.float() if given.dtype == torch.bfloat16 else given
    found = np.asarray(given)
    if found.dtype.kind not in "biuf":
        raise TypeError(f"it gives {type(given).__name__} ({found.dtype}), not real numbers")
    return found.astype(np.float64)


def _found(spec: str) -> Any:
    location, _, name = spec.rpartition(":")
    try:
        module = imported(location)
    except RAISED_BY_OTHERS as error:
        raise UsageError(
            f"--metric {spec}: {location} cannot be imported", got=last_line(error), expected=FORM
        ) from error
    function = getattr(module, name, None)
    if not callable(function):
        names = offered(module)
        raise UsageError(
            f"--metric {spec}: {location} has no {name!r}",
            expected=FORM,
            remedy=f"it has: {', '.join(names[:8])}" if names else "",
        )
    return function
