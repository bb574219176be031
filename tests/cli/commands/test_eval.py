"""`eval`: what is measured is what was meant."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

import nncompress
from nncompress.benchmarking.inputs import random_inputs
from nncompress.cli.app import run
from nncompress.errors import ExitCode
from nncompress.runtimes import open_artifact


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


class BoxThenScores(nn.Module):
    def __init__(self, second=10):
        super().__init__()
        self.box, self.scores = nn.Linear(8, 4), nn.Linear(8, second)

    def forward(self, x):
        return self.box(x), self.scores(x)


def exported(path, module):
    batch = {0: torch.export.Dim("batch", min=1, max=64)}
    torch.export.save(torch.export.export(module.eval(), (torch.randn(2, 8),), dynamic_shapes=(batch,)), path)


def records(path, classes, count=50):
    x = np.random.default_rng(0).standard_normal((count, 8)).astype(np.float32)
    np.savez(path, x=x, y=np.arange(count) % classes)
    return torch.from_numpy(x), np.arange(count) % classes


def test_the_output_that_labels_fit_in_every_format(here, capsys):
    torch.manual_seed(0)
    module = BoxThenScores()
    exported("m.pt2", module)
    x, y = records("d.npz", 10)
    truth = 100 * (module(x)[1].argmax(1).numpy() == y).mean()
    assert run(["export", "m.pt2", "-o", "m.onnx"]) == 0
    capsys.readouterr()
    assert run(["eval", "m.pt2", "m.onnx", "--data", "d.npz"]) == 0
    out, err = capsys.readouterr()
    assert out.count(f"{truth:.2f} ±") == 2
    assert err.count("held against output 1 of 2") == 2


def test_few_samples_do_not_claim_certainty(here, capsys):
    exported("m.pt2", nn.Linear(8, 3))
    x, _ = records("d.npz", 3, count=2)
    answers = torch.export.load("m.pt2").module()(x).argmax(1)
    np.savez("d.npz", x=x, y=(answers.numpy() + 1) % 3)
    assert run(["eval", "m.pt2", "--data", "d.npz"]) == 0
    assert "0.00 [0.00, 65.76]" in capsys.readouterr().out


@pytest.mark.parametrize("module", [nn.Linear(8, 1), nn.Sequential(nn.Linear(8, 1), nn.Flatten(0))])
def test_amounts_of_one_output_are_numbers(here, capsys, module):
    exported("m.pt2", module)
    records("d.npz", 3)
    assert run(["eval", "m.pt2", "--data", "d.npz"]) == 0
    assert "RMSE" in capsys.readouterr().out
    assert run(["train", "m.pt2", "--epochs", "1", "--data", "d.npz"]) == 0
    assert "labels are whole numbers, and the output is one number" in " ".join(
        capsys.readouterr().err.split()
    )
    assert run(["eval", "m.pt2", "--data", "d.npz", "--metric", "top1"]) == ExitCode.DATA
    assert "sample 2 has a label that one number per sample cannot tell" in capsys.readouterr().err


@pytest.mark.parametrize(("last", "threshold"), [(nn.Identity(), 0), (nn.Sigmoid(), 0.5)])
def test_one_number_tells_two_classes_apart_and_it_is_said_how(here, capsys, last, threshold):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(8, 1), last)
    exported("m.pt2", module)
    nncompress.export(nncompress.load("m.pt2"), "m.onnx")
    x, y = records("d.npz", 2)
    truth = 100 * ((module(x)[:, 0] > threshold).numpy() == y).mean()
    assert run(["eval", "m.pt2", "m.onnx", "--data", "d.npz"]) == 0
    out, err = capsys.readouterr()
    assert out.count(f"{truth:.2f} ±") == 2
    assert f"class 1 above {threshold}" in " ".join(err.split())
    np.savez("d.npz", x=x, y=y[:, None].astype(np.float32))  # as losses of torch want them
    assert run(["eval", "m.pt2", "--data", "d.npz"]) == 0
    out, err = capsys.readouterr()
    assert "RMSE" in out
    assert "--metric top1" in err
    assert run(["eval", "m.pt2", "--data", "d.npz", "--metric", "top1"]) == 0
    assert f"{truth:.2f} ±" in capsys.readouterr().out
    with pytest.warns(UserWarning, match="as amounts"):
        assert nncompress.evaluate("m.onnx", "d.npz", metric="top1").threshold == threshold


def test_what_one_number_is_taken_for_is_settled_by_the_original(here, capsys):
    """A change that moves an amount out of 0 … 1 makes no logit of it."""
    x, y = records("d.npz", 2)
    amounts = nn.Linear(8, 1)
    with torch.no_grad():
        amounts.weight *= 0.02
        amounts.bias.fill_(0.5)
    exported("m.pt2", amounts)
    first = 100 * ((amounts(x)[:, 0] > 0.5).numpy() == y).mean()
    with torch.no_grad():
        amounts.weight *= 100  # the same answers
        amounts.bias.fill_(0.5)
    exported("n.pt2", amounts)
    assert run(["eval", "m.pt2", "n.pt2", "--data", "d.npz"]) == 0
    assert capsys.readouterr().out.count(f"{first:.2f} ±") == 2


def test_the_output_is_asked_for_and_remembered(here, capsys):
    exported("m.pt2", BoxThenScores(second=4))
    records("d.npz", 4)
    assert run(["eval", "m.pt2", "--data", "d.npz"]) == ExitCode.DATA
    assert "--output-index" in capsys.readouterr().err
    assert run(["eval", "m.pt2", "--data", "d.npz", "--output-index", "0"]) == 0
    assert run(["eval", "m.pt2", "--data", "d.npz", "--output-index", "7"]) == ExitCode.USAGE
    assert run(["prune", "m.pt2", "--threshold", "1e-4", "-o", "p.pt2", "--output-index", "output_1"]) == 0
    capsys.readouterr()
    assert run(["eval", "p.pt2", "--data", "d.npz"]) == 0
    assert "held against output 1 of 2" in capsys.readouterr().err


def from_elsewhere(path, dims):
    weight = numpy_helper.from_array(np.random.default_rng(0).standard_normal((5, 3, 3, 3), np.float32), "w")
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("GlobalAveragePool", ["c"], ["p"]),
        helper.make_node("Flatten", ["p"], ["y"]),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, dims)
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "g", [x], [y], [weight])
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=9), path)


@pytest.mark.parametrize("dims", [["?", 3, "?", "?"], ["N", 3, "h", "w"], [None, 3, None, None]])
def test_free_sizes_of_an_onnx_are_said_stated_or_of_the_data(here, capsys, dims):
    from_elsewhere("m.onnx", dims)
    x = np.random.default_rng(1).standard_normal((20, 3, 24, 40)).astype(np.float32)
    np.savez("d.npz", x=x, y=np.arange(20) % 5)
    assert run(["eval", "m.onnx", "m.onnx"]) == 0
    said = capsys.readouterr().err
    assert "= 224" in said
    assert "--input x:Bx3x224x224" in said
    for arguments in (["--data", "d.npz"], ["--input", "x:Bx3x24x40"], ["--input", "1x3x24x40"]):
        assert run(["eval", "m.onnx", "m.onnx", *arguments]) == 0
        assert "leaves sizes open" not in capsys.readouterr().err
    assert run(["eval", "m.onnx", "m.onnx", "--input", "1x4x24x40"]) == ExitCode.USAGE
    bench = ["bench", "m.onnx", "--time", "0.1s", "--input", "1x3x24x40", "-o", "r.json"]
    assert run(bench) == 0


def test_a_batch_behind_the_first_dim_of_an_onnx(here):
    two = [("x", [2, "n", 4]), ("s", ["n", 4])]
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, dims) for name, dims in two]
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, "n", 4])
    graph = helper.make_graph([helper.make_node("Add", ["x", "s"], ["y"])], "g", inputs, [result])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, "m.onnx")
    specs = open_artifact("m.onnx").inputs
    assert [spec.batch_dim for spec in specs] == [1, 0]
    assert [x.shape for x in random_inputs(specs, 3, seed=0)] == [(2, 3, 4), (3, 4)]
    assert run(["bench", "m.onnx", "--time", "0.1s", "--batch", "3"]) == 0


def test_architecture_for_those_that_need_it(here, capsys):
    """Each message sent the user to the other option."""
    (here / "net.py").write_text("from torch import nn\ndef build():\n    return nn.Linear(8, 5)\n")
    torch.save(nn.Linear(8, 5).state_dict(), "a.pt")
    exported("b.pt2", nn.Linear(8, 5))
    records("d.npz", 5)
    assert run(["eval", "a.pt", "b.pt2", "--arch", "net.py:build", "--data", "d.npz"]) == 0
    assert "--arch net.py:build is for a.pt" in capsys.readouterr().err
    assert run(["eval", "b.pt2", "--arch", "net.py:build", "--data", "d.npz"]) == ExitCode.USAGE


def test_time_first_is_found_and_can_be_said(here, capsys):
    class TimeFirst(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell, self.head = nn.LSTM(8, 6), nn.Linear(6, 5)

        def forward(self, x):
            return self.head(self.cell(x)[0][-1])

    torch.manual_seed(0)
    module, batch = TimeFirst().eval(), torch.export.Dim("n", min=1, max=64)
    x = torch.randn(30, 7, 8)
    y = module(x.movedim(1, 0)).argmax(1).numpy()
    np.savez("d.npz", x=x, y=np.where(np.arange(30) < 24, y, (y + 1) % 5))
    program = torch.export.export(module, (x[:3].movedim(1, 0).contiguous(),), dynamic_shapes=({1: batch},))
    torch.export.save(program, "m.pt2")
    static = torch.export.export(module, (x[:7].movedim(1, 0).contiguous(),))
    torch.export.save(static, "static.pt2")
    assert run(["eval", "m.pt2", "--data", "d.npz", "--batch", "7"]) == 0
    assert "80.00" in capsys.readouterr().out
    assert run(["eval", "static.pt2", "--data", "d.npz", "--input", "7xBx8"]) == 0
    assert run(["export", "m.pt2", "-o", "m.onnx"]) == 0
    capsys.readouterr()
    assert run(["eval", "m.onnx", "--data", "d.npz", "--batch", "7"]) == 0
    assert "80.00" in capsys.readouterr().out


def test_a_size_that_the_network_fixes_is_no_batch_in_silence():
    class LastStep(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell, self.head = nn.GRU(8, 6), nn.Linear(6, 3)

        def forward(self, x):  # [time, batch, 8]
            return self.head(self.cell(x)[0][-1])

    class OneByOne(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4 * 36, 3)

        def forward(self, x):
            return self.head(self.conv(x).reshape(1, 144))

    said: list[str] = []
    found = nncompress.load(LastStep().eval(), input="1x5x8", notice=said.append)
    assert found.inputs[0].shape == (1, "batch", 8)
    assert any("samples lie along dim 1" in line for line in said)
    for given in ("1x3x8x8", "Bx3x8x8"):
        said.clear()
        assert nncompress.load(OneByOne().eval(), input=given, notice=said.append).inputs[0].shape[0] == 1
        assert any("the batch is fixed there" in line for line in said)


def test_any_metric_is_measured_compared_and_kept(here, capsys):
    """In eval, in bench, and by quantize --max-drop; in JSON with intervals."""
    import json

    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    exported("m.pt2", module)
    x = torch.randn(80, 8)
    np.savez("d.npz", x=x.numpy(), y=module(x).argmax(1).numpy())
    assert (
        run(["quantize", "m.pt2", "--data", "d.npz", "--max-drop", "1", "--metric", "f1", "-o", "q.pt2"]) == 0
    )
    assert "F1 100.00 % ->" in "".join(capsys.readouterr()).replace("\n", " ")
    assert run(["eval", "m.pt2", "q.pt2", "--data", "d.npz", "--metric", "f1", "--json"]) == 0
    first, second = json.loads(capsys.readouterr().out)["models"]
    assert (first["result"]["metric"], first["result"]["value"]) == ("f1", 1.0)
    difference = second["paired"]["difference"]
    assert difference["value"] == pytest.approx(second["result"]["value"] - 1)
    assert difference["low"] <= difference["value"] <= difference["high"] <= 0
    assert run(["eval", "m.pt2", "--data", "d.npz", "--metric", "f1"]) == 0
    assert "F1 %" in capsys.readouterr().out
    assert run(["bench", "m.pt2", "--data", "d.npz", "--metric", "f1", "--time", "0.2s"]) == 0
    assert "F1 100.00 %" in " ".join(capsys.readouterr().out.split())
    assert run(["eval", "m.pt2", "--data", "d.npz", "--metric", "nothing"]) == ExitCode.USAGE
    assert "perplexity" in capsys.readouterr().err
    assert run(["eval", "m.pt2", "--data", "d.npz", "--metric", "miou"]) == ExitCode.DATA
    assert "does not fit this output" in " ".join(capsys.readouterr().err.split())


def test_models_of_other_inputs_are_told_apart_by_name(here, capsys):
    exported("a.pt2", nn.Linear(8, 5))
    records("d.npz", 5)
    torch.save(nn.Sequential(nn.Flatten(), nn.Linear(8, 5)), "c.pt")
    assert run(["export", "c.pt", "--input", "1x2x4", "-o", "c.pt2"]) == 0
    capsys.readouterr()
    assert run(["eval", "a.pt2", "c.pt2", "--data", "d.npz"]) == ExitCode.DATA
    assert "c.pt2 takes other inputs than a.pt2" in capsys.readouterr().err


def test_labels_that_fit_no_output_name_the_measures_there_are(here, capsys):
    exported("m.pt2", BoxThenScores())
    x, _ = records("d.npz", 10)
    np.savez("d.npz", x=x.numpy(), y=np.zeros((len(x), 3), np.int64))
    assert run(["eval", "m.pt2", "--data", "d.npz"]) == ExitCode.DATA
    assert "take another --metric: rmse" in capsys.readouterr().err


def test_a_refusal_names_the_model_that_it_is_of(here, capsys):
    exported("a.pt2", nn.Linear(8, 5))
    wrecked = nn.Linear(8, 5)
    nn.init.constant_(wrecked.bias, float("nan"))
    exported("b.pt2", wrecked)
    records("d.npz", 5)
    assert run(["eval", "a.pt2", "b.pt2", "--data", "d.npz"]) == ExitCode.VERIFICATION
    assert "error: b.pt2: the model's output for sample 0 is NaN" in capsys.readouterr().err


@pytest.mark.parametrize(("target", "runtime"), [("ort-cpu", "ONNX Runtime"), ("openvino", "OpenVINO")])
def test_target_runs_every_model_there_as_a_file_for_it(here, capsys, target, runtime):
    exported(here / "a.pt2", nn.Sequential(nn.Linear(8, 10)))
    nncompress.export(nncompress.load(here / "a.pt2"), here / "a.onnx")
    records(here / "data.npz", 10)
    command = ["eval", "a.pt2", "a.onnx", "--data", "data.npz", "--target", target]
    assert run([*command, "--json"]) == 0
    said = capsys.readouterr()
    first, second = json.loads(said.out)["models"]
    assert first["runtime"].startswith(runtime)
    assert second["runtime"].startswith(runtime)
    assert (first["name"], second["name"]) == ("a.pt2", "a.onnx")
    assert second["paired"]["only_original"] == second["paired"]["only_changed"] == 0
    assert f"a.pt2: exported for {target}" in said.err
    assert "a.onnx: exported" not in said.err


@pytest.mark.parametrize(
    ("target", "why"),
    [
        ("nowhere", "there is no such target"),
        ("tensorrt", "nothing here runs files for tensorrt"),
        ("ort-cuda", "nothing here runs files for ort-cuda"),
        ("xnnpack", "xnnpack does not run a.onnx"),
    ],
)
def test_a_target_that_cannot_run_it_is_refused(here, capsys, target, why):
    exported(here / "a.pt2", nn.Sequential(nn.Linear(8, 10)))
    nncompress.export(nncompress.load(here / "a.pt2"), here / "a.onnx")
    records(here / "data.npz", 10)
    assert run(["eval", "a.onnx", "--data", "data.npz", "--target", target]) == ExitCode.USAGE
    assert why in capsys.readouterr().err
