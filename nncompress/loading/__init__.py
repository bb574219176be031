"""Loading: every kind of model file becomes a `Model`.

    load_model("model.pt2")                                     a graph, with its history
    load_model("model.pt")                                      a pickled module of torch.nn classes
    load_model("weights.safetensors", arch="net.py:build")      weights and the code they belong to
    load_model("model.safetensors.index.json", arch=…)          the same in several files
    load_model("timm:resnet18", weights="weights.pt")           an architecture by name, and weights
    load_model("bert/")                                         a directory of transformers, or its id
    load_model("model.onnx")                                    a graph of ONNX ops, whoever wrote it
    load_model("scripted.pt")                                   TorchScript, traced or scripted
    load_module(module)                                         one in memory

What a file is is told from its content. No code of a file is run, unless `trust_pickle` says so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from nncompress.errors import ModelFileError, NNCompressError, UsageError
from nncompress.files.leftovers import complete
from nncompress.ir import Model
from nncompress.ir.edit.fixed_inputs import fix_inputs, remembering
from nncompress.ir.graph.network import Network
from nncompress.ir.graph.sample_dims import restate, settle_batch
from nncompress.ir.graph.stated_input import InputShape, matched, parse_input
from nncompress.ir.stated_constants import Constant
from nncompress.loading.collections import file_and_arch, names_architecture, of_collection
from nncompress.loading.file_kind import FileKind, file_kind
from nncompress.loading.file_record import FileRecord, read_header
from nncompress.loading.from_pt2 import model_of_pt2
from nncompress.loading.huggingface import in_cache, read_huggingface
from nncompress.loading.module.copied import copied
from nncompress.loading.module.detection_head import remember_head
from nncompress.loading.module.fixed_arguments import fix_arguments
from nncompress.loading.module.from_network import model_of
from nncompress.loading.module.infer_input import infer_input, stated_form
from nncompress.loading.module.traced import Examples, marked, parsed, scripted, traced
from nncompress.loading.module.wrappers import held, with_graphs_of_scripts
from nncompress.loading.onnx import read_onnx
from nncompress.loading.pickle.read import describe, read_pickle
from nncompress.loading.pt2.archive import read_pt2
from nncompress.loading.repeated import MOST_REPEATED, repeated_bytes
from nncompress.loading.state_dict.architecture import build_architecture
from nncompress.loading.state_dict.checkpoint import find_weights, in_float32
from nncompress.loading.state_dict.fill import (
    fill,
    how_to_open,
    read_safetensors,
    read_shards,
    without_constants,
)
from nncompress.loading.state_dict.shards import open_checkpoint
from nncompress.loading.torchscript import read_torchscript
from nncompress.memory import bounded_memory
from nncompress.runtimes.external_data import stored_bytes

__all__ = [
    "Examples",
    "InputShape",
    "infer_input",
    "load_model",
    "load_module",
    "parse_input",
    "read_pt2",
    "stated_form",
]


def load_model(
    path: str | Path,
    *,
    arch: str | None = None,
    weights: str | Path | None = None,
    weights_key: str | None = None,
    strict: bool = True,
    input_shapes: str | Sequence[InputShape] | None = None,
    trust_pickle: bool = False,
    example_inputs: Examples | None = None,
    constants: Sequence[Constant] = (),
    notice: Callable[[str], None] = lambda sentence: None,
) -> Model:
    """The model in `path`, in eval mode, with a dynamic batch where its graph allows one.

    Args:
        arch: for a state_dict, what builds its network: `file.py:factory` or `package.module:factory`.
        weights: the file of its weights, where `path` names an architecture: `timm:NAME`, `torchvision:NAME`.
        weights_key: where in a checkpoint the weights lie, keys joined by dots, if it holds several tables.
        strict: refuse weights that are missing or unexpected; else `notice` lists them.
        input_shapes: for a file without shapes, `"1x3x32x32"` or what `parse_input` returns.
        trust_pickle: run the code a pickle asks for.
        example_inputs: for a file without shapes, a batch of data instead of `input_shapes`; or what gives
            one when it is asked for inputs of these names.
        constants: inputs that have one value from now on, and are none of the model's.
        notice: told, in a sentence, what was guessed.

    Raises:
        ModelFileError: the file is missing, damaged, no model, or its weights do not fit `arch`.
        UnsafeFileError: it needs code to load, which the message names.
        UsageError: an argument is wrong, or `arch` or `input_shapes` is needed.
        UnsupportedError: `torch.export` cannot trace the module, it draws random numbers, or this kind of
            model is not read.
    """
    path = Path(path)
    if weights is not None or names_architecture(path):
        file, arch = file_and_arch(path, arch, weights, weights_key)
        if file is None:
            module = of_collection(arch).eval()
            fixed, _ = fix_arguments(module, constants, arch)
            notice(f"{arch} has fresh weights, which nothing has trained; --weights FILE gives it others")
            return remembering(traced(module, arch, input_shapes, example_inputs, notice), fixed, notice)
        path = file
    path = in_cache(path) or path
    complete(path)
    kind = file_kind(path)
    of_weights = kind in (FileKind.PICKLE, FileKind.SAFETENSORS, FileKind.SHARDS)
    if arch is not None and not of_weights:
        raise UsageError(
            f"{path} is {kind.value}, which carries its architecture",
            remedy="leave --arch out" if weights is None else f"leave --weights out; as MODEL: {path}",
        )
    if weights_key is not None and not of_weights:
        raise UsageError(
            f"{path} is no checkpoint that holds tables of weights", remedy="leave --weights-key out"
        )
    with bounded_memory(path, _bytes(path, kind)):
        return _loaded(
            path,
            kind,
            arch,
            weights_key,
            strict,
            input_shapes,
            trust_pickle,
            example_inputs,
            constants,
            notice,
        )


def _bytes(path: Path, kind: FileKind) -> int:
    """How many there are in the file, and in those that belong to it."""
    if kind is FileKind.ONNX:
        return stored_bytes(path)
    if kind is FileKind.SHARDS:
        return sum(file.stat().st_size for file in open_checkpoint(path).files)
    return path.stat().st_size


def _loaded(
    path: Path,
    kind: FileKind,
    arch: str | None,
    weights_key: str | None,
    strict: bool,
    input_shapes: str | Sequence[InputShape] | None,
    trust_pickle: bool,
    example_inputs: Examples | None,
    constants: Sequence[Constant],
    notice: Callable[[str], None],
) -> Model:
    if kind is FileKind.PT2:
        model, settled = model_of_pt2(path, notice)
        fix_inputs(model, constants, path, notice)
        if input_shapes is not None:
            restate(model, parsed(input_shapes), path)
        elif settled:
            return model
        return settle_batch(model, notice, stated=marked(input_shapes))
    if kind is FileKind.ONNX:
        model = _from_onnx(path, input_shapes, constants, notice)
        return settle_batch(model, notice, stated=marked(input_shapes))
    if kind is FileKind.HUGGINGFACE:
        return _from_huggingface(path, strict, input_shapes, example_inputs, constants, notice)
    if kind is FileKind.TORCHSCRIPT:
        return scripted(read_torchscript(path), path, input_shapes, example_inputs, constants, notice)
    module, record = _module(path, kind, arch, weights_key, strict, trust_pickle, notice)
    module = held(module).cpu().eval()
    fixed, _ = fix_arguments(module, constants, path)
    model = traced(module, path, input_shapes, example_inputs, notice)
    remember_head(model, module, notice)
    model.metadata.update(record.metadata)
    model.history = list(record.history)
    return remembering(model, fixed, notice)


def load_module(
    module: nn.Module,
    *,
    input_shapes: str | Sequence[InputShape] | None = None,
    example_inputs: Examples | None = None,
    constants: Sequence[Constant] = (),
    notice: Callable[[str], None] = lambda sentence: None,
) -> Model:
    """A module in memory, in eval mode, on the CPU, with a dynamic batch where its graph allows one.

    The module given stays as it is: a copy is traced, and the model owns its weights. What `torch.compile` or
    a data-parallel wrapper holds is taken for the module. Of what `Model.to_module` made, inputs and history
    are known.

    Args:
        input_shapes, example_inputs, constants, notice: as in `load_model`.

    Raises:
        UsageError: it cannot be copied, or does not run on the inputs.
        UnsupportedError: `torch.export` cannot trace it, or it draws random numbers.
    """
    module = held(module)
    name = f"the {type(module).__name__} given"
    if isinstance(module, Network):
        if input_shapes is not None:
            raise UsageError(f"{name} knows its inputs", remedy="leave input out")
        model = model_of(module)
        fix_inputs(model, constants, name, notice)
        return model
    empty = [
        each for each, t in module.named_parameters() if t.is_meta or isinstance(t, UninitializedParameter)
    ]
    if empty:
        raise UsageError(
            f"{name} has parameters without values",
            got=", ".join(empty[:5]),
            expected="weights, as training left them",
            remedy="load its weights first; run a lazy module once on a sample",
        )
    try:
        mine = copied(module)
    except Exception as error:  # whatever the user's attributes raise
        raise UsageError(
            f"{name} cannot be copied, and compression must not change it",
            got=f"{type(error).__name__}: {error}"[:300],
            remedy="give it fresh, or torch.export.export(module, …), saved as .pt2",
        ) from error
    if isinstance(mine, torch.jit.ScriptModule):
        return scripted(mine.cpu().eval(), name, input_shapes, example_inputs, constants, notice)
    source = mine.cpu().eval()
    graphs = with_graphs_of_scripts(source)
    fixed, _ = fix_arguments(graphs, constants, name)
    if graphs is not source:
        fix_arguments(source, constants, name)
    model = traced(graphs, name, input_shapes, example_inputs, notice, source)
    remember_head(model, mine, notice)
    return remembering(model, fixed, notice)


def _from_huggingface(
    path: Path,
    strict: bool,
    input_shapes: str | Sequence[InputShape] | None,
    example_inputs: Examples | None,
    constants: Sequence[Constant],
    notice: Callable[[str], None],
) -> Model:
    shapes = None if input_shapes is None else parsed(input_shapes)
    examples = None if shapes is not None else example_inputs
    found = read_huggingface(path, shapes, examples, strict=strict, constants=constants, notice=notice)
    model = traced(found.module, path, shapes, found.inputs, notice, None, found.limits, found.lengths)
    normalize = found.normalize
    if normalize is not None:
        model.metadata["normalize"] = normalize
        notice(f"images are normalised by {normalize}, as {path} says; --normalize states another")
    return remembering(model, constants, notice)


def holds_weights_only(path: str | Path, *, trust_pickle: bool = False) -> bool:
    """The file is a checkpoint, which needs `arch`; other problems are told when it is loaded."""
    path = Path(path)
    try:
        kind = file_kind(path)
        if kind in (FileKind.PT2, FileKind.SAFETENSORS, FileKind.SHARDS):
            return kind is not FileKind.PT2
        return not isinstance(read_pickle(path, trust_pickle=trust_pickle), nn.Module)
    except NNCompressError:
        return False  # such as a pickled module that needs --trust-pickle


def _from_onnx(
    path: Path,
    input_shapes: str | Sequence[InputShape] | None,
    constants: Sequence[Constant],
    notice: Callable[[str], None],
) -> Model:
    shapes = None if input_shapes is None else parsed(input_shapes)
    model = read_onnx(path, input_shapes=shapes, constants=constants, notice=notice)
    if shapes is not None and marked(shapes):  # names are those of the file
        names = model.metadata.get("input_names", {})
        in_order = matched(shapes, [names.get(spec.name, spec.name) for spec in model.inputs])
        restate(model, [replace(shape, name=None) for shape in in_order], path)
    return model


def _module(
    path: Path,
    kind: FileKind,
    arch: str | None,
    weights_key: str | None,
    strict: bool,
    trust_pickle: bool,
    notice: Callable[[str], None],
) -> tuple[nn.Module, FileRecord]:
    record = FileRecord()
    if kind is FileKind.SAFETENSORS:
        found, header = read_safetensors(path)
        record = read_header(header, path)
    elif kind is FileKind.SHARDS:
        found, header = read_shards(path)
        record = read_header(header, path)
    else:
        found = read_pickle(path, trust_pickle=trust_pickle)
    weights, key = find_weights(found, path, notice, weights_key)
    tensors = (weights.state_dict() if isinstance(weights, nn.Module) else weights).values()
    if (repeated := repeated_bytes(t for t in tensors if isinstance(t, Tensor))) > MOST_REPEATED:
        raise ModelFileError(
            f"{path} holds weights that repeat what is stored, by strides of 0 or views that overlap",
            got=f"{repeated} bytes beyond those stored",
            expected=f"at most {MOST_REPEATED}",
            remedy="save them after tensor.contiguous()",
        )
    if isinstance(weights, nn.Module):
        if arch is None:
            return (weights if weights is found else in_float32(weights, path, notice)), record
        if weights is found:
            raise UsageError(
                f"{path} is a whole model, which carries its architecture", remedy="leave --arch out"
            )
        weights = weights.state_dict()
    if arch is None:
        raise UsageError(
            f"{path} holds weights only, not the network they belong to",
            got=describe(found),
            remedy=how_to_open(record.passes),
        )
    module = build_architecture(arch)
    weights = without_constants(module, weights, record.metadata.get("constants", []), notice)
    fill(module, weights, path, arch, key=key, passes=record.passes, strict=strict, notice=notice)
    return module, record
