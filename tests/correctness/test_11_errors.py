"""Point 11: one message an error, with the key, the region, the user's line and the way out."""

from __future__ import annotations

import pytest
import torch
from support.compare import assert_like_eager, assert_same
from support.graphs import calls, capture, mark_nodes, marked, with_options


def graph(mark, **kwargs):
    """x.sin() * 2 under a mark, then cos."""
    x = torch.randn(4)
    gm = capture(lambda x: (x.sin() * 2).cos(), x, **kwargs)
    return mark_nodes(gm, mark, "sin", "mul")


def message(kind, act):
    """The text of the error of a kind that acting gives, the cause behind Dynamo's own wrapper."""
    with pytest.raises(Exception) as caught:  # noqa: PT011
        act()
    error = caught.value
    while not isinstance(error, kind) and (error.__cause__ or error.__context__):
        error = error.__cause__ or error.__context__
    assert isinstance(error, kind), repr(caught.value)
    return str(error)


def assert_says(text, *parts):
    for part in parts:
        assert part in text, f"{part!r} is missing in:\n{text}"


# ---- options ----------------------------------------------------------------------------------


def test_unknown_option_names_key_region_line_and_close_matches(under_test, ri):
    def fn(x):
        with ri.region("swiglu", options={"max_fusion_sise": 7}):
            return x.sin() * 2  # the user's line

    compiled = under_test.compile(fn)
    text = message(ri.OptionError, lambda: compiled(torch.randn(4)))
    assert_says(text, "max_fusion_sise", "region: swiglu", "test_11_errors.py:", "way out:")
    assert_says(text, "max_fusion_size")


def test_unknown_option_of_the_raw_mark(under_test, ri):
    def fn(x):
        with with_options(max_autotun=True):
            return x.sin() * 2

    compiled = under_test.compile(fn)
    text = message(ri.OptionError, lambda: compiled(torch.randn(4)))
    assert_says(text, "max_autotun", "test_11_errors.py:", "max_autotune", "way out:")


def test_unknown_option_is_a_value_error(under_test):
    """As in PyTorch's pass."""
    with pytest.raises(ValueError, match="no_such_option"):
        under_test.apply(graph({"inductor_configs": {"no_such_option": 1}}))


def test_unknown_dotted_option(under_test):
    with pytest.raises(ValueError, match=r"triton\.cudagraf"):
        under_test.apply(graph({"inductor_configs": {"triton.cudagraf": True}}))


def test_module_of_options_is_no_option(under_test, ri):
    """`triton` is an attribute of Inductor's config, and nothing that can be set."""
    with pytest.raises(ri.OptionError, match="triton"):
        under_test.apply(graph({"inductor_configs": {"triton": True}}))


def test_function_of_the_config_module_is_no_option(under_test, ri):
    with pytest.raises(ri.OptionError, match="get_config_copy"):
        under_test.apply(graph({"inductor_configs": {"get_config_copy": 1}}))


@pytest.mark.parametrize(
    ("key", "value"),
    [("max_fusion_size", "many"), ("epilogue_fusion", "yes"), ("max_fusion_size", None)],
)
def test_value_of_the_wrong_type(under_test, ri, key, value):
    gm = graph({"inductor_configs": {key: value}, "name": "swiglu"})
    text = message(ri.OptionError, lambda: under_test.apply(gm))
    assert_says(text, key, repr(value), "region: swiglu", "way out:")


@pytest.mark.parametrize("configs", [["max_autotune"], "max_autotune", True, 7])
def test_config_that_is_no_dict(under_test, ri, configs):
    text = message(ri.RegionError, lambda: under_test.apply(graph({"inductor_configs": configs})))
    assert_says(text, repr(configs), "dict", "way out:")


def test_key_of_an_option_that_is_no_string(under_test, ri):
    text = message(ri.RegionError, lambda: under_test.apply(graph({"inductor_configs": {3: True}})))
    assert_says(text, "3", "way out:")


def test_unknown_option_of_the_backend(under_test, ri):
    compiled = under_test.compile(lambda x: x.sin(), no_such_option=1)
    assert_says(message(ri.OptionError, lambda: compiled(torch.randn(4))), "no_such_option")


def test_unknown_option_of_the_pass(under_test, ri):
    with pytest.raises(ri.OptionError, match="mergee"):
        ri.regional_inductor(graph(0), mergee="all")


@pytest.mark.parametrize("option", ["merge", "on_error", "numerics", "collectives"])
def test_value_that_is_no_choice_lists_the_choices(under_test, ri, option):
    text = message(ri.OptionError, lambda: ri.regional_inductor(graph(0), **{option: "sometimes"}))
    assert_says(text, option, "'sometimes'", "way out:")


def test_wrong_option_is_an_error_under_on_error_eager_too(under_test, ri):
    """That a region can stay eager is for failures of the compiler, not for typing errors."""
    gm = graph({"inductor_configs": {"no_such_option": 1}})
    with pytest.raises(ri.OptionError, match="no_such_option"):
        under_test.apply(gm, on_error="eager")


# ---- ids --------------------------------------------------------------------------------------


@pytest.mark.parametrize("region", [[1], {"a": 1}, {1}])
def test_unhashable_id(under_test, ri, region):
    text = message(ri.MarkError, lambda: under_test.apply(graph({"inductor_region": region})))
    assert_says(text, repr(region), "hash", "way out:")


def test_unhashable_id_names_the_users_line(under_test, ri):
    def fn(x):
        with marked({"inductor_region": [1]}):
            return x.sin() * 2

    compiled = under_test.compile(fn)
    text = message(ri.MarkError, lambda: compiled(torch.randn(4)))
    assert_says(text, "test_11_errors.py:", "way out:")


def test_conflicting_options_of_one_id_name_both(under_test, ri):
    def fn(x):
        with ri.region("q", id="qk", options={"max_fusion_size": 7}):
            y = x.sin()
        with ri.region("k", id="qk", options={"max_fusion_size": 9}):
            return y.tanh()

    compiled = under_test.compile(fn)
    text = message(ri.ConflictError, lambda: compiled(torch.randn(4)))
    assert_says(text, "qk", "max_fusion_size", "test_11_errors.py:", "way out:")


# ---- missing values ---------------------------------------------------------------------------


def without_values(gm):
    for node in gm.graph.nodes:
        node.meta.pop("val", None)
        node.meta.pop("tensor_meta", None)
    return gm


def test_missing_fake_values_without_example_inputs(under_test, ri):
    gm = without_values(graph({"name": "swiglu"}))
    text = message(ri.MissingValueError, lambda: under_test.apply(gm))
    assert_says(text, "swiglu", "x_1", "way out:")


@pytest.mark.inductor
def test_missing_fake_values_without_example_inputs_before_inductor(under_test, ri):
    gm = without_values(graph({"name": "swiglu"}))
    assert_says(message(ri.MissingValueError, lambda: under_test.apply(gm)), "way out:")


# ---- a region that fails ----------------------------------------------------------------------


@pytest.fixture
def broken_inductor(monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("no compiler today")

    monkeypatch.setattr(torch._inductor, "standalone_compile", fail)


@pytest.mark.inductor
def test_failing_region_is_one_error_with_its_cause(under_test, ri, broken_inductor):
    def fn(x):
        with ri.region("swiglu"):
            return x.sin() * 2

    compiled = under_test.compile(fn, on_error="raise")
    text = message(ri.RegionCompileError, lambda: compiled(torch.randn(4)))
    assert_says(text, "region: swiglu", "test_11_errors.py:", "way out:", "no compiler today")


@pytest.mark.inductor
def test_cause_is_chained(under_test, ri, broken_inductor):
    with pytest.raises(ri.RegionCompileError) as caught:
        under_test.apply(graph({"name": "swiglu"}))
    assert "no compiler today" in str(caught.value.__cause__)


@pytest.mark.inductor
def test_failing_region_stays_eager_with_one_warning_where_asked_for(
    under_test, ri, broken_inductor
):
    def fn(x):
        with ri.region("swiglu"):
            y = x.sin() * 2
        return y.cos()

    compiled = under_test.compile(fn, on_error="eager")
    with pytest.warns(ri.RegionWarning) as caught:
        assert_like_eager(compiled, fn, torch.randn(4))
    ours = [str(w.message) for w in caught if w.category is ri.RegionWarning]
    assert len(ours) == 1
    assert_says(ours[0], "swiglu", "no compiler today")
    (region,) = ri.last_report().regions
    assert region.status == "eager"
    assert "no compiler today" in region.reason


@pytest.mark.inductor
def test_one_failing_region_leaves_the_others_compiled(under_test, ri, monkeypatch):
    original = torch._inductor.standalone_compile

    def fail_on_tanh(gm, *args, **kwargs):
        if any("tanh" in str(n.target) for n in gm.graph.nodes):
            raise RuntimeError("no tanh today")
        return original(gm, *args, **kwargs)

    monkeypatch.setattr(torch._inductor, "standalone_compile", fail_on_tanh)

    def fn(x):
        with ri.region("good"):
            y = x.sin() * 2
        y = y.cos()
        with ri.region("bad"):
            return y.tanh() + 1

    compiled = under_test.compile(fn, on_error="eager")
    with pytest.warns(ri.RegionWarning, match="bad"):
        assert_like_eager(compiled, fn, torch.randn(4))
    status = {region.name: region.status for region in ri.last_report().regions}
    assert status["bad"] == "eager"
    assert status["good"] in ("compiled", "shared", "memory")


# ---- the caller's graph -----------------------------------------------------------------------


def everything(gm):
    """What a caller could notice about a graph module."""
    code = gm.graph.python_code("self").src
    metas = [{k: v for k, v in n.meta.items() if k != "val"} for n in gm.graph.nodes]
    codegen = type(gm.graph._codegen)
    names = [n for n, _ in gm.named_modules()], [n for n, _ in gm.named_parameters()]
    return code, gm.code, metas, codegen, names, [n.name for n in gm.graph.nodes]


@pytest.mark.inductor
def test_callers_graph_is_unchanged_when_the_pass_fails(under_test, broken_inductor):
    """The second of two regions fails; the first was compiled already, or not."""
    x = torch.randn(4)
    gm = capture(lambda x: x.sin().cos().tanh() + 1, x)
    mark_nodes(gm, {"inductor_region": 1}, "sin")
    mark_nodes(gm, {"inductor_region": 2}, "tanh")
    before, nodes = everything(gm), list(gm.graph.nodes)
    with pytest.raises(RuntimeError, match="no compiler today"):
        under_test.apply(gm, x)
    assert everything(gm) == before
    assert list(gm.graph.nodes) == nodes
    assert_same(gm(x), x.sin().cos().tanh() + 1)


@pytest.mark.inductor
def test_bodies_of_hops_are_unchanged_when_the_pass_fails(under_test, monkeypatch):
    def fail_on_tanh(gm, *args, **kwargs):
        raise RuntimeError("no compiler today")

    def fn(x):
        def positive(x):
            with marked():
                return x.sin() * 2

        y = torch.cond(x.sum() > 0, positive, lambda x: x.cos(), (x,))
        with marked():
            return y.tanh() + 1

    x = torch.rand(4)
    gm = capture(fn, x)
    bodies = {
        n: everything(m) for n, m in gm.named_modules() if isinstance(m, torch.fx.GraphModule)
    }
    monkeypatch.setattr(torch._inductor, "standalone_compile", fail_on_tanh)
    with pytest.raises(RuntimeError, match="no compiler today"):
        under_test.apply(gm, x)
    after = {n: everything(m) for n, m in gm.named_modules() if isinstance(m, torch.fx.GraphModule)}
    assert after == bodies
    assert_same(gm(x), fn(x))


def test_callers_graph_is_unchanged_after_a_wrong_option(under_test):
    gm = graph({"inductor_configs": {"no_such_option": 1}})
    before = everything(gm)
    with pytest.raises(ValueError, match="no_such_option"):
        under_test.apply(gm)
    assert everything(gm) == before
    assert len(calls(gm)) == 3


def test_callers_graph_is_unchanged_after_missing_values(under_test, ri):
    gm = without_values(graph(0))
    before = everything(gm)
    with pytest.raises(ri.MissingValueError):
        under_test.apply(gm)
    assert everything(gm) == before


# ---- ri.region in eager code ------------------------------------------------------------------


def test_region_in_eager_code_with_an_unknown_option_raises_at_once(ri):
    pytest.importorskip("torch._inductor.config")  # at once only where Inductor is imported

    with (
        pytest.raises(ri.OptionError, match="no_such_option"),
        ri.region("swiglu", options={"no_such_option": 1}),
    ):
        pass


def test_errors_are_runtime_errors(ri):
    assert issubclass(ri.RegionError, RuntimeError)
    for kind in (ri.OptionError, ri.ConflictError, ri.MarkError):
        assert issubclass(kind, (ri.RegionError, ValueError))
