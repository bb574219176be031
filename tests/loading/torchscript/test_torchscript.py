"""TorchScript archives become graphs that compute the same at any batch; what could run code is refused."""

import io
import pickle
import zipfile
from typing import Dict, List, Optional  # noqa: UP035  TorchScript reads these

import pytest
import torch
from torch import Tensor, nn

from nncompress.errors import ModelFileError, UnsafeFileError, UnsupportedError, UsageError
from nncompress.loading import load_model, load_module
from nncompress.loading.torchscript import interpreter


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        self.blocks = nn.ModuleList([nn.Conv2d(4, 4, 3, padding=1) for _ in range(2)])
        self.fc = nn.Linear(4, 3)

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = x + torch.relu(block(x))
        if x.shape[-1] > 4:
            x = nn.functional.max_pool2d(x, 2)
        n, c, h, w = x.shape
        return self.fc(x.reshape(n, c, h * w).mean(-1))


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1)
        self.out = nn.Linear(8, 2)

    def forward(self, ids):
        return self.out(self.encoder(self.embed(ids)).mean(1))


class Steps(nn.Module):
    """Loops, lists, dicts and an optional input."""

    def __init__(self):
        super().__init__()
        self.cell = nn.GRUCell(3, 4)

    def forward(self, x, mask: Optional[Tensor] = None):  # noqa: UP045
        h = torch.zeros(x.size(0), 4, dtype=x.dtype, device=x.device)
        seen: List[Tensor] = []  # noqa: UP006
        for t in range(x.size(1)):
            h = self.cell(x[:, t], h)
            seen.append(h)
        if mask is not None:
            h = h * mask
        turn = 0
        while turn < 2:
            h = h.tanh()
            turn += 1
        found: Dict[str, Tensor] = {}  # noqa: UP006
        found["all"] = torch.stack(seen, 1)
        found["last"] = h
        return found


class Stream(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(2, 3, 3)
        self.register_buffer("past", torch.zeros(1, 2, 2))

    def forward(self, x):
        y = torch.cat([self.past, x], 2)
        self.past = x[:, :, -2:].clone()
        return self.conv(y)


MODELS = {
    "residual": (Residual, (torch.randn, 2, 8, 8), "1x2x8x8"),
    "words": (Words, (lambda *shape: torch.randint(0, 11, shape), 5), "1x5:int64"),
    "steps": (Steps, (torch.randn, 3, 3), "1x3x3"),
}


def saved(module, path, example=None, freeze=False):
    module.eval()
    script = torch.jit.script(module) if example is None else torch.jit.trace(module, example, strict=False)
    (torch.jit.freeze(script) if freeze else script).save(str(path))
    return path


def outputs(result):
    return torch.utils._pytree.tree_leaves(result)


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("residual", "traced"),
        ("residual", "frozen"),
        ("words", "scripted"),
        ("steps", "traced"),
        ("steps", "scripted"),
    ],
)
def test_the_graph_computes_what_the_module_does_at_any_batch(tmp_path, name, how):
    make, (draw, *shape), stated = MODELS[name]
    module = make()
    example = draw(2, *shape) if how == "traced" else None
    path = saved(module, tmp_path / "model.pt", example, freeze=how == "frozen")
    model = load_model(path, input_shapes=stated)
    assert "batch" in model.dynamic
    for batch in (1, 2, 5):
        x = draw(batch, *shape)
        with torch.no_grad():
            for expected, got in zip(outputs(module(x)), model.outputs_of(x), strict=True):
                torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_weights_keep_their_names_and_inputs_theirs(tmp_path):
    module = Steps()
    model = load_model(saved(module, tmp_path / "model.pt"), input_shapes="1x2x3")
    assert {n for n, _ in model.graph_module.named_parameters()} == {n for n, _ in module.named_parameters()}
    assert [spec.name for spec in model.inputs] == ["x"]
    assert model.outputs == ("all", "last")
    both = load_model(tmp_path / "model.pt", input_shapes="mask:1x4,x:1x2x3")
    assert [spec.name for spec in both.inputs] == ["x", "mask"]


def test_state_stays_state(tmp_path):
    module = Stream()
    model = load_model(saved(module, tmp_path / "model.pt"), input_shapes="1x2x4")
    program = model.exported_program().module()
    for x in (torch.randn(1, 2, 4), torch.randn(1, 2, 4)):
        with torch.no_grad():
            torch.testing.assert_close(program(x)[0], module(x))


def test_moves_to_a_device_and_a_type_are_read(tmp_path):
    class Moves(nn.Module):
        def forward(self, x):
            y = x.to(torch.device("cpu"))
            return y.to(x.device, torch.float32), x.to(torch.float64), x.to(y)

    model = load_model(saved(Moves(), tmp_path / "model.pt"), input_shapes="1x3")
    assert [y.dtype for y in model.outputs_of(torch.ones(2, 3))] == [
        torch.float32,
        torch.float64,
        torch.float32,
    ]


def test_tied_weights_stay_tied(tmp_path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)
            self.b.weight = self.a.weight

        def forward(self, x):
            return self.b(self.a(x))

    model = load_model(saved(Tied(), tmp_path / "model.pt", torch.randn(2, 3)), input_shapes="1x3")
    assert sum(p.numel() for p in model.graph_module.parameters()) == 9 + 3 + 3


def test_one_in_memory_is_taken_too_and_stays_as_it_is():
    script = torch.jit.script(Stream().eval())
    model = load_module(script, input_shapes="1x2x4")
    assert not script.past.any()
    x = torch.randn(1, 2, 4)
    torch.testing.assert_close(model(x), script(x))


def test_without_an_input_it_asks_for_one(tmp_path):
    with pytest.raises(UsageError, match="--input"):
        load_model(saved(Residual(), tmp_path / "model.pt"))


# --- refused ----------------------------------------------------------------------------------------------


def refused(module, tmp_path, stated="1x3", kind=UnsupportedError):
    path = saved(module, tmp_path / "model.pt")
    with pytest.raises(kind) as caught:
        load_model(path, input_shapes=stated)
    return str(caught.value)


def test_an_operator_that_writes_files_is_refused_and_does_not_run(tmp_path):
    class Writes(nn.Module):
        def __init__(self, place: str):
            super().__init__()
            self.place = place

        def forward(self, x):
            if x.size(0) > 1000:
                torch.save(x, self.place)
            return x + 1

    place = tmp_path / "written"
    assert "aten::save (1)" in refused(Writes(str(place)), tmp_path)
    assert not place.exists()


def test_a_file_that_is_mapped_is_refused(tmp_path):
    class Maps(nn.Module):
        def forward(self, x):
            if x.size(0) > 1000:
                x = x + torch.from_file("other", shared=True, size=3)
            return x

    assert "aten::from_file" in refused(Maps(), tmp_path)


def test_code_that_would_run_while_it_is_opened_is_refused(tmp_path):
    class Restores(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(3))

        def forward(self, x):
            return x + self.weight

        @torch.jit.export
        def __getstate__(self):
            return torch.zeros(3), self.training

        @torch.jit.export
        def __setstate__(self, state: tuple[Tensor, bool]):
            self.weight = state[0]
            self.training = state[1]

    assert "__setstate__" in refused(Restores(), tmp_path, kind=UnsafeFileError)


def test_inputs_that_are_no_tensors_are_refused_by_name(tmp_path):
    class Many(nn.Module):
        def forward(self, images: List[Tensor]):  # noqa: UP006
            return images[0]

    assert "'images'" in refused(Many(), tmp_path)


def test_an_endless_loop_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(interpreter, "MOST_STEPS", 100)

    class Endless(nn.Module):
        def forward(self, x):
            while x.size(0) > 0:
                x = x + 1
            return x

    assert "too long" in refused(Endless(), tmp_path)


def test_an_attribute_that_counts_is_refused(tmp_path):
    class Counts(nn.Module):
        def __init__(self):
            super().__init__()
            self.calls = 0

        def forward(self, x):
            self.calls += 1
            return x * self.calls

    assert "'calls'" in refused(Counts(), tmp_path)


def with_member(path, name, content):
    """The archive with one member replaced."""
    with zipfile.ZipFile(path) as old:
        members = {info.filename: old.read(info) for info in old.infolist()}
    with zipfile.ZipFile(path, "w") as new:
        for member, data in members.items():
            new.writestr(member, content(data) if member.endswith(name) else data)


def test_a_tensor_that_shows_more_than_is_stored_is_refused(tmp_path):
    module = nn.Linear(3, 3)
    path = saved(module, tmp_path / "model.pt")
    claims = bytes([pickle.BININT1[0], 9])
    for wrong in (bytes([pickle.BININT1[0], 90]), pickle.BININT + (2**30).to_bytes(4, "little")):
        saved(module, path)
        with_member(path, "/data.pkl", lambda data, wrong=wrong: data.replace(claims, wrong, 1))
        with pytest.raises(ModelFileError, match="damaged"):
            load_model(path, input_shapes="1x3")


@pytest.mark.parametrize("keep", [0.3, 0.9])
def test_a_cut_archive_is_a_message(tmp_path, keep):
    path = saved(nn.Linear(3, 3), tmp_path / "model.pt")
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(ModelFileError):
        load_model(path, input_shapes="1x3")


def test_code_that_does_not_compile_is_a_message(tmp_path):
    path = saved(nn.Linear(3, 3), tmp_path / "model.pt")
    with_member(path, ".py", lambda data: data.replace(b"torch.linear", b"torch.nothing"))
    with pytest.raises(ModelFileError, match="damaged"):
        load_model(path, input_shapes="1x3")


def test_in_memory_bytes_are_a_file_like_any(tmp_path):
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(nn.Linear(3, 2)), buffer)
    (tmp_path / "weights.bin").write_bytes(buffer.getvalue())
    assert load_model(tmp_path / "weights.bin", input_shapes="1x3").outputs == ("output",)
