"""What each layer bears of a metric, and gains in a target; and what is said of it."""

import pytest
from rich.console import Console
from scripted_machine import artifact_bytes, script

from nncompress import pipeline
from nncompress.analysis.accuracy import evaluate
from nncompress.api import dataset
from nncompress.cli.app import run
from nncompress.errors import ExitCode
from nncompress.loading import load_model
from nncompress.passes import Context, Factorize
from nncompress.passes.quantize.choose import HEAD
from nncompress.report.search import sensitivity as table
from nncompress.report.search import worst
from nncompress.search.layers.sensitivity import RECORD, Effect, Probe, probes, sensitivity
from nncompress.search.measure import Measure, metric_key
from nncompress.search.records import Records


def test_what_a_metric_loses_and_a_target_gains(here, monkeypatch):
    script(monkeypatch, lambda *each: 1000 * artifact_bytes(*each))  # few calls fill a second
    model = load_model("m.pt2")
    context = Context(data=dataset("val.npz", model), limit=512)
    applied = Factorize(ratios=("0=0.5",))
    probe, records = Probe("factorize", "0", 0.5, applied), Records(here / "kept", RECORD)
    result = sensitivity(model, [probe], context, records, metric="top1", target="ort-cpu")
    (effect,) = result.effects
    changed, _ = pipeline.run(model, [applied], context)
    before, after = (evaluate(each, context.data, limit=512).top1 for each in (model, changed))
    assert effect.lost == pytest.approx(before - after)
    assert effect.lost <= effect.at_most
    assert 0 < effect.time.low <= effect.time.value <= effect.time.high < 1  # of a machine that counts bytes
    again = sensitivity(model, [probe], context, records, metric="top1", target="ort-cpu")
    assert (again.measured, again.effects) == (0, result.effects)
    assert sensitivity(model, [probe], context, records).measured == 1  # nothing else was asked for: another
    console = Console(width=80)
    with console.capture() as shown:
        console.print(table(result, every=True, metric=Measure(model, "top1").metric))
    told = " ".join(shown.get().split())
    assert f"{100 * effect.lost:+.2f}" in told
    assert "lost: of top1 on the data (points), which passes are fitted to, too; time: in ort-cpu" in told


def effect(where, error, lost=None):
    return Effect("quantize", where, 8, error, 0.0, 0.25, 0.25, "", f"--keep {where}", lost)


def test_which_layers_killed_it_and_what_leaves_them_alone():
    said = worst([effect("a", 0.1), effect("b", 0.02), effect("c", 0.02), effect("d", None)])
    assert said.startswith("a moves the outputs most, 93% of what all 3 do one by one")
    assert said.endswith("to leave it as it is: --keep a, for 33% of the saved bytes")
    said = worst([effect("a", 0.1), effect("b", 0.1), effect("c", 0.01), effect("e", 0.01)])
    assert "a, b move the outputs most" in said
    assert "--keep a --keep b" in said
    said = worst([effect("a", 0.1, 0.001), effect("b", 0.02, 0.02), effect("c", 0.02, -0.001)])
    assert "b loses most of the metric, 95%" in said
    assert worst([effect("a", 0.1, 0.0), effect("b", 0.1, -0.1)]) == "no layer loses anything of the metric"
    assert worst([effect("a", 0.0)]) == "no layer moves the outputs"
    assert worst([effect("a", None)]) == "nothing could be done"
    evenly = worst([effect(name, 0.1) for name in "abcdefgh"])
    assert evenly.startswith("a moves the outputs most, 12% of")  # no three of them are to blame


def test_a_metric_needs_data(here, capsys):
    assert run(["sensitivity", "m.pt2", "--metric", "top1"]) == ExitCode.USAGE
    assert "--data" in capsys.readouterr().err


def test_what_was_measured_by_code_of_the_users_is_kept_under_its_text(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text("def score(output, batch): return output[:, 0]\n")
    first = metric_key("own.py:score")
    assert metric_key("own.py:score") == first
    (tmp_path / "own.py").write_text("def score(output, batch): return output[:, 1]\n")
    assert metric_key("own.py:score") != first
    assert metric_key("rmse") == "rmse"


def test_a_search_looks_at_no_layer_that_its_quantize_leaves_in_float(here):
    model = load_model("m.pt2")
    model.metadata[HEAD] = ["2"]
    context = Context(data=dataset("few.npz", model), limit=8)
    every, tried = (probes(model, ("quantize",), context, include_head=head) for head in (True, False))
    assert {probe.where for probe in every} == {"0", "2"}
    assert {probe.where for probe in tried} == {"0"}
    assert not any(probe.applied.include_head for probe in tried)
