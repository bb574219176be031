"""Help texts as the screen shows them: paragraphs filled to its width, square brackets kept.

The parser's printer breaks a line wherever the source does, takes "[default: 16]" for markup, and prints
<bool> beside a flag, as if it took a value.
"""

from __future__ import annotations

from typing import Any

from rich.markup import escape

EXAMPLES = ("nncompress ", "Example:")  # a line that starts so stays a line of its own


def make_readable(group: Any) -> None:
    """Rewrite the help of every command and option of the parsed tree, in place."""
    for command in group.commands.values():
        command.help = escape(filled(command.help or ""))
        for parameter in command.params:
            if getattr(parameter, "help", None):
                parameter.help = escape(parameter.help)
            if getattr(parameter, "is_flag", False):
                parameter.metavar = ""


def filled(text: str) -> str:
    """The text with each paragraph on one line, examples apart."""
    paragraphs = []
    for paragraph in text.strip().split("\n\n"):
        lines: list[str] = []
        for line in paragraph.splitlines():
            alone = not lines or line.startswith(EXAMPLES) or lines[-1].startswith(EXAMPLES)
            if alone:
                lines.append(line)
            else:
                lines[-1] += f" {line.strip()}"
        paragraphs.append("\n".join(lines))
    return "\n\n".join(paragraphs)
