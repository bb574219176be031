"""What the previous commands in this directory made, so that MODEL may be left out.

`.nncompress/session.json` names the model it all began with and what was made of it, exports too. A model
that needed options to load (an architecture, an input shape) is kept beside it as `.pt2`, so that `bench` and
`eval` can compare with it without asking again.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from nncompress.cli.console import say
from nncompress.files.bounded_text import Unreadable, check_regular, read_json

FOLDER = Path(".nncompress")


@dataclass(frozen=True)
class Session:
    """Paths relative to the directory they were written in.

    Attributes:
        chain: the original, in a form that loads without options, then what each command made of it.
    """

    chain: tuple[str, ...]

    @property
    def original(self) -> str:
        return self.chain[0]

    @property
    def artifact(self) -> str:
        """The newest result that a pass can start from."""
        return next((path for path in reversed(self.chain) if path.endswith(".pt2")), self.chain[0])


def read() -> Session | None:
    """The session of this directory; None where there is none, its artifact is gone, or it is damaged."""
    path = FOLDER / "session.json"
    if not os.path.lexists(path):
        return None
    try:
        match read_json(path):
            case {"chain": [str(), *_] as chain} if all(isinstance(entry, str) for entry in chain):
                session = Session(tuple(chain))
            case _:
                raise Unreadable("another record than nncompress writes")
    except Unreadable as error:
        say(f"{path} is not used: it is damaged ({error})")
        return None
    try:
        check_regular(session.artifact)
    except Unreadable:
        return None
    return session


def write(session: Session) -> None:
    """Remember it; a directory that cannot be written to is simply not remembered."""
    try:
        FOLDER.mkdir(exist_ok=True)
        fresh = FOLDER / f"session.json.{os.getpid()}"
        fresh.write_text(json.dumps(asdict(session), indent=1) + "\n", encoding="utf-8")
        os.replace(fresh, FOLDER / "session.json")
    except OSError:
        return
