"""partition: which nodes form which region, and where each stands."""

from __future__ import annotations

import re

import torch
from expecttest import assert_expected_inline
from support.graphs import calls, capture, marked, with_id, with_options
from support.stages import after, schedule_text

import regional_inductor as ri
from regional_inductor.stages.partition import in_order_of_use


@ri.region("rope")
def rope(q, k):
    return q.sin() * 2, k.cos() * 2


def layer(q, k):
    q, k = rope(q, k)
    return q @ k, k @ q


def layers(q, k):
    return layer(*layer(q, k))


def test_one_call_is_one_region_connected_or_not_and_two_calls_are_two():
    gm = capture(layers, torch.ones(2, 2), torch.ones(2, 2))
    assert_expected_inline(
        schedule_text(after("partition", gm, merge="scope")),
        """\
graph (outermost):
  q_1
  k_1
  [rope: sin mul cos mul_1]
  mm
  mm_1
  [rope_1: sin_1 mul_2 cos_1 mul_3]
  mm_2
  mm_3
  output""",
    )


def test_merge_all_joins_what_is_marked_alike():
    def fn(x, y):
        with marked():
            a = x.sin()
        b = y.exp()
        with marked():
            return a, b, y.cos()

    gm = capture(fn, torch.ones(4), torch.ones(4))
    assert_expected_inline(
        schedule_text(after("partition", gm, merge="scope")),
        """\
graph (outermost):
  x_1
  y_1
  [region: sin]
  exp
  [region_1: cos]
  output""",
    )
    assert_expected_inline(
        schedule_text(after("partition", gm, merge="all")),
        """\
graph (outermost):
  x_1
  y_1
  exp
  [region: sin cos]
  output""",
    )


def test_neighbours_with_other_options_stay_apart():
    def fn(x):
        with with_options(max_autotune=True):
            x = x.sin()
        with with_options(max_autotune=False):
            x = x.cos()
        return x

    gm = capture(fn, torch.ones(4))
    assert_expected_inline(
        schedule_text(after("partition", gm, merge="all")),
        """\
graph (outermost):
  x_1
  [region: sin]
  [region_1: cos]
  output""",
    )


def test_two_ids_that_would_form_a_cycle_are_split():
    def fn(x, y):
        with with_id("a"):
            a1 = x.sin()
        with with_id("b"):
            b1, b2 = a1.tan(), y.exp()
        with with_id("a"):
            a2 = b2.cos()
        return b1, a2

    gm = capture(fn, torch.ones(4), torch.ones(4))
    assert_expected_inline(
        schedule_text(after("partition", gm, merge="all")),
        """\
graph (outermost):
  x_1
  y_1
  [region: sin]
  [region_1: tan exp]
  [region_2: cos]
  output""",
    )


def test_a_write_between_two_reads_splits_an_id():
    def fn(x):
        with with_id("reads"):
            a = x.sin()
        x.mul_(2)
        with with_id("reads"):
            return a, x.cos()

    gm = capture(fn, torch.ones(4))
    assert_expected_inline(
        schedule_text(after("partition", gm, merge="all")),
        """\
graph (outermost):
  x_1
  [region: sin]
  mul_
  [region_1: cos]
  output""",
    )


def test_names_say_what_the_user_called_it():
    def fn(x):
        with ri.region("my norm"):
            x = x.sin()
        x = x.exp()
        with ri.region("my norm"):
            x = x.cos()
        x = x.exp()
        with ri.region("2nd"):
            return x.tan()

    gm = capture(fn, torch.ones(4))
    assert_expected_inline(
        schedule_text(after("partition", gm, merge="scope")),
        """\
graph (outermost):
  x_1
  [my_norm: sin]
  exp
  [my_norm_1: cos]
  exp_1
  [region_2nd: tan]
  output""",
    )


def test_what_bucketing_makes_of_two_entries_ties_them_not_together():
    """Such a node carries the mark of the bucket's first node, and lists the marks of them all."""

    def fn(x, y):
        with ri.region("norm"):
            a = x.sin()
        with ri.region("norm"):
            b = y.cos()
        return torch.cat([a, b])

    gm = capture(fn, torch.ones(4), torch.ones(4))
    a, b, cat = calls(gm)
    cat.meta["custom"] = a.meta["custom"]
    assert_expected_inline(
        schedule_text(after("partition", gm, merge="scope")),
        """\
graph (outermost):
  x_1
  y_1
  [norm: sin cos cat]
  output""",
    )
    cat.meta["bucketing_custom_sources"] = [a.meta["custom"], b.meta["custom"]]
    assert_expected_inline(
        schedule_text(after("partition", gm, merge="scope")),
        """\
graph (outermost):
  x_1
  y_1
  [norm: sin]
  [norm_1: cos]
  cat
  output""",
    )


def in_flight(program: str):
    """A graph of one-letter calls, in order: capitals are marked, `s` issues a collective, `w` waits.

    Each call but the wait reads the graph's input, or what the letter before it after a `>` made.
    """
    functional = torch.ops._c10d_functional
    with torch._subclasses.FakeTensorMode():
        value = torch.empty(4)
    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    made, nodes = {}, [x]
    for word in program.split():
        source, _, name = word.rpartition(">")
        argument = made[source] if source else x
        if name[0] == "s":
            node = graph.call_function(functional.all_reduce.default, (argument, "sum", "0"))
        elif name[0] == "w":
            node = graph.call_function(functional.wait_tensor.default, (argument,))
        elif name[0].lower() == "v":
            node = graph.call_function(torch.ops.aten.view.default, (argument, [4]))
        else:
            node = graph.call_function(torch.ops.aten.sin.default, (argument,))
        node._rename(name)
        made[name] = node
        nodes.append(node)
        if name[0].isupper():
            node.meta["custom"] = {"compile_with_inductor": {"inductor_region": 1}}
    for node in nodes:
        node.meta["val"] = value
    graph.output(tuple(nodes[1:]))
    return torch.fx.GraphModule({}, graph)


def order_of(program: str, **settings) -> str:
    """Calls and regions in the order in which they will run."""
    text = schedule_text(after("partition", in_flight(program), **settings))
    lines = [line.strip() for line in text.splitlines()[1:]]
    return " ".join(re.sub(r"\[region\w*: ([^]]*)\]", r"[\1]", line) for line in lines[:-1][1:])


def test_computation_that_hides_a_collective_still_does_when_it_is_compiled():
    # One region would have to run before the collective that needs A, or after the wait that C needs.
    assert order_of("A A>s B s>w") == "[A] s [B] w"
    assert order_of("s B s>w w>C") == "s [B] w [C]"
    # Fetched ahead: what the first fetch feeds hides the second.
    assert order_of("s s>w s2 w>B s2>w2 w2>C") == "s w s2 [B] w2 [C]"
    assert order_of("s s2 A s>w w>B s2>w2 w2>C") == "s s2 [A] w [B] w2 [C]"


def test_a_region_moves_between_a_collective_and_its_wait_where_it_can():
    assert order_of("A s B s>w C") == "s [A B C] w"


def test_a_collective_that_nothing_hides_doesn_t_break_a_region():
    assert order_of("A s s>w B") in ("[A B] s w", "s w [A B]")
    assert order_of("A A>s s>w B") == "[A B] s w"
    assert order_of("A A>s b s>w B") == "[A B] s b w"


def test_views_hide_no_collective():
    assert order_of("A A>s A>V s>w B") == "[A V B] s w"


def test_a_collective_without_a_wait_is_in_flight_to_the_end():
    assert order_of("A A>s B") == "[A] s [B]"


def test_merge_all_may_move_what_hides_a_collective():
    assert order_of("A A>s B s>w", merge="all") == "[A B] s w"


def test_forward_and_backward_of_a_joint_graph_stay_apart():
    """They are compiled into two graphs by whoever cuts the joint one; an id joins within each."""

    def fn(x, y):
        with with_id("one"):
            a = x.sin()
        with with_id("one"):
            return a, y.cos() * a

    gm = capture(fn, torch.ones(4), torch.ones(4))
    for node in gm.graph.nodes:
        if node.op == "call_function":
            node.meta["partitioner_tag"] = "is_forward" if "sin" in node.name else "is_backward"
    (graph,) = after("partition", gm, merge="scope").graphs
    assert [(r.direction, len(r.nodes)) for r in graph.regions] == [("forward", 1), ("backward", 2)]


def _of_one_region(*order, draw=False):
    """Detached inputs of one call, made in the given order."""
    graph = torch.fx.Graph()
    inputs = {name: graph.placeholder(name) for name in "xyz"}
    aten = torch.ops.aten
    seen = {name: graph.call_function(aten.detach.default, (inputs[name],)) for name in order}
    if draw:
        seen["z"] = graph.call_function(aten.bernoulli.default, (seen["z"],))
    product = graph.call_function(aten.addcmul.default, tuple(seen[name] for name in "xyz"))
    graph.output(product)
    return tuple(node for node in graph.nodes if node.op == "call_function")


def _what_they_read(nodes):
    return [tuple(argument.name for argument in node.all_input_nodes) for node in nodes]


def test_backward_regions_that_differ_only_in_when_views_are_made_are_alike():
    module = torch.nn.Module()
    first, second = (in_order_of_use(_of_one_region(*order), module) for order in ("xyz", "zxy"))
    assert _what_they_read(first)[:3] == _what_they_read(second)[:3] == [("x",), ("y",), ("z",)]


def test_where_order_matters_backward_regions_keep_theirs():
    nodes = _of_one_region(*"zxy", draw=True)
    assert in_order_of_use(nodes, torch.nn.Module()) == nodes
