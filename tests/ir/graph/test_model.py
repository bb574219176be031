import io

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import nncompress
from nncompress.analysis.cost import cost
from nncompress.analysis.couplings import find_couplings
from nncompress.errors import UsageError
from nncompress.exporting import write
from nncompress.ir import Model
from nncompress.ir.layers.weights import layers
from nncompress.loading import load_model


class Residual(nn.Module):
    """In-place ops, a strided and zero-padded shortcut, tied weights, dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(8)
        self.conv = nn.Conv2d(8, 16, 3, stride=2, padding=1)
        self.first = nn.Linear(16, 5)
        self.second = nn.Linear(16, 5)
        self.second.weight = self.first.weight
        self.drop = nn.Dropout(0.5)

    def forward(self, x):
        x = F.relu(self.bn(self.stem(x)), inplace=True)
        y = self.conv(x)
        y += F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4))
        y = self.drop(F.relu_(y).mean((2, 3)))
        return self.first(y), self.second(y)


def make() -> tuple[nn.Module, Model]:
    torch.manual_seed(0)
    module = Residual().eval()
    module.bn.running_mean.normal_()
    return module, Model.from_module(module, (torch.randn(2, 3, 12, 12),))


def test_same_function_at_any_batch():
    module, model = make()
    for batch in (1, 2, 7):
        x = torch.randn(batch, 3, 12, 12)
        for ours, theirs in zip(model(x), module(x)):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    assert model.inputs[0].shape == ("batch", 3, 12, 12)


class Gathering(nn.Module):
    """Inputs under one starred name, as wrappers of other models have them, and by name."""

    def forward(self, first, *others, scale=None):
        return (first + sum(others)) * (1 if scale is None else scale)


@pytest.mark.parametrize(("count", "names"), [(1, ()), (3, ()), (2, ("scale",))])
def test_starred_and_named_inputs_keep_the_batch_dynamic(count, names):
    def inputs(batch):
        return [torch.randn(batch, 4) for _ in range(count)], {name: torch.randn(batch, 4) for name in names}

    args, kwargs = inputs(2)
    model = Model.from_module(Gathering().eval(), tuple(args), kwargs=kwargs)
    assert [spec.shape for spec in model.inputs] == [("batch", 4)] * (count + len(names))
    for batch in (1, 5):
        args, kwargs = inputs(batch)
        torch.testing.assert_close(model(*args, *kwargs.values()), Gathering()(*args, **kwargs))


def test_owns_its_weights():
    module, model = make()
    x = torch.randn(2, 3, 12, 12)
    before = model(x)[0]
    with torch.no_grad():
        module.first.weight.zero_()
    torch.testing.assert_close(model(x)[0], before, rtol=0, atol=0)


def test_in_place_ops_become_functional():
    _, model = make()
    mutable = [n for n in model.graph.nodes if n.op == "call_function" and getattr(n.target, "_schema", None)]
    assert mutable
    assert not [n for n in mutable if n.target._schema.is_mutable]


def test_tied_weights_stay_tied_through_refresh_and_file():
    _, model = make()
    model.refresh()
    file = io.BytesIO()
    torch.export.save(model.exported_program(), file)
    file.seek(0)
    loaded = Model.from_exported(torch.export.load(file))
    for each in (model, loaded):
        assert each.tensor("first.weight") is each.tensor("second.weight")
        linear = [layer for layer in layers(each) if layer.kind == "linear"]
        assert linear[0].weight.name == linear[1].weight.name


def test_training_flag_updates_running_statistics_and_drops():
    _, model = make()
    before = model.tensor("bn.running_mean").clone()
    x = torch.randn(16, 3, 12, 12)
    model.set_training(True)
    assert not torch.equal(model(x)[0], model(x)[0])
    assert not torch.equal(model.tensor("bn.running_mean"), before)
    model.set_training(False)
    torch.testing.assert_close(model(x)[0], model(x)[0], rtol=0, atol=0)


def test_layers_are_named_after_their_module():
    _, model = make()
    assert [(layer.name, layer.kind) for layer in layers(model)] == [
        ("stem", "conv2d"),
        ("conv", "conv2d"),
        ("first", "linear"),
        ("first#2", "linear"),
    ]


def test_copy_is_independent():
    _, model = make()
    twin = model.copy()
    with torch.no_grad():
        twin.tensor("stem.weight").zero_()
    assert model.tensor("stem.weight").abs().sum() > 0


class GradMode(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 4)

    def forward(self, x):
        with torch.no_grad():
            table = torch.arange(4, dtype=torch.float32) * 2
        return self.a(x) + table


def test_grad_mode_wrappers_are_inlined():
    module = GradMode()
    with torch.enable_grad():
        model = Model.from_module(module, (torch.randn(2, 4),))
    x = torch.randn(3, 4)
    torch.testing.assert_close(model(x), module(x))
    assert not [n for n in model.graph.nodes if "wrap_with" in str(n.target)]


class WindowWrite(nn.Module):
    def forward(self, x):
        y = x * 1
        window = y[:, :1]
        window.add_(1.0)
        return y


def test_a_write_through_a_window_keeps_its_meaning():
    module = WindowWrite()
    model = Model.from_module(module, (torch.randn(2, 4),))
    x = torch.randn(3, 4)
    torch.testing.assert_close(model(x.clone()), module(x.clone()))


class Keywords(nn.Module):
    """As HuggingFace models are exported: inputs by keyword, ids reshaped before they index."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(30, 4)

    def forward(self, *, ids, weights):
        return {"sum": (self.embed(ids.view(-1, 6)) * weights["each"][..., None]).sum(1)}


def test_inputs_by_keyword_and_nested_become_positional():
    module = Keywords().eval()
    batch = torch.export.Dim("batch", min=1, max=64)
    inputs = {"ids": torch.zeros(2, 6, dtype=torch.int64), "weights": {"each": torch.ones(2, 6)}}
    shapes = {"ids": {0: batch}, "weights": {"each": {0: batch}}}
    program = torch.export.export(module, (), inputs, dynamic_shapes=shapes)
    program._example_inputs = None  # as a file has none
    model = Model.from_exported(program)
    ids, each = model.example_inputs(batch=5)
    assert ids.max() > 2  # drawn from the whole vocabulary
    torch.testing.assert_close(model(ids, each), module(ids=ids, weights={"each": each})["sum"])
    assert model.outputs == ("sum",)


class WriteAfterDropout(nn.Module):
    """In eval mode dropout gives its input itself, so the write reaches x as well."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.5)

    def forward(self, x):
        x = x * 2
        y = self.drop(x)
        y.add_(1.0)
        return x + y


def test_a_write_through_dropout_keeps_its_meaning():
    module = WriteAfterDropout().eval()
    model = Model.from_module(module, (torch.randn(2, 4),))
    x = torch.randn(3, 4)
    torch.testing.assert_close(model(x), module(x))


@pytest.mark.parametrize("name", ["code", "graph", "print_readable"])
def test_a_module_named_like_an_attribute_of_the_graph_is_renamed(name, tmp_path):
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            setattr(self, name, nn.Linear(4, 8))
            setattr(self, name + "_", nn.Linear(8, 8))  # the name next best is taken
            self.out = nn.Linear(8, 2)

        def forward(self, x):
            return self.out(F.relu(getattr(self, name + "_")(F.relu(getattr(self, name)(x)))))

    torch.manual_seed(0)
    module, x = Named().eval(), torch.randn(3, 4)
    model = Model.from_module(module, (x,))
    assert torch.equal(model(x), module(x))
    assert [layer.name for layer in layers(model)] == [name + "__", name + "_", "out"]
    nncompress.export(model, tmp_path / "named.pt2")
    again = nncompress.load(tmp_path / "named.pt2")
    again.refresh()
    assert torch.equal(again(x), module(x))


@pytest.mark.parametrize("kind", [nn.Dropout, nn.Dropout2d, nn.AlphaDropout, nn.FeatureAlphaDropout])
def test_every_op_that_draws_when_training_is_switched(kind):
    x = -torch.rand(2, 3, 8, 8)
    model = Model.from_module(nn.Sequential(kind(), nn.Conv2d(3, 2, 1)).eval(), (x,))
    for training in (True, False, True):
        model.set_training(training)
        assert torch.equal(model(x), model(x)) is not training


def static(batch: int) -> Model:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 2)).eval()
    return Model.from_module(module, (torch.randn(batch, 3, 8, 8),), dynamic_batch=False)


def test_a_fixed_batch_counts_for_one_record_and_takes_no_other():
    model, dynamic = static(6), make()[1]
    assert (model.fixed_batch, dynamic.fixed_batch) == (6, None)
    assert cost(model).macs == 36 * 4 * 27 + 2 * 4 * 36
    assert find_couplings(model).macs() == cost(model).macs
    with pytest.raises(UsageError, match="batches of 6 only") as caught:
        model(torch.randn(2, 3, 8, 8))
    assert "[2, 3, 8, 8]" in caught.value.got


class Averages(nn.Module):
    """Its graph holds the number of positions that it was traced with."""

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return x.sum((1, 2)) / (x.shape[1] * x.shape[2]) + y.sum(1)


def test_other_sizes_than_it_was_traced_with_are_refused_by_model_and_module():
    model = Model.from_module(Averages(), (torch.randn(2, 8, 8), torch.randn(2, 3)))
    x, y = torch.randn(5, 8, 8), torch.randn(5, 3)
    for run in (model, model.to_module()):
        torch.testing.assert_close(run(x, y), Averages()(x, y))
        for wrong in (torch.randn(5, 16, 8), torch.randn(5, 1, 8), torch.randn(8, 8)):
            with pytest.raises(UsageError, match="loaded with") as caught:
                run(wrong, y)
            assert (caught.value.got, caught.value.expected.split(": ")[1]) == (
                f"x of shape {list(wrong.shape)}",
                "float32[batch, 8, 8]" + ("" if wrong.ndim < 3 else ", batch = 5"),
            )
        with pytest.raises(UsageError, match="loaded with") as caught:
            run(x, y[:1])  # would be computed, by broadcasting
        assert caught.value.expected == "y: float32[batch, 3], batch = 5"
    with pytest.raises(UsageError, match="loaded with"):
        model.to_module()(x=x[:, :4], y=y)


def test_it_says_what_it_is():
    _, model = make()
    model.history.append(
        {"pass": "prune-nodes", "settings": {"macs": 0.5}, "before": {"macs": 9000}, "after": {"macs": 4500}}
    )
    text = repr(model)
    for part in ("float32[batch, 3, 12, 12]", "output_1", "prune-nodes macs=0.5: MACs 9,000 -> 4,500"):
        assert part in text
    stored = [*model.graph_module.parameters(), *model.graph_module.buffers()]  # tied ones once
    assert f"stored:     {sum(t.numel() for t in stored):,} values" in text


def test_what_the_module_does_not_save_is_part_of_the_state_all_the_same():
    class Unsaved(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("kept", torch.rand(4), persistent=False)
            self.plain = torch.rand(4)

        def forward(self, x):
            return x * self.kept + self.plain + torch.tensor([1.0, 2.0, 3.0, 4.0])

    x = torch.randn(2, 4)
    exported = torch.export.export(Unsaved(), (x,))
    for made in (Model.from_module(Unsaved(), (x,)), Model.from_exported(exported)):
        buffers = {name for name, _ in made.graph_module.named_buffers()}
        assert len(buffers) == 3
        assert buffers == set(made.state_dict()) == set(made.copy().state_dict())


def test_a_running_statistic_is_a_buffer_and_no_buffer_wants_a_gradient():
    """As files made by hand have them: `train` and copies of such a graph ended in a traceback."""
    norm = torch.nn.BatchNorm1d(4)
    variance = norm._buffers.pop("running_var")
    norm.register_parameter("running_var", torch.nn.Parameter(variance))
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), norm).eval()
    net.register_buffer("scale", torch.ones(4, requires_grad=True))
    net.forward = lambda x: norm(net[0](x)) * net.scale * net.scale
    x = torch.randn(5, 3)
    model = Model.from_module(net, (x,))
    with torch.no_grad():
        torch.testing.assert_close(model(x), net(x))
    assert {name for name, _ in model.graph_module.named_parameters()} == {
        *("0.weight", "0.bias", "1.weight", "1.bias")
    }
    assert not any(buffer.requires_grad for buffer in model.graph_module.buffers())
    model.copy()


def test_arguments_that_a_file_gives_by_name_are_given_by_position():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(1, 2, 3, padding=1)

        def forward(self, x):
            return self.conv(x).relu()

    x = torch.randn(2, 1, 4, 4)
    program = torch.export.export(Net().eval(), (x,))
    node = next(n for n in program.graph.nodes if "conv2d" in str(n.target))
    names = [a.name for a in node.target._schema.arguments]
    given = dict(zip(names, node.args))
    given.pop("stride", None)  # which leaves a gap
    node.args, node.kwargs = (), given
    program.graph_module.recompile()
    model = Model.from_exported(program)
    assert [len(n.args) for n in model.graph.nodes if "conv2d" in str(n.target)] == [
        names.index("padding") + 1
    ]
    torch.testing.assert_close(model(x), program.module()(x))


class Named(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, Image, mask_2D, größe, 入力, X, x):
        return self.layer(Image) * mask_2D + größe + 入力 + X - x


def test_inputs_are_called_as_forward_calls_them_in_every_file(tmp_path):
    """Upper case and other scripts, too: torch.export knows neither. Of X and x, one keeps its name."""
    xs = tuple(torch.randn(6, 2, 4))
    model = Model.from_module(Named(), xs)
    names = [spec.name for spec in model.inputs]
    assert names[:4] == ["Image", "mask_2D", "größe", "入力"]
    assert len(set(names)) == 6
    model.refresh()
    for suffix in (".pt2", ".onnx"):
        write(model, tmp_path / f"m{suffix}")
        read = load_model(tmp_path / f"m{suffix}")
        assert [spec.name for spec in read.inputs] == names
        torch.testing.assert_close(read(*xs), model(*xs))
    write(load_model(tmp_path / "m.onnx"), tmp_path / "again.pt2")
    assert [spec.name for spec in load_model(tmp_path / "again.pt2").inputs] == names
    torch.export.save(torch.export.export(Named(), xs), tmp_path / "torch.pt2")
    load_model(tmp_path / "torch.pt2")
