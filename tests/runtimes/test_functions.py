"""What a few kB of an `.onnx` ask for by functions that call functions, and by the names of files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import nncompress
from nncompress.errors import ModelFileError, UnsupportedError
from nncompress.runtimes import open_artifact
from nncompress.runtimes.onnx_files.functions import ops_written_out

OPSETS = [helper.make_opsetid("", 18), helper.make_opsetid("own", 1)]


def _calls(path: Path, depth: int) -> Path:
    """Each function calls the next one twice; the last one negates."""
    functions = []
    for i in range(depth):
        inner = {"op_type": f"F{i + 1}", "domain": "own"} if i + 1 < depth else {"op_type": "Neg"}
        nodes = [helper.make_node(inputs=[a], outputs=[b], **inner) for a, b in (("a", "m"), ("m", "b"))]
        functions.append(helper.make_function("own", f"F{i}", ["a"], ["b"], nodes, OPSETS))
    graph = helper.make_graph(
        [helper.make_node("F0", ["x"], ["y"], domain="own")],
        "calls",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4])],
    )
    onnx.save(helper.make_model(graph, opset_imports=OPSETS, functions=functions, ir_version=9), path)
    return path


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_functions_that_are_too_long_written_out_are_refused_by_every_reader(tmp_path, runtime) -> None:
    path = _calls(tmp_path / "m.onnx", 40)
    with pytest.raises(UnsupportedError, match=r"functions that are too long(.|\n)*2,199,023,255,551 ops"):
        nncompress.load(path)
    if runtime == "openvino":
        pytest.importorskip("openvino")
    with pytest.raises(UnsupportedError, match="functions that are too long"):
        open_artifact(path, runtime=runtime)


def test_functions_of_a_usual_length_are_read(tmp_path) -> None:
    path, x = _calls(tmp_path / "m.onnx", 5), np.ones((1, 4), np.float32)
    assert ops_written_out(onnx.load(path)) == 2**6 - 1
    np.testing.assert_array_equal(open_artifact(path).run(x)[0], x)  # negated 32 times
    nncompress.load(path)


def test_weights_in_a_file_that_no_file_system_can_hold_are_refused(tmp_path) -> None:
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    weight.external_data.add(key="location", value="x" * 5000)
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "w"], ["y"])],
        "long",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4])],
        [weight],
    )
    model = helper.make_model(graph, opset_imports=OPSETS[:1], ir_version=9)
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ModelFileError, match="whose name no file can have"):
        nncompress.load(tmp_path / "m.onnx")
