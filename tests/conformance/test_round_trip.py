"""What comes in is what goes out: load, save, load is the same model bit for bit, on every axis."""

import pytest
import torch
from networks import model
from torch import nn

from nncompress.exporting import write
from nncompress.ir import Model
from nncompress.ir.graph.state import changed_tensors
from nncompress.loading import load_model


class Net(nn.Module):
    """A layer in front of what `body(self, h, x)` makes of the hidden value and the input."""

    def __init__(self, body, dtype):
        super().__init__()
        self.a = nn.Linear(8, 8).to(dtype)
        self.register_buffer("cache", torch.zeros(6, 8, dtype=dtype))
        self.register_buffer("calls", torch.tensor(0))
        self.register_buffer("mask", torch.full((6, 6), float("-inf"), dtype=dtype).triu(1))
        self.register_buffer("scale", torch.linspace(0.5, 2, 8).to(dtype), persistent=False)
        self.side = torch.linspace(1, 2, 8).to(dtype)  # neither parameter nor buffer
        self._body = body

    def forward(self, x):  # [N, 6, 8]
        return self._body(self, self.a(x), x)


def counts(m, h, x):
    m.calls += 1
    return h * m.calls


def caches(m, h, x):
    m.cache.copy_(m.cache * 0.5 + h.mean(0) * 0.5)
    return h + m.cache


def caches_a_slice(m, h, x):
    m.cache[2:4] = h[0, :2]
    return h @ m.cache.mT


def changes_its_input(m, h, x):
    x.sub_(x.mean(-1, keepdim=True))
    return m.a(x) + h


def view_then_in_place(m, h, x):
    keys = h.mT
    h.relu_()
    return torch.softmax(h @ keys, -1)


AXES = {
    "float16": (lambda m, h, x: h.relu(), torch.float16),
    "bfloat16": (lambda m, h, x: h.relu(), torch.bfloat16),
    "float64": (lambda m, h, x: h.relu(), torch.float64),
    "integers": (lambda m, h, x: (h.argmax(-1), (h * 10).to(torch.int32), h.topk(2).indices), torch.float32),
    "booleans": (lambda m, h, x: h > 0, torch.float32),
    "without dims": (lambda m, h, x: (h.mean(), h.argmax()), torch.float32),
    "infinity": (lambda m, h, x: h.masked_fill(h < 0, float("-inf")).clamp(max=float("inf")), torch.float32),
    "infinities in float16": (lambda m, h, x: h.masked_fill(h < 0, float("inf")), torch.float16),
    "not a number": (lambda m, h, x: torch.where(h < 0, float("nan"), h), torch.float32),
    "mask": (lambda m, h, x: ((h @ h.mT) + m.mask).softmax(-1), torch.float32),
    "side input": (lambda m, h, x: h * m.side, torch.float32),
    "side input in half": (lambda m, h, x: h * m.side * m.scale, torch.float16),
    "not persistent": (lambda m, h, x: h * m.scale, torch.float32),
    "view, then in place": (view_then_in_place, torch.float32),
    "counter": (counts, torch.float32),
    "cache": (caches, torch.float32),
    "cache in bfloat16": (caches, torch.bfloat16),
    "cache of slices": (caches_a_slice, torch.float32),
    "input changed": (changes_its_input, torch.float32),
    "complex inside": (lambda m, h, x: torch.fft.rfft(h).abs(), torch.float32),
    "complex output": (lambda m, h, x: torch.fft.rfft(h), torch.float32),
    "empty output": (lambda m, h, x: (h, h[:, :0]), torch.float32),
    "the input": (lambda m, h, x: (h, x), torch.float32),
    "output twice": (lambda m, h, x: (h, h), torch.float32),
    "named outputs": (lambda m, h, x: {"scores": h, "best": h.amax(-1)}, torch.float32),
}


def everything(made):
    stored = {**dict(made.graph_module.named_parameters()), **dict(made.graph_module.named_buffers())}
    said = (made.inputs, made.outputs, made.dynamic, made.history, made.metadata, changed_tensors(made.graph))
    inputs = made.example_inputs(3)
    with torch.no_grad():
        return stored, said, made.outputs_of(*(x.clone() for x in inputs))


def bits(tensor):
    return tensor.detach().reshape(-1).view(torch.uint8).numpy().tobytes(), tensor.dtype, tensor.shape


def unchanged_by_saving(made, path, storage):
    write(made, path, storage=storage)
    before, after = everything(made), everything(load_model(path))
    assert {n: bits(t) for n, t in after[0].items()} == {n: bits(t) for n, t in before[0].items()}
    assert after[1] == before[1]
    assert [bits(t) for t in after[2]] == [bits(t) for t in before[2]]


@pytest.mark.parametrize("axis", AXES)
def test_a_saved_model_is_the_one_that_was_loaded(axis, tmp_path):
    body, dtype = AXES[axis]
    torch.manual_seed(0)
    net = Net(body, dtype).eval()
    x = torch.randn(3, 6, 8).to(dtype)
    made = Model.from_module(net, (x.clone(),))
    with torch.no_grad():
        got, wanted = made.outputs_of(x.clone()), torch.utils._pytree.tree_leaves(net(x.clone()))
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)
    unchanged_by_saving(made, tmp_path / "m.pt2", "packed")


@pytest.mark.parametrize("name", ["tied", "residual", "two-inputs", "two-outputs"])
def test_a_network_of_few_values_comes_back_from_every_storage(name, tmp_path):
    made = model(name)
    with torch.no_grad():
        for parameter in made.graph_module.parameters():
            if parameter.dim() > 1:
                parameter.copy_((parameter * 4).round() / 4)  # zeros of both signs
    made.history = [{"pass": "cluster", "settings": {"k": 4}, "before": {"macs": 1}, "after": {"macs": 1}}]
    made.metadata = {"note": [1, 2.5, None, "ü"]}
    for storage in ("plain", "entropy"):
        unchanged_by_saving(made, tmp_path / "m.pt2", storage)
