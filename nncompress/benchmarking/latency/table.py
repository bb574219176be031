"""Latencies of layers on this machine, measured once and remembered.

One file per machine, runtime and number of threads; in it, per input shape and layer, what the layer takes
and what each of its replacements takes as a share of that.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nncompress.benchmarking.latency.layer import THREADS, Latencies, measure
from nncompress.benchmarking.latency.layer_file import Chain
from nncompress.devices import machine
from nncompress.files.remembered import Remembered
from nncompress.runtimes import version
from nncompress.targets import Target


class LatencyTable:
    """What was measured on this machine, by this or an earlier process.

    Attributes:
        file: where it is kept.

    Args:
        target: where the layers run.
        folder: where it is kept; default the user's cache folder. Where that cannot be written, it is
            kept for this process only.
    """

    def __init__(self, target: Target, folder: Path | None = None) -> None:
        self.target = target
        key = {
            "machine": machine(),
            "runtime": f"{target.title} {version(target.runtime)}",
            "threads": THREADS,
        }
        self.file = Remembered("layer-latency", key, folder)
        self._layers = self._read()

    @property
    def unkept(self) -> str:
        """Why what was measured will be measured again by the next process; "" where it is kept."""
        return self.file.unkept

    def latencies(self, reference: Chain, chains: Sequence[Chain], shape: tuple[int, ...]) -> Latencies:
        """As `measure`, of which only what is not known yet is measured."""
        known = self._known(reference, shape)
        missing = [chain for chain in chains if known is None or _text(chain) not in known["shares"]]
        if known is None or missing:
            found = measure(reference, missing, shape, self.target)
            # What another process has written meanwhile holds for this one, too: they are to choose alike.
            name = _name(reference, shape)
            own = {_text(chain): share for chain, share in zip(missing, found.shares)}
            mine = self._layers.setdefault(name, {"seconds": found.reference, "shares": {}})
            mine["shares"].update(own)
            for other, entry in self._read().items():
                shares = self._layers.get(other, entry)["shares"] | entry["shares"]
                self._layers[other] = {"seconds": entry["seconds"], "shares": shares}
            known = self._layers[name]
            self.file.write({"layers": self._layers})
        return Latencies(known["seconds"], tuple(known["shares"][_text(chain)] for chain in chains))

    def _known(self, reference: Chain, shape: tuple[int, ...]) -> dict[str, Any] | None:
        return self._layers.get(_name(reference, shape))

    def _read(self) -> dict[str, Any]:
        """What the file holds; nothing where it is not one of ours."""
        try:
            layers = self.file.read().get("layers", {})
            return {name: entry for name, entry in layers.items() if _is_entry(entry)}
        except (TypeError, KeyError, AttributeError):
            return {}


def _name(reference: Chain, shape: tuple[int, ...]) -> str:
    return f"{'x'.join(map(str, shape))}: {_text(reference)}"


def _text(chain: Chain) -> str:
    return ", ".join(map(str, chain))


def _is_entry(entry: Any) -> bool:
    return _is_time(entry["seconds"]) and all(_is_time(share) for share in entry["shares"].values())


def _is_time(value: Any) -> bool:
    return isinstance(value, float) and 0 < value < 1e6
