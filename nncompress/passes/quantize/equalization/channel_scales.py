"""A scale per channel for activations, at no cost, where only layers of single channels read them.

An activation has one grid for all of its channels. Where they differ in range, as in the residual stream of
a pre-activation network, a narrow channel is left with a few steps of it, and the batch norm behind magnifies
what is lost. But if whatever computes a channel is divided by s and whatever reads it is multiplied by s, the
function is the same (Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias
Correction", §4.1); and int8 loses nothing by it, because weights have a scale per output channel, and a layer
that reads a single channel has one for it. So wherever a channel goes by such layers alone, s is its standard
deviation.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from nncompress.analysis.couplings.labels import PIN, Factor, Labels
from nncompress.analysis.observe.statistics import ChannelStatistics, observe
from nncompress.analysis.observe.walk import Inputs
from nncompress.ir import Model
from nncompress.ir.graph.ops import HOMOGENEOUS, HOMOGENEOUS_PER_CHANNEL, op_name
from nncompress.ir.layers.weights import Layer, argument, layers, owns_tensors
from nncompress.progress import Progress

LIMIT = 1e3  # of a scale, either way: a channel that is almost zero is not blown up


def scale_channels(model: Model, batches: Iterable[Inputs], progress: Progress, total: int | None) -> int:
    """Scale the channels that only depthwise layers read, in place; returns how many.

    The model computes the same function up to rounding.

    Args:
        batches: calibration samples; not looked at where there is no such channel.
    """
    streams = _Streams(model)
    read = [layer.data for layer in streams.scalable if layer.depthwise and streams.free(layer.data).any()]
    if not read:
        return 0
    seen = {node: ChannelStatistics() for node in read}
    watches = {node: [each.add] for node, each in seen.items()}
    said = "comparing channels"
    if not observe(model, batches, watches, progress=progress, total=total, description=said):
        return 0
    scales = streams.scales({node: each.variance.sqrt() for node, each in seen.items()})
    for layer in streams.scalable:
        _apply(layer, streams.along(scales, layer.data), streams.along(scales, layer.node))
    return streams.count(scales)


class _Streams:
    """Which channels of which activations have to have one scale, and which have to keep theirs."""

    def __init__(self, model: Model) -> None:
        self._labels = Labels()
        self._of: dict[fx.Node, Factor] = {}
        self.scalable: list[Layer] = [layer for layer in layers(model) if _scalable(model, layer)]
        by_node = {layer.node: layer for layer in self.scalable}
        for node in model.graph.nodes:
            value = node.meta.get("val")
            image = isinstance(value, Tensor) and value.is_floating_point() and value.dim() > 2
            if image and node.op != "get_attr" and isinstance(value.shape[1], int):
                self._of[node] = self._labels.fresh(value.shape[1])
            layer = by_node.get(node)
            if layer is not None:
                if not layer.depthwise:
                    self._pin(layer.data)
            elif not self._carried(node):
                for each in (node, *node.all_input_nodes):
                    self._pin(each)

    def free(self, node: fx.Node) -> Any:
        """bool per channel: may it have a scale?"""
        return self._labels.find(self._of[node]) != PIN if node in self._of else np.zeros(1, bool)

    def scales(self, spreads: dict[fx.Node, Tensor]) -> Any:
        """Per label, 1 where pinned: how far the channels of its class spread, in the geometric mean.

        Args:
            spreads: [C] of each activation, of which the ratios count.
        """
        total, count = np.zeros(len(self._labels)), np.zeros(len(self._labels))
        for node, spread in spreads.items():
            usable = (spread > 0).numpy() & self.free(node)
            roots = self._labels.root(self._of[node])[usable]
            logs = np.log(spread.numpy()[usable])
            if len(logs):
                np.add.at(total, roots, logs - logs.mean())
                np.add.at(count, roots, 1)
        scale = np.exp(total / np.maximum(count, 1)).clip(1 / LIMIT, LIMIT)
        return scale[self._labels.root(np.arange(len(self._labels)))]

    def count(self, scales: Any) -> int:
        """How many classes have one."""
        roots = self._labels.root(np.arange(len(self._labels)))
        return len(np.unique(roots[scales != 1]))

    def along(self, scales: Any, node: fx.Node) -> Tensor | None:
        """Of these scales (per label) those of the node's channels, [C]; None where it has no channels."""
        return torch.from_numpy(scales[self._of[node]]) if node in self._of else None

    def _pin(self, node: fx.Node) -> None:
        if node in self._of:
            self._labels.pin(self._of[node], "read or computed by something else")

    def _unite(self, node: fx.Node, other: Factor) -> bool:
        if node not in self._of or self._of[node].shape != other.shape:
            return False
        self._labels.unite(self._of[node], other)
        return True

    def _carried(self, node: fx.Node) -> bool:
        """Does this op keep the channels of its inputs apart, and multiply by s where they do?"""
        if node.op != "call_function" or node not in self._of:
            return False
        name = op_name(node)
        first = node.args[0] if node.args else None
        if name in ("cat", "concat"):
            return self._concatenated(node, list(first))  # type: ignore[arg-type]
        if name == "add":
            both = [each for each in node.args[:2] if isinstance(each, fx.Node) and each in self._of]
            if len(both) < 2 or node.kwargs.get("alpha", 1) != 1:
                return False
            return self._unite(node, self._of[both[0]]) and self._unite(node, self._of[both[1]])
        if not isinstance(first, fx.Node) or first not in self._of:
            return False
        if name in HOMOGENEOUS | HOMOGENEOUS_PER_CHANNEL:
            return self._unite(node, self._of[first])
        if name == "slice":
            dim, start, end, step = (argument(node, i) for i in range(1, 5))
            if any(isinstance(each, fx.Node) for each in (dim, start, end, step)):
                return False  # depends on the input
            rank = node.meta["val"].dim()
            taken = slice(start, end, step) if int(dim or 0) % rank == 1 else slice(None)  # type: ignore[call-overload]
            return self._unite(node, self._of[first][taken])
        if name in ("pad", "constant_pad_nd"):
            return self._padded(node, first, name)
        return False

    def _concatenated(self, node: fx.Node, parts: list[fx.Node]) -> bool:
        if any(part not in self._of for part in parts):
            return False
        if int(argument(node, 1, 0)) % node.meta["val"].dim() == 1:  # type: ignore[call-overload]
            return self._unite(node, np.concatenate([self._of[part] for part in parts]))
        return all(self._unite(node, self._of[part]) for part in parts)

    def _padded(self, node: fx.Node, source: fx.Node, name: str) -> bool:
        pads: Any = list(node.args[1])  # type: ignore[arg-type]
        mode = argument(node, 2, "constant") if name == "pad" else "constant"
        value = argument(node, 3 if name == "pad" else 2, 0)
        rank = node.meta["val"].dim()
        begin, end = (*pads, *[0] * 2 * rank)[2 * (rank - 2) : 2 * (rank - 1)]
        outer = any(pads[2 * (rank - 1) :])
        if mode != "constant" or value not in (0, None) or outer or min(begin, end) < 0:
            return False
        return self._unite(
            node, np.concatenate([self._labels.fresh(begin), self._of[source], self._labels.fresh(end)])
        )


def _scalable(model: Model, layer: Layer) -> bool:
    """A convolution whose float weight and bias are its own."""
    if layer.roles.groups is None or layer.roles.outputs != 0 or layer.roles.inputs != 1:
        return False
    return layer.node.meta["val"].dim() == layer.weight.value().dim() and owns_tensors(model, layer)


def _apply(layer: Layer, read: Tensor | None, written: Tensor | None) -> None:
    weight = layer.weight.value().double()
    rest = [1] * (weight.dim() - 1)
    if layer.depthwise and read is not None:
        weight = weight * read.repeat_interleave(len(weight) // len(read)).reshape(-1, *rest)
    if written is not None:
        weight = weight / written.reshape(-1, *rest)
        if layer.bias is not None:
            layer.bias.assign((layer.bias.value().double() / written).to(layer.bias.value().dtype))
    layer.weight.assign(weight.to(layer.weight.value().dtype))
