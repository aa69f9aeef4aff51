"""`ri.bisect`: planted faults are found exactly, and the script that is written shows them by itself."""

from __future__ import annotations

import runpy
import signal
import subprocess
import sys
import time

import pytest
import torch
from torch import nn

from regional_inductor import cli
from regional_inductor.bisecting import _Search
from regional_inductor.stages import compile as stage


@pytest.fixture
def bisect(ri):
    def run(model_or_fn, *args, **kwargs):
        kwargs.setdefault("region_backend", "eager")
        kwargs.setdefault("show", False)
        kwargs.setdefault("script", None)
        return ri.bisect(model_or_fn, *args, **kwargs)

    return run


@pytest.fixture
def compiler(monkeypatch):
    """Lets a function make regions in place of a compiler, of their module and call."""

    def plant(build):
        stage.forget_compiled_regions()
        monkeypatch.setitem(
            stage._BACKENDS, "eager", lambda module, options, call, settings: build(module, call)
        )

    yield plant
    stage.forget_compiled_regions()


def wrong_where(matches, change=lambda value: value * 1.01):
    """A compiler that gets wrong what certain regions give out."""

    def build(module, call):
        if not matches(call):
            return module

        def run(*args):
            return tuple(change(v) if v.is_floating_point() else v for v in module(*args))

        return run

    return build


class Layers(nn.Module):
    """Blocks that do something different each, a region each."""

    def __init__(self, count, ri):
        super().__init__()
        torch.manual_seed(2)
        self.linears = nn.ModuleList(nn.Linear(8, 8) for _ in range(count))
        self.ri = ri

    def forward(self, x):
        for index, linear in enumerate(self.linears):
            x = linear(x)
            with self.ri.region(f"block{index}"):
                x = (x.sin() * (index + 2)).tanh() + 2
        return x


def names(found):
    return [(culprit.name, culprit.direction) for culprit in found.culprits]


# --- regions --------------------------------------------------------------------------------------


def test_nothing_is_found_where_nothing_is_wrong(ri, bisect):
    found = bisect(Layers(2, ri), torch.randn(3, 8))
    assert found.ok
    assert str(found) == "nothing to find: good with all 4 regions compiled"


@pytest.mark.parametrize(("wrong", "direction"), [(0, "forward"), (2, "backward")])
def test_a_region_that_computes_wrong_numbers_is_found(ri, bisect, compiler, wrong, direction):
    compiler(wrong_where(lambda c: (c.name, c.direction) == (f"block{wrong}", direction)))
    found = bisect(Layers(4, ri), torch.randn(3, 8))
    assert names(found) == [(f"block{wrong}", direction)]
    assert found.kind == "wrong numbers"
    assert found.regions == 8
    assert "test_bisect.py:" in found.culprits[0].source


def test_nans_are_found(ri, bisect, compiler):
    nan = wrong_where(
        lambda c: c.name == "block1" and c.direction == "backward", lambda v: v / 0 * 0
    )
    compiler(nan)
    found = bisect(Layers(3, ri), torch.randn(3, 8))
    assert names(found) == [("block1", "backward")]
    assert "NaN" in found.what


def test_a_region_that_raises_is_found(ri, bisect, compiler):
    def build(module, call):
        def run(*args):
            raise ZeroDivisionError("no luck")

        return run if call.name == "block2" else module

    compiler(build)
    with torch.no_grad():
        found = bisect(Layers(3, ri), torch.randn(3, 8))
    assert names(found) == [("block2", "forward")]
    assert (found.kind, found.what) == ("raises ZeroDivisionError", "no luck")


def test_a_region_that_does_not_compile_is_found(ri, bisect, compiler):
    def build(module, call):
        if call.name == "block0" and call.direction == "backward":
            raise NotImplementedError("no lowering")
        return module

    compiler(build)
    found = bisect(Layers(3, ri), torch.randn(3, 8))
    assert names(found) == [("block0", "backward")]
    assert (found.kind, found.what) == ("raises NotImplementedError", "no lowering")


def test_a_slow_region_is_found(ri, bisect, compiler):
    def build(module, call):
        def run(*args):
            time.sleep(0.5)
            return module(*args)

        return run if call.name == "block1" else module

    compiler(build)
    with torch.no_grad():
        found = bisect(Layers(2, ri), torch.randn(3, 8), slower_than=20)
    assert names(found) == [("block1", "forward")]
    assert found.kind == "slow"


def test_regions_that_break_it_only_together_are_found_together(ri, bisect, compiler):
    """Each scales what it gives by a factor, which a later one must not meet."""
    seen = []

    def build(module, call):
        def first(*args):
            seen.append("first")
            return module(*args)

        def second(*args):
            outputs = module(*args)
            return tuple(o * 1.01 for o in outputs) if "first" in seen else outputs

        return {"block0": first, "block3": second}.get(call.name, module)

    compiler(build)
    with torch.no_grad():

        def check(compiled, x):
            seen.clear()
            return torch.allclose(compiled(x), model(x))

        model = Layers(4, ri)
        found = bisect(model, torch.randn(3, 8), check=check)
    assert [culprit.name for culprit in found.culprits] == ["block0", "block3"]
    assert found.kind == "check"


def test_another_failure_on_the_way_is_not_taken_for_the_one_looked_for(ri, bisect, compiler):
    """Without block0, block2 raises; what is looked for are wrong numbers of block1."""
    compiled = set()

    def build(module, call):
        def run(*args):
            compiled.add(call.name)
            if call.name == "block2" and "block0" not in compiled:
                raise ValueError("another matter")
            outputs = module(*args)
            return tuple(o * 1.01 for o in outputs) if call.name == "block1" else outputs

        return run

    compiler(build)
    model = Layers(3, ri)
    with torch.no_grad():

        def check(function, x):
            compiled.clear()
            return torch.allclose(function(x), model(x))

        found = bisect(model, torch.randn(3, 8), check=check)
    assert [culprit.name for culprit in found.culprits] == ["block1"]


# --- operators ------------------------------------------------------------------------------------


def test_the_operator_that_goes_wrong_is_found(ri, bisect, compiler):
    compiler(wrong_where(lambda c: "aten.tanh.default" in c.ops and c.name == "block1"))
    with torch.no_grad():
        found = bisect(Layers(2, ri), torch.randn(3, 8))
    (culprit,) = found.culprits
    assert culprit.ops == ("aten.tanh.default",)
    assert culprit.nodes == 4
    assert culprit.lines[0].endswith(".py:" + culprit.lines[0].rpartition(":")[2])


def test_operators_that_go_wrong_only_together_are_found_together(ri, bisect, compiler):
    both = {"aten.mul.Tensor", "aten.tanh.default"}
    compiler(wrong_where(lambda c: both <= set(c.ops)))
    with torch.no_grad():
        found = bisect(Layers(1, ri), torch.randn(3, 8))
    assert set(found.culprits[0].ops) == both


def test_results_are_not_cut_off_from_what_selects_them(ri, bisect, compiler):
    def fn(x):
        with ri.region("norm"):
            y = torch.nn.functional.layer_norm(x, (8,))
            a, b = y.sin().split(4, -1)
            return a.cos() * b

    compiler(wrong_where(lambda c: "aten.cos.default" in c.ops))
    found = bisect(fn, torch.randn(3, 8))
    assert found.culprits[0].ops == ("aten.cos.default",)


# --- checks ---------------------------------------------------------------------------------------


def test_a_check_of_ones_own_says_what_is_good(ri, bisect, compiler):
    compiler(wrong_where(lambda c: c.name == "block1"))
    calls = []

    def check(compiled, x, *, scale):
        calls.append(scale)
        assert compiled(x * scale).abs().max() <= 3.001

    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = Layers(2, ri)

        def forward(self, x, scale=1.0):
            return self.layers(x)

    with torch.no_grad():
        found = bisect(Scaled(), torch.full((1, 8), 30.0), check=check, scale=100.0)
    assert [culprit.name for culprit in found.culprits] == ["block1"]
    assert set(calls) == {100.0}


def test_a_fault_of_the_check_itself_is_blamed_on_no_region(ri, bisect):
    with pytest.raises(
        ri.RegionError, match="no region is to blame: with every region eager it is bad"
    ):
        bisect(Layers(2, ri), torch.randn(3, 8), check=lambda compiled, x: compiled(x) is None)


def test_a_check_that_cannot_tell_at_all_is_an_error(ri, bisect):
    with pytest.raises(
        ri.RegionError, match="can't tell whether all regions compiled is good or bad"
    ):
        bisect(Layers(2, ri), torch.randn(3, 8), check=lambda compiled, x: NotImplemented)


def test_without_regions_there_is_nothing_to_bisect(ri, bisect):
    with pytest.raises(ri.MarkError, match="no region was compiled"):
        bisect(lambda x: x.sin(), torch.randn(3), check=lambda compiled, x: compiled(x) is None)


def test_a_model_beside_a_shell_command_is_an_error(ri, bisect):
    with pytest.raises(ri.OptionError, match="a process of its own"):
        bisect(Layers(1, ri), torch.randn(3, 8), check="true")


@pytest.mark.parametrize("given", [None, 3])
def test_what_is_no_model_raises(ri, given):
    with pytest.raises(ri.MarkError, match="takes a module or a function"):
        ri.bisect(given)


def test_random_draws_are_no_difference(ri, bisect):
    @ri.region("noise")
    def fn(x):
        return x + torch.rand_like(x)

    assert bisect(fn, torch.randn(8)).ok


def test_nothing_of_the_models_is_changed(ri, bisect, compiler):
    compiler(wrong_where(lambda c: c.name == "block1"))
    model = nn.Sequential(nn.BatchNorm1d(8), Layers(2, ri))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    x = torch.randn(3, 8)
    state = torch.get_rng_state()
    found = bisect(model, x)
    assert not found.ok
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), state)


def test_it_tells_each_trial_and_the_result(ri, bisect, compiler, capsys):
    compiler(wrong_where(lambda c: c.name == "block1"))
    with torch.no_grad():
        bisect(Layers(2, ri), torch.randn(3, 8), show=True)
    lines = capsys.readouterr().out.splitlines()
    assert lines[:4] == [
        "trial 1: all regions compiled: bad (wrong numbers)",
        "trial 2: all regions eager: good",
        "trial 3: 1 of 2 regions compiled: good",
        "trial 4: 1 of 2 regions compiled: bad (wrong numbers)",
    ]
    assert any(line.startswith("- block1 (forward), ") for line in lines)
    assert all(len(line) <= 100 for line in lines)


# --- the script -----------------------------------------------------------------------------------


def run_script(path):
    return subprocess.run([sys.executable, str(path)], capture_output=True, text=True, check=False)


def test_the_script_has_the_graph_and_inputs_like_the_real_ones(
    ri, bisect, compiler, tmp_path, monkeypatch
):
    build = wrong_where(lambda c: "aten.tanh.default" in c.ops)
    compiler(build)

    def fn(x, y):
        with ri.region("mix"):
            return x.t().tanh() + y[:, 1:].float()

    script = tmp_path / "alone.py"
    x, y = torch.randn(4, 6), torch.randint(0, 9, (6, 5))
    monkeypatch.setattr(_Search, "_script_fails", lambda self: True)  # run below, twice
    found = bisect(fn, x, y, script=script)
    assert found.script == script
    text = script.read_text()
    assert "torch.ops.aten.tanh.default" in text
    assert "(torch.float32, 24, 'cpu')" in text
    # By itself, in this process, where the fault is.
    monkeypatch.setattr(sys, "argv", ["alone.py"])
    stage.forget_compiled_regions()
    with pytest.raises(SystemExit) as caught:
        runpy.run_path(str(script), run_name="__main__")
    assert caught.value.code == 1
    compiler(lambda module, call: module)
    with pytest.raises(SystemExit) as caught:
        runpy.run_path(str(script), run_name="__main__")
    assert caught.value.code == 0


def test_scripts_run_for_graphs_of_many_kinds(ri, bisect, compiler, tmp_path, monkeypatch):
    """No fault is left in the process that runs the script: it must say that nothing is wrong."""
    compiler(wrong_where(lambda c: True))

    def fn(x, flags, count):
        view = x[1:]
        with ri.region("kinds"):
            y = torch.where(flags, x, float("-inf")).to(torch.bfloat16)
            z = torch.cond(count.sum() > 0, lambda x: x.sin(), lambda x: x.cos(), (x,))
            a, b = z.split([1, x.shape[0] - 1])
            return y.float().exp() + torch.full_like(x, float("nan")).isnan(), a, b * view

    script = tmp_path / "alone.py"
    args = torch.randn(5, 4), torch.rand(5, 4) > 0.5, torch.tensor([1, 2])
    monkeypatch.setattr(_Search, "_script_fails", lambda self: True)  # run below
    found = bisect(fn, *args, script=script, dynamic=True)
    assert not found.ok
    done = run_script(script)
    assert (done.returncode, done.stderr) == (0, "")
    assert "bitwise equal" in done.stdout


@pytest.mark.inductor
def test_a_fault_of_inductors_own_is_found_and_its_script_fails_by_itself(ri, tmp_path):
    model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8), nn.ReLU())
    ri.mark(model, "1", name="tanh")
    ri.mark(model, "3", name="relu", options={"cpp.inject_relu_bug_TESTING_ONLY": "accuracy"})
    script = tmp_path / "alone.py"
    with torch.no_grad():
        found = ri.bisect(model, torch.randn(4, 8), script=script, show=False)
    assert [(c.name, c.ops) for c in found.culprits] == [("relu", ("aten.relu.default",))]
    assert found.reproduced
    done = run_script(script)
    assert done.returncode == 1
    assert "DIFFERENT" in done.stdout


# --- shell commands and the command line ----------------------------------------------------------

# Stands in for a program that compiles with this package: keeps to a selection and says what it met.
COMMAND = """
import json, os, sys
folder = os.environ["REGIONAL_INDUCTOR_SELECTION"]
with open(folder + "/selection.json") as file:
    kept = json.load(file)["kept"]
with open(folder + "/met-1.jsonl", "w") as file:
    for index in range(8):
        fields = dict(id=f"r{index}", name=f"block{index}", direction="forward", source="", module_path="")
        print(json.dumps({**fields, "units": ["sin", "cos", "tan"], "lines": [""] * 3}), file=file)
def is_compiled(region, unit):
    units = [] if kept is not None and region not in kept else None if kept is None else kept[region]
    return units is None or unit in units
wrong = is_compiled("r2", 1) and is_compiled("r6", 0) and is_compiled("r6", 2)
print("the last line says more")
HOW
"""


@pytest.fixture
def command(tmp_path):
    def write(how):
        (tmp_path / "command.py").write_text(COMMAND.replace("HOW", how))
        return f"{sys.executable} -S {tmp_path}/command.py"

    return write


@pytest.mark.parametrize(
    ("how", "kind"),
    [
        ("sys.exit(3 if wrong else 0)", "exit code 3"),
        ("wrong and os.kill(os.getpid(), 11)", "exit code 139"),
    ],
)
def test_a_shell_command_says_it_by_its_exit_code(ri, command, how, kind):
    found = ri.bisect(check=f"{command(how)}; exit $?", script=None, show=False)
    assert [(c.name, c.ops) for c in found.culprits] == [
        ("block2", ("cos",)),
        ("block6", ("sin", "tan")),
    ]
    assert found.kind == kind


def test_a_shell_command_that_can_not_tell_of_some_sets(ri, command):
    how = "sys.exit(125 if is_compiled('r2', 1) != is_compiled('r6', 0) else 3 if wrong else 0)"
    found = ri.bisect(check=command(how), script=None, show=False)
    assert {c.name for c in found.culprits} >= {"block2", "block6"}


def test_a_process_keeps_to_the_selection_that_it_was_started_with(ri, monkeypatch, tmp_path):
    from regional_inductor.selection import read_met, write_kept

    monkeypatch.setenv("REGIONAL_INDUCTOR_SELECTION", str(tmp_path / "all"))
    write_kept(tmp_path / "all", None)
    x = torch.randn(3, 8)
    with torch.no_grad():
        ri.compile(Layers(3, ri), region_backend="eager")(x)
    met = read_met(tmp_path / "all")
    assert [region.name for region in met] == ["block0", "block1", "block2"]
    assert [len(region.units) for region in met] == [4, 4, 4]

    torch._dynamo.reset()
    script = tmp_path / "script.py"
    monkeypatch.setenv("REGIONAL_INDUCTOR_SELECTION", str(tmp_path / "some"))
    write_kept(tmp_path / "some", {met[0].id: None, met[2].id: (1, 3)}, script)
    with torch.no_grad():
        model = Layers(3, ri)
        expected = model(x)
        torch.testing.assert_close(ri.compile(model, region_backend="eager")(x), expected)
    regions = ri.last_report().regions
    assert [(r.name, r.status != "eager", r.nodes) for r in regions] == [
        ("block0", True, 4),
        ("block1", False, 4),
        ("block2", False, 1),
        ("block2", True, 1),
        ("block2", False, 1),
        ("block2", True, 1),
    ]
    assert read_met(tmp_path / "some") == met
    assert script.read_text().count("class Region") == 3


def test_a_shell_command_that_can_not_tell_is_an_error(ri, tmp_path):
    with pytest.raises(ri.RegionError, match="can't tell"):
        ri.bisect(check="exit 125", show=False)


def test_a_shell_command_that_fails_without_regions_is_an_error(ri):
    with pytest.raises(ri.MarkError, match="no region was compiled"):
        ri.bisect(check="exit 1", show=False)


@pytest.fixture
def heeds_interrupts():
    """A shell's background jobs start with interrupts ignored, and so would what this process starts."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_in_a_shell_command_ends_the_bisection(ri, heeds_interrupts):
    with pytest.raises(KeyboardInterrupt):
        ri.bisect(check="kill -INT $$", show=False)


PROGRAM = """
import torch, regional_inductor as ri
from torch import nn

class Model(nn.Module):
    def forward(self, x):
        for index in range(2):
            with ri.region(f"block{index}"):
                x = (x.sin() + index).tanh()
            x = x.flip(0)
        return x

def build():
    return Model(), (torch.ones(3, 4),)
"""


@pytest.mark.parametrize(("fault", "code"), [(False, 0), (True, 1)])
def test_the_command_line_says_it_by_its_exit_code(
    tmp_path, capsys, monkeypatch, compiler, fault, code
):
    compiler(wrong_where(lambda c: fault and c.name == "block1"))
    monkeypatch.setitem(stage._BACKENDS, "inductor", stage._BACKENDS["eager"])
    (tmp_path / "program.py").write_text(PROGRAM)
    monkeypatch.chdir(tmp_path)
    assert cli.main(["bisect", "program.py:build", "--script", "none"]) == code
    out = capsys.readouterr().out
    assert ("- block1 (forward)" in out) is fault
    assert ("nothing to find" in out) is not fault


def test_the_command_line_takes_a_shell_command(capsys):
    assert cli.main(["bisect", "--run", "exit 125"]) == 1
    assert "can't tell" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["model.py:build", "--run", "true"], ["no-colon"]])
def test_the_command_line_complains_about_wrong_usage(arguments, capsys):
    try:
        code = cli.main(["bisect", *arguments])
    except SystemExit as error:
        code = error.code
    assert code == 2
    assert capsys.readouterr().err
