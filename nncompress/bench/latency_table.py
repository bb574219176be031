"""Latencies of layers on this machine, measured once and kept in the user's cache folder.

One file per machine, runtime and number of threads; in it, per input shape and layer, what the layer takes
and what each of its replacements takes as a share of that. Deleting the folder makes everything be measured
anew.

    ~/.cache/nncompress/layer-latency-1f0c….json    ($XDG_CACHE_HOME; on macOS ~/Library/Caches, on Windows
                                                     %LOCALAPPDATA%)
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnxruntime

from nncompress.bench.environment import environment
from nncompress.bench.layer_latency import THREADS, Chain, Latencies, measure
from nncompress.errors import OutputError
from nncompress.files.atomic import replacing
from nncompress.files.bounded_text import Unreadable, read_json
from nncompress.files.folders import cache_folder, make_folder

MACHINE = ("cpu", "architecture", "cores", "instruction_sets")  # of `environment`: what latency depends on


class LatencyTable:
    """What was measured on this machine, by this or an earlier process.

    Args:
        folder: where it is kept; default the user's cache folder. Where that cannot be written, it is
            kept for this process only.

    Attributes:
        unkept: why what was measured will be measured again by the next process; "" where it is kept.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.key = _key()
        digest = hashlib.sha256(json.dumps(self.key, sort_keys=True).encode()).hexdigest()[:16]
        folder = folder or cache_folder()
        self.path = None if folder is None else folder / f"layer-latency-{digest}.json"
        self.unkept = "" if self.path else "the user has no cache folder"
        self._layers = self._read()

    def latencies(self, reference: Chain, chains: Sequence[Chain], shape: tuple[int, ...]) -> Latencies:
        """As `measure`, of which only what is not known yet is measured."""
        known = self._known(reference, shape)
        missing = [chain for chain in chains if known is None or _text(chain) not in known["shares"]]
        if known is None or missing:
            found = measure(reference, missing, shape)
            self._layers = self._read() | self._layers  # another process may have written meanwhile
            known = self._layers.setdefault(
                _name(reference, shape), {"seconds": found.reference, "shares": {}}
            )
            known["shares"].update({_text(chain): share for chain, share in zip(missing, found.shares)})
            self._write()
        return Latencies(known["seconds"], tuple(known["shares"][_text(chain)] for chain in chains))

    def _known(self, reference: Chain, shape: tuple[int, ...]) -> dict[str, Any] | None:
        return self._layers.get(_name(reference, shape))

    def _read(self) -> dict[str, Any]:
        """What the file holds; nothing where there is none, or where it is not one of ours."""
        if self.path is None:
            return {}
        try:
            content = read_json(self.path)
            return {name: entry for name, entry in content["layers"].items() if _is_entry(entry)}
        except (Unreadable, TypeError, KeyError, AttributeError):
            return {}

    def _write(self) -> None:
        if self.path is None:
            return
        text = json.dumps({**self.key, "layers": self._layers}, indent=1)
        try:
            make_folder(self.path.parent)
            with replacing(self.path) as temporary:
                temporary.write_text(text, encoding="utf-8")
        except OutputError as error:  # a read-only home: it is measured anew next time
            self.unkept = f"{error.what} ({error.got})"


def _key() -> dict[str, Any]:
    machine = environment()
    return {
        "machine": {name: machine[name] for name in MACHINE},
        "runtime": f"ONNX Runtime {onnxruntime.__version__} CPU",
        "threads": THREADS,
    }


def _name(reference: Chain, shape: tuple[int, ...]) -> str:
    return f"{'x'.join(map(str, shape))}: {_text(reference)}"


def _text(chain: Chain) -> str:
    return ", ".join(map(str, chain))


def _is_entry(entry: Any) -> bool:
    return _is_time(entry["seconds"]) and all(_is_time(share) for share in entry["shares"].values())


def _is_time(value: Any) -> bool:
    return isinstance(value, float) and 0 < value < 1e6
