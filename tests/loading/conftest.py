import pytest
from pt2_members import Members, innocent


@pytest.fixture(scope="module")
def members(tmp_path_factory) -> Members:
    """An innocent archive's members by name."""
    return innocent(tmp_path_factory.mktemp("pt2") / "innocent.pt2")
