"""What a file may make this process take is bounded by its size, whatever its graph asks for."""

from __future__ import annotations

import sys

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from nncompress.cli.app import run
from nncompress.errors import ExitCode, ModelFileError
from nncompress.loading import load_model
from nncompress.memory import bounded_memory, unbounded_memory
from nncompress.runtimes import open_artifact

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only its kernel bounds it")
FAR = 10**13  # bytes: no machine has them


def write(path, *nodes, **constants):
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    stored = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(list(nodes), "g", [x], [y], stored)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def sizes(*values):
    return np.array(values, np.int64)


SMALL = {
    "ConstantOfShape": ([helper.make_node("ConstantOfShape", ["s"], ["y"])], {"s": sizes(FAR)}),
    "Expand": ([helper.make_node("Expand", ["x", "s"], ["y"])], {"s": sizes(FAR, 1, 4)}),
    "Pad": ([helper.make_node("Pad", ["x", "s"], ["y"])], {"s": sizes(0, 0, 10**6, 10**7)}),
    "Range": (
        [helper.make_node("Range", ["a", "b", "c"], ["y"])],
        {"a": np.float32(0), "b": np.float32(FAR), "c": np.float32(1)},
    ),
    "Resize": (
        [helper.make_node("Resize", ["x", "", "", "s"], ["y"], mode="nearest")],
        {"s": sizes(10**6, 10**7)},
    ),
}


@pytest.mark.parametrize("name", SMALL)
def test_an_onnx_file_that_asks_for_terabytes_is_one_message(name, tmp_path):
    nodes, constants = SMALL[name]
    path = write(tmp_path / "m.onnx", *nodes, **constants)
    with pytest.raises(ModelFileError, match="more memory than its size explains"):
        load_model(path)
    with pytest.raises(ModelFileError, match="more memory than its size explains"):
        open_artifact(path).run(np.zeros((1, 4), np.float32))


@pytest.mark.parametrize("take", [lambda: torch.empty(FAR), lambda: np.empty(FAR), lambda: bytes(FAR)])
def test_every_library_is_refused_and_the_limit_is_taken_back(take):
    import resource

    before = resource.getrlimit(resource.RLIMIT_DATA)
    with pytest.raises(ModelFileError, match="a file asks for more memory"), bounded_memory("a file", 10):
        take()
    assert resource.getrlimit(resource.RLIMIT_DATA) == before


def test_another_mistake_inside_is_told_as_it_is():
    with pytest.raises(KeyError), bounded_memory("a file", 10):
        {}["missing"]


def test_the_bound_grows_with_the_file(monkeypatch):
    monkeypatch.setattr("nncompress.memory.most_bytes", lambda: 0)
    monkeypatch.setattr("nncompress.memory.LEAST_BEYOND", 2**26)
    with pytest.raises(ModelFileError), bounded_memory("a file", 10):
        torch.empty(2**27, dtype=torch.uint8)
    with bounded_memory("a file", 2**25):
        torch.empty(2**27, dtype=torch.uint8)


def test_what_is_read_beside_the_file_is_not_held_to_its_bound():
    import resource

    free = resource.getrlimit(resource.RLIMIT_DATA)
    with bounded_memory("m.pt", 10), bounded_memory("n.pt", 10):
        bound = resource.getrlimit(resource.RLIMIT_DATA)
        assert bound != free
        with unbounded_memory():
            assert resource.getrlimit(resource.RLIMIT_DATA) == free
        assert resource.getrlimit(resource.RLIMIT_DATA) == bound
    with unbounded_memory():
        assert resource.getrlimit(resource.RLIMIT_DATA) == free


@pytest.mark.parametrize(
    "error",
    [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8")],
)
def test_memory_that_runs_out_is_no_defect_whichever_library_says_so(monkeypatch, capsys, error):
    def out_of_memory(*arguments, **values):
        raise error

    monkeypatch.setattr("nncompress.api.load", out_of_memory)
    assert run(["prune", "model.pt", "--std", "1"]) == ExitCode.INTERNAL
    said = capsys.readouterr().err
    assert "out of memory" in said
    assert "defect" not in said
