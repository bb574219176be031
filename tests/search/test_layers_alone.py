"""When, and in what order, a search measures what single layers bear."""

from math import inf

from nncompress.api import dataset
from nncompress.files.folders import make_folder
from nncompress.loading import load_model
from nncompress.passes import Context
from nncompress.search import layers_alone, optimize
from nncompress.search.layers.sensitivity import Sensitivity
from nncompress.search.optimize import Search
from nncompress.search.trial import Bounds


def test_a_goal_of_latency_times_what_nodes_and_ranks_save_of_it(here, monkeypatch):
    asked = []

    def measured(model, wanted, context, records, until, target=None):
        asked.append(({probe.method for probe in wanted}, target))
        return Sensitivity("", (), 0, 0)

    monkeypatch.setattr(layers_alone, "sensitivity", measured)
    model = load_model("m.pt2")
    chooses = dataset("few.npz?half=1", model)
    for number, (goal, target) in enumerate((("latency", "ort-cpu"), ("macs", None))):
        bounds = Bounds(0.3, None, None, goal, target)
        context, said = Context(data=chooses, limit=8), []
        wanted = layers_alone.wanted_probes(model, bounds, context)
        layers_alone.effects_alone(model, wanted, context, bounds, here / str(number), inf, said.append)
        assert f"of {len(wanted)} measurements of single layers {len(wanted)} were not made" in said[0]
    nodes_and_ranks = {"prune-nodes", "factorize"}
    assert asked[:2] == [({"quantize"}, None), (nodes_and_ranks, "ort-cpu")]
    assert asked[2:] == [(set(), None), (nodes_and_ranks, None)]


def test_of_each_layer_the_middle_strength_is_measured_first_the_methods_in_turns(here):
    model = load_model("m.pt2")
    data = dataset("few.npz", model)
    wanted = layers_alone.wanted_probes(model, Bounds(0.3, None, None, "size"), Context(data=data, limit=8))
    layers = {(probe.method, probe.where) for probe in wanted}
    first = wanted[: len(layers)]
    assert {(probe.method, probe.where) for probe in first} == layers
    assert {probe.strength for probe in first} == {0.5, 8}
    assert [probe.method for probe in first[:3]] == ["prune-nodes", "factorize", "quantize"]


def test_recipes_that_are_the_same_everywhere_come_before_the_layers_by_themselves(here, monkeypatch):
    """A deep model has hundreds of layers to measure, and a search minutes."""
    model, tried = load_model("m.pt2"), []
    chooses = dataset("few.npz?half=1", model)
    search = Search(
        make_folder(here / "short"),
        model,
        chooses,
        Context(data=chooses, limit=8),
        Bounds(0.3, None, None, "macs"),
    )

    def measured(*each):
        tried.append(len(search.trials.all()))
        return ()

    monkeypatch.setattr(optimize, "effects_alone", measured)
    search.run(4, inf, lambda row: None)
    assert tried == [2]
    assert len(search.trials.all()) == 4
    search.run(4, inf, lambda row: None)  # all are there: nothing would use more measurements
    assert tried == [2]
