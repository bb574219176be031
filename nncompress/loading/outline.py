"""The graph of a checkpoint's network without its weights, for what reads these one at a time.

    model = outline("llama/", examples=ids)
    model.tensor("model.layers.0.mlp.up_proj.weight")      shape and dtype, on the meta device

The network is that of the configuration of transformers beside the shards, or what --arch builds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from nncompress.errors import ModelFileError, UsageError
from nncompress.ir import Model
from nncompress.ir.graph.stated_input import InputShape
from nncompress.ir.stated_constants import Constant
from nncompress.loading.huggingface import CONFIG, read_huggingface
from nncompress.loading.module.fixed_arguments import fix_arguments
from nncompress.loading.module.infer_input import required_inputs
from nncompress.loading.module.traced import inputs_to_trace
from nncompress.loading.module.without_weights import emptied, stood_in_for, without_weights
from nncompress.loading.module.wrappers import held
from nncompress.loading.random_numbers import refuse_random_numbers
from nncompress.loading.state_dict.architecture import build_architecture
from nncompress.loading.state_dict.shards import Checkpoint


def outline(
    source: Checkpoint,
    *,
    arch: str | None,
    input_shapes: Sequence[InputShape] | None,
    constants: Sequence[Constant],
    examples: Callable[[Sequence[str]], tuple[Tensor, ...]],
    notice: Callable[[str], None],
) -> Model:
    """The network of a checkpoint; parameters are on the meta device, buffers hold their values.

    Args:
        arch: what builds the network, where no config.json of transformers lies beside the weights.
        input_shapes: what it takes, where `examples` is not to say it.
        constants: arguments that have one value.
        examples: gives samples of data for inputs of these names.

    Raises:
        UsageError: there is no configuration, and no `arch`; or both.
        ModelFileError, MissingExtraError, UnsafeFileError: as of `read_huggingface`.
        UnsupportedError: the network cannot be traced.
    """
    folder = source.files[0].parent
    configured = (folder / CONFIG).is_file()
    if arch is None and not configured:
        raise UsageError(
            f"{source.path} holds weights, and data has to run through their network",
            got=f"no {CONFIG} of transformers in {folder}",
            remedy="say what builds it: --arch file.py:factory",
        )
    if arch is not None and configured:
        raise UsageError(f"{folder} says its architecture in its configuration", remedy="leave --arch out")
    if arch is None:
        given = None if input_shapes is not None else examples
        found = read_huggingface(
            folder, input_shapes, given, strict=True, notice=notice, constants=constants, weights=False
        )
        module, drawn, limits = found.module, found.inputs, found.limits
    else:
        with without_weights():
            module = held(build_architecture(arch)).eval()
        fix_arguments(module, constants, arch)
        drawn = examples(required_inputs(module)) if input_shapes is None else None
        limits = {}
    inputs, dims = inputs_to_trace(module, input_shapes, drawn, notice, limits)
    with stood_in_for(module):
        model = Model.from_module(module, inputs, sample_dims=dims, copy_weights=False, notice=notice)
    emptied(model)
    refuse_random_numbers(model, source.path)
    return model


def check_complete(model: Model, source: Checkpoint) -> None:
    """Refuse a checkpoint that lacks a tensor of its network, or has it in another shape.

    Raises:
        ModelFileError
    """
    stored = {tensor.name: tensor.shape for tensor in source.tensors}
    wanted = {name: tuple(each.shape) for name, each in model.graph_module.named_parameters()}
    missing = [name for name in wanted if name not in stored]
    buffers = model.graph_module.named_buffers()
    wanted |= {name: tuple(each.shape) for name, each in buffers if name in stored}
    other = [f"{name} {stored[name]}" for name in wanted if stored.get(name, wanted[name]) != wanted[name]]
    for kind, names in (("lacks", missing), ("has in another shape", other)):
        if names:
            raise ModelFileError(
                f"{source.path} {kind} weights of its network",
                got=", ".join(names[:4]) + (", …" if len(names) > 4 else ""),
                expected=f"{len(wanted)} tensors, as the network names them",
            )
