"""A directory that `save_pretrained` wrote: config.json and safetensors, opened by transformers' own classes.

No code of the directory is run, nothing is downloaded, and pickled weights are not opened. The class is the
one that the config names: https://huggingface.co/docs/transformers/main_classes/model.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.module import register_module_module_registration_hook

from nncompress.errors import DataError, ModelFileError, UnsafeFileError, UnsupportedError, UsageError
from nncompress.extras import need
from nncompress.files.bounded_text import Unreadable, read_json
from nncompress.ir.graph.stated_input import InputShape
from nncompress.ir.stated_constants import Constant
from nncompress.loading.huggingface_inputs import default_inputs, length_of, normalization
from nncompress.loading.module.fixed_arguments import fix_arguments
from nncompress.loading.module.free_lengths import Length
from nncompress.loading.module.without_weights import without_weights
from nncompress.loading.state_dict.fill import read_shards
from nncompress.loading.state_dict.shards import read_header

CONFIG = "config.json"
MODULES = 64  # of a network for each stored tensor, and 10,000 more
_AGAIN = "model.save_pretrained('folder') writes it anew"
LABELS = 2**20
_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
EXTRA = "huggingface"


@dataclass(frozen=True)
class Found:
    """What a directory holds.

    Attributes:
        module: takes tensors, and gives those of its outputs by name.
        inputs: samples of the data, or two random ones; None where the inputs are stated.
        limits: by name, what integers stay below.
        lengths: of the sequences that its inputs are.
        normalize: how its images are normalised, as --normalize takes it; None where it does not say.
    """

    module: nn.Module
    inputs: tuple[Tensor, ...] | None
    limits: dict[str, int]
    lengths: list[Length | None]
    normalize: str | None


def in_cache(name: Path) -> Path | None:
    """The directory in HuggingFace's cache of the model of that id; None where it has none."""
    if name.exists() or not _ID.fullmatch(str(name)):
        return None
    try:
        from huggingface_hub import try_to_load_from_cache
        from huggingface_hub.errors import HFValidationError
    except ImportError:
        return None
    try:
        found = try_to_load_from_cache(str(name), CONFIG)
    except HFValidationError:  # no id after all: the name of a file that is not there
        return None
    return Path(found).parent if isinstance(found, str) else None


def read_huggingface(
    folder: Path,
    shapes: Sequence[InputShape] | None,
    examples: tuple[Tensor, ...] | Callable[[Sequence[str]], tuple[Tensor, ...]] | None,
    *,
    strict: bool,
    notice: Callable[[str], None],
    constants: Sequence[Constant] = (),
    weights: bool = True,
) -> Found:
    """The model of the directory, with tensors for arguments.

    Args:
        shapes: inputs by name, which become its arguments in that order.
        examples: data instead: tensors of the first inputs that it would take itself, or what gives those
            of their names.
        strict: refuse weights that are missing, or beyond those of the class.
        constants: arguments of its class that have one value.
        weights: False: the model is made without them (see `without_weights`).

    Raises:
        MissingExtraError: transformers is not installed.
        ModelFileError: config or weights are missing, damaged, or do not belong together.
        UnsafeFileError: it needs code of its own, or pickled weights.
        UnsupportedError: its weights are packed by another tool, or it takes inputs that are not known.
    """
    config = _config(folder)
    need(EXTRA, str(folder))
    model = _opened(folder, config, strict, notice) if weights else _empty(folder, config)
    model.config.use_cache = False
    fix_arguments(model, constants, folder)
    given = None
    if shapes is not None and all(shape.name for shape in shapes):
        names = [str(shape.name) for shape in shapes]
        taken = inspect.signature(model.forward).parameters
        if unknown := [name for name in names if name not in taken]:
            raise UsageError(
                f"{folder}: {type(model).__name__} takes no input {unknown[0]!r}",
                expected=", ".join(taken)[:300],
            )
    else:
        defaults = default_inputs(model, folder)
        given = examples(tuple(defaults)) if callable(examples) else examples
        count = len(shapes or given or defaults)
        names = list(defaults)[:count]
        said = ",".join(str(InputShape((1, *x.shape[1:]), _dtype(x), n)) for n, x in defaults.items())
        if len(names) < count:
            raise UsageError(
                f"{folder} takes fewer inputs than were given",
                got=str(count),
                expected=", ".join(names),
                remedy=f"name those that it shall have: --input {said}",
            )
        if shapes is None and given is None:
            given = tuple(defaults.values())
            notice(f"input not given: taken {said} from {CONFIG}; --input states another")
    sizes: Sequence[Sequence[int]]
    sizes = [x.shape for x in given or ()] if shapes is None else [shape.shape for shape in shapes]
    _check_length(model, folder, names, sizes)
    limits = {name: 2 for name in names if "mask" in name or name == "token_type_ids"}
    lengths = [length_of(model, name) for name in names]
    return Found(_with_arguments(model, names), given, limits, lengths, normalization(folder))


def _check_length(model: Any, folder: Path, names: Sequence[str], sizes: Sequence[Sequence[int]]) -> None:
    """Refuse more tokens than the configuration has positions for: rotary ones have no table that ends there.

    Raises:
        DataError
    """
    most = getattr(getattr(model.config, "text_config", model.config), "max_position_embeddings", None)
    for name, size in zip(names, sizes):
        if name.endswith("input_ids") and isinstance(most, int) and len(size) == 2 and size[1] > most > 0:
            raise DataError(
                f"{name} has more positions than {folder} was made for",
                got=f"{size[1]} tokens",
                expected=f"at most {most}, as max_position_embeddings of {CONFIG} says",
                remedy="cut the samples, or state fewer tokens with --input",
            )


def _config(folder: Path) -> dict[str, Any]:
    try:
        config = read_json(folder / CONFIG)
    except Unreadable as error:
        raise ModelFileError(f"{folder / CONFIG} cannot be read", got=str(error), remedy=_AGAIN) from error
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise ModelFileError(
            f"{folder / CONFIG} is no configuration of transformers",
            expected="an object with model_type",
            remedy=f"{_AGAIN}; a model of another library goes in as an nn.Module in memory, or as .onnx",
        )
    if isinstance(labels := config.get("num_labels"), int) and labels > LABELS:  # each gets a name
        raise ModelFileError(f"{folder / CONFIG} makes no network", got=f"num_labels: {labels}")
    if packed := config.get("quantization_config"):
        method = packed.get("quant_method") if isinstance(packed, dict) else packed
        raise UnsupportedError(
            f"{folder} holds weights that another tool has packed",
            got=f"quantization_config: {method}"[:200],
            remedy="give the model in float, and quantize it here",
        )
    return config


def _class(folder: Path, config: dict[str, Any]) -> Any:
    """The class of transformers that the configuration names."""
    import transformers

    names = config.get("architectures")
    name = names[0] if isinstance(names, list) and names and isinstance(names[0], str) else ""
    known = getattr(transformers, name, None) if name.isidentifier() else None
    if not (isinstance(known, type) and issubclass(known, transformers.PreTrainedModel)):
        if config.get("auto_map"):
            raise UnsafeFileError(
                f"{folder} needs code of its own to load, which is not run",
                got=f"auto_map: {config['auto_map']}"[:300],
                remedy="open it in Python, and give nncompress.compress the module",
            )
        raise ModelFileError(
            f"{folder / CONFIG} names no class of transformers {transformers.__version__}",
            got=f"architectures: {names}"[:300],
            expected="such as BertForSequenceClassification",
            remedy=f"put the name of its class under architectures in {CONFIG}, or install the transformers "
            "that has it",
        )
    return known


@contextmanager
def _no_more_modules_than_weights(folder: Path) -> Iterator[None]:
    """A config of 10^12 layers would be built for ever; what is stored tells how many there can be."""
    stored = sum(len(read_header(file)[0]) for file in folder.glob("*.safetensors"))
    most, made = 10_000 + MODULES * stored, 0

    def count(*_: Any) -> None:
        nonlocal made
        made += 1
        if made > most:
            raise ValueError(f"more than {most} modules, for {stored} stored tensors")

    hook = register_module_module_registration_hook(count)
    try:
        yield
    finally:
        hook.remove()


def _empty(folder: Path, config: dict[str, Any]) -> Any:
    """The model without its weights."""
    made = _class(folder, config)
    try:
        with without_weights(), _no_more_modules_than_weights(folder):
            return made(made.config_class.from_pretrained(str(folder), local_files_only=True)).eval()
    except Exception as error:  # whatever transformers raises for a configuration that makes no sense
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
        raise ModelFileError(
            f"{folder / CONFIG} makes no {made.__name__}", got=f"{type(error).__name__}: {reason}"[:400]
        ) from error


def _opened(folder: Path, config: dict[str, Any], strict: bool, notice: Callable[[str], None]) -> Any:
    import transformers

    made = _class(folder, config)
    name = made.__name__
    if not any(folder.glob("*.safetensors")):
        files = sorted(path.name for path in folder.iterdir())
        if not any(each.endswith((".bin", ".pt", ".pth", ".ckpt")) for each in files):
            raise ModelFileError(
                f"{folder} holds no weights",
                got=", ".join(files)[:300],
                expected="model.safetensors, or the shards of model.safetensors.index.json",
                remedy=f"copy them beside {CONFIG}; {_AGAIN}",
            )
        raise UnsafeFileError(
            f"{folder} holds no .safetensors, and pickled weights are not opened",
            got=", ".join(files)[:300],
            remedy=f"{name}.from_pretrained(…).save_pretrained('folder'), where it can be trusted",
        )
    packed = _packed(folder)
    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        with _no_more_modules_than_weights(folder):
            model, info = made.from_pretrained(
                None if packed else str(folder),
                config=made.config_class.from_pretrained(str(folder), local_files_only=True),
                state_dict=packed,
                local_files_only=True,
                use_safetensors=True,
                output_loading_info=True,
            )
    except Exception as error:  # transformers raises all kinds for weights that do not fit its config
        raise ModelFileError(
            f"{folder} cannot be opened as {name}",
            got=f"{type(error).__name__}: {' '.join(str(error).split())}"[:400],
            remedy=f"check {CONFIG}; {_AGAIN}",
        ) from error
    finally:
        transformers.logging.set_verbosity(level)
    differing = [(what, sorted(map(str, info[key]))) for what, key in _DIFFERENCES if info.get(key)]
    told = "; ".join(f"{what} {', '.join(keys[:3])}" + " …" * (len(keys) > 3) for what, keys in differing)
    if differing and strict:
        raise ModelFileError(
            f"the weights of {folder} are not those of {name}",
            got=told,
            remedy="check architectures in config.json; --no-strict takes it as it is",
        )
    if differing:
        notice(f"{folder}: {told}")
    return model.eval()


def _packed(folder: Path) -> dict[str, Tensor] | None:
    """The weights, where nncompress has packed them; None where transformers reads them itself."""
    headers = [read_header(file)[1] for file in sorted(folder.glob("*.safetensors"))]
    if not any("packed" in header or "deflated" in header for header in headers):
        return None
    return read_shards(folder)[0]


_DIFFERENCES = (
    ("missing (they would be random):", "missing_keys"),
    ("unexpected:", "unexpected_keys"),
    ("of another shape:", "mismatched_keys"),
)


def _with_arguments(model: Any, names: Sequence[str]) -> nn.Module:
    """The model, called with those tensors in that order; it gives the tensors among its outputs by name."""
    original = model.forward

    def forward(*inputs: Tensor) -> dict[str, Any]:
        outputs = original(**dict(zip(names, inputs)), return_dict=True)
        return {key: value for key, value in outputs.items() if _tensors(value)}

    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    forward.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [inspect.Parameter(name, kind) for name in names]
    )
    model.forward = forward
    return model


def _tensors(value: Any) -> bool:
    return isinstance(value, Tensor) or (isinstance(value, tuple) and all(map(_tensors, value)))


def _dtype(tensor: Tensor) -> str | None:
    return None if tensor.is_floating_point() else str(tensor.dtype).removeprefix("torch.")
