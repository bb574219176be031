"""Tables as they come out at a given width."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import nn

from nncompress.analysis.cost import cost
from nncompress.analysis.distance.drift import Samples
from nncompress.exporting.report import ExportReport
from nncompress.ir import Model
from nncompress.passes import Factorize
from nncompress.pipeline import Step
from nncompress.report.tables import EvalRow, Name, broken, evaluation, plain, step, written
from nncompress.results import CompareResult, EvalResult, OutputDifference

LONG = "encoder.layers.0.self_attn.in_proj_weight"


def printed(renderable: object, width: int) -> list[str]:
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(renderable)
    return console.export_text().splitlines()


def test_a_large_difference_is_told_with_the_size_of_the_outputs():
    def said(largest, relative):
        report = ExportReport(Path("m.onnx"), 10, 0.1, largest, relative, "onnxruntime 1", (1, 3))
        return " ".join(printed(written(report), 200))

    assert "agrees to 3.5e-01 (0.4% of the outputs) at batch 1 and 3" in said(0.35, 0.004)
    assert "agrees to 3.5e-06 at batch 1 and 3" in said(3.5e-6, 1e-7)


def test_names_are_broken_between_names_then_at_dots_then_at_underscores():
    assert broken("a.b, c.d", 6) == "a.b,\nc.d"
    assert broken(LONG, 20) == "encoder.layers.0.\nself_attn.\nin_proj_weight"
    assert broken("in_proj_weight", 9) == "in_proj_\nweight"
    assert broken("abcdefgh", 3) == "abc\ndef\ngh"


@pytest.mark.parametrize("width", [30, 40, 80])
def test_a_name_takes_the_room_that_the_table_has(width):
    table = plain("layer", "bytes")
    table.add_row(Name(LONG), "1.23 kB")
    lines = printed(table, width)
    assert max(map(len, lines)) <= width
    rows = "".join(line[: line.rindex("   ")].strip() if "kB" in line else line.strip() for line in lines[2:])
    assert rows == LONG
    assert (len(lines) == 3) == (width >= len(LONG) + 10)


def test_the_options_of_a_pass_are_shown_as_they_were_typed():
    settings = Factorize(macs=0.5, faster=True, refit=False, exclude=("head*", "stem")).settings()
    model = Model.from_module(nn.Linear(2, 3), (torch.randn(2, 2),))
    samples = Samples((), (), "random")
    done = Step("factorize", settings, [], cost(model), cost(model), [], samples, 0.1, [], [])
    assert printed(step(done), 80)[0].startswith(
        "factorize (macs 0.5, no-refit, faster, exclude head*+stem): 0 changed"
    )


def test_columns_without_content_are_not_shown():
    def regression(rmse: float) -> EvalResult:
        return EvalResult("val.npz", "regression", 9, rmse=rmse)

    differs = CompareResult(9, (OutputDifference("y", None, 0.5, 3.0, 0.1),))
    rows = [EvalRow("a", "torch", regression(0.5)), EvalRow("b", "torch", regression(0.6), None, differs)]
    text = "\n".join(printed(evaluation(rows), 80))
    assert "0.6" in text
    assert text.count("against the first") == 1  # heads the differences, not an empty column
    assert "agree" not in text
    compared = printed(evaluation([EvalRow("a", "torch"), EvalRow("b", "torch", difference=differs)]), 80)
    assert compared[0].startswith("against the first")
