"""What the previous commands in this directory made, so that MODEL may be left out.

`.nncompress/session.json` names the model it all began with and what was made of it, exports too. A model
that needed options to load (an architecture, an input shape, a constant) is kept beside it as `.pt2`, so that
`bench` and `eval` can compare with it without asking again.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path

from nncompress.cli.console import say
from nncompress.errors import OutputError
from nncompress.files.bounded_text import Unreadable, check_regular, read_json
from nncompress.files.folders import make_folder
from nncompress.files.json_file import write_json

FOLDER = Path(".nncompress")
RECORD = FOLDER / "session.json"


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
    try:
        session = _stored()
    except Unreadable as error:
        say(f"{RECORD} is not used: it is damaged ({error}); try: rm {RECORD}")
        return None
    try:
        if session is not None:
            check_regular(session.artifact)
    except Unreadable:
        return None
    return session


def write(session: Session) -> None:
    """Remember it. A record that is damaged, or not ours, stays as it is.

    Raises:
        OutputError: it cannot be written.
    """
    try:
        _stored()
    except Unreadable as error:
        raise OutputError(f"{RECORD} is damaged; it is not overwritten", got=str(error)) from error
    make_folder(FOLDER)
    write_json(RECORD, asdict(session))


def _stored() -> Session | None:
    if not os.path.lexists(RECORD):
        return None
    match read_json(RECORD):
        case {"chain": [str(), *_] as chain} if all(isinstance(entry, str) for entry in chain):
            return Session(tuple(chain))
        case _:
            raise Unreadable("another record than nncompress writes")
