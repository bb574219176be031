"""Entropy coding of stored bytes: deflate, which every zip and zlib reader knows.

Packed indices have few frequent byte values and hardly any repeated strings, so deflate's Huffman codes alone
(without its search for repetitions) mostly come out smallest, and within a few percent of the entropy.
"""

from __future__ import annotations

import zlib

# An honest stream of ours unpacks to at most so many times its bytes, so whoever reads a stranger's knows
# what memory it may claim. (Deflate goes to 1032; Huffman codes alone go to 8.)
MOST_RATIO = 32
SAMPLE = 2**20  # bytes on which the strategies compete
MEMORY = 9  # deflate's largest: longer blocks between new tables of codes


def encode(data: bytes) -> bytes:
    """The raw deflate stream of `data`, at least 1/32 of its size."""
    best = min((zlib.Z_HUFFMAN_ONLY, zlib.Z_DEFAULT_STRATEGY), key=lambda s: len(_deflate(data[:SAMPLE], s)))
    stream = _deflate(data, best)
    return stream if len(data) <= MOST_RATIO * len(stream) else _deflate(data, zlib.Z_HUFFMAN_ONLY)


def decode(stream: bytes, size: int) -> bytes:
    """The `size` bytes that `encode` made `stream` of; no more memory than that is claimed.

    Raises:
        ValueError: it is damaged, or makes more or fewer bytes, or claims more than 32 times its own.
    """
    if size > MOST_RATIO * len(stream):
        raise ValueError(
            f"{len(stream)} bytes that claim to unpack to {size}; at most {MOST_RATIO} times is read"
        )
    decoder = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        data = decoder.decompress(stream, size + 1)
    except zlib.error as error:
        raise ValueError(f"a damaged stream: {error}") from error
    if len(data) != size or not decoder.eof:
        raise ValueError(f"a stream that does not unpack to the {size} bytes it claims")
    return data


def _deflate(data: bytes, strategy: int) -> bytes:
    coder = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS, MEMORY, strategy)
    return coder.compress(data) + coder.flush()
