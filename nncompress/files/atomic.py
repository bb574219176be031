"""A file appears whole or not at all.

    .nncompress-k3v9x0_a.part/writer.json    who writes, locked by that process for as long as it lives
    .nncompress-k3v9x0_a.part/new/model.pt2  what becomes model.pt2 once it is complete and synced
    .nncompress-k3v9x0_a.part/moving         what `new` of several files is called once they take their places

The folder lies beside the target, so that the last step is a rename. What a killed process left is removed
by the next one that writes to that directory: it is told by the name, the content of `writer.json`, and the
lock that nobody holds any more. What it left in `moving` is put in its place first, so that several files
are new together however the one that wrote them ended. An archive or a copy may bring such a folder, so no
link is followed, and nothing is moved but the very files (by inode) that the writer noted in `writer.json`.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import socket
import stat
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from nncompress.errors import OutputError, Told
from nncompress.files.interrupts import held_back
from nncompress.files.lock import lock
from nncompress.files.targets import check_chosen, check_target

PREFIX, SUFFIX = ".nncompress-", ".part"
RECORD, NEW, MOVING = "writer.json", "new", "moving"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES)
YOUNG = 60  # seconds: where there are no locks, a writer may be about to sign


@contextmanager
def replacing(
    path: str | Path, protect: Iterable[str | Path] = (), is_ours: Callable[[Path], bool] = lambda path: False
) -> Iterator[Path]:
    """Gives a path to write to; what was written there replaces `path` when the block ends well.

    The path given has the target's name; further files written beside it (external data) move along, before
    the target does. When the block raises, or the process or the machine dies, the target is what it was.

    Args:
        is_ours: whether a file that is there under the name of one of those further files may be replaced.
    Raises:
        OutputError: the folder is missing or unwritable, the target is a folder or one of `protect`, the disk
            is full, or a further file has the name of one that is not ours.
    """
    target, protect = Path(path), tuple(protect)
    check_target(target, protect)
    claimed: list[tuple[Path, int]] = []
    try:
        try:
            remove_leftovers(target.parent, protect)
            with held_back():
                claimed.append(_claim(target.parent))
            new = claimed[0][0] / NEW
            new.mkdir()
        except OSError as error:
            raise _failure(target, error) from error
        try:
            yield new / target.name
            with held_back():  # several files are moved as one
                _move(new, claimed[0][1], target, protect, is_ours)
        except OSError as error:
            raise _failure(target, error) from error
    finally:
        try:
            _release(claimed)
        except BaseException:  # a signal that came before it was held back
            _release(claimed)
            raise


def remove_leftovers(directory: Path, protect: tuple[str | Path, ...] = ()) -> None:
    """Remove what writers to `directory` left that were killed before they could: nobody holds their lock.

    Those that were killed between the first and the last of several files are finished.

    Args:
        protect: files that are being read: what would replace one of them is left for later.
    """
    for folder in directory.glob(f"{PREFIX}*{SUFFIX}"):
        if folder.is_symlink():  # no writer makes one
            continue
        try:
            descriptor = os.open(folder / RECORD, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0))
        except OSError:  # its writer has just ended or not yet signed, or it is another user's
            with suppress(OSError):
                folder.rmdir()  # which removes nothing but an empty folder
            continue
        try:
            if _is_dead(descriptor) and _finish(folder, descriptor, protect):
                _discard(folder)
        finally:
            os.close(descriptor)


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
    try:
        os.lseek(record, 0, os.SEEK_SET)
        with open(os.dup(record), encoding="utf-8") as lines:
            noted = json.loads(lines.read().splitlines()[1])
        left = {file.name: file.lstat() for file in moving.iterdir()}
        if any(noted[name] != state.st_ino or not _is_own(state) for name, state in left.items()):
            return None
    except (OSError, ValueError, IndexError, KeyError, TypeError):  # not as `_note` writes it
        return None
    if not all(stat.S_ISREG(state.st_mode) for state in left.values()):
        return None
    return [moving / name for name in noted if name in left]


def _is_own(state: os.stat_result) -> bool:
    return not hasattr(os, "geteuid") or state.st_uid == os.geteuid()


def _tell(what: str) -> None:
    warnings.warn(what, Told, stacklevel=3)


def _claim(directory: Path) -> tuple[Path, int]:
    """A new folder in `directory`, and the descriptor of its record, which holds the lock."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, suffix=SUFFIX, dir=directory))
        try:
            held = _sign(folder)
        except BaseException:
            _discard(folder)
            raise
        if held is not None:
            return folder, held


def _sign(folder: Path) -> int | None:
    """Write who is at work in the folder; None where another took it for a leftover meanwhile."""
    try:
        descriptor = os.open(folder / RECORD, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    except FileNotFoundError:
        if folder.parent.is_dir():
            return None
        raise
    try:
        if lock(descriptor) is False or os.fstat(descriptor).st_nlink == 0:
            os.close(descriptor)
            return None
        os.write(descriptor, json.dumps({"writer": "nncompress", **_me()}).encode())
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _me() -> dict[str, str | int]:
    return {"host": socket.gethostname(), "pid": os.getpid()}


def _is_dead(descriptor: int) -> bool:
    """Whether the writer that signed is no more; takes its lock then."""
    try:
        content = os.read(descriptor, 4096).partition(b"\n")[0]
        signed = json.loads(content) if content else {"writer": "nncompress"}  # killed before it signed
        if signed["writer"] != "nncompress":
            return False
        taken = lock(descriptor)
        if taken is not None:
            return taken
        if not content:
            return time.time() - os.fstat(descriptor).st_mtime > YOUNG
    except (OSError, ValueError, KeyError, TypeError):  # not ours
        return False
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


def _release(claimed: list[tuple[Path, int]]) -> None:
    """Remove the folders, and take them from the list."""
    with held_back():
        while claimed:
            folder, held = claimed[-1]
            if sys.platform == "win32":  # where what is open cannot be removed
                os.close(held)
                _discard(folder)
            else:
                _discard(folder)
                os.close(held)
            claimed.pop()


def _discard(folder: Path) -> None:
    """Remove what `replacing` put there, and the folder if that was all."""
    for part in (NEW, MOVING):
        shutil.rmtree(folder / part, ignore_errors=True)
    with suppress(OSError):
        (folder / RECORD).unlink(missing_ok=True)
        folder.rmdir()


def _move(
    folder: Path,
    record: int,
    target: Path,
    protect: tuple[str | Path, ...],
    is_ours: Callable[[Path], bool],
) -> None:
    """All files of the folder to where the target is, the target last; begun, that is finished by whoever
    writes there next."""
    written = sorted(folder.iterdir(), key=lambda file: file.name == target.name)
    for file in written:
        check_target(target.parent / file.name, protect)
        if file.name != target.name:
            check_chosen(target.parent / file.name, is_ours, "")
        file.chmod(_mode(target.parent / file.name))
        _sync(file)
    _sync(folder)
    if len(written) > 1:
        _note(written, record)
        folder = folder.rename(folder.with_name(MOVING))
        _sync(folder.parent)
    for file in written:
        os.replace(folder / file.name, target.parent / file.name)
    _sync(target.parent)


def _note(written: list[Path], record: int) -> None:
    """The second line of the record: what is about to be moved, in its order."""
    line = "\n" + json.dumps({file.name: file.lstat().st_ino for file in written})
    with open(os.dup(record), "a", encoding="utf-8") as lines:
        lines.write(line)
    os.fsync(record)


def _mode(target: Path) -> int:
    """Permissions: those of the file that is replaced, else what every new file gets."""
    with suppress(OSError):
        return target.stat().st_mode & 0o777
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


def _failure(target: Path, error: OSError) -> OutputError:
    while target.parent.name == NEW and target.parent.parent.name.endswith(SUFFIX):  # written to be moved
        target = target.parents[2] / target.name
    reason, remedy = why_and_remedy(error, target.parent)
    return OutputError(f"cannot write {target}", got=reason, remedy=remedy)


def is_full(error: OSError) -> bool:
    """The system has no room for what was to be written, or does not let it be."""
    return error.errno in _FULL or _finds_no_scratch(error)


def _finds_no_scratch(error: OSError) -> bool:
    return error.errno == errno.ENOENT and "temporary directory" in (error.strerror or "")


def why_and_remedy(error: OSError, folder: Path | None = None) -> tuple[str, str]:
    """What the system refused, and what to do about it, for a message.

    Args:
        folder: which was to be written to; what failed may be a temporary file elsewhere.
    """
    reason = error.strerror or str(error).splitlines()[0]
    if _finds_no_scratch(error):
        return reason, "name a folder that may be written to: TMPDIR=FOLDER nncompress ..."
    if error.errno == errno.ENAMETOOLONG:  # of a file beside it, mostly
        return reason, "give a shorter name"
    name = error.filename2 or error.filename  # of a copy, what was copied from and what was written
    failed = Path(os.fsdecode(name)) if isinstance(name, str | bytes) else None
    if failed is not None and (folder is None or not failed.is_relative_to(folder)):
        scratch = tempfile.gettempdir()
        if failed.is_relative_to(scratch):
            return f"{reason}: {failed}", f"free some space in {scratch}, or TMPDIR=FOLDER nncompress ..."
    return reason, "check the folder's permissions and free space"


def _sync(path: Path) -> None:
    """To the disk, so that a power cut leaves the old file or the new one."""
    if sys.platform == "win32" and path.is_dir():  # where a directory cannot be opened
        return
    descriptor = os.open(path, os.O_RDWR if sys.platform == "win32" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
