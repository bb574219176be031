"""The floats of an int8 `.onnx` in float16, for runtimes that compute in the types that the file has.

    x float32 -> Cast -> QuantizeLinear (scale float16) -> int8 -> DequantizeLinear (scale float16) -> Conv

Inputs and outputs stay float32. Scales below 2^−14 are coarse in float16, so codes of weights are rounded
anew in units of the scale that the file has. Biases become floats: TensorRT dequantizes 8 bits alone.

Source: NVIDIA's TensorRT developer guide, "Explicit quantization", which is used with strong typing.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
import onnx_ir as ir
from onnx import GraphProto, ModelProto, TensorProto, numpy_helper

from nncompress.errors import UnsupportedError, VerificationError
from nncompress.exporting.check.compare import Comparison, compare
from nncompress.exporting.check.onnxruntime import open_session, run
from nncompress.ir import Model
from nncompress.targets import Target
from nncompress.targets.written_for import described, record

NORMAL = float(np.finfo(np.float16).smallest_normal)


def narrow(model: Model, file: Path, target: Target) -> tuple[Comparison | None, str]:
    """Replace `file`, an int8 model that is right, by one with floats in float16, if that is right, too.

    It is compared as it is written. Rounding to 8 bits meets boundaries in float16 that it does not in
    float32, as it does in integer kernels, so the tolerance is theirs.

    Returns:
        what comparing it found, None where the file stays as it is; and the line for the report.
    """
    import onnxruntime

    wide = onnx.load(file)
    names = ", ".join(
        sorted({node.op_type for node in wide.graph.node if any(a.g.node for a in node.attribute)})
    )
    if names:
        return None, f"floats stay float32: it has graphs inside ({names})"
    half = in_float16(wide)
    count = sum(tensor.data_type == TensorProto.FLOAT16 for tensor in half.graph.initializer)
    for key, value in record(target, {"float16": count}).items():
        next(each for each in half.metadata_props if each.key == key).value = value
    with TemporaryDirectory() as folder:
        written = Path(folder) / "half.onnx"
        onnx.save(half, written)
        try:
            session = open_session(written, optimised=False)
            found = compare(
                model, lambda inputs: run(session, inputs), f"onnxruntime {onnxruntime.__version__}"
            )
        except (UnsupportedError, VerificationError) as error:
            return None, f"floats stay float32: in float16, {error.what} ({error.got})"
        file.write_bytes(written.read_bytes())
    return found, f"{described({'float16': count})}; inputs and outputs in float32"


def in_float16(model: ModelProto) -> ModelProto:
    """A copy of a quantized model: everything between its inputs and outputs that is float32 in float16."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    model = _with_float_biases(model)
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    _round_scales(model.graph, stored)
    half: ModelProto = convert_float_to_float16(model, keep_io_types=True)
    ordered = ir.serde.deserialize_model(half)  # its casts come last
    ordered.graph.sort()
    return ir.serde.serialize_model(ordered)


def _with_float_biases(model: ModelProto) -> ModelProto:
    """A copy whose stored 32-bit integers behind DequantizeLinear are the floats that they stand for."""
    copied = ModelProto()
    copied.CopyFrom(model)
    graph = copied.graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    for node in list(graph.node):
        codes = stored.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
        if codes is None or codes.data_type != TensorProto.INT32:
            continue
        scale = numpy_helper.to_array(stored[node.input[1]]).astype(np.float64)
        floats = (numpy_helper.to_array(codes) * scale).astype(np.float32)
        graph.initializer.append(numpy_helper.from_array(floats, node.output[0]))
        graph.node.remove(node)
    read = {name for node in graph.node for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in read]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    return copied


def _round_scales(graph: GraphProto, stored: dict[str, TensorProto]) -> None:
    """Scales as float16 has them, where that is coarse never less; codes of weights in units of them."""
    exact: dict[str, np.ndarray] = {}
    rounded: set[str] = set()
    for node in graph.node:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear") or node.input[1] not in stored:
            continue
        name, codes = node.input[1], stored.get(node.input[0])
        if name not in exact:
            exact[name] = numpy_helper.to_array(stored[name])
            stored[name].CopyFrom(numpy_helper.from_array(_as_half(exact[name]), name))
        ratio = exact[name] / _as_half(exact[name])
        if codes is None or codes.name in rounded or codes.data_type != TensorProto.INT8 or ratio.ndim > 1:
            continue
        rounded.add(codes.name)
        weight = numpy_helper.to_array(codes)
        if ratio.ndim:
            axis = next((a.i for a in node.attribute if a.name == "axis"), 1) % weight.ndim
            ratio = ratio.reshape([-1 if d == axis else 1 for d in range(weight.ndim)])
        again = np.rint(weight * ratio).clip(-127, 127).astype(np.int8)
        codes.CopyFrom(numpy_helper.from_array(again, codes.name))


def _as_half(scale: np.ndarray) -> np.ndarray:
    """float32 like `scale`, of values that float16 has."""
    with np.errstate(over="ignore"):  # an infinite scale is found by running the file
        half = scale.astype(np.float16)
    less = (half < scale) & (scale < NORMAL)
    return np.where(less, np.nextafter(half, np.float16(1)), half).astype(np.float32)
