"""Moments of what layers multiply, and how much of one is safe to invert.

    moments = InputMoments(model, {layer.name: [layer] for layer in layers(model)}, batches)
    moments["layer1.0.conv1"].covariance                             # float64 [groups, d, d]

A ridge, in shares of a moment's mean eigenvalue: moments of few samples, or of samples that are alike, claim
correlations that others do not show. A ridge takes them back; how much follows from samples that are held
out, where there are some.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial
from zlib import crc32

import torch
from torch import Tensor, fx

from nncompress.analysis.observe import budget
from nncompress.analysis.observe.enough import Rows
from nncompress.analysis.observe.patches import input_rows
from nncompress.analysis.observe.shelf import Shelf, Slot, moments_in_runs
from nncompress.analysis.observe.statistics import observe
from nncompress.analysis.observe.walk import Inputs
from nncompress.analysis.products import add_products_about_mean
from nncompress.ir.graph.model import Model
from nncompress.ir.layers.geometry import geometry
from nncompress.ir.layers.weights import Layer, layers
from nncompress.progress import Progress

ROWS_OF_MOMENTS = 8192  # positions of a layer that are drawn from every batch

# So that inverses exist. As a constant in the metrics of `factorize`, where weights are cut by rank, it is as
# good as any (benchmarks/resnets/ridges.py): a ResNet-20's outputs move by 11.24 % with 32 images and 9.70 %
# with 512, with 1e-6 as with 1e-4, and farther with 1e-2 and more.
RIDGE = 1e-4
RIDGE_OF_FEW = 1e-2  # where no sample could be held out
RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)  # weakest first; the last leaves nothing of correlations
HELD_OUT = 4  # every fourth sample decides
TOLD = 256  # inputs, spread evenly, that a ridge is judged on


class Moments:
    """Streamed first and second moments of vectors in groups.

    Few vectors are less than the sum of their outer products, [d, d]: the last ones are kept as they are.

    Args:
        slot: keeps that sum between its uses; None: memory does.

    Attributes:
        count: vectors seen (per group).
        total: their sum, float64 [groups, d].
    """

    def __init__(self, slot: Slot | None = None) -> None:
        self.count = 0
        self.total = torch.zeros(0)
        self._slot = slot or Slot()
        self._rows: list[Tensor] = []
        self._summed_up = torch.zeros(())  # the part of `total` that does not wait

    def add(self, rows: Tensor) -> None:
        """Take in rows [groups, n, d]."""
        rows = rows.detach()
        total = rows.sum(1, dtype=torch.float64)
        self.total = total if self.count == 0 else self.total + total
        self.count += rows.shape[1]
        self._rows.append(rows)
        if sum(each.nbytes for each in self._rows) > len(rows) * rows.shape[2] ** 2:  # see `OF_ROWS`
            self._sum_up()

    @property
    def products(self) -> Tensor:
        """The sum of their outer products, float64 [groups, d, d]."""
        self._sum_up()
        products = self._slot.value
        return torch.zeros(0) if products is None else products

    def _sum_up(self) -> None:
        if self._rows:
            rows, self._rows = self._waiting(), []
            products = self._slot.value
            if products is None:
                products = torch.zeros(len(rows), rows.shape[2], rows.shape[2], dtype=torch.float64)
            add_products_about_mean(products, rows, self.total - self._summed_up)
            self._slot.value, self._summed_up = products, self.total

    def _waiting(self) -> Tensor:
        """The rows that are kept as they are, [groups, n, d]."""
        return self._rows[0] if len(self._rows) == 1 else torch.cat(self._rows, 1)

    def times(self, columns: Tensor) -> Tensor:
        """`products` times columns [groups, d, n]."""
        products = self._slot.value
        found = torch.zeros_like(columns) if products is None else products @ columns
        if self._rows:
            rows = self._waiting().to(torch.float64)
            found += rows.mT @ (rows @ columns)
        return found

    def inverse(self, ridge: float, inputs: Tensor) -> Tensor:
        """These columns of the inverse of `products` with a ridge, float64 [groups, d, inputs].

        Of few rows X, (Xᵀ X + λ)⁻¹ = (1 − Xᵀ (X Xᵀ + λ)⁻¹ X) / λ: what is factored has their number.
        """
        few = self._slot.value is None and self.count > 0
        rows = self._waiting().to(torch.float64) if few else self.products
        wanted = torch.zeros(*rows.shape[::2], len(inputs), dtype=rows.dtype)
        wanted[:, inputs, torch.arange(len(inputs))] = 1.0
        if not few:
            return _solved(cholesky(with_ridge(rows, ridge)), wanted)
        lifted = _lift(rows.square().sum(1), ridge)[..., None]
        inner = rows @ rows.mT
        inner.diagonal(dim1=-2, dim2=-1).add_(lifted[..., 0])
        return (wanted - rows.mT @ _solved(cholesky(inner), rows[..., inputs])) / lifted

    def add_lookups(self, indices: Tensor, size: int) -> None:
        """Take in vectors that are 1 at an index and 0 elsewhere; their mean is the diagonal of E[x xᵀ], of
        which nothing else is kept."""
        total = torch.bincount(indices.flatten(), minlength=size).to(torch.float64).unsqueeze(0)
        self.total = self.total + total if self.count else total
        self.count += indices.numel()

    def join(self, other: Moments) -> None:
        """Take in what another has seen, which is not to be used any more."""
        if self.count == 0:
            self.__dict__ = other.__dict__
        elif other.count:
            self.count += other.count
            self.total = self.total + other.total
            self._summed_up = self._summed_up + other._summed_up
            self._rows += other._rows
            products, others = self._slot.value, other._slot.value
            if products is None:
                self._slot = other._slot
            elif others is not None:
                self._slot.value = products.add_(others)

    @property
    def mean(self) -> Tensor:
        """E[x], float64 [groups, d]."""
        return self.total / self.count

    @property
    def second(self) -> Tensor:
        """E[x xᵀ], float64 [groups, d, d]."""
        products = self.products
        return products.div_(self.count) if self._slot.filed else products / self.count

    @property
    def covariance(self) -> Tensor:
        """E[x xᵀ] − E[x] E[x]ᵀ, float64 [groups, d, d]."""
        mean = self.mean
        return self.second.baddbmm_(mean[:, :, None], mean[:, None, :], alpha=-1)  # a large matrix: in place


class InputMoments(Mapping[str, Moments]):
    """Moments of the vectors that layers multiply (see `input_rows`), in memory as far as the budget allows.

    The others are in a temporary file, which takes a fraction of a pass over the data, or, where that has no
    room, gathered by further passes once they are asked for: ask in the order given. What is drawn and
    summed does not depend on it. `model` may be edited meanwhile.

    Args:
        readers: name -> layers whose inputs are taken together.
        rows: draw at most this many positions per batch and layer; None takes all.

    Attributes:
        rows: name -> what was seen; of embeddings nothing.
        in_memory: all of them are.
    """

    spills = True  # to a file

    def __init__(
        self,
        model: Model,
        readers: Mapping[str, Sequence[Layer]],
        batches: Sequence[Inputs],
        *,
        rows: int | None = ROWS_OF_MOMENTS,
        seed: int = 0,
        progress: Progress | None = None,
        total: int | None = None,
    ) -> None:
        self._batches, self._most, self._seed = batches, rows, seed
        self._progress, self._total = progress, total
        sizes = {name: max(map(_moment_bytes, several)) for name, several in readers.items()}
        self.in_memory = sum(sizes.values()) <= budget.BUDGET
        self._runs, self._filed = moments_in_runs(
            readers, lambda name: {name: sizes[name]}, filed=self.spills
        )
        self._model = model.copy() if len(self._runs) > 1 else model
        ours = {layer.name: layer for layer in layers(self._model)}
        self._readers = {name: [ours[layer.name] for layer in several] for name, several in readers.items()}
        self.rows: dict[str, Rows] = {}
        self._held = self._gather(self._runs[0])  # at once: the model is as it was

    @property
    def passes(self) -> int:
        """Over the data, for one round through all names."""
        return len(self._runs)

    def __getitem__(self, name: str) -> Moments:
        if name not in self._held:
            self._held = {}  # before the next ones are gathered
            self._held = self._gather(next((run for run in self._runs if name in run), []))
        return self._held[name]

    def __contains__(self, name: object) -> bool:
        return name in self._readers

    def __iter__(self) -> Iterator[str]:
        return iter(self._readers)

    def __len__(self) -> int:
        return len(self._readers)

    def _gather(self, run: Sequence[str]) -> dict[str, Moments]:
        if not run:
            return {}
        shelf = Shelf() if self._filed else None
        found = {name: Moments(Slot(shelf)) for name in run}
        watches: dict[fx.Node, list[Callable[[Tensor], None]]] = {}
        for name, moments in found.items():
            generator = torch.Generator().manual_seed(self._seed + crc32(name.encode()))
            for layer in self._readers[name]:
                take = partial(_take, layer, moments, self._most, generator)
                watches.setdefault(layer.data, []).append(take)
        seen = self._watch(watches)
        for name, moments in found.items():
            if self._readers[name][0].kind != "embedding":
                self.rows[name] = Rows(name, moments.count, moments.total.shape[1], seen)
        return found

    def _watch(self, watches: Mapping[fx.Node, Sequence[Callable[[Tensor], None]]]) -> int:
        """Show the values of some nodes to their watches; returns the number of samples."""
        return observe(self._model, self._batches, watches, progress=self._progress, total=self._total)


def _take(
    layer: Layer, moments: Moments, most: int | None, generator: torch.Generator, value: Tensor
) -> None:
    if layer.kind == "embedding":
        moments.add_lookups(value, len(layer.weight.value()))
    else:
        moments.add(input_rows(layer, value, most, generator))


def _moment_bytes(layer: Layer) -> int:
    weight = layer.weight.value()
    if layer.kind == "embedding":
        return 8 * len(weight)
    place = geometry(layer) if layer.roles.groups is not None else None
    if place is None:
        return 8 * int(layer.data.meta["val"].shape[-1]) ** 2
    inputs = len(weight) // place.groups if place.transposed else weight[0].numel()
    return 8 * place.groups * inputs**2


def with_ridge(
    moment: Tensor, ridge: float = RIDGE, *, of_nothing: float = 1.0, together: bool = False
) -> Tensor:
    """A second moment [..., d, d] (or its diagonal, 1-dim) made safe to invert.

    Args:
        of_nothing: what is added to one that is all zero.
        together: moments [n, d, d] that are held against each other have their mean eigenvalue in common, so
            that one that is small stays so.
    """
    return lift(moment.clone(), ridge, of_nothing, together=together)


def lift(moment: Tensor, ridge: float, of_nothing: float = 1.0, *, together: bool = False) -> Tensor:
    """As `with_ridge`, in place."""
    diagonal = moment if moment.dim() == 1 else moment.diagonal(dim1=-2, dim2=-1)
    diagonal += _lift(diagonal, ridge, of_nothing, together=together)
    return moment


def _lift(diagonal: Tensor, ridge: float, of_nothing: float = 1.0, *, together: bool = False) -> Tensor:
    mean = diagonal.mean() if together else diagonal.mean(-1, keepdim=True)
    return torch.where(mean > 0, ridge * mean, torch.full_like(mean, of_nothing))


def cholesky(moment: Tensor) -> Tensor:
    """The lower factor of one [..., d, d], in its place: a view of it, for LAPACK goes through columns."""
    return torch.linalg.cholesky(moment.mT, out=moment.mT)


def solved(moment: Tensor, columns: Tensor) -> Tensor:
    """What a second moment [..., d, d], made safe to invert, makes the columns of; by half of the operations
    of `torch.linalg.solve`, unless rounding took away that it is positive definite."""
    lower, failed = torch.linalg.cholesky_ex(moment)
    return torch.linalg.solve(moment, columns) if bool(failed.any()) else torch.cholesky_solve(columns, lower)


def _solved(lower: Tensor, columns: Tensor) -> Tensor:
    """What a moment of that factor makes the columns of; `cholesky_solve` would copy the factor."""
    halfway = torch.linalg.solve_triangular(lower, columns, upper=False)
    return torch.linalg.solve_triangular(lower.mT, halfway, upper=True)


def solve_towards(second: Tensor, cross: Tensor, start: Tensor, ridge: float) -> Tensor:
    """W [..., out, d] that minimises tr(W S Wᵀ) − 2 tr(W Cᵀ) + λ|W − start|², λ the ridge.

    Args:
        second: S, float64 [..., d, d].
        cross: C, [..., out, d].
    """
    lift = _lift(second.diagonal(dim1=-2, dim2=-1), ridge)[..., None]
    return solved(with_ridge(second, ridge), (cross + start * lift).mT).mT


def downhill(error: Callable[[float], float], usual: float) -> float:
    """The one of `RIDGES` with the least error, from a usual one on to one side: a try is a factorization."""
    error = cache(error)
    best = start = RIDGES.index(usual)
    for step in (1, -1):
        while 0 <= best + step < len(RIDGES) and error(RIDGES[best + step]) < error(RIDGES[best]):
            best += step
        if best != start:
            break
    return RIDGES[best]


def held_out_ridge(fitted: Moments, held: Moments) -> float:
    """The ridge with which inputs make up best for each other, on samples that were held out.

    With P = (S + λ)⁻¹, the others tell an input to within (P x)_j / P_jj, which is what an output loses with
    it (Hassibi and Stork 1993): on samples of moment H, (P H P)_jj / P_jj² in the mean of squares.

    Args:
        fitted: of samples, whose products are S.
        held: of other samples, whose products are H.
    """
    width = fitted.total.shape[-1]
    inputs = torch.linspace(0, width - 1, min(width, TOLD)).round().long()

    def error(ridge: float) -> float:
        columns = fitted.inverse(ridge, inputs)  # P_:j
        own = columns[:, inputs, torch.arange(len(inputs))]
        return float(((columns * held.times(columns)).sum(-2) / own.square()).sum())

    return downhill(error, RIDGE_OF_FEW)
