from __future__ import annotations

import json
import math
import subprocess
import sys

from nncompress.results import SCHEMA, CompareResult, Estimate, OutputDifference


def test_json_is_plain_and_versioned():
    result = CompareResult(3, (OutputDifference("y", None, 1.0, math.inf, 0.0),))
    content = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert (content["schema"], content["kind"], content["samples"]) == (SCHEMA, "compare", 3)
    assert content["outputs"][0] == {
        "name": "y",
        "agreement": None,
        "cosine": 1.0,
        "sqnr_db": None,
        "max_abs": 0.0,
    }


def test_an_estimate_holds_what_its_interval_holds():
    assert 1.0 in Estimate(1.1, 0.9, 1.2)
    assert 1.3 not in Estimate(1.1, 0.9, 1.2)


def test_results_do_not_import_torch():
    code = "import sys, nncompress.results; assert not {'torch', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
