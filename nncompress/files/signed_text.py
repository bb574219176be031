"""Text files that say by themselves that they are ours: a comment with the digest of what follows.

    # written by nncompress; sha256 of what follows: 9f86d081…

One that was edited is its user's.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from nncompress.files.bounded_text import Unreadable, read_text


def signed(text: str) -> str:
    digest = hashlib.sha256(text.encode()).hexdigest()
    return f"# written by nncompress; sha256 of what follows: {digest}\n{text}"


def is_signed(path: Path) -> bool:
    """Whether a text is as it was written here."""
    try:
        text = read_text(path)
    except Unreadable:
        return False
    return not path.is_symlink() and text == signed(text.partition("\n")[2])
