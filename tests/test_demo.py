"""The demo: its verdict, its tables and its arithmetic; what compiles is left to `make demo` itself."""

from __future__ import annotations

import io
import json
import math
import sys

import pytest
import torch
from rich.console import Console

from regional_inductor import demo
from regional_inductor.demo import EAGER, OURS, VARIANTS, Region, Result, Settings

SETTINGS = Settings(
    steps=4, layers=1, hidden=16, intermediate=24, heads=2, key_value_heads=1, batch=2, sequence=8
)


def region(layer: int = 0, **changes) -> Region:
    fields = {
        "name": "mlp",
        "direction": "forward",
        "source": "/somewhere/model.py:31",
        "module_path": f"model.layers.{layer}.mlp",
        "nodes": 5,
        "key": "k1",
        "status": "compiled" if layer == 0 else "shared",
        "seconds": 1.5 if layer == 0 else 0.0,
    }
    return Region(**{**fields, **changes})


def result(variant: str, **changes) -> Result:
    fields = {
        "cold_seconds": 2.0,
        "step_ms": 25.0,
        "losses": (5.5, 3.0),
        "loss_difference": 0.0,
        "gradient_difference": 1e-6,
        "regions": (region(0), region(1)) if variant == OURS else (),
    }
    return Result(variant, **{**fields, **changes})


def run_with(json_path=None, terminal: bool = False, **replaced: Result) -> tuple[int, str]:
    def worker(variant, settings, folder, follow):
        follow({"event": "phase", "phase": "first step, compiling"})
        for step in range(settings.steps):
            follow({"event": "step", "step": step + 1, "loss": 5.0 - step})
        return replaced.get(variant, result(variant))

    output = io.StringIO()
    console = Console(file=output, width=100, force_terminal=terminal)
    return demo.run(SETTINGS, json_path, console=console, worker=worker), output.getvalue()


# --- the verdict ------------------------------------------------------------------------------------------------


def test_equal_results_exit_with_zero():
    code, text = run_with()
    assert code == 0
    assert "OK: equal to eager within loss 1e-05, gradients 1e-04" in text


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"loss_difference": 1.1e-5}, "loss: 1.1e-05 from eager, more than 1e-05"),
        ({"gradient_difference": 1.1e-4}, "gradients: 1.1e-04 from eager, more than 1e-04"),
        ({"loss_difference": math.nan}, "loss: nan from eager"),
        ({"gradient_difference": math.inf}, "gradients: inf from eager"),
        ({"gradient_difference": None}, "gradients: - from eager"),
        ({"regions": ()}, "no region was compiled"),
        (
            {"regions": (region(0, status="eager"),)},
            "region 'mlp' (model.layers.0.mlp) was left eager",
        ),
        ({"error": "it broke"}, "regional-inductor failed: it broke"),
    ],
)
def test_what_is_not_equal_to_eager_is_named_and_exits_with_one(changes, line):
    code, text = run_with(**{OURS: result(OURS, **changes)})
    assert code == 1
    assert f"FAILED: {line}" in text
    assert "OK" not in text


def test_the_tolerance_itself_still_passes():
    ours = result(
        OURS, loss_difference=demo.LOSS_TOLERANCE, gradient_difference=demo.GRADIENT_TOLERANCE
    )
    assert run_with(**{OURS: ours})[0] == 0


def test_a_difference_of_another_way_is_shown_and_does_not_fail_the_demo():
    code, text = run_with(torch_compile=result("torch_compile", gradient_difference=0.5))
    assert code == 0
    assert "5.0e-01" in text


def test_another_way_that_fails_leaves_the_rest_standing():
    code, text = run_with(pytorch_pass=Result("pytorch_pass", error="Invalid partition"))
    assert code == 0
    assert "failed" in text
    assert "Invalid partition" in text


def test_without_eager_nothing_else_is_run():
    code, text = run_with(**{EAGER: Result(EAGER, error="no sources")})
    assert code == 1
    assert "FAILED: eager failed: no sources" in text
    assert VARIANTS["torch_compile"] not in text


# --- what it prints ------------------------------------------------------------------------------------------------


def test_regions_that_share_a_compiled_region_are_one_row():
    _, text = run_with()
    assert "2 regions, 1 of them distinct" in text
    (row,) = [line for line in text.splitlines() if "model.layers.*.mlp" in line]
    assert row.split() == ["mlp", "forward", "model.layers.*.mlp", "5", "2", "-", "1.50"]


def test_the_numbers_that_make_region_names_unique_are_not_shown():
    ours = result(OURS, regions=(region(0, name="mlp"), region(1, name="mlp_1")))
    _, text = run_with(**{OURS: ours})
    assert "mlp_1" not in text


def test_forward_and_backward_regions_are_separate_rows():
    regions = [region(0), region(0, direction="backward")]
    assert demo.group_by_key(regions) == [[regions[0]], [regions[1]]]


def test_regions_left_eager_without_a_key_are_told_apart():
    regions = [region(0, key="", name="a"), region(0, key="", name="b")]
    assert len(demo.group_by_key(regions)) == 2


def test_a_region_outside_any_module_is_placed_by_its_source_line():
    assert demo.places_of([region(module_path="")]) == ["model.py:31"]


def test_layer_numbers_fold_and_other_numbers_stay():
    group = [region(0, module_path="net.0.conv2d.1"), region(0, module_path="net.3.conv2d.4")]
    assert demo.places_of(group) == ["net.*.conv2d.*"]


def test_options_are_shown():
    ours = result(OURS, regions=(region(0, options={"max_autotune": "True"}),))
    assert "max_autotune=True" in run_with(**{OURS: ours})[1]


def test_every_way_has_a_row_with_its_costs():
    _, text = run_with()
    for label in VARIANTS.values():
        assert any(line.startswith(label) and "25.0" in line for line in text.splitlines()), label


def test_output_that_is_no_terminal_gets_plain_lines():
    _, text = run_with()
    assert "\x1b" not in text
    assert "  eager: step 1 of 4, loss 5.0000, 0 s" in text
    assert "  eager: step 4 of 4, loss 2.0000, 0 s" in text


def test_a_terminal_gets_bars():
    _, text = run_with(terminal=True)
    assert "━" in text
    assert "step 1 of" not in text


def test_json_holds_everything(tmp_path):
    path = tmp_path / "demo.json"
    run_with(json_path=path, **{OURS: result(OURS, loss_difference=1.0)})
    record = json.loads(path.read_text())
    assert record["settings"]["layers"] == 1
    assert record["tolerance"] == {"loss": 1e-5, "gradients": 1e-4}
    assert record["failures"] == ["loss: 1.0e+00 from eager, more than 1e-05"]
    assert [entry["variant"] for entry in record["results"]] == list(VARIANTS)
    assert Result.from_json(record["results"][0]) == result(EAGER)


def test_a_missing_compiler_is_one_line_before_anything_runs(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    output = io.StringIO()
    assert demo.run(SETTINGS, console=Console(file=output, width=60)) == 1
    assert output.getvalue().startswith(
        "No C++ compiler: `no-such-compiler` is not on the PATH. Install one"
    )
    assert output.getvalue().count("\n") == 1


# --- the worker process ----------------------------------------------------------------------------------------------


def fake_worker(monkeypatch: pytest.MonkeyPatch, tmp_path, code: str) -> None:
    script = tmp_path / "python"
    script.write_text(f"#!{sys.executable}\n{code}\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))


def test_a_workers_events_and_result_are_read_and_other_output_is_passed_over(
    monkeypatch, tmp_path
):
    fields = json.dumps({"variant": EAGER, "losses": [2.0, 1.0], "step_ms": 3.0})
    fake_worker(
        monkeypatch,
        tmp_path,
        "print('a library says hello')\n"
        'print(\'{"event": "step", "step": 1, "loss": 2.0}\')\n'
        f'print(\'{{"event": "result", "result": {fields}}}\')',
    )
    events: list[dict] = []
    outcome = demo.run_in_subprocess(EAGER, SETTINGS, tmp_path, events.append)
    assert outcome == Result(EAGER, losses=(2.0, 1.0), step_ms=3.0)
    assert events == [{"event": "step", "step": 1, "loss": 2.0}]


def test_a_worker_that_dies_gives_its_last_line_as_the_error(monkeypatch, tmp_path):
    fake_worker(monkeypatch, tmp_path, "raise RuntimeError('out of luck')")
    outcome = demo.run_in_subprocess(OURS, SETTINGS, tmp_path, lambda event: None)
    assert outcome == Result(OURS, error="RuntimeError: out of luck")


def test_each_worker_gets_a_cache_folder_of_its_own(monkeypatch, tmp_path):
    fake_worker(
        monkeypatch, tmp_path, "import os, sys; sys.exit(os.environ['TORCHINDUCTOR_CACHE_DIR'])"
    )
    folders = {
        demo.run_in_subprocess(name, SETTINGS, tmp_path, lambda event: None).error
        for name in VARIANTS
    }
    assert len(folders) == len(VARIANTS)
    assert all(folder.startswith(str(tmp_path)) for folder in folders)


# --- what the worker computes ------------------------------------------------------------------------------------------


def test_relative_difference_is_in_l2_norm():
    from regional_inductor.demo_worker import relative_difference

    assert relative_difference(torch.tensor([3.0, 4.4]), torch.tensor([3.0, 4.0])) == pytest.approx(
        0.08
    )
    assert relative_difference(torch.zeros(2), torch.zeros(2)) == 0
    assert relative_difference(torch.ones(1), torch.zeros(1)) == 1
    assert math.isnan(relative_difference(torch.tensor([math.nan]), torch.ones(1)))


def test_one_nan_among_the_differences_is_the_largest():
    from regional_inductor.demo_worker import largest

    assert largest([1.0, 2.0]) == 2.0
    assert math.isnan(largest([1.0, math.nan]))
    assert math.isnan(largest([math.nan, 1.0]))


def test_batches_are_text_and_equal_for_equal_seeds():
    from regional_inductor.demo_worker import draw_batches, read_corpus

    corpus = read_corpus(limit=10_000)
    first, again = list(draw_batches(corpus, SETTINGS)), list(draw_batches(corpus, SETTINGS))
    assert len(first) == SETTINGS.steps
    assert first[0].shape == (SETTINGS.batch, SETTINGS.sequence)
    assert all(map(torch.equal, first, again))
    assert bytes(first[0][0].tolist()) in bytes(corpus.tolist())


def test_the_eager_worker_leaves_probes_that_it_reproduces_exactly(tmp_path, capsys, monkeypatch):
    pytest.importorskip("transformers")
    from regional_inductor import demo_worker

    monkeypatch.setattr(
        demo_worker, "mark", lambda model: None
    )  # marks change nothing in eager mode
    outcome = demo_worker.measure(EAGER, SETTINGS, tmp_path)
    assert (outcome.loss_difference, outcome.gradient_difference) == (0, 0)
    assert len(outcome.losses) == SETTINGS.steps
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [event["step"] for event in events if event["event"] == "step"] == [1, 2, 3, 4]
    probes = torch.load(tmp_path / "probes.pt")
    assert len(probes) == len(demo_worker.probe_points(SETTINGS.steps))
    moved = [
        not torch.equal(probes[0]["weights"][name], probes[-1]["weights"][name])
        for name in probes[0]["gradients"]
    ]
    assert all(moved)
