"""What writers left that were killed before they could remove it, as `atomic` lays it out.

    .nncompress-k3v9x0_a.part/writer.json    who writes, locked by that process for as long as it lives
    .nncompress-k3v9x0_a.part/new/model.pt2  what becomes model.pt2 once it is complete and synced
    .nncompress-k3v9x0_a.part/moving         what `new` of several files is called once they take their places

It is told by the name, the content of `writer.json`, and the lock that nobody holds any more. The next one
that writes to that folder removes it. What is left in `moving` is put in its place first, by that one or by
whoever reads one of these files before, so that several files are new together however the one that wrote
them ended. An archive or a copy may bring such a folder, so no link is followed, and nothing is moved but the
very files (by inode) that the writer noted in `writer.json`.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import stat
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from nncompress.errors import ModelFileError, OutputError, Told
from nncompress.files.lock import lock
from nncompress.files.targets import check_target

PREFIX, SUFFIX = ".nncompress-", ".part"
RECORD, NEW, MOVING = "writer.json", "new", "moving"
YOUNG = 60  # seconds: where there are no locks, a writer may be about to sign
PATIENCE = 5  # seconds, for another process to move several files: renames, and one sync of their folder


def remove_leftovers(directory: Path, protect: tuple[str | Path, ...] = ()) -> None:
    """Remove what writers to `directory` left that were killed before they could: nobody holds their lock.

    Those that were killed between the first and the last of several files are finished.

    Args:
        protect: files that are being read: what would replace one of them is left for later.
    """
    for folder in _folders(directory):
        with _record(folder) as record:
            if record is None:  # its writer has just ended or not yet signed, or it is another user's
                with suppress(OSError):
                    folder.rmdir()  # which removes nothing but an empty folder
            elif _is_dead(record) and _finish(folder, record, protect):
                discard(folder)


def remove_replaced(directory: Path, written: set[str]) -> None:
    """Remove what killed writers left to be moved to files that have now been written anew, all of them.

    Of a copied folder no inode is the noted one: nothing else ends what readers are refused for.
    """
    for folder in _folders(directory):
        with _record(folder) as record:
            if record is not None and _is_dead(record) and (left := _left(folder)) and left <= written:
                _tell(f"{', '.join(sorted(left))}: written anew, so what a killed run had left of it goes")
                discard(folder)


def complete(path: Path) -> None:
    """Before `path` is read: where a killed writer had put some of several files in place and `path` is one
    of them, the others take theirs now. Who is moving them at this moment is waited for.

    Raises:
        ModelFileError: they cannot, or are not in time, so that what would be read is of two writes.
    """
    places, names = {path}, None
    if not os.path.isdir(path):
        links = {path}
        with suppress(ValueError, OSError):  # no name of a file, or not to be seen, as whoever reads it says
            links.add(Path(os.path.realpath(path)))
        places, names = {each.parent for each in links}, {each.name for each in links}
    for folder in (folder for each in places for folder in _folders(each)):
        if not _may_be_read(folder):
            _tell(f"{folder} is another user's, who writes there or was killed: {path} may be of two writes")
            continue
        until = time.monotonic() + PATIENCE
        while not _is_settled(folder, path, names):
            if time.monotonic() >= until:
                raise ModelFileError(
                    f"{path} is one of several files that another process is replacing",
                    got=f"after {PATIENCE} seconds, some of them are still in {folder / MOVING}",
                    remedy="read it once that process has ended; "
                    f"if it was one of another machine and was killed, delete {folder}",
                )
            time.sleep(0.02)


def _is_settled(folder: Path, path: Path, names: set[str] | None) -> bool:
    """Whether nothing in the folder is to be moved any more that is read with `path`; False while another
    process is at it."""
    with _record(folder) as record:
        if record is None or (dead := _is_dead(record)) is None or not _is_under_way(folder, record, names):
            return True
        if not dead:
            return False
        if not _finish(folder, record, ()):
            raise ModelFileError(
                f"{path} is one of several files, of which some were replaced when a run was killed",
                got=f"the others in {folder / MOVING}, which cannot be put in place",
                remedy=_remedy(folder, path),
            )
        discard(folder)
        return True


def _remedy(folder: Path, path: Path) -> str:
    if all(os.access(each, os.W_OK | os.X_OK) for each in (folder.parent, folder, folder / MOVING)):
        return f"write all of them anew; or delete {folder}, to read the files as they are"
    return (
        f"copy the files elsewhere without {folder.name}, to read them as they are; "
        f"or get the right to write to {folder.parent} and all of {folder.name}, and read {path} again"
    )


def _folders(directory: Path) -> list[Path]:
    try:
        return [folder for folder in directory.glob(f"{PREFIX}*{SUFFIX}") if not folder.is_symlink()]
    except PermissionError:  # as whoever reads or writes a file there says
        return []


@contextmanager
def _record(folder: Path) -> Iterator[int | None]:
    """The descriptor of the record; None where it cannot be opened.

    To judge, the right to read is enough (a read-only mount); some network file systems lock only what may
    be written.
    """
    for access in (os.O_RDWR, os.O_RDONLY):
        with suppress(OSError):
            descriptor = os.open(folder / RECORD, access | getattr(os, "O_NOFOLLOW", 0))
            break
    else:
        yield None
        return
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _is_under_way(folder: Path, record: int, names: set[str] | None) -> bool:
    """Whether files of these names, or any, were about to be moved when some had been."""
    left, noted = _left(folder), _notes(record) or {}
    return bool(left) and (names is None or not names.isdisjoint({*left, *noted}))


def _left(folder: Path) -> set[str]:
    """The names of the files that were about to be moved and are not."""
    try:
        return set(os.listdir(folder / MOVING))
    except OSError:  # there is none, or it has just been removed
        return set()


def _may_be_read(folder: Path) -> bool:
    """Whether all that tells a leftover may be looked into, as far as it is there."""
    needed = {folder: os.R_OK | os.X_OK, folder / RECORD: os.R_OK, folder / MOVING: os.R_OK | os.X_OK}
    return all(os.access(part, right) or not os.path.exists(part) for part, right in needed.items())


def _finish(folder: Path, record: int, protect: tuple[str | Path, ...]) -> bool:
    """Put the files in their places that a killed writer had begun to; False where that has to wait.

    What somebody else has put in such a place since then stays, and all that was left goes.
    """
    moving = folder / MOVING
    if not os.path.lexists(moving):
        return True
    if not all(_is_own(state) for state in (folder.lstat(), os.fstat(record))):
        return False
    began = moving.lstat().st_ctime_ns
    left = _noted(moving, record)
    if left is None:
        _tell(f"{moving} is left alone: it is not what a run that was killed had noted; delete {folder}")
        return False
    places = [folder.parent / file.name for file in left]
    try:
        for place in places:
            check_target(place, protect)
    except OutputError:
        return False
    names = ", ".join(place.name for place in places)
    if any(os.path.lexists(place) and place.lstat().st_ctime_ns > began for place in places):
        _tell(f"a run that was killed had not put {names} in place; others are there since, which stay")
        return True
    try:
        for file, place in zip(left, places):
            os.replace(file, place)
    except OSError as error:  # what is written now has nothing to do with it
        _tell(
            f"{names}: a run that was killed had not put them in place, nor can they be now: {error.strerror}"
        )
        return False
    if left:
        _tell(f"{names}: put in place now, where a run that was killed had not")
    return True


def _noted(moving: Path, record: int) -> list[Path] | None:
    """The files in `moving` in their order; None where something is not what its writer noted."""
    if not stat.S_ISDIR(moving.lstat().st_mode) or not _is_own(moving.lstat()):
        return None
    noted = _notes(record)
    if noted is None:
        return None
    try:
        left = {file.name: file.lstat() for file in moving.iterdir()}
    except OSError:
        return None
    if any(noted.get(name) != state.st_ino or not _is_own(state) for name, state in left.items()):
        return None
    if not all(stat.S_ISREG(state.st_mode) for state in left.values()):
        return None
    return [moving / name for name in noted if name in left]


def _notes(record: int) -> dict[str, int] | None:
    """The second line of the record; None where it is not as a writer notes it."""
    try:
        os.lseek(record, 0, os.SEEK_SET)
        with open(os.dup(record), encoding="utf-8") as lines:
            noted = json.loads(lines.read().splitlines()[1])
    except (OSError, ValueError, IndexError):
        return None
    return noted if isinstance(noted, dict) else None


def _is_own(state: os.stat_result) -> bool:
    return not hasattr(os, "geteuid") or state.st_uid == os.geteuid()


def _tell(what: str) -> None:
    warnings.warn(what, Told, stacklevel=3)


def _is_dead(descriptor: int) -> bool | None:
    """Whether the writer that signed is no more; takes its lock then. None where it is not one of ours."""
    try:
        content = os.read(descriptor, 4096).partition(b"\n")[0]
        signed = json.loads(content) if content else {"writer": "nncompress"}  # killed before it signed
        if signed["writer"] != "nncompress":
            return None
        taken = lock(descriptor)
        if taken is not None:
            return taken
        if not content:
            return time.time() - os.fstat(descriptor).st_mtime > YOUNG
    except (OSError, ValueError, KeyError, TypeError):  # not ours
        return None
    # No locks here, and processes of other hosts cannot be asked.
    return signed.get("host") == socket.gethostname() and not _is_alive(signed.get("pid"))


def _is_alive(pid: object) -> bool:
    if not isinstance(pid, int) or pid <= 0 or sys.platform == "win32":  # where kill(pid, 0) kills
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def discard(folder: Path) -> None:
    """Remove what `replacing` put there, and the folder if that was all."""
    for part in (NEW, MOVING):
        shutil.rmtree(folder / part, ignore_errors=True)
    with suppress(OSError):
        (folder / RECORD).unlink(missing_ok=True)
        folder.rmdir()
