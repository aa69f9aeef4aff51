"""What the benchmarks for a CUDA device do before they need one: choosing cases, keeping to the time, failing plainly."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))  # makes `benchmarks` importable

from benchmarks.gpu import __main__ as runner
from benchmarks.gpu import _llama, _run, _ways, distributed, launch, training


def test_every_benchmark_states_how_it_measures():
    assert {"call", "compile_time", "distributed", "launch", "training"} <= set(runner.discover())
    for name in runner.discover():
        module = importlib.import_module(f"benchmarks.gpu.{name}")
        claim, blank, *how = module.__doc__.strip().splitlines()
        assert claim.endswith("."), name
        assert blank == "", name
        assert how, name
        assert callable(module.main), name


def test_without_a_device_it_says_so_and_how_to_try_the_scripts(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert runner.main(["call"]) == 1
    assert capsys.readouterr().err == (
        "These benchmarks need a CUDA device, and torch sees none here. "
        "--device cpu --quick tries the scripts out.\n"
    )


def test_what_does_not_fit_into_the_time_is_left_out_and_named():
    run = _run.Run(seconds=0)
    assert run.fresh("gpu.training:measure", "training: 8 layers, eager") is None
    assert run.remarks() == ["Left out: training: 8 layers, eager: no time left."]


def test_a_way_that_the_library_does_not_offer_is_left_out_and_named(monkeypatch):
    way = _ways.Way("ours, by magic", "ours", options={"capture": "magic"})
    monkeypatch.setitem(_ways.WAYS, "magic", way)
    run = _run.Run()
    assert run.wanted("magic", "eager") == ["eager"]
    assert run.remarks() == ["Left out: ours, by magic: ri.compile does not offer capture='magic'."]


def test_a_failing_process_leaves_its_traceback_in_the_log(tmp_path):
    run = _run.Run(device="cpu", log=tmp_path / "log")
    found = run.fresh("gpu.training:measure", "label", way="no such way", layers=1)
    assert found == {"error": "KeyError: 'no such way'"}
    text = (tmp_path / "log").read_text()
    assert '"way": "no such way"' in text
    assert "Traceback (most recent call last)" in text


def test_targets_take_the_better_of_our_captures_and_stay_open_where_nothing_was_measured():
    rows = [
        {"way": _ways.WAYS["ours"].label, "layers": 24, "cold, s": 14.0},
        {"way": _ways.WAYS["ours-blocks"].label, "layers": 24, "cold, s": 7.0},
    ]
    verdicts = {t.figure: t.verdict for t in training._targets(rows)}
    assert verdicts["24 layers, cold, same marks"] == "reached"
    assert verdicts["96 layers against 24, cold, same marks"] == "not measured in this form"
    assert {t.verdict for t in launch._targets([])} == {"not measured in this form"}


@pytest.mark.parametrize("what", ["parts", "blocks"])
def test_the_yardstick_s_gradients_are_no_mere_rounding(ri, what):
    """A loss that a norm makes constant would compare noise with noise."""
    shape = _llama.Shape(2, dim=64, heads=4, ffn=96, batch=2, sequence=16)
    model, x = _llama.build(shape, _llama.Marks(what), "cpu")
    parameters = list(model.parameters())
    expected = _llama.training_step(model, parameters, x)
    gradients = [p.grad.float() for p in parameters]
    assert min(float(g.norm()) for g in gradients) > 1e-4
    compiled = ri.compile(model, region_backend="eager")
    torch.testing.assert_close(_llama.training_step(compiled, parameters, x), expected)
    for parameter, right in zip(parameters, gradients, strict=True):
        assert float((parameter.grad.float() - right).norm() / right.norm()) < 2e-2
    assert {r.label if hasattr(r, "label") else r.name for r in compiled.report.regions}


def test_results_say_the_date_the_machine_and_the_command(tmp_path, monkeypatch):
    from benchmarks._outcome import Outcome

    monkeypatch.setattr(training, "main", lambda run: Outcome({"t": [{"way": "a", "s": 1.0}]}))
    arguments = ["training", "--device", "cpu", "--quick", "--out", str(tmp_path)]
    monkeypatch.setattr(training, "plot", lambda tables, figure: None)
    assert runner.main(arguments) == 0
    record = json.loads((tmp_path / "training.json").read_text())
    assert record["command"] == "python -m benchmarks.gpu " + " ".join(arguments)
    assert record["machine"]["torch"] == torch.__version__
    page = (tmp_path / "README.md").read_text()
    assert record["date"] in page
    assert record["command"] in page


def test_exposed_communication_is_what_no_other_kernel_hides():
    kernels = [
        ("ncclDevKernel_AllGather", 0, 4000),
        ("gemm", 1000, 2000),
        ("gemm", 1500, 3000),
        ("ncclDevKernel_ReduceScatter", 5000, 6000),
        ("ncclDevKernel_AllGather", 5500, 6500),
        ("gemm", 6500, 9000),
    ]
    assert distributed.communication(kernels) == {
        "communication": 5.5,
        "exposed": 3.5,
        "idle": 1.0,
    }
    assert distributed.communication([]) == {"communication": 0.0, "exposed": 0.0, "idle": 0.0}


def test_the_barrier_before_a_step_is_no_communication_of_the_step():
    barrier = [("fill", 0, 5), ("ncclDevKernel_AllReduce", 5, 90)]
    step = [("gemm", 100, 120), ("ncclDevKernel_AllGather", 110, 130)]
    assert distributed._without_the_barrier([*step, *barrier]) == step
    assert distributed._without_the_barrier([("gemm", 1, 2)]) == [("gemm", 1, 2)]  # without NCCL


def test_a_collective_takes_as_long_as_on_the_rank_that_came_last():
    first = [("ncclA", 0, 100), ("gemm", 0, 10), ("ncclA", 200, 230), ("ncclB", 300, 310)]
    second = [("ncclA", 60, 100), ("ncclB", 250, 310), ("ncclA", 150, 230)]
    each = [distributed.durations(kernels) for kernels in (first, second)]
    assert distributed.trimmed(first, each) == [
        ("ncclA", 60, 100),
        ("gemm", 0, 10),
        ("ncclA", 200, 230),
        ("ncclB", 300, 310),
    ]


def test_blocks_that_are_all_different_are_not_asked_to_be_captured_as_repeated_ones(monkeypatch):
    from benchmarks.gpu import compile_time

    asked = []
    run = _run.Run(layers=(8,), distinct=(8, 16), ways=("ours", "ours-blocks"))
    monkeypatch.setattr(
        run, "fresh", lambda *_, way, distinct, **__: asked.append((way, distinct)) or {}
    )
    compile_time.main(run)
    assert asked == [("ours", 1), ("ours-blocks", 1), ("ours", 8), ("ours-blocks", 8), ("ours", 16)]
    assert run.remarks() == ["Left out: ours, blocks captured, 16 distinct: no block is repeated."]


def test_what_the_report_says_of_slower_graphs_is_in_the_row():
    from types import SimpleNamespace

    from regional_inductor.regions import Finding

    said = Finding("cudagraphs", "a CUDA graph of its own makes the region slower: 9 us", "m.py:3")
    report = SimpleNamespace(regions=[], findings=[said, Finding("cheap", "something else")])
    row = _ways.described(_ways.WAYS["ours-cudagraphs"], SimpleNamespace(report=report))
    assert row["slower as CUDA graphs"] == said.text
