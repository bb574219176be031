"""Sequences whose length stays free beside the batch."""

import pytest
import torch
from torch import nn

from nncompress.errors import UsageError, VerificationError
from nncompress.exporting import write
from nncompress.loading import load_model
from nncompress.loading.module.free_lengths import Length
from nncompress.loading.module.traced import traced


class Tagger(nn.Module):
    """Scores of every token, among those that the mask lets through."""

    def __init__(self):
        super().__init__()
        self.embed, self.out = nn.Embedding(20, 8), nn.Linear(8, 3)
        self.positions = nn.Parameter(torch.randn(24, 8))

    def forward(self, ids, mask):
        x = (self.embed(ids) + self.positions[: ids.shape[1]]) * mask.unsqueeze(-1)
        return self.out(torch.relu(x + x.mean(1, keepdim=True)))


class Sound(nn.Module):
    """Frames of a sound: none where it is shorter than the windows."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv1d(1, 4, 10, stride=5), nn.Conv1d(4, 2, 3, stride=2)

    def forward(self, sound):
        return self.second(torch.relu(self.first(sound.unsqueeze(1))))


class Fixed(nn.Module):
    """Of six steps, whatever the batch."""

    def __init__(self):
        super().__init__()
        self.out = nn.Linear(6, 2)

    def forward(self, steps):
        return self.out(steps)


def loaded(module, shapes, lengths):
    told = []
    torch.manual_seed(0)
    return traced(module().eval(), "it", shapes, None, told.append, lengths=lengths), " ".join(told)


def ids(*shape):
    return torch.randint(0, 20, shape)


def test_a_length_stays_free_through_files_and_is_bounded(tmp_path):
    model, told = loaded(Tagger, "2x6:int64,2x6:int64", [Length("length", 24)] * 2)
    assert [spec.shape for spec in model.inputs] == [("batch", "length")] * 2
    assert model.dynamic["length"] == (1, 24)
    assert model.sizes == {"length": 6}
    assert "length (up to 24)" in told
    write(model, tmp_path / "m.pt2")
    again = load_model(tmp_path / "m.pt2")
    assert (again.dynamic, again.sizes) == (model.dynamic, model.sizes)
    for count, length in ((1, 24), (3, 1), (2, 11)):
        given = ids(count, length), torch.ones(count, length, dtype=torch.int64)
        torch.testing.assert_close(again(*given), model.to_module()(*given))
    report = write(again, tmp_path / "m.onnx")
    assert report.relative_error < 1e-5


def test_the_shortest_sound_is_what_its_windows_take(tmp_path):
    model, _ = loaded(Sound, "2x400", [Length("length", 100_000)])
    low, high = model.dynamic["length"]
    assert (low, high) == (20, 100_000)
    assert model(torch.randn(2, low)).shape[2] == 1
    assert model(torch.randn(1, 40_000)).shape == (1, 2, 3999)
    write(model, tmp_path / "m.pt2")
    assert load_model(tmp_path / "m.pt2").dynamic == model.dynamic


def test_a_length_that_the_network_fixes_is_said_and_the_batch_stays_free():
    model, told = loaded(Fixed, "2x6", [Length("length", 24)])
    assert model.inputs[0].shape == ("batch", 6)
    assert "one length only, length = 6" in told


def test_it_is_compared_with_its_source_at_another_length(monkeypatch):
    class Cut(Tagger):
        def forward(self, ids, mask):
            out = super().forward(ids, mask)
            return out if torch.compiler.is_exporting() or ids.shape[1] == 6 else out * 2

    with pytest.raises(VerificationError, match="batch 3"):
        loaded(Cut, "2x6:int64,2x6:int64", [Length("length", 24)] * 2)


def test_an_input_that_it_cannot_take_is_refused_with_the_form_of_its_own():
    with pytest.raises(UsageError, match="--input ids:Bx…,mask:Bx…"):
        loaded(Tagger, "2x99:int64,2x99:int64", [Length("length", 24)] * 2)


def test_a_mark_where_the_network_takes_one_size_is_refused():
    class First(Tagger):
        def forward(self, ids):
            return super().forward(ids, torch.ones_like(ids))[:, 0]

    with pytest.raises(UsageError, match="marks dim 1 of ids as the batch"):
        loaded(First, "8xB:int64", None)
