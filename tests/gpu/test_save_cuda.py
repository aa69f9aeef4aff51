"""A saved model with Triton's kernels runs in a process that neither traces nor compiles, on GPUs of its kind alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch

import regional_inductor as ri
from regional_inductor import disk, saved_file
from regional_inductor.entry import Entry

pytestmark = pytest.mark.timeout(600)

MODULE = """
import torch
import regional_inductor as ri

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first = torch.nn.Linear(256, 256)
        self.norm = torch.nn.LayerNorm(256)

    def forward(self, x):
        with ri.region("gate"):
            y = torch.nn.functional.silu(self.norm(x)) * x
        y = self.first(y)
        with ri.region("tail"):
            return y.sin() * 2 + 1
"""

LOADS = """
import json, sys, traceback

class Importers:  # who asked for Inductor's lowerings
    stacks = []

    def find_spec(self, name, path=None, target=None):
        if name == "torch._inductor.lowering":
            self.stacks.append("".join(traceback.format_stack()))

sys.meta_path.insert(0, Importers())
import torch
import regional_inductor as ri
from net import Net
from triton import knobs

compiled = []
def heard(**what):
    if not what["cache_hit"]:
        compiled.append(what["metadata"].get("name"))

knobs.compilation.listener = heard

torch.manual_seed(0)
device = torch.device("cuda", 0)
model, eager = Net().to(device), Net().to(device)
eager.load_state_dict(model.state_dict())
ri.load(sys.argv[1], model)
worst = 0.0
for rows in (64, 96, 33):
    x = torch.randn(rows, 256, device=device)
    results = []
    for one in (model, eager):
        one.zero_grad()
        out = one(x)
        out.square().sum().backward()
        results.append([out.detach(), *(p.grad for p in one.parameters())])
    worst = max(worst, *(float((a - b).abs().max() / b.abs().max()) for a, b in zip(*results)))
from torch._dynamo.utils import counters
print(json.dumps({
    "worst": worst,
    "graphs": counters["stats"].get("unique_graphs", 0),
    "compiled by triton": compiled,
    "code generation": Importers.stacks,
}))
"""


@pytest.fixture
def net(tmp_path, monkeypatch):
    (tmp_path / "net.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "net", raising=False)
    import net

    yield net
    sys.modules.pop("net", None)


@pytest.fixture
def saved(net, tmp_path, cuda):
    model = ri.compile(net.Net().to(cuda), on_error="raise")
    for rows in (64, 96):  # the second makes the rows symbolic
        model(torch.randn(rows, 256, device=cuda)).square().sum().backward()
    path = tmp_path / "saved.ri"
    model.save(path)
    return path


def test_a_process_without_compilers_or_caches_runs_it(saved, tmp_path):
    (tmp_path / "elsewhere.py").write_text(LOADS)
    done = subprocess.run(
        [sys.executable, str(tmp_path / "elsewhere.py"), str(saved)],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path]),
            "CC": "/nonexistent",
            "CXX": "/nonexistent",
            "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "empty"),
            "TRITON_CACHE_DIR": str(tmp_path / "empty" / "triton"),
            disk.FOLDER: str(tmp_path / "none"),
            disk.SWITCH: "1",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["worst"] <= 1e-3  # TF32 or not, matmuls are eager in both
    assert found["graphs"] == 0
    assert not found["compiled by triton"]
    assert not found["code generation"], found["code generation"][0]


def test_the_file_names_the_gpu_and_is_refused_on_another(saved, net, cuda):
    whole = Entry.from_bytes(saved.read_bytes())
    assert torch.cuda.get_device_name(cuda) in whole.about["devices"]["cuda"]
    devices = {**whole.about["devices"], "cuda": "Old GPU"}
    saved.write_bytes(Entry(whole.key, {**whole.about, "devices": devices}, whole.parts).to_bytes())
    with pytest.raises(ri.LoadError, match="was made for CUDA Old GPU, and this is"):
        ri.load(saved, net.Net().to(cuda))


def test_where_no_gpu_is_the_file_is_refused_before_anything_is_unpickled(saved, net, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(saved_file.pickle, "loads", lambda *_: pytest.fail("unpickled"))
    with pytest.raises(ri.LoadError, match=r"was made for CUDA .*, and this is none"):
        ri.load(saved, net.Net())


def test_a_model_on_the_cpu_is_another_call(saved, net):
    loaded = ri.load(saved, net.Net())
    with pytest.raises(ri.UnsavedCallError, match="no saved call of Net is like this one"):
        loaded(torch.randn(64, 256))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_a_model_on_a_gpu_of_another_number_is_another_call(saved, net):
    device = torch.device("cuda", 1)
    loaded = ri.load(saved, net.Net().to(device))
    with pytest.raises(ri.UnsavedCallError, match="device"):
        loaded(torch.randn(64, 256, device=device))
