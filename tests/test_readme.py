"""README.md and docs/ say what is there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = ["README.md", *(str(p.relative_to(ROOT)) for p in sorted((ROOT / "docs").rglob("*.md")))]


def test_the_session_in_the_readme_is_the_demo():
    script = (ROOT / "fixtures/demo.sh").read_text()
    readme = (ROOT / "README.md").read_text()
    ran = re.findall(r"^run (.+)$", script, re.M)
    shown = re.findall(r"^\$ (.+)$", readme, re.M)
    assert shown == ran
    assert len(ran) >= 6


def test_every_link_leads_somewhere():
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    links = [
        (page, link) for page in pages for link in re.findall(r"\]\(([^)#]+?\.md)[^)]*\)", page.read_text())
    ]
    assert links
    missing = [f"{page.name}: {link}" for page, link in links if not (page.parent / link).is_file()]
    assert not missing


@pytest.mark.filterwarnings("ignore::UserWarning")  # outputs of untrained networks move far
@pytest.mark.parametrize("page", [p for p in PAGES if "<!-- run -->" in (ROOT / p).read_text()])
def test_the_python_that_the_docs_show_runs(page, tmp_path, monkeypatch):
    blocks = re.findall(r"<!-- run -->\n```python\n(.+?)```", (ROOT / page).read_text(), re.S)
    assert blocks
    monkeypatch.chdir(tmp_path)
    for block in blocks:
        exec(compile(block, page, "exec"), {})
