"""Run a graph layer by layer, on many batches: what a method needs that fits one layer after the other.

    run = LayerwiseRunner(model, batches)
    for (value,) in run.values(node): ...     # batch by batch
    run.reached(node)

No batch's activations are kept. What is kept of a batch is a *checkpoint*: the values from which everything
that is still to come can be computed (at first its inputs, later the frontier of the walk). Checkpoints move
forward as long as all of them fit in a `ByteBudget`, and beyond it in temporary files: writing and reading
them takes a fraction of computing them again. A batch for which there is no room there either (the disk is
full, a quota is reached, no folder may be written, of which a line tells) stays where it is and is computed
again from there, in the end from its inputs, which `batches` may read anew. So memory does not grow with the
data, where there is room nothing is computed twice, and the results are the same bits.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from nncompress.analysis.observe.budget import ByteBudget
from nncompress.analysis.observe.shelf import SpilledValues, room_for_files
from nncompress.analysis.observe.walk import Env, Inputs, Walk
from nncompress.errors import OutputError, Told
from nncompress.ir.graph.model import Model

FILES = 100  # that a runner may have open: a process may have 256 on some systems


class LayerwiseRunner(Walk):
    """A model in the middle of its work.

    A weight, stored or standing in, must not change any more once a value that depends on it was reached.

    Args:
        model: or an interpreter of its graph that computes some nodes otherwise.
        batches: the model's inputs, batch by batch. A batch for which there is no room is asked for again.
        budget: what checkpoints may take.
        weights: tensor name -> value that stands in for the stored one, read whenever it is needed.
    """

    def __init__(
        self,
        model: Model | fx.Interpreter,
        batches: Sequence[Inputs],
        budget: ByteBudget | None = None,
        *,
        weights: Mapping[str, Tensor] | None = None,
    ) -> None:
        super().__init__(model)
        if weights is not None:
            self.weights = weights
        self._batches = batches
        # None: its inputs, to be read again
        self._points: list[Env | SpilledValues | None] = [None] * len(batches)
        self._budget, self._files = budget or ByteBudget(), ByteBudget(FILES)
        self._done = set(self._inputs)
        self._waiting = {node: len(node.users) for node in self._order}

    # -- what the walk has reached -------------------------------------------------------------------------

    def hold(self, nodes: Iterable[fx.Node]) -> None:
        """These nodes will be asked for, whatever else reads them, until `release`d as often."""
        for node in nodes:
            self._waiting[node] += 1

    def release(self, nodes: Iterable[fx.Node]) -> None:
        for node in nodes:
            self._waiting[node] -= 1

    def reached(self, node: fx.Node) -> bool:
        """It, or something that reads it, has been asked for."""
        return node in self._done

    def _reach(self, node: fx.Node) -> None:
        stack = [node]
        while stack:
            last = stack[-1]
            missing = [n for n in last.all_input_nodes if n not in self._done]
            if last not in self._done and missing:
                stack += missing
                continue
            stack.pop()
            if last not in self._done:
                self._done.add(last)
                self.release(last.all_input_nodes)

    def _alive(self, node: fx.Node) -> bool:
        """Its value is needed for what is still to come."""
        return node.op != "get_attr" and node in self._done and self._waiting[node] > 0

    # -- values --------------------------------------------------------------------------------------------

    def values(self, *nodes: fx.Node) -> Iterator[tuple[Any, ...]]:
        """The values of these nodes, one tuple per batch."""
        for node in nodes:
            self._reach(node)
        return self._stream(nodes)

    def preview(self, node: fx.Node) -> Iterator[Any]:
        """The value of a node that is not reached by this, one per batch: its weights may still change."""
        for source in node.all_input_nodes:
            self._reach(source)
        return (value for (value,) in self._stream((node,)))

    def _stream(self, nodes: tuple[fx.Node, ...]) -> Iterator[tuple[Any, ...]]:
        alive = {node for node in self._done if self._alive(node)}
        for number, point in enumerate(self._points):
            start = point.read() if isinstance(point, SpilledValues) else point
            start = self.start(*self._batches[number]) if start is None else start
            with torch.no_grad():
                env = self.run(start, nodes, {*nodes, *alive})
            yield tuple(env[node] for node in nodes)
            self._move(number, start, env, alive)

    def _move(self, number: int, start: Env, env: Env, alive: set[fx.Node]) -> None:
        """Move a batch's checkpoint to what is alive in `env`, if there is room."""
        new = {node: env[node] for node in alive if node in env}
        _, starts = self.between({**start, **new}, alive - set(new))
        new.update((node, start[node]) for node in starts if node in start)
        old, size = self._points[number], _bytes(new)
        if isinstance(old, SpilledValues):
            if self._budget.fits(size):
                self._points[number] = new
                self._disk.fits(-old.size)
                self._files.fits(-1)
            elif self._disk.fits(size - old.size) and not self._written(old, new, size):
                self._points[number] = None  # what it held is lost
            return
        held = 0 if old is None else _bytes(old)
        if self._budget.fits(size - held):
            self._points[number] = new
        elif self._disk.fits(size) and self._files.fits(1):
            spilled = SpilledValues()
            if self._written(spilled, new, size):
                self._budget.fits(-held)
                self._points[number] = spilled

    @cached_property
    def _disk(self) -> ByteBudget:
        """What temporary files may take; asked for once memory does not do."""
        try:
            return room_for_files()
        except OutputError as error:
            _tell(error)
            return ByteBudget(0)

    def _written(self, spilled: SpilledValues, values: Env, size: int) -> bool:
        """Write values to a file; where that fails, no others are written any more."""
        try:
            spilled.write(values, size)
        except OutputError as error:
            if self._disk.limit > 0:
                self._disk.limit = 0
                _tell(error)
            return False
        return True


def _tell(error: OutputError) -> None:
    line = f"{error.what}: {error.got}; layers are computed again instead, which takes longer"
    warnings.warn(line, Told, stacklevel=2)


def _bytes(env: Env) -> int:
    """What the values take, each stretch of memory counted once."""
    stores = {
        value.untyped_storage().data_ptr(): value.untyped_storage().nbytes()
        for value in pytree.tree_leaves(list(env.values()))
        if isinstance(value, Tensor)
    }
    return sum(stores.values())
