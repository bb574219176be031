"""A `.pt2` is run on tensors without memory before any of its operators runs on real ones."""

from __future__ import annotations

import pytest
import torch
from pt2_members import GRAPH, edit_json, write
from torch import nn

from nncompress.errors import ModelFileError
from nncompress.exporting import write_pt2
from nncompress.ir import Model
from nncompress.loading import load_model
from nncompress.loading.pt2.archive import read_pt2
from nncompress.loading.pt2.shapes import Unfit, check_shapes


class _Bag(nn.Module):
    def __init__(self, offsets: torch.Tensor | None) -> None:
        super().__init__()
        self.bag, self.offsets = nn.EmbeddingBag(10, 4), offsets

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.bag(x) if self.offsets is None else self.bag(x.flatten(), self.offsets)


def exported(module: nn.Module, x: torch.Tensor):
    return torch.export.export(module.eval(), (x,))


def test_embedding_bag_runs_over_rows_and_not_over_offsets_of_the_file():
    rows = torch.randint(0, 10, (2, 3))
    check_shapes(exported(_Bag(None), rows))
    with pytest.raises(Unfit, match="no regular steps"):
        check_shapes(exported(_Bag(torch.tensor([0, 2])), rows))


class _CountedBag(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(10, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.bag(x[:, 0], torch.arange(len(x)))


@pytest.mark.parametrize("length", [1, 2])
@pytest.mark.parametrize("options", [{}, {"padding_idx": 0}, {"mode": "sum"}, None])
def test_an_embedding_bag_that_was_written_here_is_read_here(options, length, tmp_path):
    bag = _CountedBag() if options is None else nn.EmbeddingBag(10, 4, **options)
    module = nn.Sequential(bag, nn.Linear(4, 2)).eval()
    rows = torch.tensor([[0, 3], [7, 0]])[:, :length]
    write_pt2(Model.from_module(module, (rows,)), tmp_path / "m.pt2")
    torch.testing.assert_close(load_model(tmp_path / "m.pt2")(rows), module(rows))


def test_weight_that_does_not_fit_its_operator_is_refused():
    program = exported(nn.Sequential(nn.Linear(4, 3), nn.LSTM(3, 2)), torch.randn(2, 4))
    check_shapes(program)
    program.state_dict["0.weight"] = nn.Parameter(torch.zeros(5, 7))
    with pytest.raises(Unfit, match="linear"):
        check_shapes(program)


def test_norms_of_another_number_of_channels_are_refused():
    layer = torch.nn.utils.weight_norm(nn.Linear(4, 3))
    program = exported(layer, torch.randn(2, 4))
    check_shapes(program)
    program.state_dict["weight_g"] = nn.Parameter(torch.ones(1000, 1))
    with pytest.raises(Unfit, match="weight_norm"):
        check_shapes(program)


def test_input_of_an_absurd_size_is_refused(members, tmp_path):
    hostile = dict(members)

    def edit(document):
        sizes = document["graph_module"]["graph"]["tensor_values"]["x"]["sizes"]
        sizes[1] = {"as_int": 2**40}

    edit_json(hostile, GRAPH, edit)
    with pytest.raises(ModelFileError, match="1099511627776"):
        read_pt2(write(hostile, tmp_path / "huge.pt2"))


@pytest.mark.parametrize(
    "text",
    [
        "Max(" + ", ".join(f"s{i}" for i in range(800)) + ")",
        "Mul(" + ", ".join(f"Add(s{i}, s{i + 1})" for i in range(0, 40, 2)) + ")",
        "PowByNatural(Add(s0, s1), 16)" + " * PowByNatural(Add(s0, s1, s2), 16)",
        "-" * 60 + "s0",
        "s0" + " + s1" * 1500,
    ],
)
def test_expression_that_would_take_minutes_is_refused(text, members, tmp_path):
    hostile = dict(members)

    def edit(document):
        sizes = document["graph_module"]["graph"]["tensor_values"]["x"]["sizes"]
        sizes[0] = {"as_expr": {"expr_str": text, "hint": {"as_int": 2}}}

    edit_json(hostile, GRAPH, edit)
    with pytest.raises(ModelFileError, match="the symbolic size"):
        read_pt2(write(hostile, tmp_path / "expression.pt2"))


def test_statistics_that_are_given_by_name_are_checked_too():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(3)

        def forward(self, x):
            mean, var = self.norm.running_mean, self.norm.running_var
            return torch.ops.aten._native_batch_norm_legit_no_training.default(
                x, None, None, running_mean=mean, running_var=var, momentum=0.1, eps=1e-5
            )[0]

    program = exported(Net(), torch.randn(2, 3))
    check_shapes(program)
    program.state_dict["norm.running_var"] = torch.ones(1000)
    with pytest.raises(Unfit, match="running_var"):
        check_shapes(program)


@pytest.mark.parametrize(
    ("cut", "arguments"),
    [
        (lambda w: w.unbind(), ()),
        (lambda w: w.split(1), (1,)),
        (lambda w: w.chunk(50), (10**12,)),
        (lambda w: w.tensor_split(2), (10**12,)),
    ],
)
def test_a_tensor_cut_into_a_million_pieces_is_refused(cut, arguments):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.zeros(50))

        def forward(self, x):
            return cut(self.w)[0] + x

    program = exported(Net(), torch.ones(2, 1))
    check_shapes(program)
    program.state_dict["w"] = torch.zeros(10**6)
    node = next(n for n in program.graph.nodes if n.op == "call_function")
    node.args = (node.args[0], *arguments)
    with pytest.raises(Unfit, match="pieces"):
        check_shapes(program)


@pytest.mark.parametrize(("name", "hostile"), [("memory_format", -5), ("dtype", 2**40), ("layout", 99)])
def test_numbers_in_the_place_of_an_enum_are_refused(name, hostile):
    """`memory_format=-5` is a segmentation fault."""

    class Net(nn.Module):
        def forward(self, x):
            return x + torch.zeros_like(x, memory_format=torch.contiguous_format, dtype=torch.float32)

    program = exported(Net(), torch.ones(2, 2))
    check_shapes(program)
    node = next(n for n in program.graph.nodes if "zeros_like" in n.name)
    node.kwargs = {**node.kwargs, name: hostile}
    with pytest.raises(Unfit, match=name):
        check_shapes(program)
