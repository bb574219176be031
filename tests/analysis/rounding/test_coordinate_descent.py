import torch

from nncompress.analysis.rounding.coordinate_descent import round_adaptively

TOP = 63


def problem(groups, outputs, inputs):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(groups, outputs, inputs, generator=generator)
    mixing = torch.randn(groups, inputs, inputs, generator=generator, dtype=torch.float64)
    scales = weight.abs().amax(-1) / TOP
    nearest = (weight / scales[..., None]).round().to(torch.int8)
    return weight, scales, nearest, mixing @ mixing.mT / inputs


def error(weight, scales, stored, second):
    delta = stored * scales.double()[..., None] - weight
    return float((delta @ second * delta).sum())


def test_groups_together_are_rounded_as_each_by_itself_and_better_than_to_the_nearest():
    """A depthwise convolution has hundreds; the problem of each is its own."""
    weight, scales, nearest, second = given = problem(24, 2, 9)
    together = round_adaptively(weight, scales, nearest, second, TOP)
    alone = [round_adaptively(*each, TOP) for each in zip(*given)]
    assert torch.equal(together, torch.stack(alone))
    assert error(weight, scales, together, second) < 0.7 * error(weight, scales, nearest, second)
    assert (together - nearest).abs().max() == 1
