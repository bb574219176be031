"""Fourier transforms as products with their matrices: OpenVINO 2026.4 reads `DFT` of an `.onnx` wrongly.

Its results have another shape or other values than torch's. Sizes are static, so that a transform is a
product with a constant, real and imaginary parts side by side. One of each frame of a signal (`STFT`), which
it does not read at all, is a convolution with such a matrix.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nncompress.errors import UnsupportedError

AXIS_IS_INPUT = 20  # the first opset in which DFT has its axis as an input; an attribute before


def spell_transforms(path: Path) -> None:
    """Edit the `.onnx` in place.

    Raises:
        UnsupportedError: a transform is over a dim whose size is free.
    """
    import onnx

    model = onnx.load(path, load_external_data=False)
    if not any(node.op_type in _SPELLED for node in model.graph.node):
        return
    known = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    shapes = {
        value.name: value.type.tensor_type for value in (*known.value_info, *known.input, *known.output)
    }
    numbers = {each.name: each for each in model.graph.initializer}
    nodes = [
        step
        for node in model.graph.node
        for step in _SPELLED.get(node.op_type, _as_it_is)(onnx, model, node, shapes, numbers)
    ]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.save(model, path)


def _as_it_is(onnx: Any, model: Any, node: Any, *known: Any) -> list[Any]:
    return [node]


def _of_frames(
    onnx: Any, model: Any, node: Any, shapes: dict[str, Any], numbers: dict[str, Any]
) -> list[Any]:
    """What a short-time transform of a real signal [batch, length, 1], as the exporter has it, consists of: a
    convolution whose channels are the parts of the results."""
    helper, result = onnx.helper, node.output[0]
    signal, step, window, length = [*node.input, "", ""][:4]
    given: Any = shapes.get(signal)
    real = given is not None and given.shape.dim[-1].dim_value == 1
    if not {step, length or window} <= numbers.keys() or not real:
        raise UnsupportedError(
            f"OpenVINO does not read this short-time Fourier transform: {node.name or result}",
            got="its step or the length of its frames is free" if real else "it is of complex numbers",
            remedy="write an .onnx, which ONNX Runtime runs",
        )
    stride = int(onnx.numpy_helper.to_array(numbers[step]))
    points = int(onnx.numpy_helper.to_array(numbers[length])) if length else numbers[window].dims[0]
    halved = all(attribute.i for attribute in node.attribute if attribute.name == "onesided")
    matrix, parts = transform(points, 1, points, False, halved)

    def constant(name: str, value: NDArray[Any]) -> str:
        model.graph.initializer.append(onnx.numpy_helper.from_array(value, f"{result}_{name}"))
        return f"{result}_{name}"

    kind = helper.tensor_dtype_to_np_dtype(given.elem_type)
    weights = constant("matrix", np.ascontiguousarray(matrix.T[:, None]).astype(kind))
    apart = constant("apart", np.array([0, 0, matrix.shape[1] // parts, parts], np.int64))
    made = [f"{result}_{each}" for each in ("channel", "windowed", "products", "frames")]
    windowed = [helper.make_node("Mul", [weights, window], [made[1]])] if window else []
    read = [made[0], made[1] if window else weights]
    return [
        helper.make_node("Transpose", [signal], [made[0]], perm=[0, 2, 1]),
        *windowed,
        helper.make_node("Conv", read, [made[2]], name=node.name, strides=[stride]),
        helper.make_node("Transpose", [made[2]], [made[3]], perm=[0, 2, 1]),
        helper.make_node("Reshape", [made[3], apart], [result]),
    ]


def _of_all(onnx: Any, model: Any, node: Any, shapes: dict[str, Any], numbers: dict[str, Any]) -> list[Any]:
    """What one transform consists of: its axis moved beside the parts, a product, and back."""
    helper, result = onnx.helper, node.output[0]
    given: Any = shapes.get(node.input[0])
    sizes = [dim.dim_value for dim in given.shape.dim] if given is not None else []
    rank = len(sizes)
    how = {attribute.name: attribute.i for attribute in node.attribute}
    old = any(each.domain == "" and each.version < AXIS_IS_INPUT for each in model.opset_import)
    length, axis = (
        int(onnx.numpy_helper.to_array(numbers[name])) if name in numbers else default
        for name, default in zip([*node.input[1:], "", ""], (0, how.get("axis", 1) if old else -2))
    )
    if not rank or not sizes[axis % rank] or any(name and name not in numbers for name in node.input[1:]):
        raise UnsupportedError(
            "OpenVINO computes a Fourier transform wrongly, and over a free size no constant stands for it:"
            f" {node.name or result}",
            remedy="give a graph that was exported with a number for that size, or write an .onnx",
        )
    points = sizes[axis % rank]
    matrix, parts = transform(points, sizes[-1], length, bool(how.get("inverse")), bool(how.get("onesided")))
    order = [d for d in range(rank - 1) if d != axis % rank] + [axis % rank, rank - 1]
    back = [order.index(d) for d in range(rank)]

    def constant(name: str, value: NDArray[Any]) -> str:
        model.graph.initializer.append(onnx.numpy_helper.from_array(value, f"{result}_{name}"))
        return f"{result}_{name}"

    kind = helper.tensor_dtype_to_np_dtype(given.elem_type)
    kept = [0] * (rank - 2)
    side_by_side = constant("side_by_side", np.array([*kept, points * sizes[-1]], np.int64))
    apart = constant("apart", np.array([*kept, matrix.shape[1] // parts, parts], np.int64))
    weights = constant("matrix", matrix.astype(kind))
    made = [f"{result}_{step}" for step in ("moved", "merged", "product", "parts")]
    return [
        helper.make_node("Transpose", [node.input[0]], [made[0]], perm=order),
        helper.make_node("Reshape", [made[0], side_by_side], [made[1]]),
        helper.make_node("MatMul", [made[1], weights], [made[2]], name=node.name),
        helper.make_node("Reshape", [made[2], apart], [made[3]]),
        helper.make_node("Transpose", [made[3]], [result], perm=back),
    ]


def transform(
    points: int, parts: int, length: int, inverse: bool, onesided: bool
) -> tuple[NDArray[np.float64], int]:
    """The matrix of a transform `[points * parts, results * parts of each]`, and the parts of its results.

    Args:
        parts: 1 for real input, 2 for complex.
        length: of the signal; 0: as many as there are points.
        onesided: the half that says all: of the results, or of the points of an inverse.
    """
    halved = inverse and onesided
    length = length or (2 * (points - 1) if halved else points)
    results = length // 2 + 1 if onesided and not inverse else length
    turns = np.outer(np.arange(points), np.arange(results)) / length * (1 if inverse else -1)
    angle = 2 * np.pi * (turns % 1)
    weight = np.full((points, 1), 1 / length if inverse else 1.0)
    if halved:  # the other half is its mirror image
        weight[1 : (length + 1) // 2] *= 2
        weight[length // 2 + 1 :] = 0
    else:
        weight[length:] = 0  # points beyond the signal
    cos, sin = weight * np.cos(angle), weight * np.sin(angle)
    of_real, of_imaginary = [cos] if halved else [cos, sin], [-sin] if halved else [-sin, cos]
    rows = [np.stack(of_real, -1), np.stack(of_imaginary, -1)][:parts]
    matrix = np.stack(rows, 1)  # [points, parts, results, parts of each]
    return matrix.reshape(points * parts, -1), matrix.shape[-1]


_SPELLED = {"DFT": _of_all, "STFT": _of_frames}
