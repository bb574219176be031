"""README.md and docs/ say what is there."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import nncompress

ROOT = Path(__file__).resolve().parents[2]
PAGES = ["README.md", *(str(p.relative_to(ROOT)) for p in sorted((ROOT / "docs").rglob("*.md")))]


def test_the_session_in_the_readme_is_the_demo():
    script = (ROOT / "fixtures/demo.sh").read_text()
    readme = (ROOT / "README.md").read_text()
    ran = re.findall(r"^run (.+)$", script, re.M)
    shown = re.findall(r"^\$ (.+)$", readme, re.M)
    assert shown == ran
    assert len(ran) >= 6


def test_every_link_leads_somewhere():
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    links = [
        (page, link) for page in pages for link in re.findall(r"\]\(([^)#]+?\.md)[^)]*\)", page.read_text())
    ]
    assert links
    missing = [f"{page.name}: {link}" for page, link in links if not (page.parent / link).is_file()]
    assert not missing


PYTHON = re.compile(r"<!-- ([^\n]+) -->\n```python\n(.+?)```", re.S)
OWN_TEST = "shrink_tools.py"  # a module, which tests/test_extensions.py installs and uses


def test_every_python_block_is_one_that_is_run():
    for page in PAGES:
        text = (ROOT / page).read_text()
        assert {mark for mark, _ in PYTHON.findall(text)} <= {"run", OWN_TEST}
        assert len(PYTHON.findall(text)) == text.count("```python"), page


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """What blocks find where they run: model.pt and train.npz."""
    folder = tmp_path_factory.mktemp("files")
    torch.manual_seed(0)
    convolution, head = torch.nn.Conv2d(3, 8, 3, stride=4), torch.nn.Linear(8, 10)
    pool = torch.nn.AdaptiveAvgPool2d(1)
    net = torch.nn.Sequential(convolution, torch.nn.ReLU(), pool, torch.nn.Flatten(), head)
    torch.save(net.eval(), folder / "model.pt")
    random = np.random.default_rng(0)
    np.savez(
        folder / "train.npz",
        x=random.standard_normal((64, 3, 32, 32), dtype=np.float32),
        y=random.integers(0, 10, 64),
    )
    return folder


@pytest.mark.filterwarnings("ignore::UserWarning")  # outputs of untrained networks move far
@pytest.mark.parametrize("page", [p for p in PAGES if "<!-- run -->" in (ROOT / p).read_text()])
def test_the_python_that_the_docs_show_runs(page, files, tmp_path, monkeypatch):
    blocks = [block for mark, block in PYTHON.findall((ROOT / page).read_text()) if mark == "run"]
    assert blocks
    for file in files.iterdir():
        shutil.copy(file, tmp_path)
    monkeypatch.chdir(tmp_path)
    for block in blocks:
        given = {"model": nncompress.load("model.pt", input="1x3x32x32")} if "(model)" in block else {}
        exec(compile(block, page, "exec"), given)
