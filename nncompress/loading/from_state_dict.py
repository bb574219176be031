"""Weights without a graph (`.pt`, `.pth`, `.safetensors`), and putting them into their architecture."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from nncompress.errors import ModelFileError
from nncompress.loading.json_schema import Rejected
from nncompress.loading.packed_tensors import restore_tensors
from nncompress.loading.pickle.read import describe

# where training scripts keep the weights inside a checkpoint, and what wrappers put before each name
_NESTED = (
    "state_dict",
    "model_state_dict",
    "model",
    "net",
    "module",
    "weights",
    "ema",
    "model_ema",
    "state_dict_ema",
    "params",
)
_MOST_DEEP = 3
_MOST_KEYS = 1000  # of one table that is searched
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


def find_state_dict(
    found: Any, path: Path, notice: Callable[[str], None] = lambda sentence: None
) -> dict[str, Tensor]:
    """The table of tensors in what a checkpoint holds, up to three keys deep.

    Of several, the one under a key that training scripts use for the weights; `notice` is told of the others.

    Raises:
        ModelFileError: there is none, or several under keys that tell nothing.
    """
    tables = dict(_tables(found, ()))
    usual = [key for name in _NESTED for key in tables if key[-1:] == (name,)]
    if not tables:
        raise ModelFileError(
            f"{path} holds no weights",
            got=describe(found),
            expected=f"a state_dict (names to tensors), or one under {', '.join(map(repr, _NESTED[:4]))}",
            remedy="save model.state_dict() with torch.save",
        )
    if len(tables) > 1 and not usual:
        meant = f"torch.load({path.name!r}){_index(next(iter(tables)))}"
        raise ModelFileError(
            f"{path} holds several tables of weights",
            got=", ".join(map(_shown_key, tables))[:500],
            remedy=f"save the one that is meant: torch.save({meant}, 'weights.pt')",
        )
    chosen = usual[0] if usual and () not in tables else next(iter(tables))
    if chosen:
        others = [_shown_key(key) for key in tables if key != chosen]
        beside = f"; not those under {', '.join(others[:5])}" if others else ""
        notice(f"weights of {path} taken from {_shown_key(chosen)}{beside}")
    return tables[chosen]


def _tables(value: Any, key: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], dict[str, Tensor]]]:
    if not isinstance(value, Mapping) or len(key) > _MOST_DEEP:
        return
    if value and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in value.items()):
        yield key, dict(value)
        return
    for name, inner in list(value.items())[:_MOST_KEYS]:
        if isinstance(name, str) and "optim" not in name:  # an optimizer's moments are no weights
            yield from _tables(inner, (*key, name))


def _shown_key(key: tuple[str, ...]) -> str:
    return repr(".".join(key))[:80]


def _index(key: tuple[str, ...]) -> str:
    return "".join(f"[{name!r}]" for name in key)[:200]


def _computed(weights: Mapping[str, Tensor], wanted: Mapping[str, Any]) -> dict[str, Tensor]:
    """`weights` with those computed that the architecture stores as one tensor: pruning masks, weight norms.

    weight_orig, weight_mask                                             weight = orig · mask
    weight_g, weight_v  or  parametrizations.weight.original0, original1 weight = g · v / |v|
    """
    plain = dict(weights)
    for name in weights:
        if name in wanted:
            continue
        if name.endswith("_orig") and (mask := f"{name[:-5]}_mask") in weights:
            plain[name[:-5]] = plain.pop(name) * plain.pop(mask)
        for magnitude, direction, at in (("_g", "_v", ""), (".original0", ".original1", "parametrizations.")):
            other = name.removesuffix(magnitude) + direction
            if name.endswith(magnitude) and other in weights:
                g, v = plain.pop(name), plain.pop(other)
                dims = [dim for dim in range(v.dim()) if g.dim() != v.dim() or g.shape[dim] == 1]
                plain[name.removesuffix(magnitude).replace(at, "", 1)] = g * v / v.norm(2, dims, keepdim=True)
    return plain


def fill(module: nn.Module, weights: Mapping[str, Tensor], path: Path, arch: str) -> None:
    """Copy `weights` into `module`, in place, whatever prefix a wrapper gave their names.

    A parameter that is missing but tied to one that is there, and batch-norm counters (`num_batches_tracked`,
    absent in old checkpoints), may be missing.

    Raises:
        ModelFileError: names or shapes do not fit; one message with the first few of each kind.
    """
    wanted = module.state_dict(keep_vars=True)
    weights = _without_prefix(_computed(weights, wanted), wanted)
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
