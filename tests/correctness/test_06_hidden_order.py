"""Point 6: order that data edges don't show.

PyTorch's pass merges across mutation, random draws, collectives and asserts, silently wrong.
"""

from __future__ import annotations

import contextlib

import pytest
import torch
from support.compare import assert_like_eager, assert_same, assert_trains_like_eager, fresh
from support.graphs import calls, capture, mark_nodes, marked, with_id
from support.under_test import call, regions_with


def unmarked_mutation_between_marked_reads(x):
    with marked():
        a = x.sin()
    x.add_(1)
    with marked():
        b = x.cos()
    return a + b


def marked_mutation_between_unmarked_reads(x):
    a = x.sin()
    with marked():
        x.mul_(2)
    return a + x.cos()


def marked_mutation_between_marked_reads(x):
    with marked():
        a = x.sin()
        x.add_(1)
        b = x.cos()
    return a + b


def view_taken_before_the_mutation_read_after(x):
    v = x.view(-1)
    with marked():
        a = v.sin()
    x.add_(1)
    with marked():
        b = v.cos()
    return a + b


def mutation_through_a_view(x):
    with marked():
        a = x.sin()
    x[0].fill_(3)
    with marked():
        b = x.tanh()
    return a + b


def mutation_through_a_view_made_in_the_region(x):
    with marked():
        v = x.view(-1)
        v.mul_(2)
    y = x.cos()
    with marked():
        v.add_(1)
    return y + x


def two_disjoint_views(x):
    first, second = x[:1], x[1:]
    with marked():
        first.add_(1)
        a = second.sin()
    second.mul_(2)
    with marked():
        b = first.cos() + second.sum()
    return a.sum() + b


def mutation_of_an_intermediate(x):
    y = x.exp()
    with marked():
        a = y.sin()
    y.add_(1)
    with marked():
        y.mul_(3)
        b = y.cos()
    return a + b, y


def copy_into_an_input(x):
    with marked():
        y = x.sin()
    z = x.cos()
    with marked():
        x.copy_(y + z)
    return x + 1


def write_after_an_unmarked_read_that_comes_late(x):
    with marked():
        a = x.sin()
    late = x.cos()
    with marked():
        x.add_(1)
        b = a.tanh()
    return late, b, x.exp()


def mutation_that_nobody_reads(x):
    with marked():
        x.add_(1)
    return torch.ones(2)


def in_place_on_a_slice_of_an_intermediate(x):
    y = torch.zeros_like(x)
    with marked():
        y[0] = x[0].sin()
    y[1] = 3
    with marked():
        y[2] = y[0] + y[1]
    return y.cos()


def set_item_then_clone(x):
    with marked():
        saved = x.clone()
    x[1] = 0
    with marked():
        return x + saved


def detach_shares_storage(x):
    d = x.detach()
    with marked():
        a = d.sin()
    x.add_(1)
    with marked():
        b = d.cos()
    return a + b


def out_variant(x):
    buffer = torch.zeros_like(x)
    with marked():
        a = buffer.cos()
    torch.sin(x, out=buffer)
    with marked():
        b = buffer.cos()
    return a + b


def foreach_mutation(x):
    y = x.exp()
    with marked():
        a = x.sin() + y
    torch._foreach_add_([x, y], 1)
    with marked():
        b = x.sin() + y
    return a, b


MUTATIONS = [
    unmarked_mutation_between_marked_reads,
    marked_mutation_between_unmarked_reads,
    marked_mutation_between_marked_reads,
    view_taken_before_the_mutation_read_after,
    mutation_through_a_view,
    mutation_through_a_view_made_in_the_region,
    two_disjoint_views,
    mutation_of_an_intermediate,
    copy_into_an_input,
    write_after_an_unmarked_read_that_comes_late,
    mutation_that_nobody_reads,
    in_place_on_a_slice_of_an_intermediate,
    set_item_then_clone,
    detach_shares_storage,
    out_variant,
    foreach_mutation,
]
by_name = pytest.mark.parametrize("fn", MUTATIONS, ids=lambda fn: fn.__name__)


@by_name
@pytest.mark.parametrize("mode", ["fake", "symbolic", "real"])
def test_mutation_and_views_in_a_make_fx_graph(under_test, fn, mode):
    """make_fx keeps in-place ops and views as they are: the graph isn't functional."""
    x = torch.randn(3, 4)
    result = under_test.apply(capture(fn, fresh(x), mode=mode), x)
    for _ in range(2):
        assert_like_eager(lambda x: call(result, x), fn, torch.randn(3, 4))


@by_name
@pytest.mark.parametrize("merge", ["all", "scope"])
def test_mutation_under_both_ways_of_merging(under_test, ri, fn, merge):
    x = torch.randn(3, 4)
    result = under_test.apply(capture(fn, fresh(x)), x, merge=merge)
    assert_like_eager(lambda x: call(result, x), fn, torch.randn(3, 4))


@by_name
def test_mutation_under_torch_compile(under_test, fn):
    assert_like_eager(under_test.compile(fn), fn, torch.randn(3, 4))


@pytest.mark.inductor
@pytest.mark.parametrize(
    "fn",
    [
        unmarked_mutation_between_marked_reads,
        view_taken_before_the_mutation_read_after,
        marked_mutation_between_marked_reads,
        mutation_through_a_view_made_in_the_region,
        mutation_of_an_intermediate,
        two_disjoint_views,
        copy_into_an_input,
    ],
    ids=lambda fn: fn.__name__,
)
def test_mutation_compiled_by_inductor(under_test, fn):
    x = torch.randn(3, 4)
    result = under_test.apply(capture(fn, fresh(x)), x)
    for _ in range(2):
        assert_like_eager(lambda x: call(result, x), fn, torch.randn(3, 4))


def test_all_ways_of_marking_a_mutating_graph(under_test):
    """Every subset of the nodes of one graph with aliases and writes, 64 ways of marking it."""

    def fn(x):
        v = x.view(-1)
        a = v.sin()
        x.add_(1)
        b = v.cos()
        v.mul_(2)
        return a + b, x.exp()

    names = [n.name for n in calls(capture(fn, torch.randn(2, 3)))][:6]
    for choice in range(1, 64):
        chosen = [name for bit, name in enumerate(names) if choice >> bit & 1]
        gm = mark_nodes(capture(fn, torch.randn(2, 3)), 0, *chosen)
        result = under_test.apply(gm, torch.randn(2, 3), **scope_half(under_test, choice))
        assert_like_eager(lambda x, r=result: call(r, x), fn, torch.randn(2, 3))


def scope_half(under_test, number):
    """Alternate the two ways of merging, where the pass has them."""
    if under_test.against != "ours":
        return {}
    return {"merge": ("all", "scope")[number % 2]}


# ---- aliasing of outputs ----------------------------------------------------------------------


def test_output_that_is_a_view_of_the_input_stays_one(under_test):
    def fn(x):
        with marked():
            v = x.view(-1)
            y = v.sin()
        return v, y + 1

    x = torch.randn(3, 4)
    v, _ = under_test.run(capture(fn, x), x)
    assert v.untyped_storage().data_ptr() == x.untyped_storage().data_ptr()


def test_outputs_that_share_storage_still_do(under_test):
    def fn(x):
        with marked():
            y = x.sin()
            t = y.t()
        return y, t

    x = torch.randn(3, 4)
    y, t = under_test.run(capture(fn, x), x)
    y.fill_(7)
    assert (t == 7).all()


def test_outputs_that_are_the_same_tensor_still_are(under_test):
    def fn(x):
        with marked():
            y = x.sin()
        return y, y

    x = torch.randn(3, 4)
    first, second = under_test.run(capture(fn, x), x)
    assert first is second


def test_outputs_that_share_nothing_still_do_not(under_test):
    """Two equal computations are two tensors; a caller may write into one of them."""

    def fn(x):
        with marked():
            return x.sin(), x.sin()

    x = torch.randn(3, 4)
    first, second = under_test.run(capture(fn, x), x)
    first.fill_(7)
    assert_same(second, x.sin())


def test_input_returned_by_a_region_is_the_input(under_test):
    def fn(x):
        with marked():
            x.add_(1)
        return x

    x = torch.randn(3)
    assert under_test.run(capture(fn, fresh(x)), x) is x


def test_strides_of_outputs_are_those_of_eager(under_test):
    def fn(x):
        with marked():
            y = x.sin().permute(2, 0, 1)
            z = (x.transpose(0, 1) * 2).contiguous(memory_format=torch.contiguous_format)
        return y, z, y + 1

    assert_like_eager(under_test.compile(fn), fn, torch.randn(2, 3, 4))


@pytest.mark.inductor
def test_strides_of_outputs_are_those_of_eager_compiled_by_inductor(under_test):
    def fn(x):
        with marked():
            y = x.sin().permute(2, 0, 1)
            z = x.transpose(0, 1) * 2
        return y, z, y + 1

    x = torch.randn(2, 3, 4)
    assert_like_eager(under_test.compile(fn), fn, x)
    result = under_test.apply(capture(fn, x), x)
    assert_like_eager(lambda x: call(result, x), fn, x)


# ---- random draws -----------------------------------------------------------------------------


def marked_draw_then_unmarked_then_marked(x):
    with marked():
        a = torch.rand(4) + x
    b = torch.rand(4)
    with marked():
        c = torch.rand(4) * x
    return a, b, c


def unmarked_draws_around_a_marked_one(x):
    a = torch.rand(4)
    with marked():
        b = torch.randn(4) * x
    c = torch.rand(4)
    return a, b, c


def draws_of_two_ids(x):
    with with_id("one"):
        a = torch.rand(4) + x
    with with_id("two"):
        b = torch.randn(4) + x
    with with_id("one"):
        c = torch.rand(4) + x
    with with_id("two"):
        d = torch.randn(4) + x
    return a + 1, b + 1, c + 1, d + 1


def draws_whose_results_are_used_in_another_order(x):
    with marked():
        a = torch.rand(4)
    b = torch.rand(4)
    with marked():
        c = torch.rand(4)
        y = c * x
    z = (b + y).cos()
    with marked():
        return z * a


def dropouts(x):
    drop = torch.nn.functional.dropout
    with marked():
        x = drop(x.sin(), 0.5)
    x = drop(x.cos(), 0.5)
    with marked():
        x = drop(x.tanh(), 0.5)
    return x + 1


def draw_that_nobody_reads(x):
    with marked():
        torch.rand(4)
        y = x.sin()
    return y + torch.rand(4)


def in_place_draw(x):
    with marked():
        a = torch.empty(4).uniform_() + x
    b = torch.empty(4).normal_()
    with marked():
        c = torch.bernoulli(torch.full((4,), 0.5)) + x
    return a, b, c


DRAWS = [
    marked_draw_then_unmarked_then_marked,
    unmarked_draws_around_a_marked_one,
    draws_of_two_ids,
    draws_whose_results_are_used_in_another_order,
    dropouts,
    in_place_draw,
]
by_draw = pytest.mark.parametrize("fn", DRAWS, ids=lambda fn: fn.__name__)


@pytest.fixture
def fallback_random():
    from torch._inductor import config

    with config.patch(fallback_random=True):
        yield


@by_draw
def test_random_draws_under_torch_compile(under_test, fallback_random, fn):
    assert_like_eager(under_test.compile(fn), fn, torch.randn(4))


@by_draw
@pytest.mark.parametrize("mode", ["fake", "real"])
def test_random_draws_in_a_make_fx_graph(under_test, fallback_random, fn, mode):
    x = torch.randn(4)
    result = under_test.apply(capture(fn, x, mode=mode), x)
    assert_like_eager(lambda x: call(result, x), fn, x)


def test_random_draw_that_nobody_reads_in_a_make_fx_graph(under_test, fallback_random):
    """torch calls a draw impure: dead-code elimination keeps it, so the pass has to."""
    fn = draw_that_nobody_reads
    x = torch.randn(4)
    gm = capture(fn, x, mode="real")
    assert_like_eager(gm, fn, x)
    assert_like_eager(lambda x: call(under_test.apply(gm, x), x), fn, x)


def test_dropouts_in_training(under_test, fallback_random):
    compiled = under_test.compile(dropouts)
    assert_trains_like_eager(compiled, dropouts, torch.randn(4, requires_grad=True))


@pytest.mark.inductor
@by_draw
def test_random_draws_compiled_by_inductor(under_test, fallback_random, fn):
    assert_like_eager(under_test.compile(fn), fn, torch.randn(4))
    x = torch.randn(4)
    result = under_test.apply(capture(fn, x), x)
    assert_like_eager(lambda x: call(result, x), fn, x)


@pytest.mark.skipif(
    torch.__version__ < "2.12", reason="make_fx of this torch version can't capture a generator"
)
def test_draws_of_a_generator_argument(under_test):
    generator = torch.Generator()

    def fn(x):
        with marked():
            a = torch.rand(4, generator=generator) + x
        b = torch.rand(4, generator=generator)
        with marked():
            c = torch.rand(4, generator=generator) * x
        return a, b, c

    x = torch.randn(4)
    gm = capture(fn, x, mode="real")
    generator.manual_seed(3)
    expected = fn(x)
    generator.manual_seed(3)
    assert_same(under_test.run(gm, x), expected)


# ---- effects ----------------------------------------------------------------------------------


def prints(x):
    with marked():
        torch.ops.aten._print("1")
        y = x.sin()
    torch.ops.aten._print("2")
    y = y.cos()
    with marked():
        torch.ops.aten._print("3")
        y = y.tanh()
    torch.ops.aten._print("4")
    return y + 1


def prints_without_data_edges(x):
    with marked():
        a = x.sin()
        torch.ops.aten._print("1")
    torch.ops.aten._print("2")
    with marked():
        torch.ops.aten._print("3")
        b = x.tanh()
    return a + 1, b + 1


def prints_of_two_ids(x):
    with with_id("one"):
        torch.ops.aten._print("1")
        a = x.sin()
    with with_id("two"):
        torch.ops.aten._print("2")
        b = x.tanh()
    with with_id("one"):
        torch.ops.aten._print("3")
    with with_id("two"):
        torch.ops.aten._print("4")
    return a + 1, b + 1


PRINTS = [prints, prints_without_data_edges, prints_of_two_ids]


@pytest.mark.parametrize("fn", PRINTS, ids=lambda fn: fn.__name__)
def test_effects_happen_in_order(under_test, capfd, fn):
    """Under torch.compile effectful ops are chained by tokens."""
    x = torch.randn(4)
    expected = fn(x)
    printed = capfd.readouterr().out
    compiled = under_test.compile(fn)
    for _ in range(2):
        assert_same(compiled(x), expected)
        assert capfd.readouterr().out.split() == printed.split()


@pytest.mark.inductor
@pytest.mark.both_lowerings
@pytest.mark.parametrize("fn", PRINTS, ids=lambda fn: fn.__name__)
def test_effects_happen_in_order_compiled_by_inductor(under_test, capfd, fn):
    x = torch.randn(4)
    expected = fn(x)
    printed = capfd.readouterr().out
    compiled = under_test.compile(fn)
    for _ in range(2):
        assert_same(compiled(x), expected)
        assert capfd.readouterr().out.split() == printed.split()


LOG: list[str] = []


@pytest.fixture(scope="module")
def log_op():
    """An operator without results that writes down when it runs; FX counts it as impure."""
    with torch.library._scoped_library("regional_inductor_tests", "FRAGMENT") as library:
        library.define("log(Tensor x, str text) -> ()")
        library.impl("log", lambda x, text: LOG.append(text), "CPU")
        library.impl("log", lambda x, text: None, "Meta")
        op = torch.ops.regional_inductor_tests.log.default
        torch.fx.node.has_side_effect(op)
        yield op
        torch.fx.node._side_effectful_functions.discard(op)


@pytest.mark.parametrize("merge", ["all", "scope"])
def test_impure_ops_of_a_make_fx_graph_happen_in_order(under_test, log_op, merge):
    def fn(x):
        with marked():
            a = x.sin()
            log_op(a, "1")
        log_op(x, "2")
        with marked():
            log_op(x, "3")
            b = x.cos()
        log_op(a, "4")
        return a + b

    x = torch.randn(4)
    gm = capture(fn, x, mode="real")
    options = {"merge": merge} if under_test.against == "ours" else {}
    result = under_test.apply(gm, x, **options)
    LOG.clear()
    assert_same(call(result, x), x.sin() + x.cos())
    assert LOG == ["1", "2", "3", "4"]


# ---- asserts ----------------------------------------------------------------------------------


def assert_is_the_whole_region(x):
    with marked():
        torch._assert_async((x > 0).all(), "x must be positive")
    return x.sin()


def assert_beside_other_work(x):
    with marked():
        y = x.sin() * 2
        torch._assert_async((x > 0).all(), "x must be positive")
    return y.cos()


def assert_guards_an_unmarked_op(x):
    y = x.cos()
    with marked():
        torch._assert_async((y < 2).all(), "y must be small")
        torch._assert_async((x > 0).all(), "x must be positive")
    return y.log()


ASSERTS = [assert_is_the_whole_region, assert_beside_other_work, assert_guards_an_unmarked_op]
by_assert = pytest.mark.parametrize("fn", ASSERTS, ids=lambda fn: fn.__name__)


@contextlib.contextmanager
def fails_as_written():
    with pytest.raises(RuntimeError, match="x must be positive"):
        yield


@by_assert
@pytest.mark.parametrize("mode", ["fake", "real"])
def test_assert_survives_in_a_make_fx_graph(under_test, fn, mode):
    x = torch.rand(4) + 1
    result = under_test.apply(capture(fn, x, mode=mode), x)
    assert_same(call(result, x), fn(x))
    with fails_as_written():
        call(result, -x)


@by_assert
def test_assert_survives_under_torch_compile(under_test, fn):
    compiled = under_test.compile(fn)
    x = torch.rand(4) + 1
    assert_same(compiled(x), fn(x))
    with fails_as_written():
        compiled(-x)


@by_assert
def test_assert_survives_dead_code_elimination_of_the_result(under_test, fn):
    """The stitching graph may be cleaned by a later pass of the user."""
    x = torch.rand(4) + 1
    result = under_test.apply(capture(fn, x), x)
    result.graph.eliminate_dead_code()
    result.recompile()
    assert_same(call(result, x), fn(x))
    with fails_as_written():
        call(result, -x)


@pytest.mark.inductor
@by_assert
def test_assert_survives_inductor(under_test, fn):
    x = torch.rand(4) + 1
    result = under_test.apply(capture(fn, x), x)
    assert_same(call(result, x), fn(x))
    with fails_as_written():
        call(result, -x)


def test_assert_is_a_region(under_test):
    x = torch.rand(4) + 1
    with under_test.watch() as seen:
        under_test.apply(capture(assert_is_the_whole_region, x), x)
    assert len(regions_with(seen, "_assert_async")) == 1


# ---- collectives ------------------------------------------------------------------------------


@pytest.fixture
def one_rank(tmp_path):
    """A process group of this process alone."""
    dist = torch.distributed
    if not (dist.is_available() and dist.is_gloo_available()):
        pytest.skip("no gloo")
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield dist.group.WORLD
    dist.destroy_process_group()


def all_reduced(x, group):
    from torch.distributed import _functional_collectives as funcol

    return funcol.wait_tensor(funcol.all_reduce(x, "sum", group))


@pytest.mark.parametrize("merge", ["all", "scope"])
def test_collectives_keep_their_order(under_test, one_rank, merge):
    """Ranks that issue collectives in different orders hang."""

    def fn(x):
        with marked():
            a = all_reduced(x.sin(), one_rank)
        b = all_reduced(x.cos(), one_rank)
        with marked():
            c = all_reduced(x.tanh(), one_rank)
        return a, b, c

    x = torch.randn(4)
    gm = capture(fn, x, mode="fake")
    options = {"merge": merge} if under_test.against == "ours" else {}
    result = under_test.apply(gm, x, **options)
    issued = []

    class Record(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if "all_reduce" in str(func):
                issued.append(args[0])
            return func(*args, **(kwargs or {}))

    with Record():
        out = call(result, x)
    assert_same(out, fn(x))
    if under_test.region_backend == "eager":
        assert_same(issued, [x.sin(), x.cos(), x.tanh()])


def test_collectives_stay_out_of_regions_by_default(under_test, one_rank, ri):
    def fn(x):
        with marked():
            return all_reduced(x.sin(), one_rank).tanh() + 1

    x = torch.randn(4)
    with under_test.watch() as seen:
        assert_same(under_test.run(capture(fn, x), x), fn(x))
    assert not regions_with(seen, "all_reduce")
    assert not regions_with(seen, "wait_tensor")
    assert regions_with(seen, "sin")
    assert regions_with(seen, "tanh")


def test_collectives_join_a_region_where_asked_for(under_test, one_rank, ri):
    def fn(x):
        with ri.region("with collectives", collectives="include"):
            return all_reduced(x.sin(), one_rank).tanh() + 1

    x = torch.randn(4)
    with under_test.watch() as seen:
        assert_like_eager(under_test.compile(fn), fn, x)
    assert regions_with(seen, "all_reduce")
