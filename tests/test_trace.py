"""TORCH_TRACE: what tlparse makes of it names each region, its graph and its code."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

PROGRAM = """
import torch
import regional_inductor as ri

@ri.region("soft/plus")
def softplus(x):
    return (x.exp() + 1).log()

@ri.region("wave")
def wave(x):
    return x.sin() * 3

compiled = ri.compile(lambda x: softplus(x).cumsum(0) @ softplus(x).cumsum(0).T)
compiled(torch.rand(4, 4, requires_grad=True)).sum().backward()
ri.compile(wave, options={"lowering": "standalone"})(torch.rand(4))
"""


def run(*command: object, **environment: str) -> None:
    done = subprocess.run(
        list(map(str, command)),
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.inductor
def test_tlparse_shows_each_regions_graph_and_code(tmp_path):
    run(sys.executable, "-c", PROGRAM, TORCH_TRACE=str(tmp_path / "trace"))
    (trace,) = (tmp_path / "trace").iterdir()
    out = tmp_path / "pages"
    run(_tlparse(), trace, "-o", out, "--no-browser")

    index = (out / "index.html").read_text()
    pages = {path.name.rpartition("_")[0]: path for path in out.glob("*/region_*")}
    assert set(pages) == {
        f"region_{region}_{what}"
        for region in ("soft_plus_forward", "soft_plus_backward", "wave_forward")
        for what in ("graph", "code")
    }
    assert all(path.name in index for path in pages.values())
    assert "torch.ops.aten.exp.default" in pages["region_soft_plus_forward_graph"].read_text()
    assert "torch.ops.aten.sin.default" in pages["region_wave_forward_graph"].read_text()
    for name, op in (("soft_plus_forward", "exp"), ("wave_forward", "sin")):
        code = pages[f"region_{name}_code"].read_text()
        assert f"{op}()" in code
        assert "def call(self, args):" in code

    tables = [path.read_text() for path in sorted(out.glob("*/regional_inductor_regions_*"))]
    assert any(
        "region soft/plus forward at " in table and ": shared key " in table for table in tables
    )


def _tlparse() -> Path:
    found = shutil.which("tlparse", path=sysconfig.get_path("scripts")) or shutil.which("tlparse")
    assert found, "tlparse is in the dev extra"
    return Path(found)


@pytest.mark.inductor
def test_from_torch_2_13_on_inductors_own_records_carry_the_regions_name(tmp_path):
    import torch

    if not hasattr(torch.fx.traceback, "_set_regional_inductor_subgraph_name"):
        pytest.skip("torch has no name for them before 2.13")
    program = PROGRAM.partition("compiled =")[0] + "ri.compile(wave)(torch.rand(4))"
    run(sys.executable, "-c", program, TORCH_TRACE=str(tmp_path))
    (trace,) = tmp_path.iterdir()
    records = [line for line in trace.read_text().splitlines() if '"inductor_output_code"' in line]
    assert records
    assert all('"subgraph_name": "wave_forward"' in record for record in records)
