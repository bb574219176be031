"""Results as files: damaged ones are measured anew, and workers share them."""

import json
import signal
import subprocess
import sys
import time
from contextlib import suppress

import pytest

from nncompress.cli.console import how_to_go_on
from nncompress.errors import VerificationError
from nncompress.search import trial
from nncompress.search.records import Records

TRIAL = {
    "recipe": [{"name": "prune"}], "worker": "here:1", "macs": 0.5, "size": 100, "lost": -0.1, "at_most": 0.2,
    "samples": 9, "seconds": 1.5,
}  # fmt: skip


@pytest.mark.parametrize(
    "change",
    [
        {"recipe": {}},
        {"samples": 0},
        {"at_most": -0.2},
        {"size": "9"},
        {"macs": None},
        {"latency": {"here": {}}},
    ],
)
def test_a_damaged_trial_is_measured_anew(change, tmp_path):
    records = Records(tmp_path, trial.record)
    records.put("a", TRIAL)
    assert records.get("a") == TRIAL
    with pytest.raises(VerificationError, match="would not be read again"):
        records.put("a", {**TRIAL, **change})
    assert records.get("a") == TRIAL
    (tmp_path / "a.json").write_text(json.dumps({**TRIAL, **change}))
    assert records.get("a") is None


def test_three_workers_one_killed_in_the_middle_of_a_trial(here):
    """Each result is there once, and none is missing."""
    script = here / "worker.py"
    script.write_text(
        "import os, sys, time\n"
        "from pathlib import Path\n"
        "from nncompress.search.records import Records\n"
        "def measure(key):\n"
        "    with open('begun', 'a') as file: file.write(f'{key} {os.getpid()}\\n')\n"
        "    time.sleep(0.05 if sys.argv[1] == 'sound' else 3600)\n"
        "    return {'worker': os.getpid()}\n"
        "keys = [f'trial{i}' for i in range(12)]\n"
        "Records(Path('folder')).fill([(k, lambda k=k: measure(k)) for k in keys], lambda *_: None)\n"
    )
    doomed = subprocess.Popen([sys.executable, str(script), "doomed"])
    while not (here / "begun").exists():
        time.sleep(0.05)
        assert doomed.poll() is None
    sound = [subprocess.Popen([sys.executable, str(script), "sound"]) for _ in range(2)]
    records = Records(here / "folder")
    while len(records.all()) < 11:
        time.sleep(0.05)
        assert all(each.poll() is None for each in sound)
    assert "trial0" not in records.all()  # claimed by the one that hangs
    doomed.send_signal(signal.SIGKILL)
    doomed.wait()
    assert [each.wait() for each in sound] == [0, 0]
    assert len(records.all()) == 12
    begun = [line.split() for line in (here / "begun").read_text().splitlines()]
    assert sorted(key for key, pid in begun if pid != str(doomed.pid)) == sorted(records.all())


def test_an_interrupted_run_names_the_folder_only_where_it_took_what_was_measured(tmp_path, capsys):
    for name, refuses in (("full", True), ("kept", False)):
        records = Records(tmp_path / name, needed=False)
        if refuses:
            (tmp_path / name).rmdir()
            (tmp_path / name).write_text("no folder")
        with suppress(KeyboardInterrupt), how_to_go_on(records.place, "has it"):
            records.put("a", {"macs": 1})
            raise KeyboardInterrupt
        assert ("has it" in capsys.readouterr().err) is not refuses
