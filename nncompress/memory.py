"""How much memory there is, and a bound on what reading or running a file may take, whatever it asks for."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from nncompress.errors import ModelFileError

# Times the bytes of a file: what was read, the weights, the graph's own, one more while they are compared
# or optimised for a runtime. benchmarks/cost/load_memory.py: a further byte of a file of linear layers took
# 5.2 as .onnx, at most 3.3 as a pickled module, state_dict, .safetensors, .pt2 or TorchScript, 2.2 where ONNX
# Runtime runs it. Packed weights are unpacked: 16.2 clustered, 12.4 in 4 bits, 21.5 where nine of ten are
# zero, 20.3 as int8 .onnx.
COPIES = 24
LEAST_BEYOND = 2**31  # bytes, beside the copies: what imports and threads take counts, too
_REFUSED = (
    "can't allocate memory",
    "Failed to allocate memory",
    "bad allocation",
    "bad_alloc",
)


if sys.platform == "win32":

    class _MemoryStatus(ctypes.Structure):
        """`MEMORYSTATUSEX` of Windows, whose call asks for its own size first."""

        _fields_ = (
            ("length", ctypes.c_uint32),
            ("load", ctypes.c_uint32),
            ("physical", ctypes.c_uint64),
            ("others", ctypes.c_uint64 * 6),
        )

    def installed() -> int:
        """Bytes of this machine's memory."""
        status = _MemoryStatus()
        status.length = ctypes.sizeof(status)
        if not ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status)):
            raise ctypes.WinError()
        return status.physical

else:

    def installed() -> int:
        """Bytes of this machine's memory."""
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def memory() -> int:
    """Bytes that this process may have: the machine's, or its own limit."""
    there = installed()
    if sys.platform == "win32":
        return there
    import resource

    limits = (resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA))
    return min([there, *(limit for limit in limits if limit != resource.RLIM_INFINITY)])


def give_back() -> None:
    """Memory that was freed goes back to the system: glibc keeps what lies below a block that is in use."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:  # not in musl
            trim(0)


def most_bytes() -> int:
    """What the tensors of a run, weights and inputs aside, may take at a time; and what one tensor may."""
    return memory() // 4


@contextmanager
def bounded_memory(what: object, stored: int) -> Iterator[None]:
    """Inside, the process may take `COPIES` times the `stored` bytes of a file and `most_bytes` beyond.

    On Linux, whose kernel is asked to refuse more (`RLIMIT_DATA`); elsewhere nothing is bounded.

    Args:
        what: is read or run, for messages.

    Raises:
        ModelFileError: it asked for more.
    """
    most = COPIES * stored + max(LEAST_BEYOND, most_bytes())
    try:
        with _limit(most):
            yield
    except Exception as error:
        if not is_refusal(error):
            raise
        raise ModelFileError(
            f"{what} asks for more memory than its size explains",
            got=f"more than {most / 1e9:.3g} GB, for {stored} bytes",
            expected=f"at most {COPIES} times its bytes and a quarter of this machine's memory",
            remedy="read it on a machine with more memory, or export the model for a smaller input",
        ) from error


_outside: list[int] = []  # what the process might have before each bound that it is in now


@contextmanager
def unbounded_memory() -> Iterator[None]:
    """Inside, as outside of `bounded_memory`: what is read there is not of the file."""
    if sys.platform == "win32" or not _outside:
        yield
        return
    import resource

    bound, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (_outside[0], hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (bound, hard))


@contextmanager
def _limit(beyond: int) -> Iterator[None]:
    if sys.platform != "linux":
        yield
        return
    import resource

    try:
        now = _used()
    except (OSError, StopIteration):
        yield
        return
    before, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limits = [limit for limit in (now + beyond, before, hard) if limit != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_DATA, (min(limits), hard))
    _outside.append(before)
    try:
        yield
    finally:
        _outside.pop()
        resource.setrlimit(resource.RLIMIT_DATA, (before, hard))


def _used() -> int:
    """The bytes that the limit counts: what this process has of memory of its own."""
    with open("/proc/self/status") as lines:
        return int(next(line.split()[1] for line in lines if line.startswith("VmData"))) * 1024


def is_refusal(error: BaseException | None) -> bool:
    """Memory was refused, or that is what the error came from; each library says so in its own words."""
    while error is not None:
        if isinstance(error, MemoryError) or any(sign in str(error) for sign in _REFUSED):
            return True
        error = error.__cause__ or error.__context__
    return False
