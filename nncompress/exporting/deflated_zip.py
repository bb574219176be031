"""A zip archive with its members deflated, each by the strategy that suits it (`ir.formats.deflate`).

`zipfile` deflates with one strategy only, which finds repetitions and misses the entropy of packed indices.
"""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

from nncompress.ir.formats.deflate import encode


def deflate_members(source: Path, target: Path) -> None:
    """Write the archive `source` once more, its members deflated where that makes them smaller."""
    with zipfile.ZipFile(source) as stored, target.open("wb") as file, zipfile.ZipFile(file, "w") as archive:
        for info in stored.infolist():
            data = stored.read(info)
            stream = encode(data)
            # `ZipInfo` has no time of writing: equal models give equal bytes.
            if len(stream) >= len(data) or len(data) >= zipfile.ZIP64_LIMIT:
                archive.writestr(zipfile.ZipInfo(info.filename), data)
                continue
            made = zipfile.ZipInfo(info.filename)
            made.compress_type, made.header_offset = zipfile.ZIP_DEFLATED, file.tell()
            made.CRC, made.file_size, made.compress_size = zlib.crc32(data), len(data), len(stream)
            file.write(made.FileHeader(zip64=False))
            file.write(stream)
            archive.filelist.append(made)
            archive.NameToInfo[made.filename] = made
            archive.start_dir = file.tell()  # where zipfile goes on
