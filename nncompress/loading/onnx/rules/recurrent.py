"""Fused recurrent layers. ONNX has its own order of gates, a dim of directions, and no layers.

LSTM  W [directions, 4 hidden, in]    gates i, o, f, c   (torch: i, f, g, o)
GRU   W [directions, 3 hidden, in]    gates z, r, h      (torch: r, z, n); linear_before_reset = 1 is torch's
RNN   W [directions, hidden, in]
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nncompress.loading.onnx.interpreter import Call, rule
from nncompress.loading.onnx.values import Value

_GATES = {"LSTM": [0, 2, 3, 1], "GRU": [1, 0, 2], "RNN": [0]}
_ACTIVATIONS = {"LSTM": ["Sigmoid", "Tanh", "Tanh"], "GRU": ["Sigmoid", "Tanh"], "RNN": ["Tanh"]}


# alpha and beta: of activations that are refused; sigmoid, tanh and relu have none
@rule("LSTM", "GRU", "RNN", ignores=["activation_alpha", "activation_beta"])
def recurrent(call: Call) -> Any:
    directions = {"forward": 1, "reverse": 1, "bidirectional": 2}[call.get("direction", "forward")]
    x, hidden = call.tensor(0), call.get("hidden_size")
    usual = _ACTIVATIONS[call.op] * directions
    activations = [name.capitalize() for name in call.get("activations", usual)]
    relu = call.op == "RNN" and set(activations) == {"Relu"}
    if activations != usual and not relu:
        raise call.refusal(f"the activations {', '.join(activations)}")
    if call.get("clip") or call.get("input_forget", 0) or call.get("layout", 0) or call.has(7):
        raise call.refusal("with a clip, coupled gates, peepholes, or the batch first")
    if call.op == "GRU" and not call.get("linear_before_reset", 0):
        raise call.refusal("linear_before_reset = 0")
    if call.has(4):
        raise call.refusal("with a length of each sequence")
    weights: list[Tensor] = []
    for direction in range(directions):
        weights += _weights(call, direction, hidden)
    batch = x.shape[1]
    states = []
    for position in (5, 6) if call.op == "LSTM" else (5,):
        given = call.optional(position)
        states.append(given if given is not None else x.new_zeros(directions, batch, hidden))
    backwards = call.get("direction") == "reverse"
    x = torch.flip(x, [0]) if backwards else x
    has_bias, both = len(weights) == 4 * directions, directions == 2
    if call.op == "LSTM":
        y, *last = torch.lstm(x, states, weights, has_bias, 1, 0.0, False, both, False)
    else:
        function = torch.gru if call.op == "GRU" else torch.rnn_relu if relu else torch.rnn_tanh
        y, *last = function(x, states[0], weights, has_bias, 1, 0.0, False, both, False)
    y = torch.flip(y, [0]) if backwards else y
    split = y.reshape(y.shape[0], y.shape[1], directions, hidden).transpose(1, 2)
    return [split, *last]


def _weights(call: Call, direction: int, hidden: int) -> list[Tensor]:
    """Of one direction, as torch wants them: input, recurrent, and both biases where there are some."""

    def gates(stacked: Tensor) -> Tensor:
        parts = stacked.split(hidden)
        return stacked if len(parts) == 1 else torch.cat([parts[i] for i in _GATES[call.op]])

    found = [gates(call.tensor(1)[direction]), gates(call.tensor(2)[direction])]
    if call.has(3):
        both: Value = call.tensor(3)[direction]
        found += [gates(half) for half in both.split(len(_GATES[call.op]) * hidden)]  # type: ignore[union-attr]
    return found
