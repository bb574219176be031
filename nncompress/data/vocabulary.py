"""What the numbers of a recogniser's symbols stand for: `vocabulary=FILE` behind the `?` of transcripts.

FILE is the vocab.json of transformers ({"a": 0, …}), a tokenizer.json, a list in JSON, or a text with a
symbol a line, with or without its number behind it (tokens.txt).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from nncompress.errors import DataError
from nncompress.files.bounded_text import Unreadable, read_json, read_text

MOST = 2**24  # bytes of a file
BLANKS = ("<blank>", "<blk>", "[blank]", "[BLANK]", "<eps>", "<ctc>", "<pad>", "[PAD]")
FIRST, LAST = "first", "last"  # a blank that the file does not have, before or behind its symbols
_SPACES = ("|", "<space>", "<SPACE>", "[SPACE]")
_WORD_BEGINS = "▁"  # of sentencepiece


@dataclass(frozen=True)
class Vocabulary:
    """The symbols of a recogniser.

    Attributes:
        symbols: by number, what each writes; "" where it writes nothing.
        blank: the number of CTC's blank.
        case: "lower" or "upper" where it has letters of that one only, and texts are compared in it; "" else.
    """

    symbols: tuple[str, ...]
    blank: int
    case: str = ""

    def text(self, numbers: Iterable[int]) -> str:
        """What these symbols write; numbers that it has none for write nothing."""
        return "".join(self.symbols[n] for n in numbers if 0 <= n < len(self.symbols) and n != self.blank)

    def words(self, text: str) -> list[str]:
        """Those of a text, in the case that it is compared in."""
        return (getattr(text, self.case)() if self.case else text).split()


def open_vocabulary(file: str, blank: str | None = None) -> Vocabulary:
    """Read one.

    Args:
        blank: CTC's, as a symbol or its number; `FIRST` or `LAST`: it is not in the file.

    Raises:
        DataError: it cannot be read, numbers are missing, or nobody says which symbol is the blank.
    """
    symbols = _symbols(Path(file))
    if blank in (FIRST, LAST) and blank not in symbols:
        symbols = ["<blank>", *symbols] if blank == FIRST else [*symbols, "<blank>"]
        number = 0 if blank == FIRST else len(symbols) - 1
    else:
        number = _blank(symbols, blank, file)
    written = tuple(_written(symbol, symbols) for symbol in symbols)
    letters = "".join(written)
    case = "lower" if letters == letters.lower() else "upper" if letters == letters.upper() else ""
    return Vocabulary(written, number, case if letters.lower() != letters.upper() else "")


def _symbols(file: Path) -> list[str]:
    try:
        if file.suffix == ".json":
            return _numbered(read_json(file, MOST), file)
        lines = [line for line in read_text(file, MOST).split("\n") if line]
    except (OSError, Unreadable) as problem:
        raise DataError(
            f"{file} cannot be read as a vocabulary",
            got=str(problem)[:200],
            expected="vocab.json or tokens.txt",
        ) from problem
    lines = [line.rstrip("\r") for line in lines]
    pairs = [(found[1], found[2]) for line in lines if (found := re.fullmatch(r"(.+)[ \t](\d+)", line))]
    return _numbered(dict(pairs) if len(pairs) == len(lines) else lines, file)


def _numbered(content: object, file: Path) -> list[str]:
    if isinstance(content, dict) and isinstance(content.get("model"), dict):
        content = content["model"].get("vocab")
    if isinstance(content, list):
        content = {each: number for number, each in enumerate(content) if isinstance(each, str)}
    given = content if isinstance(content, dict) else {}
    numbers = {str(number): symbol for symbol, number in given.items()}
    if not given or set(numbers) != set(map(str, range(len(given)))):
        raise DataError(
            f"{file} does not number the symbols of a vocabulary",
            expected='{"a": 0, "b": 1, …}, or a symbol a line, each once',
        )
    return [numbers[str(number)] for number in range(len(given))]


def _blank(symbols: list[str], stated: str | None, file: str) -> int:
    if stated is None:
        found = next((symbols.index(each) for each in BLANKS if each in symbols), None)
    elif stated in symbols:
        found = symbols.index(stated)
    else:
        found = int(stated) if stated.isdecimal() and int(stated) < len(symbols) else None
    if found is None:
        raise DataError(
            f"{file}: nobody says which symbol is the blank of CTC",
            got="" if stated is None else f"blank={stated}",
            expected=", ".join(BLANKS),
            remedy=f"&blank= and a symbol or its number; {FIRST} or {LAST} where the file lacks it",
        )
    return found


def _written(symbol: str, symbols: list[str]) -> str:
    if symbol in _SPACES and " " not in symbols:
        return " "
    special = len(symbol) > 2 and (symbol[0], symbol[-1]) in (("<", ">"), ("[", "]"))
    return "" if special else symbol.replace(_WORD_BEGINS, " ")
