"""Queries and keys in int8, for a target that multiplies them so."""

import math
import re

import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn
from torch.nn import functional as F

from nncompress import pipeline
from nncompress.api import dataset
from nncompress.errors import UnsupportedError, UsageError
from nncompress.exporting import write
from nncompress.ir import Model
from nncompress.ir.factors import products
from nncompress.ir.formats.qdq import is_dequantized
from nncompress.ir.graph.ops import op_name
from nncompress.ir.layers.weights import layers
from nncompress.passes import Context, Prune, Quantize
from nncompress.passes.quantize import by_clock, calibrate, choose
from nncompress.results import Estimate


class Attention(nn.Module):
    """`by_hand`, its products are matrix products with a softmax between."""

    def __init__(self, by_hand: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.by_hand = by_hand
        self.q, self.k, self.v, self.out = (nn.Linear(16, 16) for _ in range(4))

    def forward(self, x):
        q, k, v = (each(x).view(x.shape[0], 6, 2, 8).transpose(1, 2) for each in (self.q, self.k, self.v))
        if self.by_hand:
            mixed = torch.matmul(F.dropout(torch.matmul(q, k.mT).softmax(-1), 0.1, self.training), v)
        else:
            mixed = F.scaled_dot_product_attention(q, k, v)
        return self.out(mixed.transpose(1, 2).flatten(2))


SAMPLES = torch.randn(64, 6, 16, generator=torch.Generator().manual_seed(1))


@pytest.fixture(autouse=True)
def exact(monkeypatch):
    """A processor that adds up 8-bit products exactly."""

    class Exact:
        saturates = False

    monkeypatch.setattr(choose, "processor", Exact)


def quantized(module, target="openvino", **options):
    model = Model.from_module(module.eval(), (torch.randn(2, 6, 16),))
    asked = Quantize(every_layer=True, **options)
    small, (step,) = pipeline.run(
        model, [asked], Context(data=dataset(SAMPLES, model), target=target), timing=False
    )
    return model, small, {change.where: change.what for change in step.changes}


@pytest.mark.parametrize("by_hand", [False, True])
def test_queries_and_keys_are_rounded_and_what_a_softmax_weights_is_not(by_hand):
    model, small, said = quantized(Attention(by_hand))
    (product,) = products(model)
    (rounded,) = products(small)
    assert said[product.name] == ("int8 factors" if by_hand else "int8 queries and keys")
    assert all(map(is_dequantized, rounded.factors))
    last = [n for n in small.graph.nodes if op_name(n) in ("matmul", "scaled_dot_product_attention")][-1]
    assert not is_dequantized(last.args[1 if by_hand else 2])  # the values
    x = torch.randn(256, 6, 16, generator=torch.Generator().manual_seed(2))
    _, without, _ = quantized(Attention(by_hand), "openvino", keep=(product.name,))
    exact, found, layers_only = (each.outputs_of(x)[0] for each in (model, small, without))
    moved = (layers_only - exact).norm()  # by weights and inputs, of as many bits
    assert 0 < (found - layers_only).norm() < moved < 0.1 * exact.norm()


def test_they_are_signed_bytes_with_the_zero_point_0(tmp_path):
    _, small, _ = quantized(Attention())
    write(small, tmp_path / "m.onnx")
    graph = onnx.load(tmp_path / "m.onnx").graph
    stored = {each.name: numpy_helper.to_array(each) for each in graph.initializer}
    zeros = [stored[node.input[2]] for node in graph.node if node.op_type == "QuantizeLinear"]
    signed = [zero for zero in zeros if zero.dtype == "int8"]
    assert len(signed) == 2
    assert not any(zero.any() for zero in signed)


class Shared(nn.Module):
    """What a layer reads after a relu, and what has no negative half there, is multiplied as well."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x):
        h = self.a(x).relu()
        return self.b(h), torch.matmul(h, h.mT)


def test_layers_keep_their_grid_for_what_is_multiplied_too():
    _, small, _ = quantized(Shared())
    (product,) = products(small)
    assert [factor.args[1:] for factor in product.factors] == [product.factors[0].args[1:]] * 2
    assert all(factor.args[2:] == (0, -128, 127, torch.int8) for factor in product.factors)
    (read,) = (layer.data for layer in layers(small) if layer.name == "b")
    assert read.args[2:] == (0, 0, 255, torch.uint8)


class Itself(nn.Module):
    def forward(self, x):
        return F.scaled_dot_product_attention(x, x, x) + F.scaled_dot_product_attention(
            x, x.cos(), x.sin(), x[..., :6]
        )


def test_what_is_value_or_mask_as_well_is_let_be():
    model = Model.from_module(Itself(), (torch.randn(2, 6, 16),))
    (product,) = products(model)
    assert op_name(product.factors[1]) == "cos"


def test_the_mobile_format_takes_both_grids(tmp_path):
    class Joined(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.a, self.b, self.c = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1), nn.Conv2d(8, 2, 1)

        def forward(self, x):
            a, b = self.a(x).relu(), self.b(x)
            return self.c(torch.cat([a, b], 1)), torch.matmul(a, b)

    pytest.importorskip("executorch")
    model = Model.from_module(Joined().eval(), (torch.randn(2, 3, 8, 8),))
    context = Context(data=dataset(torch.randn(32, 3, 8, 8), model), target="openvino")
    small, _ = pipeline.run(model, [Quantize(every_layer=True)], context, timing=False)
    assert write(small, tmp_path / "m.pte").relative_error < 0.1


@pytest.mark.parametrize("target", [None, "ort-cpu", "tensorrt"])
def test_other_targets_multiply_floats(target):
    _, small, _ = quantized(Attention(), target)
    (product,) = products(small)
    assert not any(map(is_dequantized, product.factors))


def test_where_sums_of_bytes_overflow_they_stay_floats(monkeypatch):
    class Saturates:
        saturates = True

    monkeypatch.setattr(choose, "processor", Saturates)
    _, small, said = quantized(Attention())
    assert not any(map(is_dequantized, next(products(small)).factors))
    assert not any("queries" in what for what in said.values())


def test_keep_takes_their_name():
    model, small, said = quantized(Attention(), keep=("scaled_dot*",))
    (product,) = products(model)
    assert said[product.name] == "left in float by --keep"
    assert not any(map(is_dequantized, next(products(small)).factors))
    with pytest.raises(UsageError, match="names no layer"):
        quantized(Attention(), target="ort-cpu", keep=("scaled_dot*",))


def test_exclude_does_not_take_a_name_that_means_nothing_to_the_pass():
    model = Model.from_module(Attention().eval(), (torch.randn(2, 6, 16),))
    with pytest.raises(UsageError, match="names no layer"):
        pipeline.run(model, [Prune(sparsity=0.5, exclude=("scaled_dot*",))], Context(), timing=False)


def test_rounded_again_they_are_as_they_were():
    _, small, _ = quantized(Attention())
    again, (step,) = pipeline.run(
        small,
        [Quantize(every_layer=True)],
        Context(data=dataset(SAMPLES, small), target="openvino"),
        timing=False,
    )
    assert str(again.graph) == str(small.graph)
    assert {change.what for change in step.changes} == {"skipped: quantized already"}


def test_where_drift_is_bounded_they_may_be_what_stays_in_float(monkeypatch):
    monkeypatch.setattr(calibrate, "ROUGH", math.inf)  # which would leave it in float before that

    class Sharp(Attention):
        """The largest entries of queries and keys meet nothing: rounding loses all that matters."""

        def forward(self, x):
            outlier = torch.zeros(8).index_fill(0, torch.tensor([0]), 1e4)
            q, k, v = (each(x).view(x.shape[0], 6, 2, 8).transpose(1, 2) for each in (self.q, self.k, self.v))
            q = q + outlier
            k = k * (outlier == 0)
            return self.out(F.scaled_dot_product_attention(3 * q, 3 * k, v).transpose(1, 2).flatten(2))

    _, small, said = quantized(Sharp(), max_drift=0.05)
    (name,) = (product.name for product in products(small))
    assert said[name] == "left in float by --max-drift"
    assert said["q"].startswith("int8")


@pytest.mark.parametrize("by_hand", [False, True])
def test_outliers_that_one_grid_does_not_hold_leave_a_product_in_float(by_hand):
    """At no change of the function: what is a hundred times larger in queries is as much smaller in keys."""

    class Planted(Attention):
        def __init__(self) -> None:
            super().__init__(by_hand)
            with torch.no_grad():
                for layer, times in ((self.q, 100), (self.k, 0.01)):
                    layer.weight[[0, 8]] *= times
                    layer.bias[[0, 8]] *= times

    model, small, said = quantized(Planted())
    (product,) = products(model)
    assert re.fullmatch(r"left in float: 8 bits of what it multiplies move it by \d+%", said[product.name])
    assert not any(map(is_dequantized, next(products(small)).factors))
    x = torch.randn(64, 6, 16, generator=torch.Generator().manual_seed(4))
    exact, found = (each.outputs_of(x)[0] for each in (model, small))
    assert (found - exact).norm() < 0.1 * exact.norm()


def test_the_clock_leaves_them_in_float_where_the_model_is_faster_so(monkeypatch):
    class Clocked:
        def __init__(self, *_):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def glance(self, other):
            (product,) = products(other)
            share = 0.6 if all(map(is_dequantized, product.factors)) else 0.5
            return Estimate(share, share, share)

    monkeypatch.setattr(by_clock, "ModelLatency", Clocked)
    monkeypatch.setattr(by_clock.Int8Cut, "least", lambda *_: (set(), 0.0))

    class Times:
        layers, untimed, unkept = {}, {}, ""

        def conversion(value):
            return by_clock.Times(0.0, 0.0)

    monkeypatch.setattr(by_clock, "int8_times", lambda *_: Times)
    model = Model.from_module(Attention().eval(), (torch.randn(2, 6, 16),))
    context = Context(data=dataset(SAMPLES, model), target="openvino")
    small, (step,) = pipeline.run(model, [Quantize()], context, timing=False)
    assert not any(map(is_dequantized, next(products(small)).factors))
    assert "with its products of activations in" in " ".join(step.notes)
    said = {change.where: change.what for change in step.changes}
    assert "the model is faster so" in said[next(products(small)).name]


def test_where_no_layer_multiplies_integers_and_nothing_could_be_timed_products_are_rounded(monkeypatch):
    class Looked(nn.Module):
        """A table, whose rows are stored in 8 bits and computed with in floats."""

        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.table = nn.Embedding(20, 16)

        def forward(self, ids):
            h = self.table(ids)
            return torch.matmul(h, h.cos().mT)

    class Clocked:
        def __init__(self, *_):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def glance(self, other):
            raise UnsupportedError("it does not run there")

    class Times:
        layers, untimed, unkept = {}, {}, ""

        def conversion(value):
            return by_clock.Times(0.0, 0.0)

    monkeypatch.setattr(by_clock, "ModelLatency", Clocked)
    monkeypatch.setattr(by_clock.Int8Cut, "least", lambda *_: (set(), 0.0))
    monkeypatch.setattr(by_clock, "int8_times", lambda *_: Times)
    ids = torch.randint(0, 20, (32, 6), generator=torch.Generator().manual_seed(3))
    model = Model.from_module(Looked().eval(), (ids[:2],))
    context = Context(data=dataset(ids, model), target="openvino")
    small, (step,) = pipeline.run(model, [Quantize()], context, timing=False)
    assert all(map(is_dequantized, next(products(small)).factors))
    assert "not timed in OpenVINO: it does not run there" in " ".join(step.notes)
