"""The same model gives the same file, so that a digest or a diff of two files means something."""

import pytest

from nncompress.exporting import write
from tests.exporting.networks import convolutional


@pytest.mark.parametrize("suffix", [".pt2", ".onnx", ".safetensors"])
def test_the_same_model_is_written_as_the_same_bytes(tmp_path, suffix):
    model = convolutional()
    model.metadata.update({"normalize": "0.5,0.5,0.5/0.2,0.2,0.2", "input_names": {}})
    written = set()
    for number in range(6 if suffix == ".safetensors" else 2):  # an order of chance may be the same twice
        write(model, tmp_path / f"{number}{suffix}")
        written.add((tmp_path / f"{number}{suffix}").read_bytes())
    assert len(written) == 1
