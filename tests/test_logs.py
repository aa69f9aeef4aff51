"""TORCH_LOGS="regional_inductor": torch imports the package while it imports itself, and lines appear."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys

import pytest
import torch

ONLY_VIEWS = "it only makes views of its inputs: there is nothing to compile"
PROGRAM = """
import regional_inductor as ri

@ri.region("scale")
def scale(x):
    return x * 2 + 1

@ri.region("views")
def views(x):
    return x.view(-1)

compiled = ri.compile(lambda x: views(scale(scale(x).sin()).sin()), region_backend="eager")
compiled(torch.ones(3))
"""


def run(code: str, logs: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "TORCH_LOGS": logs},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.mark.parametrize("first", ["import torch", "import regional_inductor; import torch"])
def test_torch_imports_the_package_in_the_middle_of_its_own_import(first):
    code = f"{first}; import logging; assert logging.getLogger('regional_inductor').level == 20"
    assert run(code, "regional_inductor") == ""


def test_a_compile_says_one_line_a_region_and_with_a_plus_what_each_stage_did():
    error = run(f"import torch\n{PROGRAM}", "+regional_inductor")
    # torch puts time, process and the compile's id before each line
    lines = [re.sub(r"^.*?logs\.py:\d+\] (\[\d+/\d+\] )?", "", line) for line in error.splitlines()]
    assert [
        re.sub(r"[0-9a-f]{8}|\d+\.\d+", "*", line) for line in lines if "key of" not in line
    ] == [
        "collect: 1 graphs with 5 marked nodes in * s",
        "partition: 3 regions of 5 nodes, the largest of 2 in * s",
        "outline: 3 modules for 1 graphs in * s",
        "compile: 1 compiled, 1 shared, 1 eager in * s",
        "region scale forward at <string>:5: compiled key * * s",
        "region scale forward at <string>:5: shared key * * s",
        f"region views forward at <string>:9: eager ({ONLY_VIEWS}) * s",
        "stitch: 1 graphs in * s",
    ]


def test_nothing_is_said_unless_it_is_asked_for(ri, caplog):
    @ri.region("scale")
    def scale(x):
        return x * 2 + 1

    ri.compile(scale, region_backend="eager")(torch.ones(3))
    assert [r for r in caplog.records if r.name == "regional_inductor"] == []
    torch._dynamo.reset()
    with caplog.at_level(logging.INFO, "regional_inductor"):
        ri.compile(scale, region_backend="eager")(torch.ones(3))
    (record,) = [r for r in caplog.records if r.name == "regional_inductor"]
    assert record.getMessage().startswith("region scale forward at ")
