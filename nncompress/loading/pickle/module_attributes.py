"""A `torch.nn` layer made anew by its own constructor, from attributes of a file, which are so checked.

A layer's attributes reach C++ as they are: an LSTM whose `hidden_size` does not fit its weights reads outside
them. So the arguments of the constructor are taken from the attributes, the layer is made from them (on the
meta device, where it takes no memory), and what the file says beyond them must agree with what was made.
"""

from __future__ import annotations

import inspect
import math
import typing
from typing import Any

import torch
from torch import Tensor, nn

# Made of other layers, or taking weights as arguments: their attributes are flags, which Python reads.
_COMPOSITE = (
    *(nn.Sequential, nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict, nn.Container),
    *(nn.Transformer, nn.TransformerEncoder, nn.TransformerEncoderLayer, nn.TransformerDecoder),
    *(nn.TransformerDecoderLayer, nn.AdaptiveLogSoftmaxWithLoss, nn.modules.loss._Loss),
)
_ATTRIBUTE_OF: dict[tuple[type[nn.Module], str], str] = {
    (nn.PairwiseDistance, "p"): "norm"
}  # where it is not called as the argument
_REBUILT = {"_flat_weights", "training"}  # of the weights themselves
_MOST = 2**31


class Disagrees(ValueError):
    """Attributes and weights of a layer that no constructor gives it together."""


def is_composite(kind: type[nn.Module]) -> bool:
    """Whether there is no constructor of plain arguments that would check the attributes."""
    return issubclass(kind, _COMPOSITE) or not hasattr(kind, "forward")


def made_anew(
    kind: type[nn.Module], attributes: dict[str, Any], parameters: dict[str, Any], buffers: dict[str, Any]
) -> nn.Module:
    """The layer with those attributes and tensors (None for those that it goes without).

    Raises:
        Disagrees: they are none that its constructor could have given it.
    """
    arguments = _arguments(kind, attributes, parameters)
    try:
        with torch.device("meta"):
            layer = kind(**arguments)
    except Exception as error:  # every constructor refuses in its own way
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise Disagrees(f"{kind.__name__}({_shown(arguments)}): {reason[:200]}") from error
    _fill(layer, parameters, buffers)
    if isinstance(layer, nn.RNNBase):
        layer._init_flat_weights()
    for name, value in attributes.items():
        if name in _REBUILT:
            continue
        if name not in layer.__dict__:
            if hasattr(layer, name):
                raise Disagrees(f"the attribute {name!r} hides what {kind.__name__} has of that name")
            layer.__dict__[name] = value  # set by whoever made the model; the layer does not read it
        elif not _same(layer.__dict__[name], value):
            raise Disagrees(
                f"the attribute {name!r} is {value!r:.60}, where {kind.__name__}({_shown(arguments)}) has "
                f"{layer.__dict__[name]!r:.60}"
            )
    return layer


def _arguments(
    kind: type[nn.Module], attributes: dict[str, Any], parameters: dict[str, Any]
) -> dict[str, Any]:
    constructor: Any = nn.RNNBase.__init__ if issubclass(kind, nn.RNNBase) else kind.__init__
    hints = typing.get_type_hints(constructor)
    arguments = {}
    for name in list(inspect.signature(constructor).parameters)[1:]:
        attribute = _ATTRIBUTE_OF.get((kind, name), name)
        if attribute in attributes:
            arguments[name] = _checked(name, attributes[attribute], hints.get(name))
        elif name == "bias":
            arguments[name] = any(parameters.get(p) is not None for p in ("bias", "in_proj_bias"))
        elif name == "add_bias_kv":
            arguments[name] = parameters.get("bias_k") is not None
    if issubclass(kind, nn.RNNBase):
        if arguments.get("num_layers", 1) > max(len(parameters), 1):
            raise Disagrees(f"{arguments['num_layers']} layers with {len(parameters)} weights")
        mode = arguments.pop("mode", "")
        if kind is nn.RNN:
            arguments["nonlinearity"] = mode.removeprefix("RNN_").lower() if isinstance(mode, str) else mode
        if kind is not nn.LSTM:
            arguments.pop("proj_size", None)
    return arguments


def _checked(name: str, value: Any, hint: Any) -> Any:
    """A plain value, of the annotated type where that is one of Python's own."""
    kinds = {int: (int,), bool: (bool,), float: (int, float)}.get(hint)
    if kinds is not None and type(value) not in kinds:
        raise Disagrees(f"the attribute {name!r} is {value!r:.60}, not {hint.__name__}")
    for item in value if isinstance(value, tuple | list) else (value,):
        if isinstance(item, int) and not -_MOST < item < _MOST:
            raise Disagrees(f"the attribute {name!r} is {item}")
        if isinstance(item, float) and math.isnan(item):
            raise Disagrees(f"the attribute {name!r} is not a number")
        if not isinstance(item, int | float | str | tuple | None):
            raise Disagrees(f"the attribute {name!r} holds a {type(item).__name__}")
    return value


def _fill(layer: nn.Module, parameters: dict[str, Any], buffers: dict[str, Any]) -> None:
    for given, own in ((parameters, layer._parameters), (buffers, layer._buffers)):
        for name in given.keys() | own.keys():
            made, found = own.get(name), given.get(name)
            if (
                name == "num_batches_tracked" and found is None and made is not None
            ):  # of files before torch 0.4.1
                found = torch.zeros((), dtype=torch.int64)
            shape = None if made is None else tuple(made.shape)
            if shape != (None if found is None else tuple(found.shape)):
                raise Disagrees(
                    f"{name} has the shape {None if found is None else tuple(found.shape)}, where its layer "
                    f"({type(layer).__name__}) has {shape}"
                )
            if isinstance(found, Tensor):
                setattr(layer, name, found)


def _same(made: Any, found: Any) -> bool:
    if isinstance(made, tuple | list) and isinstance(found, tuple | list):
        return len(made) == len(found) and all(map(_same, made, found))
    if isinstance(made, Tensor) or isinstance(found, Tensor):
        return False
    numbers = {type(made), type(found)} == {int, float}
    return (type(made) is type(found) or numbers) and bool(made == found)


def _shown(arguments: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value!r:.30}" for name, value in list(arguments.items())[:8])
