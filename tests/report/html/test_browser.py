"""The page in a real browser. Where there is none these are skipped; to run them:

NNCOMPRESS_CHROMIUM=/usr/bin/chromium NNCOMPRESS_AXE=node_modules/axe-core/axe.min.js pytest tests/report/html
"""

import json
import os
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path

import pytest
import runs

from nncompress.report.html.page import page

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
CHROMIUM = os.environ.get("NNCOMPRESS_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
AXE = os.environ.get("NNCOMPRESS_AXE")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here; NNCOMPRESS_CHROMIUM names one")
POLICY = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')
ASK = """<script>addEventListener("load", async () => {
  const axed = window.axe ? (await axe.run(document)).violations : [];
  parent.postMessage(JSON.stringify({
    overflow: document.documentElement.scrollWidth - innerWidth,
    violations: axed.map((each) => [each.impact, each.id, each.nodes[0].html]),
  }), "*");
});</script>"""


def dom(file: Path, *flags: str) -> str:
    """The document as it is once its scripts have run."""
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=60000"]
    profile = f"--user-data-dir={file.parent / 'profile'}"
    done = subprocess.run(
        [*command, profile, *flags, "--dump-dom", file.as_uri()], capture_output=True, text=True, timeout=300
    )
    return done.stdout


def test_its_script_runs_and_nobody_elses(tmp_path):
    text = page(runs.everything()).replace("<main>", "<main><script>document.title = 'ran'</script>")
    (tmp_path / "page.html").write_text(text, encoding="utf-8")
    found = dom(tmp_path / "page.html")
    assert "<title>ran</title>" not in found
    assert len(re.findall(r'<p class="readout"[^>]*>Point at a mark', found)) == 1
    assert re.search(r'<p class="readout"[^>]*>rank 3 loses', found)  # the one that was taken
    assert '<button type="button">' in found
    assert len(re.findall(r'class="[^"]*\bmark\b[^"]*"[^>]*tabindex="0"', found)) == found.count(
        '<p class="readout"'
    )


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_it_fits_and_everybody_can_use_it(width, theme, tmp_path):
    axe = "" if AXE is None else f"<script>{Path(AXE).read_text(encoding='utf-8')}</script>"
    asking = POLICY.sub("", page(runs.everything())).replace("</body>", f"{axe}{ASK}</body>")
    (tmp_path / "page.html").write_text(asking, encoding="utf-8")
    (tmp_path / "host.html").write_text(
        f'<iframe src="page.html" width="{width}" height="740"></iframe><pre></pre><script>'
        'onmessage = (e) => { document.querySelector("pre").textContent = e.data; };</script>',
        encoding="utf-8",
    )
    dark = ("--blink-settings=preferredColorScheme=0",) if theme == "dark" else ()
    said = re.search(r"<pre>(.*?)</pre>", dom(tmp_path / "host.html", *dark), re.S)[1]
    found = json.loads(unescape(said))
    assert found["overflow"] <= 0
    assert not found["violations"]
