"""One weight as a network of one layer, and what a pass has made of it as tensors to store."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nncompress.errors import VerificationError
from nncompress.ir import Model
from nncompress.ir.formats.packed import Parts, restore, smallest
from nncompress.ir.formats.raw_bytes import raw_bytes
from nncompress.ir.formats.reduced import LEAST, restore_reduced, store_integers
from nncompress.ir.layers.weights import Layer, Weight, layers

HALVES = (torch.float16, torch.bfloat16)
OVERHEAD = 512  # bytes that the entries of a stored form take in the header, about
_CONVOLUTIONS: dict[int, type[nn.Module]] = {3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}
_TABLES = ("emb", "wte", "wpe", "shared.weight")


def kind_of(name: str, shape: tuple[int, ...]) -> str:
    """What a weight belongs to: "linear", "embedding" or "convolution"; "" for what is no weight of a layer.

    The number of dims tells a convolution; a table that is looked up goes by its name.
    """
    if name.rpartition(".")[2] != "weight" or not all(shape):
        return ""
    if len(shape) in _CONVOLUTIONS:
        return "convolution"
    if len(shape) != 2:
        return ""
    return "embedding" if any(sign in name for sign in _TABLES) else "linear"


def layer_name(name: str) -> str:
    """ "layers.0.q_proj.weight" -> "layers.0.q_proj", as messages and patterns call it."""
    return name.removesuffix(".weight")


def as_float(value: Tensor) -> Tensor:
    """The values in memory of their own, halves as float32."""
    return value.float() if value.dtype in HALVES else value.clone()


def one_layer(name: str, weight: Tensor, kind: str) -> Model:
    """A network of one layer of that name with this weight; a convolution has stride 1 and no padding.

    Args:
        weight: float32 or float64, which becomes the model's own.
    """
    outputs, inputs = weight.shape[:2]
    example = torch.zeros(2, inputs, *weight.shape[2:], dtype=weight.dtype)
    layer: nn.Module
    if kind == "embedding":
        layer, example = nn.Embedding(outputs, inputs, device="meta"), torch.zeros(2, 1, dtype=torch.int64)
    elif kind == "linear":
        layer = nn.Linear(inputs, outputs, bias=False, device="meta")
    else:
        made = _CONVOLUTIONS[weight.dim()]
        layer = made(inputs, outputs, tuple(weight.shape[2:]), bias=False, device="meta")
    layer.weight = nn.Parameter(weight)
    return Model.from_module(_Nested(layer_name(name), layer).eval(), (example,))


def stored(model: Model, dtype: torch.dtype) -> tuple[Parts | None, Tensor]:
    """The parts in which the only weight of a changed model is stored, and the value they mean.

    Parts are None where the value itself, in `dtype`, is the smallest.

    Raises:
        VerificationError: the parts mean another value than the layer computes with.
    """
    found = list(layers(model))
    if len(found) > 1:
        factors = {"first": found[0].weight.value(), "second": found[1].weight.value()}
        factors = {name: part.to(dtype) for name, part in factors.items()}
        return factors, restore_reduced(factors, _shape(found))
    weight = found[0].weight
    value = weight.value()
    if not weight.quantized:
        kept = value.to(dtype)
        parts = smallest(kept, OVERHEAD)
        if parts is not None and not torch.equal(
            raw_bytes(restore(parts, tuple(kept.shape))), raw_bytes(kept)
        ):
            raise _another(found[0].name)
        return parts, kept
    if value.numel() < LEAST:
        return None, value
    parts = _integers(model, weight)
    restored = restore_reduced(parts, tuple(value.shape))
    if not torch.equal(restored, value):
        raise _another(found[0].name)
    return parts, value


def _another(name: str) -> VerificationError:
    return VerificationError(f"{name} would be stored as another weight than it computes with")


class _Nested(nn.Module):
    """A module that holds `layer` under a dotted name, and is called as it is."""

    def __init__(self, name: str, layer: nn.Module) -> None:
        super().__init__()
        *path, last = name.split(".")
        parent: nn.Module = self
        for part in path:
            parent.add_module(part, nn.Module())
            parent = parent.get_submodule(part)
        parent.add_module(last, layer)
        self._called = (layer,)

    def forward(self, x: Tensor) -> Tensor:
        return self._called[0](x)


def _shape(found: list[Layer]) -> tuple[int, int]:
    first, second = (layer.weight.value() for layer in found)
    return len(second), first.shape[1]


def _integers(model: Model, weight: Weight) -> Parts:
    """The codes and scales of a quantized weight whose rows have scales of their own."""
    codes = model.tensor(weight.name).detach()
    scales, zeros = (
        None if each is None else model.tensor(str(each.target)).detach()  # type: ignore[union-attr]
        for each in weight.source.args[1:3]
    )
    assert scales is not None
    high = int(weight.source.args[5 if weight.group_size is None else 4])  # type: ignore[arg-type]
    grouped = weight.group_size is not None
    return store_integers(
        codes,
        (high + 1).bit_length(),
        scales if grouped else scales.reshape(-1, 1),
        zeros if grouped else None,
    )
