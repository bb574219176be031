"""The tensors of a network, block by block: a shard is written as soon as all that a block holds is known."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nncompress.ir import Model
from nncompress.ir.formats.packed import Parts
from nncompress.loading.module.without_weights import replace
from nncompress.loading.state_dict.packed_tensors import restored
from nncompress.loading.state_dict.shards import Checkpoint, StoredTensor, open_checkpoint
from nncompress.passes import Context
from nncompress.streaming.held import read_float
from nncompress.streaming.shards import Row, Shards, identity

HELD = 4  # of the largest matrix of a block in float32: what gates or attention need at a time, and one more
_BLOCK = re.compile(r"(.*?\.\d+)\.")


class Blocks:
    """What becomes of the tensors of a checkpoint.

    Args:
        units: the tensors of each shard.
        repeated: second names of a tensor, and its first: it is stored under that one alone.
    """

    def __init__(
        self, units: Sequence[Sequence[StoredTensor]], shards: Shards, repeated: Mapping[str, str]
    ) -> None:
        self._units, self._shards, self._repeated = units, shards, repeated
        self.tensors = {tensor.name: tensor for unit in units for tensor in unit}
        self._waiting = [number for number in range(len(units)) if number not in shards.finished]
        self._places = {tensor.name: number for number, unit in enumerate(units) for tensor in unit}
        self._left: set[str] = set()
        self._kept: dict[str, dict[str, Tensor]] = {}  # by name what is stored for it, by name
        self._what: dict[str, str] = {}
        self._errors: dict[str, float] = {}

    def begin(self, names: Collection[str]) -> None:
        """These are gone through, in this order."""
        self._left = set(names)

    def finished(self, name: str) -> bool:
        """An earlier run has written it."""
        return self._places[name] in self._shards.finished

    def keep(self, name: str, stored: Tensor | Parts, before: Tensor, now: Tensor) -> None:
        """It is to be stored so, as itself or in parts.

        Args:
            before, now: its values.
        """
        if isinstance(stored, Tensor):
            self._kept[name] = {name: stored.contiguous()}
        else:
            self._kept[name] = {f"{name}.{part}": content.contiguous() for part, content in stored.items()}
        self._errors[name] = moved(before, now)

    def told(self, name: str, what: str) -> None:
        """What is done to it, or why nothing."""
        self._what[name] = what

    def passed(
        self, name: str, what: str, open_: Iterable[str] = (), vectors: Mapping[str, Tensor] | None = None
    ) -> None:
        """It is done with: `what` was done to it, or why nothing.

        Args:
            open_: other tensors of which is not known yet what becomes of them.
            vectors: those that take back the scales of inputs, so far.
        """
        self._what[name] = what
        self._left.discard(name)
        unknown = self._left | set(open_)
        for number in list(self._waiting):
            if not any(tensor.name in unknown for tensor in self._units[number]):
                self._write(number, vectors or {})

    def finish(self, vectors: Mapping[str, Tensor] | None = None) -> None:
        """All are done with."""
        for number in list(self._waiting):
            self._write(number, vectors or {})

    def value(self, name: str) -> Tensor:
        """What it became, from memory or from its shard."""
        kept = self._kept.get(name)
        if kept is None:
            found = open_checkpoint(self._shards.file(self._places[name])).tensors
            kept = {t.name: t.read() for t in found if t.name == name or t.name.startswith(f"{name}.")}
        if name in kept:
            return kept[name]
        parts = {stored.removeprefix(f"{name}."): content for stored, content in kept.items()}
        return restored(parts, self.tensors[name].shape)

    def _write(self, number: int, vectors: Mapping[str, Tensor]) -> None:
        tensors: dict[str, Tensor] = {}
        rows, shapes = [], {}
        for tensor in self._units[number]:
            own = self._kept.get(tensor.name)
            what = self._what.get(tensor.name, "kept: no weight of a layer")
            changed, error = own is not None, self._errors.get(tensor.name, 0.0)
            if own is not None:
                if tensor.name not in own:
                    shapes[tensor.name] = tensor.shape
            elif tensor.name in vectors:
                what, changed = "takes back the scales of inputs", True
                own = {tensor.name: vectors[tensor.name]}
                error = moved(tensor.read(), vectors[tensor.name])
            elif tensor.name in self._repeated:  # its own values would be loaded over the changed ones
                what, changed, own = f"is {self._repeated[tensor.name]}, stored once", True, {}
            else:
                own = {tensor.name: tensor.read()}
            size = sum(content.nbytes for content in own.values())
            rows.append(Row(tensor.name, what, tensor.bytes, size, error, changed))
            tensors |= own
        self._shards.write(number, tensors, shapes, rows)
        self._waiting.remove(number)
        for tensor in self._units[number]:
            self._kept.pop(tensor.name, None)  # from now on it is read from there


def moved(before: Tensor, now: Tensor) -> float:
    """How far a tensor is from what it was, as a share of its length."""
    length = float(torch.linalg.vector_norm(before.float()))
    return float(torch.linalg.vector_norm(now - before.float())) / length if length else 0.0


def units_of(source: Checkpoint) -> list[list[StoredTensor]]:
    """The tensors of each block of the network, and last those of none."""
    blocks: dict[str, list[StoredTensor]] = {}
    for tensor in source.tensors:
        found = _BLOCK.match(tensor.name)
        blocks.setdefault(found[1] if found else "", []).append(tensor)
    rest = blocks.pop("", [])
    return [*blocks.values(), *([rest] if rest else [])]


def held_at_a_time(named: Mapping[str, Tensor]) -> int:
    """Bytes of weights in float32; a table outside of the blocks, which may be larger, is held alone.

    Args:
        named: all of a network's.
    """
    inside = {name: value for name, value in named.items() if _BLOCK.match(name)}
    return HELD * max((4 * value.shape.numel() for value in (inside or named).values()), default=0)


def repeated_in(model: Model, source: Checkpoint) -> dict[str, str]:
    """Names that the network has for none of its tensors, and what it calls that one (tied weights)."""
    named = dict(model.graph_module.named_parameters())
    own = [tensor for tensor in source.tensors if tensor.name in named]
    buffers = {name for name, _ in model.graph_module.named_buffers()}
    found = {}
    for tensor in source.tensors:
        if tensor.name in named or tensor.name in buffers or len(tensor.shape) < 2:
            continue
        for each in own:
            if (each.shape, each.dtype) == (tensor.shape, tensor.dtype) and each.read().equal(tensor.read()):
                found[tensor.name] = each.name
                break
    return found


def fill_small(model: Model, source: Checkpoint) -> None:
    """Give parameters of less than two dims, and buffers that the checkpoint has, its values, in place."""
    stored = {tensor.name: tensor for tensor in source.tensors}
    named = dict(model.graph_module.named_parameters())
    vectors = {name: read_float(stored[name]) for name, each in named.items() if each.dim() < 2}
    filled = {named[name]: nn.Parameter(value, requires_grad=False) for name, value in vectors.items()}
    replace(model.graph_module, filled)
    for name, buffer in model.graph_module.named_buffers():
        if name in stored:  # others are in no checkpoint: the network computes them when it is built
            buffer.copy_(stored[name].read())


def made_by(source: Checkpoint, model: Model, context: Context) -> dict[str, Any]:
    """What each shard follows from besides its own tensors: all others, the network, the data."""
    assert context.data is not None
    digest = hashlib.sha256(str(model.graph).encode())
    digest.update(str([identity(tensor) for tensor in source.tensors]).encode())
    for batch in context.data.input_batches(context.batch_size, context.limit):
        for value in batch:
            digest.update(value.contiguous().numpy().tobytes())
    return {"on": digest.hexdigest(), "seed": context.seed}
