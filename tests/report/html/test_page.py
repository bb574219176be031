"""The page as text: it needs nothing from elsewhere, names in it stay names, its colours can be read."""

import base64
import hashlib
import re
from html.parser import HTMLParser
from itertools import pairwise

import pytest
import runs

from nncompress.report.facts.content import Axis, Column, Plot, Point, Report, Section, Series, Table
from nncompress.report.facts.headline import report
from nncompress.report.facts.read import section_in
from nncompress.report.facts.runs.optimize import _front
from nncompress.report.files import written
from nncompress.report.html.page import MOST_BYTES, page

VOID = {"meta", "circle", "path", "rect", "polyline", "br", "link", "img"}


class Read(HTMLParser):
    """Elements as they open, with their attributes; text; and whether every one is closed in order."""

    def __init__(self, text):
        super().__init__()
        self.found, self.open, self.texts = [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.found if name == tag]


@pytest.fixture(scope="module")
def read():
    return Read(page(runs.everything()))


def test_it_needs_nothing_from_elsewhere(read):
    for _, attributes in read.found:
        for name in ("src", "href", "srcset", "action", "data", "poster", "xlink:href", "style"):
            assert attributes.get(name, "#").startswith("#"), attributes
        assert not [name for name in attributes if name.startswith("on")]
    assert not {"link", "img", "iframe", "object", "embed", "form", "base"} & {tag for tag, _ in read.found}
    text = page(runs.everything())
    assert "http:" not in text
    assert "https:" not in text
    assert "@import" not in text
    assert "url(" not in text


def test_only_its_own_style_and_script_may_run(read):
    (policy,) = [each["content"] for each in read.all("meta") if "http-equiv" in each]
    allowed = set(re.findall(r"'(sha256-[^']+)'", policy))
    text = page(runs.everything())
    own = re.findall(r"<style>(.*?)</style>|<script>(.*?)</script>", text, re.S)
    digests = {hashlib.sha256("".join(each).encode()).digest() for each in own}
    assert allowed == {f"sha256-{base64.b64encode(digest).decode()}" for digest in digests}
    assert policy.startswith("default-src 'none';")
    assert "unsafe" not in policy


def test_names_in_it_stay_names():
    plain, evil = Read(page(runs.everything("conv1"))), Read(page(runs.everything(runs.EVIL)))
    assert [tag for tag, _ in evil.found] == [tag for tag, _ in plain.found]
    said = "".join(evil.texts)
    assert '<script>alert("x")</script>&\'"><img src=x onerror=alert(1)>{{7*7}}' in said
    assert "\\u202e" in said  # what would reorder the text beside it


def test_every_part_has_a_heading_and_levels_are_not_skipped(read):
    levels = [int(tag[1]) for tag, _ in read.found if re.fullmatch(r"h\d", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    ids = [attributes["id"] for _, attributes in read.found if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes in read.found:
        for name in ("aria-labelledby", "aria-describedby"):
            assert set(attributes.get(name, "").split()) <= set(ids)


def test_tables_say_what_they_are(read):
    tables = read.all("table")
    assert len(tables) == len(read.all("caption")) > 20
    assert all(each.get("scope") in ("col", "row") for each in read.all("th"))


def test_plots_can_be_read_without_seeing_them(read):
    drawn = [each for each in read.all("svg") if "aria-hidden" not in each]
    assert len(drawn) == len(read.all("desc")) == len(read.all("figure")) > 8
    marks = [each for tag, each in read.found if "mark" in each.get("class", "").split()]
    assert marks
    assert all(each["aria-label"] for each in marks)


def test_the_same_runs_make_the_same_bytes():
    assert page(runs.everything()) == page(runs.everything())


def test_a_long_run_makes_no_long_page():
    rows = tuple((f"layer {i}", float(i)) for i in range(100_000))
    table = Table("All", (Column("layer"), Column("value", "number")), rows)
    text = page(Report("t", "s", (), (Section("run", "bench", "s", (table,)),)))
    assert len(text.encode()) <= MOST_BYTES
    left = int(re.search(r"and (\d+) more, which --format json lists", text)[1])
    assert len(Read(text).all("tr")) - 1 + left == len(rows)


def _luminance(colour):
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def contrast(one, other):
    """Of two colours, by WCAG 2.2."""
    light, dark = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_contrast_is_what_the_standard_says():
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


def test_its_colours_can_be_told_apart_light_and_dark_and_printed():
    style = re.search(r"<style>(.*?)</style>", page(runs.everything()), re.S)[1]
    themes = [
        dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block))
        for block in re.findall(r":root \{(.*?)\}", style, re.S)
    ]
    assert len(themes) == 3
    for theme in themes:
        for paper in ("paper", "card"):
            for ink in ("ink", "quiet", "accent"):
                assert contrast(theme[ink], theme[paper]) >= 4.5, (ink, paper)
        assert contrast(theme["warn-ink"], theme["warn-paper"]) >= 4.5
        for i in range(8):  # graphics, not text
            assert contrast(theme[f"s{i}"], theme["card"]) >= 3


def test_for_a_pull_request():
    text = re.sub(r"```.*?```", "", written(runs.everything(runs.EVIL), "md"), flags=re.S)  # code stays code
    assert "<script>" not in text
    assert "<img" not in text
    assert "](http" not in text
    assert len(text.encode()) < 60_000
    plain = written(report([section_in(runs.bench(), "bench.json")]), "md")
    assert plain.startswith("### small.onnx\n\nsmall.onnx against net.pt2: 2.00x \\[1.90, 2.10\\] as fast")
    assert "| net.pt2 | 200 kB | 200 k |" in plain


def test_what_was_taken_is_drawn_over_all_others_even_where_they_are_alike():
    alike = [Point(0.5, 0.0, name, chosen=name == "taken") for name in ("one", "taken", "two")]
    assert [p.said for p in _front(alike)] == ["taken"]  # of equal ones it stands for all
    series = (
        Series("not beaten", (alike[1], Point(0.6, -1.0, "three"))),
        Series("others", (alike[0], alike[2])),
    )
    plot = Plot("Loss", "All.", Axis("size", "bytes"), Axis("points lost", "number"), series)
    found = Read(page(report([Section("r", "optimize", "x.", (plot,))]))).found
    marks = [n for n, (_, each) in enumerate(found) if "mark" in each.get("class", "").split()]
    assert [found[n][1]["aria-label"] for n in marks] == ["three", "one", "two", "taken"]
    assert next(n for n, (_, each) in enumerate(found) if each.get("class") == "ring") > marks[-1]
