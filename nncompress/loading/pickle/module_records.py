"""From inert records of `torch.nn` modules to the modules, through a check that they hold only plain state.

The state of a module is a dict that becomes its `__dict__`. What in there could carry code, and what becomes
of it:

- hooks (`_forward_hooks`, …): functions that run at every call. Refused unless empty.
- an attribute that replaces a method (`forward`): refused, though no admitted value can be called.
- functions as settings (`TransformerEncoderLayer.activation`): one of the few of `ACTIVATIONS`, only there.
- names of submodules and parameters: torch writes them into generated source. Only plain characters.
- tensors with attributes or hooks, sparse, quantized, on no device: rebuilt as plain ones, or refused.
- modules that contain themselves: refused.
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any

import torch
from torch import nn

from nncompress.loading.pickle.module_attributes import Disagrees, is_composite, made_anew
from nncompress.loading.pt2.schema import is_parameter_name


def _torch_nn_classes() -> dict[str, type[nn.Module]]:
    """`torch.nn.modules.conv.Conv2d` → the class, for all but those that register hooks on themselves."""
    classes = {}
    for info in pkgutil.iter_modules(nn.modules.__path__):
        module = importlib.import_module(f"torch.nn.modules.{info.name}")
        for name, value in vars(module).items():
            if not (isinstance(value, type) and issubclass(value, nn.Module)):
                continue
            if value.__module__ == module.__name__ and not name.startswith(("Lazy", "_Lazy")):
                classes[f"{value.__module__}.{value.__qualname__}"] = value
    return classes


TORCH_NN = _torch_nn_classes()

# wrappers for training; what counts is the module inside
_WRAPPERS = {
    "torch.nn.parallel.data_parallel.DataParallel": "module",
    "torch.nn.parallel.distributed.DistributedDataParallel": "module",
}
SAFE_CLASSES = frozenset(TORCH_NN) | frozenset(_WRAPPERS)

ACTIVATIONS = {
    "torch.nn.functional.relu": torch.nn.functional.relu,
    "torch.nn.functional.silu": torch.nn.functional.silu,
    "torch._C._nn.gelu": torch.nn.functional.gelu,
}
_HAS_ACTIVATION = (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)

_EMPTY = set(nn.Module().__dict__) - {"training", "_parameters", "_buffers", "_modules"}
_EMPTY -= {"_non_persistent_buffers_set", "_is_full_backward_hook"}


_MOST_DEEP = 64
_MOST_VALUES = 1_000_000  # a short pickle can make lists that double, and double again


class Record:
    """Stands for a class or function a pickle names: keeps what it is given, does nothing.

    Attributes:
        of: the name in the pickle.
        arguments: what it was called with.
        state: what an unpickler would have made its `__dict__`.
    """

    of = ""

    def __new__(cls, *arguments: Any) -> Record:
        record = super().__new__(cls)
        record.arguments = arguments
        record.state = None
        return record

    def __init__(self, *arguments: Any) -> None:
        self.arguments: tuple[Any, ...] = arguments

    def __setstate__(self, state: Any) -> None:
        self.state: Any = state


def module_from_record(record: Record) -> nn.Module:
    """The module that `record` and the records inside it describe; shared modules and tensors stay shared.

    Raises:
        Disagrees: the attributes and weights of a module do not belong together.
        ValueError: the record is not one of a `torch.nn` module, or its state is not plain.
    """
    return _Builder().module(record, "the model")


class _Builder:
    def __init__(self) -> None:
        self._modules: dict[int, nn.Module | None] = {}  # by id of the record; None while it is being built
        self._tensors: dict[int, torch.Tensor] = {}
        self._values = 0

    def module(self, record: Any, where: str) -> nn.Module:
        if where.count(".") > _MOST_DEEP:
            raise ValueError(f"modules nested more than {_MOST_DEEP} deep")
        if isinstance(record, Record) and record.of in _WRAPPERS and isinstance(record.state, dict):
            members = record.state.get("_modules")
            inner = members.get(_WRAPPERS[record.of]) if isinstance(members, dict) else None
            return self.module(inner, where)
        if not isinstance(record, Record) or record.of not in TORCH_NN:
            raise ValueError(f"{where} is {_kind(record)}, not a module of torch.nn")
        if id(record) in self._modules:
            known = self._modules[id(record)]
            if known is None:
                raise ValueError(f"{where} contains itself")
            return known
        self._modules[id(record)] = None
        kind = TORCH_NN[record.of]
        if record.arguments or not isinstance(record.state, dict):
            raise ValueError(f"{where} ({kind.__name__}) was not pickled as a module")
        module = self._made(kind, self._state(record.state, kind, where), where)
        self._modules[id(record)] = module
        return module

    def _made(self, kind: type[nn.Module], state: dict[str, Any], where: str) -> nn.Module:
        if is_composite(kind):
            if (size := state.get("_size")) is not None and size != len(state["_parameters"]):
                raise Disagrees(f"{where} has {len(state['_parameters'])} members and says {size!r:.40}")
            members = {
                name for table in ("_parameters", "_buffers", "_modules") for name in state.get(table, ())
            }
            if hidden := members & state.keys():
                raise Disagrees(f"{where} has attributes that hide its members {', '.join(hidden)[:100]}")
            module = kind.__new__(kind)
            module.__setstate__({**nn.Module().__dict__, **state})
            return module
        tables = {table: state.pop(table, {}) for table in ("_parameters", "_buffers", "_modules")}
        state.pop("_non_persistent_buffers_set", None)
        try:
            module = made_anew(kind, state, tables["_parameters"], tables["_buffers"])
        except Disagrees as error:
            raise Disagrees(f"{where}: {error}") from error
        if module._modules.keys() != tables["_modules"].keys():
            raise Disagrees(f"{where} has the submodules {', '.join(tables['_modules'])[:100] or 'none'}")
        for name, inner in tables["_modules"].items():
            made: Any = module._modules[name]
            if type(inner) is not type(made) or any(
                given.shape != own.shape for given, own in zip(inner.parameters(), made.parameters())
            ):
                raise Disagrees(f"{where}.{name} is another layer than {kind.__name__} has there")
            setattr(module, name, inner)
        return module.train(bool(state.get("training", False)))

    def _state(self, state: dict[Any, Any], kind: type[nn.Module], where: str) -> dict[str, Any]:
        plain: dict[str, Any] = {}
        for key, value in state.items():
            if type(key) is not str:
                raise ValueError(f"{where} has an attribute {key!r}")
            inside = f"{where}.{key}"
            if key in _EMPTY:
                if value:
                    raise ValueError(f"{inside} is not empty: it holds hooks, which are code")
            elif key == "_modules":
                plain[key] = self._members(value, self.module, where)
            elif key in ("_parameters", "_buffers"):
                plain[key] = self._members(value, self.tensor, where)
            elif key == "_is_full_backward_hook":
                continue
            elif key == "__overloads__" and type(value) is dict and not value:
                continue  # torch.jit.script leaves it in the module that it was given
            elif key == "activation" and issubclass(kind, _HAS_ACTIVATION) and isinstance(value, type):
                plain[key] = _activation(value, inside)
            elif key.startswith("__") or callable(getattr(kind, key, None)):
                raise ValueError(f"{inside} would replace a method of {kind.__name__}")
            else:
                plain[key] = self._plain(value, inside)
        return plain

    def _members(self, table: Any, convert: Any, where: str) -> dict[str, Any]:
        if not isinstance(table, dict):
            raise ValueError(f"{where} lists its members in {_kind(table)}")
        members = {}
        for name, value in table.items():
            if type(name) is not str or "." in name or not is_parameter_name(name):
                raise ValueError(f"{where} has a member of the name {name!r}")
            members[name] = None if value is None else convert(value, f"{where}.{name}")
        return members

    def tensor(self, value: Any, where: str) -> torch.Tensor:
        if id(value) in self._tensors:
            return self._tensors[id(value)]
        if type(value) not in (torch.Tensor, nn.Parameter):
            raise ValueError(f"{where} is {_kind(value)}, not a tensor")
        # Attributes in the file may hide the tensor's own methods, so these are taken from the class.
        data = torch.Tensor.detach(value)
        if data.layout != torch.strided or data.is_quantized or data.device.type != "cpu":
            raise ValueError(f"{where} is a {data.layout} tensor on {data.device}, not a plain one")
        is_parameter = type(value) is nn.Parameter
        self._tensors[id(value)] = nn.Parameter(data, value.requires_grad) if is_parameter else data
        return self._tensors[id(value)]

    def _plain(self, value: Any, where: str, deep: int = 0) -> Any:
        """Numbers, strings, torch's dtypes and devices, tensors, and containers of those."""
        self._values += 1
        if self._values > _MOST_VALUES or deep > _MOST_DEEP:
            raise ValueError(f"{where} holds more values than the attributes of a model")
        if value is None or type(value) in (bool, int, float, str, torch.dtype, torch.device, torch.Size):
            return value
        if isinstance(value, torch.Tensor):
            return self.tensor(value, where)
        if type(value) in (tuple, list, set):
            return type(value)(self._plain(item, where, deep + 1) for item in value)
        if isinstance(value, dict):
            return {
                self._plain(key, where, deep + 1): self._plain(item, where, deep + 1)
                for key, item in value.items()
            }
        raise ValueError(f"{where} is {_kind(value)}")


def _activation(stand_in: Any, where: str) -> Any:
    name = getattr(stand_in, "of", None)
    if name not in ACTIVATIONS:
        raise ValueError(f"{where} is {_kind(stand_in)}")
    return ACTIVATIONS[name]


def _kind(value: Any) -> str:
    if isinstance(value, Record) or (isinstance(value, type) and issubclass(value, Record)):
        return f"a {value.of}"
    return f"a {type(value).__name__}"
