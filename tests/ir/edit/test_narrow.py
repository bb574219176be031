"""Narrowed reads and writes compute what zeros in their places would."""

from __future__ import annotations

import pytest
import torch
from networks import inputs, model

from nncompress.analysis.observe.residual import find_branches, names
from nncompress.ir.edit.narrow import drop_branch, narrow_reads, narrow_writes
from nncompress.ir.layers.weights import layers

CASES = [("residual", "conv1", "conv2", "bn2"), ("attention", "up", "down", None)]


def layer_of(each, name):
    return next(layer for layer in layers(each) if layer.name == name)


def rank(layer):
    return len(layer.node.meta["val"].shape)


@pytest.mark.parametrize(("network", "reader"), [(c[0], c[1]) for c in CASES])
def test_narrowing_what_is_read_is_zeroing_it(network, reader):
    zeroed, narrow = model(network), model(network)
    layer = layer_of(zeroed, reader)
    kept = [0, 2, 3, 7]
    gone = [c for c in range(layer.weight.value().shape[1]) if c not in kept]
    with torch.no_grad():
        layer.weight.value().index_fill_(1, torch.tensor(gone), 0)
    layer = layer_of(narrow, reader)
    narrow_reads(narrow, layer, layer.channel_dim % rank(layer), kept)
    narrow.refresh()
    assert layer_of(narrow, reader).weight.value().shape[1] == 4
    x = inputs(network, 5)
    torch.testing.assert_close(narrow(*x), zeroed(*x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("constant", [False, True])
@pytest.mark.parametrize(("network", "writer", "norm"), [(c[0], c[2], c[3]) for c in CASES])
def test_narrowing_what_is_written_is_zeroing_it(network, writer, norm, constant):
    zeroed, narrow = model(network), model(network)
    size = layer_of(zeroed, writer).weight.value().shape[0]
    kept = [1, 4, 5, size - 1]
    gone = torch.tensor([c for c in range(size) if c not in kept])
    rest = torch.zeros(size)
    if constant:
        rest[gone] = torch.linspace(-1, 1, len(gone))
    with torch.no_grad():
        zeroed.tensor(f"{writer}.weight").index_fill_(0, gone, 0)
        zeroed.tensor(f"{norm or writer}.bias")[gone] = rest[gone]
        if norm:
            zeroed.tensor(f"{norm}.weight").index_fill_(0, gone, 0)
    layer = layer_of(narrow, writer)
    end = next(iter(layer.node.users)) if norm else layer.node
    vectors = (
        [f"{norm}.{v}" for v in ("weight", "bias", "running_mean", "running_var")]
        if norm
        else [f"{writer}.bias"]
    )
    narrow_writes(narrow, layer, layer.channel_dim % rank(layer), kept, end, vectors, rest)
    narrow.refresh()
    assert layer_of(narrow, writer).weight.value().shape[0] == 4
    x = inputs(network, 5)
    torch.testing.assert_close(narrow(*x), zeroed(*x), rtol=1e-4, atol=1e-5)


def test_branches_are_found_and_left_out():
    each = model("attention")
    branches = find_branches(each)
    assert [[layer.name for layer in b.layers] for b in branches] == [["qkv", "out"], ["up", "down"]]
    assert [b.writer.name for b in branches] == ["out", "down"]
    assert len(set(names(branches))) == 2
    zeroed = model("attention")
    constant = torch.linspace(-1, 1, 32)
    with torch.no_grad():
        zeroed.tensor("down.weight").zero_()
        zeroed.tensor("down.bias").copy_(constant)
    drop_branch(each, branches[1].add, branches[1].shortcut, 2, constant, "mlp")
    each.refresh()
    assert [layer.name for layer in layers(each)] == ["qkv", "out", "head"]
    x = inputs("attention", 5)
    torch.testing.assert_close(each(*x), zeroed(*x), rtol=1e-4, atol=1e-5)


def test_a_residual_block_with_a_zero_padded_shortcut_is_one_branch():
    (branch,) = find_branches(model("residual"))
    assert [layer.name for layer in branch.layers] == ["conv1", "conv2"]
    assert branch.writer.name == "conv2"
