"""What else the machine did during a measurement: other programs' work, and throttling that was counted."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

CPUS = Path("/sys/devices/system/cpu")
STAT = Path("/proc/stat")
WORKING = (1, 2, 3, 6, 7, 8)  # fields of /proc/stat's first line: user nice system irq softirq steal


@dataclass(frozen=True)
class Activity:
    """Counters at one moment; None where the system does not tell.

    Attributes:
        wall: seconds.
        all_programs: seconds that all cores worked since the start of the machine.
        own: seconds that this process and its finished children worked.
        throttled: how often the processor throttled for heat.
    """

    wall: float
    all_programs: float | None
    own: float
    throttled: int | None


@dataclass(frozen=True)
class Meanwhile:
    """Between two moments.

    Attributes:
        other_cores: how many cores other programs kept busy, on average.
        throttled: how often the processor throttled for heat.
    """

    other_cores: float | None
    throttled: int | None


def activity() -> Activity:
    """The counters now."""
    return Activity(time.perf_counter(), _all_programs(), _own(), _throttled())


def _own() -> float:
    if sys.platform == "win32":  # which counts no children; nor does it tell what all programs did
        return time.process_time()
    import resource

    both = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(spent.ru_utime + spent.ru_stime for spent in both)


def between(before: Activity, after: Activity) -> Meanwhile:
    """What happened between two calls of `activity`."""
    seconds = after.wall - before.wall
    others = None
    if before.all_programs is not None and after.all_programs is not None and seconds > 0:
        busy = after.all_programs - before.all_programs - (after.own - before.own)
        others = max(0.0, busy / seconds)
    throttled = None
    if before.throttled is not None and after.throttled is not None:
        throttled = after.throttled - before.throttled
    return Meanwhile(others, throttled)


def _all_programs() -> float | None:
    if sys.platform == "win32":
        return None
    try:
        fields = STAT.read_text().split("\n", 1)[0].split()
        ticks = sum(int(fields[i]) for i in WORKING)
    except (OSError, ValueError, IndexError):
        return None
    return ticks / os.sysconf("SC_CLK_TCK")


def _throttled() -> int | None:
    """All cores' counts together; those of a package are the same event seen by each of its cores."""
    found = []
    for path in CPUS.glob("cpu[0-9]*/thermal_throttle/core_throttle_count"):
        try:
            found.append(int(path.read_text()))
        except (OSError, ValueError):
            continue
    return sum(found) if found else None
