"""torch evaluates the annotations of a class of its schema once while a `.pt2` is read."""

import typing

from torch._export.serde import serialize

from nncompress.loading.pt2.loader_cost import kept


def test_annotations_are_evaluated_once_for_each_class_and_torch_is_left_as_it_was(monkeypatch):
    given, asked, own = {"as_none": True}, [], typing.get_type_hints
    plain = [serialize._dict_to_dataclass(serialize.Argument, given) for _ in range(3)]
    monkeypatch.setattr(typing, "get_type_hints", lambda cls, **named: asked.append(cls) or own(cls, **named))
    with kept():
        assert [serialize._dict_to_dataclass(serialize.Argument, given) for _ in range(3)] == plain
    assert asked == [serialize.Argument]
    assert serialize.typing is typing
    serialize._dict_to_dataclass(serialize.Argument, given)
    assert len(asked) == 2
