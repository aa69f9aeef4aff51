"""`region` and `eager` in code, and `mark_nodes` on a captured graph."""

from __future__ import annotations

import functools
import inspect
import io
import pickle
import threading

import pytest
import torch
import torch._inductor.config
import torch.utils.checkpoint
from torch import nn
from torch._dynamo.backends.common import aot_autograd
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.traceback import preserve_node_meta

import regional_inductor as ri
from regional_inductor import scope
from regional_inductor._torch import annotate as annotate_module

KEY = "compile_with_inductor"


class Capture:
    """A backend that keeps the graphs and runs them as they are."""

    def __init__(self):
        self.graphs = []

    def __call__(self, gm, example_inputs):
        self.graphs.append(gm)
        return gm.forward

    def marks(self, index=-1):
        return marks_of(self.graphs[index])


def marks_of(gm):
    """(what a node calls, its mark) for each call in a graph and in the bodies it holds."""
    found = []
    for module in gm.modules():
        if isinstance(module, torch.fx.GraphModule):
            for node in module.graph.nodes:
                if node.op in ("call_function", "call_method"):
                    mark = (node.meta.get("custom") or {}).get(KEY)
                    found.append((getattr(node.target, "__name__", node.target), mark))
    return found


def trace(function, *args, **kwargs):
    capture = Capture()
    compiled = torch.compile(function, backend=capture, fullgraph=True, **kwargs)
    result = compiled(*args)
    assert torch.equal(result, function(*args))
    return capture.marks()


def names(marks):
    return [(target, mark and mark.get("name")) for target, mark in marks]


def entries(marks, target):
    return [mark["entry"] for found, mark in marks if found == target]


@ri.region
def bare(x):
    return x.sin() + 1


@ri.region("named", options={"max_autotune": True}, id="joined", numerics="eager")
def called(x):
    return x.cos()


class Body(nn.Module):
    def forward(self, x):
        return x.tan()


# --- the decorator and the context manager, under Dynamo ------------------------------------------


def test_a_bare_decorator_marks_what_its_calls_produce_and_nothing_else():
    marks = trace(lambda x: bare(x.exp()) * 2, torch.ones(3))
    assert names(marks) == [("exp", None), ("sin", "bare"), ("add", "bare"), ("mul", None)]
    assert marks[1][1]["scope"] == "code:bare"
    assert marks[1][1]["source"].startswith(f"{__file__}:")


def test_a_called_decorator_carries_its_arguments():
    ((_, mark),) = trace(lambda x: called(x), torch.ones(3))
    assert {key: mark[key] for key in mark if key not in ("entry", "source")} == {
        "name": "named",
        "inductor_configs": {"max_autotune": True},
        "inductor_region": "joined",
        "numerics": "eager",
        "scope": "code:called",
    }


def test_a_context_manager_works_inside_traced_code_with_all_its_arguments():
    def function(x):
        with ri.region(
            "rope", options={"max_autotune": True}, id=1, compile_timeout=5.0, collectives="include"
        ):
            x = x * 2
        return x - 1

    (_, mark), (_, unmarked) = trace(function, torch.ones(3))
    del mark["entry"]
    assert mark == {
        "name": "rope",
        "inductor_configs": {"max_autotune": True},
        "inductor_region": 1,
        "compile_timeout": 5.0,
        "collectives": "include",
    }
    assert unmarked is None


def test_decorators_can_be_applied_inside_traced_code():
    def function(x):
        @ri.region
        def first(y):
            return y.sin()

        @ri.region("second")
        def second(y):
            return y.cos()

        return second(first(x))

    marks = trace(function, torch.ones(3))
    assert [mark["name"].rpartition(".")[2] for _, mark in marks] == ["first", "second"]


def test_the_innermost_mark_wins_and_the_outer_one_returns():
    def function(x):
        with ri.region("outer"):
            x = x.sin()
            with ri.region("inner"):
                x = x.cos()
            return x.tan()

    assert names(trace(function, torch.ones(3))) == [
        ("sin", "outer"),
        ("cos", "inner"),
        ("tan", "outer"),
    ]


def test_eager_keeps_code_out_in_all_three_forms():
    @ri.eager
    def one(x):
        return x.sin()

    @ri.eager()
    def two(x):
        return x.cos()

    def function(x):
        with ri.region("outer"):
            x = two(one(x))
            with ri.eager():
                x = x.tan()
            return x.exp()

    marks = trace(function, torch.ones(3))
    assert [bool(mark.get("eager")) for _, mark in marks] == [True, True, True, False]
    assert all("name" not in mark for _, mark in marks[:3])


def test_a_region_inside_eager_is_a_region_again():
    @ri.eager
    def function(x):
        return called(x.sin())

    (_, outer), (_, inner) = trace(function, torch.ones(3))
    assert outer["eager"]
    assert "eager" not in inner
    assert inner["name"] == "named"


def test_a_marked_class_marks_the_calls_of_its_modules():
    @ri.region("block")
    class Block(nn.Module):
        def forward(self, x):
            return x.tan()

    marks = trace(Block(), torch.ones(3))
    assert names(marks) == [("tan", "block")]
    assert marks[0][1]["scope"] == f"module:{Block.__qualname__}"


def test_methods_of_every_kind_can_be_marked():
    class Some:
        @ri.region
        def method(self, x):
            return x.sin()

        @ri.region
        @staticmethod
        def above_static(x):
            return x.cos()

        @staticmethod
        @ri.region
        def below_static(x):
            return x.tan()

        @ri.region
        @classmethod
        def above_class(cls, x):
            return x.exp()

        @classmethod
        @ri.region
        def below_class(cls, x):
            return x.log()

    some = Some()

    def function(x):
        x = Some.below_static(some.above_static(some.method(x)))
        return some.below_class(Some.above_class(x))

    marked = [mark["name"].rpartition(".")[2] for _, mark in trace(function, torch.ones(3))]
    assert marked == ["method", "above_static", "below_static", "above_class", "below_class"]


# --- entries --------------------------------------------------------------------------------------


def test_each_call_and_each_with_block_is_an_entry_of_its_own():
    def function(x):
        x = bare(bare(x))
        for _ in range(2):
            with ri.region("loop"):
                x = x.cos()
        return x

    marks = trace(function, torch.ones(3))
    first, second = entries(marks, "sin")
    assert entries(marks, "add") == [first, second]
    assert len({first, second, *entries(marks, "cos")}) == 4


def test_entries_are_fresh_under_dynamic_shapes_and_in_each_trace():
    capture = Capture()
    compiled = torch.compile(lambda x: bare(bare(x)), backend=capture, fullgraph=True)
    for size in (3, 4, 5):
        compiled(torch.ones(size))
    drawn = [entry for index in range(2) for entry in entries(capture.marks(index), "sin")]
    assert len(capture.graphs) == 2  # static, then dynamic for every other size
    assert len(set(drawn)) == 4


@pytest.mark.parametrize("dynamic", [False, True])
def test_drawing_an_entry_never_makes_a_call_recompile(dynamic):
    capture = Capture()
    compiled = torch.compile(lambda x: bare(x), backend=capture, fullgraph=True, dynamic=dynamic)
    for _ in range(5):
        bare(torch.ones(3))  # eager calls in between draw numbers too, or might
        compiled(torch.ones(3))
    assert len(capture.graphs) == 1


def test_drawing_entries_leaves_no_names_in_the_users_module():
    before = set(globals())
    trace(lambda x: bare(called(x)), torch.ones(3))
    left = [name for name in set(globals()) - before if "entry" in name]
    assert left == []


def test_what_marks_a_constant_function_is_what_torch_itself_sets():
    def function():
        return 1

    torch.compiler.assume_constant_result(function)
    assert vars(function) == vars(annotate_module.regional_inductor_entry)


def test_entries_survive_aot_autograd_forward_and_backward():
    forward, backward = Capture(), Capture()
    backend = aot_autograd(fw_compiler=boxed(forward), bw_compiler=boxed(backward))
    compiled = torch.compile(lambda x: bare(bare(x)), backend=backend, fullgraph=True)
    compiled(torch.ones(3, requires_grad=True)).sum().backward()
    first, second = entries(forward.marks(), "sin.default")
    assert first != second
    assert set(entries(backward.marks(), "cos.default")) == {first, second}


def test_a_body_of_checkpoint_keeps_its_marks():
    def function(x):
        return torch.utils.checkpoint.checkpoint(bare, x, use_reentrant=False)

    marks = trace(function, torch.ones(3, requires_grad=True))
    assert ("sin", "bare") in names(marks)


def test_bodies_of_cond_keep_their_marks():
    def function(x):
        return torch.cond(x.sum() > 0, lambda y: bare(y), lambda y: y.cos(), (x,))

    marks = trace(function, torch.ones(3))
    assert ("sin", "bare") in names(marks)
    assert ("cos", None) in names(marks)


def test_marks_do_not_keep_nested_regions_from_sharing_a_body():
    @torch.compiler.nested_compile_region
    def block(x):
        return bare(x) * 2

    def function(x):
        for _ in range(4):
            x = block(x)
        return x

    capture = Capture()
    torch.compile(function, backend=capture, fullgraph=True)(torch.ones(3))
    bodies = [m for m in capture.graphs[0].modules() if isinstance(m, torch.fx.GraphModule)]
    assert len(bodies) == 2  # the outer graph and one body for four calls
    assert names(marks_of(bodies[1]))[:2] == [("sin", "bare"), ("add", "bare")]


def boxed(capture):
    from functorch.compile import make_boxed_func

    return lambda gm, example_inputs: make_boxed_func(capture(gm, example_inputs))


# --- other captures -------------------------------------------------------------------------------


def test_make_fx_records_marks_where_node_meta_is_preserved():
    def function(x):
        with ri.region("with"):
            x = x.cos()
        return bare(bare(x)) * 2

    with preserve_node_meta():
        marks = marks_of(make_fx(function)(torch.ones(3)))
    assert [name for _, name in names(marks)] == ["with", *["bare"] * 4, None]
    first, second = entries(marks, "sin.default")
    assert first != second


@pytest.fixture
def no_capture_was_seen(monkeypatch):
    monkeypatch.setattr(scope, "_LOST_CAPTURES", set())


@pytest.mark.usefixtures("no_capture_was_seen")
def test_a_make_fx_that_would_lose_marks_warns_once():
    with pytest.warns(ri.RegionWarning) as caught:
        make_fx(lambda x: called(bare(x)))(torch.ones(3))
    (warning,) = caught
    lines = str(warning.message).splitlines()
    assert (
        lines[0] == "this run of make_fx does not record marks, so nothing in it will be a region"
    )
    assert lines[1] == "  region: bare"
    assert lines[3] == "  way out: capture inside `with torch.fx.traceback.preserve_node_meta():`"
    make_fx(lambda x: bare(x))(torch.ones(3))


@pytest.mark.usefixtures("no_capture_was_seen")
def test_an_export_that_would_lose_marks_warns_once():
    class Model(nn.Module):
        def forward(self, x):
            return bare(x)

    with pytest.warns(ri.RegionWarning, match="this run of torch.export does not record marks"):
        torch.export.export(Model(), (torch.ones(3),))


def test_strict_export_keeps_marks_through_saving_and_loading():
    class Model(nn.Module):
        def forward(self, x):
            return called(bare(x))

    program = torch.export.export(Model(), (torch.ones(3),), strict=True)
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file)
    assert marks_of(loaded.graph_module) == marks_of(program.graph_module)
    assert [name for _, name in names(marks_of(loaded.graph_module))] == ["bare", "bare", "named"]


# --- plain eager code -----------------------------------------------------------------------------


def test_marked_code_runs_the_same_eagerly():
    x = torch.ones(3)
    with ri.region("r"), ri.eager():
        assert torch.equal(bare(x), x.sin() + 1)


def test_eager_code_leaves_nothing_behind_in_torchs_annotations():
    with ri.region("outer"):
        bare(torch.ones(3))
        assert "custom" not in torch.fx.traceback.current_meta


def test_one_region_object_can_be_entered_again_nested_and_from_two_threads():
    region = ri.region("again")
    seen = []

    def other_thread():
        with region:
            seen.append(True)

    with region, region:
        thread = threading.Thread(target=other_thread)
        thread.start()
        thread.join()
    with region:
        pass
    assert seen == [True]


def test_one_region_object_draws_an_entry_each_time_it_is_entered():
    region = ri.region("again")

    def function(x):
        with region:
            x = x.sin()
        with region:
            return x.sin()

    with preserve_node_meta():
        marks = marks_of(make_fx(function)(torch.ones(3)))
    first, second = entries(marks, "sin.default")
    assert first != second


def test_an_exception_leaves_the_region():
    region = ri.region("r")
    with preserve_node_meta():
        with pytest.raises(KeyError), region:
            raise KeyError
        assert "custom" not in torch.fx.traceback.current_meta


def test_a_marked_function_keeps_its_name_signature_and_pickles():
    assert bare.__name__ == "bare"
    assert str(inspect.signature(bare)) == "(x)"
    assert pickle.loads(pickle.dumps(bare)) is bare


def test_changing_the_options_dict_later_changes_no_mark():
    options = {"max_autotune": True}
    region = ri.region(options=options)
    options["max_autotune"] = False
    ((_, mark),) = trace(region(torch.sin), torch.ones(3))
    assert mark["inductor_configs"] == {"max_autotune": True}


def test_options_may_hold_objects_that_dynamo_knows_nothing_of():
    class Pass:
        def __call__(self, graph):
            pass

    held = Pass()

    @ri.region("f", options={"post_grad_custom_pre_pass": held}, id=object())
    def function(x):
        return x.sin()

    ((_, mark),) = trace(function, torch.ones(3))
    from regional_inductor.options import parse_mark

    assert dict(parse_mark(mark).options)["post_grad_custom_pre_pass"] is held


# --- mistakes -------------------------------------------------------------------------------------


def test_an_unknown_option_is_refused_at_once_with_the_line_that_has_it():
    with pytest.raises(ri.OptionError) as caught:
        ri.region("mlp", options={"max_autotun": True})
    line = caught.traceback[0].lineno + 1
    assert str(caught.value) == (
        "unknown Inductor option 'max_autotun'\n"
        "  region: mlp\n"
        f"  marked at: {__file__}:{line}\n"
        "  way out: did you mean 'max_autotune' or 'max_autotune_gemm' or 'max_autotune_pointwise'?"
    )


def test_an_id_that_cannot_be_hashed_is_refused_at_once():
    with pytest.raises(ri.MarkError, match="must be hashable"):
        ri.region("mlp", id=[])


def test_a_mistake_inside_traced_code_is_left_for_the_backend_to_find():
    def function(x):
        with ri.region("mlp", options={"max_autotun": True}):
            return x.sin()

    ((_, mark),) = trace_without_comparing(function, torch.ones(3))
    assert mark["inductor_configs"] == {"max_autotun": True}


def trace_without_comparing(function, *args):
    capture = Capture()
    torch.compile(function, backend=capture, fullgraph=True)(*args)
    return capture.marks()


def generator(x):
    yield x


async def coroutine(x):
    return x


async def async_generator(x):
    yield x


@pytest.mark.parametrize(
    ("function", "kind"),
    [
        (generator, "a generator function"),
        (coroutine, "a coroutine function"),
        (async_generator, "an asynchronous generator function"),
    ],
)
@pytest.mark.parametrize("decorator", [ri.region, ri.region("named"), ri.eager, ri.eager()])
def test_functions_whose_body_runs_after_the_call_are_refused(function, kind, decorator):
    with pytest.raises(ri.MarkError) as caught:
        decorator(function)
    assert str(caught.value).startswith(
        f"{function.__name__} is {kind}, whose body runs after its call has returned\n  marked at: "
    )
    assert str(caught.value).endswith(
        "  way out: mark the functions that it calls, or use `with region(...):` inside it"
    )


@pytest.mark.parametrize(
    ("thing", "text"),
    [
        (nn.ReLU(), "mark it in place with regional_inductor.mark(module)"),
        (int, "class int can't be marked, it is no torch.nn.Module"),
        (property(len), "decorate the function itself, below any other decorator"),
    ],
)
def test_what_is_no_function_is_refused(thing, text):
    with pytest.raises(ri.MarkError) as caught:
        ri.region(thing)
    assert text in str(caught.value)


def test_a_partial_can_be_marked_and_takes_the_name_of_its_function():
    add = functools.partial(torch.add, torch.ones(3))
    assert torch.equal(ri.region(add)(torch.ones(3)), torch.full((3,), 2.0))


def test_a_name_that_is_no_string_is_refused():
    with pytest.raises(ri.MarkError, match="must be a string, not 3"):
        ri.region(3)


# --- mark_nodes -----------------------------------------------------------------------------------

aten = torch.ops.aten


def two_sines(x):
    return (x.sin() + x.sin()).relu()


@pytest.fixture
def graph():
    return make_fx(two_sines)(torch.ones(3))


@pytest.mark.parametrize(
    "predicate",
    [
        aten.sin.default,
        aten.sin,
        [aten.sin.default],
        {aten.sin},
        lambda node: node.target is aten.sin.default,
    ],
)
def test_nodes_are_marked_by_operator_packet_list_or_predicate(graph, predicate):
    handle = ri.mark_nodes(graph, predicate, name="sines", options={"max_autotune": True}, id=1)
    assert handle.nodes == 2
    marks = marks_of(graph)
    assert names(marks) == [
        ("sin.default", "sines"),
        ("sin.default", "sines"),
        ("add.Tensor", None),
        ("relu.default", None),
    ]
    assert marks[0][1]["inductor_configs"] == {"max_autotune": True}
    assert marks[0][1]["inductor_region"] == 1
    assert "entry" not in marks[0][1]  # repetitions of an operator are not one region


def test_functions_and_methods_of_dynamos_graphs_can_be_named():
    capture = Capture()
    torch.compile(lambda x: nn.functional.silu(x).sin(), backend=capture)(torch.ones(3))
    gm = capture.graphs[0]
    assert ri.mark_nodes(gm, [nn.functional.silu, "sin"]).nodes == 2


def test_a_higher_order_operator_and_the_nodes_of_its_bodies_can_be_marked():
    def function(x):
        return torch.cond(x.sum() > 0, lambda y: y.sin(), lambda y: y.cos(), (x,))

    gm = make_fx(function, tracing_mode="fake")(torch.ones(3))
    assert ri.mark_nodes(gm, torch.ops.higher_order.cond).nodes == 1
    assert ri.mark_nodes(gm, aten.sin).nodes == 1


def test_a_shared_custom_dict_is_not_changed_for_other_nodes(graph):
    shared = {"stage": 1}
    for node in graph.graph.nodes:
        node.meta["custom"] = shared
    ri.mark_nodes(graph, aten.relu)
    assert shared == {"stage": 1}
    (relu,) = graph.graph.find_nodes(op="call_function", target=aten.relu.default)
    assert relu.meta["custom"]["stage"] == 1
    assert KEY in relu.meta["custom"]


def test_removing_gives_nodes_their_former_marks_back(graph):
    before = [dict(node.meta) for node in graph.graph.nodes]
    first = ri.mark_nodes(graph, aten.sin, name="first")
    with ri.mark_nodes(graph, [aten.sin, aten.relu], name="second"):
        assert [name for _, name in names(marks_of(graph))] == ["second", "second", None, "second"]
    assert [name for _, name in names(marks_of(graph))] == ["first", "first", None, None]
    first.remove()
    first.remove()
    assert [dict(node.meta) for node in graph.graph.nodes] == before


def test_removing_leaves_later_marks_alone(graph):
    first = ri.mark_nodes(graph, aten.sin, name="first")
    ri.mark_nodes(graph, aten.sin, name="second")
    first.remove()
    assert names(marks_of(graph))[0] == ("sin.default", "second")


def test_an_operator_that_the_graph_lacks_is_refused_with_near_ones_and_marks_nothing(graph):
    with pytest.raises(ri.MarkError) as caught:
        ri.mark_nodes(graph, [aten.relu, aten.sinh])
    message = str(caught.value)
    assert message.startswith(f"no node of the graph calls aten.sinh\n  marked at: {__file__}:")
    assert message.endswith("\n  way out: did you mean 'aten.sin.default'?")
    assert all(mark is None for _, mark in marks_of(graph))


@pytest.mark.parametrize(
    ("wanted", "way_out"),
    [
        ("silu", "a string names a method; pass the function torch.nn.functional.silu"),
        (torch.cos, "the graph calls it as a method: pass 'cos'"),
    ],
)
def test_a_function_and_a_method_of_one_name_are_told_apart(wanted, way_out):
    graph = torch.fx.symbolic_trace(lambda x: torch.nn.functional.silu(x).cos())
    with pytest.raises(ri.MarkError) as caught:
        ri.mark_nodes(graph, wanted)
    assert str(caught.value).endswith(f"way out: {way_out}")


def test_a_predicate_that_matches_nothing_says_what_the_graph_calls(graph):
    with pytest.raises(ri.MarkError) as caught:
        ri.mark_nodes(graph, lambda node: False)
    assert "<lambda> matches no node\n" in str(caught.value)
    assert str(caught.value).endswith(
        "way out: the graph calls aten.add.Tensor, aten.relu.default, aten.sin.default"
    )


def test_marking_no_operator_at_all_is_refused(graph):
    with pytest.raises(ri.MarkError, match="no operator was given to mark"):
        ri.mark_nodes(graph, [])


def test_a_wrong_option_marks_no_node(graph):
    with pytest.raises(ri.OptionError, match="unknown Inductor option 'nope'"):
        ri.mark_nodes(graph, aten.sin, options={"nope": 1})
    assert all(mark is None for _, mark in marks_of(graph))
