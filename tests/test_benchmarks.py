"""The benchmarks' own machinery, and each benchmark's shape on made-up or tiny runs; no times are asserted."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent))  # makes `benchmarks` importable

from benchmarks import __main__ as runner
from benchmarks import _graphs, _measure, _models, _peers, depth, llama, partition, start
from benchmarks._outcome import Outcome, Target, columns_of, markdown_table, number

# --- targets ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "bound", "better", "verdict"),
    [
        (0.4, 0.5, "lower", "reached"),
        (0.5, 0.5, "lower", "reached"),
        (1.0, 0.5, "lower", "not reached: 2 of the bound"),
        (24.0, 12.0, "higher", "reached"),
        (9.0, 12.0, "higher", "not reached: 0.75 of the bound"),
        (3.0, 0.0, "lower", "not reached: 3 above"),
        (None, 12.0, "higher", "not measured in this form"),
    ],
)
def test_a_target_says_by_how_much_it_is_missed(value, bound, better, verdict):
    assert Target("figure", value, bound, better).verdict == verdict


def test_a_target_s_row_stands_beside_its_bound():
    assert Target("cold start", 13.0, 12, "higher", "x").row() == {
        "figure": "cold start",
        "measured": "13 x",
        "target": "≥ 12 x",
        "verdict": "reached",
    }


# --- measuring -------------------------------------------------------------------------------------


def test_ways_alternate_and_every_second_round_runs_backwards():
    order = []
    ways = {name: (lambda n=name: order.append(n) or float(len(order))) for name in "ab"}
    assert _measure.alternate(ways, 3) == {"a": [1.0, 4.0, 5.0], "b": [2.0, 3.0, 6.0]}
    assert "".join(order) == "abbaab"


def test_the_exponent_of_a_power_law_is_found():
    sizes = [10, 100, 1000]
    assert _measure.exponent(sizes, [3 * s**1.5 for s in sizes]) == pytest.approx(1.5)
    assert _measure.exponent([10], [1.0]) is None


def test_a_ratio_of_something_missing_is_missing():
    assert _measure.ratio(4.0, 2.0) == 2
    assert _measure.ratio(None, 2.0) is None
    assert _measure.ratio(4.0, None) is None


def test_a_fresh_process_returns_what_the_function_does():
    found = _measure.in_fresh_process("import_time:measure", module="regional_inductor")
    assert found["inductor"] == found["dynamo"] == 0
    assert found["modules"] > 3


def test_a_fresh_process_that_fails_gives_its_last_line():
    found = _measure.in_fresh_process("import_time:measure", module="no_such_module")
    assert found == {"error": "ModuleNotFoundError: No module named 'no_such_module'"}


@pytest.fixture
def forking(monkeypatch):
    """A server that has imported next to nothing."""
    server = _measure._Server.started("_measure:resident_mb")
    monkeypatch.setattr(_measure, "_server", lambda prepare: server)
    yield server
    server.end()


def test_a_forked_process_returns_what_the_function_does(forking, tmp_path):
    setting = {"function": "_forking:os.getenv", "key": "TORCHINDUCTOR_CACHE_DIR"}
    for name in ("a", "new/b"):
        found = _measure.in_forked_process(cache=tmp_path / name, **setting)
        assert found == str(tmp_path / name)
    assert forking.process.poll() is None


def test_a_forked_process_that_fails_gives_its_last_line(forking, tmp_path):
    failed = _measure.in_forked_process("_measure:exponent", cache=tmp_path / "a", sizes=[1, 2])
    assert failed["error"].startswith("TypeError: exponent() missing")
    endless = {"function": "_measure:alternate", "ways": {}, "repeats": 10**12}
    late = _measure.in_forked_process(cache=tmp_path / "a", timeout=0.1, **endless)
    assert late == {"error": "killed, after 0 s at the latest"}


def test_a_forked_process_can_fork_one_that_goes_on_from_there(forking, tmp_path):
    forked = {"function": "_measure:fork_from_here", "folder": str(tmp_path / "b")}
    found = _measure.in_forked_process(cache=tmp_path / "a", **forked)
    assert (
        found is None
    )  # what the last process returned, to that which forked it and from there to here
    outputs = [(tmp_path / f"{name} output").read_text() for name in "ab"]
    assert outputs == ['{"result": null}\n'] * 2


def test_a_fresh_process_can_have_what_the_probe_of_the_processor_left(forking, tmp_path):
    Path(forking.folder, "probe").write_text("avx2")
    cache = tmp_path / "cache"
    _measure.in_fresh_process("_measure:resident_mb", cache=cache, probed=True)
    assert (cache / "probe").read_text() == "avx2"


def test_the_peak_sees_what_is_already_freed():
    _measure.reset_peak()
    before = _measure.resident_mb()
    data = bytearray(64 * 2**20)
    del data
    assert _measure.peak_mb() - before > 50
    _measure.reset_peak()
    assert _measure.peak_mb() - _measure.resident_mb() < 50


# --- tables and the runner --------------------------------------------------------------------------


def test_a_row_that_lacks_a_figure_leaves_a_dash():
    rows = [{"way": "a", "s": 1.0}, {"way": "b", "error": "no | such"}]
    assert columns_of(rows) == ["way", "s", "error"]
    assert markdown_table(rows).splitlines() == [
        "| way | s | error |",
        "|---|---:|---|",
        "| a | 1 | - |",
        "| b | - | no \\| such |",
    ]


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "-"), (0.012345, "0.0123"), (12345.6, "12346"), (7, "7"), (0.0, "0"), ("x", "x")],
)
def test_numbers_have_as_many_digits_as_can_be_used(value, text):
    assert number(value) == text


def test_every_benchmark_states_its_claim_and_how_it_measures():
    names = runner.discover()
    assert {"call", "depth", "import_time", "llama", "memory", "partition"} <= set(names)
    for name in names:
        module = importlib.import_module(f"benchmarks.{name}")
        claim, blank, *how = module.__doc__.strip().splitlines()
        assert claim.endswith("."), name
        assert blank == "", name
        assert how, name
        assert callable(module.main), name


class Made:
    """A benchmark with nothing to measure."""

    __doc__ = "It works.\n\nBy looking."
    __name__ = "made"

    @staticmethod
    def main(quick):
        rows = [{"way": "ours", "s": 0.5}, {"way": "theirs", "s": 2.0}]
        targets = [Target("seconds", 0.5, 1, "lower", "s"), Target("more", None, 1, "higher")]
        return Outcome({"seconds": rows}, targets, ["Made up."])

    @staticmethod
    def plot(tables, figure):
        axes = figure.subplots()
        axes.bar([row["way"] for row in tables["seconds"]], [row["s"] for row in tables["seconds"]])


@pytest.fixture
def results(tmp_path, monkeypatch):
    """The runner with one made-up benchmark and a folder of its own."""
    monkeypatch.setattr(runner, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(runner, "PAGE", tmp_path / "performance.md")
    monkeypatch.setattr(runner, "discover", lambda: ["made"])
    monkeypatch.setitem(sys.modules, "benchmarks.made", Made)
    (tmp_path / "performance.md").write_text(
        f"# Page\n\nBefore.\n\n{runner.BEGIN}\nold\n{runner.END}\n\nAfter.\n"
    )
    return tmp_path / "results"


def test_a_run_writes_json_markdown_and_a_plot(results, capsys):
    assert runner.main(["--quick"]) == 0
    record = json.loads((results / "made.json").read_text())
    assert record["claim"] == "It works."
    assert record["tables"]["seconds"][0] == {"way": "ours", "s": 0.5}
    assert [t["verdict"] for t in record["targets"]] == ["reached", "not measured in this form"]
    page = (results / "README.md").read_text()
    assert "| made | seconds | 0.5 s | ≤ 1 s | reached |" in page
    assert "By looking." in page
    assert "not measured in this form" in capsys.readouterr().out
    matplotlib = importlib.util.find_spec("matplotlib")
    assert (results / "made.png").exists() == (matplotlib is not None)


def missing(figure="seconds", why="The sun was in our eyes."):
    return Target(figure, 2.0, 1, "lower", "s", why=why)


def test_a_missed_target_is_said_with_its_reason(results, monkeypatch, capsys):
    targets = [missing(), missing("more", why=""), Target("less", 0.5, 1, "lower", why="Unseen.")]
    monkeypatch.setattr(Made, "main", lambda quick: Outcome({}, targets))
    monkeypatch.delattr(Made, "plot")
    assert runner.main([]) == 0
    said = [
        "made, seconds: not reached: 2 of the bound. The sun was in our eyes.",
        "made, more: not reached: 2 of the bound. Why is not known.",
    ]
    page = (results / "README.md").read_text()
    assert "## Not reached, and why\n\n" + "\n".join(f"- {line}" for line in said) in page
    assert "Unseen." not in page
    assert said[0] in capsys.readouterr().out


def test_the_profile_of_missed_targets_stands_in_the_results(results, monkeypatch):
    asked = []

    def profile(missed, quick):
        asked.append((missed, quick))
        return {"a call": [{"function": "kernel", "us": 3.0}]}

    monkeypatch.setattr(Made, "profile", profile, raising=False)
    assert runner.main([]) == 0
    assert asked == []  # nothing is missed
    monkeypatch.setattr(Made, "main", lambda quick: Outcome({}, [missing()]))
    monkeypatch.delattr(Made, "plot")
    assert runner.main(["--quick"]) == 0
    assert asked == [(["seconds"], True)]
    assert "### where it goes: a call\n\n| function | us |" in (results / "README.md").read_text()


def test_profiles_can_be_had_alone(results, monkeypatch, capsys):
    monkeypatch.setattr(
        Made, "profile", lambda missed, quick: {"a call": [{"missed": str(missed)}]}, raising=False
    )
    assert runner.main(["--profile"]) == 0
    assert "missed None" in " ".join(capsys.readouterr().out.replace("─", "").split())
    assert not results.exists()


def test_a_run_ends_with_what_each_benchmark_took(results):
    assert runner.main([]) == 0
    assert runner.main([]) == 0
    (seconds,) = (results / "README.md").read_text().split("## Seconds")[1:]
    assert [line.split(" | ")[0] for line in seconds.split("\n")[4:6]] == ["| made", "| all"]


def test_publishing_replaces_what_stands_between_the_markers(results):
    page = results.parent / "performance.md"
    for _ in range(2):
        assert runner.main(["--publish"]) == 0
        text = page.read_text()
        assert text.startswith("# Page\n\nBefore.\n")
        assert text.endswith(f"{runner.END}\n\nAfter.\n")
        assert text.count("### made: It works.") == 1
        assert "old" not in text


def test_publishing_the_starts_renews_the_readme_s_table(tmp_path):
    ways = ("ours", "aot_eager", "PyTorch's pass", "torch.compile")
    rows = [
        {"way": way, "start": kind, "seconds": seconds * (1 + place)}
        for place, way in enumerate(ways)
        for kind, seconds in (("cold", 10.0), ("warm", 2.0))
    ]
    rows += [
        {"way": "ours", "start": kind, "seconds": 0.5} for kind in ("regions only", start.FROM_FILE)
    ]
    page = tmp_path / "README.md"
    page.write_text(runner.README.read_text())
    before, _, rest = page.read_text().partition("<!-- start: written by")
    after = rest.partition("<!-- end of start -->")[2]
    record = {"benchmark": "start", "quick": False, "tables": {"seconds": rows}}
    for _ in range(2):
        runner.publish_summary(record, page)
    text = page.read_text()
    assert text.startswith(before)
    assert text.endswith(after)
    assert "| regional-inductor | 10.0 | 1.00 | 2.0 | 1.00 |" in text
    assert "| the same, loaded from a file that `ri.save` wrote |  |  | 0.5 | 0.25 |" in text
    assert "| `torch.compile` (whole model) | 40.0 | 4.00 | 8.0 | 4.00 |" in text
    runner.publish_summary({**record, "quick": True, "tables": {}}, page)
    runner.publish_summary({**record, "benchmark": "load", "tables": {}}, page)
    assert page.read_text() == text


def test_without_publishing_the_page_stays(results):
    before = (results.parent / "performance.md").read_text()
    assert runner.main([]) == 0
    assert (results.parent / "performance.md").read_text() == before


def test_a_benchmark_that_fails_is_named(results, monkeypatch, capsys):
    def main(quick):
        raise ValueError("no such luck")

    monkeypatch.setattr(Made, "main", main)
    assert runner.main([]) == 1
    assert "failed: made" in capsys.readouterr().out


def test_a_case_that_fails_leaves_its_row_and_fails_the_run(results, monkeypatch):
    monkeypatch.setattr(Made, "main", lambda quick: [{"way": "ours", "error": "no such luck"}])
    monkeypatch.delattr(Made, "plot")
    assert runner.main([]) == 1
    assert json.loads((results / "made.json").read_text())["tables"][""][0]["way"] == "ours"


def test_the_page_has_a_place_for_results():
    text = runner.PAGE.read_text()
    assert text.count(runner.BEGIN) == text.count(runner.END) == 1
    assert text.index(runner.BEGIN) < text.index(runner.END)


# --- graphs -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("ordered", [False, True], ids=["plain", "hidden order"])
@pytest.mark.parametrize("family", list(_graphs.FAMILIES))
def test_graphs_have_the_size_asked_for_and_about_half_of_it_marked(family, ordered):
    gm = _graphs.build(family, 400, ordered=ordered)
    gm.graph.lint()
    calls = [n for n in gm.graph.nodes if n.op == "call_function"]
    marked = sum(_graphs.MARK in n.meta.get("custom", {}) for n in calls)
    assert 400 <= len(calls) <= 440
    assert 0.35 <= marked / len(calls) <= 0.65
    written = any(str(n.target).endswith("_.Tensor") for n in calls)
    assert written == ordered


def test_equal_arguments_give_equal_graphs():
    a, b = (_graphs.build("random", 100) for _ in range(2))
    assert str(a.graph) == str(b.graph)


@pytest.mark.parametrize("family", ["chain", "blocks", "skip", "wide", "random", "ids"])
def test_both_passes_make_as_many_regions_of_a_graph(family):
    found = {
        way: _peers.marked_regions(_peers.outlining_of(way)(_graphs.build(family, 120)))
        for way in ("pytorch", "ours")
    }
    assert found["ours"] == found["pytorch"]


def test_the_partition_benchmark_s_cases_have_equal_columns():
    plain = partition._case("chain", 60, 1, with_pytorch=True)
    ordered = partition._case("chain", 60, 1, ordered=True)
    assert list(plain) == list(ordered)
    assert plain["ratio"] is not None
    assert ordered["ratio"] is None
    assert partition._cyclic_ids(5)["our failures"] == 0


# --- models ------------------------------------------------------------------------------------------


def test_the_model_runs_and_its_marks_change_nothing():
    shape = _models.Shape(2, hidden=16, heads=2, mlp=24, sequence=8, batch=1)
    x = _models.inputs(shape)
    plain, whole = _models.Llama(shape), _models.Llama(shape, mark_blocks=True)
    assert _models.run_once(plain, x, train=False).equal(_models.run_once(whole, x, train=False))


def test_distinct_models_have_an_mlp_width_for_each_layer():
    model = _models.Llama(_models.Shape(3, distinct=True, hidden=16, heads=2, mlp=24))
    assert len({layer.gate.out_features for layer in model.layers}) == 3


def test_a_timed_pass_takes_down_its_first_run_and_the_repeated_ones(monkeypatch):
    import torch

    monkeypatch.setattr(_peers, "pass_of", lambda way: lambda gm, *inputs: gm)
    timed = _peers.TimedPass("ours", again=2)
    gm = torch.fx.symbolic_trace(lambda x: x + 1)
    assert timed(gm, []) is gm
    assert len(timed.first) == 1
    assert [len(taken) for taken in timed.repeated] == [1, 1]


# --- targets of the benchmarks that need minutes ------------------------------------------------------


def test_llama_s_targets_are_read_off_its_table():
    run = {"pass": 2.0, "in process": [0.5], "mb": 10.0, "peak mb": 12.0}
    slow = {**run, "pass": 26.0, "in process": [20.0]}
    results = {way: [{"cold": r, "warm": r}] for way, r in (("pytorch", slow), ("ours", run))}
    rows = [llama._row(name, results) for name in ("L=1", "L=32")]
    targets = {t.figure: t for t in llama._targets(rows, [])}
    assert targets["cold, L=32, against PyTorch's"].value == 13
    assert targets["in process, L=32, against PyTorch's"].value == 40
    assert targets["cold, ours, L=32 against L=1"].verdict == "reached"
    assert targets["cold, L=4, against PyTorch's"].value is None
    assert targets["compile memory over aot_eager, L=32"].value is None


def run_of_llama(seconds, **parts):
    return {"pass": seconds, "in process": [], "mb": 10.0, "peak mb": 12.0, "parts": parts}


def test_llama_takes_ours_two_or_three_times_and_the_slow_pass_once(monkeypatch):
    asked, traced, remembered = [], [], []

    def process(*, way, layers, again=0, **_):
        asked.append((way, layers, "warm" if again else "cold"))
        return run_of_llama(float(len(asked)), stage=0.5 * len(asked))

    def forked(function, *, runs, layers, train, **_):
        traced.append((layers, train))
        return [process(layers=layers, **run) for run in runs]

    def fresh(function, *, way, **_):
        remembered.append(way)
        return run_of_llama(0.0)

    monkeypatch.setattr(llama, "in_forked_process", forked)
    monkeypatch.setattr(llama, "in_fresh_process", fresh)
    monkeypatch.setattr(llama, "_parts", {})
    outcome = llama.main(quick=False)
    cold = [(way, layers) for way, layers, kind in asked if kind == "cold"]
    assert cold.count(("ours", 1)) == cold.count(("ours", 32)) == 3  # compared with one another
    assert cold.count(("ours", 4)) == cold.count(("ours", 8)) == 2
    assert cold.count(("ours", 16)) == 4  # and in training
    assert cold.count(("pytorch", 32)) == cold.count(("pytorch", 4)) == 1
    assert traced == [(1, False), (4, False), (16, False), (32, False), (8, False), (16, True)]
    assert sorted(remembered) == ["aot_eager", "ours", "pytorch"]
    each = outcome.tables["ours, cold: seconds inside the pass, each process"]
    table = outcome.tables["seconds inside the pass"]
    medians = [row["2"] if "3" in row else (row["1"] + row["2"]) / 2 for row in each]
    assert medians == [row["cold, ours"] for row in table]
    ratio = next(t for t in outcome.targets if t.figure == "cold, ours, L=32 against L=1")
    assert ratio.value == each[3]["2"] / each[0]["2"]

    runs = len(asked)
    ((_, rows),) = llama.profile([ratio.figure], quick=False).items()
    assert len(asked) == runs  # it shows what was measured
    assert rows == [
        {"part": "stage"} | {c: rows[0][c] for c in ("L=1", "L=16", "L=32", "L=16 train")}
    ]
    assert rows[0]["L=1"] == 0.5 * each[0]["2"]
    cold, warm = llama.profile(["warm disk, L=32, against PyTorch's"], quick=False).values()
    assert len(asked) == runs
    assert cold == rows
    assert warm[0]["L=1"] != rows[0]["L=1"]
    monkeypatch.setattr(llama, "_parts", {})
    llama.profile(None, quick=False)
    assert len(asked) == runs + 4


def test_depth_s_profile_is_of_the_starts_that_were_measured(monkeypatch):
    asked = []

    def start(*_, way, layers, **__):
        asked.append(way)
        return {"seconds": 2.0, "steps": {"whole": 2.0}}

    monkeypatch.setattr(depth, "in_forked_process", start)
    monkeypatch.setattr(depth, "_steps", {})
    (rows,) = depth.profile(["cold, L=32, ours against block by block"], quick=False).values()
    assert asked == ["ours", "ours", "blocks", "blocks"]  # nothing was measured before
    assert {row["start"] for row in rows} == {"cold"}
    outcome = depth.main(quick=False)
    runs = len(asked)
    assert "steps" not in outcome.tables["seconds to the first result"][0]
    (rows,) = depth.profile(["warm, L=32, ours against block by block"], quick=False).values()
    assert len(asked) == runs
    assert [row["seconds"] for row in rows] == [2.0, 2.0]


def test_a_failed_way_of_llama_leaves_a_row_with_its_error():
    run = {"pass": 2.0, "in process": [0.5]}
    results = {
        "pytorch": [{"cold": {"error": "boom"}, "warm": run}],
        "ours": [{"cold": run, "warm": run}],
    }
    row = llama._row("L=1", results)
    assert row["cold, PyTorch's"] is None
    assert row["cold, ratio"] is None
    assert row["warm disk, ratio"] == 1
    assert row["error"] == "pytorch: boom"


def test_depth_s_targets_are_read_off_its_table():
    rows = [
        {"layers": layers, "way": depth.WAYS[way], "cold": cold, "warm": 1.0}
        for way, layers, cold in (
            ("ours:blocks", 4, 4.0),
            ("ours", 32, 6.0),
            ("ours:blocks", 64, 8.0),
        )
    ]
    rows.append({"layers": 32, "way": depth.WAYS["blocks"], "cold": 6.0, "warm": 1.0})
    values = [t.value for t in depth._targets(rows)]
    assert values == [2.0, 1.0, 1.0]
    assert [t.value for t in depth._targets([])] == [None] * 3


def test_what_depth_compares_are_medians(monkeypatch):
    seconds = {
        ("ours:blocks", 4, "cold"): iter([9.0, 2.2]),
        ("ours:blocks", 64, "cold"): iter([2.4, 2.3]),
        ("ours", 32, "warm"): iter([0.5, 0.4]),
        ("blocks", 32, "warm"): iter([7.0, 6.0]),
    }

    def case(way, layers, folder):
        return {"way": depth.WAYS[way], "layers": layers, "cold": 5.0, "warm": 5.0}

    monkeypatch.setattr(depth, "_case", case)
    monkeypatch.setattr(
        depth,
        "_start",
        lambda way, layers, start, *_: {"seconds": next(seconds[way, layers, start])},
    )
    outcome = depth.main(quick=False)
    assert [target.value for target in outcome.targets] == [2.4 / 5, 1.0, 0.5 / 6]


def test_depth_s_cold_starts_have_caches_of_their_own_and_warm_ones_what_a_cold_one_left(
    monkeypatch, tmp_path
):
    monkeypatch.setattr(depth, "in_forked_process", lambda *_, cache, **__: cache.name)
    starts = [("cold", 0), ("warm", 0), ("warm", 1), ("cold", 1), ("cold", 2)]
    first, *warm, second, third = [
        depth._start("ours", 4, start, tmp_path, number) for start, number in starts
    ]
    assert warm == [first, first]
    assert len({first, second, third}) == 3
    assert not set(" :") & set(depth._start("ours:blocks", 4, "cold", tmp_path, 1))
