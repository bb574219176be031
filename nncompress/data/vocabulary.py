"""What the numbers of a recogniser's symbols stand for: `vocabulary=FILE` behind the `?` of transcripts.

Where words begin or end is read from |, <space>, or the marks of subwords ("▁the", "play", "##ing").

FILE is the vocab.json of transformers ({"a": 0, …}), a tokenizer.json, a list in JSON, or a text with a
symbol a line, with or without its number behind it (tokens.txt).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from unicodedata import normalize

from nncompress.errors import DataError
from nncompress.files.bounded_text import Unreadable, read_json, read_text

MOST = 2**24  # bytes of a file
BLANKS = ("<blank>", "<blk>", "[blank]", "[BLANK]", "<eps>", "<ctc>", "<pad>", "[PAD]")
FIRST, LAST = "first", "last"  # a blank that the file does not have, before or behind its symbols
_SPACES = ("|", "<space>", "<SPACE>", "[SPACE]")
_AS_BYTES = (*range(33, 127), *range(161, 173), *range(174, 256))  # GPT-2 writes these as themselves
_BYTES = {chr(each): each for each in _AS_BYTES} | {
    chr(256 + place): each for place, each in enumerate(sorted({*range(256)} - {*_AS_BYTES}))
}


def _of_bytes(symbol: str) -> bytes:
    return b"".join(bytes([_BYTES[each]]) if each in _BYTES else each.encode() for each in symbol)


# by what marks where words begin or end in some symbol of a file, what each symbol there writes
_MARKS: dict[str, Callable[[str], bytes]] = {
    "▁": lambda symbol: symbol.replace("▁", " ").encode(),  # sentencepiece
    "^##.": lambda symbol: (symbol[2:] if re.match("##.", symbol) else f" {symbol}").encode(),  # WordPiece
    ".@@$": lambda symbol: (symbol[:-2] if re.search(".@@$", symbol) else f"{symbol} ").encode(),  # fairseq
    ".</w>$": lambda symbol: re.sub("</w>$", " ", symbol).encode(),  # BPE
    "^Ġ.": _of_bytes,  # BPE of bytes
}


@dataclass(frozen=True)
class Vocabulary:
    """The symbols of a recogniser.

    Attributes:
        symbols: by number, what each writes in UTF-8, of which it may be a part; nothing for <unk>.
        blank: the number of CTC's blank.
        case: "lower" or "upper" where it has letters of that one only, and texts are compared in it; "" else.
        notes: what was taken for granted, for the user.
    """

    symbols: tuple[bytes, ...]
    blank: int
    case: str = ""
    notes: tuple[str, ...] = ()

    def text(self, numbers: Iterable[int]) -> str:
        """What these symbols write; numbers that it has none for write nothing."""
        known = (n for n in numbers if 0 <= n < len(self.symbols) and n != self.blank)
        return b"".join(self.symbols[n] for n in known).decode(errors="replace")

    def words(self, text: str) -> list[str]:
        """Those of a text, in the case that it is compared in, letters and their accents composed (NFC)."""
        return normalize("NFC", getattr(text, self.case)() if self.case else text).split()


def open_vocabulary(file: str, blank: str | None = None) -> Vocabulary:
    """Read one.

    Args:
        blank: CTC's, as a symbol or its number; `FIRST` or `LAST`: it is not in the file.

    Raises:
        DataError: it cannot be read, numbers are missing, or nobody says which symbol is the blank.
    """
    if not file:
        raise DataError("vocabulary= names no file", expected="vocabulary=vocab.json, or tokens.txt")
    symbols, notes = _symbols(Path(file)), []
    if blank in (FIRST, LAST) and blank not in symbols:
        symbols = ["<blank>", *symbols] if blank == FIRST else [*symbols, "<blank>"]
        number = 0 if blank == FIRST else len(symbols) - 1
    else:
        number = _blank(symbols, blank, file)
        others = [each for each in BLANKS if each in symbols and each != symbols[number]]
        if blank is None and others:
            notes.append(
                f"{file}: {symbols[number]} is taken as the blank of CTC, where {', '.join(others)} "
                f"would do, too; &blank={symbols[number]} says so"
            )
    written = _written(symbols)
    letters = "".join(each.decode(errors="ignore") for each in written)
    case = "lower" if letters == letters.lower() else "upper" if letters == letters.upper() else ""
    if letters.lower() == letters.upper():
        case = ""
    if b" " not in b"".join(written):
        notes.append(
            f"{file}: no symbol writes a space, as {', '.join(_SPACES)} do: all that is said is one word"
        )
    if case:
        notes.append(f"texts are compared in {case} case, the only one of the vocabulary")
    return Vocabulary(written, number, case, tuple(notes))


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


def _written(symbols: list[str]) -> tuple[bytes, ...]:
    """What each writes, with a space where a word begins or ends."""
    plain = [symbol for symbol in symbols if not _special(symbol)]
    marked = (spell for mark, spell in _MARKS.items() if any(re.search(mark, each) for each in plain))
    spell = next(marked, None)
    spaces = set() if " " in symbols else set(_SPACES) - ({"|"} if spell else set())
    return tuple(_spelled(symbol, spell or str.encode, spaces) for symbol in symbols)


def _spelled(symbol: str, spell: Callable[[str], bytes], spaces: set[str]) -> bytes:
    if symbol in spaces:
        return b" "
    if byte := re.fullmatch("<0x([0-9A-F]{2})>", symbol):  # sentencepiece, of letters that it does not know
        return bytes.fromhex(byte[1])
    return b"" if _special(symbol) else spell(symbol)


def _special(symbol: str) -> bool:
    return len(symbol) > 2 and (symbol[0], symbol[-1]) in (("<", ">"), ("[", "]"))
