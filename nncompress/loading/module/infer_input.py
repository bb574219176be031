"""The input a module takes: from `--input`, or inferred from its first layer by trying the usual sizes."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from nncompress.dtypes import dtype_name
from nncompress.errors import UsageError
from nncompress.ir import InputSpec
from nncompress.ir.graph.stated_input import FORM, InputShape
from nncompress.loading.module.drawn_inputs import drawn_for
from nncompress.loading.module.dry_run import MOST_GUESSED, TooLarge, dry_run, refuse_size
from nncompress.memory import most_bytes

_BATCH = 2  # torch.export keeps a batch dynamic only from two on
_SEQUENCE = 16

# sizes that trained networks take, the likeliest first; 224 early for what only happens to run on 32
_CIFAR_SIZES = (32, 224, 28, 64, 96, 128, 256, 299, 16, 8)
_DIGIT_SIZES = (28, 32, 224, 64, 96, 128, 256, 299, 16, 8)
_IMAGENET_SIZES = (224, 256, 299, 32, 64, 96, 128, 28, 16, 8)
_RARE_SIZES = (48, 384, 192, 160, 112, 512, 100, 200, 20, 12)
_LENGTHS = (128, 256, 512, 1024, 1000, 64, 32, 16, 2048, 4096, 8000, 16000, 100, 50, 8)
_TOKENS = (16, 32, 64, 128, 256, 512, 8, 4, 1)
_VOLUMES = ((16, 112, 112), (8, 32, 32), (16, 16, 16), (32, 32, 32), (64, 64, 64), (8, 8, 8))

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_FIRST_LAYERS = (
    *(*_CONVOLUTIONS, *_NORMS, nn.LayerNorm, nn.Linear, nn.Bilinear, nn.Embedding, nn.EmbeddingBag),
    *(nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention),
)


def with_dtypes(
    module: nn.Module, shapes: Sequence[InputShape], limits: Mapping[str, int] | None = None
) -> list[InputShape]:
    """The shapes, each with a dtype: that of the module's first parameter where none was said.

    Where the module starts with an embedding, inputs are token ids if no dtype of any was said; one that is
    said to be of integers is the ids, and says nothing of the others.

    Args:
        limits: by name, what stays below a number, and so is of integers.
    """
    first = next((layer for _, layer in _first_layers(module)), None)
    integers = any(shape.dtype not in (None, "bool") and not is_float(shape) for shape in shapes)
    ids = isinstance(first, nn.Embedding | nn.EmbeddingBag) and not integers
    default = "int64" if ids else _float_dtype(module)
    return [
        replace(shape, dtype=shape.dtype or ("int64" if shape.name in (limits or {}) else default))
        for shape in shapes
    ]


def is_float(shape: InputShape) -> bool:
    return getattr(torch, str(shape.dtype)).is_floating_point


def example_from_shapes(
    module: nn.Module, shapes: Sequence[InputShape], seed: int = 0, limits: Mapping[str, int] | None = None
) -> tuple[Tensor, ...]:
    """Random inputs of those shapes, as of `drawn_for`.

    Args:
        limits: by name, what integers stay below where that is not the vocabulary.

    Raises:
        UsageError: one takes more memory than there is.
    """
    specs = [
        InputSpec(shape.name or "", str(shape.dtype), shape.shape)
        for shape in with_dtypes(module, shapes, limits)
    ]
    try:
        for spec, shape in zip(specs, shapes):
            refuse_size(shape.shape, spec.torch_dtype(), most_bytes())
    except TooLarge as error:
        raise UsageError("--input states an input that does not fit", got=str(error)) from error
    return drawn_for(module, specs, limits or {}, seed)


def infer_input(module: nn.Module) -> tuple[tuple[Tensor, ...], str]:
    """Example inputs that run through `module`, and a sentence that says what was guessed from what.

    Args:
        module: in eval mode; it is run, without gradients, on the candidates.

    Raises:
        UsageError: it takes several inputs, or none of the usual sizes runs through.
    """
    required = required_inputs(module)
    if len(required) > 1:
        raise UsageError(
            f"the model takes {len(required)} inputs, whose shapes the file does not carry",
            got=", ".join(required),
            remedy=f"give them: --input {stated_form(required)}; {FORM}",
        )
    if (shape := _known_shape(module)) is not None:
        inputs = drawn_for(module, [InputSpec("", _float_dtype(module), shape)])
        if _runs(module, inputs) is None:
            shown = InputShape((1, *shape[1:]))
            return inputs, f"input not given: taken {shown} from its pretrained_cfg; --input states another"
    fallback: tuple[tuple[Tensor, ...], str] | None = None
    failure = ""
    for name, layer in _first_layers(module):
        for shape in _candidates(layer):
            if fallback and shape[-1] in _RARE_SIZES:
                break
            is_ids = isinstance(layer, nn.Embedding | nn.EmbeddingBag)
            dtype = "int64" if is_ids else _float_dtype(module)
            inputs = drawn_for(module, [InputSpec("", dtype, shape)])
            shown = InputShape((1, *shape[1:]), "int64" if is_ids else None)
            guess = f"input not given: guessed {shown} from {_what(name, layer)}; --input states another"
            fits = _runs(module, inputs)
            if fits is None:
                return inputs, guess
            if fits == _TOO_SMALL:
                fallback = fallback or (inputs, guess)
            else:
                failure = fits
    if fallback:
        return fallback
    raise UsageError(
        "the file does not carry the input's shape, and none of the usual sizes runs through",
        got=f"the last one failed with: {failure}" if failure else "no layer whose input size is known",
        remedy=f"give it: --input {FORM}",
    )


# --- candidates -------------------------------------------------------------------------------------------


def _known_shape(module: nn.Module) -> tuple[int, ...] | None:
    """The shape of the images that a module of timm says it takes, batch first."""
    match getattr(module, "pretrained_cfg", None):
        case {"input_size": [int(channels), int(height), int(width)]}:
            return (_BATCH, channels, height, width)
    return None


def _first_layers(module: nn.Module, most: int = 4) -> Iterator[tuple[str, nn.Module]]:
    """The first layers that know their input's size, in the order of registration."""
    found = 0
    inside: str | None = None  # a layer of attention registers linear layers of its own
    for name, layer in module.named_modules():
        if inside is not None and name.startswith(inside):
            continue
        if isinstance(layer, _FIRST_LAYERS):
            inside = f"{name}." if isinstance(layer, nn.MultiheadAttention) else inside
            yield name, layer
            found += 1
            if found == most:
                return


def _candidates(layer: nn.Module) -> list[tuple[int, ...]]:
    """Input shapes, batch first, the likeliest first."""
    match layer:
        case nn.Embedding() | nn.EmbeddingBag():
            return [(_BATCH, length) for length in _TOKENS]
        case nn.Linear() | nn.RNNCellBase():
            features = layer.in_features if isinstance(layer, nn.Linear) else layer.input_size
            return [(_BATCH, features), (_BATCH, _SEQUENCE, features)]
        case nn.RNNBase():
            return [(_BATCH, _SEQUENCE, layer.input_size)]
        case nn.MultiheadAttention():
            return [(_BATCH, _SEQUENCE, layer.embed_dim)]
        case nn.LayerNorm():
            normalized = tuple(layer.normalized_shape)
            return [(_BATCH, *normalized), (_BATCH, _SEQUENCE, *normalized)]
        case nn.Conv1d() | nn.ConvTranspose1d():
            return [(_BATCH, layer.in_channels, length) for length in _LENGTHS]
        case nn.Conv2d() | nn.ConvTranspose2d():
            return [(_BATCH, layer.in_channels, size, size) for size in _image_sizes(layer)]
        case nn.Conv3d() | nn.ConvTranspose3d():
            return [(_BATCH, layer.in_channels, *volume) for volume in _VOLUMES]
        case nn.BatchNorm1d():
            return [(_BATCH, layer.num_features), *((_BATCH, layer.num_features, n) for n in _LENGTHS)]
        case nn.BatchNorm2d():
            return [(_BATCH, layer.num_features, n, n) for n in (*_CIFAR_SIZES, *_RARE_SIZES)]
        case nn.BatchNorm3d():
            return [(_BATCH, layer.num_features, *volume) for volume in _VOLUMES]
    return []


def _image_sizes(layer: nn.Conv2d | nn.ConvTranspose2d) -> tuple[int, ...]:
    """One channel: digits. A first layer that keeps the resolution: CIFAR. One that reduces it: ImageNet."""
    if layer.in_channels == 1:
        return _DIGIT_SIZES + _RARE_SIZES
    if isinstance(layer, nn.ConvTranspose2d) or max(layer.stride) == 1:
        return _CIFAR_SIZES + _RARE_SIZES
    return _IMAGENET_SIZES + _RARE_SIZES


def _what(name: str, layer: nn.Module) -> str:
    kind = type(layer).__name__
    size = next(
        f"{value} {label}"
        for attribute, label in (
            ("num_embeddings", "token ids"),
            ("in_features", "features"),
            ("in_channels", "channels"),
            ("input_size", "features"),
            ("embed_dim", "features"),
            ("num_features", "features"),
            ("normalized_shape", "features"),
        )
        if (value := getattr(layer, attribute, None)) is not None
    )
    return f"the first layer ({f'{name}, ' if name else ''}{kind}, {size})"


# --- running ----------------------------------------------------------------------------------------------

_TOO_SMALL = "too small"


def _runs(module: nn.Module, inputs: tuple[Tensor, ...]) -> str | None:
    """None where `inputs` run through; why not; or `_TOO_SMALL` where a window was larger than its map.

    A network made for 224 pixels may run on 32 by pooling its maps up again from a single pixel: it runs, but
    nobody trained it so.
    """
    small: list[str] = []

    def watch(layer: nn.Module, args: tuple[Tensor, ...]) -> None:
        kernel = getattr(layer, "kernel_size", None)
        sizes = args[0].shape[2:] if args else ()
        if isinstance(kernel, tuple) and any(k > size for k, size in zip(kernel, sizes)):
            small.append(type(layer).__name__)

    hooks = [m.register_forward_pre_hook(watch) for m in module.modules() if isinstance(m, nn.Conv2d)]
    try:
        dry_run(module, inputs, min(MOST_GUESSED, most_bytes()))
        with torch.no_grad():
            module(*inputs)
    except Exception as error:  # a forward that does not fit fails in any way it likes
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
        return f"{type(error).__name__}: {reason[:160]}"
    finally:
        for hook in hooks:
            hook.remove()
    return _TOO_SMALL if small else None


def stated_form(names: Sequence[str]) -> str:
    """How `--input` states several inputs: "x:Bx…,mask:Bx…", and that dtypes may follow."""
    return ",".join(f"{name}:Bx…" for name in names) + " (each with its dtype, as :int64, :bool or :float32)"


def required_inputs(module: nn.Module) -> list[str]:
    """The names of what its forward must be given."""
    try:
        parameters = inspect.signature(module.forward).parameters.values()
    except (TypeError, ValueError):
        return ["input"]
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [p.name for p in parameters if p.kind in kinds and p.default is inspect.Parameter.empty]


def argument_names(module: nn.Module, count: int) -> list[str]:
    """The names of the first `count` arguments of its forward; fewer where it names no more."""
    try:
        parameters = inspect.signature(module.forward).parameters.values()
    except (TypeError, ValueError):
        return []
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [p.name for p in parameters if p.kind in kinds][:count]


def _float_dtype(module: nn.Module) -> str:
    dtype = next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.float32)
    return dtype_name(dtype)
