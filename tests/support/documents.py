"""What README, CONTRIBUTING and docs/ show as command lines."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PLACEHOLDER = re.compile(r"\b[A-Z]+\b|…")  # `--max-macs N` stands for a line


def lines_of(text: str) -> list[str]:
    """Those that begin a line (indented, in a session, in a block), and those in a sentence with options."""
    joined = re.sub(r"\\\n\s*", "", text)
    shown = re.findall(r"^(?: {4,}|\$ )?(nncompress [a-z].*)$", joined, re.M)
    inline = re.findall(r"`(nncompress [a-z][^`\n]* [^`\n]*)`", text)
    return shown + [line for line in inline if not PLACEHOLDER.search(line)]


def arguments_of(line: str) -> list[str]:
    """Without the explanation beside it, which two spaces, a # or a pipe begin, or where it goes."""
    return shlex.split(re.split(r" {2,}| #| \| | > ", line)[0])[1:]
