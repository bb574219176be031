"""Labels: a vectorised union-find over the indices of tensor dims, and the arrays that carry them.

A *label* is an integer that stands for one index of one dim. Labels that must stand or fall together are
united. Label 0 is PIN: it is never removed. A class is pinned, with a reason, when anything needs all of it.

A *factor* is an integer array that broadcasts against an activation and tells each position's label: size 1
in the dims on which the label does not depend, e.g. `[1, C, 1, 1]` after a convolution. A value has several
factors where several of its dims are labelled independently: tokens x channels in an MLP-mixer is the pair
`[1, T, 1]`, `[1, 1, C]`. A position is removed if any of its factors' labels is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

Factor = NDArray[np.int64]
PIN = 0


class Labels:
    """Union-find with pinned classes; every operation takes whole arrays.

    Attributes:
        reasons: why classes are pinned; `reason` numbers point here.
        context: prefixed to the next reasons: the node that is being looked at.
        pending: choices of units that wait until all ties are known, each with the context of its reasons.
    """

    def __init__(self) -> None:
        self._parent = np.zeros(1, np.int64)
        self._pinned = np.ones(1, np.int32)  # 0: free, else 1 + index into `reasons`
        self._weak = np.zeros(1, bool)  # nothing trained is in the class
        self._count = 1
        self.pending: list[tuple[str, Sequence[Factor], Sequence[Option]]] = []
        self.reasons: list[str] = ["fixed"]
        self._reason_ids: dict[str, int] = {"fixed": 0}
        self.context = ""

    def __len__(self) -> int:
        return self._count

    def fresh(self, count: int, *, weak: bool = True) -> Factor:
        """`count` new labels, each its own class, as a vector.

        Weak ones belong to no trained parameter (padding, copies, constants): where a choice of units is to
        be made they give way.
        """
        start, end = self._count, self._count + count
        if end > len(self._parent):
            grown = max(end, 2 * len(self._parent))
            self._parent = np.concatenate([self._parent, np.arange(len(self._parent), grown)])
            self._pinned = np.concatenate([self._pinned, np.zeros(grown - len(self._pinned), np.int32)])
            self._weak = np.concatenate([self._weak, np.zeros(grown - len(self._weak), bool)])
        self._weak[start:end] = weak
        self._count = end
        return np.arange(start, end)

    def root(self, labels: Factor) -> Factor:
        """The representative of each label's class, pinned or not."""
        parent = self._parent
        root = parent[labels]
        while True:
            above = parent[root]
            if np.array_equal(above, root):
                break
            root = above
        parent[labels] = root
        return root

    def find(self, labels: Factor) -> Factor:
        """The representative of each label's class; PIN where the class is pinned."""
        root = self.root(labels)
        return np.where(self._pinned[root] > 0, PIN, root)

    def weak(self, factor: Factor) -> bool:
        """No class of this factor has anything trained in it."""
        return bool(self._weak[self.root(factor)].all())

    def reason(self, labels: Factor) -> list[str]:
        """Why each label is pinned; "" where it is not."""
        numbers = self._pinned[self.root(labels)]
        return [self.reasons[n - 1] if n else "" for n in numbers.ravel()]

    def unite(self, left: Factor, right: Factor) -> None:
        """Make the classes of `left` and `right` one, elementwise with broadcasting."""
        left, right = (a.ravel() for a in np.broadcast_arrays(left, right))
        while True:
            left, right = self.root(left), self.root(right)
            differ = left != right
            if not differ.any():
                return
            left, right = left[differ], right[differ]
            high, low = np.maximum(left, right), np.minimum(left, right)
            if (low == PIN).any():
                self.pin(high[low == PIN], "tied to a fixed size")
                high, low = high[low != PIN], low[low != PIN]
                left, right = high, low
                if not len(high):
                    return
            np.maximum.at(self._pinned, low, self._pinned[high])
            np.logical_and.at(self._weak, low, self._weak[high])
            np.minimum.at(self._parent, high, low)

    def pin(self, labels: Factor, why: str) -> None:
        """Nothing may remove these."""
        reason = f"{self.context}: {why}" if self.context else why
        if reason not in self._reason_ids:
            self._reason_ids[reason] = len(self.reasons)
            self.reasons.append(reason)
        roots = np.unique(self.root(labels))
        roots = roots[self._pinned[roots] == 0]
        self._pinned[roots] = self._reason_ids[reason] + 1

    def unite_along(self, factor: Factor, dims: Iterable[int]) -> Factor:
        """Make the labels constant along `dims`; returns the factor with size 1 there."""
        first = factor
        for dim in dims:
            first = np.take(first, [0], axis=dim)
        self.unite(factor, first)
        return first

    # -- factors -------------------------------------------------------------------------------------------

    def settle(self, factors: Iterable[Factor]) -> list[Factor]:
        """Representatives, with dims shrunk to 1 along which the labels are constant.

        A factor that is constant everywhere labels the whole tensor: removing it would leave nothing, so it
        is pinned. Fully pinned factors are dropped.
        """
        settled = []
        for factor in factors:
            factor = shrink(self.find(factor))
            if factor.size == 1:
                if factor.flat[0] != PIN:
                    self.pin(factor, "a tensor would be left empty")
                continue
            settled.append(factor)
        return settled

    def fix(self, factors: Iterable[Factor], dims: Iterable[int], why: str) -> list[Factor]:
        """Forbid removal along `dims`.

        A factor that varies along other dims too becomes constant along `dims` (heads x head size with a
        fixed head size leaves whole heads); one that varies along nothing else is pinned.
        """
        wanted = set(dims)
        kept = []
        for factor in self.settle(factors):
            along = varying(factor)
            if not along & wanted:
                kept.append(factor)
            elif along - wanted:
                kept.append(self.unite_along(factor, along & wanted))
            else:
                self.pin(factor, why)
        return self.settle(kept)

    def unify(self, operands: Sequence[tuple[Sequence[Factor], Sequence[bool]]], why: str) -> list[Factor]:
        """The pointwise rule, with broadcasting: what stands at one position must stand or fall together.

        Args:
            operands: per operand its factors (all of one rank) and per dim whether it really has that dim
                (more than size 1), so that it constrains it.
            why: the reason given where a labelled dim meets a fixed one.

        Returns:
            The factors of the result.
        """
        settled = [self.settle(factors) for factors, _ in operands]
        result: list[Factor] = []
        for dims in components([varying(f) for factors in settled for f in factors]):
            inside = [[f for f in factors if varying(f) <= dims] for factors in settled]
            fixing = {d for own, (_, spans) in zip(inside, operands) if not own for d in dims if spans[d]}
            if sum(map(bool, inside)) <= 1 and not fixing:
                result += [f for own in inside for f in own]
                continue
            grid = next((own[0] for own in inside if len(own) == 1 and varying(own[0]) == dims), None)
            pairs = []
            for own, (_, spans) in zip(inside, operands):
                if grid is not None and len(own) > 1 and _are_axes(own):
                    self.decide_later([grid, *own], *(_tied_to(i) for i in range(1, len(own) + 1)))
                elif own:
                    pairs.append((self.only_one(own), spans))
            arrays = [array for array, _ in pairs]
            yielding = [(a, spans) for a, spans in pairs if varying(a) < dims and self.weak(a)]
            if yielding and len(yielding) < len(arrays):
                # Rotary angles depend on the place in the head: they do not make that place a unit.
                for array, spans in yielding:
                    fixing |= {d for d in dims if spans[d]}
                    self.pin(array, why)
                arrays = [a for a in arrays if not any(a is y for y, _ in yielding)]
            for other in arrays[1:]:
                self.unite(arrays[0], other)
            result += self.fix(arrays[:1], fixing, why)
        return self.settle(result)

    def decide_later(self, arrays: Sequence[Factor], *options: Option) -> None:
        """Leave a choice of units until all other ties are known; see `choose`."""
        self.pending.append((self.context, arrays, options))

    def choose(self, arrays: Sequence[Factor], options: Sequence[Option]) -> None:
        """Apply the option that leaves most removable classes among `arrays`; of equals the first.

        Each option is tried on a small copy of the classes concerned.
        """
        found = [self.find(array) for array in arrays]
        classes, inverse = np.unique(np.concatenate([f.ravel() for f in found]), return_inverse=True)

        def left(option: Option) -> int:
            trial = Labels()
            ids = trial.fresh(len(classes))
            ids[classes == PIN] = PIN
            parts = np.split(ids[inverse], np.cumsum([f.size for f in found])[:-1])
            option(trial, [part.reshape(f.shape) for part, f in zip(parts, found)])
            return len(np.setdiff1d(trial.find(ids), [PIN]))

        max(options, key=left)(self, found)

    def only_one(self, factors: Sequence[Factor]) -> Factor:
        """Of several factors that overlap keep one, and pin the others: a trained one, then one of whole
        blocks (the heads of an attention, not a place inside every head), then that with most classes."""
        best = max(factors, key=lambda f: (not self.weak(f), _in_blocks(f), len(np.unique(f))))
        for factor in factors:
            if factor is not best:
                self.pin(factor, "two kinds of units along one dim, of which the other is taken")
        return best


def _are_axes(factors: Sequence[Factor]) -> bool:
    """Each varies along one dim, which no other does."""
    dims = [varying(f) for f in factors]
    return all(len(d) == 1 for d in dims) and len(set(dims)) == len(dims)


def _tied_to(axis: int) -> Option:
    """Of a grid and what is labelled along each of its dims, the units are those of one."""

    def unite(labels: Labels, arrays: Sequence[Factor]) -> None:
        labels.unite(arrays[0], arrays[axis])
        for other in (*arrays[1:axis], *arrays[axis + 1 :]):
            labels.pin(other, "two kinds of units along one dim, of which the other is taken")

    return unite


def _in_blocks(factor: Factor) -> bool:
    """Every class is one run of neighbours."""
    row = factor.ravel()
    return int((row[1:] != row[:-1]).sum()) + 1 == len(np.unique(row))


Option = Callable[[Labels, Sequence[Factor]], None]


def varying(factor: Factor) -> frozenset[int]:
    """The dims along which it has more than one label."""
    return frozenset(d for d, size in enumerate(factor.shape) if size > 1)


def shrink(factor: Factor) -> Factor:
    """Size 1 in every dim along which the labels are constant."""
    for dim, size in enumerate(factor.shape):
        if size > 1:
            first = np.take(factor, [0], axis=dim)
            if (factor == first).all():
                factor = first
    return factor


def components(sets: Iterable[frozenset[int]]) -> list[frozenset[int]]:
    """Join the sets that overlap."""
    joined: list[frozenset[int]] = []
    for each in sets:
        apart = [other for other in joined if not other & each]
        joined = [*apart, each.union(*(other for other in joined if other & each))]
    return joined


def materialize(factor: Factor, shape: Sequence[int], dims: Iterable[int]) -> Factor:
    """Expand it to the activation's real size along `dims`."""
    wanted = list(factor.shape)
    for dim in dims:
        wanted[dim] = shape[dim]
    return np.broadcast_to(factor, wanted)


def segments(before: Sequence[int], after: Sequence[int]) -> list[tuple[range, range]]:
    """Split a reshape into independent parts: ranges of dims whose sizes have equal products.

    [2, 12, 7, 7] -> [2, 3, 4, 49] is (2 | 2), (12 | 3, 4), (7, 7 | 49).
    """
    parts = []
    i = j = 0
    while i < len(before) or j < len(after):
        start_i, start_j = i, j
        product_i = product_j = 1
        if i < len(before):
            product_i, i = before[i], i + 1
        if j < len(after):
            product_j, j = after[j], j + 1
        while product_i != product_j:
            if product_i < product_j:
                product_i, i = product_i * before[i], i + 1
            else:
                product_j, j = product_j * after[j], j + 1
        parts.append((range(start_i, i), range(start_j, j)))
    return parts
