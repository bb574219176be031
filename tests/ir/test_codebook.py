import pytest
import torch
from torch import nn

from nncompress.ir import Model
from nncompress.ir.codebook import bits_for, distinct_values, pack, packed_bytes, unpack


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(41, 41)
        self.b = nn.Linear(41, 41, bias=False)
        self.b.weight = self.a.weight
        self.conv = nn.Conv1d(1, 64, 35)

    def forward(self, x):
        return self.conv(self.b(self.a(x)).unsqueeze(1))


def of_values(shape, distinct: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(distinct)
    book = torch.randn(distinct, generator=generator)
    return book[torch.randint(0, distinct, shape, generator=generator)]


@pytest.mark.parametrize("distinct", [1, 2, 3, 4, 5, 16, 17, 256])
def test_packing_keeps_every_bit_and_unpacking_every_name(distinct):
    module = Tied().eval()
    with torch.no_grad():
        module.a.weight.copy_(of_values((41, 41), distinct))
        module.conv.weight.copy_(of_values((64, 1, 35), distinct))
    model = Model.from_module(module, (torch.randn(2, 41),))
    small = pack(model)
    x = torch.randn(3, 41)
    assert torch.equal(small(x), model(x))
    stored = sum(t.numel() * t.element_size() for n, t in small.state_dict().items() if "_codes" in n)
    numbers = 41 * 41 + 64 * 35
    width = bits_for(distinct)
    assert numbers * width / 8 <= stored <= numbers * width / 8 + 2
    assert "a.weight" not in small.state_dict()
    unpack(small)
    assert torch.equal(small(x), model(x))
    for name in ("a.weight", "conv.weight"):
        assert torch.equal(small.tensor(name), model.tensor(name))
    assert not [n for n in small.state_dict() if "cod" in n]


def test_nothing_to_pack():
    model = Model.from_module(Tied().eval(), (torch.randn(2, 41),))
    assert pack(model) is model


def test_distinct_values_and_their_size():
    assert distinct_values(torch.randn(500, 500)) is None
    assert distinct_values(torch.tensor([1.0, float("nan")])) is None
    assert distinct_values(torch.tensor([2, 1])) is None
    late = torch.zeros(100_000)  # values that a sample would miss
    late[1:400] = torch.arange(1, 400)
    assert distinct_values(late) is None
    assert distinct_values(torch.tensor([2.0, 1.0, 2.0])).tolist() == [1.0, 2.0]
    assert packed_bytes(torch.zeros(1001), 16) == 501 + 64
