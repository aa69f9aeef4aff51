"""Point 8: marks that vanish are compiled, or one warning says which mark and why.

Dynamo and AOTAutograd rewrite some marked nodes into unmarked ones (float inputs, `item()`,
`1/sqrt(size)`), graph breaks keep a region from being captured, and a misspelt key marks nothing.
PyTorch's pass says nothing in all these cases.
"""

from __future__ import annotations

import contextlib
import math
import sys
import warnings

import pytest
import torch
from support.compare import assert_like_eager, assert_same
from support.graphs import capture, mark_nodes, marked
from support.under_test import regions_with
from torch.fx.traceback import annotate, has_preserved_node_meta, preserve_node_meta


@contextlib.contextmanager
def region_warnings():
    """Collects what the library warns about and silences all other warnings."""
    texts: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield texts
    texts += [str(w.message) for w in caught if w.category.__name__ == "RegionWarning"]


def about(warned, name):
    return [text for text in warned if name in text]


def float_input(x, factor):
    with marked():
        y = x.sin() * factor
    return y.cos()


def float_input_alone(x, factor):
    with marked():
        y = x * factor
    return y.cos()


def float_computed_in_the_region(x, factor):
    with marked():
        y = x * (factor / 2 + 1)
    return y.cos()


def one_over_sqrt_of_a_size(x, factor):
    with marked():
        y = x * (1 / math.sqrt(x.shape[-1]))
    return y.cos()


def softmax_scale_of_a_size(x, factor):
    with marked():
        y = (x @ x.t()) * x.shape[-1] ** -0.5
    return y.cos()


FLOATS = [
    float_input,
    float_input_alone,
    float_computed_in_the_region,
    one_over_sqrt_of_a_size,
    softmax_scale_of_a_size,
]
by_name = pytest.mark.parametrize("fn", FLOATS, ids=lambda fn: fn.__name__)


@by_name
def test_marked_arithmetic_with_floats_is_compiled_or_warned_about(under_test, fn):
    with region_warnings() as warned, under_test.watch() as seen:
        compiled = under_test.compile(fn, dynamic=True)
        for rows, factor in ((4, 2.5), (6, 3.5)):
            assert_like_eager(compiled, fn, torch.randn(rows, 8), factor)
    if regions_with(seen, "mul"):
        assert not warned
    else:
        assert len(warned) == 1
        assert "test_08" in warned[0]  # where the user wrote the mark


def test_marked_item_is_compiled_or_warned_about(under_test):
    def fn(x, factor):
        with marked():
            y = x * factor.item()
        return y.cos()

    scalars = torch._dynamo.config.patch(capture_scalar_outputs=True)
    with scalars, region_warnings() as warned, under_test.watch() as seen:
        assert_like_eager(under_test.compile(fn), fn, torch.randn(4), torch.tensor(2.5))
    if regions_with(seen, "mul"):
        assert not warned
    else:
        assert len(warned) == 1
        assert "test_08" in warned[0]


def test_the_warning_names_the_region(under_test, ri):
    def fn(x, factor):
        with ri.region("rescale"):
            y = x * factor.item()
        return y.cos()

    scalars = torch._dynamo.config.patch(capture_scalar_outputs=True)
    with scalars, region_warnings() as warned:
        assert_like_eager(under_test.compile(fn), fn, torch.randn(4), torch.tensor(2.5))
    regions = [r for r in ri.last_report().regions if r.name == "rescale"]
    if not regions:
        assert len(about(warned, "rescale")) == 1


@pytest.mark.inductor
@by_name
def test_marked_arithmetic_with_floats_is_right_under_inductor(under_test, fn):
    with region_warnings():
        compiled = under_test.compile(fn, dynamic=True)
        for rows, factor in ((4, 2.5), (6, 3.5)):
            assert_like_eager(compiled, fn, torch.randn(rows, 8), factor)


# ---- graph breaks -----------------------------------------------------------------------------


def breaks_inside(ri):
    def fn(x):
        y = x.sin()
        with ri.region("broken"):
            y = y * 2
            torch._dynamo.graph_break()
            y = y.cos()
        return y.tanh()

    return fn


def test_graph_break_inside_a_region_warns_under_ri_compile(ri):
    fn = breaks_inside(ri)
    with region_warnings() as warned:
        compiled = ri.compile(fn, options={"region_backend": "eager"})
        assert_like_eager(compiled, fn, torch.randn(4))
    assert len(about(warned, "broken")) == 1
    assert "graph break" in warned[0]


def test_graph_break_is_warned_about_once_for_many_calls(ri):
    fn = breaks_inside(ri)
    with region_warnings() as warned:
        compiled = ri.compile(fn, options={"region_backend": "eager"})
        for _ in range(3):
            compiled(torch.randn(4))
    assert len(warned) == 1


def test_graph_break_inside_a_decorated_function_warns_under_ri_compile(ri):
    @ri.region("broken")
    def layer(x):
        y = x * 2
        torch._dynamo.graph_break()
        return y.cos()

    def fn(x):
        return layer(x.sin()).tanh()

    with region_warnings() as warned:
        compiled = ri.compile(fn, options={"region_backend": "eager"})
        assert_like_eager(compiled, fn, torch.randn(4))
    if not [r for r in ri.last_report().regions if "cos" in str(r.ops)]:
        assert len(about(warned, "broken")) == 1


def test_graph_break_inside_a_region_is_right_under_the_bare_backend(under_test, ri):
    fn = breaks_inside(ri)
    with region_warnings():
        assert_like_eager(under_test.compile(fn, fullgraph=False), fn, torch.randn(4))


def test_graph_break_outside_regions_is_no_reason_for_a_warning(ri):
    def fn(x):
        with ri.region("whole"):
            y = x.sin() * 2
        torch._dynamo.graph_break()
        return y.cos()

    with region_warnings() as warned:
        compiled = ri.compile(fn, options={"region_backend": "eager"})
        assert_like_eager(compiled, fn, torch.randn(4))
    assert not warned


# ---- keys -------------------------------------------------------------------------------------


def warnings_for(under_test, annotation):
    """What is said about a graph of three nodes of which two carry an annotation."""
    x = torch.randn(4)

    def fn(x):
        with annotate(annotation):
            y = x.sin() * 2
        return y.cos()

    with region_warnings() as warned:
        assert_same(under_test.run(capture(fn, x), x), fn(x))
    return warned


@pytest.mark.parametrize(
    "misspelt",
    ["compile_with_inducter", "compile_with_Inductor", "compile-with-inductor", "compile_inductor"],
)
def test_misspelt_mark_gives_one_warning_with_the_likely_spelling(under_test, misspelt):
    warned = warnings_for(under_test, {misspelt: 0})
    assert len(warned) == 1
    assert misspelt in warned[0]
    assert "compile_with_inductor" in warned[0]


@pytest.mark.parametrize(
    ("misspelt", "right", "value"),
    [
        ("inductor_config", "inductor_configs", {"max_autotune": False}),
        ("inductor_option", "inductor_configs", {"max_autotune": False}),
        ("inductor_regions", "inductor_region", 3),
        ("region", "inductor_region", 3),
    ],
)
def test_unknown_key_in_a_mark_gives_one_warning(under_test, misspelt, right, value):
    warned = warnings_for(under_test, {"compile_with_inductor": {misspelt: value}})
    assert len(warned) == 1
    assert misspelt in warned[0]
    if right != "inductor_configs" or misspelt != "inductor_option":
        assert right in warned[0]


@pytest.mark.parametrize("other", [{"stage": 1}, {"ac_region_id": 3}, {"compile": 1}, {}])
def test_other_annotations_are_none_of_our_business(under_test, other):
    assert not warnings_for(under_test, other)


@pytest.mark.parametrize("value", [0, 1, "x", True, {}, (), 2.5])
def test_every_value_marks(under_test, value):
    x = torch.randn(4)
    gm = mark_nodes(capture(lambda x: x.sin().cos(), x), value, "sin")
    with region_warnings() as warned, under_test.watch() as seen:
        under_test.apply(gm, x)
    assert len(regions_with(seen, "sin")) == 1
    assert not warned


@pytest.mark.parametrize("value", [None, False])
def test_none_and_false_mark_too_and_warn_once(under_test, value):
    x = torch.randn(4)
    gm = mark_nodes(capture(lambda x: x.sin().tanh().cos(), x), value, "sin", "tanh")
    with region_warnings() as warned, under_test.watch() as seen:
        under_test.apply(gm, x)
    assert len(regions_with(seen, "sin")) == 1
    assert len(warned) == 1
    assert str(value) in warned[0]


# ---- torch.export -----------------------------------------------------------------------------


class Net(torch.nn.Module):
    def forward(self, x):
        y = x.exp()
        with marked():
            y = y.sin() * 2
        return y.cos()


def test_ri_export_keeps_the_marks(under_test, ri):
    module, x = Net(), torch.randn(4)
    program = ri.export(module, (x,))
    gm = program.module()
    with under_test.watch() as seen:
        result = under_test.apply(gm, x)
    assert len(regions_with(seen, "sin")) == 1
    assert not regions_with(seen, "exp")
    assert_same(result(x), module(x))


def test_ri_export_keeps_marks_made_on_modules(under_test, ri):
    module = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.SiLU(), torch.nn.Linear(4, 4))
    x = torch.randn(2, 4)
    handle = ri.mark(module, "1")
    gm = ri.export(module, (x,)).module()
    handle.remove()
    with under_test.watch() as seen, torch.no_grad():
        result = under_test.apply(gm, x)
        assert_same(result(x), module(x))
    assert len(seen) == 1


def test_strict_export_keeps_the_marks(under_test):
    module, x = Net(), torch.randn(4)
    gm = torch.export.export(module, (x,), strict=True).module()
    with under_test.watch() as seen:
        under_test.apply(gm, x)
    assert len(regions_with(seen, "sin")) == 1


def test_marks_are_harmless_in_plain_export(ri):
    class Marked(torch.nn.Module):
        def forward(self, x):
            with ri.region("inner"):
                return x.sin() * 2

    x = torch.randn(4)
    with region_warnings() as warned:
        program = torch.export.export(Marked(), (x,))
    assert_same(program.module()(x), x.sin() * 2)
    assert len(warned) <= 1
    assert all("regional_inductor.export" in text for text in warned)


# ---- the process-wide switch ------------------------------------------------------------------


@pytest.mark.parametrize("switch", [True, False])
def test_preserve_node_meta_is_not_toggled_for_other_threads(under_test, switch):
    """Another thread may trace with the switch on while this one runs the pass.

    Looked at on every call that the pass makes, which is more than a second thread could see.
    """
    x = torch.randn(4)

    def fn(x):
        with marked():
            y = x.sin() * 2
        return y.cos()

    gm = capture(fn, x)
    under_test.apply(capture(fn, x), x)  # imports and other first-time work
    observed = set()

    def look(frame, event, argument):
        observed.add(has_preserved_node_meta())

    with preserve_node_meta(switch):
        sys.setprofile(look)
        try:
            result = under_test.apply(gm, x)
        finally:
            sys.setprofile(None)
    assert observed == {switch}
    assert_same(result(x) if under_test.against == "ours" else fn(x), fn(x))


def test_pass_within_a_trace_that_preserves_metadata(under_test):
    """Annotations of an outer trace don't leak into what the pass makes."""
    x = torch.randn(4)

    def fn(x):
        with marked():
            y = x.sin() * 2
        return y.cos()

    gm = capture(fn, x)
    outer = marked({"inductor_configs": {"max_fusion_size": 3}})
    with under_test.watch() as seen, preserve_node_meta(), outer:
        result = under_test.apply(gm, x)
    assert len(seen) == 1
    assert seen[0].options.get("max_fusion_size") != 3
    assert all(
        n.meta.get("custom", {}).get("compile_with_inductor", 0) == 0 for n in result.graph.nodes
    )


# --- a mark around a call of compiled code ---------------------------------------------------------


class _Block(torch.nn.Module):
    def forward(self, x):
        return (x.sin() * 2).exp()


def test_a_mark_around_compiled_blocks_marks_forward_and_backward(ri):
    """AOTAutograd takes the annotation into the backward graph, Dynamo not into the forward one."""
    blocks = [_Block(), _Block()]
    for block in blocks:
        block.compile(backend="regional_inductor", options={"region_backend": "eager"})
    h = x = torch.ones(3, requires_grad=True)
    for block in blocks:
        with annotate({"compile_with_inductor": {"name": "block"}}):
            h = block(h)
    report = ri.last_report()
    h.sum().backward()
    assert {(r.name, r.direction) for r in report.regions} == {
        ("block", "forward"),
        ("block", "backward"),
    }
    assert [g.eager for g in report.graphs] == [0, 0]
    expected = torch.autograd.grad(_Block()(_Block()(x)).sum(), [x])
    assert torch.equal(x.grad, expected[0])


def test_marks_of_compiled_code_win_over_one_around_its_call(ri):
    @ri.region("inner")
    def inner(x):
        return x.exp() * 2

    def f(x):
        with ri.eager():
            y = x.sin()
        return inner(y).cos()

    compiled = ri.compile(f, region_backend="eager")
    with annotate({"compile_with_inductor": {"name": "around"}}):
        compiled(torch.ones(3))
    (region,) = compiled.report.regions  # equal options and connected: one region, without sin
    assert region.name == "inner+around"
    assert region.ops == ("aten.exp.default", "aten.mul.Tensor", "aten.cos.default")
