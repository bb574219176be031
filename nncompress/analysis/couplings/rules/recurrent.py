"""Rules of recurrent layers, cells and whole sequences: a hidden unit is a row of every gate.

Every rule takes `(trace, node, a)`, `a` being the arguments by schema name, and returns the labelled result.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import fx

from nncompress.analysis.couplings.labels import PIN, Factor
from nncompress.analysis.couplings.rules.contraction import contract
from nncompress.analysis.couplings.tracer import Tracer
from nncompress.analysis.couplings.value import Arguments, Result, Value


def recurrent_cell(t: Tracer, node: fx.Node, a: Arguments) -> Result:
    """lstm_cell, gru_cell, rnn_*_cell: [gates x hidden] weights; a hidden unit is a row of every gate."""
    x = t.value(a["input"])
    states = a["hx"] if isinstance(a["hx"], list | tuple) else [a["hx"]]
    hidden = t.value(states[0]).shape[-1]
    units = recurrent_layer(t, x, [a["w_ih"], a["w_hh"], a["b_ih"], a["b_hh"]], hidden)
    t.contraction(node, a["w_ih"], outputs=[0], inputs=[1])
    t.contraction(node, a["w_hh"], outputs=[0], inputs=[1])
    factor = [] if units is None else [units[0].reshape(1, -1)]
    for state in states:
        s = t.value(state)
        factor = t.labels.unify([(factor, [False, True]), (s.factors, s.spans)], "meets a fixed size")
    shapes = t.shape(node)
    if isinstance(shapes, list):
        return [Value(s, list(factor)) for s in shapes]
    return Value(shapes, list(factor))


def recurrent_layer(
    t: Tracer, x: Value, weights: Sequence[Any], hidden: int, projection: Any = None
) -> tuple[Factor, Factor] | None:
    """Unite the gates' rows with each other; x with w_ih's columns; with w_hh's columns what is handed on.

    That is the hidden units, or where there is a projection `[handed on, hidden]`, its rows.

    Returns:
        The labels of the hidden units, `[hidden]`, and of what is handed on to the next step and layer.
    """
    w_ih, w_hh, *biases = (t.value(w) for w in weights)
    lead = [f"b{i}" for i in range(len(x.shape) - 1)]
    gates = contract(t, [(x, [*lead, "k"]), (w_ih, ["o", "k"])], [*lead, "o"], (*x.shape[:-1], w_ih.shape[0]))
    rows = [f.ravel() for f in gates.factors if f.size == f.shape[-1] > 1]
    for value in (w_hh, *biases):
        rows += [f.ravel() for f in value.factors if f.shape[0] == f.size > 1]
    if not rows:
        return None
    units = rows[0].reshape(-1, hidden)[:1].ravel()
    for row in rows:
        t.labels.unite(row.reshape(-1, hidden), units)
    if len(rows) < 2 + len(biases):
        t.labels.pin(units, "meets a fixed size")
    handed = units
    if projection is not None:
        projected = t.value(projection)
        whole = contract(
            t, [(Value((hidden,), [units]), ["h"]), (projected, ["p", "h"])], ["p"], (w_hh.shape[1],)
        )
        handed = _along(whole, 0)
    columns = _along(w_hh, 1)
    t.labels.unify([([f], [f.size > 1]) for f in (handed, columns)], "meets a fixed size")
    return units, handed


def _along(value: Value, dim: int) -> Factor:
    """The labels along one dim, `[size]`; fixed where it has none."""
    labelled = [f.ravel() for f in value.factors if f.shape[dim] == f.size > 1]
    return labelled[0] if labelled else np.full(value.shape[dim], PIN)


def recurrent(t: Tracer, node: fx.Node, a: Arguments) -> Result:
    """lstm, gru, rnn_tanh, rnn_relu over a sequence. One hidden size serves all layers and directions, and so
    does one size of what they hand on, where an LSTM projects its hidden units to fewer."""
    if "params" not in a or a.get("batch_sizes") is not None:
        return t.unknown(node)
    x = t.value(a["input"])
    rank = len(x.shape)
    x = Value(x.shape, t.labels.fix(x.factors, range(rank - 1), "iterated over"))
    states = a["hx"] if isinstance(a["hx"], list | tuple) else [a["hx"]]
    initial = [t.value(s) for s in states]
    hidden, projects = initial[-1].shape[-1], initial[0].shape[-1] != initial[-1].shape[-1]
    per_layer = (4 if a["has_biases"] else 2) + projects
    directions = 2 if a["bidirectional"] else 1
    known: list[tuple[Factor, Factor]] = []
    layer_input = x
    for layer in range(a["num_layers"]):
        for d in range(directions):
            at = (layer * directions + d) * per_layer
            weights = a["params"][at : at + per_layer]
            projection = weights.pop() if projects else None
            labels = recurrent_layer(t, layer_input, weights, hidden, projection)
            if labels is None:
                return t.unknown(node)
            for weight in (*weights[:2], projection):
                if weight is not None:
                    t.contraction(node, weight, outputs=[0], inputs=[1])
            known.append(labels)
        whole = np.tile(known[-1][1], directions)
        layer_input = Value((*x.shape[:-1], len(whole)), [whole.reshape((1,) * (rank - 1) + (-1,))])
    units, handed = known[0]
    for other in known[1:]:
        t.labels.unite(other[0], units)
        t.labels.unite(other[1], handed)
    of_states = [handed, *[units] * (len(initial) - 1)]
    for s, mine in zip(initial, of_states):
        flat = Value(s.shape, t.labels.fix(s.factors, range(len(s.shape) - 1), "one per layer"))
        own = [d == len(s.shape) - 1 for d in range(len(s.shape))]
        labelled = [mine.reshape((1,) * (len(s.shape) - 1) + (-1,))]
        t.labels.unify([(flat.factors, flat.spans), (labelled, own)], "meets a fixed size")
    first, *rest = t.shape(node)
    results: list[Result] = [Value(first, list(layer_input.factors))]
    for shape, mine in zip(rest, of_states):
        results.append(Value(shape, [mine.reshape((1,) * (len(shape) - 1) + (-1,))]))
    return results
