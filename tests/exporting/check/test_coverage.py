"""What a written file runs in int8, as the report says it."""

from nncompress.exporting.check.int8_coverage import Coverage


def test_a_layer_that_is_left_in_float_is_named_where_the_runtime_gives_no_reason():
    coverage = Coverage((("conv", "a"),), (), (("linear", "b"), ("linear", "c")), (), 0, {"c": "4 bits"})
    assert coverage.summary() == "1 of 3 in int8; in float: b, c (4 bits)"
