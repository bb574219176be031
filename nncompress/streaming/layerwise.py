"""Passes on data, for a network larger than memory: one block of it after the other.

The data runs through the network layer by layer, as in memory and by the same code: each matrix is read when
it is its turn, and changed for what it multiplies. Between layers the activations of all samples are kept,
beyond `BUDGET` in temporary files. What belongs to a block of the network (tensors whose names begin "….7.")
is written as a shard once the last of its matrices is done. A run that was killed goes through the data
again, but changes no matrix of a finished shard anew.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nncompress.errors import UsageError, VerificationError
from nncompress.files.folders import folder_to_fill
from nncompress.ir import Model
from nncompress.ir.formats.groups import Groups
from nncompress.ir.formats.packed import Parts
from nncompress.ir.formats.reduced import restore_reduced, store_integers
from nncompress.ir.layers.weights import Layer
from nncompress.loading.outline import check_complete
from nncompress.loading.state_dict.shards import Checkpoint
from nncompress.passes import Context, Pass
from nncompress.passes.quantize.equalization.norm_scales import NormScales
from nncompress.passes.quantize.groups import check_groups, round_by_groups
from nncompress.passes.quantize.matrices import Matrices
from nncompress.passes.quantize.options import Quantize
from nncompress.passes.quantize.prepare import prepare
from nncompress.streaming import by_layer
from nncompress.streaming.blocks import Blocks, fill_small, held_at_a_time, made_by, repeated_in, units_of
from nncompress.streaming.held import HeldWeights
from nncompress.streaming.run import by_itself
from nncompress.streaming.shards import Shards, Streamed, alone_at


def run_layerwise(
    each: Pass, source: Checkpoint, model: Model, folder: str | Path, context: Context
) -> Streamed:
    """Change the matrices of `source` as the data of `context` asks, and write the result to `folder`.

    Args:
        each: one of `ON_DATA`.
        model: its network without weights (`nncompress.loading.outline`), which is changed.

    Raises:
        UsageError: options that this does not go with, or a pattern that names no layer.
        OutputError: the folder holds files that are not ours, or there is no room.
        ModelFileError, UnsupportedError: a tensor is missing, cannot be read, or is no float.
    """
    on_data = ON_DATA[each.name]
    by_itself(each, source, on_data.options)  # which refuses what does not fit
    on_data.check(each, model)
    each = next(iter(each.strengths()), each)
    check_complete(model, source)
    fill_small(model, source)
    units = units_of(source)
    with folder_to_fill(folder) as made, alone_at(made):
        shards = Shards(made, source, units, each, made_by(source, model, context))
        blocks = Blocks(units, shards, repeated_in(model, source))
        named = dict(model.graph_module.named_parameters())
        own = {name: blocks.tensors[name] for name, value in named.items() if value.is_meta}
        on_data.change(each, model, blocks, HeldWeights(own, held_at_a_time(named)), context)
        return shards.complete()


class StreamedMatrices(Matrices):
    """Matrices that are read from a checkpoint, and go to the shards of a result.

    Args:
        model: vectors hold their values, matrices are on the meta device.
    """

    turned = False

    def __init__(self, model: Model, blocks: Blocks, held: HeldWeights) -> None:
        super().__init__(model)
        self._blocks, self._held = blocks, held
        self.weights = held
        self._parts: Parts = {}  # of the matrix that was rounded last

    def begin(self, names: Collection[str]) -> None:
        self._blocks.begin(names)

    def value(self, layer: Layer) -> Tensor:
        return self._held[layer.weight.name]

    def known(self, name: str) -> Tensor | None:
        return self._blocks.value(name) if self._blocks.finished(name) else None

    def keep(self, name: str, codes: Tensor, groups: Groups) -> None:
        parts = store_integers(codes, 4, groups.scales, groups.zeros)
        if not torch.equal(restore_reduced(parts, tuple(codes.shape)), groups.values(codes)):
            raise VerificationError(f"{name} would be stored as another weight than it computes with")
        self._parts = parts

    def assign(self, layer: Layer, value: Tensor, scales: Tensor | None) -> None:
        name = layer.weight.name

        def unscaled(value: Tensor) -> Tensor:
            return value if scales is None else (value / scales).float()

        now = unscaled(value)
        if not self._blocks.finished(name):
            self._blocks.keep(name, self._parts, self._held[name], now)
        self._held.change(name, now, lambda: unscaled(self._blocks.value(name)))

    def passed(self, name: str, what: str, norms: NormScales) -> None:
        self._blocks.passed(name, what, norms.open_vectors(), norms.vectors())

    def store(self, norms: NormScales) -> None:
        self._blocks.finish(norms.vectors())


@dataclass(frozen=True)
class OnData:
    """How a pass goes through a network layer by layer.

    Attributes:
        check: (pass, model) refuses what does not fit, before anything is read.
        change: (pass, model, blocks, held, context) does it.
        options: it takes these, too.
    """

    check: Callable[[Any, Model], None]
    change: Callable[[Any, Model, Blocks, HeldWeights, Context], None]
    options: tuple[str, ...] = ()


def _check_quantize(each: Quantize, model: Model) -> None:
    if each.group_size is None:
        raise UsageError(
            "quantize --stream --data fits weights of 4 bits by groups to the data",
            got="no --group-size",
            remedy="add --weight-bits 4 --group-size 64, or leave --data out",
        )
    prepare(model, include_head=False)
    check_groups(model, each.keep, each.group_size)


def _quantize(each: Quantize, model: Model, blocks: Blocks, held: HeldWeights, context: Context) -> None:
    assert each.group_size is not None
    matrices = StreamedMatrices(model, blocks, held)
    round_by_groups(
        model,
        each.keep,
        each.group_size,
        asymmetric=each.asymmetric,
        nearest=False,
        context=context,
        stored=matrices,
    )


ON_DATA = {
    "quantize": OnData(_check_quantize, _quantize),
    "prune": OnData(by_layer.check_prune, by_layer.prune),
    "factorize": OnData(by_layer.check_factorize, by_layer.factorize, ("minimize", "refit")),
}
