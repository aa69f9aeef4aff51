"""What a report says is worth knowing: each finding is provoked, and its text asserted."""

from __future__ import annotations

import inspect

import pytest
import torch
import torch.utils.checkpoint
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.traceback import annotate, preserve_node_meta

from regional_inductor.stages import compile as compile_stage
from regional_inductor.timelimit import TimeLimitError


@pytest.fixture
def explain(ri):
    def run(model_or_fn, *args, **kwargs):
        kwargs.setdefault("region_backend", "eager")
        return ri.explain(model_or_fn, *args, **kwargs)

    return run


def line_of(function, text):
    """`file:line` of the line of a function's source that holds a text."""
    lines, first = inspect.getsourcelines(function)
    (offset,) = [i for i, line in enumerate(lines) if text in line]
    return f"{__file__}:{first + offset}"


def short(source):
    return source.rpartition("/")[2]


def of_kind(report, kind):
    return [finding for finding in report.findings if finding.kind == kind]


def the_finding(report, kind):
    (finding,) = of_kind(report, kind)
    return finding


# --- marks that matched nothing -------------------------------------------------------------------


class TwoHeads(nn.Module):
    def __init__(self):
        super().__init__()
        self.one = nn.LayerNorm(4)
        self.two = nn.LayerNorm(4)

    def forward(self, x, second=False):
        return self.two(x) if second else self.one(x)


def test_a_marked_module_that_is_not_called(ri, explain):
    model = TwoHeads()
    ri.mark(model, "one", "two", name="norm")
    finding = the_finding(explain(model, torch.ones(2, 4)), "unmatched")
    assert finding.region == "norm"
    assert finding.message == (
        "the mark on module 'two' matched nothing: no graph has an operator of it"
    )
    assert short(finding.source).startswith("test_findings.py:")
    assert finding.remedy.startswith("the module isn't called with these arguments")


def test_a_marked_module_that_is_called_is_no_finding_after_a_graph_break_either(ri, explain):
    model = TwoHeads()
    ri.mark(model, "one", name="norm")

    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = model

        def forward(self, x):
            torch._dynamo.graph_break()
            return self.inner(x)

    assert of_kind(explain(Outer(), torch.ones(2, 4)), "unmatched") == []


def test_nothing_is_marked_at_all(ri, explain):
    finding = the_finding(explain(lambda x: x.sin(), torch.ones(2)), "unmatched")
    assert finding.message == "nothing is marked in what was captured, so everything runs eagerly"
    assert finding.remedy.startswith('mark modules with regional_inductor.mark(model, "layers.*')


def test_nothing_is_marked_in_a_graph_or_an_export(explain):
    gm = make_fx(lambda x: x.sin())(torch.ones(2))
    finding = the_finding(explain(gm), "unmatched")
    assert finding.remedy.startswith("mark its nodes with regional_inductor.mark_nodes(gm, ")
    program = torch.export.export(TwoHeads(), (torch.ones(2, 4),))
    finding = the_finding(explain(program), "unmatched")
    assert "export it with regional_inductor.export(...) or strict=True" in finding.remedy


def test_a_mark_whose_operators_vanish_before_they_are_compiled(ri, explain):
    def f(x):
        with ri.region("unused"):
            x.sin()
        return x.cos()

    finding = the_finding(explain(f, torch.ones(3)), "lost")
    assert finding.region == "unused"
    assert finding.message == (
        "what was marked (sin) left no marked operator in the graph that AOTAutograd made, so it "
        "runs eager"
    )
    assert finding.source == line_of(f, "x.sin()")
    assert "results that nobody uses" in finding.remedy


# --- misspelt keys --------------------------------------------------------------------------------


def test_an_annotation_whose_key_is_misspelt(ri, explain):
    def f(x):
        with annotate({"compile_with_inducter": 0}):
            return x.sin() + 1

    finding = the_finding(explain(f, torch.ones(3)), "misspelt")
    assert finding.message == (
        "the annotation key 'compile_with_inducter' looks misspelt and marks nothing"
    )
    assert finding.source == line_of(f, "return x.sin()")
    assert finding.remedy == "write 'compile_with_inductor'"


def test_a_misspelt_key_inside_a_mark_is_found_in_each_dry_run(ri, explain):
    def f(x):
        with annotate({"compile_with_inductor": {"inductor_config": {"max_autotune": True}}}):
            return x.sin() + 1

    for _ in range(2):
        finding = the_finding(explain(f, torch.ones(3)), "misspelt")
        assert finding.message == "unknown key 'inductor_config' in a mark has no effect"
        assert finding.source == line_of(f, "return x.sin()")
        assert finding.remedy.startswith("did you mean 'inductor_configs'")


# --- another backend ------------------------------------------------------------------------------


def marked_sine(ri):
    @ri.region("sine")
    def sine(x):
        return x.sin() + 1

    return sine


@pytest.mark.parametrize("backend", ["eager", "aot_eager", "inductor"])
def test_a_function_compiled_with_another_backend(ri, explain, backend):
    report = explain(torch.compile(marked_sine(ri), backend=backend), torch.ones(3))
    finding = the_finding(report, "other-backend")
    assert finding.message == (
        f"this function is compiled with the backend {backend!r}, which ignores marks; below is "
        "what regional_inductor would do"
    )
    assert 'backend="regional_inductor"' in finding.remedy
    assert [region.name for region in report.regions] == ["sine"]


def test_a_module_compiled_with_another_backend(ri, explain):
    model = TwoHeads()
    ri.mark(model, "one", name="norm")
    for compiled in (torch.compile(model, backend="eager"), model):
        model.compile(backend="eager")
        report = explain(compiled, torch.ones(2, 4))
        assert the_finding(report, "other-backend").message.startswith(
            "this TwoHeads is compiled with the backend 'eager', which ignores marks"
        )
        assert {region.name for region in report.regions} == {"norm"}


def test_backends_that_compile_marks_are_no_finding(ri, explain):
    from torch._dynamo.backends.common import aot_autograd
    from torch.fx.passes.regional_inductor import regional_inductor

    sine = marked_sine(ri)
    pytorchs = aot_autograd(fw_compiler=regional_inductor)
    for compiled in (
        ri.compile(sine, region_backend="eager"),
        torch.compile(sine, backend="regional_inductor"),
        torch.compile(sine, backend=pytorchs),
    ):
        assert of_kind(explain(compiled, torch.ones(3)), "other-backend") == []


# --- one mark, several regions --------------------------------------------------------------------


def test_one_mark_that_broke_names_the_operator_to_add(ri, explain):
    def f(x):
        with ri.region("tail"):
            y = x.sin() + 1
            with ri.eager():
                y = y.view(-1)
            return y.cos() * 2

    finding = the_finding(explain(f, torch.ones(3, 4)), "broken")
    assert finding.region == "tail"
    assert finding.message == "one mark broke into 2 regions"
    assert finding.source == line_of(f, "x.sin()")
    view = short(line_of(f, "y.view"))
    assert finding.remedy == (
        f"add `aten.view` at {view} to the region and 2 regions become 1: take ri.eager off it"
    )


def test_four_regions_of_one_mark_on_nodes(ri, explain):
    def f(x):
        for _ in range(4):
            x = x.sin() + 1
            x = x.view(x.shape[1], x.shape[0])
        return x

    gm = make_fx(f)(torch.ones(3, 4))
    for node in gm.graph.nodes:
        node.meta["stack_trace"] = '  File "model.py", line 31, in forward\n'
    ri.mark_nodes(gm, [torch.ops.aten.sin, torch.ops.aten.add], name="wave")
    finding = the_finding(explain(gm, torch.ones(3, 4)), "broken")
    assert finding.message == "one mark broke into 4 regions"
    assert finding.remedy == ("add `aten.view` at model.py:31 to the region and 4 regions become 1")


def test_the_same_break_in_many_layers_is_one_finding(ri, explain):
    @ri.region("tail")
    def tail(x):
        y = x.sin() + 1
        with ri.eager():
            y = y @ y
        return y.cos() * 2

    def f(x):
        for _ in range(5):
            x = tail(x) @ x
        return x

    finding = the_finding(explain(f, torch.ones(4, 4)), "broken")
    assert finding.message == "one mark broke into 2 regions in 5 places"
    assert "`aten.mm` at test_findings.py" in finding.remedy


def test_operators_without_a_line_are_named_without_one(ri, explain):
    gm = make_fx(lambda x: ((x.sin() + 1).view(-1) @ x.view(-1)).cos() * 2)(torch.ones(3))
    for node in gm.graph.nodes:
        node.meta.pop("stack_trace", None)
    aten = torch.ops.aten
    ri.mark_nodes(gm, [aten.sin, aten.add, aten.cos, aten.mul], id="all")
    finding = the_finding(explain(gm, torch.ones(3)), "broken")
    assert finding.remedy == ("add `aten.view` and `aten.dot` to the region and 2 regions become 1")


def test_two_operators_that_must_both_be_added(ri, explain):
    def f(x):
        with ri.region("tail"):
            y = x.sin() + 1
            with ri.eager():
                y = y.view(-1)
                z = y * 3
            return z.cos() * 2

    finding = the_finding(explain(f, torch.ones(3, 4)), "broken")
    view, mul = short(line_of(f, "y.view")), short(line_of(f, "y * 3"))
    assert finding.remedy.startswith(
        f"add `aten.view` at {view} and `aten.mul` at {mul} to the region and 2 regions become 1"
    )


def test_what_can_not_be_added_is_to_be_moved_out(ri, explain):
    def f(x, generator):
        with ri.region("tail"):
            y = x.sin() + 1
            with torch.no_grad():
                y = y.cos() + 1
            return y * 2

    def traced(x):
        return f(x, None)

    with preserve_node_meta():
        gm = torch._dynamo.export(traced)(torch.ones(3, requires_grad=True)).graph_module
    finding = the_finding(explain(gm, torch.ones(3, requires_grad=True)), "broken")
    assert finding.remedy.startswith(
        "add what lies between them to the region, or move it out of the marked code: `_set_grad_en"
    )


def test_marks_that_repeat_in_layers_did_not_break(ri, explain):
    model = nn.Sequential(*(nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 4)) for _ in range(3)))
    ri.mark(model, "*.0", name="norm")
    report = explain(model, torch.ones(2, 4))
    assert len(report.regions) == 6
    assert report.findings == []


def test_what_checkpointing_recomputes_did_not_break(ri, explain):
    @ri.region("tail")
    def tail(x):
        return x.sin() * 2 + 1

    def f(x):
        again = torch.utils.checkpoint.checkpoint(lambda y: tail(y) @ y, x, use_reentrant=False)
        return again.sum()

    report = explain(f, torch.ones(4, 4, requires_grad=True))
    assert [region.direction for region in report.regions] == ["forward", "backward", "backward"]
    assert report.findings == []


# --- regions of one cheap op ----------------------------------------------------------------------


def test_regions_of_one_cheap_op(ri, explain):
    @ri.region("add")
    def add(x):
        return (x + 1).view(-1, 3)

    def f(x):
        return add(add(x) @ torch.ones(3, 3))

    finding = the_finding(explain(f, torch.ones(2, 3)), "cheap")
    assert finding.region == "add"
    assert finding.message == (
        "2 regions consist of one cheap op, `aten.add`: there is nothing to fuse it with"
    )
    assert finding.source == line_of(add.__wrapped__, "return")
    assert finding.remedy == "mark what comes before or after it too, or take the mark off"


def test_one_costly_op_is_no_finding(ri, explain):
    @ri.region("softmax")
    def softmax(x):
        return x.softmax(-1)

    @ri.region("matmul")
    def matmul(x):
        return x @ x

    report = explain(lambda x: softmax(matmul(x)), torch.ones(3, 3))
    assert of_kind(report, "cheap") == []


# --- options --------------------------------------------------------------------------------------


def test_one_id_with_two_sets_of_options(ri, explain):
    def f(x):
        with ri.region("a", id="both", options={"max_autotune": True}):
            y = x.sin() + 1
        with ri.region("b", id="both"):
            return y.cos() * 2

    report = explain(f, torch.ones(3))
    finding = the_finding(report, "conflict")
    assert finding.message == (
        "the id 'both' is used with different options: {'max_autotune': True} and {}: compiling "
        "raises ConflictError"
    )
    assert line_of(f, "x.sin()") in finding.source
    assert line_of(f, "y.cos()") in finding.source
    assert finding.remedy == "give both places the same options, or each an id of its own"
    assert report.regions == []
    assert report.graphs[0].nodes == 4


def test_an_unknown_option(ri, explain):
    def f(x):
        with ri.region("a", options={"max_autotun": True}):
            return x.sin() + 1

    finding = the_finding(explain(f, torch.ones(3)), "option")
    assert finding.message == (
        "unknown Inductor option 'max_autotun': compiling raises OptionError"
    )
    assert finding.remedy.startswith("did you mean 'max_autotune'")


@pytest.mark.parametrize("on_error", ["raise", "eager"])
def test_a_graph_without_values(ri, explain, on_error):
    gm = torch.fx.symbolic_trace(lambda x: x.sin() + 1)
    ri.mark_nodes(gm, "sin", name="wave")
    report = explain(gm, region_backend="inductor", on_error=on_error)
    (finding,) = report.findings
    what = "x, an input of the region, carries no fake value"
    assert finding.region == "wave"
    assert short(finding.source).startswith("test_findings.py:")
    assert finding.remedy.startswith("pass example inputs")
    if on_error == "raise":
        assert finding.kind == "missing-value"
        assert finding.message == f"{what}: compiling raises MissingValueError"
    else:
        assert finding.kind == "eager"
        assert finding.message == f"stays eager: {what}"
    assert "0>0" not in str(report)


# --- graph breaks ---------------------------------------------------------------------------------


def broken_inside(ri):
    def f(x):
        with ri.region("broken"):
            y = x.sin()
            torch._dynamo.graph_break()
            return y.cos()

    return f


def test_a_graph_break_inside_a_region(ri, explain):
    first, _ = of_kind(explain(broken_inside(ri), torch.ones(3)), "graph-break")
    assert first.region == "broken"
    assert first.message.startswith(
        "a graph break lies inside a marked region, so Dynamo runs the whole function that holds "
        "the region eagerly; graph breaks so far: Call to `torch._dynamo.graph_break()`"
    )
    assert first.source.startswith(__file__)
    assert first.remedy == "move what breaks out of the region; fullgraph=True shows its line"


def test_a_graph_break_inside_a_region_is_not_explained_by_earlier_ones(ri, explain):
    def other(x):
        print("a break of another kind", end="")
        return x.sin()

    explain(marked_sine(ri), torch.ones(3))
    explain(other, torch.ones(3))

    first, _ = of_kind(explain(broken_inside(ri), torch.ones(3)), "graph-break")
    assert "print" not in first.message


def test_a_graph_break_elsewhere_names_its_line(ri, explain):
    sine = marked_sine(ri)

    def f(x):
        y = sine(x)
        torch._dynamo.graph_break()
        return y.cos()

    finding = the_finding(explain(f, torch.ones(3)), "graph-break")
    assert finding.message.startswith("a graph break splits the captured code in two graphs: Call")
    assert finding.source == line_of(f, "graph_break()")


def test_a_branch_on_a_value_is_said_in_words(ri, explain):
    def f(x):
        x = marked_sine(ri)(x)
        if x.sum() > 0:
            return x.cos()
        return x

    messages = [finding.message for finding in of_kind(explain(f, torch.ones(3)), "graph-break")]
    assert any("Python branches on a value that only a run knows" in each for each in messages)


def test_a_graph_break_comes_with_dynamos_explanation(ri, explain):
    def f(x):
        print(end="")
        return marked_sine(ri)(x)

    (finding, *_) = of_kind(explain(f, torch.ones(3)), "graph-break")
    assert "`print`" in finding.message
    assert "Hint" not in finding.message
    assert "http" not in finding.message


# --- ops that force a fallback --------------------------------------------------------------------


@pytest.fixture
def custom_op():
    with torch.library._scoped_library("ri_findings", "FRAGMENT") as library:
        library.define("twist(Tensor x) -> Tensor")
        library.impl("twist", lambda x: x.flip(0).clone(), "CompositeExplicitAutograd")
        library.impl("twist", torch.empty_like, "Meta")
        yield torch.ops.ri_findings.twist.default


def test_an_operator_that_inductor_has_no_code_for(ri, explain, custom_op):
    def f(x):
        with ri.region("mixed"):
            y = x.sin() + 1
            z = custom_op(y)
            return z * 2

    finding = the_finding(explain(f, torch.ones(3), region_backend="inductor"), "fallback")
    assert finding.region == "mixed"
    assert finding.message == (
        "Inductor has no code of its own for `ri_findings.twist`: it runs as it is, and nothing "
        "fuses across it"
    )
    assert finding.source == line_of(f, "custom_op(y)")
    assert finding.remedy.startswith("keep it out of the region with ri.eager")


def test_an_operator_that_no_region_can_take(ri, explain):
    generator = torch.Generator()

    def f(x):
        with ri.region("noise"):
            return x * torch.rand(3, generator=generator)

    try:
        with preserve_node_meta():
            gm = make_fx(f)(torch.ones(3))
    except NotImplementedError as error:
        pytest.skip(f"this torch captures no generators: {error}")  # 2.11
    finding = the_finding(explain(gm, torch.ones(3)), "fallback")
    assert (
        finding.message == "`aten.rand.generator` takes a Generator, which no compiled region can"
    )
    assert finding.remedy == "it stays eager; leave the Generator out, or move it out of the region"
    assert finding.region == "noise"


def test_a_collective_stays_eager_unless_asked_for(ri, explain):
    gm = torch.fx.symbolic_trace(lambda x: torch.ops._c10d_functional.wait_tensor(x * 2) + 1)
    ri.mark_nodes(gm, lambda node: True, name="step")
    finding = the_finding(explain(gm, torch.ones(3)), "fallback")
    assert finding.message == "`_c10d_functional.wait_tensor` is a collective, and stays eager"
    assert finding.remedy.startswith('collectives="include" puts it into the region')
    assert of_kind(explain(gm, torch.ones(3), collectives="include"), "fallback") == []


# --- regions left eager ---------------------------------------------------------------------------


def test_regions_left_eager_are_counted_by_reason(ri, explain):
    @ri.region("views")
    def views(x):
        return x.view(-1)

    with torch.no_grad():
        report = explain(lambda x: views(views(x).sin()), torch.ones(2, 4))
    (only_views,) = of_kind(report, "eager")
    assert only_views.message == (
        "2 regions stay eager (views): it only makes views of its inputs: there is nothing to "
        "compile"
    )
    assert only_views.remedy == "take the mark off: views cost nothing in eager mode"
    assert only_views.source == line_of(views.__wrapped__, "@ri.region")


def test_a_region_whose_time_ran_out_says_what_gives_it_more(ri, monkeypatch):
    def takes_too_long(*_):
        raise TimeLimitError("it took longer than 2 s")

    monkeypatch.setitem(compile_stage._BACKENDS, "eager", takes_too_long)
    compiled = ri.compile(marked_sine(ri), region_backend="eager")
    more_time = "a longer compile_timeout in its mark, or none, has it compiled"
    with pytest.warns(ri.RegionWarning, match=f"took longer than 2 s.*(?s:.*)way out: {more_time}"):
        compiled(torch.ones(3))
    finding = the_finding(compiled.report, "eager")
    assert finding.region == "sine"
    assert finding.message == (
        "stays eager: Inductor could not compile the region: TimeLimitError: it took longer than 2 s"
    )
    assert finding.remedy == more_time


def test_a_real_compile_names_what_lies_between_the_parts_of_a_broken_mark(ri):
    def f(x):
        with ri.region("tail"):
            y = x.sin() + 1
            with ri.eager():
                y = y.view(-1)
            return y.cos() * 2

    compiled = ri.compile(f, region_backend="eager")
    compiled(torch.ones(3, 4))
    finding = the_finding(compiled.report, "broken")
    assert finding.remedy.endswith(f": `aten.view` at {short(line_of(f, 'y.view'))}")


def test_findings_come_with_a_real_compile_too(ri):
    def f(x):
        with ri.region("add"):
            return x + 1

    compiled = ri.compile(f, region_backend="eager")
    compiled(torch.ones(3))
    assert [finding.kind for finding in compiled.report.findings] == ["cheap"]
    assert "there is nothing to fuse it with" in str(compiled.report)
