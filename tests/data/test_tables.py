"""Tables: columns become inputs and labels as the values say; what does not is told by line."""

import json

import numpy as np
import pytest
import torch

from nncompress import extras
from nncompress.data import open_data
from nncompress.data.sources import arrow
from nncompress.data.sources import tables as tables_module
from nncompress.errors import DataError, MissingExtraError
from nncompress.ir import InputSpec


def whole(dataset):
    (batch,) = dataset.batches(len(dataset))
    return batch


@pytest.fixture
def flowers(tmp_path):
    path = tmp_path / "flowers.csv"
    path.write_text("long,wide,kind\n1,0.5,rose\n2,0.25,tulip\n\n3,-1e2,rose\n")
    return path


def test_columns_side_by_side_and_text_as_classes(flowers):
    data = open_data(f"{flowers}?x=wide,long&y=kind")
    batch = whole(data)
    assert batch.inputs[0].tolist() == [[0.5, 1], [0.25, 2], [-100, 3]]
    assert batch.labels.tolist() == [0, 1, 0]
    assert data.class_names == ("rose", "tulip")


def test_without_options_labels_go_by_their_name_and_the_rest_is_x(tmp_path):
    path = tmp_path / "t.tsv"
    path.write_text("a\tlabel\tb\n1\t3\t2\n4\t0\t5\n")
    batch = whole(open_data(str(path)))
    assert batch.inputs[0].tolist() == [[1, 2], [4, 5]]
    assert batch.inputs[0].dtype == torch.float32
    assert batch.labels.tolist() == [3, 0]


def test_numbers_with_a_fraction_are_targets(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("x,y\n1,2.0\n2,3.5\n")
    assert whole(open_data(str(path))).labels.dtype == torch.float32


def test_a_row_of_pixels_is_an_image_where_the_model_takes_one(tmp_path):
    path = tmp_path / "pixels.csv"
    path.write_text("y," + ",".join(f"p{i}" for i in range(6)) + "\n1,0,1,2,3,4,5\n")
    batch = whole(open_data(str(path), [InputSpec("x", "float32", ("batch", 1, 2, 3))]))
    assert batch.inputs[0].tolist() == [[[[0, 1, 2], [3, 4, 5]]]]


def test_lists_are_arrays_and_inputs_go_by_their_names(tmp_path):
    path = tmp_path / "t.jsonl"
    rows = [{"ids": [1, 2, 3], "mask": [1, 1, 0], "kind": k} for k in "aba"]
    path.write_text("\n".join(map(json.dumps, rows)))
    expected = [InputSpec(name, "int64", ("batch", "n")) for name in ("mask", "ids")]
    batch = whole(open_data(f"{path}?y=kind", expected))
    assert [x[0].tolist() for x in batch.inputs] == [[1, 1, 0], [1, 2, 3]]
    assert batch.labels.tolist() == [0, 1, 0]
    batch = whole(open_data(f"{path}?x=ids", [InputSpec("tokens", "float32", ("batch", 3))]))
    assert batch.inputs[0].dtype == torch.float32
    assert batch.labels is None


def test_random_numbers_come_back_as_they_were_written(tmp_path):
    numbers = np.random.default_rng().standard_normal((50, 3)).astype(np.float32)
    path = tmp_path / "t.csv"
    path.write_text("a,b,c\n" + "\n".join(",".join(map(repr, row)) for row in numbers.tolist()))
    batch = whole(open_data(str(path)))
    assert np.array_equal(batch.inputs[0].numpy(), numbers)
    half = whole(open_data(f"{path}?x=a&half=1"))
    assert set(half.inputs[0][:, 0].tolist()) < set(numbers[:, 0].tolist())


@pytest.mark.parametrize(
    ("name", "text", "query", "message"),
    [
        ("t.csv", "", "", "no samples"),
        ("t.csv", "a,b\n", "", "no samples"),
        ("t.csv", "1,2\n3,4\n", "", "names of its columns"),
        ("t.csv", "a,a\n1,2\n", "", "two columns of one name"),
        ("t.csv", "a,y\n1,2\n3\n", "", "line 3 has another number of values"),
        ("t.csv", "a,y\n1,2\n,4\n", "", r"a is no number in line 3(.|\n)*''"),
        ("t.csv", "a,y\n1,2\nnan,4\n", "", "sample 1 of x holds NaN"),
        ("t.csv", "a,y\n1,2\n", "?x=b", r"no column 'b'(.|\n)*a, y"),
        ("t.csv", "y\n1\n", "", "no column beside the labels"),
        ("t.csv", "a,y\n1,red\n2,3\n", "", "text and numbers"),
        ("t.csv", "a,y\n1,red\n2,green\n", "", "another text"),
        ("t.csv", "a,y\n1,-2\n", "", "negative label"),
        ("t.jsonl", "{", "", "line 1 is no JSON"),
        ("t.jsonl", "[1]", "", "line 1 is no object"),
        ("t.jsonl", '{"x": [1, 2]}\n{"x": [1]}', "", "another shape"),
        ("t.jsonl", '{"x": [1]}\n{"z": [1]}', "", "x is no number in line 2"),
        ("t.jsonl", '{"x": 9007199254740993}', "", "beyond"),
        ("t.jsonl", '{"x": -9223372036854775808}', "", "beyond"),
        ("t.csv", "a,y\n9007199254740993,1\n", "", "beyond"),
        ("t.csv", "a,y\n1,inf\n", "", "the labels holds infinity"),
        ("t.jsonl", '{"x": 1e300, "y": 1}', "", "x holds infinity"),
        ("t.jsonl", '{"a": [1], "b": [2]}', "?x=a,b", "several columns of lists"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(tmp_path, name, text, query, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message):
        open_data(f"{tmp_path / name}{query}")


def test_a_file_that_is_no_text_is_a_message(tmp_path):
    (tmp_path / "t.csv").write_bytes(b"a,b\n\xff\xfe,1\n")
    with pytest.raises(DataError, match="cannot be read"):
        open_data(str(tmp_path / "t.csv"))


def test_a_line_without_an_end_is_not_taken_in(tmp_path, monkeypatch):
    monkeypatch.setattr(tables_module, "MOST_LINE", 100)
    (tmp_path / "t.jsonl").write_text("[" * 1000)
    with pytest.raises(DataError, match="a line of more than 100"):
        open_data(str(tmp_path / "t.jsonl"))


def test_a_text_that_a_parquet_holds_once_is_in_memory_once(tmp_path):
    """What a few bytes of the file repeat takes no more than these."""
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    long = "x" * 10_000
    table = pyarrow.table({"x": [1.0] * 3000, "t": [long] * 2999 + [None], "l": [[1, 2]] * 3000})
    parquet.write_table(table, tmp_path / "t.parquet")
    names, rows = tables_module.open_rows(tmp_path / "t.parquet")
    found = [row for _, row in rows]
    assert names == ["x", "t", "l"]
    assert found[0] == {"x": 1.0, "t": long, "l": [1, 2]}
    assert found[-1]["t"] is None
    assert len({id(row["t"]) for row in found[:1000]}) == 1
    with pytest.raises(DataError, match="t is too long for a label in sample 1"):
        open_data(f"{tmp_path / 't.parquet'}?x=x&y=t")


def test_parquet_is_read_by_pyarrow_or_names_its_extra(tmp_path, monkeypatch):
    (tmp_path / "t.parquet").write_bytes(b"PAR1")
    monkeypatch.setattr(extras, "installed", lambda extra: False)
    with pytest.raises(MissingExtraError, match=r"nncompress\[parquet\]"):
        open_data(str(tmp_path / "t.parquet"))
    monkeypatch.undo()
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    with pytest.raises(DataError, match=r"cannot be read as \.parquet"):
        open_data(str(tmp_path / "t.parquet"))
    table = pyarrow.table({"x": [[1.5, 2], [3, 4]], "y": ["b", "a"], "z": [0, 0]})
    parquet.write_table(table, tmp_path / "u.parquet")
    with pytest.raises(DataError, match="another text"):
        open_data(f"{tmp_path / 'u.parquet'}?x=x&y=y")
    many = pyarrow.chunked_array([pyarrow.array(np.zeros(2**20))] * 64)  # one number, which takes no bytes
    parquet.write_table(pyarrow.table({"x": many}), tmp_path / "v.parquet")
    monkeypatch.setattr(arrow, "check_allocation", lambda size, what: sizes.append(size))
    sizes: list[int] = []
    open_data(f"{tmp_path / 'u.parquet'}?x=x&y=z")
    tables_module.open_rows(tmp_path / "v.parquet")
    assert sizes[-1] == 8 * 64 * 2**20
    monkeypatch.undo()
    batch = whole(open_data(f"{tmp_path / 'u.parquet'}?x=x&y=z"))
    assert batch.inputs[0].tolist() == [[1.5, 2], [3, 4]]
    assert batch.labels.tolist() == [0, 0]


def test_columns_of_a_parquet_are_what_their_values_are_one_by_one(tmp_path, monkeypatch):
    """Numbers and lists of one length are taken at once, more than one batch of them."""
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    chance = np.random.default_rng()
    columns = {
        "a": chance.integers(-9, 9, 1500),
        "b": chance.normal(size=1500).astype(np.float16),
        "c": chance.integers(0, 2, 1500).astype(bool),
        "l": chance.normal(size=(1500, 3)).tolist(),
        "y": chance.integers(0, 3, 1500).astype(np.uint8),
    }
    parquet.write_table(pyarrow.table(columns), tmp_path / "t.parquet")
    specs = [f"{tmp_path / 't.parquet'}?x={x}&y={y}" for x, y in (("a,b,c", "y"), ("l", "y"), ("a", "b"))]
    at_once = [whole(open_data(spec)) for spec in specs]
    monkeypatch.setattr(tables_module, "numbers_of", lambda column: None)
    for spec, found in zip(specs, at_once):
        one_by_one = whole(open_data(spec))
        assert torch.equal(found.inputs[0], one_by_one.inputs[0])
        assert found.inputs[0].dtype == one_by_one.inputs[0].dtype
        assert torch.equal(found.labels, one_by_one.labels)


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ({"x": [1, 2**60], "y": [0, 1]}, "x is beyond 2.53 in sample 2"),
        ({"x": [[1.0, 2.0], [3.0]], "y": [0, 1]}, "x has another shape than before in sample 2"),
        ({"x": [[], []], "y": [0, 1]}, "x is empty in sample 1"),
        ({"x": [1.0, None], "y": [0, 1]}, "x is no number in sample 2"),
    ],
)
def test_what_is_wrong_in_a_parquet_is_told_with_its_sample(tmp_path, columns, says):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.table(columns), tmp_path / "t.parquet")
    with pytest.raises(DataError, match=says):
        open_data(f"{tmp_path / 't.parquet'}?x=x&y=y")


def test_two_columns_of_one_name_and_values_that_python_lacks_are_messages(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    twice = pyarrow.Table.from_arrays([pyarrow.array([1.0])] * 2, names=["x", "x"])
    parquet.write_table(twice, tmp_path / "t.parquet")
    with pytest.raises(DataError, match="two columns of one name"):
        open_data(f"{tmp_path / 't.parquet'}?x=x")
    far = pyarrow.table({"x": pyarrow.array([2**60], pyarrow.timestamp("ms"))})
    parquet.write_table(far, tmp_path / "u.parquet")
    with pytest.raises(DataError, match="values of type timestamp"):
        open_data(f"{tmp_path / 'u.parquet'}?x=x")


def test_a_table_without_columns_is_a_message(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({}), tmp_path / "t.parquet")
    with pytest.raises(DataError, match="has no columns"):
        open_data(f"{tmp_path / 't.parquet'}?x=x")
