from __future__ import annotations

import pytest

from nncompress.ir import InputSpec


@pytest.fixture
def rgb32() -> list[InputSpec]:
    return [InputSpec("x", "float32", ("batch", 3, 32, 32))]


@pytest.fixture
def features4() -> list[InputSpec]:
    return [InputSpec("x", "float32", ("batch", 4))]
