"""Every load is compared with its source, whose state no run of ours changes."""

from __future__ import annotations

import io
import json
import logging
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from pt2_members import write
from torch import Tensor, nn

import nncompress
from nncompress import exporting
from nncompress.cli.app import run
from nncompress.errors import ModelFileError, UnsafeFileError, UsageError, VerificationError
from nncompress.ir import Model
from nncompress.loading import load_model
from nncompress.loading.compare import compare_with_source, run_source


class Stateful(nn.Module):
    """Changes a buffer in place, one by assignment, a list, a number and its input."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.register_buffer("seen", torch.zeros(4))
        self.register_buffer("calls", torch.zeros(()))
        self.log: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen += x.mean(0).abs()
        if not torch.compiler.is_exporting():
            self.calls = self.calls + 1
            self.log.append(len(x))
        return self.linear(x.sub_(1.0) * self.seen)


def test_a_run_of_the_source_leaves_its_state_and_the_inputs() -> None:
    net, x = Stateful(), torch.randn(3, 4)
    before = x.clone()
    first, second = run_source(net, (x,)), run_source(net, (x,))
    assert torch.equal(first[0], second[0])
    assert torch.equal(x, before)
    assert not net.seen.any()
    assert not net.calls
    assert net.log == []


class Counts(nn.Module):
    """Keeps a number, a list or a plain tensor from call to call."""

    def __init__(self, kept: str) -> None:
        super().__init__()
        self.linear, self.kept = nn.Linear(4, 3), kept
        self.number, self.log, self.plain = 1, [], torch.ones(3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        if self.kept == "number":
            self.number += 1
            return y * self.number
        if self.kept == "list":
            self.log.append(1)
            return y * len(self.log)
        self.plain = self.plain + 1
        return y * self.plain


@pytest.mark.parametrize("kept", ["number", "list", "tensor"])
def test_what_a_call_leaves_in_plain_attributes_is_said(kept: str) -> None:
    net, x, said = Counts(kept).eval(), torch.randn(2, 4), []
    model = nncompress.load(net, input="1x4", notice=said.append)
    assert "attributes that are no buffers" in " ".join(said)
    with torch.no_grad():
        torch.testing.assert_close(model(x), run_source(net, (x,))[0])


def test_a_graph_that_computes_something_else_is_refused() -> None:
    net = nn.Sequential(nn.Linear(4, 3), nn.ReLU()).eval()
    model = Model.from_module(net, (torch.randn(2, 4),))
    assert compare_with_source(model, net, "net.pt", print) == 0.0
    with torch.no_grad():
        model.tensor("0.weight")[0, 0] += 1.0
    with pytest.raises(VerificationError, match="computes something else"):
        compare_with_source(model, net, "net.pt", print)


def test_state_is_kept_as_the_file_had_it(tmp_path: Path) -> None:
    net = Stateful().eval()
    model = Model.from_module(net, (torch.randn(2, 4),))
    exporting.write(model, tmp_path / "net.pt2")
    loaded = load_model(tmp_path / "net.pt2")
    x = torch.randn(3, 4)
    torch.testing.assert_close(loaded(x), run_source(net, (x,))[0])
    assert not loaded.tensor("seen").any()


def test_a_compiled_module_loads_as_the_one_it_wraps(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(4, 3), nn.ReLU()).eval()
    torch.save(torch.compile(net), tmp_path / "net.pt")
    model = load_model(tmp_path / "net.pt", trust_pickle=True, input_shapes="1x4")
    assert sorted(model.state_dict()) == ["0.bias", "0.weight"]
    x = torch.randn(3, 4)
    torch.testing.assert_close(model(x), net(x))


def test_what_compile_put_inside_a_module_is_taken_out(tmp_path: Path) -> None:
    """Names are the network's own; without trust the message says how to save the module without it."""
    inside = torch.compile(nn.Linear(4, 6))
    net = nn.Sequential(
        inside, nn.DataParallel(nn.Sequential(nn.ReLU(), torch.compile(nn.Linear(6, 3))))
    ).eval()
    torch.save(net, tmp_path / "net.pt")
    with pytest.raises(UnsafeFileError, match=r"_orig_mod") as refused:
        load_model(tmp_path / "net.pt", input_shapes="1x4")
    assert "torch.compile" in refused.value.what
    model = load_model(tmp_path / "net.pt", input_shapes="1x4", trust_pickle=True)
    assert sorted(model.state_dict()) == ["0.bias", "0.weight", "1.1.bias", "1.1.weight"]
    assert nncompress.load(net, input="1x4").state_dict().keys() == model.state_dict().keys()
    assert net[0] is inside


class WritesThroughView(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.a(x) * 1
        h.swapdims(0, 1).relu_()
        return h


def test_torch_says_nothing_of_sizes_that_cannot_be_told(tmp_path: Path) -> None:
    batch = {0: torch.export.Dim("batch", min=1, max=4096)}
    program = torch.export.export(WritesThroughView().eval(), (torch.randn(2, 8),), dynamic_shapes=(batch,))
    torch.export.save(program, tmp_path / "net.pt2")
    said = io.StringIO()
    handler = logging.StreamHandler(said)  # as torch's own; handlers of other kinds still hear of it
    logger = logging.getLogger("torch.fx.experimental.symbolic_shapes")
    logger.addHandler(handler)
    try:
        load_model(tmp_path / "net.pt2")
    finally:
        logger.removeHandler(handler)
    assert not said.getvalue()


def test_a_graph_whose_kernels_take_no_input_is_refused(tmp_path: Path) -> None:
    """Shape rules let mixed dtypes pass: every later run would end in a traceback."""
    model = Model.from_module(nn.Sequential(nn.Linear(4, 3)).eval(), (torch.randn(2, 4),))
    exporting.write(model, tmp_path / "m.pt2")
    content = (tmp_path / "m.pt2").read_bytes()
    members = {}
    with zipfile.ZipFile(tmp_path / "m.pt2") as archive:
        for name in archive.namelist():
            members[name.split("/", 1)[1]] = archive.read(name)
    half = members["data/weights/model_weights_config.json"].replace(b'"dtype": 7', b'"dtype": 6')
    members["data/weights/model_weights_config.json"] = half
    assert content != write(members, tmp_path / "m.pt2").read_bytes()
    with pytest.raises(ModelFileError, match="cannot run here"):
        load_model(tmp_path / "m.pt2")


def test_a_graph_that_takes_few_values_opens(tmp_path: Path) -> None:
    class Picky(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            torch._assert_async((x >= 0).all() & (x <= 1).all())
            return x * 2

    program = torch.export.export(Picky(), (torch.rand(2, 4),))
    torch.export.save(program, tmp_path / "m.pt2")
    said: list[str] = []
    assert torch.equal(
        load_model(tmp_path / "m.pt2", notice=said.append)(torch.ones(2, 4)), 2 * torch.ones(2, 4)
    )
    assert "does not run on random inputs" in said[0]


def test_inspect_says_how_far_the_graph_is_from_its_source(tmp_path: Path, capsys) -> None:
    net = nn.Sequential(nn.Linear(4, 3))
    torch.save(net, tmp_path / "net.pt")
    assert nncompress.load(tmp_path / "net.pt", input="1x4").agreement == 0.0
    assert run(["inspect", str(tmp_path / "net.pt"), "--input", "1x4"]) == 0
    assert "its outputs are those of what the file holds, exactly" in capsys.readouterr().out
    assert run(["inspect", str(tmp_path / "net.pt"), "--input", "1x4", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["agreement"] == 0.0


def test_a_graph_that_does_not_run_is_refused_in_a_message(monkeypatch):
    def broken(*inputs):
        raise RuntimeError("shape '[4, 8]' is invalid for input of size 128")

    model = Model.from_module(nn.Linear(3, 2).eval(), (torch.randn(2, 3),))
    monkeypatch.setattr(model, "outputs_of", broken)
    with pytest.raises(VerificationError, match="does not run"):
        compare_with_source(model, nn.Linear(3, 2), "m.pt", print)


class Cache:
    def __init__(self) -> None:
        self.kept, self.log = [torch.ones(3)], []

    def next(self) -> Tensor:
        self.log.append(len(self.log))
        return self.kept[0].mul_(0.5)


class PlainState(nn.Module):
    """Changes tensors in place that are no buffers: an attribute, in containers, in an object."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.scale = torch.ones(3)
        self.nested = {"a": [(torch.ones(3),)]}
        self.cache = Cache()

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x) * self.scale.mul_(2) + self.nested["a"][0][0].add_(1)
        self.nested["a"].append(3)
        return y * self.cache.next()


def test_a_trace_leaves_tensors_that_are_no_buffers() -> None:
    net, x = PlainState().eval(), torch.randn(3, 4)
    model = Model.from_module(net, (x[:2],))  # torch.export alone gives the second call's outputs
    for held in (net.scale, net.nested["a"][0][0], net.cache.kept[0]):
        assert held.tolist() == [1, 1, 1]
    assert (len(net.nested["a"]), net.cache.log) == (1, [])
    torch.testing.assert_close(model(x), net(x))


class Branch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6)

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        if x.size(1) > 3:
            x = self.linear(x)
        return x.relu() * scale


class HoldsScripts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = self.second = torch.jit.script(Branch())
        self.traced = torch.jit.trace(Branch(), torch.randn(2, 6))

    def forward(self, x: Tensor) -> Tensor:
        return self.traced(self.second(self.first(x), scale=0.5) + x)


def test_a_module_that_holds_scripted_ones_loads() -> None:
    net, x = HoldsScripts().eval(), torch.randn(5, 6)
    model = nncompress.load(net, input="1x6")
    torch.testing.assert_close(model(x), net(x))
    assert "first.linear.weight" in model.state_dict()
    assert model.agreement is not None


@dataclass
class Scores:
    logits: Tensor
    loss: Tensor | None = None


@dataclass
class Detections:
    scores: Scores
    boxes: list[Tensor]


def test_dataclasses_are_outputs_as_dicts_are(tmp_path: Path) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Detections:
            return Detections(Scores(self.linear(x)), [x.sum(-1), x[:, :2]])

    net, x = Net().eval(), torch.randn(5, 4)
    model = nncompress.load(net, input="1x4")
    assert model.outputs == ("scores_logits", "boxes_0", "boxes_1")
    expected = net(x)
    for got, want in zip(model(x), (expected.scores.logits, *expected.boxes), strict=True):
        torch.testing.assert_close(got, want)
    nncompress.export(model, tmp_path / "m.pt2")
    torch.testing.assert_close(nncompress.load(tmp_path / "m.pt2")(x)[0], expected.scores.logits)


@pytest.mark.parametrize(
    ("forward", "low"),
    [
        (lambda h: h if h.shape[0] > 1 else h * 2, 2),
        (lambda h: h.squeeze()[None].squeeze(0).view_as(h.squeeze()), 2),  # runs on no single sample
        (lambda h: h.squeeze().reshape(h.shape), 1),
    ],
    ids=["if", "squeeze", "as-several"],
)
def test_a_single_sample_that_is_treated_otherwise_is_told(forward, low: int) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return forward(self.linear(x))

    net, said, x = Net().eval(), [], torch.randn(3, 5, 4)
    model = nncompress.load(net, input="1x5x4", notice=said.append)
    assert model.dynamic["batch"][0] == low
    assert ("treats a single sample otherwise" in " ".join(said)) == (low == 2)
    torch.testing.assert_close(model(x), net(x))


def test_a_single_sample_never_goes_through_the_graph_of_several(tmp_path: Path, capsys) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x) if x.shape[0] > 1 else self.linear(x) * 2

    net, x = Net().eval(), torch.randn(5, 4)
    model = nncompress.load(net, input="1x4", notice=lambda _: None)
    exact = nncompress.evaluate(model, (x.numpy(), net(x).detach().numpy()), batch_size=2)  # 2 and 3 samples
    assert exact.rmse < 1e-6
    for name in ("m.pt2", "m.onnx"):
        nncompress.export(model, tmp_path / name)
        again = nncompress.load(tmp_path / name)
        assert again.dynamic["batch"][0] == 2
        with pytest.raises(UsageError, match="right for batches of 2 or more"):
            again(x[:1])
        assert run(["bench", str(tmp_path / name), "--batch", "1"]) == UsageError.exit_code
        assert "right for batches of 2 or more" in capsys.readouterr().err


class Rounds(nn.Module):
    """torch.export knows this op for sizes that are fixed alone."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.fake_quantize_per_tensor_affine(x, 0.05, 3, -128, 127)


def test_a_batch_that_could_not_be_kept_free_is_told() -> None:
    notices: list[str] = []
    net = nn.Sequential(nn.Linear(6, 4), Rounds()).eval()
    model = nncompress.load(net, input="3x6", notice=notices.append)
    assert model.fixed_batch == 3
    assert [notice for notice in notices if "takes 3 samples at a time" in notice and "--input 3x6" in notice]


class SecondSample(nn.Linear):
    """Compares every sample with the second one."""

    def forward(self, x):
        h = super().forward(x)
        return h - h[1]


def test_a_module_that_takes_no_single_sample_is_run_on_none(tmp_path):
    """An export ran it on one: a traceback."""
    told = []
    model = nncompress.load(SecondSample(4, 3).eval(), input=torch.randn(2, 4), notice=told.append)
    assert model.least_batch == 2
    assert any("takes no single sample" in each for each in told)
    nncompress.export(model, tmp_path / "m.onnx")


def test_a_graph_that_is_read_as_it_is_in_the_file_runs_once(tmp_path, monkeypatch) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2)).eval()
    model = Model.from_module(net, (torch.randn(2, 3, 8, 8),))
    x = torch.randn(3, 3, 8, 8)
    expected = model(x)
    with monkeypatch.context() as patched:  # the program of the file tells that it runs
        patched.setattr(Model, "outputs_of", lambda *_: pytest.fail("the same calls run again"))
        nncompress.export(model, tmp_path / "m.pt2")
        found = nncompress.load(tmp_path / "m.pt2")
    assert found.agreement == 0.0
    assert torch.equal(found(x), expected)
