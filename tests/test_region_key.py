"""What tells two regions apart, and what must not.

A key that is too loose is a silent wrong answer; one that is too tight compiles a region again for
each layer. Each line below is one of the two.
"""

from __future__ import annotations

import contextlib
import functools
import os
import subprocess
import sys
from collections.abc import Callable, Hashable
from typing import Any

import pytest
import torch
from support.graphs import MARK, capture, mark_nodes, marked
from torch.fx import Graph, GraphModule
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv

from regional_inductor.identity import times_asked
from regional_inductor.pipeline import run
from regional_inductor.region_key import environment_key, region_key
from regional_inductor.regions import Settings

aten = torch.ops.aten


def region_of(gm: GraphModule) -> GraphModule:
    """The one region of a graph, outlined."""
    settings = Settings(merge="all", region_backend="eager", on_error="raise")
    (graph,) = run(gm, (), settings, stop_after="outline").graphs
    (region,) = graph.submodules.values()
    return region


def key_of_graph(gm: GraphModule, options: Any = None, backend: str = "eager") -> str:
    return region_key(region_of(gm), options or {}, backend=backend, environment=environment_key())


def key(fn: Callable[..., Any], *args: Any, mode: str = "fake", **kwargs: Any) -> str:
    """The key of a function, all of whose operators are one region."""
    return key_of_graph(mark_nodes(capture(fn, *args, mode=mode), 0), **kwargs)


def sine(x: torch.Tensor) -> torch.Tensor:
    return x.sin() + 1


def ones(*sizes: int, **kwargs: Any) -> torch.Tensor:
    return torch.ones(*sizes, **kwargs)


# --- inputs that must separate ---------------------------------------------------------------------

BASE = ones(4, 6)
OTHER_INPUTS = {
    "dtype": ones(4, 6, dtype=torch.float64),
    "half precision": ones(4, 6, dtype=torch.bfloat16),
    "shape": ones(4, 7),
    "rank": ones(1, 4, 6),
    "stride": ones(6, 4).t(),
    "padded stride": ones(4, 8)[:, :6],
    "storage offset": ones(25)[1:].view(4, 6),
    "expanded": ones(1, 6).expand(4, 6),
    "device": ones(4, 6, device="meta"),
    "requires grad": ones(4, 6, requires_grad=True),
}


@pytest.mark.parametrize("kind", OTHER_INPUTS)
def test_the_metadata_of_an_input_separates(kind):
    assert key_of_input(OTHER_INPUTS[kind]) != key_of_input(BASE)


def key_of_input(value: Any) -> str:
    """The same two nodes always, whatever the input: only its own metadata differs."""
    with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = mode.from_tensor(value) if isinstance(value, torch.Tensor) else value
        result = torch.empty(4, 6)
    return key_of_graph(graph_with(fake, result))


def graph_with(value: Any, result: Any) -> GraphModule:
    graph = Graph()
    x = graph.placeholder("x")
    x.meta["val"] = value
    y = graph.call_function(aten.clone.default, (x,))
    y.meta.update(val=result, custom={MARK: 0})
    graph.output((y,))
    return GraphModule(torch.nn.Module(), graph)


def test_layout_separates():
    assert key_of_input(torch.eye(4).to_sparse()) != key_of_input(torch.eye(4))


def test_conjugate_and_negative_bits_separate():
    z = ones(4, dtype=torch.complex64)
    assert len({key_of_input(v) for v in (z, z.conj(), z.conj().imag, z.imag)}) == 4


def test_a_tensor_and_a_number_separate():
    assert len({key_of_input(v) for v in (1, 1.0, True, ones(()))}) == 4


def test_which_inputs_share_storage_separates():
    def add(x, y):
        return x.mul_(2) + y

    base = ones(8)
    apart = key(add, base[:4], ones(8)[4:])
    assert apart != key(add, base[:4], base[4:])
    assert apart == key(add, ones(8)[:4], ones(8)[4:])


def test_an_input_twice_and_two_equal_inputs_separate():
    both = ones(4)
    assert key(lambda x, y: x + y, both, ones(4)) != key(lambda x, y: x + x, both, ones(4))


# --- operators and constants that must separate ----------------------------------------------------

FUNCTIONS: dict[str, tuple[Callable[..., Any], ...]] = {
    "operator": (lambda x: aten.sin(x), lambda x: aten.cos(x)),
    "overload": (lambda x: aten.add.Tensor(x, 1), lambda x: aten.add.Scalar(x, 1)),
    "1, 1.0 and True": (
        lambda x: aten.fill.Scalar(x, 1),
        lambda x: aten.fill.Scalar(x, 1.0),
        lambda x: aten.fill.Scalar(x, True),
    ),
    "0.0 and -0.0": (lambda x: aten.fill.Scalar(x, 0.0), lambda x: aten.fill.Scalar(x, -0.0)),
    "infinity and a large number": (
        lambda x: aten.fill.Scalar(x, float("inf")),
        lambda x: aten.fill.Scalar(x, 1e308),
    ),
    "a list's items": (
        lambda x: aten.permute(x, [0, 1, 2]),
        lambda x: aten.permute(x, [0, 2, 1]),
        lambda x: aten.permute(x, [1, 2, 0]),
    ),
    "None and False": (
        lambda x: aten.mean.dim(x, [0], False),
        lambda x: aten.mean.dim(x, None, False),
        lambda x: aten.mean.dim(x, [0], True),
    ),
    "a string": (
        lambda x: aten.div.Tensor_mode(x, 3, rounding_mode="floor"),
        lambda x: aten.div.Tensor_mode(x, 3, rounding_mode="trunc"),
        lambda x: aten.div.Tensor_mode(x, 3, rounding_mode=None),
    ),
    "a dtype": (
        lambda x: aten._to_copy(x, dtype=torch.float64),
        lambda x: aten._to_copy(x, dtype=torch.float16),
    ),
    "a memory format": (
        lambda x: aten.clone(x, memory_format=torch.contiguous_format),
        lambda x: aten.clone(x, memory_format=torch.preserve_format),
    ),
    "a keyword and a position": (
        lambda x: aten.sub.Tensor(x, x, alpha=2),
        lambda x: aten.sub.Tensor(x, x, alpha=3),
    ),
    "the order of operands": (lambda x: (x.sin() - x.cos(),), lambda x: (x.cos() - x.sin(),)),
    "which output": (lambda x: (x.sin(), x.cos()), lambda x: (x.sin(), x.tan())),
    "one step more": (lambda x: x.sin().sin(), lambda x: x.sin().sin().sin()),
}


@pytest.mark.parametrize("what", FUNCTIONS)
def test_operators_and_constants_separate(what):
    variants = FUNCTIONS[what]
    keys = {key(fn, ones(2, 3, 4)) for fn in variants}
    assert len(keys) == len(variants)


def call_of(function: Callable[..., Any]) -> str:
    """The key of a call of a plain function, as Dynamo records those that it may not enter."""
    graph = Graph()
    x = graph.placeholder("x")
    with torch._subclasses.FakeTensorMode():
        x.meta["val"] = torch.empty(4)
    y = graph.call_function(function, (x,))
    y.meta.update(val=x.meta["val"], custom={MARK: 0})
    graph.output((y,))
    return key_of_graph(GraphModule(torch.nn.Module(), graph))


def test_a_function_that_only_has_the_name_of_another_separates():
    """`functools.wraps` copies name and module; a reloaded module has functions of the same names."""
    silu = torch.nn.functional.silu

    @functools.wraps(silu)
    def wrapper(x):
        return silu(x) * 2

    def renamed(x):
        return x * 3

    renamed.__module__, renamed.__qualname__ = "torchmodels.layers", "silu"
    again = lambda x: x * 4  # noqa: E731
    again.__module__, again.__qualname__ = "torchmodels.layers", "silu"
    assert len({call_of(fn) for fn in (silu, wrapper, renamed, again)}) == 4
    assert call_of(silu) == call_of(silu)


def hand_built(*outputs: str) -> GraphModule:
    """sin and cos of x, both marked; which of them the outside uses, and in which order."""
    graph = Graph()
    with torch._subclasses.FakeTensorMode():
        value = torch.empty(4)
    nodes = {"x": graph.placeholder("x")}
    nodes["sin"] = graph.call_function(aten.sin.default, (nodes["x"],))
    nodes["cos"] = graph.call_function(aten.cos.default, (nodes["sin"],))
    for node in nodes.values():
        node.meta["val"] = value
    nodes["sin"].meta["custom"] = nodes["cos"].meta["custom"] = {MARK: 0}
    graph.output(tuple(nodes[name] for name in outputs))
    return GraphModule(torch.nn.Module(), graph)


def test_which_values_are_needed_outside_separates():
    used = [("cos",), ("sin", "cos"), ("sin",)]
    assert len({key_of_graph(hand_built(*outputs)) for outputs in used}) == 3


def test_the_order_in_which_the_caller_returns_values_does_not():
    """The stitching graph picks them by number, so it is no part of the region."""
    assert key_of_graph(hand_built("sin", "cos")) == key_of_graph(hand_built("cos", "sin", "cos"))


def test_the_order_of_a_regions_own_outputs_separates():
    def with_outputs(reverse: bool) -> str:
        region = region_of(hand_built("sin", "cos"))
        output = region.graph.output_node()
        output.args = (output.args[0][:: -1 if reverse else 1],)
        return region_key(region, {}, backend="eager", environment="")

    assert with_outputs(False) != with_outputs(True)


# --- options, backend, environment -----------------------------------------------------------------


def test_options_separate_also_by_type():
    options: list[dict[str, Any]] = [
        {},
        {"max_autotune": True},
        {"max_autotune": False},
        {"max_autotune": 1},
        {"epilogue_fusion": True},
        {"max_autotune": True, "epilogue_fusion": True},
    ]
    assert len({key(sine, ones(4), options=o) for o in options}) == len(options)


def test_the_order_of_options_does_not():
    one = {"max_autotune": True, "epilogue_fusion": False}
    other = dict(reversed(one.items()))
    assert key(sine, ones(4), options=one) == key(sine, ones(4), options=other)


_IN_A_PROCESS = """
import torch
from torch._inductor import config
from torch.fx import Graph, GraphModule
from regional_inductor.region_key import environment_key, region_key
graph = Graph()
graph.output((graph.placeholder("x"),))
options = {
    "max_autotune": True, "epilogue_fusion": False, "cpp.simdlen": 8, "split_reductions": False,
}
print(region_key(
    GraphModule(torch.nn.Module(), graph), options, backend="eager", environment=environment_key()
))
"""


def test_the_order_in_which_a_process_lists_sets_and_where_it_starts_do_not(tmp_path):
    """They change from start to start, and what is stored must be found again."""
    keys = {
        subprocess.run(
            [sys.executable, "-c", _IN_A_PROCESS],
            env={**os.environ, "PYTHONHASHSEED": seed},
            cwd=folder,
            stdout=subprocess.PIPE,
            check=True,
        ).stdout
        for seed, folder in (("1", tmp_path), ("2", tmp_path.parent))
    }
    assert len(keys) == 1


@pytest.mark.parametrize("kind", ["a function", "an object without a hash"])
def test_an_object_among_the_options_separates_and_means_nothing_to_other_processes(kind):
    """Its address does not: the next object may lie there, in another process too."""

    class Unhashable:
        __hash__ = None

    def made():
        return Unhashable() if kind != "a function" else lambda graph: graph

    mine, asked = made(), times_asked()
    one = key(sine, ones(4), options={"post_grad_custom_post_pass": mine})
    assert times_asked() > asked
    assert one == key(sine, ones(4), options={"post_grad_custom_post_pass": mine})
    keys = {one}
    del mine
    for _ in range(20):
        keys.add(key(sine, ones(4), options={"post_grad_custom_post_pass": made()}))
    assert len(keys) == 21


def test_the_backend_separates():
    assert key(sine, ones(4), backend="eager") != key(sine, ones(4), backend="inductor")


@contextlib.contextmanager
def changed(get: Callable[[], Any], put: Callable[[Any], Any], value: Any):
    old = get()
    put(value)
    try:
        yield
    finally:
        put(old)


def inductor_option(**options: Any) -> Any:
    import torch._inductor.config as config

    return config.patch(options)


def functorch_option(**options: Any) -> Any:
    import torch._functorch.config as config

    return config.patch(options)


def custom_pass() -> Any:
    return inductor_option(post_grad_custom_post_pass=lambda graph: None)


ENVIRONMENTS: dict[str, Callable[[], Any]] = {
    "Inductor's config": lambda: inductor_option(max_autotune=True),
    "Inductor's nested config": lambda: inductor_option(**{"cpp.simdlen": 1}),
    "a pass in Inductor's config": custom_pass,
    "functorch's config": lambda: functorch_option(functionalize_rng_ops=True),
    "matmul precision": lambda: changed(
        torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, "medium"
    ),
    "deterministic algorithms": lambda: changed(
        torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms, True
    ),
    "deterministic fill": lambda: changed(
        lambda: torch.utils.deterministic.fill_uninitialized_memory,
        lambda v: setattr(torch.utils.deterministic, "fill_uninitialized_memory", v),
        False,
    ),
    "default dtype": lambda: changed(
        torch.get_default_dtype, torch.set_default_dtype, torch.float64
    ),
    "grad mode": torch.no_grad,
    "inference mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "autocast's dtype": lambda: torch.autocast("cpu", torch.float16),
    "tf32 in cudnn": lambda: changed(
        lambda: torch.backends.cudnn.allow_tf32,
        lambda v: setattr(torch.backends.cudnn, "allow_tf32", v),
        not torch.backends.cudnn.allow_tf32,
    ),
    "reduced precision reductions": lambda: changed(
        lambda: torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction,
        lambda v: setattr(torch.backends.cuda.matmul, "allow_bf16_reduced_precision_reduction", v),
        False,
    ),
    "number of threads": lambda: changed(
        torch.get_num_threads, torch.set_num_threads, torch.get_num_threads() + 1
    ),
    "mkldnn": lambda: changed(
        lambda: torch.backends.mkldnn.enabled, torch._C._set_mkldnn_enabled, False
    ),
    "deterministic mkldnn": lambda: changed(
        lambda: torch.backends.mkldnn.deterministic, torch._C._set_mkldnn_deterministic, True
    ),
}


@pytest.mark.parametrize("what", ENVIRONMENTS)
def test_the_state_of_the_process_separates(what):
    before = environment_key()
    with ENVIRONMENTS[what]():
        during = environment_key()
    assert before != during


HIDDEN_OPTIONS: dict[str, Any] = {
    "_pre_fusion_custom_pass": lambda nodes: nodes,
    "_post_fusion_custom_pass": lambda nodes: nodes,
    "_micro_pipeline_tp": True,
    "_fuse_ddp_communication": True,
    "_fuse_ddp_communication_passes": ["fuse_ddp_with_coalesced_op"],
    "_use_fp64_for_unbacked_floats": None,
    "_conv_default_backends": ["TRITON"],
    "pre_grad_pass_timing": "late",
}


@pytest.mark.parametrize("name", HIDDEN_OPTIONS)
def test_options_that_inductors_portable_config_leaves_out_separate(name):
    """They change the code all the same; Inductor's own cache adds some of them by hand."""
    import torch._inductor.config as config

    if not hasattr(config, name):
        pytest.skip("not in this version of torch")
    value = HIDDEN_OPTIONS[name]
    before = environment_key()
    with inductor_option(**{name: not getattr(config, name) if value is None else value}):
        assert environment_key() != before


_PRECISION = """
import warnings; warnings.simplefilter("ignore")
import torch
from regional_inductor.region_key import environment_key
before = environment_key()
torch.backends.{setting} = {value!r}
assert environment_key() != before
"""


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("cuda.matmul.fp32_precision", "tf32"),
        ("mkldnn.matmul.fp32_precision", "bf16"),
        ("mkldnn.conv.fp32_precision", "bf16"),
        ("cudnn.conv.fp32_precision", "ieee"),
        ("fp32_precision", "tf32"),
    ],
)
def test_precision_set_by_torchs_newer_names_separates(setting, value):
    """Once one of these is set, torch's older getters may raise; in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", _PRECISION.format(setting=setting, value=value)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_two_autocast_dtypes_separate():
    with torch.autocast("cpu", torch.bfloat16):
        one = environment_key()
    with torch.autocast("cpu", torch.float16):
        assert environment_key() != one


def test_two_passes_of_one_name_in_inductors_config_separate():
    with custom_pass():
        one = environment_key()
    with custom_pass():
        assert environment_key() != one


def test_the_environment_is_a_part_of_the_key():
    region = region_of(hand_built("cos"))
    keys = {region_key(region, {}, backend="eager", environment=e) for e in ("a", "b")}
    assert len(keys) == 2


# --- bodies of higher-order operators ---------------------------------------------------------------


def branch(then: Callable[..., Any], other: Callable[..., Any] = torch.cos) -> str:
    def fn(x):
        return torch.cond(x.sum() > 0, lambda v: then(v) + 1, lambda v: other(v) + 1, (x,))

    return key_of_graph(mark_nodes(capture(fn, ones(4)), 0))


def test_a_body_separates_and_equal_bodies_share():
    assert branch(torch.sin) == branch(torch.sin)
    assert branch(torch.sin) != branch(torch.tan)
    assert branch(torch.sin, torch.cos) != branch(torch.cos, torch.sin)


def test_a_constant_inside_a_body_separates():
    assert branch(lambda v: v * 2) != branch(lambda v: v * 3)


# --- symbols ----------------------------------------------------------------------------------------


def symbolic(hint: int, env: ShapeEnv, kind: str = "x") -> str:
    """x[1:] + 1 and its like for a vector of symbolic length."""
    from torch._dynamo.source import ConstantSource
    from torch._subclasses import FakeTensorMode
    from torch.fx.experimental.symbolic_shapes import StatelessSymbolicContext

    mode = FakeTensorMode(shape_env=env)
    context = StatelessSymbolicContext(dynamic_sizes=[DimDynamic.DYNAMIC])
    x = mode.from_tensor(
        ones(hint), source=ConstantSource(f"__{kind}{hint}"), symbolic_context=context
    )
    graph = Graph()
    node = graph.placeholder("x")
    node.meta["val"] = x
    with mode:
        if kind == "sliced":
            new = graph.call_function(aten.slice.Tensor, (node, 0, 1, None))
            new.meta["val"] = aten.slice.Tensor(x, 0, 1, None)
        else:
            new = graph.call_function(aten.sin.default, (node,))
            new.meta["val"] = aten.sin.default(x)
    new.meta["custom"] = {MARK: 0}
    graph.output((new,))
    return key_of_graph(GraphModule(torch.nn.Module(), graph))


def test_a_symbol_and_a_number_separate():
    assert symbolic(4, ShapeEnv()) != key(lambda x: aten.sin(x), ones(4))


def test_symbols_of_two_shape_environments_separate():
    """Guards that a compile adds are kept in one environment, and hold for that one only."""
    assert symbolic(4, ShapeEnv()) != symbolic(4, ShapeEnv())


def test_what_is_done_with_a_symbol_separates():
    env = ShapeEnv()
    assert symbolic(4, env) != symbolic(4, env, kind="sliced")


def test_relations_between_symbols_separate():
    """Two vectors of one length, and two that may differ."""

    def add(x, y):
        return x.sum() + y.sum()

    same = mark_nodes(capture(add, ones(5), ones(5), mode="symbolic"), 0)
    apart = mark_nodes(capture(add, ones(5), ones(7), mode="symbolic"), 0)
    assert key_of_graph(same) != key_of_graph(apart)


# --- what must not separate ------------------------------------------------------------------------


def two_places(change: Callable[[GraphModule], Any]) -> tuple[str, str]:
    """The key of a region of two operators before and after a change that means nothing."""

    def fn(x, y):
        return (x.sin() + y.cos()) * 2

    gm, other = (mark_nodes(capture(fn, ones(4), ones(4)), 0) for _ in range(2))
    change(other)
    return key_of_graph(gm), key_of_graph(other)


def rename(gm: GraphModule, suffix: str) -> None:
    for node in gm.graph.nodes:
        if node.op != "output":
            node._rename(f"{node.name}_{suffix}")


def set_meta(gm: GraphModule, **meta: Any) -> None:
    for node in gm.graph.nodes:
        if node.op == "call_function":
            node.meta.update(meta)


def remark(gm: GraphModule, value: dict[str, Hashable]) -> None:
    set_meta(gm, custom={MARK: value})


MEANINGLESS: dict[str, Callable[[GraphModule], Any]] = {
    "names of nodes and placeholders": lambda gm: rename(gm, "layer7"),
    "targets of placeholders": lambda gm: [
        setattr(n, "target", f"{n.target}_layer7") for n in gm.graph.nodes if n.op == "placeholder"
    ],
    "stack traces": lambda gm: set_meta(gm, stack_trace='File "elsewhere.py", line 7, in f'),
    "module stacks": lambda gm: set_meta(
        gm, nn_module_stack={"layers.7": ("layers.7", torch.nn.Linear)}
    ),
    "sequence numbers": lambda gm: set_meta(gm, seq_nr=77),
    "where nodes came from": lambda gm: set_meta(gm, from_node=[], source_fn_stack=[("x", "y")]),
    "the name of a mark": lambda gm: remark(gm, {"name": "layer7"}),
    "the scope and entry of a mark": lambda gm: remark(gm, {"scope": "code:f", "entry": 7}),
    "the source of a mark": lambda gm: remark(gm, {"source": "elsewhere.py:7"}),
    "the id of a mark": lambda gm: remark(gm, {"inductor_region": "seven"}),
}


@pytest.mark.parametrize("what", MEANINGLESS)
def test_what_means_nothing_to_a_compiler_does_not_separate(what):
    before, after = two_places(MEANINGLESS[what])
    assert before == after


def test_the_order_of_unrelated_placeholders_does_not_separate():
    """A capture lists inputs in the order in which it happens to meet them."""

    def one(x, y):
        return x.sin() + y

    def other(y, x):
        return x.sin() + y

    assert key(one, ones(4), ones(5, 4)) == key(other, ones(5, 4), ones(4))


def test_inputs_of_the_graph_that_the_region_does_not_use_do_not_separate():
    assert key(sine, ones(4)) == key(lambda unused, x: x.sin() + 1, ones(9), ones(4))


def test_what_lies_before_and_after_does_not_separate():
    def layer(x):
        with marked():
            return x.sin() * 2

    def early(x):
        return layer(x).exp()

    def late(x):
        return layer(layer_before(x)).log().sum()

    def layer_before(x):
        return (x + 1).tanh()

    assert key_of_graph(capture(early, ones(4))) == key_of_graph(capture(late, ones(4)))


def test_lists_of_every_kind_mean_the_same():
    gm, other = (
        mark_nodes(capture(lambda x: aten.permute(x, [1, 0]), ones(2, 3)), 0) for _ in "ab"
    )
    node = next(n for n in other.graph.nodes if n.op == "call_function")
    node.args = (node.args[0], torch.fx.immutable_collections.immutable_list([1, 0]))
    assert key_of_graph(gm) == key_of_graph(other)


def test_the_layers_of_a_model_share():
    class Block(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = torch.nn.Linear(4, 4)

        def forward(self, x):
            with marked({"inductor_region": id(self)}):
                return torch.nn.functional.silu(self.linear(x))

    model = torch.nn.Sequential(*(Block() for _ in range(4)))
    settings = Settings(merge="all", region_backend="eager", on_error="raise")
    gm = capture(lambda x: model(x + 1) + 1, ones(2, 4))
    (graph,) = run(gm, (), settings, stop_after="outline").graphs
    assert len(graph.submodules) >= 1
    keys = {region_key(m, {}, backend="eager", environment="") for m in graph.submodules.values()}
    assert len(graph.submodules) == 4
    assert len(keys) == 1
