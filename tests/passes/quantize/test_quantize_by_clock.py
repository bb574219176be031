"""`quantize --target`: layers stay in float where a clock says that int8 loses there."""

import re

import pytest
import torch
from records import images
from scripted_machine import script
from torch import nn

from nncompress import pipeline
from nncompress.analysis.int8_cut import Int8Cut, Times
from nncompress.benchmarking.latency import layer as layer_latency
from nncompress.errors import UsageError
from nncompress.files import remembered
from nncompress.ir import Model
from nncompress.ir.formats.samples import samples_of
from nncompress.ir.layers.weights import layers
from nncompress.passes import Context, Quantize
from nncompress.passes.quantize import apply, by_clock
from nncompress.results import Estimate

DATA = images(16, None)


def traced(*modules):
    torch.manual_seed(0)
    return Model.from_module(nn.Sequential(*modules).eval(), (torch.randn(2, 3, 8, 8),))


@pytest.fixture(scope="module")
def net():
    return traced(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(256, 4)
    )


def in_float(model, seconds, conversion):
    every = {name: Times(*pair) for name, pair in seconds.items()}
    return Int8Cut(model, list(layers(model)), lambda value: Times(*conversion)).least(every)[0]


@pytest.mark.parametrize(
    ("seconds", "conversion", "left"),
    [
        # floats, int8 of each layer; seconds of a value to floats and to bytes
        ({"0": (4, 1), "2": (4, 1), "5": (4, 1)}, (0, 0), set()),
        ({"0": (4, 5), "2": (4, 1), "5": (4, 1)}, (0, 0), {"0"}),
        ({"0": (4, 1), "2": (4, 5), "5": (4, 1)}, (0.1, 0.1), {"2"}),
        ({"0": (4, 1), "2": (4, 5), "5": (4, 1)}, (1, 1), set()),  # costs 1 and saves two conversions
        ({"0": (4, 4), "2": (4, 3), "5": (4, 4)}, (9, 0.5), set()),  # the input is rounded once: 0.5 for 1
        ({"0": (4, 4), "2": (4, 3), "5": (4, 4)}, (9, 2), {"0", "2", "5"}),  # 2 for 1
        ({"0": (4, 1), "2": (4, 1), "5": (4, 4.5)}, (0.1, 0), {"5"}),
        ({"0": (4, 1), "5": (4, 1)}, (1, 1), set()),  # one that could not be timed goes with its neighbours
    ],
)
def test_conversions_at_the_borders_count(net, seconds, conversion, left):
    assert in_float(net, seconds, conversion) == left


def test_layers_that_read_one_weight_stay_together():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.one = nn.Linear(8, 8)

        def forward(self, x):
            return self.one(self.one(x).tanh())

    model = Model.from_module(Twice().eval(), (torch.randn(2, 8),))
    first, second = (layer.name for layer in layers(model))
    assert in_float(model, {first: (4, 1), second: (4, 6)}, (0, 0)) == set()
    assert in_float(model, {first: (4, 1), second: (4, 8)}, (0, 0)) == {first, second}


def test_an_addition_stays_in_8_bits_where_all_that_it_reads_does():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = (nn.Conv2d(3, 3, 1) for _ in range(3))

        def forward(self, x):
            return self.c((self.a(x) + self.b(x)).relu())

    model = Model.from_module(Block().eval(), (torch.randn(2, 3, 4, 4),))
    # b in int8 would save 1, but its sum with a's floats is made in floats: there and back for 2.
    seconds = {"a": (4, 9), "b": (4, 3), "c": (4, 1)}
    assert in_float(model, seconds, (1, 0.5)) == {"a", "b"}
    assert in_float(model, seconds, (0, 0.5)) == {"a"}


SLOW = (8, 3, 3, 3)  # the weight of the first layer, on the scripted machine


def layer_time(chain, shape):
    if chain[0].op in ("QuantizeLinear", "DequantizeLinear"):
        return 1e3
    if chain[0].precision != "int8":
        return 1e6
    return 1.5e6 if chain[0].weight == SLOW else 0.5e6


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """One where a model takes 10 ms, 2 less for every layer in bytes, but `slow` for the first one."""
    monkeypatch.setattr(layer_latency, "MOST_ROUNDS", 10)
    monkeypatch.setattr(remembered, "cache_folder", lambda: tmp_path)
    script(monkeypatch, chain_cost=layer_time)

    def with_first(slow, spread=0.0):
        class Clocked:
            def __init__(self, original, progress, where):
                assert not any(layer.weight.quantized for layer in layers(original))

            def __enter__(self):
                return self

            def __exit__(self, *_):
                pass

            def glance(self, other):
                names = [layer.name for layer in layers(other) if layer.weight.quantized]
                share = (10 + sum(slow if name == "0" else -2 for name in names)) / 10
                return Estimate(share, share - spread, share + spread)

        monkeypatch.setattr(by_clock, "ModelLatency", Clocked)

    return with_first


def quantized(net, **options):
    target = options.pop("target", "ort-cpu")
    model, (step,) = pipeline.run(net, [Quantize(**options)], Context(data=DATA, target=target), timing=False)
    bytes_ = {layer.name for layer in layers(model) if layer.weight.quantized}
    return bytes_, {change.where: change.what for change in step.changes}, " ".join(step.notes)


def test_a_layer_that_loses_stays_in_float(net, machine):
    machine(slow=3)
    in_bytes, said, notes = quantized(net)
    assert in_bytes == {"2", "5"}
    assert re.fullmatch(r"left in float: int8 takes 1\.(49|50|51)x there", said["0"])
    assert "1 of 3 in float" in notes
    assert "--every-layer" in notes


def test_where_the_whole_model_is_no_faster_for_it_none_does(net, machine):
    machine(slow=-1)
    in_bytes, _, notes = quantized(net)
    assert in_bytes == {"0", "2", "5"}
    assert "so none is" in notes


def test_what_is_timed_in_int8_is_checked_on_samples_of_the_data(net, monkeypatch, machine):
    """Its ranges are those of the data: noise would refuse right files, so that nothing was timed."""
    machine(slow=3)
    clocked, seen = by_clock.ModelLatency.glance, []

    def glance(clock, other):
        seen.append(samples_of(other.inputs))
        return clocked(clock, other)

    monkeypatch.setattr(by_clock.ModelLatency, "glance", glance)
    quantized(net, no_samples=True)
    batch = next(iter(DATA.batches(16))).inputs[0]
    assert len(seen) == 2
    for (samples,) in seen:
        assert all(any(torch.allclose(x, y, atol=1e-2) for y in batch) for x in samples.float())


def test_every_layer_is_rounded_where_that_is_asked_for(net, machine):
    machine(slow=3)
    in_bytes, _, notes = quantized(net, every_layer=True)
    assert in_bytes == {"0", "2", "5"}
    assert "ONNX Runtime" not in notes


@pytest.mark.parametrize(
    ("spread", "said"), [(0.1, "faster there"), (2.0, "as fast there, as far as this tells")]
)
def test_where_floats_are_faster_that_is_said(net, machine, spread, said):
    machine(slow=9, spread=spread)
    in_bytes, _, notes = quantized(net, target="ort-cpu", keep=("2", "5"))
    assert in_bytes == set()
    assert f"Plain float32 is {said}: nncompress export MODEL -o FILE.onnx --target ort-cpu" in notes


@pytest.mark.parametrize("keep", [(), ("2", "5")])
def test_what_a_target_does_not_need_rounded_is_said_of_rounded_layers(net, machine, monkeypatch, keep):
    machine(slow=9)
    monkeypatch.setattr(apply, "rounded_for_one", lambda *_: "rounded for one")
    in_bytes, _, notes = quantized(net, keep=keep)
    assert (in_bytes == set()) == bool(keep)
    assert ("rounded for one" in notes) == bool(in_bytes)


def test_with_max_drop_both_keep_layers_in_float(net, machine):
    machine(slow=3)
    in_bytes, said, _ = quantized(net, max_drift=1e-6)
    assert in_bytes == set()
    assert re.fullmatch(r"left in float: int8 takes 1\.(49|50|51)x there", said["0"])
    assert said["2"] == "left in float by --max-drift"


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"target": "tensorrt"}, "latencies for tensorrt cannot be measured here"),
        ({"target": "xnnpack"}, "single layers cannot be timed in xnnpack"),
        ({"target": "ort-cpu", "mode": "dynamic"}, "layers are timed for --mode static"),
    ],
)
def test_what_cannot_be_timed_is_rounded_and_that_is_said(net, options, why):
    in_bytes, _, notes = quantized(net, **options)
    assert "5" in in_bytes
    assert f"every layer is rounded, whether that is faster in {options['target']} or not: {why}" in notes


def test_a_target_that_is_not_installed_is_said(net, monkeypatch):
    monkeypatch.setattr("nncompress.extras.installed", lambda extra: False)
    in_bytes, _, notes = quantized(net, target="openvino")
    assert in_bytes == {"0", "2", "5"}
    assert "--target openvino needs openvino, which is not installed" in notes


def test_every_layer_is_about_static():
    with pytest.raises(UsageError, match="--every-layer is about"):
        Quantize(mode="dynamic", every_layer=True)
