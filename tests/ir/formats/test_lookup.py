import pytest
import torch
from torch import nn

from nncompress.ir import Model
from nncompress.ir.formats.lookup import pack, unpack
from tests.ir.formats.test_packed import of_values, sparse


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(81, 81)
        self.b = nn.Linear(81, 81, bias=False)
        self.b.weight = self.a.weight
        self.conv = nn.Conv1d(1, 64, 70)

    def forward(self, x):
        return self.conv(self.b(self.a(x)).unsqueeze(1))


def channels(shape, distinct):
    return torch.stack([of_values(shape[1:], distinct, seed=i) for i in range(shape[0])])


FORMS = {
    "two values": lambda shape: of_values(shape, 2),
    "16 values": lambda shape: of_values(shape, 16),
    "17 values": lambda shape: of_values(shape, 17),
    "per channel": lambda shape: channels(shape, 2),
    "sparse": lambda shape: sparse(torch.randn(shape), 0.75),
    "sparse, 4 values": lambda shape: sparse(of_values(shape, 3), 0.75),
}


@pytest.mark.parametrize("form", FORMS)
def test_packing_keeps_every_bit_and_unpacking_every_name(form):
    module = Tied().eval()
    with torch.no_grad():
        module.a.weight.copy_(FORMS[form]((81, 81)))
        module.conv.weight.copy_(FORMS[form]((64, 1, 70)))
    model = Model.from_module(module, (torch.randn(2, 81),))
    small = pack(model)
    assert small is not model
    x = torch.randn(3, 81)
    assert torch.equal(small(x), model(x))
    assert "a.weight" not in small.state_dict()
    once = {t.data_ptr(): t.numel() * t.element_size() for t in small.state_dict().values()}
    assert sum(once.values()) < 0.5 * 4 * (81 * 81 + 64 * 70)
    loaded = Model.from_exported(small.exported_program())
    for each in (small, loaded):
        unpack(each)
        assert torch.equal(each(x), model(x))
        assert each.state_dict().keys() == model.state_dict().keys()
        for name, tensor in model.state_dict().items():
            assert torch.equal(each.tensor(name), tensor)
        assert each.tensor("a.weight") is each.tensor("b.weight")
        assert isinstance(each.tensor("a.weight"), nn.Parameter)
    for node in loaded.graph.nodes:
        if node.op == "get_attr":
            assert node.meta["val"].shape == loaded.tensor(str(node.target)).shape


def test_a_model_without_repeats_is_returned_as_it_is():
    model = Model.from_module(Tied().eval(), (torch.randn(2, 81),))
    assert pack(model) is model


def test_names_that_only_look_packed_are_left():
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.my_codebook = nn.Parameter(torch.randn(4, 4))

        def forward(self, x):
            return x @ self.my_codebook

    model = Model.from_module(Named(), (torch.randn(2, 4),))
    before = model.tensor("my_codebook").clone()
    unpack(model)
    assert torch.equal(model.tensor("my_codebook"), before)
