"""Tracing by torch.export: what it cannot do is one message."""

from __future__ import annotations

import pytest
import torch

import nncompress
from nncompress.errors import NNCompressError, UnsupportedError
from nncompress.ir import Model


class Branches(torch.nn.Module):
    def forward(self, x):
        return x * 2 if x.sum() > 0 else x


def test_the_graph_that_torch_had_so_far_is_not_printed(capfd):
    with pytest.raises(UnsupportedError, match="cannot trace"):
        Model.from_module(Branches(), (torch.randn(2, 3),))
    assert capfd.readouterr() == ("", "")


class WritesToParts(torch.nn.Module):
    def forward(self, x):
        y = x * 2
        first, second = torch.unsafe_chunk(y, 2, 1)
        first.sigmoid_()
        second.mul_(first)
        return y


def test_parts_that_are_written_to_keep_the_batch_free():
    module = WritesToParts()
    model = Model.from_module(module, (torch.randn(2, 4),))
    assert "batch" in model.dynamic
    x = torch.randn(5, 4)
    torch.testing.assert_close(model(x), module(x))


class AddsStored(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.past = torch.nn.Buffer(torch.randn(1, 4))

    def forward(self, x):
        return torch.cat([self.past, x], 1)


def test_a_batch_that_the_network_fixes_at_one_stays_one():
    model = Model.from_module(AddsStored(), (torch.randn(1, 4),))
    assert model.inputs[0].shape == (1, 4)


def test_writes_to_data_that_an_export_does_not_see_are_named():
    class Writes(torch.nn.Linear):
        def forward(self, x):
            x = super().forward(x)
            x.data.mul_(2)
            return x

    with pytest.raises(UnsupportedError, match="cannot trace") as refusal:
        Model.from_module(Writes(4, 3).eval(), (torch.randn(2, 4),))
    assert ".data" in refusal.value.remedy


@pytest.mark.parametrize(
    "transformed",
    [
        lambda h: torch.vmap(lambda row: row * row.mean(-1, keepdim=True))(h),
        lambda h: torch.vmap(lambda a, b: a @ b.T, in_dims=(0, None))(h.new_ones(3, 4, 4).cumsum(1), h).mean(
            0
        ),
        lambda h: torch.func.jvp(torch.tanh, (h,), (torch.ones_like(h),))[1],
    ],
)
def test_function_transforms_are_what_they_compute(transformed):
    class Net(torch.nn.Linear):
        def forward(self, x):
            return transformed(super().forward(x))

    net = Net(4, 4).eval()
    model = Model.from_module(net, (torch.randn(2, 4),))
    x = torch.randn(5, 4)
    torch.testing.assert_close(model(x), net(x))
    assert all("functorch" not in str(node.target) for node in model.graph.nodes)


def test_a_file_with_steps_of_a_function_transform_says_what_makes_operators_of_them(tmp_path):
    class Net(torch.nn.Module):
        def forward(self, x):
            return torch.vmap(torch.sin)(x)

    torch.export.save(torch.export.export(Net(), (torch.randn(2, 4),)), tmp_path / "m.pt2")
    with pytest.raises(NNCompressError, match="run_decompositions"):
        nncompress.load(tmp_path / "m.pt2")
