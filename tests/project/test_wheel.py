"""What is installed from a wheel is the whole package, and runs without this checkout."""

import json
import os
import subprocess
import sys
import tomllib
from email.parser import Parser
from pathlib import Path
from zipfile import ZipFile

import pytest
from hatchling.build import build_wheel

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder as pip leaves it, for sys.path."""
    folder = tmp_path_factory.mktemp("wheel")
    before = Path.cwd()
    os.chdir(ROOT)  # where the build backend looks for the project
    try:
        wheel = folder / build_wheel(str(folder))
    finally:
        os.chdir(before)
    with ZipFile(wheel) as file:
        file.extractall(folder / "site")
    return folder / "site"


def test_every_file_of_the_package_is_in_it(installed):
    def files(folder):
        found = (path for path in (folder / "nncompress").rglob("*") if path.is_file())
        return {str(p.relative_to(folder)) for p in found if "__pycache__" not in p.parts}

    assert files(installed) == files(ROOT)
    assert (installed / "nncompress/py.typed").is_file()


def test_it_says_what_it_needs_and_offers(installed):
    (info,) = installed.glob("nncompress-*.dist-info")
    said = Parser().parsestr((info / "METADATA").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert set(said.get_all("Provides-Extra")) == set(project["optional-dependencies"])
    needed = [line for line in said.get_all("Requires-Dist") if "extra" not in line]
    assert sorted(needed) == sorted(project["dependencies"])
    assert said["License-Expression"] == "Apache-2.0"
    assert (info / "licenses/LICENSE").read_text() == (ROOT / "LICENSE").read_text()
    assert "nncompress = nncompress.cli:main" in (info / "entry_points.txt").read_text()


def test_the_wheel_runs_doctor_by_itself(installed, tmp_path):
    code = "import sys, nncompress.cli as cli; print(cli.__file__, file=sys.stderr); cli.main()"
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, "doctor", "--json"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert str(installed) in done.stderr
    assert json.loads(done.stdout)["kind"] == "doctor"
