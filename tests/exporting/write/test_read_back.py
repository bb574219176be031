"""What is written is read back and compared in the same call; a writer that is wrong leaves no file."""

import json

import pytest
import torch
from networks import model

from nncompress.errors import VerificationError
from nncompress.exporting import write
from nncompress.exporting.write import pt2, safetensors

STORAGES = ("plain", "packed", "entropy")


def few_values():
    made = model("two-outputs")
    with torch.no_grad():
        for parameter in made.graph_module.parameters():
            parameter.copy_((parameter * 4).round() / 4)
    return made


def another_weight(made):
    with torch.no_grad():
        next(p for p in made.graph_module.parameters() if p.dim() > 1).view(-1)[0] += 1e-6


def another_op(made):
    node = next(n for n in made.graph.nodes if "relu" in str(n.target))
    node.target = torch.ops.aten.gelu.default
    made.graph_module.recompile()


def another_history(made):
    made.history.append({"pass": "prune", "settings": {}, "before": {}, "after": {}})


def another_output(made):
    made.outputs = ("renamed", "too")


@pytest.mark.parametrize("storage", ["plain", "entropy"])
@pytest.mark.parametrize("damage", [another_weight, another_op, another_history, another_output])
def test_a_pt2_that_holds_another_model_is_not_kept(damage, storage, tmp_path, monkeypatch):
    whole, damaged = few_values(), few_values()
    damage(damaged)
    pack, record = pt2.pack, pt2.record
    monkeypatch.setattr(pt2, "pack", lambda model, per_op: pack(damaged, per_op))
    monkeypatch.setattr(pt2, "record", lambda model: record(damaged))
    if storage == "plain":  # which does not pack
        monkeypatch.setattr(whole, "exported_program", damaged.exported_program)
    (tmp_path / "m.pt2").write_text("old")
    with pytest.raises(VerificationError, match="is not kept: read back, it holds another model"):
        write(whole, tmp_path / "m.pt2", storage=storage)
    assert [file.name for file in tmp_path.iterdir()] == ["m.pt2"]
    assert (tmp_path / "m.pt2").read_text() == "old"


def test_a_pt2_that_our_reader_refuses_is_not_kept(tmp_path, monkeypatch):
    record = pt2.record
    monkeypatch.setattr(pt2, "record", lambda model: record(model) | {"unknown": 1})
    with pytest.raises(VerificationError, match=r"m.pt2 is not kept: it could not be read back"):
        write(model("two-outputs"), tmp_path / "m.pt2")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("storage", STORAGES)
def test_safetensors_that_hold_other_tensors_are_not_kept(storage, tmp_path, monkeypatch):
    whole, damaged = few_values(), few_values()
    another_weight(damaged)
    right, wrong = whole.state_dict(), damaged.graph_module.state_dict(keep_vars=True)
    monkeypatch.setattr(
        whole.graph_module, "state_dict", lambda keep_vars=False: wrong if keep_vars else right
    )
    with pytest.raises(VerificationError, match="differs"):
        write(whole, tmp_path / "m.safetensors", storage=storage)
    assert not list(tmp_path.iterdir())


def test_safetensors_without_their_history_are_not_kept(tmp_path, monkeypatch):
    made = few_values()
    another_history(made)
    monkeypatch.setattr(safetensors, "json", Forgetful)
    with pytest.raises(VerificationError, match="history"):
        write(made, tmp_path / "m.safetensors")
    assert not list(tmp_path.iterdir())


class Forgetful:
    loads = staticmethod(json.loads)

    @staticmethod
    def dumps(value, **options):
        return json.dumps([] if isinstance(value, list) else value, **options)
