"""Weights of 4 bits fitted to data, for a network larger than memory: one block of it after the other.

The data runs through the network layer by layer, as in memory and by the same code: each matrix is read when
it is its turn, and rounded for what the matrices before it, already rounded, give it. Between layers the
activations of all samples are kept, beyond `BUDGET` in temporary files. What belongs to a block of the
network (tensors whose names begin "….7.") is written as a shard once the last of its matrices is done. A run
that was killed goes through the data again, but rounds no matrix of a finished shard anew.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nncompress.errors import UsageError, VerificationError
from nncompress.files.folders import folder_to_fill
from nncompress.ir import Model
from nncompress.ir.formats.groups import Groups
from nncompress.ir.formats.packed import Parts
from nncompress.ir.formats.reduced import restore_reduced, store_integers
from nncompress.ir.layers.weights import Layer
from nncompress.loading.module.without_weights import replace
from nncompress.loading.outline import check_complete
from nncompress.loading.state_dict.shards import Checkpoint, StoredTensor, open_checkpoint
from nncompress.passes import Context
from nncompress.passes.quantize.equalization.norm_scales import NormScales
from nncompress.passes.quantize.groups import check_groups, round_by_groups
from nncompress.passes.quantize.matrices import Matrices
from nncompress.passes.quantize.options import Quantize
from nncompress.passes.quantize.prepare import prepare
from nncompress.streaming.held import HeldWeights, read_float
from nncompress.streaming.run import by_itself
from nncompress.streaming.shards import Row, Shards, Streamed, alone_at, identity

HELD = 4  # of the largest matrix of a block in float32: what gates or attention need at a time, and one more
_BLOCK = re.compile(r"(.*?\.\d+)\.")


def run_layerwise(
    each: Quantize, source: Checkpoint, model: Model, folder: str | Path, context: Context
) -> Streamed:
    """Round the matrices of `source` by groups on the data of `context`, and write the result to `folder`.

    Args:
        model: its network without weights (`nncompress.loading.outline`), which is changed.

    Raises:
        UsageError: options that this does not go with, or a --keep that names no layer.
        OutputError: the folder holds files that are not ours, or there is no room.
        ModelFileError, UnsupportedError: a tensor is missing, cannot be read, or is no float.
    """
    if each.group_size is None:
        raise UsageError(
            "quantize --stream --data fits weights of 4 bits by groups to the data",
            got="no --group-size",
            remedy="add --weight-bits 4 --group-size 64, or leave --data out",
        )
    by_itself(each, source)  # which refuses what does not fit
    prepare(model, include_head=False)
    check_complete(model, source)
    check_groups(model, each.keep, each.group_size)
    _fill_small(model, source)
    units = _units(source)
    with folder_to_fill(folder) as made, alone_at(made):
        shards = Shards(made, source, units, each, _made_by(source, model, context))
        matrices = StreamedMatrices(model, units, shards, _repeated(model, source))
        round_by_groups(
            model,
            each.keep,
            each.group_size,
            asymmetric=each.asymmetric,
            nearest=False,
            context=context,
            stored=matrices,
        )
        return shards.complete()


class StreamedMatrices(Matrices):
    """Matrices that are read from a checkpoint; a shard is written as soon as all it holds is known.

    Args:
        model: vectors hold their values, matrices are on the meta device.
        units: the tensors of each shard.
        repeated: second names of a tensor, and its first: it is stored under that one alone.
    """

    spill = True
    turned = False

    def __init__(
        self,
        model: Model,
        units: Sequence[Sequence[StoredTensor]],
        shards: Shards,
        repeated: Mapping[str, str],
    ) -> None:
        super().__init__(model)
        self._units, self._shards, self._repeated = units, shards, repeated
        tensors = {tensor.name: tensor for unit in units for tensor in unit}
        own = {name: tensors[name] for name, each in model.graph_module.named_parameters() if each.is_meta}
        blocks = [4 * each.shape.numel() for name, each in model.graph_module.named_parameters()]
        self._held = HeldWeights(own, HELD * max(blocks, default=0))
        self.weights = self._held
        self._left: set[str] = set()
        self._waiting = [number for number in range(len(units)) if number not in shards.finished]
        self._places = {t.name: number for number, unit in enumerate(units) for t in unit}
        self._parts: dict[str, Parts] = {}
        self._what: dict[str, tuple[str, float]] = {}

    def begin(self, names: Collection[str]) -> None:
        self._left = set(names)

    def value(self, layer: Layer) -> Tensor:
        return self._held[layer.weight.name]

    def known(self, name: str) -> Tensor | None:
        number = self._places[name]
        return self._packed(name) if number in self._shards.finished else None

    def keep(self, name: str, codes: Tensor, groups: Groups) -> None:
        parts = store_integers(codes, 4, groups.scales, groups.zeros)
        if not torch.equal(restore_reduced(parts, tuple(codes.shape)), groups.values(codes)):
            raise VerificationError(f"{name} would be stored as another weight than it computes with")
        self._parts[name] = parts

    def assign(self, layer: Layer, value: Tensor, scales: Tensor | None) -> None:
        name = layer.weight.name

        def unscaled(value: Tensor) -> Tensor:
            return value if scales is None else (value / scales).float()

        now = unscaled(value)
        if name in self._parts:
            before = self._held[name]
            length = float(torch.linalg.vector_norm(before))
            self._what[name] = "", float(torch.linalg.vector_norm(now - before)) / length if length else 0.0
        self._held.change(name, now, lambda: unscaled(self._packed(name)))

    def passed(self, name: str, what: str, norms: NormScales) -> None:
        self._what[name] = what, self._what.get(name, ("", 0.0))[1]
        self._left.discard(name)
        unknown = self._left | norms.open_vectors()
        for number in list(self._waiting):
            if not any(tensor.name in unknown for tensor in self._units[number]):
                self._write(number, norms.vectors())

    def store(self, norms: NormScales) -> None:
        for number in list(self._waiting):
            self._write(number, norms.vectors())

    def _write(self, number: int, vectors: Mapping[str, Tensor]) -> None:
        tensors: dict[str, Tensor] = {}
        rows, shapes = [], {}
        for tensor in self._units[number]:
            parts = self._parts.get(tensor.name)
            what, error = self._what.get(tensor.name, ("kept: no weight of a layer", 0.0))
            if parts is not None:
                own = {f"{tensor.name}.{part}": content.contiguous() for part, content in parts.items()}
                shapes[tensor.name] = tensor.shape
            elif tensor.name in vectors:
                what = "takes back the scales of inputs"
                own = {tensor.name: vectors[tensor.name]}
                error = _moved(tensor.read(), vectors[tensor.name])
            elif tensor.name in self._repeated:  # its own values would be loaded over the rounded ones
                what, own = f"is {self._repeated[tensor.name]}, stored once", {}
            else:
                own = {tensor.name: tensor.read()}
            changed = parts is not None or tensor.name in vectors or not own
            size = sum(content.nbytes for content in own.values())
            rows.append(Row(tensor.name, what, tensor.bytes, size, error, changed))
            tensors |= own
        self._shards.write(number, tensors, shapes, rows)
        self._waiting.remove(number)
        for tensor in self._units[number]:
            self._parts.pop(tensor.name, None)  # from now on it is read from there

    def _packed(self, name: str) -> Tensor:
        """What the matrix was rounded to, from memory or from its shard."""
        number = self._places[name]
        shape = next(tensor.shape for tensor in self._units[number] if tensor.name == name)
        parts = self._parts.get(name)
        if parts is None:
            stored = {tensor.name: tensor for tensor in open_checkpoint(self._shards.file(number)).tensors}
            parts = {
                part: stored[f"{name}.{part}"].read()
                for part in ("codes", "scales", "zeros")
                if f"{name}.{part}" in stored
            }
        return restore_reduced(parts, shape)


def _units(source: Checkpoint) -> list[list[StoredTensor]]:
    """The tensors of each block of the network, and last those of none."""
    blocks: dict[str, list[StoredTensor]] = {}
    for tensor in source.tensors:
        found = _BLOCK.match(tensor.name)
        blocks.setdefault(found[1] if found else "", []).append(tensor)
    rest = blocks.pop("", [])
    return [*blocks.values(), *([rest] if rest else [])]


def _repeated(model: Model, source: Checkpoint) -> dict[str, str]:
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


def _fill_small(model: Model, source: Checkpoint) -> None:
    """Give parameters of less than two dims, and buffers that the checkpoint has, its values, in place."""
    stored = {tensor.name: tensor for tensor in source.tensors}
    named = dict(model.graph_module.named_parameters())
    vectors = {name: read_float(stored[name]) for name, each in named.items() if each.dim() < 2}
    filled = {named[name]: nn.Parameter(value, requires_grad=False) for name, value in vectors.items()}
    replace(model.graph_module, filled)
    for name, buffer in model.graph_module.named_buffers():
        if name in stored:  # others are in no checkpoint: the network computes them when it is built
            buffer.copy_(stored[name].read())


def _made_by(source: Checkpoint, model: Model, context: Context) -> dict[str, Any]:
    """What each shard follows from besides its own tensors: all others, the network, the data."""
    assert context.data is not None
    digest = hashlib.sha256(str(model.graph).encode())
    digest.update(str([identity(tensor) for tensor in source.tensors]).encode())
    for batch in context.data.input_batches(context.batch_size, context.limit):
        for value in batch:
            digest.update(value.contiguous().numpy().tobytes())
    return {"on": digest.hexdigest(), "seed": context.seed}


def _moved(before: Tensor, now: Tensor) -> float:
    length = float(torch.linalg.vector_norm(before.float()))
    return float(torch.linalg.vector_norm(now - before.float())) / length if length else 0.0
