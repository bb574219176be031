"""How far a changed model's outputs are from the original's, on samples that nothing was fitted to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nncompress.analysis.cost import cost
from nncompress.analysis.observe import budget
from nncompress.analysis.observe.batch_size import largest_batch, quick_batch
from nncompress.data import Dataset
from nncompress.ir import Model
from nncompress.ir.graph.verify import Distances, Drift, outputs_checked, same_structure

Inputs = tuple[Tensor, ...]

BOUND = 0.25  # of `Drift.amount`, beyond which a pass warns: docs/compress.md
RANDOM = 8  # inputs, where there is no data
FEWEST, MOST = 8, 64  # samples of the data
MACS = 4 * 10**10  # in all samples together, but for the fewest


@dataclass(frozen=True)
class Samples:
    """Inputs to compare outputs on.

    Attributes:
        counts: how many are in each batch.
        origin: "held-out", "given" (there were too few to hold any out), "data" (nothing is fitted to it) or
            "random".
    """

    batches: tuple[Inputs, ...]
    counts: tuple[int, ...]
    origin: str

    @property
    def count(self) -> int:
        return sum(self.counts)

    @classmethod
    def draw(cls, model: Model, data: Dataset | None, held: Dataset | None, seed: int) -> Samples:
        """Of the held-out samples, else of the data, else at random.

        Args:
            data, held: the two parts of the data, see `Dataset.split`.
        """
        if data is None:
            inputs = model.example_inputs(min(RANDOM, largest_batch(model)), seed)
            return cls((inputs,), (_length(inputs),), "random")
        most = min(MOST, max(FEWEST, MACS // max(cost(model).macs, 1)))
        batches = (held or data).batches(min(FEWEST, quick_batch(model)), limit=most)
        drawn = [(batch.inputs, len(batch)) for batch in batches]
        origin = "held-out" if held is not None else "given"
        return cls(tuple(inputs for inputs, _ in drawn), tuple(count for _, count in drawn), origin)

    def to_json(self) -> dict[str, Any]:
        return {"count": self.count, "origin": self.origin}

    def __str__(self) -> str:
        """on 64 held-out samples"""
        several = "s" if self.count != 1 else ""
        if self.origin == "random":
            return f"on {self.count} random input{several}"
        if self.origin == "data":
            return f"on {self.count} sample{several} of the data"
        if self.origin == "held-out":
            return f"on {self.count} held-out sample{several}"
        return f"on {self.count} sample{several} of the data, too few to hold any out: not held out"


def _length(inputs: Inputs) -> int:
    return len(inputs[0]) if inputs and inputs[0].dim() else 1


class Reference:
    """An original's outputs, and what is measured against them.

    Raises:
        VerificationError: the original does not run, or gives nothing finite.
    """

    def __init__(self, original: Model, samples: Samples, what: str) -> None:
        self.samples, self._original = samples, original
        self._outputs: list[Sequence[Tensor]] = []
        size = 0
        for inputs in samples.batches:
            self._outputs.append(outputs_checked(original, inputs, what))
            size += sum(y.numel() * y.element_size() for y in self._outputs[-1])
            if size > budget.BUDGET:
                break
        kept = len(self._outputs)
        self.samples = Samples(samples.batches[:kept], samples.counts[:kept], samples.origin)

    def drift(self, model: Model, what: str, *, other_floats: bool = False) -> list[Drift]:
        """Distance of every output of `model`.

        Args:
            other_floats: it may take and give floats of another width than the original, and is fed those.

        Raises:
            VerificationError: it does not run, or its outputs have another form, or values that are not
                finite where the original's are.
        """
        distances = Distances(model.outputs)
        for inputs, before in zip(self.samples.batches, self._outputs):
            same = model is self._original  # was run and checked before
            if other_floats:
                inputs = tuple(x.to(spec.torch_dtype()) for x, spec in zip(inputs, model.inputs))
            now = before if same else outputs_checked(model, inputs, what, before)
            if other_floats:
                now, before = _in_the_wider(now, before), _in_the_wider(before, now)
            same_structure(now, before, what)
            distances.add(now, before)
        return distances.rows()


def _in_the_wider(outputs: Sequence[Tensor], beside: Sequence[Tensor]) -> list[Tensor]:
    """Floats in the wider of the two widths; the rest as it is."""
    return [
        a.to(torch.promote_types(a.dtype, b.dtype)) if a.is_floating_point() and b.is_floating_point() else a
        for a, b in zip(outputs, beside)
    ]


def amount(rows: Sequence[Drift]) -> float:
    """The worst output's."""
    return max((row.amount for row in rows), default=0.0)


def beyond_bound(now: float, samples: Samples, before: float = 0.0) -> str:
    """That the outputs are farther from the original's than `BOUND`, in words.

    Args:
        before: how far they were before what is told of.
    """
    text = f"the outputs are {now:.0%} away from the original's {samples}, more than {BOUND:.0%}"
    if before > BOUND / 2:
        text += f" ({before:.0%} before this pass)"
    return f"{text}: the model may no longer do what it did."
