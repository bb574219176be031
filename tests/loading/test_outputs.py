"""Of what a model returns tensors are kept; the rest is said."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import nncompress
from nncompress.errors import UnsupportedError


class Returns(nn.Module):
    """Its answer and more, or something else."""

    def __init__(self, returned: object, alone: bool) -> None:
        super().__init__()
        self.linear, self.returned, self.alone = nn.Linear(4, 3), returned, alone

    def forward(self, x: Tensor) -> object:
        answer = self.linear(x)
        return self.returned if self.alone else (answer, self.returned)


@pytest.mark.parametrize(
    ("returned", "what"), [(None, "1 is None"), ("a", "of type str"), (3, "of type int")]
)
def test_what_is_no_tensor_among_outputs_is_said(returned: object, what: str) -> None:
    said: list[str] = []
    loaded = nncompress.load(Returns(returned, alone=False), input="Bx4", notice=said.append)
    assert loaded.outputs == ("output",)
    (sentence,) = said
    assert what in sentence


@pytest.mark.parametrize("returned", [None, "a", ()])
def test_a_module_that_returns_no_tensor_is_refused(returned: object) -> None:
    with pytest.raises(UnsupportedError, match="returns no tensor"):
        nncompress.load(Returns(returned, alone=True), input="Bx4")


def test_text_that_torch_writes_and_does_not_read_is_no_damage(tmp_path) -> None:
    program = torch.export.export(Returns("logits", alone=False).eval(), (torch.randn(2, 4),))
    torch.export.save(program, tmp_path / "m.pt2")
    with pytest.raises(UnsupportedError, match="returns text") as refused:
        nncompress.load(tmp_path / "m.pt2")
    assert "'logits'" in (refused.value.got or "")
