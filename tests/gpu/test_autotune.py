"""max-autotune by region: only what is marked is tuned, once, and the results stay on disk."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch

PROGRAM = """
import json, torch
import regional_inductor as ri
from torch._dynamo.utils import counters

torch.manual_seed(0)

@ri.region("tuned", options={"max_autotune": True, "max_autotune_gemm_backends": "TRITON,ATEN"})
def tuned(x, w):
    return (x @ w).relu()

def f(x, w):
    y = tuned(x, w)
    y = y @ w  # not marked: runs as it is
    return tuned(y, w)

x = torch.randn(256, 256, device="cuda", dtype=torch.bfloat16)
w = torch.randn(256, 256, device="cuda", dtype=torch.bfloat16) / 16
compiled = ri.compile(f)
out = compiled(x, w)
right = (((x @ w).relu() @ w) @ w).relu()
print(json.dumps({
    "tuned": counters["inductor"]["select_algorithm_autotune"],
    "statuses": [r.status for r in compiled.report.regions],
    "reasons": [r.reason for r in compiled.report.regions],
    "difference": float((out - right).float().norm() / right.float().norm()),
}))
"""


def run(folder):
    """The program in a process of its own on a cache folder that stays."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM],
        env={
            **os.environ,
            "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"),
            "TRITON_CACHE_DIR": str(folder / "triton"),
            "TORCHINDUCTOR_FX_GRAPH_CACHE": "0",  # whole compiled graphs would hide the question
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.timeout(300)
def test_a_region_is_tuned_once_and_its_results_are_found_on_disk(tmp_path):
    first = run(tmp_path)
    assert first["statuses"] == ["compiled", "shared"], first["reasons"]
    assert first["tuned"] == 1
    assert first["difference"] < 2e-2
    again = run(tmp_path)
    assert again["statuses"] == ["compiled", "shared"]
    assert again["tuned"] == 0


def test_an_unmarked_matmul_is_not_tuned(ri, cuda):
    from torch._dynamo.utils import counters

    counters["inductor"].clear()

    def f(x, w):
        with ri.region("pointwise", options={"max_autotune": True}):
            y = x.sin() + 1
        return y @ w

    compiled = ri.compile(f)
    x = torch.randn(128, 128, device=cuda)
    torch.testing.assert_close(compiled(x, x), (x.sin() + 1) @ x)
    assert counters["inductor"]["select_algorithm_autotune"] == 0
    assert [dict(r.options) for r in compiled.report.regions] == [{"max_autotune": True}]
