"""`Model`: the one thing that every loader makes, every pass edits and every exporter reads."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import Dim, ExportedProgram

from nncompress.errors import UnsupportedError
from nncompress.ir.graph.form import form_of
from nncompress.ir.graph.inputs import (
    BATCH,
    USUAL_SIZE,
    InputSpec,
    check_sizes,
    derived_sizes,
    input_specs,
    least_batch_of,
    name_placeholders,
    random_input,
)
from nncompress.ir.graph.network import Network
from nncompress.ir.graph.normal_form.boundary import for_others
from nncompress.ir.graph.normal_form.normalize import normalize, remove_dead_code
from nncompress.ir.graph.tracing import (
    named_apart,
    named_dims,
    output_names,
    tie_again,
    trace,
    trace_with_batch,
    without_clashes,
)
from nncompress.ir.graph.training_flag import training_flag


class Model:
    """A trained network as a flat graph of ATen ops.

    Attributes:
        graph_module: the graph (`nncompress.ir.graph.normal_form` says in which form) with its parameters and
            buffers under their dotted names. `node.meta["val"]` holds a fake tensor with the symbolic shape.
        inputs: the positional tensor inputs.
        outputs: a name per tensor of the output tuple.
        dynamic: bounds (min, max) of every dynamic dim by name.
        history: what was done to it, oldest first; JSON objects.
        agreement: the largest relative distance of an output from that of the file or module that it was read
            from, as found on loading; None: not compared; not kept in files.
        traced_form: for which the shapes in the graph are right, see `form_of`; None: maybe for none.
        metadata: JSON object kept with the model: `normalize` (how its images are normalised), `constants`
            (stored tensors that the state_dict of where it came from does not hold), `sizes`,
            `least_batch`, …
    """

    def __init__(
        self,
        graph_module: fx.GraphModule,
        inputs: Sequence[InputSpec],
        outputs: Sequence[str],
        dynamic: Mapping[str, tuple[int, int | None]],
        history: Sequence[dict[str, Any]] = (),
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        self.graph_module = graph_module
        self.inputs = tuple(inputs)
        self.outputs = tuple(outputs)
        self.dynamic = dict(dynamic)
        self.history = list(history)
        self.metadata = dict(metadata or {})
        self.agreement: float | None = None
        self.traced_form: Hashable | None = None

    # -- made from ---------------------------------------------------------------------------------------

    @classmethod
    def from_module(
        cls,
        module: torch.nn.Module,
        example_inputs: tuple[Any, ...],
        *,
        kwargs: Mapping[str, Any] | None = None,
        sample_dims: Sequence[int | None] | None = None,
        dynamic_batch: bool = True,
        dynamic_shapes: Any = None,
        metadata: Mapping[str, Any] | None = None,
        copy_weights: bool = True,
        notice: Callable[[str], None] = warnings.warn,
    ) -> Model:
        """Export `module`, in the mode it is in (call `.eval()` first), to a `Model` that owns its weights.

        Args:
            example_inputs: positional arguments; tensors that share their first size (>= 2) get a dynamic
                batch. A batch of 1 is doubled for the export, unless the network fixes it.
            sample_dims: per positional argument, each a tensor, the dim along which samples lie, None where
                all share it; instead of the first of all.
            dynamic_batch: keep the first dim dynamic; where the network fixes it, it becomes static.
            dynamic_shapes: passed on to `torch.export.export` instead, for other dynamic dims, which it then
                must keep dynamic.
            copy_weights: False: the weights are the module's own.
            notice: told why a batch becomes static.

        Raises:
            UnsupportedError: `torch.export` cannot trace it, or not with these `dynamic_shapes`.
        """
        named = dict(kwargs or {})
        if dynamic_shapes is None and dynamic_batch:
            program = trace_with_batch(module, example_inputs, named, sample_dims, notice)
        else:
            program = trace(module, example_inputs, named, dynamic_shapes)
        return cls.from_exported(program, metadata=metadata, copy_weights=copy_weights)

    @classmethod
    def from_exported(
        cls,
        program: ExportedProgram,
        *,
        history: Sequence[dict[str, Any]] = (),
        metadata: Mapping[str, Any] | None = None,
        inputs: Sequence[InputSpec] | None = None,
        copy_weights: bool = False,
    ) -> Model:
        """Wrap an exported program; `inputs`, where given, carries names of dims and integer ranges over."""
        program = without_clashes(program)
        graph_module = program.module(check_guards=False)
        assert isinstance(graph_module, fx.GraphModule)
        names = output_names(program)
        tie_again(graph_module)
        complete = normalize(graph_module)
        if copy_weights:
            graph_module = copy.deepcopy(graph_module)
        specs, dynamic = input_specs(graph_module, program, inputs)
        results: Any = graph_module.graph.output_node().args[0]
        if len(names) != (count := len(results)):
            names = [f"output_{i}" for i in range(count)] if count > 1 else ["output"]
        names = named_apart(names, [spec.name for spec in specs])
        model = cls(graph_module, specs, names, dynamic, history, metadata)
        model.sizes = {**derived_sizes(graph_module, specs, model.sizes), **model.sizes}
        signature = program.graph_signature
        held = {*signature.non_persistent_buffers, *signature.lifted_tensor_constants}
        constants = sorted(held.intersection(name for name, _ in graph_module.named_buffers()))
        if constants:
            model.metadata["constants"] = constants
        if complete:
            model.traced_form = form_of(graph_module)
        else:
            model.refresh()
        return model

    # -- read --------------------------------------------------------------------------------------------

    @property
    def graph(self) -> fx.Graph:
        return self.graph_module.graph

    @property
    def sizes(self) -> dict[str, int]:
        """Of dynamic dims by name, what to run them at where nothing else says it; kept in files."""
        return dict(self.metadata.get("sizes", {}))

    @sizes.setter
    def sizes(self, sizes: Mapping[str, int]) -> None:
        self.metadata.pop("sizes", None)
        if sizes:
            self.metadata["sizes"] = dict(sizes)

    def __call__(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Run it: a tensor if it has one output, else a tuple."""
        outputs = self.outputs_of(*inputs)
        return outputs[0] if len(outputs) == 1 else outputs

    def outputs_of(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Run it: always the tuple of all outputs. Gradients are recorded if the caller's mode says so.

        Raises:
            UsageError: a size of the inputs is fixed, and this is another one; or these are too few samples.
        """
        check_sizes(self.inputs, inputs, least=self.least_batch)
        return self.graph_module(*inputs)

    @property
    def fixed_batch(self) -> int | None:
        """The number of samples that it takes at a time: the size that all inputs have where samples lie, and
        all outputs somewhere, if that is a number and no dynamic dim."""
        sizes = {spec.shape[d] for spec in self.inputs if (d := spec.batch_dim) is not None}
        fixed = sizes.pop() if len(sizes) == 1 else None
        if not isinstance(fixed, int) or not all(fixed in shape for shape in self.output_shapes()):
            return None
        return fixed

    @property
    def least_batch(self) -> int:
        """The fewest samples at a time of which it makes what its source does."""
        return least_batch_of(self.metadata)

    def output_shapes(self) -> list[tuple[int | str, ...]]:
        """A str is a dynamic dim, or an expression of some."""
        names: dict[str, str] = {}
        for node, spec in zip((n for n in self.graph.nodes if n.op == "placeholder"), self.inputs):
            names.update(zip(map(str, node.meta["val"].shape), map(str, spec.shape)))
        results: Any = self.graph.output_node().args[0]
        values = [node.meta.get("val") if isinstance(node, fx.Node) else None for node in results]
        return [
            tuple(s if isinstance(s, int) else names.get(str(s), str(s)) for s in v.shape)
            if isinstance(v, Tensor)
            else ()
            for v in values
        ]

    def __repr__(self) -> str:
        """What it takes and gives, how large it is and what was done to it; a line each."""
        inputs = ", ".join(map(str, self.inputs))
        shapes = [", ".join(map(str, shape)) for shape in self.output_shapes()]
        outputs = ", ".join(f"{name}[{shape}]" for name, shape in zip(self.outputs, shapes))
        stored = [*self.graph_module.parameters(), *self.graph_module.buffers()]  # int8 weights are buffers
        values, size = sum(t.numel() for t in stored), sum(t.numel() * t.element_size() for t in stored)
        lines = [f"inputs:     {inputs}", f"outputs:    {outputs}"]
        lines.append(f"stored:     {values:,} values ({size / 1e6:.2f} MB)")
        for record in self.history:
            settings = " ".join(f"{k}={v}" for k, v in record.get("settings", {}).items())
            before, after = (record.get(when, {}).get("macs") for when in ("before", "after"))
            macs = f": MACs {before:,} -> {after:,}" if before is not None and after is not None else ""
            lines.append(f"history:    {' '.join(filter(None, (str(record.get('pass')), settings)))}{macs}")
        return "Model(\n" + "".join(f"  {line}\n" for line in lines) + ")"

    def tensor(self, name: str) -> Tensor:
        """The parameter or buffer of that dotted name.

        Raises:
            AttributeError: there is none.
        """
        prefix, _, leaf = name.rpartition(".")
        return getattr(self.graph_module.get_submodule(prefix), leaf)

    def state_dict(self, *, keep_vars: bool = False) -> dict[str, Tensor]:
        """Parameters and buffers by dotted name, tied ones under every name they have."""
        return self.graph_module.state_dict(keep_vars=keep_vars)

    def example_inputs(
        self, batch: int = 2, seed: int = 0, sizes: Mapping[str, int] | None = None
    ) -> tuple[Tensor, ...]:
        """Random inputs that fit: standard normal floats, integers within each input's range.

        Every dynamic dim named "batch" gets the size `batch`; other dynamic dims one of `sizes`, or the usual
        one, inside their bounds.
        """
        generator = torch.Generator().manual_seed(seed)
        shapes = [self.concrete_shape(spec, batch, sizes) for spec in self.inputs]
        return tuple(random_input(spec, shape, generator) for spec, shape in zip(self.inputs, shapes))

    def concrete_shape(
        self, spec: InputSpec, batch: int, sizes: Mapping[str, int] | None = None
    ) -> tuple[int, ...]:
        """The input's shape with the dynamic dims put to numbers, "batch" to `batch`, some by `sizes`."""
        chosen = {**self.sizes, **(sizes or {})}

        def size(dim: int | str) -> int:
            if isinstance(dim, int):
                return dim
            if dim == BATCH:
                return batch
            low, high = self.dynamic.get(dim, (2, None))
            return min(max(low, chosen.get(dim, USUAL_SIZE)), high or 2**31)

        return tuple(size(dim) for dim in spec.shape)

    # -- change ------------------------------------------------------------------------------------------

    def copy(self, *, weights: bool = True) -> Model:
        """A deep copy; without `weights` its tensors are these ones, to which then nothing may write."""
        stored = () if weights else self.state_dict(keep_vars=True).values()
        copied = Model(
            copy.deepcopy(self.graph_module, {id(tensor): tensor for tensor in stored}),
            self.inputs,
            self.outputs,
            self.dynamic,
            copy.deepcopy(self.history),
            copy.deepcopy(self.metadata),
        )
        copied.traced_form = self.traced_form
        return copied

    def set_training(self, training: bool) -> None:
        """Switch the training flag of every batch norm, dropout and recurrent node."""
        for node in self.graph.nodes:
            position = training_flag(node)
            if position is not None:
                node.update_arg(position, training)
        self.graph_module.recompile()

    def to_module(self) -> Network:
        """An ordinary `nn.Module` with a copy of the weights, in evaluation mode, to train in a loop of one's
        own: `train()`, `eval()`, `state_dict()`, `to(device)` do what they always do.

        Weights that are stored as int8 are buffers, which do not train: train first, then quantize, or use
        `nncompress train`. `nncompress.load` takes the module back.
        """
        return Network(
            self.graph_module, self.inputs, self.outputs, self.dynamic, self.history, self.metadata
        )

    @property
    def has_shapes(self) -> bool:
        """Those in the graph are right: only values of weights have changed since they were derived."""
        return self.traced_form is not None and self.traced_form == form_of(self.graph_module)

    def refresh(self) -> None:
        """After an edit: drop dead code and derive every node's shape anew by exporting again.

        An edit that changed values of weights alone, or that was refreshed already, leaves nothing to derive.

        Raises:
            UnsupportedError: the edited graph does not trace; the message names the op.
        """
        remove_dead_code(self.graph_module)
        if self.has_shapes:
            return
        fresh = Model.from_exported(self._traced(self.graph_module, batch=2), inputs=self.inputs)
        self.graph_module, self.traced_form = fresh.graph_module, fresh.traced_form

    def exported_program(self, batch: int = 2) -> ExportedProgram:
        """The model as a `torch.export` program with the same names and dynamic dims.

        A tensor that the original changed when run is changed by the program, too.

        Args:
            batch: of the inputs that it is traced with.

        Raises:
            UnsupportedError: it does not trace.
        """
        return self._traced(for_others(self.graph_module), batch)

    def _traced(self, module: fx.GraphModule, batch: int) -> ExportedProgram:
        dims = named_dims(self.dynamic)

        def shapes(of: Mapping[str, Any]) -> tuple[dict[int, Any], ...]:
            return tuple(
                {i: of[dim] for i, dim in enumerate(s.shape) if isinstance(dim, str)} for s in self.inputs
            )

        examples = self.example_inputs(batch)
        name_placeholders(module, self.inputs)
        try:
            return trace(module, examples, {}, shapes(dims) if dims else None)
        except UnsupportedError:
            if not dims:
                raise
        # A relation between dims that plain named dims cannot state: let torch infer it. Of the batch's own
        # only where it must: it would take away batches of 1.
        inferred = {name: Dim.AUTO(min=low, max=high) for name, (low, high) in self.dynamic.items()}
        if BATCH in dims:
            with suppress(UnsupportedError):
                return trace(module, examples, {}, shapes(inferred | {BATCH: dims[BATCH]}))
        return trace(module, examples, {}, shapes(inferred))
