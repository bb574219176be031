from nncompress.bench.layer_latency import LayerShape, measure


def test_less_work_of_the_same_kind_is_faster():
    """A 1024x1024 product against a hundredth of it, and a convolution against one with a sixteenth."""
    wide, narrow = (LayerShape("MatMul", (1024, n)) for n in (1024, 8))
    dense, factored = measure([(wide,), (narrow, LayerShape("MatMul", (8, 1024)))], (16, 1024))
    assert 0 < factored < 0.6 * dense
    same = (("pads", (1, 1, 1, 1)), ("group", 1))
    dense, thin = measure(
        [
            (LayerShape("Conv", (64, 64, 3, 3), same),),
            (LayerShape("Conv", (16, 64, 1, 1)), LayerShape("Conv", (16, 16, 3, 3), same)),
        ],
        (1, 64, 32, 32),
    )
    assert 0 < thin < 0.6 * dense


def test_transposed_convolutions_run():
    up = LayerShape("ConvTranspose", (4, 6, 2, 2), (("strides", (2, 2)), ("output_padding", (0, 0))))
    assert measure([(up,)], (1, 4, 5, 5))[0] > 0
