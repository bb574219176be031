"""`report` and `--report` as they are typed."""

import json

import numpy as np
import pytest
import runs
import torch
from printed import check

import nncompress
from nncompress.cli import main
from nncompress.errors import ExitCode


def typed(capsys, *words):
    with pytest.raises(SystemExit) as ended:
        main(list(map(str, words)))
    return ended.value.code, capsys.readouterr()


@pytest.fixture
def run(tmp_path):
    (tmp_path / "run.json").write_text(json.dumps(runs.bench()))
    return tmp_path / "run.json"


@pytest.mark.parametrize("suffix", ["html", "md", "json"])
def test_the_name_of_the_file_says_its_format(suffix, run, tmp_path, capsys):
    code, said = typed(capsys, "report", run, "-o", tmp_path / f"r.{suffix}")
    assert code == 0, said.err
    assert f"wrote {tmp_path / f'r.{suffix}'}" in said.err.replace("\n", "")
    text = (tmp_path / f"r.{suffix}").read_text()
    assert text.startswith({"html": "<!doctype html>", "md": "### small.onnx", "json": "{"}[suffix])


def test_documents_here_are_as_their_schemas_say():
    for make in runs.EVERY.values():
        check(make())


def test_what_it_prints_is_as_its_schema_says(tmp_path, capsys):
    files = []
    for kind, make in runs.EVERY.items():
        (tmp_path / kind).write_text(json.dumps(make()))
        files.append(tmp_path / kind)
    code, said = typed(capsys, "report", *files, "--json")
    assert code == 0, said.err
    printed = json.loads(said.out)
    check(printed)
    assert len(printed["sections"]) == len(files)
    assert typed(capsys, "report", *files, "--format", "json")[1].out == said.out


REFUSED = {
    "nowhere to go": (["{run}"], ExitCode.USAGE, "-o report.html"),
    "a page on the terminal": (["{run}", "--format", "html"], ExitCode.USAGE, "-o report.html"),
    "no such format": (["{run}", "-o", "{dir}/r.pdf"], ExitCode.USAGE, ".html, .md or .json"),
    "two formats": (["{run}", "--json", "--format", "md"], ExitCode.USAGE, "--json is --format json"),
    "over its input": (["{run}", "-o", "{run}"], ExitCode.OUTPUT, "is the input"),
    "no such folder": (["{run}", "-o", "{dir}/none/r.html"], ExitCode.OUTPUT, "create the folder"),
    "no such run": (["{dir}/none.json", "-o", "{dir}/r.html"], ExitCode.DATA, "--json > run.json"),
    "no run": (["{dir}", "--format", "md"], ExitCode.DATA, "neither search.json nor cycles.jsonl"),
    "too many": (["{run}"] * 101 + ["--json"], ExitCode.USAGE, "at most 100"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_done_is_refused_in_one_message(what, run, tmp_path, capsys):
    words, code, told = REFUSED[what]
    before = run.read_bytes()
    found, said = typed(capsys, "report", *(word.format(run=run, dir=tmp_path) for word in words))
    assert (found, said.out) == (code, "")
    assert told in said.err
    assert run.read_bytes() == before
    assert not list(tmp_path.glob("r.*"))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(20, 32), torch.nn.ReLU(), torch.nn.Linear(32, 3))
    nncompress.export(nncompress.load(net.eval(), input="1x20"), folder / "m.pt2")
    x = np.random.default_rng(0).normal(size=(64, 20)).astype(np.float32)
    np.savez(folder / "d.npz", x=x, y=x[:, :3].argmax(1))
    return folder


COMMANDS = {
    "a pass": "factorize m.pt2 --macs 0.5 --data d.npz --no-timing -o a.pt2",
    "eval": "eval m.pt2 m.pt2 --data d.npz",
    "sensitivity": "sensitivity m.pt2 --method factorize --folder kept",
    "train": "train m.pt2 --data d.npz --val d.npz --epochs 1 -o t.pt2",
    "cycle": "cycle m.pt2 --data d.npz --epochs 1 --max-cycles 1 -o c.pt2",
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_writes_the_report_that_its_json_makes(name, model, monkeypatch, capsys):
    monkeypatch.chdir(model)
    command = name.split()[-1]
    code, said = typed(capsys, *COMMANDS[name].split(), "--report", f"{command}.json", "--json")
    assert code == 0, said.err
    (model / "run.json").write_text(said.out)
    now = json.loads((model / f"{command}.json").read_text())
    printed = json.loads(typed(capsys, "report", "run.json", "--json")[1].out)
    printed["sections"][0]["source"] = now["sections"][0]["source"]
    assert {**printed, "title": ""} == {**now, "title": ""}


@pytest.mark.parametrize(
    "words", ["--report m.pt2", "--report d.npz", "--report a.txt", "--report b.json -o b.json"]
)
def test_a_report_that_cannot_be_written_is_refused_before_the_work(words, model, monkeypatch, capsys):
    monkeypatch.chdir(model)
    before = {path: path.read_bytes() for path in model.iterdir() if path.is_file()}
    code, said = typed(capsys, *["bench", "m.pt2", "--data", "d.npz"], *words.split())
    assert code in (ExitCode.USAGE, ExitCode.OUTPUT), said
    assert {path: path.read_bytes() for path in model.iterdir() if path.is_file()} == before


def test_a_dry_run_has_no_report(model, monkeypatch, capsys):
    monkeypatch.chdir(model)
    code, said = typed(capsys, *["compress", "m.pt2", "--pass", "prune", "--dry-run", "--report", "dry.html"])
    assert code == ExitCode.USAGE
    assert "--dry-run" in said.err
    assert not (model / "dry.html").exists()
