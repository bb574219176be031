from __future__ import annotations

from nncompress.analysis.observe.enough import Rows, too_few


def test_the_warning_names_the_worst_layer_and_a_count_that_is_enough():
    fitted = [Rows("plenty", 1024, 9, 16), Rows("worst", 16, 512, 16), Rows("short", 256, 300, 16)]
    said = too_few("factorize", fitted)
    assert said is not None
    assert "2 of 3 fitted layers" in said
    assert "worst the fewest: 16 for 512" in said
    assert "at least 512 samples" in said


def test_enough_rows_are_no_warning():
    assert too_few("factorize", [Rows("a", 512, 512, 16)]) is None
