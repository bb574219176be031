"""The architectures: counts as in the papers' tables, names as in the published weights, initialisation."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from nncompress import zoo
from nncompress.analysis.cost import cost
from nncompress.errors import UsageError
from nncompress.loading import load_model
from nncompress.zoo import ARCHITECTURES, architecture

SHARED = Path(__file__).parents[2].parent / "shared/data/cifar10"

# What the papers print: parameters in M, cut or rounded to the decimals they print.
PRINTED = {
    "small-separable": "0.12",  # thesis, Table 3.2
    "resnet20": "0.27",
    "resnet32": "0.46",  # He et al. 2015, Table 6
    "resnet44": "0.66",
    "resnet56": "0.85",
    "resnet110": "1.7",
    "resnet164": "1.70",  # ShaResNet, Table 1
    "wrn-40-4": "8.95",
    "wrn-28-10": "36.54",
    "wrn-22-10": "26.85",  # Table 3
    "resnet34": "21.8",
    "resnet50": "25.6",
    "resnet101": "44.5",
    "resnet152": "60.2",
}


def on_meta(name: str) -> nn.Module:
    with torch.device("meta"):
        return getattr(zoo, architecture(name).factory)().eval()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_parameters_and_macs_are_what_torch_counts(name):
    module, each = on_meta(name), architecture(name)
    with FlopCounterMode(display=False) as counter:
        module(torch.empty(1, *each.shape, device="meta"))
    assert sum(p.numel() for p in module.parameters()) == each.parameters
    assert counter.get_total_flops() == 2 * each.macs


@pytest.mark.parametrize("name", PRINTED)
def test_parameters_are_what_the_papers_print(name):
    millions, text = architecture(name).parameters / 1e6, PRINTED[name]
    decimals = len(text.partition(".")[2])
    cut = int(millions * 10**decimals) / 10**decimals
    assert float(text) in (round(millions, decimals), cut)


def test_macs_are_what_the_papers_print():
    assert architecture("resnet20").macs == pytest.approx(40e6, rel=0.02)  # thesis, Table 3.2: ~40 M
    assert architecture("small-separable").macs == pytest.approx(13e6, rel=0.06)  # ~13 M
    assert architecture("resnet34").macs == pytest.approx(3.6e9, rel=0.02)  # He et al. 2015, Table 1
    # 3.8 G there with the stride in the first 1×1; in the 3×3, where ShaResNet's code has it, 4.1 G
    assert architecture("resnet50").macs == pytest.approx(4.1e9, rel=0.01)


def test_small_separable_has_27_layers_with_its_pooling():
    weighted = [m for m in on_meta("small-separable").modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(weighted) + 1 == 27


def test_the_light_stem_is_four_times_cheaper():
    stem = on_meta("separable-resnet34").stem
    with FlopCounterMode(display=False) as counter:
        out = stem(torch.empty(1, 3, 224, 224, device="meta"))
    assert out.shape == (1, 64, 56, 56)
    assert 2 * 112**2 * 7 * 7 * 3 * 64 / counter.get_total_flops() == pytest.approx(4, rel=0.05)


def test_our_own_cost_agrees():
    model = architecture("small-separable").build()
    norms = [n for n, p in model.state_dict().items() if "running_" in n]
    statistics = sum(model.tensor(n).numel() for n in norms)
    assert cost(model).macs == architecture("small-separable").macs
    assert cost(model).parameters - statistics == architecture("small-separable").parameters


def test_resnet164_has_164_layers_without_its_shortcuts():
    weighted = [
        name
        for name, m in on_meta("resnet164").named_modules()
        if isinstance(m, nn.Conv2d | nn.Linear) and "shortcut" not in name
    ]
    assert len(weighted) == 164


@pytest.mark.shared_data
@pytest.mark.parametrize("file", ["resnet20", "resnet56", "resnet20-jpeg", "resnet56-jpeg"])
def test_published_weights_load_by_name(file):
    path = SHARED / f"{file}.safetensors"
    if not path.is_file():
        pytest.skip(f"no {path}")
    model = load_model(path, arch=f"nncompress.zoo:{file.partition('-')[0]}", input_shapes="1x3x32x32")
    assert model.outputs_of(torch.zeros(2, 3, 32, 32))[0].isfinite().all()


def test_weights_follow_the_seed_and_leave_the_callers_generator_alone():
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first, same, other = (architecture("sine").build(seed=s) for s in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    x = torch.randn(3, 1)
    assert torch.equal(first(x), same(x))
    assert not torch.equal(first(x), other(x))


def test_initial_weights_have_the_variance_of_their_paper():
    resnet = zoo.resnet56().layer3[4].conv1.weight  # He: 2 / fan-out
    assert float(resnet.detach().var()) == pytest.approx(2 / (64 * 9), rel=0.05)
    net = zoo.mnist_classifier()[3]  # Xavier: 2 / (fan-in + fan-out)
    assert float(net.weight.detach().var()) == pytest.approx(2 / (25 * 32 + 25 * 64), rel=0.05)
    assert not net.bias.any()


def test_other_classes_channels_and_sizes():
    model = architecture("alternatives-kernel-composing").build(classes=7, shape=(1, 28, 28))
    assert model(torch.zeros(3, 1, 28, 28)).shape == (3, 7)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("sine", {"classes": 3}, "no classifier"),
        ("resnet20", {"shape": (5,)}, "does not take"),
        ("mnist-classifier", {"shape": (1, 20, 28)}, "does not run"),
    ],
)
def test_what_cannot_be_built_is_refused(name, options, message):
    with pytest.raises(UsageError, match=message):
        architecture(name).build(**options)


def test_a_misspelt_name_is_corrected():
    with pytest.raises(UsageError, match="did you mean wrn-28-10"):
        architecture("wrn-28")
