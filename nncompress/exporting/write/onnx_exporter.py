"""torch's ONNX exporter, called and read: what it converts, how its refusals are told."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stderr, redirect_stdout
from io import StringIO
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from nncompress.errors import UnsupportedError
from nncompress.exporting.lower.exporter import defects
from nncompress.exporting.lower.exporter.small_numbers import keep_small_numbers
from nncompress.exporting.lower.onnxruntime import attention as attention_onnx
from nncompress.exporting.lower.onnxruntime import dynamic as lower_dynamic
from nncompress.exporting.lower.onnxruntime import recurrent
from nncompress.exporting.lower.spell_out import Unspeakable
from nncompress.exporting.write import exporter_cost
from nncompress.ir import Model
from nncompress.ir.graph.ops import op_name
from nncompress.ir.graph.places import first_place, place
from nncompress.ir.graph.tracing import without_stack_traces
from nncompress.ir.layers.weights import argument
from nncompress.ir.recurrent_shapes import recurrent_shapes

if TYPE_CHECKING:
    import onnx_ir
    from torch.export import ExportedProgram
    from torch.onnx import ONNXProgram


# op -> the position of its groups
CONVOLUTIONS = {f"conv{kind}{dims}d": 6 for kind in ("", "_transpose") for dims in (1, 2, 3)}


def input_names(model: Model) -> list[str]:
    """Names of the inputs in the file: those that it had in the `.onnx` that it was read from."""
    stated = model.metadata.get("input_names", {})
    return [stated.get(spec.name, spec.name) for spec in model.inputs]


def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """Of ops that the exporter does not know, or says otherwise."""
    return (
        lower_dynamic.translations()
        | attention_onnx.translations()
        | recurrent.translations()
        | defects.translations()
    )


def convert(model: Model, program: ExportedProgram, *, lookups: bool) -> ONNXProgram:
    """The program as ONNX, optimized, with the names of the model's inputs and outputs.

    Args:
        lookups: codebook lookups stay.

    Raises:
        UnsupportedError: ONNX has no word for one of its ops.
    """
    _refuse_counted_groups(model)
    defects.dodge_defects(program)
    table = translations()
    shapes: AbstractContextManager[None] = recurrent_shapes()
    if recurrent.in_steps(program.graph):
        table = {op: said for op, said in table.items() if op not in recurrent.translations()}
        shapes = nullcontext()
    try:
        with quiet(), exporter_cost.kept(), without_stack_traces(), shapes, torch.no_grad():
            converted = torch.onnx.export(
                program,
                dynamo=True,
                verbose=False,
                optimize=False,
                custom_translation_table=table,
            )
            assert converted is not None
            keep_small_numbers(converted.model)
            if lookups:
                _optimize_but_lookups(converted)
            else:
                converted.optimize()
    except Exception as error:  # the exporter wraps whatever a translation raises
        raise unsupported(error, model) from error
    _cast_outputs(converted.model.graph, model)
    graph = converted.model.graph  # named last: the optimizer renames an input that is an output, too
    for values, names in ((graph.inputs, input_names(model)), (graph.outputs, model.outputs)):
        for value, name in zip(values, names):
            value.name = name
    return converted


def _cast_outputs(graph: onnx_ir.Graph, model: Model) -> None:
    """To the types that the model's have: the exporter leaves sums of halves in float32, and bytes signed."""
    import onnx_ir
    from onnx_ir.tensor_adapters import from_torch_dtype

    results: Any = model.graph.output_node().args[0]
    for at, (value, node) in enumerate(zip(graph.outputs, results)):
        wanted = from_torch_dtype(node.meta["val"].dtype)
        if value.dtype in (None, wanted):
            continue
        cast = onnx_ir.node("Cast", [value], {"to": wanted})
        graph.append(cast)
        cast.outputs[0].dtype, cast.outputs[0].shape = wanted, value.shape
        graph.outputs[at] = cast.outputs[0]


def _refuse_counted_groups(model: Model) -> None:
    """
    Raises:
        UnsupportedError: a convolution has a group per sample, and the number of these is free.
    """
    for node in model.graph.nodes:
        if op_name(node) in CONVOLUTIONS and isinstance(argument(node, CONVOLUTIONS[op_name(node)]), fx.Node):
            raise UnsupportedError(
                "ONNX fixes the number of a convolution's groups, and here it follows from the batch: "
                + place(node),
                remedy="keep the model as .pt2, or let forward() multiply patches "
                "(torch.nn.functional.unfold) with the weights of their sample",
            )


def _optimize_but_lookups(program: ONNXProgram) -> None:
    """What the exporter does by default, but without computing codebook lookups: the file is to be small.

    A lookup starts with the casts of its stored bytes and halves; while these stay, all of it does.
    """
    import onnx_ir
    import onnxscript.optimizer
    import onnxscript.rewriter.onnx_fusions

    def should_fold(node: onnx_ir.Node) -> bool | None:
        source = node.inputs[0] if node.inputs else None
        short = (onnx_ir.DataType.UINT8, onnx_ir.DataType.FLOAT16)
        stored = node.op_type == "Cast" and source is not None and source.dtype in short
        return False if stored else None

    onnxscript.optimizer.optimize_ir(program.model, should_fold=should_fold)
    onnxscript.rewriter.onnx_fusions.fuse(program.model)


def unsupported(error: Exception, model: Model) -> Unspeakable:
    chain: list[str] = []
    cause: BaseException | None = error
    while cause is not None:
        chain.append(str(cause))
        cause = cause.__cause__
    text = "\n".join(reversed(chain))
    told = (
        r"OpOverload\(op='([\w.:]+)'(?:, overload='(\w+)')?",
        r"for ([a-z_]+[.:]+[a-z_0-9.]+)",
        r"translating node .*?target=torch\.ops\.([\w.]+)\]",
    )
    op = next(filter(None, (re.search(pattern, text) for pattern in told)), None)
    named = op.group(1) if op else None
    reason = next((line.strip() for line in chain[-1].splitlines() if line.strip()), type(error).__name__)
    return Unspeakable(
        f"ONNX cannot express this op: {first_place(model.graph, named)}"
        if named
        else "the ONNX exporter cannot translate this model",
        op=named or "",
        got=reason[:300],
        remedy="keep the model as .pt2, or replace the op in the model",
    )


@contextmanager
def quiet() -> Iterator[None]:
    """Nothing that the exporter says reaches the user's screen: no print, log record or warning."""
    previous = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)
