"""What a layer takes now, in int8 and at half the width, told by a clock that goes by weights."""

import io
import json
from pathlib import Path

import pytest
import torch
from records import images
from rich.console import Console
from scripted_machine import script
from torch import nn

from nncompress import export
from nncompress.benchmarking.latency import layer as layer_latency
from nncompress.benchmarking.latency.forecast import Forecast, forecast, half
from nncompress.benchmarking.latency.layer_file import LayerShape
from nncompress.cli import main
from nncompress.files import remembered
from nncompress.ir import Model
from nncompress.passes import Context, Quantize
from nncompress.progress import NullProgress
from nncompress.report.forecast import forecast as shown
from nncompress.runtimes import open_artifact


@pytest.fixture(autouse=True)
def _machine(monkeypatch, tmp_path):
    monkeypatch.setattr(layer_latency, "MOST_ROUNDS", 10)
    monkeypatch.setattr(remembered, "cache_folder", lambda: tmp_path / "cache")
    script(monkeypatch)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.depth = nn.Conv2d(16, 16, 3, groups=16)
        self.grouped = nn.Conv2d(16, 16, 3, groups=4)
        self.up = nn.ConvTranspose2d(16, 8, 2, stride=2)
        self.head = nn.Linear(8, 10)
        self.odd = nn.Conv1d(10, 5, 2, padding="same")

    def forward(self, x):
        x = self.up(self.grouped(self.depth(self.stem(x).relu())))
        return self.odd(self.head(x.mean((2, 3)))[:, :, None].expand(-1, -1, 3))


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Model.from_module(Net().eval(), (torch.randn(2, 3, 8, 8),))


@pytest.mark.parametrize("target", ["ort-cpu", "openvino"])
def test_times_are_those_of_the_layers_shapes(net, target):
    """10 ns per weight in floats, 2.5 in int8; every chain is really run."""
    found = forecast(net, target, NullProgress())
    weights = {"stem": 432, "depth": 144, "grouped": 576, "up": 512, "head": 80}
    assert [row.name for row in found.layers] == list(weights)
    for row in found.layers:
        assert row.seconds == pytest.approx(10e-9 * weights[row.name], rel=0.05)
        assert row.share == pytest.approx(
            row.seconds / max(found.seconds, 10e-9 * sum(weights.values())), rel=0.05
        )
        assert row.int8 == pytest.approx(row.seconds / 4, rel=0.05)
        if row.name == "grouped":
            assert row.half is None
        else:
            assert row.half == pytest.approx(row.seconds / 2, rel=0.05)
    assert found.skipped == (("odd", "its padding is not the same on both sides"),)
    assert not found.unkept


def test_bfloat16_is_timed_where_the_processor_has_it(net, monkeypatch):
    assert all(row.bf16 is None for row in forecast(net, "ort-cpu", NullProgress()).layers)
    assert "computes floats in float32" in forecast(net, "ort-cpu", NullProgress()).no_bf16
    monkeypatch.setattr(
        "nncompress.benchmarking.latency.forecast.floats_in", lambda where, precision: precision
    )
    opened = []

    def opening(path, threads, *, runtime, precision):
        opened.append(precision)
        return open_artifact(path, threads, runtime=runtime)

    monkeypatch.setattr(layer_latency, "open_artifact", opening)
    script(monkeypatch, chain_cost=lambda chain, _: 6e4 if chain[0].precision == "bfloat16" else 1e5)
    found = forecast(net, "openvino", NullProgress())
    assert not found.no_bf16
    assert "bfloat16" in opened
    assert all(row.bf16 == pytest.approx(6e-5, rel=0.05) for row in found.layers)


def test_layers_that_take_more_by_themselves_than_in_the_model_are_shares_of_their_sum(net, monkeypatch):
    script(monkeypatch, chain_cost=lambda chain, _: 2.5e8 if chain[0].precision == "int8" else 1e9)
    found = forecast(net, "openvino", NullProgress())
    assert sum(row.seconds for row in found.layers) > found.seconds
    assert sum(row.share for row in found.layers) == pytest.approx(1.0)
    assert found.saved == pytest.approx(0.75 * found.seconds, rel=0.05)


def test_a_second_forecast_measures_no_layer_again(net, monkeypatch):
    first = forecast(net, "ort-cpu", NullProgress())
    monkeypatch.setattr("nncompress.benchmarking.latency.table.measure", None)
    assert [r.int8 for r in forecast(net, "ort-cpu", NullProgress()).layers] == [r.int8 for r in first.layers]


def test_layers_that_are_int8_are_timed_as_such(net):
    Quantize(keep=("head",)).apply(net, Context(data=images(64, None)))
    rows = {row.name: row for row in forecast(net, "ort-cpu", NullProgress()).layers}
    assert (rows["stem"].precision, rows["stem"].int8) == ("int8", None)
    assert rows["stem"].seconds == pytest.approx(2.5e-9 * 432, rel=0.05)
    assert rows["head"].precision == "float32"


def test_a_model_without_layers_of_its_own_is_not_an_empty_table():
    found = Forecast("ort-cpu", "float32", "", 1e-3, 0.0, (), (), "")
    console = Console(record=True, width=200, file=io.StringIO())
    console.print(shown(found, Path("bare.onnx")))
    assert "no layer with weights" in console.export_text()


def test_one_output_and_groups_have_no_half():
    assert half(LayerShape("MatMul", (8, 1)), (1, 8))[0] is None
    grouped = LayerShape("Conv", (8, 2, 3, 3), (("group", 4),))
    assert half(grouped, (1, 8, 5, 5))[0] is None
    wider = LayerShape("Conv", (16, 1, 3, 3), (("group", 8),))  # two filters for each channel
    narrow, given = half(wider, (1, 8, 5, 5))
    assert (narrow.weight, dict(narrow.attributes)["group"], given) == ((8, 1, 3, 3), 4, (1, 4, 5, 5))


def said(capsys, *arguments):
    with pytest.raises(SystemExit) as ended:
        main(["inspect", *arguments])
    told = capsys.readouterr()
    return ended.value.code, told.out if not ended.value.code else told.err


def test_the_command_shows_it(net, tmp_path, capsys):
    export(net, tmp_path / "m.pt2")
    model = str(tmp_path / "m.pt2")
    code, text = said(capsys, model, "--target", "ort-cpu")
    assert code == 0
    assert "half the width" in text
    assert "odd is not timed: its padding" in text
    code, text = said(capsys, model, "--target", "ort-cpu", "--json")
    assert json.loads(text)["layers"][0]["name"] == "stem"


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("--target", "nowhere"), "there is no such target"),
        (("--target", "tensorrt"), "cannot be measured here"),
        (("--target", "xnnpack"), "single layers cannot be timed"),
        (("--target", "ort-cpu", "--units"), "give one of --units, --spectrum and --target"),
    ],
)
def test_what_cannot_be_forecast_is_refused_before_the_model_is_read(arguments, why, capsys):
    code, text = said(capsys, "none.pt2", *arguments)
    assert code == 2
    assert why in " ".join(text.split())
