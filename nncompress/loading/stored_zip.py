"""Zip archives as torch writes them: members stored, so that none is larger than the file.

Ours may be deflated (`nncompress.exporting.deflated_zip`), to at most 32 times their bytes.
"""

from __future__ import annotations

import zipfile
from pathlib import Path

MAX_MEMBERS = 200_000


def check_members(archive: zipfile.ZipFile, path: Path, *, deflated: int = 0) -> None:
    """Refuse an archive whose members could unpack to more than the file at `path` holds.

    Args:
        deflated: how many times their bytes deflated members may unpack to; 0: none may be deflated.

    Raises:
        ValueError: it is cut, encrypted or compressed otherwise, or its members overlap or share a name.
    """
    infos = archive.infolist()
    if not infos or len(infos) > MAX_MEMBERS:
        raise ValueError(f"it has {len(infos)} members")
    # A cut file may end in an archive that it contains (torch stores sample inputs as one).
    if min(info.header_offset for info in infos) != 0:
        raise ValueError("its directory of members is cut off")
    names = set()
    for info in infos:
        if deflated and info.compress_type == zipfile.ZIP_DEFLATED:
            if info.file_size > deflated * info.compress_size:
                raise ValueError(
                    f"the member {info.filename!r}, of {info.compress_size} bytes, claims to unpack to "
                    f"{info.file_size}; at most {deflated} times is read"
                )
        elif info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
            raise ValueError(f"the member {info.filename!r} is compressed")
        if info.filename in names:
            raise ValueError(f"the member {info.filename!r} is doubled")
        names.add(info.filename)
    if sum(info.compress_size for info in infos) > path.stat().st_size:
        raise ValueError("its members claim more bytes than the file has")
