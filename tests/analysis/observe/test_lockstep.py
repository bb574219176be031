import torch
from torch import nn

from nncompress.analysis.observe.layerwise import Lockstep
from nncompress.ir import Model


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        h = self.a(x).relu()
        return self.b(h) + h


def test_stops_where_it_is_told_and_sees_edits_made_on_the_way():
    module = Net().eval()
    model = Model.from_module(module, (torch.randn(2, 4),))
    batches = [(torch.randn(n, 4),) for n in (3, 5)]
    run = Lockstep(model, batches)
    nodes = {n.name: n for n in model.graph.nodes}
    relu, total = nodes["relu"], next(n for n in model.graph.nodes if n.name.startswith("add"))
    run.to(relu)
    assert run.reached(relu)
    assert not run.reached(total)
    for index, (x,) in enumerate(batches):
        torch.testing.assert_close(run.value(relu, index), module.a(x).relu())
    with torch.no_grad():
        model.tensor("b.weight").zero_()
        module.b.weight.zero_()
    run.to(total)
    for index, (x,) in enumerate(batches):
        torch.testing.assert_close(run.value(total, index), module(x))
    held = [node for values in run._values for node in values if node.op != "get_attr"]
    assert len(held) <= 2 * 3  # the sum and its two operands; the input and the first layer are gone
