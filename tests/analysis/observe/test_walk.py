"""The walk: what is computed, what is shown, what is kept."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from networks import inputs, model

from nncompress.analysis.observe import budget
from nncompress.analysis.observe.gradient_hooks import GradientHooks
from nncompress.analysis.observe.walk import Walk


def test_shows_every_value_in_graph_order_and_keeps_what_was_asked_for():
    each, given = model("residual"), inputs("residual", 3)
    end = each.graph.output_node()
    walk, shown = Walk(each), []
    values = [node for node in each.graph.nodes if node.op != "get_attr"]
    walk.hooks = {node: [partial(lambda node, value: shown.append(node), node)] for node in values}
    result = walk.run(walk.start(*given), [end], kept=())
    assert shown == values
    assert not {node for node in result if node.op != "placeholder"}
    assert all(torch.equal(a, b) for a, b in zip(walk.outputs(*given), each.outputs_of(*given), strict=True))


def test_computes_what_lies_between_and_nothing_else():
    each, given = model("residual"), inputs("residual", 3)
    layer = next(n for n in each.graph.nodes if n.op == "call_function" and "conv" in str(n.target))
    end, counted = each.graph.output_node(), []

    class Counted(Walk):
        def compute(self, node, env):
            counted.append(node)
            return super().compute(node, env)

    walk = Counted(each)
    start = walk.start(*given)
    value = walk.run(start, [layer])[layer]
    assert [n for n in counted if n.op == "call_function"] == [layer]
    counted.clear()
    outputs = walk.run({layer: value}, [end])[end]
    assert layer not in counted
    assert torch.equal(outputs[0], each.outputs_of(*given)[0])


def test_puts_other_values_in_place():
    each, given = model("residual"), inputs("residual", 3)
    (node,) = each.graph.output_node().args[0]
    walk = Walk(each)
    walk.instead[node] = lambda env: 2 * env[node.args[0]]
    before = Walk(each).run(walk.start(*given), [node.args[0]])[node.args[0]]
    assert torch.equal(walk.outputs(*given)[0], 2 * before)


def test_gradients_at_an_input_and_nothing_of_the_last_batch():
    each = model("residual")
    first = next(n for n in each.graph.nodes if n.op == "placeholder")
    taps = GradientHooks(each, {}, [first])
    for size in (3, 2):
        x = inputs("residual", size)[0]
        with torch.enable_grad():
            loss = taps.outputs(x)[0].square().sum()
        (found,) = taps.gradients(loss)[1].values()
        assert not x.requires_grad  # the data is as it was
        wanted = x.clone().requires_grad_()
        (expected,) = torch.autograd.grad(each(wanted).square().sum(), wanted)
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(("most", "runs"), [(0, [["a"], ["b"], ["c"]]), (10, [["a", "b"], ["c"]])])
def test_runs_fit_in_the_budget_or_are_of_one(monkeypatch, most, runs):
    monkeypatch.setattr(budget, "BUDGET", most)
    sizes = {"a": {"x": 6}, "b": {"x": 6, "y": 4}, "c": {"z": 1}}
    assert budget.in_runs("abc", sizes.__getitem__) == runs
