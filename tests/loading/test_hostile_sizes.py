"""Short files that ask for much memory: each is refused, in a process that may have little."""

from __future__ import annotations

import json
import os
import resource
import sys
import zipfile

import pytest
import safetensors.torch
import torch
from pt2_members import WEIGHTS, edit_json, write
from torch import nn

from nncompress.cli.app import run
from nncompress.errors import ExitCode
from nncompress.loading import load_model

MOST = 2**30  # bytes beyond what the process has when it forks

NET = "from torch import nn\ndef build():\n return nn.Sequential(nn.Linear(8, 4096), nn.Linear(4096, 4096))\n"


def _expanded(*shape):
    return torch.zeros(1).expand(shape)


def upsampled(folder):
    torch.save(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Upsample(scale_factor=1e4)), folder / "m.pt")
    return ["m.pt", "--input", "1x3x8x8"]


def upsampled_guessed(folder):
    return upsampled(folder)[:1]


def upsampled_beyond_numbers(folder):
    torch.save(nn.Upsample(scale_factor=1e9), folder / "m.pt")
    return ["m.pt", "--input", "1x3x8x8"]


def padded(folder):
    torch.save(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ZeroPad2d(2**18)), folder / "m.pt")
    return ["m.pt", "--input", "1x3x8x8"]


def padded_beyond_numbers(folder):
    torch.save(nn.ZeroPad2d(2**40), folder / "m.pt")
    return ["m.pt", "--input", "1x3x8x8"]


def weight_of_stride_0(folder):
    module = nn.Linear(1, 1)
    module.in_features = module.out_features = 2**16
    module.weight = nn.Parameter(_expanded(2**16, 2**16))
    module.bias = nn.Parameter(torch.zeros(2**16))
    torch.save(module, folder / "m.pt")
    return ["m.pt"]


def many_weights_of_stride_0(folder):
    (folder / "net.py").write_text(NET)
    state = {"0.weight": _expanded(4096, 8), "1.weight": _expanded(4096, 4096)}
    state |= {f"more.{i}": _expanded(4096, 4096) for i in range(50)}
    torch.save(state, folder / "m.pt")
    return ["m.pt", "--arch", "net.py:build"]


def mask_of_another_shape(folder):
    (folder / "net.py").write_text(NET)
    column, row = torch.zeros(200_000, 1), torch.zeros(1, 200_000)
    torch.save({"0.weight_orig": column, "0.weight_mask": row}, folder / "m.pt")
    return ["m.pt", "--arch", "net.py:build"]


def magnitude_of_another_shape(folder):
    (folder / "net.py").write_text(NET)
    column, row = torch.zeros(200_000, 1), torch.zeros(1, 200_000)
    torch.save({"0.weight_g": column, "0.weight_v": row}, folder / "m.pt")
    return ["m.pt", "--arch", "net.py:build"]


def scalar_codebook(folder):
    (folder / "net.py").write_text(NET)
    parts = {"w.codes": torch.zeros(2, dtype=torch.uint8), "w.codebook": torch.tensor(1.0)}
    safetensors.torch.save_file(parts, folder / "m.pt", metadata={"packed": json.dumps({"w": [4, 4]})})
    return ["m.pt", "--arch", "net.py:build"]


def _safetensors(folder, *offsets, data=32):
    (folder / "net.py").write_text(NET)
    entries = {
        f"{n}.weight": {"dtype": "F32", "shape": [(end - start) // 4], "data_offsets": [start, end]}
        for n, (start, end) in enumerate(offsets)
    }
    header = json.dumps(entries).encode()
    (folder / "m.pt").write_bytes(len(header).to_bytes(8, "little") + header + bytes(data))
    return ["m.pt", "--arch", "net.py:build"]


def overlapping(folder):
    return _safetensors(folder, (0, 24), (16, 32))


def unaligned(folder):
    return _safetensors(folder, (0, 3), (3, 31))


def beyond_the_end(folder):
    return _safetensors(folder, (0, 2**40))


def input_beyond_memory(folder):
    torch.save(nn.Conv2d(3, 4, 3), folder / "m.pt")
    return ["m.pt", "--input", "1x3x99999999x99999999"]


def broadcast_in_pt2(folder):
    module = nn.Sequential(*(nn.Linear(4, 4, bias=False) for _ in range(40)))
    torch.export.save(torch.export.export(module, (torch.zeros(2, 4),)), folder / "m.pt2")
    huge = {"sizes": [{"as_int": 2**20}, {"as_int": 4}], "strides": [{"as_int": 0}, {"as_int": 1}]}
    with zipfile.ZipFile(folder / "m.pt2") as archive:
        members = {name.split("/", 1)[1]: archive.read(name) for name in archive.namelist()}

    def enlarge(document):
        for payload in document["config"].values():
            payload["tensor_meta"].update(huge)

    edit_json(members, WEIGHTS, enlarge)
    write(members, folder / "m.pt2")
    return ["m.pt2"]


CASES = [
    *(upsampled, upsampled_guessed, upsampled_beyond_numbers, padded, padded_beyond_numbers),
    *(weight_of_stride_0, many_weights_of_stride_0, mask_of_another_shape, magnitude_of_another_shape),
    *(scalar_codebook, overlapping, unaligned, beyond_the_end, input_beyond_memory, broadcast_in_pt2),
]


@pytest.fixture(scope="module", autouse=True)
def _imported_once(tmp_path_factory):
    """What a load imports is there before the processes fork."""
    path = tmp_path_factory.mktemp("warm") / "m.pt"
    torch.save(nn.Linear(2, 2), path)
    load_model(path)


@pytest.mark.parametrize("case", CASES)
def test_refused_in_little_memory(case, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = ["inspect", *case(tmp_path)]
    code, said = _in_little_memory(command, tmp_path)
    assert code in (ExitCode.USAGE, ExitCode.MODEL_FILE, ExitCode.UNSUPPORTED), said
    assert "Traceback" not in said
    assert said.startswith("error:") or "\nerror:" in said
    assert len(said) < 4000


def _in_little_memory(command, folder) -> tuple[int, str]:
    child = os.fork()
    if child == 0:
        try:
            sys.stdout = sys.stderr = (folder / "said").open("w")
            with open("/proc/self/statm") as file:
                most = int(file.read().split()[0]) * resource.getpagesize() + MOST
            resource.setrlimit(resource.RLIMIT_AS, (most, most))
            resource.setrlimit(resource.RLIMIT_CPU, (60, 60))
            code = int(run(command))
            sys.stdout.flush()
            os._exit(code)
        finally:
            os._exit(99)
    _, status = os.waitpid(child, 0)
    said = (folder / "said").read_text(errors="replace")
    return os.waitstatus_to_exitcode(status), said
