"""The pass wherever PyTorch's is used: AOTAutograd, exported programs, pytrees, caches."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from support.compare import assert_like_eager, assert_same, assert_trains_like_eager
from support.graphs import capture, marked, with_options
from support.under_test import call, regions_with
from torch._dynamo.utils import counters
from torch._guards import TracingContext, tracing
from torch._subclasses.fake_tensor import FakeTensorMode


def fn(x, w):
    y = (x @ w).exp()
    with marked():
        y = y.sin() * 2
    return y.cos()


def args(requires_grad=False):
    return [torch.rand(3, 3, requires_grad=requires_grad) for _ in range(2)]


# ---- AOTAutograd ------------------------------------------------------------------------------


def test_as_both_compilers_of_aot_autograd(under_test):
    compiled = torch.compile(fn, backend=under_test.aot_backend(), fullgraph=True)
    assert_trains_like_eager(compiled, fn, *args(requires_grad=True))


def test_as_both_compilers_in_inference(under_test):
    compiled = torch.compile(fn, backend=under_test.aot_backend(), fullgraph=True)
    with torch.no_grad():
        assert_like_eager(compiled, fn, *args())


def test_as_both_compilers_with_dynamic_shapes(under_test):
    backend = under_test.aot_backend()
    compiled = torch.compile(fn, backend=backend, fullgraph=True, dynamic=True)
    for n in (3, 5):
        inputs = [torch.rand(n, n, requires_grad=True) for _ in range(2)]
        assert_trains_like_eager(compiled, fn, *inputs)


def test_a_model_with_parameters_and_buffers_in_training(under_test):
    class Block(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = torch.nn.Linear(4, 4)
            self.norm = torch.nn.BatchNorm1d(4)

        def forward(self, x):
            x = self.linear(x)
            with marked():
                x = torch.relu(self.norm(x)) * 2
            return x.cos()

    torch.manual_seed(0)
    eager = Block()
    torch.manual_seed(0)
    trained = Block()
    compiled = torch.compile(trained, backend=under_test.aot_backend(), fullgraph=True)
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1) for m in (eager, trained)]
    for _ in range(3):
        x = torch.randn(6, 4)
        losses = []
        for module, optimizer in zip((eager, compiled), optimizers, strict=True):
            optimizer.zero_grad()
            loss = module(x).pow(2).sum()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        assert_same(losses[1], losses[0])
    torch.testing.assert_close(dict(trained.state_dict()), dict(eager.state_dict()))


def test_backend_by_name_equals_the_pass_as_compilers(under_test):
    assert_trains_like_eager(under_test.compile(fn), fn, *args(requires_grad=True))


def test_ri_compile_of_a_function(ri):
    compiled = ri.compile(fn, options={"region_backend": "eager"})
    assert_trains_like_eager(compiled, fn, *args(requires_grad=True))


def test_backward_under_another_grad_mode_and_retained_graph(under_test):
    compiled = under_test.compile(fn)
    x, w = args(requires_grad=True)
    out = compiled(x, w).sum()
    first = torch.autograd.grad(out, (x, w), retain_graph=True)
    second = torch.autograd.grad(out, (x, w))
    assert_same(first, second)
    assert_same(first, torch.autograd.grad(fn(x, w).sum(), (x, w)))


def test_autocast_inside_and_outside_of_a_region(under_test):
    def mixed(x, w):
        with marked():
            y = (x @ w).sin()
        return y.cos()

    inputs = args()
    compiled = under_test.compile(mixed)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_same(compiled(*inputs), mixed(*inputs))
    assert_same(compiled(*inputs), mixed(*inputs))


@pytest.mark.inductor
def test_as_both_compilers_compiled_by_inductor(under_test):
    compiled = torch.compile(fn, backend=under_test.aot_backend(), fullgraph=True)
    assert_trains_like_eager(compiled, fn, *args(requires_grad=True))


# ---- calling conventions ----------------------------------------------------------------------


def test_result_takes_one_list_and_empties_it(under_test):
    """The boxed convention: inputs are freed as soon as they are dead."""
    inputs = args()
    result = under_test.apply(capture(fn, *inputs), *inputs)
    assert getattr(result, "_boxed_call", under_test.against == "torch")
    boxed = list(inputs)
    assert_same(result(boxed), fn(*inputs))
    assert boxed == []


def test_result_takes_plain_arguments_too(under_test, ri):
    inputs = args()
    result = under_test.apply(capture(fn, *inputs), *inputs)
    assert_same(result(*inputs), fn(*inputs))


def test_result_without_a_region_takes_both_as_well(under_test, ri):
    """Else AOTAutograd warns about graphs in which nothing was marked."""
    x = torch.randn(3)
    result = under_test.apply(capture(lambda x: x.sin() + 1, x), x)
    assert_same(result(x), x.sin() + 1)
    assert_same(result([x]), x.sin() + 1)
    assert result._boxed_call


@pytest.mark.parametrize("inductor", [False, pytest.param(True, marks=pytest.mark.inductor)])
def test_inputs_are_freed_as_soon_as_they_are_dead(under_test, inductor):
    freed = []

    def chain(x):
        with marked():
            y = x.sin() * 2
        y = y.cos()
        with marked():
            z = y.tanh() * 3
        return z.exp()

    x = torch.randn(4)
    result = under_test.apply(capture(chain, x), x)
    inputs = [torch.randn(4)]
    reference = weakref.ref(inputs[0])

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func is torch.ops.aten.cos.default:
                gc.collect()
                freed.append(reference() is None)
            return func(*args, **(kwargs or {}))

    with Watch():
        result(inputs)
    assert freed == [True]


# ---- exported programs ------------------------------------------------------------------------


class Tree(torch.nn.Module):
    """Dotted parameter names, nested inputs and outputs, a keyword input."""

    def __init__(self):
        super().__init__()
        self.blocks = torch.nn.ModuleList([torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)])
        self.register_buffer("shift", torch.randn(4))

    def forward(self, batch, scales, *, bias=None):
        x = self.blocks[0](batch["x"])
        with marked():
            x = self.blocks[1](x).sin() * scales[0] + self.shift
        if bias is not None:
            x = x + bias
        return {"out": x.cos(), "pair": (x, batch["y"] * scales[1])}


def tree_inputs():
    batch = {"x": torch.randn(2, 4), "y": torch.randn(2)}
    return (batch, [torch.randn(4), torch.randn(2)]), {"bias": torch.randn(4)}


def exported(module, *inputs, **keywords):
    return torch.export.export(module, inputs, keywords, strict=True).module()


def test_exported_module_with_pytrees_and_keywords(under_test):
    module = Tree()
    inputs, keywords = tree_inputs()
    gm = exported(module, *inputs, **keywords)
    with torch.no_grad(), under_test.watch() as seen:
        result = under_test.apply(gm)
    assert regions_with(seen, "sin")
    with torch.no_grad():
        assert_same(result(*inputs, **keywords), module(*inputs, **keywords))


def test_exported_module_without_marks_is_called_as_before(under_test):
    module = torch.nn.Linear(4, 4)
    x = torch.randn(2, 4)
    result = under_test.apply(torch.export.export(module, (x,)).module())
    with torch.no_grad():
        assert_same(result(x), module(x))


def test_exported_module_with_dynamic_shapes(under_test):
    class Net(torch.nn.Module):
        def forward(self, x):
            y = x[1:]
            with marked():
                y = y.sin() * y.shape[0]
            return y.cos()

    module = Net()
    rows = torch.export.Dim("rows", min=3, max=64)
    program = torch.export.export(
        module, (torch.randn(6, 4),), dynamic_shapes=({0: rows},), strict=True
    )
    result = under_test.apply(program.module())
    for n in (6, 9):
        x = torch.randn(n, 4)
        assert_same(call(result, x), module(x))


def test_exported_module_whose_only_input_is_a_list(under_test, ri):
    """A list is this graph's one argument: not to be taken for the boxed convention."""

    class Net(torch.nn.Module):
        def forward(self, xs):
            with marked():
                y = xs[0].sin() * xs[1]
            return [y.cos(), xs[0]]

    module = Net()
    xs = [torch.randn(4), torch.randn(4)]
    result = under_test.apply(exported(module, xs))
    assert_same(result(xs), module(xs))
    assert len(xs) == 2


def test_exported_module_whose_only_input_is_a_list_of_one(under_test, ri):
    class Net(torch.nn.Module):
        def forward(self, xs):
            with marked():
                return xs[0].sin() * 2

    module = Net()
    xs = [torch.randn(4)]
    result = under_test.apply(exported(module, xs))
    assert_same(result(xs), module(xs))
    assert len(xs) == 1


def test_exported_module_that_mutates_a_buffer(under_test):
    class Counter(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("count", torch.zeros(3))

        def forward(self, x):
            with marked():
                self.count.add_(1)
                y = x.sin() * self.count
            return y.cos()

    module, x = Counter(), torch.randn(3)
    result = under_test.apply(exported(Counter(), x))
    for _ in range(3):
        assert_same(call(result, x), module(x))
    assert_same(dict(result.named_buffers())["count"], module.count)


@pytest.mark.filterwarnings(
    "ignore:.*LeafSpec:FutureWarning"
)  # torch's own, when it copies a program
def test_exported_program_lowered_with_decompositions(under_test):
    module = Tree()
    inputs, keywords = tree_inputs()
    program = torch.export.export(module, inputs, keywords, strict=True).run_decompositions()
    result = under_test.apply(program.module())
    with torch.no_grad():
        assert_same(result(*inputs, **keywords), module(*inputs, **keywords))


@pytest.mark.inductor
def test_exported_module_compiled_by_inductor(under_test):
    module = Tree()
    inputs, keywords = tree_inputs()
    with torch.no_grad():
        result = under_test.apply(exported(module, *inputs, **keywords))
        assert_same(result(*inputs, **keywords), module(*inputs, **keywords))


# ---- make_fx graphs with nested inputs --------------------------------------------------------


def test_make_fx_graph_with_nested_inputs_and_outputs(under_test):
    def nested(batch, scale):
        with marked():
            y = batch["x"].sin() * scale
        return {"y": [y.cos()], "x": batch["x"]}

    batch, scale = {"x": torch.randn(4)}, torch.randn(4)
    gm = capture(nested, batch, scale)
    result = under_test.apply(gm)
    assert_same(result(batch, scale), nested(batch, scale))


# ---- tracing context --------------------------------------------------------------------------


def test_without_a_tracing_context(under_test):
    assert TracingContext.try_get() is None
    inputs = args()
    assert_same(call(under_test.apply(capture(fn, *inputs), *inputs), *inputs), fn(*inputs))


def test_within_the_tracing_context_of_the_capture(under_test):
    inputs = args()
    mode = FakeTensorMode()
    fakes = [mode.from_tensor(a) for a in inputs]
    with mode:
        gm = capture(fn, *fakes)
    with tracing(TracingContext(mode)):
        result = under_test.apply(gm, *fakes)
        assert TracingContext.try_get() is not None
    assert_same(call(result, *inputs), fn(*inputs))


def test_within_the_tracing_context_of_something_else(under_test):
    """The graph's own fake mode counts, not that of an enclosing trace."""
    inputs = args()
    gm = capture(fn, *inputs)
    with tracing(TracingContext(FakeTensorMode())):
        result = under_test.apply(gm, *inputs)
    assert_same(call(result, *inputs), fn(*inputs))


@pytest.mark.inductor
def test_without_a_tracing_context_compiled_by_inductor(under_test):
    inputs = args()
    for mode in ("fake", "symbolic", "real"):
        gm = capture(fn, *inputs, mode=mode)
        assert_same(call(under_test.apply(gm, *inputs), *inputs), fn(*inputs))


@pytest.mark.inductor
def test_within_another_tracing_context_compiled_by_inductor(under_test):
    inputs = args()
    gm = capture(fn, *inputs)
    with tracing(TracingContext(FakeTensorMode())):
        result = under_test.apply(gm, *inputs)
    assert_same(call(result, *inputs), fn(*inputs))


def test_pass_under_no_grad_and_inference_mode(under_test):
    inputs = args()
    for context in (torch.no_grad(), torch.inference_mode(), torch.enable_grad()):
        gm = capture(fn, *inputs)
        with context:
            result = under_test.apply(gm, *inputs)
        assert_same(call(result, *inputs), fn(*inputs))


# ---- AOTAutograd's cache ----------------------------------------------------------------------


@pytest.fixture
def autograd_cache(tmp_path, monkeypatch):
    """AOTAutograd's cache, forced on for any compiler, in a folder of its own."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    with torch._functorch.config.patch(
        force_autograd_cache=True,
        bundled_autograd_cache=True,
        enable_autograd_cache=True,
        strict_autograd_cache=True,
    ):
        counters.clear()
        yield counters["aot_autograd"]
        counters.clear()


def cached_training(x, w):
    y = (x @ w).exp()
    with with_options(max_fusion_size=7):
        y = y.sin() * 2
    y = y.cos()
    with marked():
        y = y.tanh() * 3
    return y + 1


@pytest.mark.inductor
def test_warm_second_run_from_aot_autograds_cache(under_test, autograd_cache):
    inputs = args(requires_grad=True)
    compiled = torch.compile(cached_training, backend=under_test.aot_backend(), fullgraph=True)
    assert_trains_like_eager(compiled, cached_training, *inputs)
    assert autograd_cache["autograd_cache_saved"] >= 1
    torch._dynamo.reset()
    autograd_cache.clear()  # the regions' own artifacts were counted as well
    with under_test.watch() as seen:
        compiled = torch.compile(cached_training, backend=under_test.aot_backend(), fullgraph=True)
        assert_trains_like_eager(compiled, cached_training, *inputs)
    assert autograd_cache["autograd_cache_hit"] == 1
    assert autograd_cache["autograd_cache_miss"] == 0
    assert not seen


@pytest.mark.inductor
def test_warm_second_run_of_the_backend_by_name(under_test, autograd_cache, ri):
    inputs = args(requires_grad=True)
    for _ in range(2):
        torch._dynamo.reset()
        autograd_cache.clear()
        compiled = under_test.compile(cached_training)
        assert_trains_like_eager(compiled, cached_training, *inputs)
    assert autograd_cache["autograd_cache_hit"] == 1
    assert autograd_cache["autograd_cache_miss"] == 0


def fuse_seven(x, w):
    with with_options(max_fusion_size=7):
        return (x @ w).sin() * 2


def fuse_nine(x, w):
    with with_options(max_fusion_size=9):
        return (x @ w).sin() * 2


def unmarked(x, w):
    return (x @ w).sin() * 2


@pytest.mark.inductor
@pytest.mark.parametrize(
    ("second", "expected"),
    [(fuse_nine, [{"max_fusion_size": 9}]), (unmarked, [])],
    ids=["other options", "no mark"],
)
def test_cache_tells_marks_apart(under_test, autograd_cache, ri, second, expected):
    """Only the mark differs: nothing of the first compile may be taken for the second.

    The key that torch 2.13 makes doesn't see marks. The drop-in pass runs after the look-up and
    can't help that; the backend comes before it.
    """
    inputs = args()
    for function, options in ((fuse_seven, [{"max_fusion_size": 7}]), (second, expected)):
        torch._dynamo.reset()
        with torch.no_grad():
            assert_like_eager(under_test.compile(function), function, *inputs)
        assert [dict(region.options) for region in ri.last_report().regions] == options
        assert autograd_cache["autograd_cache_hit"] == 0


@pytest.mark.inductor
def test_result_under_the_forced_cache_is_what_it_can_serialise(under_test, autograd_cache):
    from torch._inductor.output_code import OutputCode

    inputs = args()
    result = under_test.apply(capture(fn, *inputs), *inputs)
    assert isinstance(result, OutputCode)
    assert_same(result(list(inputs)), fn(*inputs))


# ---- patches of others ------------------------------------------------------------------------


@pytest.mark.inductor
def test_a_patched_standalone_compile_is_used(under_test, monkeypatch):
    """Tools patch `torch._inductor.standalone_compile`; it is looked up when the pass runs."""
    original = torch._inductor.standalone_compile
    calls = []

    def patched(*args, **kwargs):
        calls.append(args)
        return original(*args, **kwargs)

    monkeypatch.setattr(torch._inductor, "standalone_compile", patched)

    def fresh_work(x):
        with marked():
            y = x.sin() * 2.718281828
        return y.cos()

    x = torch.randn(5)
    assert_same(under_test.run(capture(fresh_work, x), x), fresh_work(x))
    assert len(calls) == 1


# ---- the two halves ---------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["fake", "symbolic", "real"])
def test_halves_make_the_whole(ri, mode):
    inputs = args()
    gm = capture(fn, *inputs, mode=mode)
    outlined = ri.outline_regions(gm)
    assert_same(outlined(*inputs), fn(*inputs))
    compiled = ri.compile_regions(outlined, region_backend="eager")
    assert_same(compiled(*inputs), fn(*inputs))


def test_a_pass_of_the_user_between_the_halves(ri):
    inputs = args()
    outlined = ri.outline_regions(capture(fn, *inputs))
    changed = 0
    for module in outlined.modules():
        if isinstance(module, torch.fx.GraphModule):
            for node in module.graph.nodes:
                if node.target is torch.ops.aten.sin.default:
                    node.target = torch.ops.aten.tanh.default
                    changed += 1
            module.recompile()
    assert changed == 1
    x, w = inputs
    expected = ((x @ w).exp().tanh() * 2).cos()
    assert_same(ri.compile_regions(outlined, region_backend="eager")(x, w), expected)


def test_halves_with_a_region_in_a_branch(ri):
    def branches(x):
        def positive(x):
            with marked():
                return x.sin() * 2

        return torch.cond(x.sum() > 0, positive, lambda x: x.cos(), (x,)) + 1

    x = torch.rand(4)
    outlined = ri.outline_regions(capture(branches, x))
    assert_same(outlined(x), branches(x))
    compiled = ri.compile_regions(outlined, region_backend="eager")
    for x in (torch.rand(4), -torch.rand(4)):
        assert_same(compiled(x), branches(x))


@pytest.mark.inductor
def test_later_calls_are_checked_as_the_first_is(ri):
    """After its first call a region skips AOTAutograd's wrappers, not the checks."""
    inputs = args()
    result = ri.regional_inductor(capture(fn, *inputs), *inputs)
    for _ in range(3):
        assert_like_eager(result, fn, *args())
    with pytest.raises(ri.RegionError, match="float64"):
        result(*[a.double() for a in args()])
    with pytest.raises(ri.RegionError, match="shape"):
        result(*[torch.rand(4, 4) for _ in range(2)])
    assert_trains_like_eager(result, fn, *args(requires_grad=True))
