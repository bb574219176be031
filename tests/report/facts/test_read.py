"""RUNs: every kind is told from its content, and nothing in a file leads to more than a message."""

import copy
import json
import os

import pytest
import runs
import torch

import nncompress
from nncompress.analysis.cost import LayerCost
from nncompress.errors import DataError
from nncompress.report.facts.content import Plot, Table
from nncompress.report.facts.headline import report
from nncompress.report.facts.read import READERS, section_in, section_of
from nncompress.report.facts.runs.layers import before_and_after


def test_every_kind_has_a_document_here():
    assert set(runs.EVERY) == set(READERS)


@pytest.mark.parametrize("kind", runs.EVERY)
def test_a_document_becomes_a_section_with_a_sentence(kind):
    section = section_in(runs.EVERY[kind](), "run.json")
    assert section.source == "run.json"
    assert section.summary.endswith(".")
    assert any(isinstance(part, Table | Plot) for part in section.parts)


SENTENCES = {
    "passes": "small.onnx, made of net.pt2: 71% fewer MACs, 52% fewer parameters and 71% fewer bytes; its "
    "outputs are 12.5 % away from the original's, on 64 held-out samples.",
    "bench-suite": "small.onnx: 2.00x faster, 2.00x smaller, -0.50 points of top-1.",
    "evaluation": "small.onnx: -0.50 points [-1.50, +0.50] of top-1 against net.pt2, on 450 samples.",
    "train": "Trained for 3 epochs: the loss went from 1 to 0.3333; the weights are those of epoch 2, with "
    "top-1 90.0 % on held-out data. It ended after all epochs.",
    "cycle": "2 cycles: from 12 to 12 nodes, the loss from 0.5 to 0.5, with top-1 80.0 % on held-out data. "
    "It ended: max cycles.",
}


@pytest.mark.parametrize("kind", SENTENCES)
def test_the_sentence_says_gain_and_loss(kind):
    assert section_in(runs.EVERY[kind](), "run.json").summary == SENTENCES[kind]


def test_the_summary_is_that_of_the_best_evidence():
    found = [section_in(make(), kind) for kind, make in runs.EVERY.items() if kind != "optimize"]
    assert report(found).summary == (
        "small.onnx against net.pt2: 2.00x [1.90, 2.10] as fast, 2.00x smaller, 50% fewer MACs; -0.50 points "
        "of top-1."
    )
    promised = report([*found, section_in(runs.optimize(), "o")]).summary
    assert "at most 1.20 points lost with 95% confidence (asked for: at most 2.00 points)" in promised


def test_no_difference_in_speed_is_said_as_that():
    document = runs.bench()
    document["runs"][0]["candidates"][1]["speedup"] = {
        "value": 1.01,
        "low": 0.98,
        "high": 1.04,
        "confidence": 0.95,
    }
    assert (
        "no measurable difference in speed (1.01x [0.98, 1.04])"
        in report([section_in(document, "r")]).summary
    )


def test_layers_that_were_split_stand_beside_what_they_were():
    parts = section_in(runs.passes(), "r").parts
    table = next(part for part in parts if part.title == "Layers before and after")
    assert table.rows[0][:1] + table.rows[0][4:8] == ("conv1", 300, 90, 4000, 1100)
    assert table.rows[1][3] == "8×4×3×3 int8"


def test_the_chosen_rank_is_marked_in_the_spectrum():
    parts = section_in(runs.passes(), "r").parts
    plot = next(part for part in parts if part.title == "Spectrum of conv1; rank 3 was taken")
    assert [(p.x, p.chosen) for p in plot.series[0].points] == [(1, False), (2, False), (3, True), (4, False)]


def test_the_recipe_and_the_command_are_there_to_copy():
    recipe, command = section_in(runs.passes(), "r").parts[-2:]
    assert (
        recipe.text
        == '[[pass]]\nname = "prune-nodes"\nratio = 0.5\n\n[[pass]]\nname = "factorize"\nmacs = 0.6\n'
    )
    assert command.text.startswith("nncompress compress net.pt2 --recipe recipe.toml")


def test_a_metric_that_is_code_is_not_run(tmp_path):
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    document = runs.evaluation()
    for row in document["models"]:
        row["result"]["metric"] = f"{tmp_path / 'evil.py'}:score"
    section_in(document, "r")
    assert not (tmp_path / "ran").exists()


def test_files_folders_and_logs(tmp_path):
    (tmp_path / "run").write_text(json.dumps(runs.bench()))
    assert section_of(str(tmp_path / "run")).command == "bench"
    log = "".join(json.dumps(row) + "\n" for row in runs.train()["epochs"])
    (tmp_path / "t.jsonl").write_text(log + '{"epoch": 4, "lo')  # still being written
    assert section_of(str(tmp_path / "t.jsonl")).summary.startswith("3 epochs so far: the loss went from 1")
    (tmp_path / "one").write_text(json.dumps(runs.train()["epochs"][0]))
    assert section_of(str(tmp_path / "one")).summary.startswith("1 epoch so far")
    cycles = tmp_path / "net.cycles"
    cycles.mkdir()
    (cycles / "cycles.jsonl").write_text("".join(json.dumps(row) + "\n" for row in runs.cycle()["cycles"]))
    assert section_of(str(cycles)).command == "cycle"
    search = tmp_path / "net.optimize"
    (search / "trials").mkdir(parents=True)
    (search / "search.json").write_text("{}")
    for key, row in runs.optimize()["trials"].items():
        (search / "trials" / f"{key}.json").write_text(json.dumps(row))
    assert section_of(str(search)).summary == "3 trials so far, 1 of them refused or not measured."
    (search / "result.json").write_text(json.dumps(runs.optimize()))
    assert "at most 1.20 points lost with 95% confidence" in section_of(str(search)).summary
    (search / "trials" / "4.json").write_text(json.dumps(row))
    said = section_of(str(search)).summary
    assert "The best of 3 trials" in said
    assert "Trials made since: 1;" in said
    for damage in ("[]", "{", json.dumps(runs.bench()), json.dumps({**runs.optimize(), "trials": []})):
        (search / "result.json").write_text(damage)
        with pytest.raises(DataError):
            section_of(str(search))


@pytest.mark.filterwarnings("ignore:prune-nodes")
def test_a_model_file_tells_what_was_done_to_it(tmp_path):
    net = torch.nn.Sequential(torch.nn.Linear(20, 32), torch.nn.ReLU(), torch.nn.Linear(32, 3))
    small = nncompress.compress(nncompress.load(net.eval(), input="1x20"), ["prune-nodes:ratio=0.5"])
    nncompress.export(small, tmp_path / "small.pt2")
    found = section_of(str(tmp_path / "small.pt2"))
    assert found.summary == "small.pt2 has 2 layers, 387 parameters and 368 MACs; made by prune-nodes."
    assert found.outcomes[0].macs == 0.5
    assert [part.title for part in found.parts] == ["What was done to it", "Layers", "Recipe"]
    assert 'name = "prune-nodes"\nratio = 0.5' in found.parts[-1].text


REFUSED = {
    "missing": lambda path: None,
    "empty": lambda path: path.write_text(""),
    "text": lambda path: path.write_text("hello"),
    "binary": lambda path: path.write_bytes(b"\x80\x02\xff"),
    "a list": lambda path: path.write_text("[1]"),
    "another kind": lambda path: path.write_text('{"kind": "doctor", "schema": 1}'),
    "a kind that is none": lambda path: path.write_text('{"kind": [1], "schema": 1}'),
    "another schema": lambda path: path.write_text('{"kind": "train", "schema": 99}'),
    "no steps": lambda path: path.write_text('{"kind": "passes", "schema": 1, "steps": []}'),
    "deep": lambda path: path.write_text("[" * 100_000),
    "huge integer": lambda path: path.write_text('{"kind": "train", "schema": %s}' % ("9" * 4000)),
    "lines of something else": lambda path: path.write_text('{"a": 1}\n{"a": 2}\n'),
    "a folder of something else": lambda path: path.mkdir(),
    "a FIFO": os.mkfifo,
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_no_run_is_refused(what, tmp_path):
    REFUSED[what](tmp_path / "run")
    with pytest.raises(DataError) as refused:
        section_of(str(tmp_path / "run"))
    assert "run" in refused.value.what
    assert refused.value.remedy


def damaged(value):
    """Every document with one value replaced by something of another kind, or left out."""
    if isinstance(value, dict):
        for key, inner in value.items():
            for other in damaged(inner):
                yield {**value, key: other}
            yield {**value, key: {"x": [None]} if not isinstance(inner, dict) else 7}
            yield {name: item for name, item in value.items() if name != key}
            yield {**value, key: None}
    elif isinstance(value, list) and value:
        for other in damaged(value[0]):
            yield [other, *value[1:]]


@pytest.mark.parametrize("kind", runs.EVERY)
def test_a_damaged_document_is_refused_or_shown_never_a_traceback(kind):
    count = 0
    for document in damaged(runs.EVERY[kind]()):
        try:
            report([section_in(copy.deepcopy(document), "r")])
        except DataError:
            count += 1
    assert count > 5


def test_numbers_that_nothing_has_are_refused():
    document = runs.EVERY["bench-suite"]()
    for value in (float("inf"), float("nan"), 1e308, -1e200):
        document["runs"][0]["candidates"][0]["load_s"] = value
        with pytest.raises(DataError, match="load_s"):
            section_in(copy.deepcopy(document), "r")


def test_calls_of_one_layer_are_paired_in_order():
    def cost(name, bits):
        return LayerCost(name, "linear", (4, 4), (1, 4), 16, 16, 16, 16 * bits // 8, bits)

    found = before_and_after([cost("a", 32), cost("b", 32), cost("a", 32)], [cost(n, 8) for n in "aba"])
    (table,) = (part for part in found if isinstance(part, Table))
    assert [(row[0], row[6], row[7]) for row in table.rows] == [("a", 16, 16), ("b", 16, 16), ("a", 16, 16)]


def test_nothing_lost_is_no_negative_zero():
    document = runs.EVERY["optimize"]()
    document["promise"]["drop"] = 0.0
    (outcome,) = report([section_in(document, "r")]).outcomes
    assert str(outcome.change.value) == "0.0"
