"""Tracing by torch.export: what it cannot do is one message."""

from __future__ import annotations

import pytest
import torch
from torch.export import Dim

import nncompress
from nncompress.errors import ModelFileError, NNCompressError, UnsupportedError
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


@pytest.mark.parametrize(
    "computed",
    [
        lambda h, chosen: torch.take_along_dim(h, chosen, 1),
        lambda h, chosen: h.take_along_dim(chosen[:, :, :1], dim=-2),
        lambda h, chosen: torch.take_along_dim(h, torch.tensor([[[1], [0]]]), 1) + chosen.sum(),
        lambda h, chosen: torch.take_along_dim(h[0], chosen[0].flatten()).expand(h.shape[0], 6),
        lambda h, chosen: torch.cat([torch.take_along_dim(h, chosen[:, :0], 1), h], 1),
        lambda h, chosen: torch.kron(h, chosen[0, 0] + 1.0),
        lambda h, chosen: torch.kron(torch.ones(2, 2, 1), h),
    ],
)
def test_functions_that_torch_traces_with_plain_sizes_keep_the_batch_free(computed):
    class Net(torch.nn.Linear):
        def forward(self, x):
            h = super().forward(x)
            return computed(h, h[:, :2].argsort(1))

    net = Net(3, 3).eval()
    model = Model.from_module(net, (torch.randn(2, 4, 3),))
    for batch in (1, 5):
        x = torch.randn(batch, 4, 3)
        torch.testing.assert_close(model(x), net(x))


@pytest.mark.parametrize(
    "computed",
    [
        lambda h: torch.take_along_dim(h, h.argsort(1), 1, out=torch.empty_like(h)),
        lambda h: torch.kron(h, torch.ones(2), out=h.new_empty(2, 6)),
    ],
)
def test_functions_that_write_to_a_given_tensor_are_taken(computed):
    class Net(torch.nn.Linear):
        def forward(self, x):
            return computed(super().forward(x).detach())

    net, x = Net(3, 3).eval(), torch.randn(2, 3)
    torch.testing.assert_close(Model.from_module(net, (x,))(x), net(x))


class Decides(torch.nn.Linear):
    """Which of two ops runs, its input decides."""

    def forward(self, x):
        h = super().forward(x)
        return torch.cond(x.sum() > 0, lambda t: t * 2, lambda t: t - 1, (h,))


def test_a_branch_that_an_input_decides_is_refused_by_its_name(tmp_path):
    """Its run was refused as one of the wrong shape, its graph in a traceback, its file as unsafe."""
    net, x = Decides(4, 4).eval(), torch.randn(2, 4)
    torch.export.save(torch.export.export(net, (x,)), tmp_path / "m.pt2")
    with pytest.raises(ModelFileError) as refusal:
        nncompress.load(tmp_path / "m.pt2")
    assert "torch.where" in refusal.value.got
    with pytest.raises(UnsupportedError, match=r"torch's cond") as traced:
        nncompress.load(net, input=x)
    assert "torch.where" in traced.value.remedy


class OneLength(torch.nn.Module):
    """Of sequences of six, in batches of any size; of two where `pairs`."""

    def __init__(self, pairs: bool) -> None:
        super().__init__()
        self.pairs = pairs
        self.last = torch.nn.Linear(24, 3)

    def forward(self, x):
        return self.last(x.reshape(2 if self.pairs else x.shape[0], 24))


def test_a_dim_that_was_asked_to_be_free_is_free_or_refused():
    dims = {0: Dim("batch"), 1: Dim("time", min=1, max=64)}
    with pytest.raises(UnsupportedError, match="time as dynamic") as caught:
        Model.from_module(OneLength(False).eval(), (torch.randn(2, 6, 4),), dynamic_shapes=(dims,))
    assert caught.value.remedy.endswith("state time = 6")
    fixed = {0: Dim("batch"), 1: Dim.STATIC}
    model = Model.from_module(OneLength(False).eval(), (torch.randn(2, 6, 4),), dynamic_shapes=(fixed,))
    assert model.inputs[0].shape == ("batch", 6, 4)


def test_a_batch_that_becomes_fixed_is_told_with_the_reason():
    with pytest.warns(UserWarning, match="the batch is fixed .* batch as dynamic"):
        model = Model.from_module(OneLength(True).eval(), (torch.randn(2, 6, 4),))
    assert model.fixed_batch == 2


def test_a_dtype_that_an_op_has_no_kernel_for_is_said_to_be_that() -> None:
    class Spectrum(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.fft.rfft(x).abs()

    with pytest.raises(UnsupportedError, match="Half") as refused:
        Model.from_module(Spectrum(), (torch.randn(2, 8, dtype=torch.float16),))
    assert "use float32" in refused.value.remedy
    Model.from_module(Spectrum(), (torch.randn(2, 8),))
