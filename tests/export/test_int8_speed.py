"""What export says of int8's speed follows from what was measured."""

from nncompress.export.int8_speed import slower_in_int8


def test_only_layers_on_integer_kernels_are_slower_in_int8():
    """One that was left in float was named, for the noise between two runs of one kernel."""
    profiles = {
        "float": [("a", "Conv", 10.0), ("b", "Conv", 10.0), ("c", "Gemm", 10.0), ("d", "LSTM", 5.0)],
        "int8": [("a", "QLinearConv", 20.0), ("b", "Conv", 11.0), ("c", "QGemm", 5.0), ("d", "LSTM", 6.0)],
    }
    assert slower_in_int8(profiles) == (("a", 0.5),)
