"""An `.onnx` file to a `Model`: opened, traced at sizes that it runs on, compared with ONNX Runtime."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper
from onnx.inliner import inline_local_functions
from torch import Tensor
from torch.export import Dim

from nncompress.dtypes import dtype_name
from nncompress.errors import ModelFileError, NNCompressError, UnsupportedError, VerificationError
from nncompress.files.bounded_text import Unreadable, parse_json
from nncompress.ir import Model
from nncompress.ir.edit.computed import store_computed_weights
from nncompress.ir.edit.fixed_inputs import remembering
from nncompress.ir.formats.moved_codes import store_moved_codes
from nncompress.ir.formats.qdq import without_rounding
from nncompress.ir.graph.inputs import BATCH, BATCH_NAME
from nncompress.ir.graph.ops import RECURRENT
from nncompress.ir.graph.stated_input import InputShape
from nncompress.ir.graph.tracing import MAX_BATCH, MAX_LENGTH, trace
from nncompress.ir.python_names import is_argument_name
from nncompress.ir.stated_constants import Constant, left_to_fix
from nncompress.loading.file_record import read_header
from nncompress.loading.onnx.compare import compare, compare_calls
from nncompress.loading.onnx.groups import spell_groups
from nncompress.loading.onnx.interpreter import Missing, OnnxModule, check_unrolled, missing_ops
from nncompress.loading.onnx.rules import dynamic
from nncompress.loading.onnx.sizes import Input, batch_dim, choose_sizes, examples, input_of
from nncompress.loading.onnx.stored_weights import spell_stored
from nncompress.runtimes.exact_copy import spell_dynamic_lstms, write_exact
from nncompress.runtimes.external_data import external_files
from nncompress.runtimes.on_onnxruntime import OnnxRuntimeRunner, open_onnx
from nncompress.runtimes.onnx_files.functions import check_functions
from nncompress.runtimes.onnx_files.loops import stated_ops
from nncompress.runtimes.onnx_files.unrounded import write_unrounded
from nncompress.runtimes.with_constants import with_constants

ROUNDING = (
    "DequantizeLinear",
    "MatMulInteger",
    "MatMulNBits",
    "GatherBlockQuantized",
    "DynamicQuantizeLSTM",
)
INSTEAD = "bench and eval run the file as it is; to compress it, load the model that it came from"
PATIENCE = 60  # seconds, for a run of a graph with loops
OURS = "nncompress."  # what our own files say of themselves begins with this


def read_onnx(
    path: Path,
    *,
    input_shapes: Sequence[InputShape] | None = None,
    constants: Sequence[Constant] = (),
    notice: Callable[[str], None] = lambda sentence: None,
) -> Model:
    """The model of an `.onnx` file, its weights as parameters under their names there.

    Free dims stay free where the graph allows it; which is the batch, `batch_dim` says. It is compared with
    ONNX Runtime at two sizes of every free dim.

    Args:
        input_shapes: what sizes to trace with, per input, where free dims leave it open.
        constants: inputs that have one value, and are none of the model's.
        notice: told, in a sentence, what was guessed, fixed and measured.

    Raises:
        ModelFileError, UnsafeFileError: it is damaged, or its external data lies outside its folder.
        UnsupportedError: ops that are not read (named, with counts), or control flow that depends on data.
        UsageError: `input_shapes` do not fit, or no usual sizes run and they are needed.
        VerificationError: what was read computes something else than ONNX Runtime.
    """
    proto = _opened(path)
    ours = {p.key.removeprefix(OURS): p.value for p in proto.metadata_props if p.key.startswith(OURS)}
    record = read_header(ours, path)
    record.metadata.pop("input_names", None)  # this file says them itself
    states = _states(proto)
    missing = missing_ops(proto.graph)
    if missing:
        raise UnsupportedError(
            f"{path} holds ONNX ops that are not read",
            got=", ".join(f"{op} ({count})" for op, count in sorted(missing.items())),
            remedy=INSTEAD,
        )
    runner = open_onnx(path, 1)  # which refuses most of what does not fit together
    if any(node.op_type in ("Loop", "Scan") for node in proto.graph.node):
        check_unrolled(stated_ops(proto.graph) - len(proto.graph.node))
        runner.patience = PATIENCE
    taken = [spec.name for spec in runner.inputs]
    stored = left_to_fix(constants, taken, runner.remembered(), str(path))
    given = with_constants(runner, stored, str(path))
    _store_inputs(proto, stored, path)
    chosen: dict[str, None] = {}
    module = _module(proto, path, states, chosen.setdefault, [each.name for each in stored])
    inputs = [input_of(value, path) for value in module.inputs]
    remembered = record.metadata.pop("sizes", {})
    sizes = choose_sizes(inputs, given, input_shapes, path, remembered)
    module.eval()
    outputs = [output.name for output in proto.graph.output]
    kept = [position for position, name in enumerate(outputs) if name not in states]

    def run(by: OnnxRuntimeRunner, *arrays: Tensor) -> list[np.ndarray]:
        results = with_constants(by, stored, str(path)).run(*arrays)
        return [results[position] for position in kept]

    def differs_without_rounding(model: Model, file: Path) -> str:
        with TemporaryDirectory() as folder:
            floats = Path(folder) / path.name
            if why := write_unrounded(model, file, floats):
                return why
            by = OnnxRuntimeRunner(floats, 1, optimised=False)
            plain = without_rounding(model)
            try:
                found = compare(plain, partial(run, by), by.name, inputs, sizes, path)
            except (UnsupportedError, VerificationError) as error:
                return f"without rounding, {error.what}: {error.got}"
        return "" if found is not None else "without rounding it differs at other sizes"

    with _as_written(proto, path, runner) as (reference, file):
        for model in _traced(module, inputs, sizes, path):
            _rename(model, inputs, [outputs[position] for position in kept])
            proof = partial(differs_without_rounding, model, file)
            compared = compare(model, partial(run, reference), reference.name, inputs, sizes, path, proof)
            if compared is not None:
                break
        else:
            raise AssertionError("a graph without free sizes is compared at one")
        if states:
            reference.remembers = True
            again = partial(run, reference)
            compare_calls(model, again, reference.name, inputs, sizes, path, proof)
    fixed = {d: n for spec, i in zip(model.inputs, inputs) for d, n in zip(i.shape, spec.shape)}
    told = ", ".join(f"{d} = {n}" for d, n in fixed.items() if isinstance(d, str) and isinstance(n, int))
    if told:
        notice(f"sizes that the graph cannot leave free are fixed: {told}")
    if chosen:
        names = ", ".join([*chosen][:5])
        notice(f"both branches of If are computed, and one is taken, where the input decides: {names}")
    free = model.dynamic.keys() - {BATCH}
    least = {dim: model.dynamic[dim][0] for dim in model.dynamic if dim in free and model.dynamic[dim][0] > 2}
    if least:
        bounds = ", ".join(f"{dim} from {size}" for dim, size in least.items())
        notice(f"sizes that the graph takes only from a bound on: {bounds}")
    model.sizes = {dim: size for dim, size in sizes.items() if dim in free}
    model.agreement = compared.error
    model.history = list(record.history)
    model.metadata = {**record.metadata, **model.metadata}
    if model.least_batch > 1 and BATCH in model.dynamic:
        model.dynamic[BATCH] = (model.least_batch, model.dynamic[BATCH][1])
    remembering(model, stored, notice)
    told = f" ({compared.rounding})" if compared.rounding else ""
    notice(f"{path.name} was read as a graph that agrees with {reference.name} to {compared.error:.1e}{told}")
    return model


def _opened(path: Path) -> onnx.ModelProto:
    external_files(path)  # refuses what lies outside the folder
    try:
        check_functions(path)
        proto = onnx.load(path, load_external_data=False)
        if not all(
            isinstance(each, str) for entry in proto.metadata_props for each in (entry.key, entry.value)
        ):
            raise ValueError("its metadata is no UTF-8 text")
        return inline_local_functions(proto) if proto.functions else proto
    except NNCompressError:
        raise
    except Exception as error:  # protobuf and onnx raise all kinds for a damaged file
        reason = next(
            (line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__
        )
        raise ModelFileError(
            f"{path} is not a model that can be read",
            got=reason[:300],
            expected="an ONNX file",
            remedy="copy or export it again",
        ) from error


@contextmanager
def _as_written(
    proto: onnx.ModelProto, path: Path, runner: OnnxRuntimeRunner
) -> Iterator[tuple[OnnxRuntimeRunner, Path]]:
    """What computes a quantized file as it says, and the file that it runs: integer kernels round a little
    otherwise, and cut off their sums on processors without VNNI."""
    if not any(node.op_type in ROUNDING for node in proto.graph.node):
        yield runner, path
        return
    with TemporaryDirectory() as folder:
        copy = Path(folder) / path.name
        exact = not external_files(path) and write_exact(path, copy)  # which it would not find from there
        file = copy if exact else path
        yield OnnxRuntimeRunner(file, 1, optimised=False), file


def _store_inputs(proto: onnx.ModelProto, fixed: Sequence[Constant], path: Path) -> None:
    """Inputs that are constants lie among what the file stores."""
    by_name = {each.name: each for each in fixed}
    values = {value.name: value for value in proto.graph.input if value.name in by_name}
    for name, value in values.items():
        each = input_of(value, path)
        array = by_name[name].tensor(dtype_name(each.dtype), each.shape).numpy()
        proto.graph.input.remove(value)
        proto.graph.initializer.append(numpy_helper.from_array(array, name))


def _module(
    proto: onnx.ModelProto,
    path: Path,
    states: dict[str, str],
    chosen: Callable[[str], object],
    fixed: Collection[str],
) -> OnnxModule:
    try:
        folder = str(path.resolve().parent)
        if any(entry.key.startswith(OURS) for entry in proto.metadata_props):
            spell_stored(proto, folder)
        spell_groups(proto, folder)
        spell_dynamic_lstms(proto.graph, folder)
        dynamic.spell_dynamic(proto)
        return OnnxModule(proto, folder, states, chosen, fixed)
    except NNCompressError:
        raise
    except Exception as error:  # bytes, dims and types of a tensor that do not fit, each in its own way
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ModelFileError(
            f"{path} is damaged: a tensor in it does not fit its own shape or type",
            got=f"{type(error).__name__}: {reason}"[:300],
            remedy="copy or export the model again",
        ) from error


# --- tracing ----------------------------------------------------------------------------------------------


def _traced(module: OnnxModule, inputs: list[Input], sizes: dict[str, int], path: Path) -> Iterator[Model]:
    """Free dims free as they are named; as torch infers them; only the batch; none: what traces of these."""
    given = examples(inputs, sizes, seed=0)
    batch = batch_dim(inputs)
    most = {name: MAX_BATCH if name == batch else MAX_LENGTH for name in sizes}
    dims = {name: Dim(re.sub(r"\W", "_", f"d_{name}"), min=1, max=most[name]) for name in sizes}
    inferred = {name: Dim.AUTO(max=most[name]) for name in sizes}

    def shapes(of: Callable[[str], Any]) -> Any:
        each = [
            {axis: found for axis, dim in enumerate(i.shape) if isinstance(dim, str) and (found := of(dim))}
            for i in inputs
        ]
        return {"inputs": tuple(each)}

    attempts = [shapes(dims.get)]
    if sizes:
        if batch is not None and len(sizes) > 1:
            attempts.append(shapes(lambda name: dims[name] if name == batch else inferred[name]))
        attempts.append(shapes(inferred.get))
        if batch is not None and len(sizes) > 1:
            attempts.append(shapes(lambda name: dims[name] if name == batch else None))
        attempts.append(None)
    failure: UnsupportedError | None = None
    for dynamic_shapes in attempts:
        try:
            program = trace(module, given, {}, dynamic_shapes)
        except UnsupportedError as error:
            failure = _named(error, path, inputs)
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = Model.from_exported(program, copy_weights=True)
            store_moved_codes(model)  # recurrent layers: their weights in torch's order of gates
            store_computed_weights(model, RECURRENT)
            yield model
    if failure is not None:  # the last: of sizes that are all known
        raise failure


def _states(proto: onnx.ModelProto) -> dict[str, str]:
    """Output -> input of every tensor that one call hands to the next, as our own files say it."""
    written = next((p.value for p in proto.metadata_props if p.key == f"{OURS}state"), "{}")
    try:
        pairs = parse_json(written)
    except Unreadable:
        return {}
    stored = {tensor.name for tensor in proto.graph.initializer}
    outputs = {output.name for output in proto.graph.output}
    fits = isinstance(pairs, dict) and all(
        out in outputs and isinstance(given, str) and given in stored for out, given in pairs.items()
    )
    return pairs if fits else {}


def _named(error: UnsupportedError, path: Path, inputs: list[Input]) -> UnsupportedError:
    """Our own refusal of an op where one is behind what torch.export said."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, Missing):
            of_input = "depends on the input" in (cause.got or "")
            single = [each.name for each in inputs if all(size == 1 for size in each.shape)]
            stated = f"; where one is always the same: --input {single[0]}=NUMBER" if single else ""
            constant = f", or an .onnx in which what {cause.op} is told is constant{stated}"
            return UnsupportedError(
                f"{path}: {cause.what}", got=cause.got, remedy=INSTEAD + (constant if of_input else "")
            )
        if isinstance(cause, UnsupportedError) and cause is not error:
            return cause
        cause = cause.__cause__ or cause.__context__
    return UnsupportedError(f"{path}: {error.what}", got=error.got, remedy=INSTEAD)


def _rename(model: Model, inputs: list[Input], outputs: list[str]) -> None:
    """Inputs, outputs and free dims as the file names them (inputs: as far as Python takes the name).

    Of dims that the graph makes equal the first gives the name; the batch before all.
    """
    batch = batch_dim(inputs)
    names: dict[str, str] = {}
    for spec, each in zip(model.inputs, inputs):
        for ours, theirs in zip(spec.shape, each.shape):
            if isinstance(ours, str) and isinstance(theirs, str):
                names[ours] = BATCH if theirs == batch else names.get(ours, theirs)
    taken: set[str] = set()
    specs, stated = [], {}
    for spec, each in zip(model.inputs, inputs):
        name = re.sub(r"\W", "_", each.name)
        name = name if is_argument_name(name) and name not in taken else f"input_{len(taken)}"
        taken.add(name)
        if name != each.name:
            stated[name] = each.name
        shape = tuple(names.get(d, d) if isinstance(d, str) else d for d in spec.shape)
        specs.append(replace(spec, name=name, shape=shape))
    model.inputs = tuple(specs)
    model.dynamic = {names.get(name, name): bounds for name, bounds in model.dynamic.items()}
    if len(outputs) == len(model.outputs):
        model.outputs = tuple(outputs)
    if stated:
        model.metadata["input_names"] = stated
    if batch is not None and batch != BATCH:
        model.metadata[BATCH_NAME] = batch
