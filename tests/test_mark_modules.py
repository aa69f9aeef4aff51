"""`mark`: modules of a model, in place."""

from __future__ import annotations

import copy
import functools
import inspect
import io
import pickle
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist
import torch.utils.checkpoint
from test_mark import Capture, marks_of, names, trace_without_comparing
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

import regional_inductor as ri


class MLP(nn.Module):
    def __init__(self):
        super().__init__()
        self.up = nn.Linear(4, 8)
        self.down = nn.Linear(8, 4)

    def forward(self, x, scale=1.0):
        return self.down(self.up(x).relu()) * scale


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(4)
        self.mlp = MLP()

    def forward(self, x):
        return x + self.mlp(self.norm(x))


class Model(nn.Module):
    def __init__(self, layers=2):
        super().__init__()
        self.layers = nn.ModuleList(Layer() for _ in range(layers))
        self.norm = nn.LayerNorm(4)

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)


@pytest.fixture
def model():
    return Model()


@pytest.fixture
def x():
    return torch.randn(2, 4)


def marked_names(model, *args):
    """The names of the marks in the captured graph, one for each entry, in order."""
    torch._dynamo.reset()
    return names_by_entry(trace_without_comparing(model, *args))


def names_by_entry(marks):
    return list({mark["entry"]: mark["name"] for _, mark in marks if mark}.values())


def is_untouched(model):
    return all("forward" not in module.__dict__ for module in model.modules())


# --- what is marked -------------------------------------------------------------------------------


def test_each_call_of_a_marked_module_is_an_entry_named_after_its_class(model, x):
    handle = ri.mark(model, "layers.*.mlp", "norm")
    assert handle.modules == ["layers.0.mlp", "layers.1.mlp", "norm"]
    marks = trace_without_comparing(model, x)
    assert names_by_entry(marks) == ["MLP", "MLP", "LayerNorm"]
    (mark, *_) = [mark for _, mark in marks if mark]
    assert mark["scope"] == "module:MLP"
    assert mark["source"].startswith(f"{__file__}:")


def test_arguments_are_carried(model, x):
    ri.mark(
        model,
        "norm",
        name="final",
        options={"max_autotune": True},
        id="n",
        numerics="eager",
        compile_timeout=9,
        collectives="include",
    )
    (mark,) = [mark for _, mark in trace_without_comparing(model, x) if mark]
    del mark["entry"], mark["source"]
    assert mark == {
        "name": "final",
        "inductor_configs": {"max_autotune": True},
        "inductor_region": "n",
        "numerics": "eager",
        "compile_timeout": 9,
        "collectives": "include",
        "scope": "module:LayerNorm",
    }


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("norm", ["norm"]),
        ("layers.*.norm", ["layers.0.norm", "layers.1.norm"]),
        ("**.norm", ["layers.0.norm", "layers.1.norm", "norm"]),
        (
            "layers.1.**",
            ["layers.1", *(f"layers.1.{n}" for n in ("norm", "mlp", "mlp.up", "mlp.down"))],
        ),
        ("layers.[0].mlp", ["layers.0.mlp"]),
        ("layers.?.m*", ["layers.0.mlp", "layers.1.mlp"]),
        ("**.up", ["layers.0.mlp.up", "layers.1.mlp.up"]),
        ("*", ["norm"]),  # one segment; `layers` is a container, and never the model itself
        ("", [""]),
        (MLP, ["layers.0.mlp", "layers.1.mlp"]),
        (nn.LayerNorm, ["layers.0.norm", "layers.1.norm", "norm"]),
    ],
)
def test_a_pattern_matches(model, pattern, expected):
    assert ri.mark(model, pattern).modules == expected


def test_without_a_pattern_the_model_itself_is_marked(model, x):
    assert ri.mark(model).modules == [""]
    assert marked_names(model, x) == ["Model"]


def test_names_are_matched_without_the_segments_of_wrappers(model, x):
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    mlp = model.layers[0].mlp
    model.layers[0] = checkpoint_wrapper(model.layers[0])
    compiled = torch.compile(model, backend="eager")
    assert ri.mark(compiled, "layers.0.mlp").modules == ["layers.0.mlp"]
    assert "forward" in mlp.__dict__


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        (
            "layer.*.mlp",
            "pattern 'layer.*.mlp' matches no module of Model\n|did you mean 'layers.*.mlp'",
        ),
        (
            "layers.*.mpl",
            "pattern 'layers.*.mpl' matches no module of Model\n|did you mean 'layers.*.mlp'",
        ),
        (
            "layers.7.mlp",
            "pattern 'layers.7.mlp' matches no module of Model\n|did you mean 'layers.*.mlp'",
        ),
        ("mlp", "pattern 'mlp' matches no module of Model\n|did you mean '**.mlp'?"),
        (
            "qqq",
            "pattern 'qqq' matches no module of Model\n|Model has 'layers.*', 'layers.*.norm', 'layers.*.mlp'",
        ),
        (nn.GroupNorm, "type GroupNorm matches no module of Model\n|did you mean 'LayerNorm'?"),
        (
            "layers",
            "pattern 'layers' matches only 'layers', a ModuleList, which has no forward and|'layers.*'",
        ),
    ],
)
def test_a_pattern_without_a_match_suggests_near_names_and_touches_nothing(model, pattern, message):
    what, way_out = message.split("|")
    with pytest.raises(ri.MarkError) as caught:
        ri.mark(model, "norm", pattern)
    assert str(caught.value).startswith(what)
    assert way_out in str(caught.value).partition("  way out: ")[2]
    assert f"  marked at: {__file__}:" in str(caught.value)
    assert is_untouched(model)


def test_a_wrong_option_touches_nothing(model):

    with pytest.raises(ri.OptionError, match="unknown Inductor option 'nope'"):
        ri.mark(model, "norm", options={"nope": 1})
    assert is_untouched(model)


def test_what_is_no_module_is_refused():
    with pytest.raises(ri.MarkError) as caught:
        ri.mark(lambda x: x, "norm")
    assert str(caught.value).startswith("mark takes a torch.nn.Module and patterns, not function")


# --- again, otherwise, and away -------------------------------------------------------------------


def test_marking_twice_is_marking_once(model, x):
    ri.mark(model, "norm", options={"max_autotune": True})
    forward = model.norm.__dict__["forward"]
    handle = ri.mark(model, "norm", options={"max_autotune": True})
    assert model.norm.__dict__["forward"] is forward
    assert handle.modules == ["norm"]
    handle.remove()
    assert is_untouched(model)


def test_the_later_of_two_marks_rules_until_it_is_removed(model, x):
    rule = ri.mark(model, "layers.*.mlp", name="rule")
    exception = ri.mark(model, "layers.0.mlp", name="exception")
    assert marked_names(model, x) == ["exception", "rule"]
    exception.remove()
    assert marked_names(model, x) == ["rule", "rule"]
    rule.remove()
    assert is_untouched(model)


def test_marks_can_be_removed_in_any_order_and_twice(model, x):
    first = ri.mark(model, "norm", name="first")
    second = ri.mark(model, "norm", name="second")
    first.remove()
    first.remove()
    assert marked_names(model, x) == ["second"]
    second.remove()
    assert is_untouched(model)


def test_a_with_block_undoes_what_it_changed_and_no_more(model):
    with ri.mark(model, "norm"):
        assert "forward" in model.norm.__dict__
        with ri.mark(model, "**.norm"):
            assert "forward" in model.layers[0].norm.__dict__
        assert "forward" not in model.layers[0].norm.__dict__
        assert "forward" in model.norm.__dict__
    assert is_untouched(model)


def test_marking_and_removing_after_compiling_take_effect(model, x):
    capture = Capture()
    compiled = torch.compile(model, backend=capture, fullgraph=True)
    compiled(x)
    assert names_by_entry(capture.marks()) == []
    handle = ri.mark(compiled, "layers.*.mlp")
    for _ in range(3):
        compiled(x)
    assert len(capture.graphs) == 2
    assert names_by_entry(capture.marks()) == ["MLP", "MLP"]
    ri.mark(model, "layers.*.mlp")  # the same again: nothing to compile
    compiled(x)
    assert len(capture.graphs) == 2
    ri.mark(model, "layers.0.mlp", options={"max_autotune": True})
    compiled(x)
    assert len(capture.graphs) == 3
    handle.remove()
    compiled(x)
    assert names_by_entry(capture.marks()) == ["MLP"]


def test_modules_of_one_mark_share_what_is_compiled_block_by_block(model, x):
    ri.mark(model, "layers.*.mlp", options={"max_autotune": True})
    capture = Capture()
    for layer in model.layers:
        layer.compile(backend=capture, fullgraph=True)
        layer(x)
    assert len(capture.graphs) == 1


# --- what a mark must not change ------------------------------------------------------------------


def test_the_module_stays_what_it_was(model, x):
    expected = model(x)
    state = model.state_dict()
    mlp, signature = model.layers[0].mlp, inspect.signature(model.layers[0].mlp.forward)
    ri.mark(model, "layers.*.mlp")
    assert torch.equal(model(x), expected)
    assert list(model.state_dict()) == list(state)
    assert model.layers[0].mlp is mlp
    assert type(mlp) is MLP
    assert inspect.signature(mlp.forward) == signature
    assert torch.equal(mlp(x, scale=2.0), mlp(x) * 2)
    model.load_state_dict(state)


def test_moving_the_model_and_its_hooks_work_as_before(model, x):
    seen = []
    mlp = model.layers[0].mlp
    mlp.register_forward_pre_hook(lambda module, args: seen.append(("before", module)))
    ri.mark(model, "layers.*.mlp")
    mlp.register_forward_hook(lambda module, args, result: seen.append(("after", module)))
    model.to(torch.float64)
    assert model(x.double()).dtype == torch.float64
    assert seen == [("before", mlp), ("after", mlp)]


def test_a_deep_copy_is_marked_itself(model, x):
    handle = ri.mark(model, "layers.*.mlp")
    copied = copy.deepcopy(model)
    assert copied.layers[0].mlp.forward.__self__ is copied.layers[0].mlp
    with torch.no_grad():
        copied.layers[0].mlp.down.bias.add_(1)
    assert not torch.equal(copied(x), model(x))
    handle.remove()
    assert marked_names(copied, x) == ["MLP", "MLP"]
    ri.mark(copied, "layers.*.mlp").remove()
    assert is_untouched(copied)


def test_marking_the_original_anew_leaves_its_deep_copies_as_they_were(model, x):
    ri.mark(model, "layers.*.mlp", name="first")
    copied = copy.deepcopy(model)
    ri.mark(model, "layers.*.mlp", name="second")
    assert marked_names(model, x) == ["second", "second"]
    assert marked_names(copied, x) == ["first", "first"]


def test_a_pickle_holds_nothing_of_this_package_and_gives_the_unmarked_module(model, x):
    ri.mark(model, "layers.*.mlp", options={"max_autotune": True})
    pickled = pickle.dumps(model)
    assert b"regional_inductor" not in pickled
    loaded = pickle.loads(pickled)
    assert torch.equal(loaded(x), model(x))
    assert marked_names(loaded, x) == []
    ri.mark(loaded, "layers.*.mlp")
    assert marked_names(loaded, x) == ["MLP", "MLP"]


def test_a_saved_model_loads_where_this_package_is_not_installed(tmp_path):
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    ri.mark(model, "0", "1", "")
    torch.save(model, tmp_path / "model.pt")
    program = """
import sys
sys.modules["regional_inductor"] = None  # an import of it fails from now on
import torch
model = torch.load(sys.argv[1], weights_only=False)
print(tuple(model(torch.ones(2, 4)).shape))
"""
    result = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "model.pt")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode, result.stdout) == (0, "(2, 4)\n"), result.stderr


def test_a_class_patched_after_the_mark_is_followed(model, x, monkeypatch):
    ri.mark(model, "norm")
    monkeypatch.setattr(nn.LayerNorm, "forward", lambda self, x: x * 0)
    assert torch.equal(model.norm(x), torch.zeros(2, 4))


def test_a_forward_that_another_tool_put_on_the_instance_is_honoured(model, x):
    mlp = model.layers[0].mlp
    old = mlp.forward

    def doubled(module, *args, **kwargs):
        return old(*args, **kwargs) * 2

    mlp.forward = functools.update_wrapper(functools.partial(doubled, mlp), old)
    before = mlp.__dict__["forward"]
    expected = mlp(x)
    handle = ri.mark(model, "layers.0.mlp")
    assert torch.equal(mlp(x), expected)
    assert marked_names(model, x) == ["MLP"]
    handle.remove()
    assert mlp.__dict__["forward"] is before
    assert not any("regional_inductor" in key for key in mlp.__dict__)


def test_a_bound_method_on_the_instance_is_honoured(model, x):
    def zero(self, x):
        return x * 0

    model.norm.forward = zero.__get__(model.norm)
    before = model.norm.forward
    handle = ri.mark(model, "norm")
    assert torch.equal(model.norm(x), torch.zeros(2, 4))
    handle.remove()
    assert model.norm.__dict__["forward"] == before


def test_a_mark_beneath_another_tools_wrapper_can_still_be_changed_and_removed(model, x):
    handle = ri.mark(model, "layers.0.mlp", name="beneath")
    mlp = model.layers[0].mlp
    old = mlp.forward

    @functools.wraps(old)
    def wrapper(*args, **kwargs):
        return old(*args, **kwargs) * 2

    mlp.forward = wrapper
    expected = mlp(x)
    assert marked_names(model, x) == ["beneath"]
    later = ri.mark(model, "layers.0.mlp", name="later")
    assert marked_names(model, x) == ["later"]
    later.remove()
    handle.remove()
    assert mlp.__dict__["forward"] is wrapper
    assert marked_names(model, x) == []
    assert torch.equal(mlp(x), expected)


def test_a_scripted_module_is_refused():
    class Held(nn.Module):
        def __init__(self):
            super().__init__()
            with pytest.warns(DeprecationWarning, match="jit"):
                self.scripted = torch.jit.script(nn.ReLU())

    with pytest.raises(ri.MarkError, match="module 'scripted' is a TorchScript module"):
        ri.mark(Held(), "scripted")


def test_a_generator_forward_is_refused():
    class Streaming(nn.Module):
        def forward(self, x):
            yield x

    with pytest.raises(ri.MarkError, match="is a generator function"):
        ri.mark(Streaming())


def test_marks_work_under_activation_checkpointing(model, x):
    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = model

        def forward(self, x):
            for layer in self.inner.layers:
                x = torch.utils.checkpoint.checkpoint(layer, x, use_reentrant=False)
            return x

    ri.mark(model, "layers.*.mlp")
    assert marked_names(Checkpointed(), x.requires_grad_()) == ["MLP", "MLP"]


def test_marks_reach_make_fx(model, x):
    ri.mark(model, "layers.*.mlp")
    with torch.fx.traceback.preserve_node_meta():
        gm = make_fx(model)(x)
    assert names_by_entry(marks_of(gm)) == ["MLP", "MLP"]
    assert ("native_layer_norm.default", None) in names(marks_of(gm))


@pytest.fixture
def process_group():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("process_group")
@pytest.mark.filterwarnings("ignore")  # DDP's and FSDP's own, on one CPU process
@pytest.mark.parametrize("mark_first", [True, False])
def test_fsdp2_and_ddp_wrap_marked_modules_as_they_do_others(model, x, mark_first):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    expected = model(x)
    if mark_first:
        ri.mark(model, "layers.*.mlp")
    for layer in model.layers:
        fully_shard(layer.mlp, mesh=init_device_mesh("cpu", (1,)))
    if not mark_first:
        ri.mark(model, "layers.*.mlp")
    assert type(model.layers[0].mlp).__name__ == "FSDPMLP"
    torch.testing.assert_close(model(x), expected)
    model(x).sum().backward()
    plain = Model()
    ri.mark(plain, "layers.*.mlp")
    parallel = nn.parallel.DistributedDataParallel(plain)
    assert torch.equal(parallel(x), plain(x))
    assert "forward" in parallel.module.layers[0].mlp.__dict__


def test_state_dicts_of_marked_and_unmarked_models_are_exchangeable(model):
    other = Model()
    ri.mark(model, "layers.*.mlp", "norm")
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file))
    assert torch.equal(other.norm.weight, model.norm.weight)
