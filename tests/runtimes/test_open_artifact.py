from __future__ import annotations

from typing import get_type_hints

import numpy as np
import pytest
import torch

from nncompress import exporting
from nncompress.benchmarking import benchmark
from nncompress.benchmarking.sessions import Candidate
from nncompress.errors import DataError, ModelFileError, Told, UsageError
from nncompress.ir import Model
from nncompress.loading import load_model
from nncompress.runtimes import ON_CPU, RUNTIMES, open_artifact
from tests.support.kills import half_moved


@pytest.fixture(scope="module")
def model() -> Model:
    return Model.from_module(torch.nn.Linear(4, 3).eval(), (torch.zeros(2, 4),))


def test_torch_runs_a_loaded_model(model):
    x = torch.randn(5, 4)
    runner = open_artifact(model, threads=1)
    (y,) = runner.run(x)
    expected = x.double() @ model.tensor("weight").double().T + model.tensor("bias").double()
    np.testing.assert_allclose(y, expected.detach(), rtol=1e-5, atol=1e-6)
    assert runner.name.startswith("torch ")
    assert runner.file_size is None
    with pytest.raises(DataError, match="does not fit"):
        runner.run(torch.randn(5, 5))


def test_a_token_beyond_the_vocabulary_is_one_error():
    model = Model.from_module(torch.nn.Embedding(5, 2).eval(), (torch.zeros(2, 3, dtype=torch.int64),))
    with pytest.raises(DataError, match="torch could not run"):
        open_artifact(model).run(torch.full((2, 3), 9))


def test_what_no_runtime_owns(model, tmp_path):
    with pytest.raises(ModelFileError, match="no runtime runs"):
        open_artifact(tmp_path / "model.pt2")
    with pytest.raises(ModelFileError, match="no file"):
        open_artifact(tmp_path / "model.onnx")
    with pytest.raises(UsageError, match="threads"):
        open_artifact(model, threads=0)


def test_bench_takes_and_names_the_runtimes_that_run_on_the_processor():
    from nncompress.cli.commands.bench import bench
    from nncompress.cli.work.bench_candidates import target

    help_text = get_type_hints(bench, include_extras=True)["runtime"].__metadata__[0].help
    assert {*ON_CPU} == {"onnxruntime", "openvino", "torch"}
    assert all(name in help_text for name in ON_CPU)
    assert target("cpu", "torch", None, None).runtimes == ("torch",)
    with pytest.raises(UsageError, match="not known"):
        target("cpu", "executorch", None, None)  # which is --device mobile


def test_registry_names_exist():
    from importlib import import_module

    for runtime in RUNTIMES.values():
        module, _, function = runtime.opener.partition(":")
        assert callable(getattr(import_module(module), function))


@pytest.mark.parametrize("read", [open_artifact, load_model])
def test_a_pair_that_a_killed_writer_left_half_replaced_is_never_read_as_it_is(model, tmp_path, read):
    import onnx

    for folder, factor in (("here", 1.0), ("new", 2.0)):
        (tmp_path / folder).mkdir()
        weight = torch.nn.Linear(4, 3)
        weight.weight.data = model.tensor("weight").data * factor
        exporting.write(
            Model.from_module(weight.eval(), (torch.zeros(2, 4),)), tmp_path / folder / "one.onnx"
        )
        written = onnx.load(tmp_path / folder / "one.onnx")
        onnx.save(
            written,
            tmp_path / folder / "m.onnx",
            save_as_external_data=True,
            location="m.data",
            size_threshold=0,
        )
    x = torch.randn(5, 4)
    (expected,) = open_artifact(tmp_path / "new" / "m.onnx").run(x)
    half_moved(tmp_path / "here", tmp_path / "new" / "m.onnx", tmp_path / "new" / "m.data")
    with pytest.warns(Told, match=r"^m\.onnx: put in place now"):
        opened = read(tmp_path / "here" / "m.onnx")
    found = opened(x).detach() if isinstance(opened, Model) else opened.run(x)[0]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_the_process_has_as_many_threads_as_before(model):
    """What is trained or fitted after a measurement has all of them."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        open_artifact(model, threads=1).run(torch.randn(5, 4))
        assert torch.get_num_threads() == 3
        benchmark([Candidate("original", model)], rounds=2, sessions=1)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
