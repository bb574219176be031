"""Whole architectures, tiny: pruned by 40 %, proven. benchmarks/sweeps/prune.py runs the full list."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks.architectures import ARCHITECTURES, build
from nncompress.analysis.couplings import find_couplings, prove, remove_units

# What each is here for: the ways in which structured pruners fail on real networks.
REASONS = {
    "resnet-average-pad": "shortcut averaged and concatenated with zeros",
    "res2net": "unequal parts of one convolution",
    "sknet": "stacked branches, softmax between them",
    "dpn": "sum and concatenation cut from one convolution",
    "resnest": "radix x groups",
    "nfnet": "weight standardisation",
    "weight-norm": "a weight computed from two",
    "densenet": "concatenation of concatenations",
    "mobilenet-v3": "depthwise, squeeze-excite",
    "ghostnet": "a cut through a concatenation",
    "shufflenet-v2": "chunk and channel shuffle",
    "unet-bilinear-groupnorm": "skip concatenations under group norm",
    "dcgan": "linear output seen as maps, transposed convolutions",
    "espcn": "pixel shuffle, as an op and written out",
    "tied-autoencoder": "one weight as producer and, transposed, as consumer",
    "cait": "layer scale, linear layers across heads",
    "swin": "windows, rolls, relative position bias",
    "mlp-mixer": "tokens and channels both pruned",
    "llama-gqa": "grouped queries, rotary positions, written-out norm, tied head",
    "torch-transformer": "batch x heads merged in one dim",
    "mixture-of-experts": "stacked weights in a batched product",
    "lstm-cells": "gates of an unrolled cell",
    "gru-bidirectional": "a recurrent layer as one op",
    "conv-tasnet": "batch x speakers merged in one dim",
}


@pytest.mark.parametrize("name", REASONS)
def test_every_architecture_is_pruned_and_proven(name):
    model = build(ARCHITECTURES[name])
    first, second = (model.outputs_of(*model.example_inputs(3, seed=s)) for s in (1, 2))
    assert all((a - b).abs().max() > 1e-2 * b.abs().max() for a, b in zip(first, second))
    couplings = find_couplings(model)
    assert couplings.prunable_share() > 0.9
    assert couplings.trace.surprises == {}
    generator = np.random.default_rng(1)
    removal = {
        g.name: generator.choice(g.size, min(g.size - 1, max(1, int(0.4 * g.size))), replace=False)
        for g in couplings.groups
    }
    pruned = model.copy()
    remove_units(pruned, removal)
    proof = prove(couplings, removal, pruned)
    assert proof.error < 1e-5
    assert proof.effect > 1e-2
    batch_of_five = pruned.outputs_of(*pruned.example_inputs(5, seed=3))
    assert all(torch.isfinite(y).all() for y in batch_of_five)
