from __future__ import annotations

import pytest

from nncompress.cli.quantities import bytes_, counts, fraction, seconds, size
from nncompress.errors import UsageError


@pytest.mark.parametrize(
    ("text", "value"),
    [("10s", 10), ("500ms", 0.5), ("2m", 120), ("1.5 min", 90), ("0.2", 0.2), ("1H", 3600), (".5s", 0.5)],
)
def test_durations_are_read_with_their_units(text, value):
    assert seconds(text, "--time") == pytest.approx(value)


@pytest.mark.parametrize(("text", "value"), [("1%", 0.01), ("0.5 %", 0.005), ("0.01", 0.01), ("0", 0)])
def test_percentages_are_read_as_fractions(text, value):
    assert fraction(text, "--tolerance") == pytest.approx(value)


@pytest.mark.parametrize(
    ("text", "value"), [("1MB", 1e6), ("300 kB", 3e5), ("5000", 5000), ("30%", 240), ("0.5 %", 4)]
)
def test_sizes_are_bytes_or_a_share(text, value):
    assert size(text, "--max-size", 800) == pytest.approx(value)


def test_lists_of_counts_are_sorted_and_once():
    assert counts("1, 8,32,8", "--batch") == (1, 8, 32)


@pytest.mark.parametrize(
    ("read", "texts"),
    [
        (seconds, ["", "0", "-1s", "1x", "nan", "inf", "1e3", "ten seconds"]),
        (fraction, ["", "100%", "1", "-1%", "nan", "1%%"]),
        (bytes_, ["", "0", "1%", "1TB", "-1kB", "small"]),
        (lambda text, option: size(text, option, 8.0), ["", "0", "0%", "%", "-1%", "30%%"]),
        (counts, ["", "0", "1,", "-1", "1.5", "1;2", "9999999999"]),
    ],
)
def test_what_is_no_quantity_names_the_option(read, texts):
    for text in texts:
        with pytest.raises(UsageError, match="--option"):
            read(text, "--option")
