import json
import zipfile

import onnx
import pytest
import safetensors
import safetensors.torch
import torch
from torch import nn

from nncompress.errors import ModelFileError, UsageError
from nncompress.exporting import write
from nncompress.exporting.check.onnxruntime import open_session
from nncompress.ir import Model
from nncompress.loading import load_model
from nncompress.runtimes import open_artifact
from tests.ir.formats.test_packed import of_values, sparse


class Net(nn.Module):
    """One layer per form of storage, and a tied one."""

    def __init__(self) -> None:
        super().__init__()
        self.few = nn.Conv2d(3, 128, 5)
        self.zeros = nn.Linear(128, 128)
        self.both = nn.Linear(128, 128)
        self.channel = nn.Linear(128, 128)
        self.short = nn.Linear(128, 128)
        self.dense = nn.Linear(128, 20)
        self.tied = nn.Linear(128, 128, bias=False)
        self.tied.weight = self.zeros.weight
        with torch.no_grad():
            self.few.weight.copy_(of_values(self.few.weight.shape, 16))
            self.zeros.weight.copy_(sparse(self.zeros.weight, 0.8))
            self.both.weight.copy_(sparse(of_values((128, 128), 7), 0.8, seed=2))
            self.channel.weight.copy_(torch.stack([of_values((128,), 2, seed=i) for i in range(128)]) / 10)
            self.short.weight.copy_(torch.stack([of_values((128,), 4, seed=i).half() for i in range(128)]))

    def forward(self, x):
        x = self.few(x).mean((2, 3))
        x = torch.tanh(self.short(torch.tanh(self.channel(self.both(self.zeros(x))))))
        return self.dense(self.tied(x))


def build() -> nn.Module:
    torch.manual_seed(5)
    return Net()


@pytest.fixture(scope="module")
def model() -> Model:
    return Model.from_module(build().eval(), (torch.randn(2, 3, 8, 8),))


@pytest.mark.parametrize("suffix", [".pt2", ".safetensors"])
def test_each_storage_is_smaller_and_loads_back_the_same(model, tmp_path, suffix):
    sizes = []
    options = {} if suffix == ".pt2" else {"arch": f"{__file__}:build", "input_shapes": "1x3x8x8"}
    for storage in ("plain", "packed", "entropy"):
        path = tmp_path / f"{storage}{suffix}"
        write(model, path, storage=storage)
        sizes.append(path.stat().st_size)
        loaded = load_model(path, **options)
        assert loaded.state_dict().keys() == model.state_dict().keys()
        for name, tensor in model.state_dict().items():
            assert torch.equal(loaded.tensor(name), tensor)
        x = torch.randn(3, 3, 8, 8)
        assert torch.equal(loaded(x), model(x))
    assert sizes[0] > 1.4 * sizes[1] > 1.4 * sizes[2]


def test_torch_itself_reads_the_deflated_pt2(model, tmp_path):
    write(model, tmp_path / "m.pt2", storage="entropy")
    program = torch.export.load(tmp_path / "m.pt2")
    x = torch.randn(3, 3, 8, 8)
    assert torch.equal(program.module()(x)[0], model(x))
    with zipfile.ZipFile(tmp_path / "m.pt2") as archive:
        assert archive.testzip() is None


def test_onnx_stores_every_form_packed_and_computes_the_same(model, tmp_path):
    write(model, tmp_path / "plain.onnx", storage="plain")
    report = write(model, tmp_path / "packed.onnx")
    assert report.max_abs_diff < 1e-5
    plain, packed = ((tmp_path / f"{n}.onnx").stat().st_size for n in ("plain", "packed"))
    assert packed < 0.5 * plain
    graph = onnx.load(tmp_path / "packed.onnx").graph
    assert {"few", "both", "channel", "short", "dense"} <= {node.name for node in graph.node}
    stored = [t.name for t in graph.initializer if t.name.startswith(("zeros.weight", "tied.weight"))]
    assert len(stored) == 2  # a bitmap and values, once
    halves = [t.name for t in graph.initializer if t.data_type == onnx.TensorProto.FLOAT16]
    assert len(halves) == 1
    assert halves[0].startswith("short.weight")
    runs = [open_artifact(tmp_path / f"{n}.onnx").run for n in ("plain", "packed")]
    x = torch.randn(3, 3, 8, 8).numpy()
    torch.testing.assert_close(runs[0](x)[0], runs[1](x)[0])


def test_onnx_runtime_computes_the_lookups_once(model, tmp_path):
    """What is left after its constant folding is what is left of the plain file."""
    left = []
    for storage in ("plain", "packed"):
        path, optimised = tmp_path / f"{storage}.onnx", tmp_path / f"{storage}.optimised.onnx"
        write(model, path, storage=storage)
        open_session(path, save_to=optimised)
        left.append(sorted(node.op_type for node in onnx.load(optimised).graph.node))
    assert left[0] == left[1]


def test_storages_that_a_format_lacks(model, tmp_path):
    with pytest.raises(UsageError, match="entropy"):
        write(model, tmp_path / "m.onnx", storage="entropy")
    assert not list(tmp_path.iterdir())


def test_a_deflated_bomb_is_refused(model, tmp_path):
    good, bomb = tmp_path / "good.pt2", tmp_path / "bomb.pt2"
    write(model, good)
    with zipfile.ZipFile(good) as source, zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        for info in source.infolist():
            data = source.read(info)
            archive.writestr(info.filename, bytes(10**7) if "weight_0" in info.filename else data)
    with pytest.raises(ModelFileError, match="32 times"):
        load_model(bomb)


def rewrite(path, edit):
    with safetensors.safe_open(path, framework="pt") as file:
        header = dict(file.metadata())
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    edit(header, tensors)
    safetensors.torch.save_file(tensors, path, metadata=header)


def changed(key, edit):
    def change(header, tensors):
        entry = json.loads(header[key])
        edit(entry)
        header[key] = json.dumps(entry)

    return change


HOSTILE = {
    "a bomb": changed("deflated", lambda e: e.update({"few.weight.codes": ["uint8", [10**12]]})),
    "a short claim": changed("deflated", lambda e: e.update({"few.weight.codes": ["uint8", [9]]})),
    "a class for a dtype": changed("deflated", lambda e: e.update({"few.weight.codes": ["Tensor", [9]]})),
    "a giant": changed("packed", lambda e: e.update({"few.weight": [10**6, 10**6]})),
    "a negative size": changed("packed", lambda e: e.update({"few.weight": [-1, 3]})),
    "no parts": changed("packed", lambda e: e.update({"other": [2]})),
    "no stream": changed("deflated", lambda e: e.update({"other": ["uint8", [2]]})),
    "noise": lambda header, tensors: tensors["both.weight.codes"].random_(0, 255),
}


@pytest.mark.parametrize("attack", HOSTILE)
def test_safetensors_whose_packing_lies_is_refused(model, tmp_path, attack):
    path = tmp_path / "m.safetensors"
    write(model, path, storage="entropy")
    rewrite(path, HOSTILE[attack])
    with pytest.raises(ModelFileError, match="damaged"):
        load_model(path, arch=f"{__file__}:build", input_shapes="1x3x8x8")
