"""Is what was written what our own reader reads? Compared before a file is put in its place."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, fx

from nncompress.analysis.distance.precision import precision_of
from nncompress.errors import NNCompressError, VerificationError
from nncompress.exporting.check.compare import compare
from nncompress.ir import Model
from nncompress.ir.formats.raw_bytes import raw_bytes
from nncompress.ir.formats.samples import samples_of, verification_inputs
from nncompress.ir.graph.form import same_calls
from nncompress.ir.graph.ops import op_name
from nncompress.loading import load_model
from nncompress.loading.file_record import read_header
from nncompress.loading.state_dict.fill import read_safetensors, read_stored

Read = TypeVar("Read")


def read_back_pt2(model: Model, file: Path) -> str:
    """Compare the `.pt2` with `model`: tensors bit for bit, what it says of itself, outputs.

    Returns:
        Why the outputs were not compared; "" where they were.

    Raises:
        VerificationError: the file cannot be read, or holds something else.
    """
    found = _read(load_model, file)
    stored = _tensors(model)
    needed = _needed(model.graph)
    _compare_tensors({name: stored[name] for name in stored if name in needed}, _tensors(found), file)
    for what, ours, read in (
        ("inputs", [spec.to_json() for spec in model.inputs], [spec.to_json() for spec in found.inputs]),
        ("outputs", model.outputs, found.outputs),
        ("dynamic dims", model.dynamic, found.dynamic),
        ("history", model.history, found.history),
        ("metadata", model.metadata, found.metadata),
    ):
        _compare_json(what, ours, read, file)
    samples = samples_of(model.inputs), samples_of(found.inputs)
    if len(samples[0]) != len(samples[1]) or any(map(_differs, *samples)):
        raise _other(file, "the samples kept with it differ")
    if same_calls(model.graph, found.graph, str.__eq__):  # on tensors that were compared above
        return ""
    inputs = verification_inputs(model)
    try:
        expected = _run(model, inputs)
    except Exception as error:  # random values that it refuses, such as indices of a table
        return f"it does not run on random inputs ({next(iter(str(error).splitlines()), '')[:120]})"
    got = _run(found, inputs)
    if any(_differs(a, b) for a, b in zip(expected, got, strict=True)):
        names = [name for name, a, b in zip(model.outputs, expected, got) if _differs(a, b)]
        if any(_differs(a, b) for a, b in zip(expected, _run(model, inputs))):
            return "two runs of the model differ (it draws random numbers)"
        raise _other(file, f"outputs {', '.join(names[:5])} of the graph differ")
    return ""


def read_back_onnx(model: Model, file: Path) -> str:
    """Compare outputs and history of the `.onnx` with `model`, as the next command would read it.

    Its runtime has been asked before, so that the file is right; our own reader knows fewer ops.

    Returns:
        Why our reader does not take it for `model`; "" where it does.
    """
    try:
        found = load_model(file)
        _compare_json("history", model.history, found.history, file)
        compare(model, lambda inputs: found.outputs_of(*inputs), "nncompress", precision=precision_of(model))
    except NNCompressError as error:
        return f"{error.what}{f' ({error.got})' if error.got else ''}"[:300].replace(str(file), "it")
    return ""


def read_back_safetensors(model: Model, file: Path) -> None:
    """Compare the `.safetensors` with `model`: every tensor bit for bit, history and metadata.

    Raises:
        VerificationError: the file cannot be read, or holds something else.
    """
    tensors, header = _read(read_safetensors, file)
    record = read_header(header, file)
    _compare_tensors(model.state_dict(), tensors, file)
    _compare_json("history", model.history, record.history, file)
    _compare_json("metadata", model.metadata, record.metadata, file)


def read_back_tensors(tensors: Mapping[str, Tensor], header: Mapping[str, str], file: Path) -> None:
    """Compare a `.safetensors` with the tensors as they are stored, bit for bit, and what goes with them.

    Raises:
        VerificationError: the file cannot be read, holds something else, or does not unpack.
    """
    found, metadata = _read(read_stored, file)
    _compare_tensors(tensors, found, file)
    _compare_json("header", dict(header), metadata, file)


def _read(reader: Callable[[Path], Read], file: Path) -> Read:
    try:
        return reader(file)
    except NNCompressError as error:
        raise VerificationError(
            f"{file.name} is not kept: it could not be read back",
            got=str(error),
            expected="a file that loads again",
            remedy="this is a defect of the export; please report it",
        ) from error


def _tensors(model: Model) -> dict[str, Tensor]:
    module = model.graph_module
    return {
        **dict(module.named_parameters(remove_duplicate=False)),
        **dict(module.named_buffers(remove_duplicate=False)),  # those that a state_dict leaves out, too
    }


def _needed(graph: fx.Graph) -> set[str]:
    """Stored tensors whose values reach an output or a state; export drops those read for their sizes."""
    names: set[str] = set()
    seen: set[fx.Node] = set()
    left = [node for node in graph.nodes if not node.users]  # outputs and writes
    while left:
        node = left.pop()
        if node.op == "get_attr":
            names.add(str(node.target))
        if node not in seen and op_name(node) != "sym_size":
            left += node.all_input_nodes
        seen.add(node)
    return names


def _compare_tensors(ours: Mapping[str, Tensor], read: Mapping[str, Tensor], file: Path) -> None:
    for name, tensor in ours.items():
        if name not in read:
            raise _other(file, f"{name} is not in it")
        if _differs(tensor.detach(), read[name].detach()):
            raise _other(file, f"{name} differs")


def _differs(a: Tensor, b: Tensor) -> bool:
    """In shape, in type, or in any bit: the sign of a zero counts, a NaN is the same NaN."""
    return a.shape != b.shape or a.dtype != b.dtype or not torch.equal(raw_bytes(a), raw_bytes(b))


def _compare_json(what: str, ours: Any, read: Any, file: Path) -> None:
    ours, read = (json.loads(json.dumps(value)) for value in (ours, read))
    if ours != read:
        raise _other(file, f"{what}: {str(read)[:200]} instead of {str(ours)[:200]}")


def _run(model: Model, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        return model.outputs_of(*(tensor.clone() for tensor in inputs))


def _other(file: Path, what: str) -> VerificationError:
    return VerificationError(
        f"{file.name} is not kept: read back, it holds another model",
        got=what,
        expected="what was written, bit for bit",
        remedy="this is a defect of the export; please report it",
    )
