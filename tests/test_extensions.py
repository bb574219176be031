"""What another package adds is usable by name everywhere; one that is broken is named, and disturbs nobody.

The packages are really installed: a module and its metadata in a folder of sys.path. The one that works is
the one that docs/extending.md shows.
"""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import typer
from documents import arguments_of, lines_of

import nncompress
from nncompress.analysis.importance import CRITERIA
from nncompress.cli import main
from nncompress.cli.app import build
from nncompress.cli.table import help_text
from nncompress.cli.work.bench_candidates import from_targets
from nncompress.data import open_data
from nncompress.data.sources.python import SOURCES
from nncompress.errors import ExitCode, ExtensionError, UsageError
from nncompress.passes import PASSES
from nncompress.passes.prune_nodes import options as prune_nodes
from nncompress.recipe import parse_pass, read_recipe
from nncompress.targets import OURS, TARGETS, for_file
from nncompress.targets.written_for import PROPERTY, notes

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs/extending.md").read_text()


def install(folder, monkeypatch, name, code, groups, version="1.2"):
    """A module `name` and the metadata of a distribution that offers `groups`: group -> {name: object}."""
    module = name.replace("-", "_")
    (folder / f"{module}.py").write_text(code)
    info = folder / f"{module}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    lines = []
    for group, points in groups.items():
        lines += [f"[{group}]", *(f"{key} = {place}" for key, place in points.items()), ""]
    (info / "entry_points.txt").write_text("\n".join(lines))
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, module, raising=False)


def block(marker, language):
    return re.search(rf"<!-- {re.escape(marker)} -->\n```{language}\n(.+?)```", PAGE, re.S).group(1)


@pytest.fixture
def shrink_tools(tmp_path_factory, monkeypatch):
    project = tomllib.loads(block("pyproject", "toml"))["project"]
    folder = tmp_path_factory.mktemp("site")
    code = block("shrink_tools.py", "python")
    install(folder, monkeypatch, project["name"], code, project["entry-points"], project["version"])
    return folder


@pytest.fixture
def model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(20, 32), torch.nn.ReLU(), torch.nn.Linear(32, 3))
    nncompress.export(nncompress.load(net.eval(), input="1x20"), "model.pt2")
    return "model.pt2"


def run(*arguments):
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    return ended.value.code


def test_a_pass_of_another_package_is_a_command(shrink_tools, model, capsys):
    assert run("clip", model, "--deviations", "1.5", "--json") == 0
    (step,) = json.loads(capsys.readouterr().out)["steps"]
    assert step["pass"] == "clip"
    assert step["settings"] == {"deviations": 1.5}
    weight = nncompress.load("model.clip.pt2").tensor("0.weight")
    original = nncompress.load(model).tensor("0.weight")
    bound = 1.5 * float(original.std())
    torch.testing.assert_close(weight, original.clamp(-bound, bound))
    assert not torch.equal(weight, original)


def test_half_of_its_data_is_half_of_what_its_place_gives(shrink_tools, tmp_path, monkeypatch):
    """It gets what is written behind the colon, but for `half`, which is ours."""
    asked = []
    monkeypatch.setitem(SOURCES._own, "written", lambda place: asked.append(place) or np.zeros((8, 3)))
    for place, wanted in {
        "8?half=1": "8",
        "a b?x=1&half=2&x=2&y": "a b?x=1&x=2&y",
        "?half=1": "",
    }.items():
        assert len(open_data(f"written:{place}")) == 4
        assert asked.pop() == wanted
    assert len(open_data("noise:12?half=2")) == 6


def test_every_line_that_the_page_shows_is_one_that_the_commands_take(shrink_tools):
    commands = typer.main.get_command(build()).commands
    lines = lines_of(PAGE)
    assert len(lines) > 5
    for name, *arguments in map(arguments_of, lines):
        for text in commands[name].make_context(name, arguments).params.get("passes") or ():
            parse_pass(text)


def test_it_is_in_the_help_and_in_its_own(shrink_tools, capsys):
    assert "  clip           a pass of shrink-tools 1.2" in help_text()
    assert run("clip", "--help") == 0
    said = capsys.readouterr().out
    assert "--deviations" in said
    assert "A pass of shrink-tools 1.2" in " ".join(said.split())


def test_it_is_a_recipe_entry_and_has_a_name_in_python(shrink_tools, model, tmp_path):
    recipe = tmp_path / "r.toml"
    recipe.write_text('[[pass]]\nname = "clip"\ndeviations = 1.0\n')
    assert read_recipe(recipe) == [parse_pass("clip:deviations=1")] == [PASSES["clip"](deviations=1)]
    smaller = nncompress.compress(nncompress.load(model), ["clip:deviations=1"])
    assert "clip" in json.dumps(smaller.history[-1], default=str)
    with pytest.raises(UsageError, match="--deviations is out of range"):
        parse_pass("clip:deviations=-1")


def test_a_criterion_of_another_package_decides_what_goes(shrink_tools, model, capsys):
    assert run("prune-nodes", model, "--criterion", "peak", "--ratio", "0.25", "--json") == 0
    (step,) = json.loads(capsys.readouterr().out)["steps"]
    removed = step["changes"][0]["numbers"]["removed"]
    first, second = (nncompress.load(model).tensor(f"{i}.weight").detach().abs() for i in (0, 2))
    bias = nncompress.load(model).tensor("0.bias").detach().abs()
    scores = torch.stack([first.amax(1), second.amax(0), bias]).amax(0)
    assert sorted(removed) == sorted(scores.argsort()[:8].tolist())
    assert run("prune-nodes", "--help") == 0
    assert "peak" in capsys.readouterr().out


def test_data_and_a_metric_of_another_package(shrink_tools, model, capsys):
    assert run("eval", model, "--data", "noise:50", "--metric", "margin", "--json") == 0
    result = json.loads(capsys.readouterr().out)["models"][0]["result"]
    x = torch.randn(50, 20, generator=torch.Generator().manual_seed(0))
    y = x[:, :3].argmax(1)
    scores = nncompress.load(model).outputs_of(x)[0].detach().double().numpy()
    own = scores[np.arange(50), y]
    scores[np.arange(50), y] = -np.inf
    lead = own - scores.max(1)
    assert result["metric"] == "margin"
    assert result["value"] == pytest.approx(lead.mean(), abs=1e-6)
    assert run("eval", model, "--data", "noise:50", "--metric", "margin") == 0
    assert "margin" in capsys.readouterr().out


def test_a_runtime_of_another_package_is_measured(shrink_tools, model, capsys):
    arguments = ("--runtime", "onnxruntime,reference", "--time", "0.2", "--json")
    assert run("bench", model, *arguments) == 0
    candidates = json.loads(capsys.readouterr().out)["runs"][0]["candidates"]
    assert [candidate["runtime"].split()[0] for candidate in candidates] == ["ONNX", "onnx"]
    assert candidates[1]["runtime"] == f"onnx {onnx.__version__} reference"


def test_a_target_of_another_package_is_quantized_for_checked_in_its_runtime(
    shrink_tools, model, monkeypatch, capsys
):
    there = ("--target", "reference-cpu", "--json")
    assert run("quantize", model, "--data", "noise:60", *there) == 0
    (step,) = json.loads(capsys.readouterr().out)["steps"]
    assert any("ONNX reference takes no others" in note for note in step["notes"])
    assert run("export", "model.quantize.pt2", "-o", "small.onnx", *there) == 0
    assert json.loads(capsys.readouterr().out)["runtime"] == f"onnx {onnx.__version__} reference"
    kept = {each.key: each.value for each in onnx.load("small.onnx").metadata_props}
    assert json.loads(kept["nncompress.target"])["target"] == "reference-cpu"
    assert notes(kept, "reference") == ()
    (note,) = notes(kept, "onnxruntime")
    assert "it was written for reference-cpu" in note
    assert from_targets("ort-cpu,reference-cpu", "cpu", "onnxruntime") == ("cpu", "onnxruntime,reference")
    monkeypatch.setattr("nncompress.benchmarking.latency.target.speeds", lambda: {"ort-cpu": 1e-3})
    assert run("targets", "--json") == 0
    assert "reference-cpu" in [each["name"] for each in json.loads(capsys.readouterr().out)["targets"]]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("name='other'", "the target calls itself 'other'"),
        ("suffixes=('.bin',)", "its files have to be"),
        ("runtime='nowhere'", "there is no runtime 'nowhere'"),
        ("extra='nothing'", "no extra 'nothing'"),
        ("device='cuda'", "is on the 'cpu', not 'cuda'"),
        ("rewrites=('mine',)", "its rewrites may be"),
        ("title=no_such_name", "no_such_name"),
    ],
)
def test_a_broken_target_is_named_where_it_is_used_and_only_there(change, reason, tmp_path, monkeypatch):
    code = f"""
from dataclasses import replace
from nncompress.targets import OURS
place = replace(OURS[0], **{{"name": "place", "suffixes": (".onnx",), **dict({change})}})
"""
    install(tmp_path, monkeypatch, "bad-tools", code, {"nncompress.targets": {"place": "bad_tools:place"}})
    with pytest.raises(ExtensionError, match=r"the target place of bad-tools 1\.2 cannot be used") as refused:
        for_file(".onnx", "place")
    assert reason in refused.value.got
    assert "place" in TARGETS
    assert TARGETS.usable() == list(OURS)
    assert notes({PROPERTY: '{"target": "place"}'}, "onnxruntime") == ()


def test_doctor_lists_what_is_added(shrink_tools, capsys):
    assert run("doctor", "--json") == 0
    found = json.loads(capsys.readouterr().out)["extensions"]
    assert {(each["kind"], each["name"]) for each in found} == {
        ("pass", "clip"),
        ("criterion", "peak"),
        ("data source", "noise"),
        ("metric", "margin"),
        ("runtime", "reference"),
        ("target", "reference-cpu"),
    }
    assert {(each["package"], each["fault"]) for each in found} == {("shrink-tools 1.2", "")}


PASS = """
from dataclasses import dataclass
from nncompress.passes import Pass, option
@dataclass(frozen=True)
class Bad(Pass):
    name = "bad"
    summary = "does not work"
"""
BROKEN = {
    "cannot be imported": ("import no_such_module\n", "No module named 'no_such_module'"),
    "ends the process": ("raise SystemExit(0)\n", "SystemExit"),
    "has no such object": ("", "has no attribute 'Bad'"),
    "no pass": ("Bad = 3\n", "3 is not a class derived from"),
    "another name": (PASS.replace('"bad"', '"good"'), "the class calls itself 'good'"),
    "no summary": (PASS.replace("summary", "_unused"), "no summary"),
    "no dataclass": (PASS.replace("@dataclass(frozen=True)", ""), "no dataclass of its own"),
    "an option that all have": (f"{PASS}    limit: int = option(1, help='x')\n", "--limit"),
    "an option without a text": (f"{PASS}    size: int = 3\n", "size: an option is declared by"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_pass_is_named_with_its_package_and_breaks_no_other_command(
    fault, tmp_path, model, monkeypatch, capsys
):
    code, reason = BROKEN[fault]
    install(tmp_path, monkeypatch, "bad-tools", code, {"nncompress.passes": {"bad": "bad_tools:Bad"}}, "0.3")
    assert run("bad", model) == ExitCode.EXTENSION
    said = capsys.readouterr().err
    assert said.startswith("error: the pass bad of bad-tools 0.3 cannot be used")
    assert reason in said
    assert "pip uninstall bad-tools" in said
    assert "Traceback" not in said
    assert run("inspect", model) == 0
    assert run("prune", model, "--std", "0.1") == 0
    assert run("nothing") == ExitCode.USAGE
    assert "bad" in help_text()


def test_a_defect_in_its_code_is_not_called_ours(tmp_path, model, monkeypatch, capsys):
    code = f"{PASS}\n    def apply(self, model, context):\n        return [][0]\n"
    install(tmp_path, monkeypatch, "bad-tools", code, {"nncompress.passes": {"bad": "bad_tools:Bad"}})
    assert run("bad", model) == ExitCode.EXTENSION
    said = capsys.readouterr().err
    assert "IndexError" in said
    assert "a defect of bad-tools 1.2" in said


def test_a_criterion_that_gives_other_scores_than_one_per_unit_is_refused(
    tmp_path, model, monkeypatch, capsys
):
    code = """
import numpy as np
from nncompress.analysis.importance import Criterion, scored
short = Criterion(scored(lambda s: {c.name: np.zeros(c.size - 1) for c in s.choices}), "", False)
missing = Criterion(scored(lambda s: {}), "", False)
unclear = Criterion(scored(lambda s: {c.name: np.full(c.size, np.nan) for c in s.choices}), "", False)
"""
    names = ("short", "missing", "unclear", "absent")
    points = {name: f"bad_criteria:{name}" for name in names}
    install(tmp_path, monkeypatch, "bad-criteria", code, {"nncompress.criteria": points})
    for name in names:
        assert run("prune-nodes", model, "--criterion", name, "--ratio", "0.2") == ExitCode.EXTENSION
        assert f"the criterion {name} of bad-criteria 1.2" in capsys.readouterr().err
    assert run("prune-nodes", model, "--criterion", "l1", "--ratio", "0.2") == 0


def test_a_metric_that_is_none_is_refused(tmp_path, model, monkeypatch, capsys):
    install(
        tmp_path,
        monkeypatch,
        "bad-metrics",
        "mean = 3\n",
        {"nncompress.metrics": {"mean": "bad_metrics:mean"}},
    )
    np.savez("x.npz", x=np.zeros((9, 20), np.float32), y=np.zeros(9, np.int64))
    assert run("eval", model, "--data", "x.npz", "--metric", "mean") == ExitCode.EXTENSION
    assert "the metric mean of bad-metrics 1.2" in capsys.readouterr().err
    assert run("eval", model, "--data", "x.npz", "--metric", "none") == ExitCode.USAGE
    assert "mean, or file.py:function" in capsys.readouterr().err


def test_names_of_ours_are_not_replaced_and_that_is_said(tmp_path, model, monkeypatch, capsys):
    points = {"prune": "bad_tools:Bad", "export": "bad_tools:Bad"}
    install(tmp_path, monkeypatch, "bad-tools", PASS, {"nncompress.passes": points})
    assert PASSES["prune"].__module__.startswith("nncompress.")
    assert run("prune", model, "--std", "0.1") == 0
    assert "bad-tools 1.2 adds a pass called prune, too: it is not used" in capsys.readouterr().err
    assert run("export", model, "-o", "small.onnx") == 0


def test_two_packages_with_one_name_are_both_named(tmp_path, model, monkeypatch, capsys):
    for name in ("first-tools", "second-tools"):
        module = name.replace("-", "_")
        install(tmp_path, monkeypatch, name, PASS, {"nncompress.passes": {"bad": f"{module}:Bad"}})
    assert run("bad", model) == ExitCode.EXTENSION
    said = capsys.readouterr().err
    assert "first-tools 1.2, second-tools 1.2" in said


def test_what_is_uninstalled_is_gone(shrink_tools, monkeypatch):
    assert "clip" in PASSES
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p != str(shrink_tools)])
    assert "clip" not in PASSES
    with pytest.raises(KeyError):
        PASSES["clip"]


def test_names_alone_import_nothing(shrink_tools):
    code = (
        "import sys; from nncompress.passes import PASSES;"
        "print(len(PASSES), 'shrink_tools' in sys.modules, 'torch' in sys.modules)"
    )
    environment = {"PYTHONPATH": f"{ROOT}:{shrink_tools}", "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    assert done.stdout.split() == ["10", "False", "False"]


def test_the_criteria_that_the_command_line_knows_are_those_there_are():
    assert prune_nodes.criteria() == ("auto", *CRITERIA)


def test_the_error_says_what_a_name_may_be(tmp_path, monkeypatch):
    install(tmp_path, monkeypatch, "bad-tools", PASS, {"nncompress.passes": {"Bad Name": "bad_tools:Bad"}})
    with pytest.raises(ExtensionError) as refused:
        PASSES["Bad Name"]
    assert "small letters" in refused.value.got


def test_a_shell_that_asks_for_completions_gets_them_and_not_the_help(shrink_tools, monkeypatch, capsys):
    monkeypatch.setenv("_NNCOMPRESS_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "nncompress cl")
    monkeypatch.setenv("COMP_CWORD", "1")
    assert run() == 0
    assert capsys.readouterr().out.split() == ["cluster", "clip"]


def test_a_shell_gets_the_script_that_completes(monkeypatch, capsys):
    monkeypatch.setenv("_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "1")  # the option then names the shell
    assert run("--show-completion", "bash") == 0
    said = capsys.readouterr()
    assert "_NNCOMPRESS_COMPLETE=complete_bash" in said.out
    assert said.err == ""
