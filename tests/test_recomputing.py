"""What forward keeps for backward, and what backward regions compute again instead."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from support.aot_graphs import SAVED, Towers, inputs, keeping, marks_of_ours, raw_marks
from support.compare import assert_trains_like_eager, fresh
from torch.utils.checkpoint import checkpoint

import regional_inductor as ri

ROWS, WIDTH = 8, 16
VALUE = ROWS * WIDTH * 4  # bytes of one activation


@pytest.fixture
def data():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(ROWS, WIDTH, generator=generator, requires_grad=True)
    w = torch.randn(WIDTH, WIDTH, generator=generator, requires_grad=True)
    return x, w


@ri.region("gate")
def gate(a, b):
    return F.silu(a) * b


@ri.region("norm")
def norm(x):
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


@ri.region("smooth")
def smooth(x):
    return x.sin().exp().tanh().cos()


def compiled(function, **options):
    torch._dynamo.reset()
    options.setdefault("region_backend", "eager")
    return ri.compile(function, fullgraph=True, **options)


def kept_bytes(function, *args):
    """Bytes of the storages that a forward pass keeps for backward, arguments not counted."""
    own = {a.untyped_storage().data_ptr() for a in args}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)  # alive, so addresses differ
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = function(*args)
    assert result.requires_grad
    return sum(size for size, _ in kept.values())


def kept_with_and_without(function, *args):
    kept = [
        kept_bytes(compiled(function, recompute=recompute), *args)
        for recompute in ("regions", "off")
    ]
    return kept[0] // VALUE, kept[1] // VALUE


def operators(report, direction, *, eager_only=False):
    found = Counter()
    for graph in report.graphs:
        if graph.direction == direction:
            for operator in graph.operators:
                if operator.region is None or not eager_only:
                    found[operator.op] += 1
    return found


def trained(function, args, **options):
    """Gradients of eager and compiled, from one seed."""
    results = []
    for call in (function, compiled(function, **options)):
        copies = fresh(args)
        torch.manual_seed(3)
        result = call(*copies)
        weights = torch.linspace(-1, 2, result.numel()).view_as(result)
        leaves = [a for a in copies if a.requires_grad]
        results.append([result, *torch.autograd.grad((result * weights).sum(), leaves)])
    return results


def assert_bitwise(function, *args, **options):
    expected, actual = trained(function, args, **options)
    assert all(torch.equal(a, e) for a, e in zip(actual, expected, strict=True))


# --- what is kept -----------------------------------------------------------------------------------


def test_values_inside_a_region_are_computed_again_from_what_is_kept_anyway(data):
    def f(x, w):
        a, b = x @ w, x @ w.t()
        return gate(a, b).sum()

    assert kept_with_and_without(f, *data) == (2, 3)  # a and b; eager also keeps silu(a)


def test_a_chain_of_pointwise_operators_keeps_what_it_starts_from(data):
    def f(x, w):
        return smooth(x @ w).sum()

    assert kept_with_and_without(f, *data) == (1, 3)


def test_a_mean_is_kept_and_not_computed_again(data):
    def f(x, w):
        return norm(x @ w).sum()

    compiled(f)(*data).backward()
    again = operators(ri.last_report(), "forward") & operators(ri.last_report(), "backward")
    assert again["aten.mean.dim"] == 0
    assert again["aten.rsqrt.default"] == 0


def test_what_an_eager_operator_reads_in_backward_is_kept_and_not_computed_again(data):
    def f(x, w):
        a, b = x @ w, x @ w.t()
        return (gate(a, b) @ w).sum()  # the gradient of w needs gate(a, b) in memory

    assert kept_with_and_without(f, *data) == (3, 4)
    compiled(f)(*data).backward()
    again = operators(ri.last_report(), "forward") & operators(ri.last_report(), "backward")
    assert again["aten.silu.default"] == 1


def test_unmarked_code_keeps_what_it_keeps_in_eager_mode(data):
    def f(x, w):
        return (x @ w).sin().exp().tanh().cos().sum()

    kept, otherwise = kept_with_and_without(f, *data)
    assert kept == otherwise == kept_bytes(f, *data) // VALUE


def test_code_kept_out_of_regions_is_not_computed_again(data):
    @ri.region("outer")
    def f(x, w):
        h = x @ w
        with ri.eager():
            h = h.sin().exp()
        return h.tanh().sum()

    compiled(f)(*data).backward()
    again = operators(ri.last_report(), "forward") & operators(ri.last_report(), "backward")
    assert again["aten.tanh.default"] == 1
    assert again["aten.sin.default"] == again["aten.exp.default"] == 0


def test_a_value_that_two_entries_read_is_kept_once_for_both(data):
    def f(x, w):
        h = x @ w
        return (smooth(h) + smooth(h * 2)).sum()

    kept, otherwise = kept_with_and_without(f, *data)
    assert otherwise == 6
    assert kept == 2  # h, and h * 2 that runs eagerly


def test_one_entrys_values_are_not_computed_again_inside_another_entry(data):
    """They would have to be written to memory for it: then they can as well be kept."""

    def f(x, w):
        return norm(smooth(x @ w)).sum()

    compiled(f)(*data).backward()
    (backward,) = (g for g in ri.last_report().graphs if g.direction == "backward")
    assert [r.name for r in backward.regions] == ["norm", "smooth"]
    assert kept_with_and_without(f, *data)[0] == 2  # x @ w and what norm reads


def test_a_residual_stream_is_not_computed_again_from_the_beginning(data):
    """Although that would keep fewer bytes: the products are half as wide as the stream."""

    @ri.region("model")
    def f(x, w):
        stream = x.double()
        for _ in range(4):
            stream = stream + stream.sin().float() @ w
        return stream.sum()

    compiled(f)(*data).backward()
    report = ri.last_report()
    names = [{o.name for o in g.operators if o.op.startswith("aten.add")} for g in report.graphs]
    assert len(names[0]) == 4
    assert not names[0] & names[1]
    assert operators(report, "backward")["aten.mm.default"] == 8  # gradients: no product again


def test_equal_marks_of_pytorch_are_computed_again_too(data):
    def f(x, w):
        with torch.fx.traceback.annotate({"compile_with_inductor": 0}):
            return (x @ w).sin().exp().tanh().cos().sum()

    assert kept_with_and_without(f, *data) == (1, 3)


def test_without_marks_the_graphs_are_those_of_the_default_partition(data):
    from torch._dynamo.backends.common import aot_autograd

    from regional_inductor.recomputing import RecomputationChooser
    from regional_inductor.regions import Settings

    def f(x, w):
        return (x @ w).sin().exp().tanh().cos().sum()

    def texts(**arguments):
        torch._dynamo.reset()
        found = []

        def take(gm, inputs):
            found.append(gm.print_readable(print_output=False))
            return _boxed(gm)

        backend = aot_autograd(fw_compiler=take, bw_compiler=take, **arguments)
        torch.compile(f, backend=backend)(*data).backward()
        return found

    assert texts() == texts(partition_fn=RecomputationChooser(Settings()).partition)


def _boxed(gm):
    def run(args):
        values = list(args)
        args.clear()
        return gm(*values)

    run._boxed_call = True
    return run


# --- how often things run -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("marker", "saved"),
    [*((marks_of_ours, saved) for saved in SAVED), (raw_marks, "matmuls saved")],
)
def test_what_runs_eagerly_runs_as_often_as_without(marker, saved):
    reports, gradients = {}, {}
    for recompute in ("off", "regions"):
        model = Towers(marker, SAVED[saved])
        run = compiled(model, recompute=recompute)
        run(*inputs()).backward()
        reports[recompute] = run.report
        gradients[recompute] = [p.grad for p in model.parameters()]
    for direction in ("forward", "backward"):
        counts = [operators(r, direction, eager_only=True) for r in reports.values()]
        assert counts[0] == counts[1]
    expected = Towers(marker, SAVED[saved])
    expected(*inputs()).backward()
    for parameter, *ways in zip(expected.parameters(), *gradients.values(), strict=True):
        assert all(torch.equal(parameter.grad, gradient) for gradient in ways)


def test_nodes_computed_again_lie_in_the_regions_that_backward_has_anyway():
    regions = {}
    for recompute in ("off", "regions"):
        model = compiled(Towers(marks_of_ours), recompute=recompute)
        model(*inputs()).backward()
        regions[recompute] = [(r.name, r.direction) for g in model.report.graphs for r in g.regions]
        assert recompute == "off" or sum(g.recomputed for g in model.report.graphs) > 0
    assert Counter(regions["regions"]) == Counter(regions["off"])


def test_random_draws_happen_once(data):
    @ri.region("dropped")
    def dropped(x):
        return F.dropout(x.sin().exp(), 0.5).tanh()

    def f(x, w):
        return dropped(x @ w)

    assert_bitwise(f, *data)
    drawing = operators(ri.last_report(), "backward")
    assert not [op for op in drawing if "dropout" in op and "backward" not in op]
    assert not [op for op in drawing if "bernoulli" in op or "rand" in op]


def test_random_draws_between_checkpoints_stay_the_forwards(data):
    @ri.region("dropped")
    def dropped(x):
        return F.dropout(x.sin().exp(), 0.5).tanh()

    def f(x, w):
        h = checkpoint(lambda v: dropped(v @ w), x, use_reentrant=False)
        return smooth(F.dropout(h, 0.5) @ w)

    assert_bitwise(f, *data)


def test_what_checkpointing_is_told_to_keep_is_kept(data):
    policy = keeping((torch.ops.aten.mm.default, torch.ops.aten.exp.default))

    def f(x, w):
        return checkpoint(lambda v: smooth(v @ w), x, use_reentrant=False, context_fn=policy)

    assert_bitwise(f, *data)
    assert operators(ri.last_report(), "backward")["aten.exp.default"] == 0


def test_if_anything_else_would_run_twice_nothing_does(data, monkeypatch):
    from torch._functorch import config, partitioners

    default = partitioners.default_partition

    def careless(module, *args, **kwargs):
        if not any("recompute" in node.meta for node in module.graph.nodes):
            return default(module, *args, **kwargs)
        with config.patch(aggressive_recomputation=True):
            return partitioners.min_cut_rematerialization_partition(module, *args, **kwargs)

    def f(x, w):
        return smooth((x @ w).sin().exp().tanh()).sum()

    monkeypatch.setattr(partitioners, "default_partition", careless)
    kept, otherwise = kept_with_and_without(f, *data)
    assert kept == otherwise
    run = compiled(f)
    run(*data).backward()
    forward = run.report.graphs[0]
    assert (forward.recomputed, forward.saved_bytes) == (0, forward.saved_bytes_otherwise)


# --- what may change in between --------------------------------------------------------------------------


def test_an_input_that_is_written_to_is_not_read_again(data):
    def f(x, w, buffer):
        h = gate((buffer * 2).sin(), x @ w)
        with torch.fx.traceback.annotate({"compile_with_inductor": {"name": "late"}}):
            h = h * buffer.exp().tanh().cos()
        buffer.mul_(3)
        return h

    buffer = torch.full((ROWS, WIDTH), 0.25)
    assert_bitwise(f, *data, buffer)


def test_what_a_region_read_may_be_overwritten_afterwards(data):
    def f(x, w):
        h = x * 1.0
        with ri.region("tail"):
            y = h.tanh().exp().tanh()  # eager keeps results only
        h.mul_(2)
        return y @ w + h

    assert_bitwise(f, *data)


def test_a_result_that_the_caller_overwrites_before_backward_is_not_needed(data):
    """Eager mode keeps what tanh and sigmoid give; what they read is returned and may be written to."""

    def f(x, w):
        h = x @ w
        with ri.region("tail"):
            return h, h.tanh() * h.sigmoid()

    gradients = []
    for call in (f, compiled(f)):
        x, w = fresh(data)
        h, y = call(x, w)
        h.data.fill_(7)
        gradients.append(torch.autograd.grad(y.sum(), [x, w]))
    assert all(torch.equal(a, e) for a, e in zip(*gradients, strict=True))


def test_running_statistics_are_updated_once(data):
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = torch.nn.BatchNorm1d(WIDTH)

        def forward(self, x, w):
            with ri.region("all"):
                return self.norm(x @ w).sin().exp().tanh()

    results = []
    for make in (lambda m: m, lambda m: compiled(m)):
        model = Model()
        run = make(model)
        x, w = fresh(data)
        run(x, w).sum().backward()
        results.append([x.grad, w.grad, model.norm.running_mean, model.norm.running_var])
    assert all(torch.equal(a, e) for a, e in zip(*results, strict=True))


# --- kinds of graphs ---------------------------------------------------------------------------------------


def test_symbolic_sizes(data):
    def f(x, w):
        return smooth((x @ w).expand(2, -1, -1).reshape(-1, x.shape[0])) * x.shape[0]

    run = compiled(f, dynamic=True)
    for rows in (ROWS, 12, 20):
        x = torch.randn(rows, WIDTH, requires_grad=True)
        assert_trains_like_eager(run, f, x, data[1])
    assert run.report.graphs[0].recomputed > 0


@pytest.mark.parametrize("merge", ["scope", "all"])
def test_both_ways_to_merge(data, merge):
    def f(x, w):
        return smooth(norm(gate(x @ w, x)) @ w)

    assert_bitwise(f, *data, merge=merge)


def test_whole_blocks_with_matrix_products_inside(data):
    @ri.region("block")
    def block(x, w):
        h = norm_of(x)
        return x + F.gelu(h @ w) @ w.t()

    def norm_of(x):
        wide = x.double()
        return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True))).float()

    def f(x, w):
        for _ in range(3):
            x = block(x, w)
        return x

    assert_bitwise(f, *data)
    assert operators(ri.last_report(), "backward")["aten.mm.default"] == 12


@pytest.mark.inductor
def test_compiled_regions_give_eagers_gradients(data):
    def f(x, w):
        return smooth(x @ w) @ w

    assert_trains_like_eager(compiled(f, region_backend="inductor"), f, *data)


# --- how it is asked for and reported ----------------------------------------------------------------------


def test_the_report_counts_what_is_kept(data):
    def f(x, w):
        return smooth(x @ w).sum()

    run = compiled(f)
    kept = kept_bytes(run, *data)
    forward = run.report.graphs[0]
    assert (forward.saved_bytes, forward.saved_bytes_otherwise) == (kept, 3 * VALUE)
    assert "keeps 512B for backward, not 1.54kB: regions compute 3 nodes again there" in str(
        run.report
    )
    assert run.report.from_json(run.report.to_json()).graphs[0] == replace(forward)


def test_explain_says_the_same_as_compile(data):
    def f(x, w):
        return smooth(x @ w).sum()

    planned = ri.explain(f, *data, region_backend="eager").graphs
    run = compiled(f)
    run(*data).backward()
    for a, b in zip(planned, run.report.graphs, strict=True):
        assert (a.direction, a.nodes, a.recomputed) == (b.direction, b.nodes, b.recomputed)
        assert (a.saved_bytes, a.saved_bytes_otherwise) == (b.saved_bytes, b.saved_bytes_otherwise)
    assert ri.explain(f, *data, region_backend="eager", recompute="off").graphs[0].recomputed == 0


def test_the_backend_takes_the_option_too(data):
    def f(x, w):
        return smooth(x @ w).sum()

    for recompute, nodes in (("off", 0), ("regions", 3)):
        torch._dynamo.reset()
        options = {"recompute": recompute, "region_backend": "eager"}
        torch.compile(f, backend="regional_inductor", options=options)(*data)
        assert ri.last_report().graphs[0].recomputed == nodes


def test_another_choice_is_an_error():
    with pytest.raises(ri.OptionError, match=r"recompute='yes' is not a choice") as caught:
        ri.compile(smooth, recompute="yes")
    assert "'regions', 'off'" in str(caught.value)


# --- views ----------------------------------------------------------------------------------------


def kept_tensors(function, *args):
    """What a forward pass keeps for backward."""
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        function(*args)
    return kept


@ri.region("block")
def block(x, w):
    """Three products of one value, as the projections of an attention layer."""
    h = norm(x)
    q, k, v = (F.linear(h, w) for _ in range(3))
    return q * k + v.sin()


def test_of_a_view_what_it_looks_at_is_kept_and_the_view_is_made_again(data):
    x, w = data
    kept = kept_tensors(compiled(block), x, w)
    storages = [t.untyped_storage().data_ptr() for t in kept]
    assert len(set(storages)) == len(storages)
    (weight,) = [t for t in kept if t.data_ptr() == w.data_ptr()]
    assert weight.stride() == w.stride()  # and not that of its transpose


def test_views_made_again_change_no_gradient_and_no_operator(data):
    assert_bitwise(block, *data)


def test_a_weight_that_is_written_before_backward_is_noticed_as_in_eager_mode(data):
    for call in (block, compiled(block)):
        x, w = fresh(data)
        out = call(x, w)
        with torch.no_grad():
            w.add_(1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            out.sum().backward()


def test_a_view_that_an_eager_operator_reads_in_backward_is_kept(data):
    @ri.region("turned")
    def turned(w):
        return w.sin().t()

    def f(x, w):
        return x @ turned(w)

    views = []
    for recompute in ("regions", "off"):
        assert_bitwise(f, *data, recompute=recompute)
        views.append(operators(ri.last_report(), "backward")["aten.t.default"])
    assert views[0] == views[1]


def test_an_input_is_kept_rather_than_another_value_of_its_size(data):
    x, w = data[0].detach(), data[1][0].detach().clone().requires_grad_()

    @ri.region("scaled")
    def scaled(x, w):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * w

    # The weight's gradient needs the normed values: x and one number a row give them.
    assert kept_bytes(compiled(scaled), x, w) == ROWS * 4


@pytest.mark.inductor
def test_a_region_that_keeps_views_is_lowered_without_a_second_autograd(data, monkeypatch):
    from regional_inductor._torch import inductor

    def refused(*args):
        raise AssertionError("a region took the long way")

    monkeypatch.setattr(inductor, "compile_standalone", refused)
    monkeypatch.delenv(
        "REGIONAL_INDUCTOR_LOWERING", raising=False
    )  # this one is about the short way

    def f(x, w):
        return block(x, w) * 0.01

    assert_trains_like_eager(compiled(f, region_backend="inductor", on_error="raise"), f, *data)


@pytest.mark.parametrize("marks", ["parts", "blocks"])
def test_a_marked_llama_keeps_no_more_than_full_compilation(monkeypatch, marks):
    """Bytes of the storages that forward keeps besides its inputs, against torch's min-cut of the whole."""
    from pathlib import Path

    from functorch.compile import make_boxed_func, min_cut_rematerialization_partition
    from torch._dynamo.backends.common import aot_autograd
    from torch._inductor.decomposition import select_decomp_table

    from regional_inductor import backend

    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent))
    from benchmarks.gpu._llama import Marks, Shape, build, training_step

    shape = Shape(
        3, dim=64, heads=4, ffn=176, batch=2, sequence=64
    )  # dim to ffn as in the benchmark
    kept = {}

    def count(way, module):
        inputs = [n for n in module.graph.nodes if n.op == "placeholder"]
        storages = {n.meta["val"].untyped_storage()._cdata for n in inputs}
        for node in module.graph.output_node().args[0][1:]:
            value = node.meta.get("val")
            if isinstance(value, torch.Tensor):
                storage = value.untyped_storage()
                if storage._cdata not in storages:
                    storages.add(storage._cdata)
                    kept[way] = kept.get(way, 0) + storage.nbytes()

    def forward(module, inputs):
        count("full", module)
        return make_boxed_func(module)

    full = aot_autograd(
        fw_compiler=forward,
        bw_compiler=lambda module, inputs: make_boxed_func(module),
        partition_fn=min_cut_rematerialization_partition,
        decompositions=select_decomp_table(),
    )
    run_pass = backend.run_pass

    def counting(module, *args, **kwargs):
        if kwargs.get("direction") == "forward":
            count("ours", module)
        return run_pass(module, *args, **kwargs)

    monkeypatch.setattr(backend, "run_pass", counting)
    for way in ("full", "ours"):
        torch._dynamo.reset()
        model, x = build(shape, Marks(marks if way == "ours" else ""), "cpu")
        parameters = list(model.parameters())
        compiled = (
            torch.compile(model, backend=full)
            if way == "full"
            else ri.compile(model, capture="model", region_backend="eager")
        )
        training_step(compiled, parameters, x)
    assert kept["ours"] <= kept["full"], kept
