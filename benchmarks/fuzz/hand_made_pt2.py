"""A `.pt2` written as `torch.export.save` would, of tensors and a graph that it would refuse."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch._export.serde.serialize import _TORCH_TO_SERIALIZE_DTYPE

Item = dict[str, Any]
DTYPES = {dtype: int(number) for dtype, number in _TORCH_TO_SERIALIZE_DTYPE.items()}


@dataclass(frozen=True)
class Given:
    """A tensor that the graph is given.

    Attributes:
        kind: "user_input", "parameter", "buffer" or "tensor_constant".
        memory: the name of the one in whose bytes it lies: its own, or another's.
    """

    tensor: Tensor
    kind: str
    memory: str


def archive(given: Mapping[str, Given], graph: Item) -> bytes:
    """The file; `graph` takes what is `given`, in order, under those names."""
    specs: list[Item] = []
    configs: dict[str, Item] = {"weights": {}, "constants": {}}
    members: dict[str, bytes] = {}
    order = list(given)
    for name, each in given.items():
        argument = {"name": name}
        if each.kind == "user_input":
            specs.append({"user_input": {"arg": {"as_tensor": argument}}})
            continue
        said: Item = {"arg": argument, f"{each.kind}_name": f"w.{name}"}
        if each.kind == "buffer":
            said["persistent"] = True
        specs.append({each.kind: said})
        folder, prefix = ("constants", "tensor") if each.kind == "tensor_constant" else ("weights", "weight")
        path = f"{prefix}_{order.index(each.memory)}"
        configs[folder][f"w.{name}"] = {
            "path_name": path,
            "is_param": each.kind == "parameter",
            "use_pickle": False,
            "tensor_meta": tensor_meta(each.tensor),
        }
        whole = torch.empty(0, dtype=torch.uint8).set_(each.tensor.untyped_storage())
        members.setdefault(f"data/{folder}/{path}", whole.numpy().tobytes())
    outputs = [{"user_output": {"arg": argument}} for argument in graph["outputs"]]
    inputs = [name for name, each in given.items() if each.kind == "user_input"]
    program = _PROGRAM | {
        "graph_module": {
            "graph": graph,
            "signature": {"input_specs": specs, "output_specs": outputs},
            "module_call_graph": [_calls(inputs, len(outputs))],
            "metadata": {},
            "treespec_namedtuple_fields": {},
        }
    }
    members |= {
        f"data/{folder}/model_{folder}_config.json": json.dumps({"config": config}).encode()
        for folder, config in configs.items()
    }
    members |= {"archive_format": b"pt2", "archive_version": b"0", "byteorder": b"little"}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, content in {"models/model.json": json.dumps(program).encode(), **members}.items():
            file.writestr(f"a/{name}", content)
    return buffer.getvalue()


def tensor_meta(tensor: Tensor, shape: tuple[int, ...] | None = None) -> Item:
    """What a file says of a tensor, or of one of another shape."""
    strides = tensor.stride()
    if shape is not None:  # which may be too large for any tensor of torch's
        strides = tuple(prod(max(size, 1) for size in shape[dim + 1 :]) for dim in range(len(shape)))
    return {
        "dtype": DTYPES[tensor.dtype],
        "sizes": [{"as_int": size} for size in (tensor.shape if shape is None else shape)],
        "requires_grad": False,
        "device": {"type": "cpu", "index": None},
        "strides": [{"as_int": stride} for stride in strides],
        "storage_offset": {"as_int": tensor.storage_offset()},
        "layout": 7,
    }


_PROGRAM = {
    "opset_version": {"aten": 10},
    "range_constraints": {},
    "schema_version": {"major": 8, "minor": 14},
    "verifiers": ["TRAINING"],
    "torch_version": torch.__version__,
    "guards_code": [],
}


def _calls(inputs: list[str], outputs: int) -> Item:
    def node(kind: str | None, context: str | None, children: list[Item]) -> Item:
        return {"type": kind, "context": context, "children_spec": children}

    leaf = node(None, None, [])
    arguments = node("builtins.tuple", "null", [leaf] * len(inputs))
    given = node("builtins.tuple", "null", [arguments, node("builtins.dict", "[]", [])])
    signature = {
        "inputs": [],
        "outputs": [],
        "in_spec": json.dumps([1, given]),
        "out_spec": json.dumps([1, node("builtins.tuple", "null", [leaf] * outputs)]),
        "forward_arg_names": inputs,
    }
    return {"fqn": "", "signature": signature}
