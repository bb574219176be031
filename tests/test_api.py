"""The face of the package: a module in memory goes in, comes out, trains in a loop of its own, returns."""

from __future__ import annotations

import copy
import io
from importlib.resources import files
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from networks import NETWORKS, model
from torch import nn
from torch.nn import functional as F

import nncompress
from nncompress.errors import DataError, UsageError
from nncompress.ir.graph.ops import op_name


class Classifier(nn.Module):
    """A recurrent one: its flags are three kinds, a batch norm's, dropout's, and the LSTM's own."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv1d(3, 16, 3, padding=1), nn.BatchNorm1d(16), nn.ReLU())
        self.lstm = nn.LSTM(16, 12, num_layers=2, dropout=0.5, batch_first=True)
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(12, 4)

    def forward(self, x):
        found, _ = self.lstm(self.features(x).transpose(1, 2))
        return self.head(self.dropout(found[:, -1]))


def records(count=48, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 3, 10, generator=generator)
    return x, x.mean((1, 2)).gt(0).long() + 2 * x[:, 0].mean(1).gt(0).long()


@pytest.fixture
def classifier():
    torch.manual_seed(0)
    return Classifier()


def test_a_module_is_compressed_and_stays_as_it_is(classifier):
    before = copy.deepcopy(classifier.state_dict())
    smaller = nncompress.compress(classifier, "factorize:rank=4", data=records())
    assert classifier.training
    assert all(torch.equal(before[name], value) for name, value in classifier.state_dict().items())
    assert [record["pass"] for record in smaller.history] == ["factorize"]


@pytest.mark.parametrize(
    "given",
    [
        lambda x, y: x,
        lambda x, y: x.numpy(),
        lambda x, y: (x, y),
        lambda x, y: (x.numpy(), None),
        lambda x, y: torch.utils.data.TensorDataset(x, y),
        lambda x, y: torch.utils.data.DataLoader(
            torch.utils.data.TensorDataset(x, y), batch_size=7, shuffle=True
        ),
        lambda x, y: [(x[:20], y[:20]), (x[20:], y[20:])],
        lambda x, y: ((x[i : i + 8], y[i : i + 8]) for i in range(0, 48, 8)),  # only once
        lambda x, y: lambda: ((x[i : i + 8],) for i in range(0, 48, 8)),
    ],
)
def test_every_pass_over_data_in_memory_gives_all_records(classifier, given):
    x, y = records()
    loaded = nncompress.load(nn.Conv1d(3, 2, 3), input=x[:1])
    dataset = nncompress.dataset(given(x, y), loaded)
    for _ in range(2):  # every pass over it gives all records
        seen = torch.cat([batch.inputs[0] for batch in dataset.batches(16)])
        assert torch.equal(seen.flatten(1).sum(1).sort().values, x.flatten(1).sum(1).sort().values)


def test_an_iterator_too_large_to_keep_is_refused(classifier, monkeypatch):
    monkeypatch.setattr("nncompress.data.sources.python.MOST_KEPT", 1000)
    with pytest.raises(DataError, match="only once"):
        nncompress.compress(classifier, "quantize", data=iter([records()]))


@pytest.mark.parametrize("name", NETWORKS)
def test_out_as_a_module_and_in_again(name):
    given = model(name)
    given.history.append({"pass": "prune"})
    module = given.to_module()
    x = given.example_inputs(3)
    expected = given.outputs_of(*x)
    held = io.BytesIO()
    torch.save(module, held)
    held.seek(0)
    again = nncompress.load(module)
    for each in (module, copy.deepcopy(module), torch.load(held, weights_only=False), again):
        outputs = each(*x)
        assert all(map(torch.equal, outputs if isinstance(outputs, tuple) else (outputs,), expected))
    assert (again.inputs, again.outputs, again.history) == (given.inputs, given.outputs, given.history)
    assert again.state_dict().keys() == module.state_dict().keys() == given.state_dict().keys()


def test_modes_are_those_of_the_original(classifier):
    """Against the class itself: the same random numbers are drawn, the same statistics are updated."""
    x, _ = records()
    module = nncompress.load(classifier, input=x[:1]).to_module()
    assert not module.training
    for mode in (True, False):
        classifier.train(mode)
        module.train(mode)
        results = []
        for each in (classifier, module):
            torch.manual_seed(1)
            results.append(each(x))
        torch.testing.assert_close(results[1], results[0])
    for name in ("features.1.running_mean", "features.1.running_var"):
        torch.testing.assert_close(module.state_dict()[name], classifier.state_dict()[name])
    module.train()
    module.get_submodule("features.1").eval()
    frozen = module.state_dict()["features.1.running_mean"].clone()
    module(x)
    assert torch.equal(module.state_dict()["features.1.running_mean"], frozen)


class Streams(nn.Module):
    """Its first state is made of zeros as the input is."""

    def __init__(self):
        super().__init__()
        self.cell, self.out = nn.GRU(4, 6, batch_first=True), nn.Linear(6, 2)

    def forward(self, x):
        return self.out(self.cell(x)[0])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_module_in_another_precision_is_the_original_in_it_and_comes_in_as_it_is(dtype):
    net, x = Streams().eval(), torch.randn(2, 3, 4).to(dtype)
    module = nncompress.load(net, input="1x3x4").to_module().to(dtype)
    expected = copy.deepcopy(net).to(dtype)(x)
    assert torch.equal(module(x), expected)
    again = nncompress.load(module)
    assert again.inputs[0].torch_dtype() == dtype
    assert torch.equal(again(x), expected)


@pytest.mark.parametrize("step", ["quantize", "quantize:mode=weights,weight-bits=4,group-size=16"])
def test_a_quantized_module_is_moved_to_another_precision_as_well(step):
    """What int8 and 4-bit weights stand for is as precise as the biases; in float64 nothing is lost."""
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4)), torch.randn(64, 32)
    module = nncompress.compress(net, step, data=x).to_module()
    expected = module(x).double()
    for dtype, bound in ((torch.float64, 1e-5), (torch.bfloat16, 0.05)):
        found = copy.deepcopy(module).to(dtype)(x.to(dtype))
        assert found.dtype == dtype
        assert (found.double() - expected).norm() <= bound * expected.norm()
    assert not [node for node in nncompress.load(module).graph.nodes if op_name(node).startswith("to")]
    with pytest.warns(UserWarning, match="int8 do not train .2, "):
        module.train()


def test_a_training_loop_of_ones_own_around_a_pruned_module():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv1d(3, 16, 3, padding=1), nn.BatchNorm1d(16), nn.ReLU())
    net.extend([nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Dropout(0.1), nn.Linear(16, 4)])
    data = records(96)
    smaller = nncompress.compress(net, "prune-nodes:ratio=0.5", data=data, notice=lambda sentence: None)
    module = smaller.to_module().train()
    optimizer = torch.optim.Adam(module.parameters(), lr=0.02)
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(module(data[0]), data[1]).backward()
        optimizer.step()
    before, after = (nncompress.evaluate(each, data).top1 for each in (smaller, module))
    assert after > max(before, 0.6)
    held = io.BytesIO()
    torch.save(module.state_dict(), held)
    held.seek(0)
    fresh = smaller.to_module()
    fresh.load_state_dict(torch.load(held, weights_only=True))
    assert torch.equal(fresh(data[0]), module.eval()(data[0]))
    again = nncompress.compress(module, "factorize:rank=4", notice=lambda sentence: None)
    assert [record["pass"] for record in again.history] == ["prune-nodes", "factorize"]
    assert nncompress.inspect(again).parameters <= nncompress.inspect(smaller).parameters < 200


def test_tensors_that_the_graph_makes_are_made_where_the_input_lies():
    class Positions(nn.Module):
        def forward(self, x):
            return x + torch.arange(x.shape[1]).to(x.dtype) + torch.zeros(x.shape[1])

    module = nncompress.load(Positions(), input="1x5").to_module()
    assert module(torch.zeros(2, 5, device="meta")).device.type == "meta"


def test_refusals_name_what_to_do(classifier, tmp_path):
    with pytest.raises(UsageError, match="no model in this"):
        nncompress.load(3)
    with pytest.raises(UsageError, match="takes a loaded model"):
        nncompress.compress("model.pt2", "quantize")
    with pytest.raises(UsageError, match="for files"):
        nncompress.load(classifier, arch="net.py:build")
    with pytest.raises(UsageError, match="does not run on an input"):
        nncompress.load(classifier, input=torch.zeros(2, 5))
    with pytest.raises(UsageError, match="no shape and no tensors"):
        nncompress.load(classifier, input=[np.zeros((2, 5))])
    with pytest.raises(DataError, match="does not return data"):
        nncompress.compress(classifier, "quantize", input="1x3x10", data=3)
    with pytest.raises(UsageError, match="no model in this"):
        nncompress.load(torch.jit.script(torch.nn.functional.relu))


class TwoAnswers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.place, self.scores = nn.Linear(6, 2), nn.Linear(6, 3)

    def forward(self, x):
        return self.place(x), self.scores(x)


def test_a_loaded_model_does_not_learn_from_the_data_that_it_is_measured_on():
    torch.manual_seed(0)
    loaded = nncompress.load(TwoAnswers(), input="1x6")
    before = copy.deepcopy(loaded.metadata), dict(loaded.sizes)
    with pytest.warns(UserWarning, match="labels fit output 1 of 2"):
        nncompress.evaluate(loaded, (torch.randn(9, 6), torch.arange(9) % 3))
    with pytest.warns(UserWarning, match="labels fit output 1 of 2"):
        smaller = nncompress.compress(
            loaded, "prune:sparsity=0.1", data=(torch.randn(9, 6), torch.arange(9) % 3)
        )
    with pytest.raises(UsageError, match="no output 2"):
        nncompress.evaluate(loaded, (torch.randn(9, 6), torch.arange(9) % 3), output_index=2)
    assert (loaded.metadata, dict(loaded.sizes)) == before
    assert smaller.metadata["answer"] == 1


def test_a_file_is_measured_as_its_model_was(tmp_path):
    """Its images normalised, its answer the one that labels fit."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
    loaded = nncompress.load(net, input="1x3x8x8", normalize="0.9,0.1,0.5/0.1,0.2,0.3")
    nncompress.export(loaded, tmp_path / "m.onnx")
    chance = np.random.default_rng(0)
    images = chance.integers(0, 256, (60, 8, 8, 3), dtype=np.uint8)
    scaled = (images / 255 - [0.9, 0.1, 0.5]) / [0.1, 0.2, 0.3]  # by hand
    answers = net.eval()(torch.from_numpy(scaled).float().permute(0, 3, 1, 2)).argmax(1).numpy()
    assert len(set(answers.tolist())) > 1
    np.savez(tmp_path / "d.npz", x=images, y=answers)
    for measured in (loaded, tmp_path / "m.onnx"):
        assert nncompress.evaluate(measured, str(tmp_path / "d.npz")).top1 == 1


def test_models_in_memory_are_measured_under_their_names(classifier):
    wide = nncompress.load(nn.Sequential(nn.Linear(8, 8), nn.ReLU()), input="1x8")
    result = nncompress.bench({"a": wide, "b": wide.to_module()}, seconds=0.1, runtime="torch")
    assert [arm.name for arm in result.candidates] == ["a", "b"]


def test_input_is_of_the_modules_beside_loaded_models():
    net = nn.Sequential(nn.Linear(8, 8), nn.ReLU())
    wide = nncompress.load(net, input="1x8")
    measured = nncompress.bench({"a": wide, "b": net}, input="1x8", seconds=0.1, runtime="torch")
    assert [arm.name for arm in measured.candidates] == ["a", "b"]
    with pytest.raises(UsageError, match="loaded models know their inputs"):
        nncompress.bench({"a": wide, "b": wide}, input="1x8", seconds=0.1)


def test_the_face_is_typed_and_complete():
    assert files(nncompress).joinpath("py.typed").is_file()
    for name in nncompress.__all__:
        assert getattr(nncompress, name).__doc__
        # a module of that name would take its place when it is imported
        assert name == "passes" or find_spec(f"nncompress.{name}") is None
    assert all(hasattr(nncompress.api, name) for name in nncompress.api.__all__)
    assert set(nncompress.__all__) <= set(dir(nncompress))


class Masked(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = torch.nn.Linear(4, 2)

    def forward(self, x, mask, scale=2.0):
        return self.head(x * mask) * scale


def test_data_gives_every_input_by_the_name_of_the_argument(tmp_path):
    arrays = {name: np.random.rand(5, 4).astype("float32") for name in ("mask", "x", "other")}
    np.savez(tmp_path / "both.npz", **arrays, y=np.arange(5) % 2)
    model = nncompress.load(Masked(), data=tmp_path / "both.npz")
    assert [spec.name for spec in model.inputs] == ["x", "mask"]
    assert nncompress.evaluate(model, tmp_path / "both.npz").samples == 5
    np.savez(tmp_path / "one.npz", x=arrays["x"])
    with pytest.raises(DataError, match="does not hold the 2 inputs") as refused:
        nncompress.load(Masked(), data=tmp_path / "one.npz")
    assert refused.value.expected == "x, mask"
    assert "--input x:Bx…,mask:Bx… (each with its dtype, as :int64" in refused.value.remedy


@pytest.mark.parametrize(
    ("call", "what"),
    [
        (lambda net, x: nncompress.compress(net, [3], data=x), "these are no passes"),
        (lambda net, x: nncompress.compress(net, None, data=x), "these are no passes"),
        (lambda net, x: nncompress.compress(net, {"prune": 1}, data=x), "these are no passes"),
        (lambda net, x: nncompress.compress(net, "prune", data=x, target="tpu"), "no such target"),
        (lambda net, x: nncompress.load(type(net)), "the module itself, not its class"),
        (lambda net, x: nncompress.load(net.state_dict()), "load_state_dict"),
        (lambda net, x: nncompress.load(copy.deepcopy(net).to("meta"), input=x), "parameters without values"),
        (lambda net, x: nncompress.load(nn.LazyLinear(2), input=x), "parameters without values"),
        (lambda net, x: nncompress.dataset(x, net), "for a loaded model"),
        (lambda net, x: nncompress.export(net, None), "where to write"),
        (lambda net, x: nncompress.evaluate(net, (x, x), batch_size=0), "at least 1"),
        (lambda net, x: nncompress.evaluate(net, (x, x), limit="3"), "limit is not a whole number"),
        (
            lambda net, x: nncompress.compress(net, "quantize", data=x, limit="3"),
            "limit is not a whole number",
        ),
        (lambda net, x: nncompress.compress(net, "prune", data=x, seed="x"), "seed is not a whole number"),
        (lambda net, x: nncompress.compress(net, "prune", data=x, seed=-1), "seed must be at least 0"),
        (lambda net, x: nncompress.bench({"a": net}, input=x, threads="2"), "threads is not a whole number"),
        (lambda net, x: nncompress.bench({"a": net}, input=x, seconds="2"), "time to measure"),
        (lambda net, x: nncompress.load(net, input=x[:0]), "holds no numbers"),
        (lambda net, x: nncompress.load(net, input=3), "no shape and no tensors"),
        (lambda net, x: nncompress.bench([net]), "bench takes models by name"),
        (lambda net, x: nncompress.evaluate(net, (x, x), metric=3), "a metric is named by a text"),
        (lambda net, x: nncompress.export("net.pt", "net.onnx"), "this takes a loaded model"),
    ],
)
def test_what_a_function_does_not_take_is_refused_in_a_sentence(call, what):
    with pytest.raises(UsageError, match=what):
        call(nn.Linear(4, 3), torch.randn(8, 4))


def test_a_module_that_came_out_is_saved_as_it_is(tmp_path):
    module = nncompress.load(nn.Linear(4, 3), input="1x4").to_module()
    with torch.no_grad():
        module.get_parameter("weight").mul_(2)
    nncompress.export(module, tmp_path / "net.pt2")
    again = nncompress.load(tmp_path / "net.pt2")
    x = torch.randn(5, 4)
    torch.testing.assert_close(again.outputs_of(x)[0], module(x))
