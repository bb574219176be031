"""Processes that end at a chosen instant."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

_BETWEEN = """
import os, shutil, signal, sys
from pathlib import Path
from nncompress.files.atomic import replacing
move = os.replace
def killed(source, target):
    move(source, target)
    os.kill(os.getpid(), signal.SIGKILL)
target, *others = map(Path, sys.argv[2:])
with replacing(Path(sys.argv[1]) / target.name, is_ours=lambda path: True) as path:
    for file in (target, *others):
        shutil.copy(file, path.with_name(file.name))
    os.replace = killed
"""


def half_moved(to: Path, target: Path, other: Path) -> None:
    """Two files as a writer leaves them that is killed when it has put the second in place."""
    command = [sys.executable, "-c", _BETWEEN, *map(str, (to, target, other))]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL


class Killed(Exception):
    """What ends it: nothing in the project catches this."""


class Kill:
    """A progress display that ends the process, as it were, at its n-th call."""

    def __init__(self, at: int) -> None:
        self.left = at

    def step(self, description: str, done: int, total: int | None) -> None:
        self.left -= 1
        if self.left < 0:
            raise Killed
