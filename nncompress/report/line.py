"""A line of a report, whatever the names in it hold."""

from __future__ import annotations

from rich.text import Text

from nncompress.errors import on_one_line


def line(text: str, style: str = "") -> Text:
    """One line, folded where the terminal ends."""
    return Text(on_one_line(text), style=style)
