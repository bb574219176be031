"""Residual streams that may be seen in other axes: x Q for x, whatever orthogonal Q leaves the mean.

The groups of `couplings` say which dims of which tensors hold the channels of a stream, whatever the
architecture. Here is checked that nothing looks at single channels: what moves, adds and averages rows of
channels does to x Q what it does to x, and so does a norm whose scales have gone into the products behind it.

For a Q that does not leave the mean, nothing may look at the mean either. A layer norm does: where norms
alone read the stream it may be centred, and layer norms are then RMS norms (`centred`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from nncompress.analysis.couplings import Group, find_couplings
from nncompress.dtypes import dtype_name
from nncompress.ir import Model
from nncompress.ir.graph.ops import COPIES, DROPOUTS, MOVES, PRODUCTS, op_name
from nncompress.ir.graph.places import layer_name, place
from nncompress.ir.layers.weights import Layer, argument, layers, readers, reads
from nncompress.passes.invariance.followed import OTHER, ChannelReader, Followed, example_shapes
from nncompress.passes.invariance.sources import Source, is_matrix, norm_vectors

SMALL = 1e-4  # of the largest scale of a norm: by one that is smaller its bias is not divided
_FLOATS = (torch.float32, torch.float64)  # whose rounding is below what a proof of x Q can see
_NORMS = frozenset({"layer_norm", "rms_norm"})
_SPLITS = frozenset({"split", "split_with_sizes", "chunk", "unbind"})
_OVER = frozenset({"mean", "sum"})  # of channels: the same of x Q; of rows: a row
# the result is made of whole rows of channels, where its channels are all of the operand's, in their order
_ROWS = MOVES | DROPOUTS | COPIES | _SPLITS | _OVER | {"to", "_to_copy", "neg", "getitem", "cat", "stack"}
_ROWS |= {"repeat", "roll", "flip", "index_select", "narrow"}
_LAYERS = PRODUCTS | {"embedding", "conv1d", "conv2d", "conv3d", "convolution"}


@dataclass(frozen=True)
class Norm:
    """A norm whose scales differ, and the products that can take all of them."""

    source: Source
    readers: tuple[ChannelReader, ...]


@dataclass(frozen=True)
class Stream:
    """A residual stream.

    Attributes:
        name: the layer that begins it.
        dims: stored tensors, and the dim of each that holds the channels, in their order; not the scales of
            norms, which are all the same then.
        written: those among them that make what norms read, not those that read it or shift what they make.
        norms: those whose scales the products behind them must take first.
        normed: what norms make of it.
        centred: layer norms that must become RMS norms of a centred stream first.
    """

    name: str
    width: int
    dims: tuple[tuple[str, int], ...]
    written: tuple[tuple[str, int], ...]
    norms: tuple[Norm, ...]
    normed: tuple[fx.Node, ...]
    centred: tuple[fx.Node, ...]


def find_streams(model: Model, *, any_axes: bool = False) -> tuple[list[Stream], dict[str, str]]:
    """Those that may be turned; of the others with norms why not, by the layer that begins them.

    Args:
        any_axes: by any orthogonal matrix, not only by one that leaves the mean of the channels.
    """
    products = {layer.node: layer for layer in layers(model)}
    couplings = find_couplings(model)
    found, reasons = [], {}
    left = [node for node in model.graph.nodes if norm_vectors(model, node)]
    for group in couplings.groups:
        carriers = {site.node for site in group.carriers}
        norms = [
            node for node in carriers if op_name(node) in _NORMS or norm_vectors(model, node) is not None
        ]
        if not norms or not group.consumers:
            continue
        left = [node for node in left if node not in carriers]
        check = _Check(model, group, products, any_axes)
        reason = check.reason()
        scaled = [] if reason else [_norm(model, node, products) for node in norms if _differ(model, node)]
        reason = reason or next((each for each in scaled if isinstance(each, str)), "")
        if reason:
            reasons[group.name] = reason
            continue
        scales = {names[0] for names in (norm_vectors(model, node) for node in norms) if names}
        dims = {(m.tensor, m.dim): m.role for m in group.members if m.tensor not in scales}
        written = tuple(d for d, role in dims.items() if role != "input" and d[0] not in check.behind)
        whole = tuple(each for each in scaled if isinstance(each, Norm))
        found.append(Stream(group.name, group.size, tuple(dims), written, whole, tuple(norms), check.centred))
    for node in left:
        name = (norm_vectors(model, node) or [""])[0]
        why = couplings.pinned.get((name, 0), "")
        if why and why not in reasons.values():
            reasons[layer_name(name)] = why
    return found, reasons


class _Check:
    """Whether all that holds the channels of a group, or reads them, may be given x Q."""

    def __init__(self, model: Model, group: Group, products: dict[fx.Node, Layer], any_axes: bool) -> None:
        self._model, self._group, self._products, self._any_axes = model, group, products, any_axes
        self.centred: tuple[fx.Node, ...] = ()
        self.behind: set[str] = set()  # tensors that are no part of what is centred
        self._members = {(member.tensor, member.dim) for member in group.members}
        self._place = {}  # of the channels of each node, from the end
        for site in group.carriers:
            self._place[site.node] = site.node.meta["val"].dim() - site.dim

    def reason(self) -> str:
        """Why not; "" where it may."""
        every = np.arange(self._group.size)
        own = [member.unit for member in self._group.members]
        own += [site.unit for site in self._group.carriers]
        if not all(np.array_equal(unit, every) for unit in own):
            return "its channels go apart"
        if len(self._place) < len(self._group.carriers):
            return "a value has its channels along two dims"
        for name in {member.tensor for member in self._group.members}:
            if not self._is_float(name):
                return f"{name} is no stored tensor of float32 or float64"
            other = self._other_reader(name)
            if other is not None:
                return f"{place(other)} reads {name} by itself"
        for node in self._place:
            value = node.meta["val"]
            if isinstance(value, Tensor) and value.dtype not in _FLOATS:
                return f"{place(node)} rounds it to {dtype_name(value.dtype)}"
            if op_name(node) in _NORMS and norm_vectors(self._model, node) is None:
                return f"{place(node)} has no scales in float32 of its own"
            if not self._keeps(node):
                return f"{place(node)} looks at single channels"
            for user in node.users.keys() - self._place.keys():
                if not self._reads(user, node):
                    return f"{place(user)} reads single channels"
        return self._why_not_centred() if self._any_axes else ""

    def _why_not_centred(self) -> str:
        """Why layer norms can not be RMS norms of a centred stream; "" where they can, or there are none."""
        centred = tuple(node for node in self._place if op_name(node) == "layer_norm")
        if not centred:
            return ""
        behind, waiting = set(), list(centred)
        while waiting:  # what norms made, moved around
            node = waiting.pop()
            if node not in behind and node in self._place and node not in self._products:
                behind.add(node)
                waiting += node.users
        for node in behind:
            rows = [each for each in node.all_input_nodes if self._is_row(each, node)]
            values = [each for each in rows if each.op != "get_attr"]
            if node in centred and values[0] in behind:
                return f"{place(node)} follows a norm"
            if node not in centred and any(each not in behind for each in values):
                return f"{place(node)} adds to what a norm made"
        for node in self._place.keys() - behind:
            if self._squares(node) or op_name(node) == "rms_norm":
                return f"{place(node)} is no layer norm, and reads it beside layer norms"
            for user in node.users.keys() - self._place.keys():
                if user in self._products:
                    return f"{place(user)} reads it without a norm"
        for name, _ in self._members:
            users = [user for node in readers(self._model, name) for user in node.users]
            if any(user in behind for user in users):
                self.behind.add(name)
                if not all(user in behind for user in users):
                    return f"{name} is added before a norm and behind it"
        self.centred = centred
        return ""

    def _is_float(self, name: str) -> bool:
        try:
            tensor = self._model.tensor(name)
        except AttributeError:  # computed of others
            return False
        return tensor.dtype in _FLOATS

    def _other_reader(self, name: str) -> fx.Node | None:
        """What reads a stored tensor of the stream and is neither of the stream nor a product behind it."""
        users = (user for node in readers(self._model, name) for user in node.users)
        return next((user for user in users if user not in self._place and not self._is_behind(user)), None)

    def _is_behind(self, user: fx.Node) -> bool:
        return user in self._products and self._products[user].data in self._place

    def _keeps(self, node: fx.Node) -> bool:
        """The op makes x Q of what holds x Q."""
        name = op_name(node)
        if node in self._products:
            layer = self._products[node]
            return self._has(layer, layer.roles.outputs) and self._fits(layer) and self._follows(layer)
        if name in ("add", "sub"):
            return all(
                self._is_row(each, node) or not (self._any_axes or self._varies(each, node))
                for each in node.args[:2]
            )
        if name in _NORMS:
            return self._place[node] == 1
        if self._squares(node):
            return all(op_name(user) in _OVER and self._over_channels(user, node) for user in node.users)
        if name in ("mul", "div"):
            first, second = node.args[:2]
            if norm_vectors(self._model, node):
                return True  # its scales go to what reads it
            pairs = ((first, second), (second, first))[: 2 if name == "mul" else 1]
            return any(self._is_row(row, node) and not self._varies(by, node) for row, by in pairs)
        if name == "index":
            picked: Any = argument(node, 1)
            source = node.all_input_nodes[0]
            at = source.meta["val"].dim() - self._place.get(source, 0)
            return at >= len(picked) or picked[at] is None
        return name in _ROWS

    def _reads(self, user: fx.Node, node: fx.Node) -> bool:
        """What it makes of x Q is what it makes of x."""
        if user in self._products:
            layer = self._products[user]
            return layer.data is node and self._has(layer, layer.roles.inputs) and self._fits(layer)
        if user.op != "call_function":
            return False
        value = user.meta.get("val")
        if op_name(user) in _SPLITS:
            return True  # of their parts each is looked at
        if not isinstance(value, Tensor | list | tuple):
            return True
        return self._over_channels(user, node) and (not self._any_axes or self._squares(node))

    def _fits(self, layer: Layer) -> bool:
        return layer.kind in _LAYERS and layer.groups == 1 and not layer.weight.quantized

    def _follows(self, layer: Layer) -> bool:
        """Its bias, if it has one, goes along."""
        bias = None if layer.roles.bias is None else argument(layer.node, layer.roles.bias)
        return bias is None or (isinstance(bias, fx.Node) and self._is_row(bias, layer.node, at=1))

    def _has(self, layer: Layer, dim: int) -> bool:
        return (layer.weight.name, dim % layer.weight.value().dim()) in self._members

    def _is_row(self, value: object, node: fx.Node, at: int | None = None) -> bool:
        """It holds the channels where the node does."""
        if not isinstance(value, fx.Node):
            return False
        at = self._place[node] if at is None else at
        if value.op == "get_attr":
            return (str(value.target), value.meta["val"].dim() - at) in self._members
        return self._place.get(value) == at

    def _varies(self, value: object, node: fx.Node) -> bool:
        """It is not the same for all channels of the node."""
        shape = value.meta["val"].shape if isinstance(value, fx.Node) else ()
        at = self._place[node]
        return len(shape) >= at and shape[-at] != 1

    def _squares(self, node: fx.Node) -> bool:
        if op_name(node) == "mul":
            return node.args[0] is node.args[1]
        return op_name(node) == "square" or (op_name(node) == "pow" and argument(node, 1) == 2)

    def _over_channels(self, user: fx.Node, node: fx.Node) -> bool:
        if op_name(user) not in _OVER:
            return False
        dims: Any = argument(user, 1)
        rank = node.meta["val"].dim()
        dims = range(rank) if not dims and dims != 0 else [dims] if isinstance(dims, int) else dims
        return rank - self._place[node] in [dim % rank for dim in dims]


def _differ(model: Model, node: fx.Node) -> bool:
    """The norm has scales, and these are not the same for all channels."""
    names = norm_vectors(model, node)
    if not names:
        return False
    scales = model.tensor(names[0])
    return not bool((scales == scales[0]).all())


def _norm(model: Model, node: fx.Node, products: dict[fx.Node, Layer]) -> Norm | str:
    """The norm with the products that take its scales, or why they do not."""
    own = {n: each for n, each in products.items() if is_matrix(each) and reads(model, each.weight.name) == 1}
    own = {n: each for n, each in own.items() if not each.weight.quantized}
    order = {each: number for number, each in enumerate(model.graph.nodes)}
    followed = Followed(node, own, order, example_shapes(model))
    names = norm_vectors(model, node) or []
    scales = model.tensor(names[0]).detach().abs()
    if not bool(followed.free.all()) or any(bool((r.channels == OTHER).any()) for r in followed.readers):
        return f"not only products with weights of their own read {place(node)}"
    if len(names) > 1 and float(scales.min()) < SMALL * float(scales.max()):
        return f"{place(node)} scales a channel by almost 0"
    return Norm(Source(model, node, tuple(names)), tuple(followed.readers))
