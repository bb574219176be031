from __future__ import annotations

import contextlib
import os
import signal
import threading

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from nncompress.errors import DataError, ModelFileError, NNCompressError, UnsafeFileError, UnsupportedError
from nncompress.exporting import write
from nncompress.files.interrupts import heard
from nncompress.ir import InputSpec, Model
from nncompress.runtimes import open_artifact


def save(path, nodes, initializers=(), *, shape=("batch", 4), opset=18, dtype=TensorProto.FLOAT):
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", dtype, list(shape))],
        [helper.make_tensor_value_info("y", dtype, list(shape))],
        list(initializers),
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    model.ir_version = 9
    path.write_bytes(model.SerializeToString())
    return path


def add(path, location=None):
    """y = x + w, with w kept in `location` where one is given."""
    weight = helper.make_tensor("w", TensorProto.FLOAT, [4], [1.0, 2.0, 3.0, 4.0])
    if location is not None:
        raw = np.float32(weight.float_data).tobytes()
        weight.ClearField("float_data")
        weight.data_location = TensorProto.EXTERNAL
        for key, value in (("location", location), ("offset", "0"), ("length", str(len(raw)))):
            weight.external_data.add(key=key, value=value)
    return save(path, [helper.make_node("Add", ["x", "w"], ["y"])], [weight])


def test_runs_and_says_what_it_is(tmp_path, capfd):
    path = add(tmp_path / "m.onnx")
    runner = open_artifact(path, threads=1)
    x = np.random.default_rng().standard_normal((3, 4)).astype(np.float32)
    (y,) = runner.run(x)
    np.testing.assert_array_equal(y, x + np.float32([1, 2, 3, 4]))
    np.testing.assert_array_equal(runner.run(torch.from_numpy(x))[0], y)
    assert runner.inputs == (InputSpec("x", "float32", ("batch", 4)),)
    assert runner.name.startswith("ONNX Runtime ")
    assert runner.threads == 1
    assert runner.file_size == path.stat().st_size
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "inputs",
    [(np.zeros((2, 5), np.float32),), (np.zeros((2, 4)),), (), (np.zeros(4, np.float32),)],
    ids=["shape", "dtype", "number", "rank"],
)
def test_inputs_that_do_not_fit(tmp_path, inputs):
    with pytest.raises(DataError):
        open_artifact(add(tmp_path / "m.onnx")).run(*inputs)


def test_equal_names_of_dims_are_equal_sizes(tmp_path):
    path = save(tmp_path / "m.onnx", [helper.make_node("Relu", ["x"], ["y"])], shape=("n", "n"))
    open_artifact(path).run(np.zeros((3, 3), np.float32))
    with pytest.raises(DataError):
        open_artifact(path).run(np.zeros((3, 4), np.float32))


@pytest.mark.parametrize("content", [b"", b"not a model", b"PK\x03\x04" + bytes(100), "half"])
def test_broken_and_foreign_files_give_one_error_and_no_noise(tmp_path, capfd, content):
    path = add(tmp_path / "m.onnx")
    path.write_bytes(path.read_bytes()[:60] if content == "half" else content)
    with pytest.raises(ModelFileError):
        open_artifact(path)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("location", [None, "w.bin"])
def test_a_file_damaged_anywhere_is_read_or_refused(tmp_path, capfd, seed, location):
    rng = np.random.default_rng(seed)
    np.float32([1, 2, 3, 4]).tofile(tmp_path / "w.bin")
    path = add(tmp_path / "m.onnx", location)
    content = bytearray(path.read_bytes())
    for place in rng.integers(0, len(content), 3):
        content[place] = rng.integers(0, 256)
    path.write_bytes(content)
    with contextlib.suppress(NNCompressError):
        open_artifact(path)
    assert capfd.readouterr() == ("", "")


def test_operators_the_runtime_lacks(tmp_path, capfd):
    path = save(tmp_path / "m.onnx", [helper.make_node("Nonesuch", ["x"], ["y"])])
    with pytest.raises(UnsupportedError, match="Nonesuch"):
        open_artifact(path)
    assert capfd.readouterr() == ("", "")


def test_inputs_that_are_not_numbers(tmp_path):
    path = save(tmp_path / "m.onnx", [helper.make_node("Identity", ["x"], ["y"])], dtype=TensorProto.STRING)
    with pytest.raises(UnsupportedError, match="string"):
        open_artifact(path)


def test_data_beside_the_model_is_read_and_counted(tmp_path):
    np.float32([1, 2, 3, 4]).tofile(tmp_path / "w.bin")
    path = add(tmp_path / "m.onnx", "w.bin")
    runner = open_artifact(path)
    np.testing.assert_array_equal(runner.run(np.zeros((1, 4), np.float32))[0], [[1, 2, 3, 4]])
    assert runner.file_size == path.stat().st_size + 16
    (tmp_path / "w.bin").unlink()
    with pytest.raises(ModelFileError, match=r"w\.bin"):
        open_artifact(path)


@pytest.mark.parametrize("route", ["../secret.bin", "absolute", "link.bin", "sub/../../secret.bin"])
def test_data_outside_the_folder_is_refused(tmp_path, route):
    folder = tmp_path / "folder"
    (folder / "sub").mkdir(parents=True)
    np.float32([1, 2, 3, 4]).tofile(tmp_path / "secret.bin")
    os.symlink(tmp_path / "secret.bin", folder / "link.bin")
    location = str(tmp_path / "secret.bin") if route == "absolute" else route
    with pytest.raises(UnsafeFileError, match="outside its own folder"):
        open_artifact(add(folder / "m.onnx", location))


def test_metadata_is_kept(tmp_path):
    path = add(tmp_path / "m.onnx")
    model = onnx.load(path)
    model.metadata_props.add(key="history", value="[]")
    onnx.save(model, path)
    assert open_artifact(path).metadata == {"history": "[]"}


@pytest.mark.parametrize("name", [b"free", b"history"], ids=["dim", "metadata"])
def test_names_that_are_no_text_are_refused(tmp_path, name):
    path = add(tmp_path / "m.onnx")
    model = onnx.load(path)
    model.metadata_props.add(key="history", value="[]")
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "free"
    path.write_bytes(model.SerializeToString().replace(name, b"\xff" + name[1:]))
    with pytest.raises(ModelFileError, match="no text"):
        open_artifact(path)


class RunningMean(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(4, 3)
        self.register_buffer("mean", torch.randn(3))

    def forward(self, x):
        y = self.layer(x)
        self.mean = 0.9 * self.mean + 0.1 * y.mean(0)
        return y - self.mean


def test_states_are_no_part_of_the_answer(tmp_path):
    """A file with its states as outputs is compared and measured like the model it was written from."""
    module = RunningMean().eval()
    torch.save(module.state_dict(), tmp_path / "w.pt")
    x = torch.randn(1, 4)
    model = Model.from_module(module, (x,))
    write(model, tmp_path / "m.onnx")
    runner = open_artifact(tmp_path / "m.onnx")
    assert runner.outputs == model.outputs
    for _ in range(2):  # every call is a first one
        (answer,) = runner.run(x)
        module.load_state_dict(torch.load(tmp_path / "w.pt"))
        torch.testing.assert_close(torch.from_numpy(answer), module(x).detach(), rtol=1e-4, atol=1e-5)


def test_a_loop_without_end_answers_a_signal(tmp_path):
    """Python handles it when the main thread is back from C++, which it would never be."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["go_on"]),
            helper.make_node("Identity", ["before"], ["after"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("before", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("after", TensorProto.FLOAT, None),
        ],
    )
    start = helper.make_tensor("start", TensorProto.BOOL, [], [True])
    loop = helper.make_node("Loop", ["", "start", "x"], ["y"], body=body)
    runner = open_artifact(save(tmp_path / "endless.onnx", [loop], [start]))
    runner.patience = 600  # seconds, after which this test has failed

    def interrupted() -> None:
        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
        runner.run(np.zeros((1, 4), np.float32))

    before = signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # which a shell's background job ignores
    try:
        with heard(), pytest.raises(KeyboardInterrupt):
            interrupted()
    finally:
        signal.signal(signal.SIGINT, before)
