"""`capture="blocks"`: which modules are blocks, and that nothing but the time to compile differs."""

from __future__ import annotations

import copy
import io
import pickle
import threading
import warnings
from collections import Counter

import pytest
import torch
import torch.utils.checkpoint
from torch import nn
from torch.fx.traceback import annotate

import regional_inductor as ri
from regional_inductor.block_capture import BlockCapture
from regional_inductor.blocks import layout_of

# Dynamo looks at the attribute itself, and hides only what the default filters would print.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")

WIDTH = 8


class Norm(nn.Module):
    def __init__(self, width=WIDTH):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.weight


@ri.region("swiglu")
def swiglu(gate, up):
    return nn.functional.silu(gate) * up


class Block(nn.Module):
    """A norm, a rotation by tables from outside and a gated MLP, with a count of its calls."""

    def __init__(self, width=WIDTH):
        super().__init__()
        self.norm = Norm(width)
        self.gate, self.up = nn.Linear(width, 16), nn.Linear(width, 16)
        self.down = nn.Linear(16, width)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, x, table, *, scale=1.0):
        self.calls.add_(1)
        h = self.norm(x)
        with ri.region("rope"):
            h = h * table.cos() + h.flip(-1) * table.sin()
        return x + self.down(swiglu(self.gate(h), self.up(h))) * scale


class Tables(nn.Module):
    def forward(self, x):
        with ri.region("tables"):
            return torch.arange(x.shape[-1], device=x.device) * 0.1 + 0.5


class Model(nn.Module):
    """Blocks with marks in them, marked code around them, and an unmarked module."""

    def __init__(self, layers=4, checkpoint=False):
        super().__init__()
        self.checkpoint = checkpoint
        self.embed = nn.Linear(WIDTH, WIDTH)
        self.tables = Tables()
        self.layers = nn.ModuleList(Block() for _ in range(layers))
        self.norm = Norm()

    def forward(self, x, *, scale=1.0):
        x = self.embed(x)
        table = self.tables(x)
        for layer in self.layers:
            if self.checkpoint:
                x = torch.utils.checkpoint.checkpoint(
                    layer, x, table, scale=scale, use_reentrant=False
                )
            else:
                x = layer(x, table, scale=scale)
        return self.norm(x)


@pytest.fixture
def x():
    return torch.randn(3, WIDTH)


def model_of(kind=Model, **arguments):
    torch.manual_seed(0)
    model = kind(**arguments)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    return model


def compiled(model, **arguments):
    arguments = {"capture": "blocks", "region_backend": "eager", **arguments}
    assert ri.compile(model, **arguments) is model
    return model


def results(model, x, **kwargs):
    """Output, gradients and buffers of one training step."""
    x = x.clone().requires_grad_()
    model.zero_grad()
    out = model(x, **kwargs)
    (out * torch.linspace(-1, 1, out.shape[-1])).sum().backward()
    gradients = {name: value.grad for name, value in model.named_parameters()}
    return {"out": out.detach(), "x": x.grad, **gradients, **dict(model.named_buffers())}


def assert_as_eager(actual, expected):
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, msg=lambda text, n=name: f"{n}: {text}")


def regions(model):
    """The names of the forward regions, with the modules they are in."""
    return sorted((r.name, r.module_path) for r in model.report.regions if r.direction == "forward")


BLOCK_REGIONS = [("rope", "layers.*"), ("swiglu", "layers.*"), ("tables", "tables")]


# --- which modules are blocks ---------------------------------------------------------------------


def paths(model):
    layout = layout_of(model)
    return (
        {kind.path: len(kind.modules) for kind in layout.kinds},
        [path for path, _ in layout.outside],
        [path for path, _ in layout.around],
    )


def test_blocks_are_entries_of_a_container_that_are_built_alike():
    assert paths(Model(3)) == (
        {"layers.*": 3},
        ["embed", "tables", "norm"],
        ["", "layers"],
    )


def test_entries_that_differ_are_searched_for_blocks_of_their_own():
    stages = nn.Sequential(
        nn.Sequential(Block(8), Block(8)), nn.Sequential(Block(16), Block(16), Block(16))
    )
    kinds, outside, around = paths(stages)
    assert kinds == {"0.*": 2, "1.*": 3}
    assert outside == []
    assert around == ["", "0", "1"]


def test_of_nested_blocks_the_outermost_count():
    model = nn.ModuleList(nn.Sequential(Block(), Block()) for _ in range(3))
    assert paths(model)[0] == {"*": 3}


def test_a_block_of_another_shape_is_no_block():
    model = nn.ModuleList([Block(8), Block(8), Block(16)])
    assert paths(model)[:2] == ({"*": 2}, ["2"])


def test_lists_of_torchs_own_single_modules_are_no_blocks():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU())
    assert paths(model)[0] == {}


def test_one_block_in_many_places_is_one_block():
    block = Block()
    kinds, outside, _ = paths(nn.ModuleList([block] * 5))
    assert (kinds, outside) == ({"*": 1}, [])


def test_wrappers_around_blocks_are_left_out():
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    model = Model(2)
    blocks = list(model.layers)
    model.layers = nn.ModuleList(checkpoint_wrapper(block) for block in blocks)
    (kind,) = layout_of(model).kinds
    assert list(kind.modules) == blocks


# --- what is compiled -----------------------------------------------------------------------------


def test_results_are_those_of_eager_mode_and_of_a_whole_capture(x):
    expected = results(model_of(), x)
    assert_as_eager(results(compiled(model_of()), x), expected)
    assert_as_eager(results(compiled(model_of(), capture="model"), x), expected)


@pytest.mark.inductor
def test_results_are_those_of_eager_mode_when_truly_compiled(x):
    model = compiled(model_of(), region_backend="inductor", on_error="raise")
    assert_as_eager(results(model, x), results(model_of(), x))
    assert {r.status for r in model.report.regions} == {"compiled"}


def test_the_model_stays_what_it_was(x):
    model = model_of()
    keys, blocks = list(model.state_dict()), list(model.layers)
    compiled(model)(x)
    assert list(model.state_dict()) == keys
    assert list(model.layers) == blocks
    assert type(model.layers[0]) is Block
    assert "forward" not in model.layers[0].__dict__


@pytest.mark.parametrize("layers", [2, 24])
def test_captures_do_not_grow_with_depth(layers, x):
    torch._dynamo.utils.counters.clear()
    model = compiled(model_of(layers=layers))
    results(model, x)
    results(model, x)
    # The norm and the embedding carry no marks; the embedding is torch's own, and not even looked at.
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 3
    assert torch._dynamo.utils.counters["aot_autograd"]["total"] == 2
    assert model.report.captures == 2
    assert regions(model) == BLOCK_REGIONS


def test_marks_on_modules_reach_blocks_and_what_is_outside(x):
    model = model_of()
    ri.mark(model, "**.norm", name="norm")
    ri.mark(model, "embed", name="embed")
    compiled(model)
    assert_as_eager(results(model, x), results(model_of(), x))
    # The norm in a block and what is marked next join, as they do in a whole capture.
    assert regions(model) == [
        ("embed", "embed"),
        ("norm", "norm"),
        ("norm+rope", "layers.*"),
        ("swiglu", "layers.*"),
        ("tables", "tables"),
    ]


def test_a_mark_on_one_block_alone_is_honoured(x):
    model = model_of()
    ri.mark(model, "layers.2.norm", name="norm")
    compiled(model)
    assert_as_eager(results(model, x), results(model_of(), x))
    counted = Counter(name for name, _ in regions(model))
    assert counted == {"rope": 1, "norm+rope": 1, "swiglu": 2, "tables": 1}


def test_marks_can_be_put_and_removed_after_compiling(x):
    model = compiled(model_of())
    with torch.no_grad():
        expected = model(x)
        handle = ri.mark(model, "layers.*.norm", name="late")
        assert torch.equal(model(x), expected)
        assert "late+rope" in {region.name for region in model.report.regions}
        captures = model.report.captures
        handle.remove()
        assert torch.equal(model(x), expected)
        assert model.report.captures == captures  # the first ones hold again


@ri.region("loss", options={"max_autotune": True})
def loss_of(x, weight):
    return (x.square() * weight).sum(-1)


class WithLoss(Model):
    def forward(self, x):
        return loss_of(super().forward(x), self.norm.weight)[:, None]


def test_marked_functions_that_plain_code_calls_are_compiled(x):
    model = compiled(model_of(WithLoss))
    assert_as_eager(results(model, x), results(model_of(WithLoss), x))
    (loss,) = [region for region in model.report.regions if region.name == "loss"][:1]
    assert loss.options == {"max_autotune": True}
    assert loss.direction == "forward"


def test_marked_functions_are_compiled_in_the_models_calls_only(x):
    model = compiled(model_of(WithLoss))
    results(model, x)
    captures = model.report.captures
    loss_of(torch.randn(5, 4, 3), torch.ones(3))
    assert model.report.captures == captures


class Around(Model):
    """Every block and the last norm under marks of the code that calls them."""

    def forward(self, x):
        table = self.tables(x)
        for index, layer in enumerate(self.layers):
            if index % 2:
                with ri.region("odd", options={"epilogue_fusion": False}):
                    x = layer(x, table)
            else:
                x = layer(x, table)
        with annotate({"compile_with_inductor": "last"}):
            return self.norm(x)


def test_marks_around_calls_of_blocks_and_modules_hold_for_these(x):
    model = compiled(model_of(Around))
    assert_as_eager(results(model, x), results(model_of(Around), x))
    options = {(r.name, tuple(r.options)) for r in model.report.regions if r.direction == "forward"}
    assert ("odd", ("epilogue_fusion",)) in options
    assert {name for name, _ in options} >= {"rope", "swiglu", "odd", "tables"}
    assert not [finding for finding in model.report.findings if finding.kind == "uncaptured"]


def test_an_eager_scope_around_a_block_keeps_its_unmarked_code_out(x):
    class Eager(Model):
        def forward(self, x):
            table = self.tables(x)
            with ri.eager():
                for layer in self.layers:
                    x = layer(x, table)
            return x

    model = compiled(model_of(Eager))
    with torch.no_grad():
        torch.testing.assert_close(model(x), model_of(Eager)(x))
    assert regions(model) == BLOCK_REGIONS


# --- what can't be compiled is told ---------------------------------------------------------------


class Inline(Model):
    def forward(self, x):
        x = super().forward(x)
        with ri.region("inline"):
            return x.sin() * 2


class Annotated(Model):
    def forward(self, x):
        x = super().forward(x)
        with annotate({"compile_with_inductor": "inline"}):
            return x.sin() * 2


@pytest.mark.parametrize("kind", [Inline, Annotated])
def test_marked_operators_in_plain_code_warn_with_their_line(kind, x):
    model = compiled(model_of(kind))
    with pytest.warns(ri.RegionWarning) as warned, torch.no_grad():
        actual = model(x)
    torch.testing.assert_close(actual, model_of(kind)(x))
    (message,) = [str(warning.message) for warning in warned]
    line = kind.forward.__code__.co_firstlineno + 3
    assert message.startswith("aten.sin.default is marked and runs eagerly")
    assert "region: inline" in message
    assert f"marked at: {__file__}:{line}" in message
    assert "way out: move what is marked into a function" in message
    assert [finding.kind for finding in model.report.findings] == ["uncaptured"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with torch.no_grad():
            model(x)  # said once


def test_marked_operators_in_plain_code_raise_if_asked(x):
    model = compiled(model_of(Inline), on_error="raise")
    with pytest.raises(ri.MarkError, match="is marked and runs eagerly"):
        model(x)


def test_an_id_says_that_it_joins_nothing_outside_its_block(x):
    model = model_of()
    ri.mark(model, "**.norm", id="norms")
    compiled(model)(x)
    (finding,) = model.report.findings
    assert finding.message.startswith("the id 'norms' is in code that is captured by itself")


class Numbered(nn.Module):
    """Blocks that Dynamo's guards tell apart: each returns something else by a number of its own."""

    class Block(Block):
        def __init__(self, number):
            super().__init__()
            self.number = number

        def forward(self, x, table):
            return super().forward(x, table, scale=1.0) + self.number % 3 + (self.number > 3)

    def __init__(self, layers=6):
        super().__init__()
        self.layers = nn.ModuleList(Numbered.Block(i) for i in range(layers))

    def forward(self, x):
        for layer in self.layers:
            x = layer(x, x.new_ones(x.shape[-1]))
        return x


@torch._dynamo.config.patch(recompile_limit=4)
def test_blocks_that_guards_tell_apart_are_all_captured(x):
    model = compiled(model_of(Numbered))
    eager = model_of(Numbered)
    for step in (results, results, lambda model, x: results(model, x[:2])):
        assert_as_eager(step(model, x), step(eager, x))
    (finding,) = [f for f in model.report.findings if f.kind == "blocks"]
    assert "layers.* are built alike" in finding.message
    captures = model.report.captures
    with torch.no_grad():
        torch.testing.assert_close(model(x), eager(x))
    assert model.report.captures == captures + 6  # each by itself, and none left to eager mode


def test_models_without_blocks_are_refused():
    with pytest.raises(ri.OptionError, match="found no repeated blocks in Sequential"):
        ri.compile(nn.Sequential(nn.Linear(4, 4)), capture="blocks")
    with pytest.raises(ri.OptionError, match="captures modules of a model, not function"):
        ri.compile(lambda x: x, capture="blocks")
    with pytest.raises(ri.OptionError, match="capture='block' is not a choice") as caught:
        ri.compile(Model(), capture="block")
    assert "'auto', 'blocks', 'model'" in caught.value.hint


# --- what blocks are called with and in -----------------------------------------------------------


def test_checkpointed_blocks(x):
    model = compiled(model_of(checkpoint=True))
    assert_as_eager(results(model, x), results(model_of(checkpoint=True), x))
    assert regions(model) == BLOCK_REGIONS


class Recomputed(Model):
    """Checkpoints around a block under a mark, and around a marked function."""

    reentrant = False

    def forward(self, x):
        x = self.embed(x)
        table = self.tables(x)
        for layer in self.layers:
            with ri.region("block"):
                x = torch.utils.checkpoint.checkpoint(layer, x, table, use_reentrant=self.reentrant)
            x = torch.utils.checkpoint.checkpoint(swiglu, x, x, use_reentrant=self.reentrant)
        return self.norm(x)


class RecomputedByAnotherRun(Recomputed):
    reentrant = True


@pytest.mark.parametrize("kind", [Recomputed, RecomputedByAnotherRun])
def test_checkpoints_run_again_what_was_compiled(kind, x):
    model = compiled(model_of(kind))
    actual = results(model, x)
    captures = model.report.captures
    assert_as_eager(actual, results(model_of(kind), x))
    results(model, x)
    assert model.report.captures == captures
    assert not [f for f in model.report.findings if f.kind != "recomputed"]


class Halves(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        return self.left(x), self.right(x)


@ri.region
def joined(a, b):
    """Eager saves two tensors that look like those that are saved where it is compiled, and aren't."""
    return (a.sin() * b.exp()).cos()


class Joined(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(Halves() for _ in range(4))

    def forward(self, x):
        for layer in self.layers:
            x = torch.utils.checkpoint.checkpoint(joined, *layer(x), use_reentrant=False)
        return x


def test_checkpoints_of_models_in_several_threads_save_what_they_had_saved(x):
    """Their nodes have the same numbers; the third model isn't compiled."""
    models = [model_of(Joined) for _ in range(3)]
    calls = [compiled(models[0]), compiled(models[1]), models[2]]
    losses = []
    for call in calls:
        thread = threading.Thread(target=lambda call=call: losses.append(call(x).sum()))
        thread.start()
        thread.join()
    for loss in losses:
        loss.backward()
    expected = model_of(Joined)
    expected(x).sum().backward()
    for model in models:
        for actual, wanted in zip(model.parameters(), expected.parameters(), strict=True):
            torch.testing.assert_close(actual.grad, wanted.grad)


class UnderTwoMarks(Model):
    """Each block is called twice, under another mark each time."""

    def forward(self, x):
        x = self.embed(x)
        table = self.tables(x)
        for mark in (ri.region("first"), ri.region("second")):
            for layer in self.layers:
                with mark:
                    x = torch.utils.checkpoint.checkpoint(layer, x, table, use_reentrant=False)
        return self.norm(x)


def test_a_block_is_run_again_under_the_mark_that_it_was_run_under(x, monkeypatch):
    model = compiled(model_of(UnderTwoMarks))
    ran = []
    run = BlockCapture.run

    def noting(self, entry, subject, args, kwargs):
        if isinstance(subject, Block):
            ran.append((entry, subject))
        return run(self, entry, subject, args, kwargs)

    monkeypatch.setattr(BlockCapture, "run", noting)
    assert_as_eager(results(model, x), results(model_of(UnderTwoMarks), x))
    assert len(ran) == 16
    assert ran[:8] == ran[:7:-1]


def test_keyword_arguments_and_buffers(x):
    model = compiled(model_of())
    assert_as_eager(results(model, x, scale=0.5), results(model_of(), x, scale=0.5))
    assert [int(layer.calls) for layer in model.layers] == [1] * 4


def test_hooks_on_one_block_or_in_one_block_run(x):
    def seen_by(model):
        seen = []
        model.layers[1].register_forward_hook(lambda m, i, o: seen.append("block 1"))
        model.layers[2].norm.register_forward_pre_hook(lambda m, i: seen.append("norm 2"))
        model.layers[0].register_forward_hook(lambda m, i, o: o * 2)
        model.layers[3].register_full_backward_hook(lambda m, i, o: seen.append("backward 3"))
        return seen

    model, eager = model_of(), model_of()
    compiled(model)
    assert_as_eager(results(model, x), results(eager, x))
    seen, expected = seen_by(model), seen_by(eager)  # after blocks were captured without any hook
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert_as_eager(results(model, x), results(eager, x))
    assert seen == expected == ["block 1", "norm 2", "backward 3"]


def test_dynamos_own_setting_for_hooks_is_left_as_it_was(x):
    before = torch._dynamo.config.skip_nnmodule_hook_guards
    compiled(model_of())(x)
    assert torch._dynamo.config.skip_nnmodule_hook_guards is before


def test_autocast_around_the_model(x):
    model, eager = compiled(model_of()), model_of()
    with torch.no_grad():
        torch.testing.assert_close(model(x), eager(x))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            actual, expected = model(x), eager(x)
    assert actual.dtype == expected.dtype
    torch.testing.assert_close(actual, expected, atol=0.05, rtol=0.05)


def test_training_inference_and_other_sizes(x):
    model, eager = compiled(model_of()), model_of()
    for rows in (3, 5, 6):
        assert_as_eager(
            results(model, torch.ones(rows, WIDTH)), results(eager, torch.ones(rows, WIDTH))
        )
    model.eval(), eager.eval()
    with torch.inference_mode():
        torch.testing.assert_close(model(x), eager(x))


def test_calls_from_several_threads(x):
    model, expected = compiled(model_of()), model_of()(x)
    found = {}

    def run(number):
        with torch.no_grad():
            found[number] = model(x)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for value in found.values():
        torch.testing.assert_close(value, expected)
    assert len(found) == 4


def test_copies_and_pickles_are_models_of_their_own(x):
    model = compiled(model_of())
    expected = model(x)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    others = [
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
        torch.load(file, weights_only=False),
    ]
    captures = model.report.captures
    for other in others:
        torch.testing.assert_close(other(x), expected)
        with torch.no_grad():
            other.layers[0].down.weight.zero_()
        assert not torch.allclose(other(x), expected)
        compiled(other)(x)
    assert model.report.captures == captures
    torch.testing.assert_close(model(x), expected)


def test_a_block_called_by_itself_is_compiled_too(x):
    model = compiled(model_of())
    table = torch.ones(WIDTH)
    torch.testing.assert_close(model.layers[0](x, table), model_of().layers[0](x, table))
    assert [name for name, _ in regions(model)] == ["rope", "swiglu"]


def test_a_compiled_model_can_be_captured_as_a_whole(x):
    model, expected = compiled(model_of()), model_of()(x)
    model(x)
    program = ri.export(model, (x,))
    torch.testing.assert_close(program.module()(x), expected)
    outer = torch.compile(lambda x: model(x), backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(outer(x), expected)


def test_compiling_again_replaces_the_capture(x):
    model = compiled(model_of())
    model(x)
    compiled(model, capture="model")
    torch.testing.assert_close(model(x), model_of()(x))
    assert model.report.captures == 1
    assert regions(model) != BLOCK_REGIONS
    compiled(model)(x)
    assert regions(model) == BLOCK_REGIONS


def test_fullgraph_is_asked_of_each_block(x):
    class Broken(Model):
        def forward(self, x):
            print(end="")  # where blocks are captured, this may do what it likes
            return super().forward(x)

    model = compiled(model_of(Broken), fullgraph=True)
    torch.testing.assert_close(model(x), model_of(Broken)(x))


def test_rules_mark_in_blocks_and_modules(x):
    model = compiled(model_of(), rules="norms")
    assert_as_eager(results(model, x), results(model_of(), x))
    assert {("norm", "norm"), ("norm+rope", "layers.*")} <= set(regions(model))


# --- auto -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("layers", "captures"), [(8, 2), (7, 1)])
def test_auto_captures_blocks_where_there_are_many(layers, captures, x):
    model = compiled(model_of(layers=layers), capture="auto")
    model(x)
    assert model.report.captures == captures


@pytest.mark.parametrize(
    "asked", [{"fullgraph": True}, {"merge": "all"}, {"rules": "norms"}], ids=str
)
def test_auto_captures_the_whole_where_that_is_asked_for(asked, x):
    model = compiled(model_of(layers=8), capture="auto", **asked)
    model(x)
    assert model.report.captures == 1


@pytest.mark.parametrize("pattern", ["", "layers.*.norm"])
def test_auto_captures_the_whole_where_marks_reach_across_blocks(pattern, x):
    model = model_of(layers=8)
    ri.mark(model, pattern, id="norms" if pattern else None)
    compiled(model, capture="auto")(x)
    assert model.report.captures == 1


def test_auto_goes_over_to_the_whole_rather_than_leave_marked_code_out(x):
    model = compiled(model_of(Inline, layers=8), capture="auto")
    expected = results(model_of(Inline, layers=8), x)
    with warnings.catch_warnings():
        warnings.simplefilter("error", ri.RegionWarning)
        assert_as_eager(results(model, x), expected)
    assert ("inline", "") not in regions(model)
    model.load_state_dict(model_of(Inline, layers=8).state_dict())
    assert_as_eager(results(model, x), expected)
    assert ("inline", "") in regions(model)
    assert "uncaptured" in {finding.kind for finding in model.report.findings}


# --- explain, verify, bisect ----------------------------------------------------------------------


def test_explain_goes_by_blocks_where_the_model_does(x):
    model = compiled(model_of(WithLoss))
    report = ri.explain(model, x, region_backend="eager")
    names = {region.name for region in report.regions if region.direction == "forward"}
    assert names == {"rope", "swiglu", "tables", "loss"}
    assert report.captures == 3
    assert ri.explain(model, x, capture="model", region_backend="eager").captures == 1
    assert model.report.captures == 0  # nothing was compiled, and the model goes on as it was
    model(x)
    assert model.report.captures == 3


def test_explain_finds_what_blocks_leave_out(x):
    report = ri.explain(model_of(Inline), x, capture="blocks", region_backend="eager")
    assert [finding.kind for finding in report.findings] == ["uncaptured"]


def test_explain_says_which_marked_modules_take_no_part(x):
    model = model_of()
    model.unused = Norm()
    ri.mark(model, "layers.*.norm", "unused")
    report = ri.explain(model, x, capture="blocks", region_backend="eager")
    assert [f.message.split(" matched")[0] for f in report.findings] == [
        "the mark on module 'unused'"
    ]


def test_verify_checks_all_that_blocks_capture(x):
    model = compiled(model_of(WithLoss, checkpoint=True))
    result = ri.verify(model, x, show=False)
    assert result.ok
    calls = {(r.name, r.direction): r.calls for r in result.regions}
    assert calls["loss", "forward"] == 1
    assert calls["swiglu", "backward"] == 4
    assert calls["swiglu", "forward"] == 8  # and once more for each checkpoint
    assert model.report.captures == 0
    assert_as_eager(results(model, x), results(model_of(WithLoss, checkpoint=True), x))


def test_bisect_finds_a_region_of_blocks(x):
    def check(run, x):
        with torch.no_grad():
            run(x)
        met = {r.name for r in ri.last_report().regions if r.status != "eager"}
        return "rope" not in met

    model = compiled(model_of())
    found = ri.bisect(model, x, check=check, script=None, show=False)
    assert [culprit.name for culprit in found.culprits] == ["rope"]
