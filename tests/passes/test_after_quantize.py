"""Passes on a model that is int8 already: they see what its float twin would show them, or say why not."""

from __future__ import annotations

import pytest
import torch
from networks import context, inputs, model

from nncompress import pipeline
from nncompress.analysis.observe.gradient_hooks import GradientHooks
from nncompress.ir.formats.qdq import StraightThrough
from nncompress.ir.layers.weights import layers
from nncompress.passes import Pass
from nncompress.passes.prune.options import Prune
from nncompress.passes.prune_nodes.options import PruneNodes
from nncompress.passes.quantize.options import Quantize


def quantized(name: str):
    return pipeline.run(model(name), [Quantize()], context(name))[0]


@pytest.mark.parametrize("name", ["residual", "tied", "attention"])
def test_gradients_pass_the_rounding(name):
    """At what each layer reads: those of the float model, up to the rounding."""
    found = []
    for each in (model(name), quantized(name)):
        reads = {layer.node: layer.data for layer in layers(each) if layer.kind != "embedding"}
        taps = GradientHooks(each, reads, ())
        outputs = taps.outputs(*inputs(name, 8))
        assert all(torch.equal(a, b) for a, b in zip(outputs, each.outputs_of(*inputs(name, 8))))
        found.append(list(taps.gradients(outputs[0].square().sum())[0].values()))
    for ours, theirs in zip(*found, strict=True):
        assert torch.cosine_similarity(ours.flatten(), theirs.flatten(), 0) > 0.9


def test_straight_through_computes_what_the_graph_computes():
    each, x = quantized("concat"), inputs("concat", 4)
    assert torch.equal(StraightThrough(each.graph_module).run(*x)[0], each.outputs_of(*x)[0])


@pytest.mark.parametrize("name", ["tied", "attention", "two-inputs"])
@pytest.mark.parametrize("each", [PruneNodes(ratio=0.3), Prune(std=1.5, remove_dead=True)], ids=str)
def test_nodes_of_an_int8_model_can_be_removed(each: Pass, name: str):
    given = quantized(name)
    result, steps = pipeline.run(given, [each], context(name))
    assert steps[0].changed
    assert steps[0].after.nonzero < steps[0].before.nonzero
    assert all(layer.weight.quantized for layer in layers(result))
