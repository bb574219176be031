"""`sensitivity` and `optimize` on a small net that was trained: recipes, resuming, workers, the promise."""

import json
import os
import shlex
import shutil

import numpy as np
import pytest
import torch
from printed import check
from scripted_machine import artifact_bytes, script
from torch import nn

import nncompress
from nncompress.api import dataset
from nncompress.cli.app import run
from nncompress.errors import ExitCode, UsageError
from nncompress.ir import Model
from nncompress.ir.formats.samples import samples_of
from nncompress.loading import load_model
from nncompress.passes import Quantize
from nncompress.progress import NullProgress
from nncompress.recipe import read_recipe, recipe_text
from nncompress.report.facts.read import section_of
from nncompress.search import optimize
from nncompress.search.candidates import recipe_key
from nncompress.search.layers.sensitivity import probes
from nncompress.search.optimize import PROMISES
from nncompress.search.promise import shared
from nncompress.search.records import read
from nncompress.search.trial import Judge

SEARCH = ["--data", "val.npz", "--trials", "8", "--max-drop", "3", "--goal", "macs", "--time", "10m"]


def answer(capsys, *arguments):
    code = run(list(arguments))
    out, err = capsys.readouterr()
    return code, out, err


def test_sensitivity_is_measured_once(here, capsys):
    command = ["sensitivity", "m.pt2", "--data", "val.npz", "--folder", "kept", "--json"]
    code, out, _ = answer(capsys, *command)
    first = json.loads(out)
    check(first)
    assert code == 0
    assert first["known"] == 0
    assert {row["method"] for row in first["effects"]} == {"prune-nodes", "factorize", "quantize"}
    worst = [r["error"] for r in first["effects"] if r["method"] == "prune-nodes" and r["where"] == "0"]
    assert worst == sorted(worst)  # the more is removed, the farther the outputs move
    code, out, _ = answer(capsys, *command)
    again = json.loads(out)
    assert (again["measured"], again["known"]) == (0, first["measured"])
    assert again["effects"] == first["effects"]
    code, out, _ = answer(capsys, *command[:-1])
    assert "moves the outputs most" in out
    assert max(map(len, out.splitlines())) <= 80
    code, out, _ = answer(
        capsys, *command, "--method", "prune-nodes", "--seed", "1"
    )  # other random choices: other measurements
    assert json.loads(out)["known"] == 0


@pytest.mark.parametrize("cache", ["read-only", "none"])
def test_a_cache_that_cannot_be_written_costs_no_result(here, capsys, monkeypatch, cache):
    """A file in the place of the folder stands for one that is read-only: root may write to any."""
    (here / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(here / "file"))
    if cache == "none":
        monkeypatch.setattr("nncompress.cli.work.search.sensitivity.cache_folder", lambda: None)
    code, out, err = answer(capsys, "sensitivity", "m.pt2", "--method", "factorize", "--json")
    assert (code, json.loads(out)["known"]) == (0, 0)
    assert "is measured anew next time: " in " ".join(err.split())


def test_sensitivity_without_data_says_so(here, capsys):
    code, out, err = answer(capsys, "sensitivity", "m.pt2", "--folder", "kept", "--method", "factorize")
    assert code == 0
    assert "random inputs" in err
    assert "random inputs" in " ".join(out.split())


def test_the_result_keeps_its_promise_and_its_recipe_makes_it_again(here, effects, capsys):
    os.link("m.pt2", "my m.pt2")
    shutil.copytree(effects, "my m.optimize/sensitivity")
    code, out, err = answer(capsys, "optimize", "my m.pt2", *SEARCH, "--json")
    assert code == 0, err
    found = json.loads(out)
    check(found)
    assert found["promise"]["kept"]
    assert found["promise"]["samples"] == 1500
    best = found["best"]
    assert best["macs"] < 0.9
    kept = [row["macs"] for row in found["trials"].values() if "samples" in row and held(row)]
    assert sorted(kept).index(best["macs"]) <= 2  # the very edge may fail on unseen samples
    paired = nncompress.evaluate("my m.optimize.pt2", "val.npz?half=2").top1
    original = nncompress.evaluate("m.pt2", "val.npz?half=2").top1
    assert original - paired == pytest.approx(found["promise"]["drop"])
    (command,) = found["commands"]
    command = shlex.split(command.replace("-o 'my m.optimize.pt2'", "-o again.pt2"))[1:]
    assert answer(capsys, *command, "--no-timing")[0] == 0
    made, again = (load_model(name).state_dict() for name in ("my m.optimize.pt2", "again.pt2"))
    assert made.keys() == again.keys()
    assert all(torch.equal(made[name], again[name]) for name in made)
    code, out, _ = answer(capsys, "optimize", "my m.pt2", *SEARCH, "--json")
    assert json.loads(out)["trials"] == found["trials"]  # resumed: nothing is tried twice
    assert json.loads(out)["promise"] == found["promise"]
    code, out, _ = answer(capsys, "optimize", "my m.pt2", *SEARCH)
    assert f"best of {len(found['trials'])} trials: {best['recipe'][0]['name']} " in " ".join(out.split())
    assert "with 95% confidence (asked for: at most 3.00 points)" in section_of("my m.optimize").summary


def held(row):
    from nncompress.search.promise import upper

    return upper(row) <= 0.03


def test_too_few_samples_promise_nothing_and_how_many_would_is_said(here, capsys):
    asked = ["--data", "few.npz", "--max-drop", "5", "--goal", "macs", "--trials", "3"]
    code, _, err = answer(capsys, "optimize", "m.pt2", *asked)
    assert code == ExitCode.NO_PROMISE
    assert "samples in --data would do" in err
    assert not (here / "m.optimize.pt2").exists()


def test_the_smallest_drop_within_a_size(here, effects, capsys):
    shutil.copytree(effects, "m.optimize/sensitivity")
    limit = nncompress.inspect(nncompress.load("m.pt2")).bytes // 2
    code, out, err = answer(
        capsys, "optimize", "m.pt2", "--data", "val.npz", "--max-size", "50%", "--goal", "size",
        "--trials", "8", "--json",
    )  # fmt: skip
    assert code == 0, err
    found = json.loads(out)
    assert found["best"]["size"] <= limit
    fitting = [r for r in found["trials"].values() if "samples" in r and r["size"] <= limit]
    assert len(fitting) > 1
    assert found["best"]["lost"] == min(r["lost"] for r in fitting)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "nothing is asked for"),
        (["--max-drop", "1"], "needs data"),
        (["--max-size", "small"], "no size"),
        (["--join", "missing"], "leave it out"),
        (["--join", "missing", "--finetune", "1"], "goes without --finetune"),
        (["--join", "missing", "--report", "r.json"], "goes without --report"),
        (["--join", "missing", "--limit", "512"], "goes without --limit"),
        (["--join", "missing", "-o", "small.pt2"], "goes without --output"),
        (["--join", "missing", "--json"], "goes without --json"),
    ],
)
def test_mistakes_are_told(here, capsys, arguments, said):
    code, _, err = answer(capsys, "optimize", "m.pt2", *arguments)
    assert code == ExitCode.USAGE
    assert said in err


def test_a_folder_of_another_search_is_refused(here, capsys):
    common = ["optimize", "m.pt2", "--data", "val.npz", "--goal", "macs", "--trials", "1"]
    assert answer(capsys, *common, "--max-drop", "30")[0] == 0
    code, _, err = answer(capsys, *common, "--max-drop", "20")
    assert code == ExitCode.USAGE
    assert "another bounds" in err
    assert answer(capsys, "optimize", "--join", "elsewhere")[0] == ExitCode.USAGE


def test_a_folder_of_another_model_is_refused_and_its_own_is_not_taken_for_it(here, effects, capsys):
    common = ["--data", "val.npz", "--max-drop", "30", "--goal", "macs", "--trials", "1"]
    (here / "other").mkdir()
    model = load_model("m.pt2")
    with torch.no_grad():
        next(iter(model.state_dict().values())).mul_(0.5)
    nncompress.export(model, "other/m.pt2")
    shutil.copytree(effects, "m.optimize/sensitivity")
    assert answer(capsys, "optimize", "m.pt2", *common)[0] == 0
    code, _, err = answer(capsys, "optimize", "other/m.pt2", *common, "-o", "other.pt2")
    assert (code, "another model than other/m.pt2" in err) == (ExitCode.USAGE, True)
    assert not (here / "other.pt2").exists()


def test_a_folder_of_other_things_is_refused_and_the_original_is_not_written_over(here, capsys):
    common = ["optimize", "m.pt2", "--data", "few.npz", "--max-drop", "30", "--goal", "macs", "--trials", "1"]
    (here / "taken").mkdir()
    (here / "taken/original.pt2").write_bytes(b"the user's")
    code, _, err = answer(capsys, *common, "--folder", "taken")
    assert (code, "holds no search, but other files" in err) == (ExitCode.USAGE, True)
    assert [path.name for path in (here / "taken").iterdir()] == ["original.pt2"]
    assert (here / "taken/original.pt2").read_bytes() == b"the user's"
    (here / "new").mkdir()
    code, _, err = answer(capsys, *common, "--folder", "new", "-o", "./new/original.pt2")
    assert (code, "keeps the original" in err) == (ExitCode.USAGE, True)


@pytest.mark.parametrize("fit", ["val.npz", "val.npz?half=2", "some.npz"])
def test_what_is_fitted_to_is_not_what_promises(here, capsys, fit):
    model = load_model("m.pt2")
    unseen = dataset("val.npz?half=2", model, None)
    x = np.random.default_rng(0).standard_normal((400, 12)).astype(np.float32)
    np.savez("other.npz", x=x, y=np.zeros(400, np.int64))
    x[:2] = next(iter(unseen.batches(2))).inputs[0]  # 2 of 1500
    np.savez("some.npz", x=x, y=np.zeros(400, np.int64))
    asked = ["--data", "val.npz", "--max-drop", "30", "--goal", "macs", "--trials", "1", "--fit", fit]
    code, _, err = answer(capsys, "optimize", "m.pt2", *asked)
    assert code == ExitCode.USAGE
    assert "half of --data that the promise" in " ".join(err.split())
    assert not (here / "m.optimize").exists()
    for fine in ("val.npz?half=1", "other.npz"):
        assert shared(dataset(fine, model, None), unseen, None, NullProgress()) == (0, 1500)


def test_samples_that_stay_with_the_result_are_told_and_need_not_stay(here, placed, capsys, monkeypatch):
    monkeypatch.setattr(optimize, "wanted_probes", lambda model, *_: probes(model, ("quantize",))[:1])
    row = {"macs": 1.0, "size": 400, "lost": 0.0, "at_most": 0.001, "samples": 1500}
    recipe = (Quantize(),)
    trial = {**row, "worker": "w", "seconds": 1.0, "recipe": [{"name": "quantize"}]}
    placed(f"trials/{recipe_key(recipe)}.json", trial)
    common = ["optimize", "m.pt2", "--data", "val.npz", "--max-drop", "30", "--goal", "size", "--trials", "1"]
    code, _, err = answer(capsys, *common)
    assert code == 0, err
    assert "samples of the data" in err
    assert samples_of(load_model("m.optimize.pt2").inputs)
    code, _, err = answer(capsys, *common, "--no-samples", "--target", "ort-cpu")
    assert code == 0, err
    assert "samples of the data" not in err
    assert not samples_of(load_model("m.optimize.pt2").inputs)
    kept = [Quantize(no_samples=True, every_layer=True)]  # no clock decides when it is made again
    assert read_recipe(here / "m.optimize.toml") == kept


def test_a_precision_that_the_target_does_not_compute_in_is_refused_before_the_search(here, capsys):
    asked = ["--data", "val.npz", "--max-drop", "3", "--target", "ort-cpu", "--for", "bf16"]
    code, _, err = answer(capsys, "optimize", "m.pt2", *asked)
    assert (code, "ONNX Runtime computes floats in float32" in err) == (ExitCode.USAGE, True)
    assert not (here / "m.optimize").exists()


SETTINGS = {
    "schema": 1, "kind": "search", "model": "0", "directory": ".", "data": "val.npz", "fit": "val.npz?half=1",
    "normalize": None, "limit": 9, "seed": 0, "bounds": {"drop": 0.1, "goal": "macs", "metric": "top1"},
}  # fmt: skip


@pytest.mark.parametrize("change", [{"data": 1}, {"kind": "bench"}, {"bounds": []}, {"limit": 0}, {"x": 1}])
def test_damaged_settings_of_a_search_are_one_line(change, tmp_path, capsys):
    (tmp_path / "search.json").write_text(json.dumps({**SETTINGS, **change}))
    code, _, err = answer(capsys, "optimize", "--join", str(tmp_path))
    assert (code, "is no record of a search" in err) == (ExitCode.USAGE, True)


@pytest.mark.parametrize("text", ["{}", "[1]", "{", '{"sequences": [[1]]}'])
def test_looks_at_the_samples_of_the_promise_are_not_forgotten_in_silence(text, tmp_path):
    (tmp_path / "promises.json").write_text(text)
    with pytest.raises(UsageError, match="no record of a search"):
        read(tmp_path / "promises.json", PROMISES)


def test_a_search_runs_code_for_its_data_only_where_that_is_said_again(here, capsys):
    (here / "own.py").write_text("open('ran', 'w')\ndef val(): return [1]\n")
    (here / "search.json").write_text(json.dumps({**SETTINGS, "data": "own.py:val"}))
    os.link("m.pt2", "original.pt2")
    code, _, err = answer(capsys, "optimize", "--join", ".")
    assert (code, (here / "ran").exists()) == (ExitCode.USAGE, False)
    assert "--data own.py:val" in err
    answer(capsys, "optimize", "--join", ".", "--data", "own.py:val")
    assert (here / "ran").exists()


def test_a_recipe_is_read_back_as_it_was_written(tmp_path):
    texts = ["prune-nodes:ratios=a.b=0.2+c=0.5", "factorize:macs=0.7071067811865476,refit=false",
             "quantize:keep=he\"ad*+ö,weight_bits=4"]  # fmt: skip
    passes = nncompress.api.as_passes(texts)
    file = tmp_path / "r.toml"
    file.write_text(recipe_text(passes), encoding="utf-8")
    assert read_recipe(file) == passes


def test_an_interrupt_before_the_first_trial_is_an_interrupt(here, capsys, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(optimize, "wanted_probes", interrupted)
    code, out, err = answer(capsys, "optimize", "m.pt2", *SEARCH, "-o", "small.pt2")
    assert (code, out) == (ExitCode.INTERRUPTED, "")
    assert "best so far" not in err
    assert not (here / "small.pt2").exists()


def test_a_search_has_code_for_its_metric_only_where_that_is_said_again(here, capsys):
    bounds = {**SETTINGS["bounds"], "metric": "own.py:score"}
    (here / "own.py").write_text("open('ran', 'w')\ndef score(output, batch): return output[:, 0]\n")
    (here / "search.json").write_text(json.dumps({**SETTINGS, "bounds": bounds}))
    code, _, err = answer(capsys, "optimize", "--join", ".")
    assert (code, (here / "ran").exists()) == (ExitCode.USAGE, False)
    assert "--metric own.py:score" in err
    code, _, err = answer(capsys, "optimize", "--join", ".", "--metric", "rmse")
    assert (code, "from the folder" in err) == (ExitCode.USAGE, True)


def test_without_labels_the_original_is_what_results_are_held_against(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    net = nn.Linear(16, 12)
    with torch.no_grad():  # nearly of rank 2
        net.weight.copy_(torch.randn(12, 2) @ torch.randn(2, 16) + 0.02 * torch.randn(12, 16))
    x = torch.randn(400, 16)
    nncompress.export(Model.from_module(net, (x[:2],)), "m.pt2")
    np.savez("x.npz", x=x.numpy())
    code, out, err = answer(
        capsys, "optimize", "m.pt2", "--data", "x.npz", "--max-drop", "12", "--goal", "macs", "--trials", "1",
        "--json",
    )  # fmt: skip
    assert code == 0, err
    assert "measured by agreement" in err
    assert "x.npz has no labels" in err
    made = json.loads(out)["promise"]
    assert (made["metric"], made["kept"], made["samples"]) == ("agreement", True, 200)
    (batch,) = dataset("x.npz?half=2", load_model("m.pt2"), None).batches(200)
    before, after = (load_model(name).outputs_of(*batch.inputs)[0] for name in ("m.pt2", "m.optimize.pt2"))
    assert made["drop"] == pytest.approx(float((before.argmax(1) != after.argmax(1)).double().mean()))
    assert made["drop"] < made["high"] <= 0.12


def test_the_metric_is_settled_by_the_half_that_chooses(here, capsys, monkeypatch):
    def settled(model, data, name):
        raise UsageError(f"asked of {data.spec}")

    monkeypatch.setattr("nncompress.cli.work.search.optimize.settled", settled)
    code, _, err = answer(capsys, "optimize", "m.pt2", "--data", "val.npz", "--max-drop", "1")
    assert (code, "asked of val.npz?half=1" in err) == (ExitCode.USAGE, True)


def test_more_points_than_there_are_and_metrics_that_do_not_fit(here, capsys):
    code, _, err = answer(capsys, "optimize", "m.pt2", "--data", "val.npz", "--max-drop", "101")
    assert (code, "0 to 100" in err) == (ExitCode.USAGE, True)
    common = ["optimize", "m.pt2", "--data", "val.npz", "--max-drop", "1", "--metric"]
    assert answer(capsys, *common, "miou")[0] == ExitCode.DATA
    assert answer(capsys, *common, "nothing")[0] == ExitCode.USAGE
    assert not (here / "m.optimize").exists()


def test_an_interrupt_within_a_trial_leaves_the_fastest_so_far(here, effects, capsys, monkeypatch):
    script(monkeypatch, lambda *each: 1000 * artifact_bytes(*each))  # few calls fill a second
    shutil.copytree(effects, "m.optimize/sensitivity")
    compressed, begun = Judge.compressed, []

    def interrupted(judge, recipe):
        begun.append(recipe)
        if len(begun) == 2:
            raise KeyboardInterrupt
        return compressed(judge, recipe)

    monkeypatch.setattr(Judge, "compressed", interrupted)
    monkeypatch.setattr(optimize, "wanted_probes", lambda model, *_: probes(model, ("prune-nodes",)))
    code, out, err = answer(
        capsys, "optimize", "m.pt2", "--data", "val.npz", "--max-drop", "30", "--target", "ort-cpu", "--json"
    )
    assert code == 0, err
    assert "the same command goes on searching" in err
    assert "the best so far" in err
    found = json.loads(out)
    check(found)
    assert found["stopped"]
    (row,) = found["trials"].values()
    assert row == found["best"]
    (measured,) = row["latency"].values()
    assert 0 < measured["low"] <= measured["share"] <= measured["high"] < 1  # of a machine that counts bytes
