"""What commands print with --json, and recipes, are as docs/schemas says: no key lacks, none is unknown."""

import importlib.util
import json
import tomllib

import jsonschema
import numpy as np
import pytest
import torch
from documents import ROOT
from printed import SCHEMAS, check

import nncompress
from nncompress.cli import main
from nncompress.errors import UsageError
from nncompress.passes import PASSES
from nncompress.recipe import read_recipe


def generator():
    spec = importlib.util.spec_from_file_location("schemas", ROOT / "fixtures/schemas.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("schemas")
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(20, 32), torch.nn.ReLU(), torch.nn.Linear(32, 3))
    nncompress.export(nncompress.load(net.eval(), input="1x20"), folder / "model.pt2")
    nncompress.export(nncompress.load(net, input="1x20"), folder / "weights.safetensors")
    x = np.random.default_rng(0).normal(size=(64, 20)).astype(np.float32)
    np.savez(folder / "data.npz", x=x, y=x[:, :3].argmax(1))
    np.savez(folder / "targets.npz", x=x, y=x[:, :3])
    return folder


def test_the_files_are_what_the_records_say():
    made = generator().files()
    assert {path.name: path.read_text(encoding="utf-8") for path in SCHEMAS.glob("*.json")} == made, (
        "python fixtures/schemas.py writes them anew"
    )
    for text in made.values():
        jsonschema.Draft202012Validator.check_schema(json.loads(text))


COMMANDS = {
    "inspect": "inspect model.pt2",
    "units": "inspect model.pt2 --units",
    "spectra": "inspect model.pt2 --spectrum",
    "forecast": "inspect model.pt2 --target ort-cpu",
    "a pass": "prune model.pt2 --std 0.5 -o a.pt2",
    "passes": "compress model.pt2 --pass prune:sparsity=0.2 --pass prune-nodes:ratio=0.2 --pass quantize "
    "--data data.npz -o a.onnx",
    "stream": "quantize weights.safetensors --stream --mode weights -o streamed",
    "plan": "compress model.pt2 --pass prune:sparsity=0.2 --pass quantize --data data.npz --dry-run",
    "nothing changed": "prune model.pt2 --sparsity 0 -o a.pt2",
    "export": "export model.pt2 -o b.onnx",
    "eval": "eval model.pt2 --data data.npz",
    "eval, paired": "eval model.pt2 model.pt2 --data data.npz",
    "eval, regression": "eval model.pt2 model.pt2 --data targets.npz",
    "eval, unlabelled": "eval model.pt2 model.pt2",
    "bench": "bench model.pt2 model.pt2 --time 0.2 --data data.npz",
    "train": "train model.pt2 --data data.npz --val data.npz --epochs 1 -o c.pt2",
    "cycle": "cycle model.pt2 --data data.npz --epochs 1 --max-cycles 1 -o d.pt2",
    "architectures": "new --list",
    "new": "new alternatives-separable -o e.pt2",
    "doctor": "doctor",
    "targets": "targets",
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", COMMANDS)
def test_what_a_command_prints_is_as_its_schema_says(name, folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    with pytest.raises(SystemExit) as ended:
        main([*COMMANDS[name].split(), "--json"])
    said = capsys.readouterr()
    assert ended.value.code == 0, said.err
    document = json.loads(said.out)
    check(document)
    if name == "passes":  # whose file in int8 is measured beside float32
        assert document["output"]["int8_speedup"] > 0


RECIPES = {
    "of every pass": "".join(f'[[pass]]\nname = "{name}"\n' for name in PASSES),
    "with options": '[[pass]]\nname = "prune"\nsparsity = 0.5\nexclude = ["head*"]\n',
    "of no such pass": '[[pass]]\nname = "prunes"\n',
    "of no such option": '[[pass]]\nname = "prune"\nspars = 0.5\n',
    "out of range": '[[pass]]\nname = "prune"\nsparsity = 1.5\n',
    "no such choice": '[[pass]]\nname = "prune-nodes"\ncriterion = "best"\n',
    "with another table": '[other]\nname = "prune"\n',
    "without a name": "[[pass]]\nsparsity = 0.5\n",
    "empty": "",
}


@pytest.mark.parametrize("name", RECIPES)
def test_the_schema_of_recipes_takes_what_the_reader_takes(name, tmp_path):
    (tmp_path / "r.toml").write_text(RECIPES[name])
    try:
        read_recipe(tmp_path / "r.toml")
        taken = True
    except UsageError:
        taken = False
    schema = json.loads((SCHEMAS / "recipe.json").read_text())
    assert jsonschema.Draft202012Validator(schema).is_valid(tomllib.loads(RECIPES[name])) == taken
    assert taken == (name in ("of every pass", "with options"))
