"""Zip archives as torch writes them: members stored, not compressed, so none is larger than the file."""

from __future__ import annotations

import zipfile
from pathlib import Path

MAX_MEMBERS = 200_000


def check_stored(archive: zipfile.ZipFile, path: Path) -> None:
    """Refuse an archive whose members could unpack to more than the file at `path` holds.

    Raises:
        ValueError: it is cut, compressed or encrypted, or its members overlap or bear the same name.
    """
    infos = archive.infolist()
    if not infos or len(infos) > MAX_MEMBERS:
        raise ValueError(f"it has {len(infos)} members")
    # A cut file may end in an archive that it contains (torch stores sample inputs as one).
    if min(info.header_offset for info in infos) != 0:
        raise ValueError("its directory of members is cut off")
    names = set()
    for info in infos:
        if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
            raise ValueError(f"the member {info.filename!r} is compressed")
        if info.filename in names:
            raise ValueError(f"the member {info.filename!r} is doubled")
        names.add(info.filename)
    if sum(info.file_size for info in infos) > path.stat().st_size:
        raise ValueError("its members claim more bytes than the file has")
