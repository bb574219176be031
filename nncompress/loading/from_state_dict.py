"""Weights without a graph (`.pt`, `.pth`, `.safetensors`), and putting them into their architecture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from nncompress.errors import ModelFileError
from nncompress.loading.from_pickle import describe
from nncompress.loading.json_schema import Rejected
from nncompress.loading.packed_tensors import restore_tensors

# where training scripts keep the weights inside a checkpoint, and what wrappers put before each name
_NESTED = ("state_dict", "model_state_dict", "model", "net", "module", "weights", "ema", "params")
_PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "backbone.")


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of a `.safetensors` file.

    Raises:
        ModelFileError: it is damaged.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        tensors = restore_tensors(stored, metadata)
    except (safetensors.SafetensorError, OSError, ValueError, Rejected) as error:
        raise ModelFileError(
            f"{path} is damaged", got=str(error)[:300], expected="a .safetensors file", remedy="copy it again"
        ) from error
    # tied tensors are stored once; the header maps their other names to the stored one
    return tensors | {name: tensors[first] for name, first in metadata.items() if first in tensors}, metadata


def find_state_dict(found: Any, path: Path) -> dict[str, Tensor]:
    """The table of tensors in what a checkpoint holds, also where it is nested.

    Raises:
        ModelFileError: there is none.
    """
    candidates = [found]
    if isinstance(found, Mapping):
        candidates += [found[key] for key in _NESTED if isinstance(found.get(key), Mapping)]
    for candidate in candidates:
        if (
            isinstance(candidate, Mapping)
            and candidate
            and all(isinstance(key, str) and isinstance(value, Tensor) for key, value in candidate.items())
        ):
            return dict(candidate)
    raise ModelFileError(
        f"{path} holds no weights",
        got=describe(found),
        expected=f"a state_dict (names to tensors), or one under {', '.join(map(repr, _NESTED[:4]))}",
        remedy="save model.state_dict() with torch.save",
    )


def fill(module: nn.Module, weights: Mapping[str, Tensor], path: Path, arch: str) -> None:
    """Copy `weights` into `module`, in place, whatever prefix a wrapper gave their names.

    A parameter that is missing but tied to one that is there, and batch-norm counters (`num_batches_tracked`,
    absent in old checkpoints), may be missing.

    Raises:
        ModelFileError: names or shapes do not fit; one message with the first few of each kind.
    """
    wanted = module.state_dict(keep_vars=True)
    weights = _without_prefix(weights, wanted)
    given = {id(wanted[name]) for name in weights if name in wanted}
    missing = [
        name
        for name, tensor in wanted.items()
        if name not in weights and id(tensor) not in given and not name.endswith("num_batches_tracked")
    ]
    unexpected = [name for name in weights if name not in wanted]
    misshaped = [
        f"{name} {tuple(weights[name].shape)} instead of {tuple(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in weights and weights[name].shape != tensor.shape
    ]
    if missing or unexpected or misshaped:
        raise ModelFileError(
            f"the weights of {path} do not fit --arch {arch}",
            got="; ".join(
                f"{len(names)} {kind}: {', '.join(names[:4])}{', …' if len(names) > 4 else ''}"
                for kind, names in (
                    ("missing", missing),
                    ("unexpected", unexpected),
                    ("of another shape", misshaped),
                )
                if names
            ),
            expected=f"{len(wanted)} tensors, as the architecture names them",
            remedy="check that the factory builds the model that was trained, with the same options",
        )
    with torch.no_grad():
        module.load_state_dict(weights, strict=False)


def _without_prefix(weights: Mapping[str, Tensor], wanted: Mapping[str, Any]) -> dict[str, Tensor]:
    """`weights` less the prefixes that all its names share, as far as more of them fit for it."""
    best = dict(weights)
    stripped = best
    while prefix := next((p for p in _PREFIXES if stripped and all(n.startswith(p) for n in stripped)), None):
        stripped = {name.removeprefix(prefix): tensor for name, tensor in stripped.items()}
        if len(stripped.keys() & wanted.keys()) > len(best.keys() & wanted.keys()):
            best = stripped
    return best
