"""The folder that lets a killed run of cycles go on: its state, its models, and the list of what is ours."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nncompress.errors import UsageError
from nncompress.exporting.write.pt2 import write_pt2
from nncompress.files.atomic import replacing
from nncompress.files.bounded_text import Unreadable, read_json
from nncompress.files.json_file import put_json
from nncompress.files.ledger import Ledger
from nncompress.files.leftovers import complete
from nncompress.ir import Model
from nncompress.loading import load_model
from nncompress.loading.json_schema import Rejected, listed, number, optional, plain, record, table_with

FORMAT = 3  # of the folder: 2 counts prunings for max_cycles, where 1 counted trainings; 3 has a ledger


@dataclass
class State:
    """What a killed run needs besides the models, which lie in files of these names."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    current: str = ""  # to be trained next
    best: str = ""  # trained, and good enough
    best_loss: float = float("inf")
    ratio: float | None = None  # of nodes to remove, once the criterion's own number was too many
    retried: int = 0
    stopped: str = ""


_FILE_NAME = plain(str, lambda name: len(name) < 256 and "/" not in name and "\0" not in name)
_RECORD = record(
    identity=table_with(),
    state=record(
        rows=listed(table_with()),
        current=_FILE_NAME,
        best=_FILE_NAME,
        best_loss=number,
        ratio=optional(number),
        retried=plain(int, lambda count: 0 <= count < 2**31),
        stopped=plain(str),
    ),
)


class Folder:
    """Whose files these are, and which of them a run still needs."""

    def __init__(self, path: Path) -> None:
        self.path, self.ledger = path, Ledger(path)

    def stored(self, identity: dict[str, Any]) -> State:
        """The state of the killed run of this identity in this folder; a new one where there is none.

        Raises:
            UsageError: it is of another run.
        """
        path = self.path / "state.json"
        complete(path)
        if not path.exists():
            return State()
        try:
            stored = read_json(path)
            admitted = _RECORD(stored)
            found, state = admitted["identity"], State(**admitted["state"])
        except (Unreadable, Rejected) as error:
            raise UsageError(
                f"{path} cannot be read",
                got=str(error),
                remedy="another --folder, or leave --resume away and move this one elsewhere",
            ) from error
        differing = [k for k, v in identity.items() if found.get(k) != v]
        if differing:
            raise UsageError(
                f"{self.path} is of another run, which would not be continued",
                got="different " + ", ".join(differing),
                remedy="repeat the first command's options, or delete the folder",
            )
        return state

    def keep_state(self, identity: dict[str, Any], state: State) -> None:
        lines = "".join(json.dumps(row) + "\n" for row in state.rows)
        # The folder was found to hold a run of ours only, so what is there of this name is, too.
        with replacing(self.path / "state.json", is_ours=lambda path: True) as temporary:
            put_json(temporary, {"identity": identity, "state": vars(state)})
            (temporary.parent / "cycles.jsonl").write_text(lines, encoding="utf-8")

    def keep_model(self, name: str, model: Model) -> None:
        with self.ledger.writing(name) as temporary:
            write_pt2(model, temporary)

    def model(self, name: str) -> Model:
        return load_model(self.path / name)

    def check(self) -> None:
        """A run begins in a folder of its own.

        Raises:
            UsageError: there is something in it that no run of ours left.
        """
        others = self.ledger.others()
        if others:
            raise UsageError(
                f"{self.path} holds files that are not of cycles, and might be overwritten",
                got=", ".join(others[:5]) + (f" and {len(others) - 5} more" if len(others) > 5 else ""),
                remedy="--folder with a new or empty folder",
            )

    def forget(self) -> None:
        """Remove all that is ours: nothing was reached that a run could go on from."""
        for name in ("state.json", "cycles.jsonl"):
            (self.path / name).unlink(missing_ok=True)
        self.ledger.forget()

    def tidy(self, state: State) -> None:
        """Remove files of ours that no state refers to any more."""
        for name in self.ledger.names:
            if name not in (state.current, state.best):
                self.ledger.remove(name)
