"""Several models that belong together, written to one folder."""

import pytest
from torch import nn

import nncompress
from nncompress.errors import UsageError
from nncompress.exporting import write_together


@pytest.fixture(scope="module")
def models():
    return [nncompress.load(nn.Linear(4, features).eval(), input="Bx4") for features in (4, 5)]


def test_ort_files_are_replaced_by_the_next_ones(models, tmp_path):
    """The lists of operators beside them were taken for another's."""
    paths = [tmp_path / "a.ort", tmp_path / "b.ort"]
    for _ in range(2):
        assert [report.path for report in write_together(models, paths)] == paths
    assert {path.stem.partition(".")[0] for path in tmp_path.iterdir()} == {"a", "b"}


@pytest.mark.parametrize(
    "names", [("a/x.onnx", "b/y.onnx"), ("a/x.onnx", "a/x.onnx"), ("a/x.onnx", "x.onnx")]
)
def test_other_folders_and_equal_names_are_refused(models, tmp_path, names):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    with pytest.raises(UsageError, match="different names in the same folder"):
        write_together(models, [tmp_path / name for name in names])
    assert not list(tmp_path.rglob("*.onnx"))
