"""`.onnx`: exported, tidied, compared in ONNX Runtime, and only then moved into place."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from nncompress.analysis.distance.precision import precision_of
from nncompress.devices import processor
from nncompress.errors import UnsupportedError, VerificationError
from nncompress.exporting.check import openvino
from nncompress.exporting.check.compare import Comparison
from nncompress.exporting.check.compare import compare as compare_outputs
from nncompress.exporting.check.int8_coverage import int8_coverage
from nncompress.exporting.check.onnxruntime import compare, compare_steps
from nncompress.exporting.check.read_back import read_back_onnx
from nncompress.exporting.lower.masks import with_known_masks
from nncompress.exporting.lower.onnxruntime.float_twin import float_twin
from nncompress.exporting.lower.onnxruntime.groups import lower_groups
from nncompress.exporting.lower.onnxruntime.int8.rewrite import lower_int8
from nncompress.exporting.lower.onnxruntime.recurrent import without_projections
from nncompress.exporting.lower.onnxruntime.runtime_defects import avoid_runtime_defects
from nncompress.exporting.lower.onnxruntime.state_io import State, state_as_inputs, store_initial
from nncompress.exporting.lower.onnxruntime.sums import lower_sums
from nncompress.exporting.lower.onnxruntime.tidy import name_layers, tidy
from nncompress.exporting.lower.spell_out import in_other_words
from nncompress.exporting.report import ANY, ExportReport, Int8Speed, TimeInt8
from nncompress.exporting.storage import Storage
from nncompress.exporting.write import external_data
from nncompress.exporting.write.half_floats import narrow
from nncompress.exporting.write.onnx_exporter import convert, input_names
from nncompress.exporting.write.onnx_ops import untranslated
from nncompress.files.atomic import replacing
from nncompress.ir import Model
from nncompress.ir.formats.groups import stored_by_groups
from nncompress.ir.formats.lookup import pack
from nncompress.ir.formats.precision import MAKE_FLOAT32
from nncompress.ir.formats.qdq import MIDDLE, QParams, is_dynamic, make_signed
from nncompress.ir.formats.samples import verification_inputs
from nncompress.ir.graph.ops import op_name
from nncompress.runtimes import open_artifact
from nncompress.runtimes.exact_copy import write_exact
from nncompress.runtimes.onnx_files.saturation import saturating_weights
from nncompress.targets import TARGETS, Target
from nncompress.targets.written_for import described, record
from nncompress.version import __version__

if TYPE_CHECKING:
    from torch.onnx import ONNXProgram

HERE = TARGETS["ort-cpu"]  # the kernels of this machine's processor
PER_OP = 120  # bytes of an op in the file, about
PROTOBUF_LIMIT = 2 * 1024**3 - 64 * 1024**2  # one message holds 2 GiB; some room for the graph itself


def write_onnx(
    model: Model,
    path: str | Path,
    *,
    protect: Iterable[str | Path] = (),
    storage: Storage = "packed",
    target: Target | None = None,
    run_there: bool = True,
    read_back: bool = False,
    time_int8: TimeInt8 | None = None,
) -> ExportReport:
    """Export to ONNX with dynamic dims by their names, shared weights stored once, the history inside.

    Batch norms are folded into the layers before them by the exporter. Weights beyond 2 GiB go to a file
    beside it (`nncompress.exporting.write.external_data`).

    Args:
        target: what it is written for; None: plain, the same on every machine.
        run_there: compare it where the target runs it, too; False: who asks will do that.
        read_back: say whether our own reader takes the file for the model.
        time_int8: what measures a quantized model beside float32 on this machine; None: it is not measured.

    Raises:
        UnsupportedError: ONNX, or ONNX Runtime on this machine, has no such op; the message names it.
        VerificationError: ONNX Runtime computes something else; nothing is written.
        OutputError: the file cannot be written.
    """
    start = time.perf_counter()
    place = Path(path)
    _refuse_types(model)
    given = model
    model, states = state_as_inputs(model)
    signed = _signed(model, target) if target is not None and target.symmetric else model
    # An unwritable target is refused before the work starts.
    with replacing(place, protect, external_data.is_ours) as temporary, TemporaryDirectory() as folder:
        size = sum(t.numel() * t.element_size() for t in model.graph_module.state_dict().values())
        int8 = precision_of(model) in ("int8", "int4")
        here = target is None or target.device != "cuda"  # else how this machine runs it tells nothing
        few = int8 and 5 * size < PROTOBUF_LIMIT  # bytes, of which several copies at once are no burden
        graph = _convert(signed, storage)
        # For this processor the same graph is lowered otherwise.
        again = graph.copy() if few and processor().saturates and signed is model else None
        floats = graph.copy() if target is not None and "nbits" in target.rewrites else None
        twin = float_twin(graph.program.model) if few and here and time_int8 is not None else None
        offered = _lower(graph.copy(), HERE) if few and target is None else {}
        applied = _save(graph, temporary, states, target)
        del graph  # and its weights, before others are read
        covered, told, overflow = "", [described(applied)], ""
        if offered:
            told.append(f"--target ort-cpu would write {described(offered)}")
        cut_off = saturating_weights(temporary) if int8 and processor().saturates else ()
        kernels = temporary
        if cut_off:
            if here:
                overflow = _overflows(cut_off)
                told.append(overflow)
            kernels = Path(folder) / temporary.name
            _save(again or _convert(model, storage), kernels, states, HERE)
        del again
        try:
            found = _compared(model, temporary, kernels, storage, int8=int8)
        except VerificationError:
            if target is None or floats is None or "nbits" not in applied:
                raise
            unrounded = ["nbits-floats" if each == "nbits" else each for each in target.rewrites]
            applied = _save(floats, temporary, states, replace(target, rewrites=tuple(unrounded)))
            told[0] = described(applied)
            found = _compared(model, temporary, temporary, storage, int8=int8)
        del floats
        compare_steps(model, kernels, states)
        if target is not None and run_there and target.runtime not in ("", "onnxruntime"):
            found, covered = _in_its_runtime(model, temporary, states, target, integers=not cut_off)
            twin = None  # which is measured in ONNX Runtime
        elif int8 and here:
            covered = int8_coverage(temporary).summary()
        speed: Int8Speed | None = None
        if twin is not None and time_int8 is not None:
            try:
                speed = time_int8(twin, temporary, _sample(model))
                told.append(speed.summary(advise=target is None))
            except Exception as error:  # a comparison that fails is no reason to lose a file that is right
                told.append(f"not compared with float32 ({str(error).splitlines()[0][:80]})")
        if int8 and target is not None and "float16" in target.rewrites:
            if size > PROTOBUF_LIMIT:
                told.append("floats stay float32: it is larger than one file of ONNX")
            else:
                half, line = narrow(model, temporary, target)
                found = half or found
                told.append(line)
        not_read = read_back_onnx(given, temporary) if read_back else ""
        written = sum(file.stat().st_size for file in temporary.parent.iterdir())
        replaced = external_data.named_by(place, external_data.beside(place))
    left = external_data.remove_replaced(place, replaced)
    return ExportReport(
        place,
        written,
        time.perf_counter() - start,
        **asdict(found),
        int8="; ".join(filter(None, [covered, *told])) if int8 else "",
        int8_speedup=None if speed is None else round(speed.ratio, 3),
        left=tuple(str(path) for path in left),
        state=tuple((state.input, state.output) for state in states),
        target=target.name if target is not None else ANY,
        not_read=not_read,
        overflow=overflow,
    )


def _compared(model: Model, file: Path, kernels: Path, storage: Storage, *, int8: bool) -> Comparison:
    """With what the file computes in ONNX Runtime; its integer kernels are those of `kernels`."""
    exact = file.parent / ("exact" if file.name != "exact" else "copy")  # of a short name
    try:
        written_so = exact if int8 and write_exact(file, exact) else file
        return compare(model, written_so, partial(_write_here, storage=storage), kernels=kernels)
    finally:
        exact.unlink(missing_ok=True)


def _in_its_runtime(
    model: Model, file: Path, states: Sequence[State], target: Target, *, integers: bool
) -> tuple[Comparison, str]:
    """Compared where the target runs it, and in what precision that ran its layers, where it tells."""
    if states:
        raise UnsupportedError(
            f"what a model keeps from call to call would be a constant in {target.runtime_name}",
            got=", ".join(state.input for state in states[:5]),
            remedy=f"leave --target {target.name} out",
        )
    if target.runtime == "openvino":
        return openvino.compare(model, file, integers=integers), openvino.coverage(model, file)
    runner = open_artifact(file, runtime=target.runtime)
    found = compare_outputs(model, lambda x: [torch.from_numpy(out) for out in runner.run(*x)], runner.name)
    return found, ""


def _overflows(weights: Sequence[str]) -> str:
    return (
        f"8-bit sums with {len(weights)} of its weights may overflow on processors without VNNI, as here: "
        "export --target ort-cpu writes it right for here, quantize --weight-bits 7 for everywhere"
    )


@dataclass(frozen=True)
class _Graph:
    """An ONNX graph as the exporter made it, and the model that it was made of."""

    program: ONNXProgram
    model: Model

    def copy(self) -> _Graph:
        """The same with nodes of its own; the tensors are shared."""
        program = copy.copy(self.program)
        program.model = self.program.model.clone()
        return _Graph(program, self.model)


def _write_here(model: Model, file: Path, storage: Storage) -> None:
    _save(_convert(model, storage), file, (), HERE)


def _convert(model: Model, storage: Storage) -> _Graph:
    model = with_known_masks(without_projections(model))
    own = model

    def converted(said: Model) -> ONNXProgram:
        packed = (
            said
            if said is not own or storage == "plain"
            else pack(said, PER_OP, leave=stored_by_groups(said))
        )
        return convert(said, packed.exported_program(), lookups=packed is not said)

    model, program = in_other_words(own, converted)
    if precision_of(model) in ("int8", "int4"):
        name_layers(program.model.graph)
    return _Graph(program, model)


def _lower(graph: _Graph, target: Target | None) -> dict[str, int]:
    """In place; the rewrites of the target that were made."""
    rewrites = () if target is None else target.rewrites
    nbits = lower_groups(graph.program.model, rewrites)
    how = "nbits" if "nbits" in rewrites else "nbits-floats"
    applied = lower_int8(graph.program.model, rewrites) | ({how: nbits} if nbits else {})
    sums = lower_sums(graph.program.model.graph) if "sums" in rewrites else 0
    return applied | ({"sums": sums} if sums else {})


def _save(graph: _Graph, file: Path, states: Sequence[State], target: Target | None) -> dict[str, int]:
    """Lower it in place and write it; returns the rewrites of the target that were made."""
    program, model = graph.program, graph.model
    applied = _lower(graph, target)
    avoid_runtime_defects(program.model.graph)
    tidy(program.model, model)
    store_initial(program.model.graph, states)
    program.model.metadata_props.update(_record(model, states) | record(target, applied))
    if sum(t.numel() * t.element_size() for t in model.graph_module.state_dict().values()) > PROTOBUF_LIMIT:
        external_data.save(program.model, file)
    else:
        program.save(str(file))
    return applied


def refuse_ops(model: Model) -> None:
    """Refuse a model with ops that no export can say, before the work on it that would be lost.

    It is converted as it is where an op has no translation of its own, which tells.

    Raises:
        UnsupportedError: naming the op and its layer.
    """
    if untranslated(model):
        _convert(state_as_inputs(model)[0], "plain")


def _signed(model: Model, target: Target) -> Model:
    """The same model with activations as signed bytes, zero point 0.

    Raises:
        UnsupportedError: that of some is another.
    """
    if precision_of(model) != "int8":
        return model
    model = model.copy()
    for node in model.graph_module.graph.nodes:
        if not op_name(node).startswith(("quantize_per_tensor", "choose_qparams")):
            continue
        computed = is_dynamic(node) or op_name(node).startswith("choose_qparams")
        if computed or QParams.of(node).zero_point != MIDDLE:
            raise UnsupportedError(
                f"{target.title} takes activations in signed 8 bits with the zero point 0 alone",
                got="ranges that are found when it runs" if is_dynamic(node) else "ranges with another zero",
                remedy=f"quantize the float model with --target {target.name} (--symmetric-activations), or "
                "export the float model and let its builder choose",
            )
    for node in model.graph_module.graph.nodes:
        make_signed(node)
    model.graph_module.recompile()
    return model


def _sample(model: Model) -> dict[str, np.ndarray]:
    """Inputs by name, of the smallest batch that the model takes."""
    low, _ = model.dynamic.get("batch", (1, None))
    inputs = verification_inputs(model, batch=max(low, 1))
    return {name: x.contiguous().numpy() for name, x in zip(input_names(model), inputs)}


def _refuse_types(model: Model) -> None:
    """What ONNX Runtime's CPU kernels cannot take or give, so that an export could not be checked."""
    stored = {name: tensor.dtype for name, tensor in model.graph_module.state_dict().items()}
    given = {f"input {spec.name}": spec.torch_dtype() for spec in model.inputs}
    results: Any = model.graph.output_node().args[0]
    taken = {f"output {name}": node.meta["val"].dtype for name, node in zip(model.outputs, results)}
    where = next((name for name, dtype in (stored | given | taken).items() if dtype == torch.bfloat16), None)
    if where is not None:
        raise UnsupportedError(
            f"ONNX Runtime's CPU kernels do not compute in bfloat16, so no export could be checked: {where}",
            remedy=MAKE_FLOAT32,
        )
    where = next((name for name, dtype in (given | taken).items() if dtype.is_complex), None)
    if where is not None:
        raise UnsupportedError(
            f"ONNX has no complex numbers: {where}",
            remedy="give and take real and imaginary parts (torch.view_as_real), or keep it as .pt2",
        )


def _record(model: Model, states: Sequence[State]) -> dict[str, str]:
    """Metadata properties of the file."""
    kept = {"nncompress.state": json.dumps({state.output: state.input for state in states})} if states else {}
    return kept | {
        "nncompress.version": __version__,
        "nncompress.history": json.dumps(model.history),
        "nncompress.metadata": json.dumps(model.metadata),
    }
