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
    """The session of this directory, None where there is none or its artifact is gone."""
    try:
        stored = json.loads((FOLDER / "session.json").read_text(encoding="utf-8"))
        session = Session(tuple(str(path) for path in stored["chain"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return session if session.chain and Path(session.artifact).is_file() else None


def write(session: Session) -> None:
    """Remember it; a directory that cannot be written to is simply not remembered."""
    try:
        FOLDER.mkdir(exist_ok=True)
        fresh = FOLDER / f"session.json.{os.getpid()}"
        fresh.write_text(json.dumps(asdict(session), indent=1) + "\n", encoding="utf-8")
        os.replace(fresh, FOLDER / "session.json")
    except OSError:
        return
