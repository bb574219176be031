"""Weights without a graph (`.pt`, `.pth`, `.safetensors`), and putting them into their architecture."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from nncompress.dtypes import dtype_name
from nncompress.errors import ModelFileError
from nncompress.ir.graph.tracing import original_name
from nncompress.loading.json_schema import Rejected
from nncompress.loading.state_dict.computed_weights import computed, transposed_weights
from nncompress.loading.state_dict.packed_tensors import restore_tensors
from nncompress.loading.state_dict.shards import open_checkpoint

# what wrappers put before each name
_WRAPPED = (
    "_orig_mod",
    "_fsdp_wrapped_module",
    "_checkpoint_wrapped_module",
    "_forward_module",
)  # of one of its modules
_PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "backbone.")
_COUNTERS = {"n_averaged"}
_ADAPTER = re.compile(r"(^|\.)lora_[A-Za-z]")  # of peft and of loralib


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of a `.safetensors` file.

    Raises:
        ModelFileError: it is damaged.
    """
    stored, metadata = read_stored(path)
    try:
        tensors = restore_tensors(stored, metadata)
    except (ValueError, Rejected) as error:
        raise _damaged(path, error) from error
    # tied tensors are stored once; the header maps their other names to the stored one
    return tensors | {name: tensors[first] for name, first in metadata.items() if first in tensors}, metadata


def read_shards(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """As `read_safetensors`, of all shards that an index lists, with the metadata of the first.

    Args:
        path: the index, or its folder.

    Raises:
        ModelFileError: a shard is missing or damaged, or the index does not tell the truth.
    """
    tensors: dict[str, Tensor] = {}
    files = open_checkpoint(path).files
    headers = []
    for file in files:
        found, header = read_safetensors(file)
        tensors |= found
        headers.append(header)
    return tensors, headers[0]


def read_stored(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """As `read_safetensors`, with the tensors as they lie in the file.

    Raises:
        ModelFileError: it is damaged.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            names = file.keys()
            return {name: file.get_tensor(name) for name in names}, dict(file.metadata() or {})
    except (safetensors.SafetensorError, OSError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> ModelFileError:
    return ModelFileError(
        f"{path} is damaged", got=str(error)[:300], expected="a .safetensors file", remedy="copy it again"
    )


def fill(
    module: nn.Module,
    weights: Mapping[str, Tensor],
    path: Path,
    arch: str,
    *,
    key: str = "",
    passes: Sequence[str] = (),
    strict: bool = True,
    notice: Callable[[str], None] = lambda sentence: None,
) -> None:
    """Copy `weights` into `module`, in place, whatever prefix a wrapper gave their names.

    A parameter that is missing but tied to one that is there, and counters of wrappers and of batch norm
    (`num_batches_tracked`, absent in old checkpoints), may be missing or too many.

    Args:
        key: where in their file the weights lay, for the message.
        passes: what has changed the network since, by the file's own word, for the message.
        strict: False (`--no-strict`): what is missing keeps the value that `arch` gave it, what is unexpected
            is left out, and `notice` is told of both.

    Raises:
        ModelFileError: names or shapes do not fit; one message with the first few of each kind.
    """
    check_plain(weights, path)
    wanted = module.state_dict(keep_vars=True)
    weights = {original_name(name, wanted): tensor for name, tensor in weights.items()}
    named, weights = weights, _without_prefix(weights, wanted, transposed_weights(module))
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
    casts = {name: _cast(weights[name], tensor.dtype) for name, tensor in wanted.items() if name in weights}
    lost = [
        f"{name} {dtype_name(weights[name].dtype)} instead of {dtype_name(wanted[name].dtype)}"
        for name, cast in casts.items()
        if cast == LOST
    ]
    torn = [] if misshaped else _torn(weights, wanted)
    if misshaped or lost or not given or (strict and (missing or unexpected or torn)):
        raise ModelFileError(
            f"the weights of {path} do not fit --arch {arch}",
            got=_listed(missing, unexpected, misshaped, lost, torn),
            expected=f"{len(wanted)} tensors, as the architecture names them",
            remedy=how_to_open(passes)
            if passes
            else "build it without tying them; or --no-strict, which takes the last of them"
            if torn and not (missing or unexpected)
            else _remedy(
                path,
                key,
                [n for n in unexpected if n in named],
                tuple(wanted),
                bool(given) and not misshaped + lost,
            ),
        )
    if missing or unexpected or torn:
        notice(
            f"--no-strict: {path} against --arch {arch}: {_listed(missing, unexpected, [], [], torn)}"
            + ("; what is missing has the values that the factory gave it" if missing else "")
            + ("; of those that differ the last is taken" if torn else "")
        )
    for kind, sentence in _SAID.items():
        if names := [name for name, cast in casts.items() if cast == kind]:
            shown = f"{', '.join(names[:4])}{', …' if names[4:] else ''}"
            first = names[0]
            here = f"{dtype_name(weights[first].dtype)}, {dtype_name(wanted[first].dtype)} in --arch"
            notice(f"{path}: {sentence}: {shown} ({here})"[:1000])
    with torch.no_grad():
        module.load_state_dict(weights, strict=False)


def check_plain(weights: Mapping[str, Tensor], path: Path) -> None:
    """Refuse what holds no numbers, or not one for each place.

    Raises:
        ModelFileError: naming the first.
    """
    for name, tensor in weights.items():
        if tensor.is_quantized:
            raise ModelFileError(
                f"{path}: the weight {name:.100} is quantized by torch",
                got=dtype_name(tensor.dtype),
                remedy="save its floats, tensor.dequantize(), and `nncompress quantize` the network",
            )
        if tensor.is_nested or tensor.layout != torch.strided or tensor.is_meta:
            what = "nested" if tensor.is_nested else "without numbers (meta)" if tensor.is_meta else "sparse"
            raise ModelFileError(
                f"{path}: the weight {name:.100} is {what}",
                remedy="save dense tensors that hold numbers: tensor.to_dense()",
            )


LOST, CODES, ROUNDED = "lost", "codes", "rounded"
_SAID = {
    CODES: "weights that are not stored as floats of 16 bits or more are taken as they are (codes of "
    "quantized ones would lack their scales)",
    ROUNDED: "weights are rounded to what the architecture has",
}


def _cast(stored: Tensor, dtype: torch.dtype) -> str:
    """What becomes of a weight that is copied to a tensor of another dtype; "" where nothing does.

    Returns: LOST where it would be another network: dropped imaginary parts or fractions, numbers that do not
        fit. CODES where it is not stored as the floats that the network has. ROUNDED where it is that alone.
    """
    if stored.dtype == dtype:
        return ""
    if stored.dtype.is_complex:
        if dtype.is_complex:
            return ROUNDED if not torch.equal(stored.to(dtype).to(stored.dtype), stored) else ""
        return LOST if stored.imag.any() else _cast(stored.real, dtype)
    floats = dtype.is_floating_point or dtype.is_complex
    if stored.dtype.is_floating_point and stored.dtype.itemsize == 1:  # which torch compares with nothing
        return CODES if floats else _cast(stored.float(), dtype)
    back = stored.to(dtype).to(stored.dtype)
    if stored.dtype.is_floating_point and not torch.equal(back.isfinite(), stored.isfinite()):
        return LOST  # the least number of float32, of a mask, is -inf in bfloat16
    same = torch.equal(back.nan_to_num(), stored.nan_to_num())
    if not stored.dtype.is_floating_point:
        return LOST if not same else CODES if floats else ""
    if same:
        return ""
    return ROUNDED if floats else LOST


def without_constants(
    module: nn.Module,
    weights: Mapping[str, Tensor],
    constants: Collection[str],
    notice: Callable[[str], None],
) -> dict[str, Tensor]:
    """`weights` less what no state_dict of the architecture holds, though the graph they came from did.

    A tensor that the architecture has under that name (a buffer that is not saved, a plain attribute) gets
    the stored values. What it only writes out in its code (a literal) is its own, of which `notice` is told.
    """
    kept = dict(weights)
    own = []
    saved = module.state_dict(keep_vars=True)
    for name in constants:
        if name not in kept or name in saved:
            continue
        value, held = kept.pop(name), _attribute(module, name)
        if isinstance(held, Tensor) and held.shape == value.shape:
            with torch.no_grad():
                held.copy_(value)
        else:
            own.append(name)
    if own:
        notice(f"constants in the code of --arch are taken as they are there: {', '.join(own[:5])}")
    return kept


def _attribute(module: nn.Module, name: str) -> Any:
    value: Any = module
    for part in name.split("."):
        value = getattr(value, part, None)
    return value


def _listed(*kinds: Sequence[str]) -> str:
    return "; ".join(
        f"{len(names)} {kind}: {', '.join(names[:4])}{', …' if len(names) > 4 else ''}"
        for kind, names in zip(
            (
                "missing",
                "unexpected",
                "of another shape",
                "that would lose their values",
                "tied in --arch, and of other values here",
            ),
            kinds,
        )
        if names
    )[:1000]


def _torn(weights: Mapping[str, Tensor], wanted: Mapping[str, Any]) -> list[str]:
    """Pairs of names that are one tensor of the architecture, which no two values fit."""
    first: dict[int, str] = {}
    pairs = []
    for name in (name for name in wanted if name in weights):
        other = first.setdefault(id(wanted[name]), name)
        if other == name:
            continue
        both = weights[other], weights[name]
        coarser = min((each.dtype for each in both), key=lambda dtype: dtype.itemsize)  # both are of it
        exact = torch.complex128 if wanted[name].is_complex() else torch.float64
        one, two = (each.to(coarser).to(exact) for each in both)
        if not ((one == two) | (one.isnan() & two.isnan())).all():
            pairs.append(f"{other} and {name}")
    return pairs


def _remedy(path: Path, key: str, unexpected: Sequence[str], wanted: tuple[str, ...], partly: bool) -> str:
    if re.search(r"-\d+-of-\d+\.", path.name):
        return (
            "this is one shard of several; where the model is: torch.save(model.state_dict(), 'weights.pt')"
        )
    if any(_ADAPTER.search(name) for name in unexpected):
        return (
            "these are adapters (LoRA), and nothing here says how they scale: save the network with them "
            "merged: model = model.merge_and_unload(); torch.save(model.state_dict(), 'merged.pt')"
        )
    if any(".parametrizations." in f".{name}" for name in unexpected):
        return (
            "let the factory register what computes these (torch.nn.utils.parametrize) as the training did, "
            "or save without it: torch.nn.utils.parametrize.remove_parametrizations(layer, 'weight') first"
        )
    remedy = "check that the factory builds the model that was trained, with the same options"
    below = [(first, rest) for first, dot, rest in (name.partition(".") for name in unexpected) if dot]
    fits = Counter(first for first, rest in below if rest.endswith(wanted))
    if fits and len({first for first, _ in below}) > 1:
        most = fits.most_common(1)[0][0]
        stated = shlex.quote(f"{key}.{most}".strip("."))
        remedy += f"; --weights-key {stated} takes those whose names begin with {most}."
    return f"{remedy}; --no-strict leaves out what does not fit" if partly else remedy


def how_to_open(passes: Sequence[str]) -> str:
    """Weights alone, which passes have changed."""
    if not passes:
        return "say what builds the network: --arch file.py:factory or --arch package.module:factory"
    return (
        f"open the .pt2 that it was exported from, which has the network as it is after {', '.join(passes)}; "
        "weights alone need a factory that builds that: --arch file.py:factory"
    )


def _without_prefix(
    weights: Mapping[str, Tensor], wanted: Mapping[str, Any], transposed: Collection[str]
) -> dict[str, Tensor]:
    """`weights` as the architecture names them, less the prefix that wrappers put before all their names.

    What a wrapper counts (`n_averaged` of torch.optim.swa_utils.AveragedModel) goes with its prefix.
    """
    best = computed(weights, wanted, transposed)
    bare = {".".join(p for p in name.split(".") if p not in _WRAPPED): t for name, t in weights.items()}
    stripped = bare if len(bare) == len(weights) else dict(weights)
    plain = computed(stripped, wanted, transposed)
    if len(plain.keys() & wanted.keys()) > len(best.keys() & wanted.keys()):
        best = plain
    while prefix := next((p for p in _PREFIXES if any(n.startswith(p) for n in stripped)), None):
        others = {name for name in stripped if not name.startswith(prefix)}
        if others - _COUNTERS:
            break
        stripped = {
            name.removeprefix(prefix): tensor for name, tensor in stripped.items() if name not in others
        }
        plain = computed(stripped, wanted, transposed)
        if len(plain.keys() & wanted.keys()) > len(best.keys() & wanted.keys()):
            best = plain
    return best
