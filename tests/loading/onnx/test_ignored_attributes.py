"""An attribute of an ONNX op is read, refused, or ignored where no value of it changes the result."""

import ast
import inspect

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

import nncompress.loading.onnx.rules  # noqa: F401 - registers them
from nncompress.loading.onnx.interpreter import IGNORED, RULES, Missing, OnnxModule

SCHEMAS = [
    (schema.name if schema.domain in ("", "ai.onnx") else f"{schema.domain}.{schema.name}", schema)
    for schema in onnx.defs.get_all_schemas_with_history()
]
OLD = {"consumed_inputs"}  # of the first opset, of many ops


def read_by(rule, seen=()):
    """Every word in the code of a rule, and of the functions that it calls."""
    (function,), words = ast.parse(inspect.getsource(rule)).body, set()
    function.decorator_list = []  # where it is said what is ignored
    for node in ast.walk(function):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            words.add(node.value)
        elif isinstance(node, ast.Name | ast.Attribute):
            name = node.id if isinstance(node, ast.Name) else node.attr
            words.add(name if name == "axes" else "")
            called = rule.__globals__.get(name)
            if inspect.isfunction(called) and called not in seen:
                words |= read_by(called, (*seen, rule))
            elif isinstance(called, tuple):
                words |= {each for each in called if isinstance(each, str)}
    return words


def test_every_attribute_of_the_newest_version_is_read_or_ignored_by_name():
    newest = dict(
        sorted(((name, s) for name, s in SCHEMAS if name in RULES), key=lambda p: p[1].since_version)
    )
    left = {op: s.attributes.keys() - read_by(RULES[op]) - IGNORED[op] for op, s in newest.items()}
    assert {op: names for op, names in left.items() if names} == {}
    assert len(newest) > 130


def test_what_is_ignored_is_an_attribute_of_one_of_the_ops_and_not_read():
    known = {}
    for name, schema in SCHEMAS:
        known.setdefault(RULES.get(name), set()).update(schema.attributes)
    for op, rule in RULES.items():
        ignored = IGNORED[op] - OLD
        assert ignored <= known.get(rule, set()), op
        assert not ignored & read_by(rule), op


def run(op, x, *stored, opset=21, outputs=1, **attributes):
    names = [f"w{i}" for i in range(len(stored))]
    node = helper.make_node(op, ["x", *names], [f"y{i}" for i in range(outputs)], **attributes)
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(x.shape))],
        [helper.make_tensor_value_info("y0", TensorProto.FLOAT, None)],
        [onnx.numpy_helper.from_array(np.asarray(array), name) for array, name in zip(stored, names)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    return OnnxModule(model).eval()(x)[0]


STATISTICS = [np.ones(3, np.float32)] * 4


@pytest.mark.parametrize(
    ("op", "stored", "attributes"),
    [
        ("Relu", [], {"axis": 1}),
        ("Relu", [], {"value": 2.0}),
        ("BatchNormalization", STATISTICS, {"spatial": 0, "opset": 7}),
        ("BatchNormalization", STATISTICS, {"is_test": 0, "opset": 6}),
        ("Dropout", [], {"is_test": 0, "opset": 6}),
        ("LayerNormalization", [np.ones(4, np.float32)], {"stash_type": TensorProto.BFLOAT16}),
        ("Attention", [np.ones((2, 3, 4, 4), np.float32)] * 2, {"softmax_precision": 10, "opset": 23}),
        ("Conv", [np.ones((2, 3, 3, 3), np.float32)], {"kernel_shape": [1, 1]}),
        ("ConvTranspose", [np.ones((3, 2, 3, 3), np.float32)], {"kernel_shape": [1, 1]}),
    ],
)
def test_a_form_that_is_not_computed_is_refused_by_name(op, stored, attributes):
    with pytest.raises(Missing, match=f"{op}"):
        run(op, torch.randn(2, 3, 4, 4), *stored, **attributes)


def test_the_axis_of_one_scale_for_all_means_nothing():
    x = torch.tensor([[1.0, -2.0], [0.5, 3.0]])
    grid = np.float32(0.5), np.int8(0)
    q = torch.ops.quantized_decomposed.quantize_per_tensor(x, 0.5, 0, -128, 127, torch.int8)
    torch.testing.assert_close(run("QuantizeLinear", x, *grid, axis=0), q)
    torch.testing.assert_close(run("DequantizeLinear", q, *grid, axis=0), x)
