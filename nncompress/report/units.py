"""Numbers the way people read them."""

from __future__ import annotations


def count(value: float) -> str:
    """1234567 -> "1.23 M"."""
    for limit, unit in ((1e9, " G"), (1e6, " M"), (1e4, " k")):
        if value >= limit:
            return f"{value / (limit if limit > 1e4 else 1e3):.3g}{unit}"
    return f"{value:,.0f}"


def size(value: float) -> str:
    """Bytes in powers of 1000: 1_094_376 -> "1.09 MB"."""
    for limit, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if value >= limit:
            return f"{value / limit:.3g} {unit}"
    return f"{value:.0f} B"


def share(part: float, whole: float) -> str:
    """Percent without the sign: (1, 8) -> "12.5"."""
    return f"{100 * part / whole:.1f}" if whole else "0.0"


def times(before: float, after: float) -> str:
    """How many times smaller: (3, 2) -> "1.50x"."""
    if not after:
        return "–" if before else "1.00x"
    return f"{before / after:.2f}x"


def duration(seconds: float) -> str:
    """0.00123 -> "1.23 ms"."""
    for limit, unit, factor in ((1, "s", 1.0), (1e-3, "ms", 1e3), (0, "µs", 1e6)):
        if seconds >= limit:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds:g} s"


def energy(joules: float) -> str:
    """0.00123 -> "1.23 mJ"."""
    for limit, unit, factor in ((1, "J", 1.0), (1e-3, "mJ", 1e3), (0, "µJ", 1e6)):
        if joules >= limit:
            return f"{joules * factor:.3g} {unit}"
    return f"{joules:g} J"
