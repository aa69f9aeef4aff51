"""`ri.save` and `ri.load`: what was compiled, in a process that neither traces nor compiles."""

from __future__ import annotations

import copy
import gc
import hashlib
import importlib
import json
import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

import regional_inductor as ri
from regional_inductor import disk, saved_file, trust
from regional_inductor._torch import bundle, machine, precompile
from regional_inductor.entry import Entry

# What torch's tracer of blocks asks of tensors between them
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")

SCALE = 3.0


class Block(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(8, 8)
        self.norm = torch.nn.LayerNorm(8)
        self.act = F.gelu

    def forward(self, x, power=2, *, shift=None):
        y = self.act(self.linear(x))
        with ri.region("tail"):
            y = (y.sin() + 1) ** power
        if shift is not None:
            y = y + shift
        return self.norm(y) * SCALE


class Stack(torch.nn.Module):
    def __init__(self, depth=3):
        super().__init__()
        self.blocks = torch.nn.ModuleList(Block() for _ in range(depth))

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return x


class Noisy(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.block = Block()
        self.dropout = torch.nn.Dropout(0.5)

    def forward(self, x):
        return self.dropout(self.block(x))


class Normed(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = torch.nn.BatchNorm1d(4)

    def forward(self, x):
        return self.norm(x)


class Saves(Block):
    def save(self):
        return "mine"


class Repeated(torch.nn.Module):
    def forward(self, x):
        for _ in range(2):
            with ri.region("same"):
                x = (x.sin() + 1).exp()
            x = x @ x
        return x


def scaled(x, by=2.0):
    with ri.region("scaled"):
        return x.sin() * by


def chosen(x, pick):
    return pick(x) + 1


@pytest.fixture
def path(tmp_path):
    return tmp_path / "saved.ri"


def compiled_block(**arguments):
    return ri.compile(Block(), region_backend="eager", **arguments)


def fresh_like(model, kind=Block):
    fresh = kind()
    fresh.load_state_dict(model.state_dict())
    return fresh


def gradients_of(model, *args, **kwargs):
    model.zero_grad()
    out = model(*args, **kwargs)
    out.square().sum().backward()
    return [out.detach(), *(p.grad.clone() for p in model.parameters())]


def assert_equal(actual, expected):
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def captures():
    return torch._dynamo.utils.counters["stats"].get("unique_graphs", 0)


# --- what works -----------------------------------------------------------------------------------


def test_a_model_loads_onto_a_fresh_instance_forward_and_backward(path):
    model = compiled_block()
    x = torch.randn(4, 8)
    expected = gradients_of(model, x)
    model.save(path)
    fresh = fresh_like(model)
    assert ri.load(path, fresh) is fresh
    assert fresh.state_dict().keys() == model.state_dict().keys()
    torch._dynamo.reset()
    before = captures()
    assert_equal(gradients_of(fresh, x), expected)
    assert captures() == before


def test_parameters_are_those_of_the_model_it_is_loaded_onto(path):
    model = compiled_block()
    x = torch.randn(4, 8)
    model(x)
    ri.save(model, path)
    other = Block()
    expected = Block()
    expected.load_state_dict(other.state_dict())
    loaded = ri.load(path, other)
    assert_equal(gradients_of(loaded, x), gradients_of(expected, x))
    with torch.no_grad():
        for one, two in zip(loaded.parameters(), expected.parameters(), strict=True):
            one.add_(1)
            two.add_(1)
    assert_equal(gradients_of(loaded, x), gradients_of(expected, x))


def test_a_function_loads_and_takes_its_defaults_and_names(path):
    function = ri.compile(scaled, region_backend="eager")
    x = torch.randn(3)
    function(x)
    function(x, by=4.0)
    function.save(path)
    loaded = ri.load(path)
    assert torch.equal(loaded(x), scaled(x))
    assert torch.equal(loaded(x=x, by=4.0), scaled(x, 4.0))
    assert loaded.__name__ == "scaled"
    with pytest.raises(TypeError, match="unexpected keyword argument 'bye'"):
        loaded(x, bye=1)


def test_each_shape_that_was_compiled_is_served_and_no_other(path):
    model = compiled_block(dynamic=False)
    shapes = [(4, 8), (2, 3, 8)]
    for shape in shapes:
        model(torch.ones(shape))
    model.save(path)
    fresh = ri.load(path, fresh_like(model))
    for shape in shapes:
        x = torch.randn(shape)
        assert_equal([fresh(x)], [model(x)])
    with pytest.raises(ri.UnsavedCallError) as raised:
        fresh(torch.ones(5, 8))
    assert "no saved call of Block is like this one" in raised.value.what
    assert "x: float32[4, 8]" in raised.value.what
    assert "x: float32[2, 3, 8]" in raised.value.what
    assert "size mismatch at index 0. expected 4, actual 5" in raised.value.what
    assert 'otherwise="compile"' in raised.value.hint


def test_sizes_that_became_symbolic_stay_so(path):
    model = compiled_block()
    for rows in (4, 5):
        model(torch.ones(rows, 8))
    model.save(path)
    fresh = ri.load(path, fresh_like(model))
    for rows in (4, 5, 7, 64):
        x = torch.randn(rows, 8)
        assert_equal(gradients_of(fresh, x), gradients_of(model, x))
    with pytest.raises(ri.UnsavedCallError):
        fresh(torch.ones(7, 8, dtype=torch.float64))


def test_a_number_that_became_symbolic_stays_so(path):
    function = ri.compile(lambda x, n: x * n, region_backend="eager")
    for n in (2, 3):
        function(torch.ones(3), n)
    function.save(path)
    loaded = ri.load(path)
    assert loaded(torch.ones(3), 11).tolist() == [11.0] * 3


def test_a_call_that_an_earlier_one_covers_is_saved_once(path):
    function = ri.compile(scaled, region_backend="eager", dynamic=True)
    function(torch.ones(4))
    torch._dynamo.reset()
    function(torch.ones(6))
    function.save(path)
    assert len(saved_file.read(path).about["calls"]) == 1
    assert torch.equal(ri.load(path)(torch.ones(9)), scaled(torch.ones(9)))


def test_training_and_inference_are_captures_of_their_own(path):
    model = ri.compile(Noisy(), region_backend="eager")
    x = torch.ones(4, 8)
    model.train()(x)
    with torch.no_grad():
        model.eval()(x)
    model.train()
    model.save(path)
    assert model.training
    assert model.dropout.training
    fresh = ri.load(path, fresh_like(model, Noisy))
    with torch.no_grad():
        assert_equal([fresh.eval()(x)], [model.eval()(x)])
    torch.manual_seed(1)
    expected = model.train()(x)
    torch.manual_seed(1)
    assert_equal([fresh.train()(x)], [expected])
    with pytest.raises(ri.UnsavedCallError):
        fresh.eval()(x)  # with gradients: nobody called it so


def test_autocast_is_part_of_the_call(path):
    model = compiled_block()
    x = torch.randn(4, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = gradients_of(model, x)
    model.save(path)
    fresh = ri.load(path, fresh_like(model))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_equal(gradients_of(fresh, x), expected)
    with pytest.raises(ri.UnsavedCallError):
        fresh(x)


def test_containers_and_equal_tensors_among_the_arguments(path):
    def mixed(pair, *rest, scales):
        return pair[0] + pair[1] * rest[0] * scales["by"]

    function = ri.compile(mixed, region_backend="eager")
    x, y = torch.randn(3), torch.randn(3)
    function([x, x], y, scales={"by": 2})
    function.save(path)
    loaded = ri.load(path)
    assert torch.equal(loaded([y, y], x, scales={"by": 2}), mixed([y, y], x, scales={"by": 2}))
    with pytest.raises(ri.UnsavedCallError):
        loaded([x, y], y, scales={"by": 2})


def test_buffers_that_a_call_writes_to_are_written(path):
    model = ri.compile(Normed(), region_backend="eager")
    x = torch.randn(6, 4)
    model(x)
    model.save(path)
    fresh, eager = ri.load(path, Normed()), Normed()
    assert_equal([fresh(x), *fresh.buffers()], [eager(x), *eager.buffers()])


def test_hooks_of_the_model_run_around_what_was_loaded(path):
    model = compiled_block()
    x = torch.ones(4, 8)
    expected = model(x)
    model.save(path)
    fresh = ri.load(path, fresh_like(model))
    seen = []
    fresh.register_forward_hook(lambda module, args, out: seen.append(module) or out + 1)
    assert_equal([fresh(x)], [expected + 1])
    assert seen == [fresh]
    assert "forward" not in vars(fresh)


def test_hooks_inside_the_model_are_those_that_were_compiled(path):
    model = compiled_block()
    x = torch.ones(4, 8)
    model(x)
    model.save(path)
    hooked = fresh_like(model)
    hooked.linear.register_forward_hook(lambda module, args, out: out * 2)
    with pytest.raises(ri.LoadError) as raised:
        ri.load(path, hooked)
    assert "Block.linear has 1 forward hooks, and had none when it was saved" in raised.value.what
    assert "hooks of modules in the model are compiled with it" in raised.value.hint
    expected = ri.compile(fresh_like(hooked), region_backend="eager")
    expected.linear.register_forward_hook(lambda module, args, out: out * 2)
    out = expected(x)
    expected.save(path)
    assert_equal([ri.load(path, hooked)(x)], [out])
    with pytest.raises(ri.LoadError, match="has no hooks, and had 1 forward hooks"):
        ri.load(path, fresh_like(model))


def test_a_copy_of_a_loaded_model_is_a_model_of_its_own(path):
    model = compiled_block()
    x = torch.ones(4, 8)
    model(x)
    model.save(path)
    loaded = ri.load(path, fresh_like(model))
    twin = copy.deepcopy(loaded)
    with torch.no_grad():
        twin.linear.weight.zero_()
    eager = fresh_like(twin)
    assert_equal([twin(x)], [eager(x)])
    assert_equal([loaded(x)], [model(x)])


def test_marks_need_not_be_made_where_it_is_loaded(path):
    model = Block()
    ri.mark(model, "norm")
    ri.compile(model, region_backend="eager")
    x = torch.randn(4, 8)
    expected = gradients_of(model, x)
    model.save(path)
    assert_equal(gradients_of(ri.load(path, fresh_like(model)), x), expected)
    marked = fresh_like(model)
    ri.mark(marked, "norm")
    assert_equal(gradients_of(ri.load(path, marked), x), expected)


def test_saving_changes_nothing_about_what_is_saved(path):
    model = compiled_block()
    x = torch.randn(4, 8)
    before = gradients_of(model, x)
    gradients = [p.grad for p in model.parameters()]
    report = ri.last_report()
    count = len(report.graphs)
    model.save(path)
    assert all(p.grad is g for p, g in zip(model.parameters(), gradients, strict=True))
    assert ri.last_report() is report
    assert len(report.graphs) == count
    started = captures()
    assert_equal(gradients_of(model, x), before)
    assert captures() == started


def test_saving_leaves_nothing_among_the_globals_of_the_function(path):
    function = ri.compile(scaled, region_backend="eager")
    x = torch.randn(3)
    function(x)
    before = set(globals())
    function.save(path)
    function.save(path)
    assert set(globals()) == before
    assert torch.equal(ri.load(path)(x), scaled(x))
    assert set(globals()) == before


def test_what_is_not_like_a_saved_call_is_compiled_if_asked(path):
    model = compiled_block(dynamic=False)
    model(torch.ones(4, 8))
    model.save(path)
    loaded = ri.load(path, fresh_like(model), otherwise="compile")
    x = torch.randn(5, 8)
    assert_equal(gradients_of(loaded, x), gradients_of(fresh_like(model), x))
    started = captures()
    loaded(torch.ones(4, 8))
    assert captures() == started


def test_what_is_not_as_it_was_in_the_process_is_said(path):
    function = ri.compile(scaled, region_backend="eager")
    function(torch.ones(3))
    function.save(path)
    loaded = ri.load(path)
    threads = torch.get_num_threads()
    with torch.no_grad(), pytest.raises(ri.UnsavedCallError, match=r"grad_mode \(gradients on"):
        loaded(torch.ones(3))
    try:
        torch.set_num_threads(threads + 1)
        with pytest.raises(ri.UnsavedCallError, match=rf"get_num_threads\(\) {threads} then"):
            loaded(torch.ones(3))
    finally:
        torch.set_num_threads(threads)


def test_what_loading_would_only_read_past_is_not_in_the_file(path):
    model = compiled_block()
    gradients_of(model, torch.ones(4, 8))
    model.save(path)
    parts = saved_file.read(path).parts
    (data,) = (part for name, part in parts.items() if name.startswith("function"))
    assert b"class GraphModule" not in data  # graphs as text
    assert b"FrameSummary" not in data  # where in the user's code each guard comes from
    assert b"EMPTY_NN_MODULE_HOOKS_DICT" not in data  # guards that torch never builds
    assert data.count(b"___check_type_id") == 0  # what guards were built as


def test_loading_looks_for_no_garbage(path, monkeypatch):
    model = compiled_block()
    model(torch.ones(4, 8))
    model.save(path)
    fresh = fresh_like(model)
    usual, seen = precompile.LoadedFunction, []
    monkeypatch.setattr(
        precompile, "LoadedFunction", lambda *args: (seen.append(gc.isenabled()), usual(*args))[1]
    )
    ri.load(path, fresh)
    assert seen == [False]
    assert gc.isenabled()


# --- guards that torch leaves out -----------------------------------------------------------------


def test_another_function_in_an_attribute_is_another_call(path):
    model = compiled_block()
    model(torch.ones(4, 8))
    model.save(path)
    fresh = fresh_like(model)
    fresh.act = F.relu
    ri.load(path, fresh)
    with pytest.raises(
        ri.UnsavedCallError, match=r"act is <function relu .* was the builtin .*gelu"
    ):
        fresh(torch.ones(4, 8))
    fresh.act = F.gelu
    assert_equal([fresh(torch.ones(4, 8))], [model(torch.ones(4, 8))])


def test_a_global_of_another_value_is_another_call(path, monkeypatch):
    model = compiled_block()
    model(torch.ones(4, 8))
    model.save(path)
    loaded = ri.load(path, fresh_like(model))
    monkeypatch.setattr(sys.modules[__name__], "SCALE", 4.0)
    with pytest.raises(ri.UnsavedCallError, match=r"G\['SCALE'\] is 4.0, and was 3.0"):
        loaded(torch.ones(4, 8))
    with pytest.raises(ri.LoadError, match=r"depends on what is not so here: G\['SCALE'\] is 4.0"):
        ri.load(path, fresh_like(model))


def test_a_function_among_the_arguments_is_told_from_another(path):
    function = ri.compile(chosen, region_backend="eager")
    x = torch.randn(3)
    function(x, torch.sin)
    function.save(path)
    loaded = ri.load(path)
    assert torch.equal(loaded(x, torch.sin), x.sin() + 1)
    with pytest.raises(ri.UnsavedCallError):
        loaded(x, torch.cos)


WEIGHT = torch.ones(3)


def test_a_tensor_that_is_no_argument_is_an_error(path):
    function = ri.compile(lambda x: x * WEIGHT, region_backend="eager")
    function(torch.ones(3))
    with pytest.raises(ri.SaveError) as raised:
        function.save(path)
    assert "it reads the tensor G['WEIGHT'], which is no argument of it" in raised.value.what
    assert raised.value.hint == "make it an argument, or part of the module"
    assert raised.value.source.startswith(__file__)


# --- what can't be saved --------------------------------------------------------------------------


COUNT = 0


def counted(x):
    global COUNT
    COUNT += 1
    return x + 1


def test_assigning_a_global_is_an_error(path):
    function = ri.compile(counted, region_backend="eager")
    function(torch.ones(3))
    with pytest.raises(ri.SaveError, match="it assigns the global variable COUNT"):
        function.save(path)


def test_nothing_compiled_yet_is_an_error(path):
    model = compiled_block()
    with pytest.raises(ri.SaveError, match="nothing has been compiled yet") as raised:
        model.save(path)
    assert "call it once" in raised.value.hint
    assert not path.exists()


def test_what_compile_did_not_return_is_an_error(path):
    with pytest.raises(ri.SaveError, match="didn't return can't be saved"):
        ri.save(Block(), path)


def test_a_copy_is_not_compiled_and_says_so(path):
    model = compiled_block()
    model(torch.ones(4, 8))
    with pytest.raises(ri.SaveError, match="this is a copy, which is not compiled"):
        copy.deepcopy(model).save(path)


def broken(x):
    y = x + 1
    torch._dynamo.graph_break()
    return y * 2


def test_a_graph_break_is_an_error_that_names_the_line(path):
    function = ri.compile(broken, region_backend="eager")
    function(torch.ones(3))
    path.write_bytes(b"before")
    with pytest.raises(ri.SaveError, match="a graph break cuts broken into pieces") as raised:
        function.save(path)
    line = broken.__code__.co_firstlineno + 2
    assert raised.value.source == f"{__file__}:{line}"
    assert "fullgraph=True" in raised.value.hint
    assert path.read_bytes() == b"before"
    assert list(path.parent.iterdir()) == [path]


def test_a_module_of_torch_s_own_is_an_error(path):
    model = ri.compile(torch.nn.Sequential(Block()), region_backend="eager")
    model(torch.ones(4, 8))
    with pytest.raises(ri.SaveError, match="not the Sequential as a whole") as raised:
        model.save(path)
    assert "an attribute of a module of your own" in raised.value.hint


def test_a_class_that_no_other_process_finds_is_an_error(path):
    class Local(Block):
        pass

    model = ri.compile(Local(), region_backend="eager")
    model(torch.ones(4, 8))
    with pytest.raises(ri.SaveError, match="defined in a function") as raised:
        model.save(path)
    assert "top level of a module" in raised.value.hint


def test_recorded_cuda_graphs_are_an_error(path):
    model = compiled_block(cudagraphs="graph", capture="model")
    model(torch.ones(4, 8))
    with pytest.raises(ri.SaveError, match="cudagraphs"):
        model.save(path)


def test_a_model_s_own_save_stays_its_own(path):
    model = ri.compile(Saves(), region_backend="eager")
    assert model.save() == "mine"
    x = torch.ones(4, 8)
    expected = model(x)
    ri.save(model, path)
    assert_equal([ri.load(path, fresh_like(model, Saves))(x)], [expected])


# --- models of which blocks are captured ----------------------------------------------------------


def compiled_stack(**arguments):
    return ri.compile(Stack(), region_backend="eager", capture="blocks", **arguments)


def test_a_model_captured_in_blocks_is_saved_whole(path):
    model = compiled_stack()
    x = torch.randn(4, 8)
    expected = gradients_of(model, x)
    with torch.no_grad():
        inferred = model(x)
    model.save(path)
    fresh = ri.load(path, fresh_like(model, Stack))
    started = captures()
    assert_equal(gradients_of(fresh, x), expected)
    with torch.no_grad():
        assert_equal([fresh(x)], [inferred])
    assert captures() == started
    assert len(saved_file.read(path).about["calls"]) == 2
    with pytest.raises(ri.UnsavedCallError, match="no saved call of Stack"):
        fresh(torch.ones(5, 8))


def test_auto_that_took_blocks_can_be_saved(path):
    model = ri.compile(Stack(8), region_backend="eager")
    x = torch.randn(4, 8)
    expected = gradients_of(model, x)
    model.save(path)
    fresh = Stack(8)
    fresh.load_state_dict(model.state_dict())
    assert_equal(gradients_of(ri.load(path, fresh), x), expected)


def test_saving_leaves_the_blocks_captured(path):
    model = compiled_stack()
    x = torch.randn(4, 8)
    expected = gradients_of(model, x)
    model.save(path)
    started = captures()
    assert_equal(gradients_of(model, x), expected)
    assert captures() == started


def test_sizes_that_vary_between_calls_of_blocks_are_symbolic(path):
    model = compiled_stack()
    for rows in (4, 6, 5, 9):
        model(torch.ones(rows, 8))
    model.save(path)
    assert saved_file.read(path).about["calls"] == [
        "self: Stack, x: float32[4, 8]",
        "self: Stack, x: float32[?, 8]",
    ]
    fresh = ri.load(path, fresh_like(model, Stack))
    for rows in (4, 5, 64):
        x = torch.randn(rows, 8)
        assert_equal(gradients_of(fresh, x), gradients_of(model, x))


@pytest.mark.parametrize(
    ("dynamic", "looks"),
    [
        (True, ["self: Stack, x: float32[?, ?]"]),
        (False, ["self: Stack, x: float32[4, 8]", "self: Stack, x: float32[6, 8]"]),
    ],
)
def test_what_compile_was_told_of_sizes_holds_for_blocks_too(dynamic, looks, path):
    model = compiled_stack(dynamic=dynamic)
    for rows in (4, 6):
        model(torch.ones(rows, 8))
    model.save(path)
    assert [call.replace("?, 8", "?, ?") for call in saved_file.read(path).about["calls"]] == looks


def test_what_a_loaded_model_of_blocks_does_not_know_is_compiled_if_asked(path):
    model = compiled_stack(dynamic=False)
    model(torch.ones(4, 8))
    model.save(path)
    loaded = ri.load(path, fresh_like(model, Stack), otherwise="compile")
    x = torch.randn(5, 8)
    assert_equal(gradients_of(loaded, x), gradients_of(fresh_like(model, Stack), x))


def test_blocks_behind_forward_pre_hooks_are_an_error_that_says_so(path):
    model = Stack()
    model.register_forward_pre_hook(lambda module, args: (args[0] * 2,))
    ri.compile(model, region_backend="eager", capture="blocks")
    model(torch.ones(4, 8))
    with pytest.raises(ri.SaveError, match="has forward pre-hooks") as raised:
        model.save(path)
    assert 'capture="model"' in raised.value.hint


# --- what can't be loaded -------------------------------------------------------------------------


@pytest.fixture
def saved(path):
    model = compiled_block()
    model(torch.ones(4, 8))
    model.save(path)
    return path


def test_no_file_is_pythons_own_error(path):
    with pytest.raises(FileNotFoundError):
        ri.load(path)


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[: len(data) // 2],
        lambda data: data[:-1],
        lambda data: data[:-9] + bytes([data[-9] ^ 1]) + data[-8:],
        lambda data: data[:200] + b"x" + data[201:],
        lambda data: b"PK\x03\x04" + data,
        lambda data: Entry("another key", {}, {}).to_bytes(),
    ],
    ids=["empty", "half", "cut", "a bit", "header", "foreign", "another entry"],
)
def test_a_damaged_or_foreign_file_is_an_error_and_nothing_is_unpickled(saved, damage, monkeypatch):
    monkeypatch.setattr(saved_file.pickle, "loads", lambda *_: pytest.fail("unpickled"))
    saved.write_bytes(damage(saved.read_bytes()))
    with pytest.raises(ri.LoadError, match="is no file of a saved function") as raised:
        ri.load(saved, Block())
    assert raised.value.hint == "name a file that regional_inductor.save wrote"


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ("torch", "was made for torch 1.0, and this is"),
        ("cpu", "was made for a CPU with 1.0, and this is"),
        ("cpu flags", "was made for a CPU with the instructions 1.0, and this is"),
        ("python", "was made for Python 1.0, and this is"),
        ("git", "was made for another build of torch: 1.0, and this is"),
    ],
)
def test_another_torch_or_machine_is_an_error(saved, field, message, monkeypatch):
    whole = Entry.from_bytes(saved.read_bytes())
    build = {**machine.build(), field: "1.0"}
    header = {**whole.about, "build": build}
    saved.write_bytes(Entry(whole.key, header, whole.parts).to_bytes())
    monkeypatch.setattr(saved_file.pickle, "loads", lambda *_: pytest.fail("unpickled"))
    with pytest.raises(ri.LoadError, match=message) as raised:
        ri.load(saved, Block())
    assert "save it again" in raised.value.hint


def test_another_gpu_is_an_error(saved):
    whole = Entry.from_bytes(saved.read_bytes())
    header = {**whole.about, "devices": {"cuda": "Old GPU", "triton": "2.0"}}
    saved.write_bytes(Entry(whole.key, header, whole.parts).to_bytes())
    with pytest.raises(ri.LoadError, match="was made for CUDA Old GPU, and this is"):
        ri.load(saved, Block())


def test_a_file_of_another_regional_inductor_is_an_error(saved, monkeypatch):
    monkeypatch.setattr(saved_file, "package_digest", lambda: "newer")
    monkeypatch.setattr(saved_file.pickle, "loads", lambda *_: pytest.fail("unpickled"))
    with pytest.raises(ri.LoadError, match="was saved by another regional_inductor") as raised:
        ri.load(saved, Block())
    assert "save it again with the regional_inductor" in raised.value.hint


def test_a_gpu_s_file_where_no_gpu_is_is_an_error(saved, monkeypatch):
    whole = Entry.from_bytes(saved.read_bytes())
    header = {**whole.about, "devices": {"cuda": "A GPU, 9.0", "triton": "2.0", "driver": "1"}}
    saved.write_bytes(Entry(whole.key, header, whole.parts).to_bytes())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(saved_file.pickle, "loads", lambda *_: pytest.fail("unpickled"))
    with pytest.raises(
        ri.LoadError, match=r"was made for CUDA A GPU, 9\.0, and this is none"
    ) as raised:
        ri.load(saved, Block())
    assert "on the kind of machine that it is to be loaded on" in raised.value.hint


def test_a_model_on_another_device_is_another_call(saved):
    loaded = ri.load(saved, Block().to("meta"))
    with pytest.raises(ri.UnsavedCallError, match="no saved call of Block is like this one"):
        loaded(torch.ones(4, 8, device="meta"))


def test_another_format_is_an_error(saved):
    whole = Entry.from_bytes(saved.read_bytes())
    saved.write_bytes(Entry(whole.key, {**whole.about, "format": 99}, whole.parts).to_bytes())
    with pytest.raises(ri.LoadError, match="has format 99"):
        ri.load(saved, Block())


def test_a_model_is_needed_for_a_model_and_none_for_a_function(saved, tmp_path):
    with pytest.raises(ri.LoadError, match="holds the model Block, and none was given"):
        ri.load(saved)
    function = ri.compile(scaled, region_backend="eager")
    function(torch.ones(3))
    function.save(tmp_path / "function.ri")
    with pytest.raises(ri.LoadError, match="holds the function scaled, and not a model"):
        ri.load(tmp_path / "function.ri", Block())


def test_another_class_is_an_error(saved):
    with pytest.raises(ri.LoadError, match=r"the model given is a torch\..*Linear"):
        ri.load(saved, torch.nn.Linear(8, 8))


def test_another_structure_is_another_call(saved):
    other = Block()
    other.linear = torch.nn.Linear(8, 8, bias=False)
    loaded = ri.load(saved, other)
    with pytest.raises(ri.UnsavedCallError):
        loaded(torch.ones(4, 8))


def test_a_wrong_choice_is_an_error(saved):
    with pytest.raises(ri.LoadError, match="otherwise='eager' is not a choice"):
        ri.load(saved, Block(), otherwise="eager")


def test_with_a_secret_files_are_sealed_and_no_other_is_loaded(path, monkeypatch):
    model = compiled_block()
    x = torch.ones(4, 8)
    expected = model(x)
    model.save(path)
    monkeypatch.setenv(trust.KEY, "k" * 32)
    with pytest.raises(ri.LoadError, match="doesn't carry the seal"):
        ri.load(path, fresh_like(model))
    model.save(path)
    assert_equal([ri.load(path, fresh_like(model))(x)], [expected])
    monkeypatch.setenv(trust.KEY, "l" * 32)
    with pytest.raises(ri.LoadError, match="doesn't carry the seal"):
        ri.load(path, fresh_like(model))
    monkeypatch.delenv(trust.KEY)
    with pytest.raises(ri.LoadError, match="is sealed, and there is no secret"):
        ri.load(path, fresh_like(model))


# --- in another process ---------------------------------------------------------------------------

MODULE = """
import torch
import regional_inductor as ri

FACTOR = 2.0

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first = torch.nn.Linear(16, 16)
        self.norm = torch.nn.LayerNorm(16)

    def forward(self, x):
        with ri.region("gate"):
            y = torch.nn.functional.silu(self.norm(x)) * x
        y = self.first(y)
        with ri.region("tail"):
            return tail(y)

def tail(y):
    return y.sin() * FACTOR
"""

LOADS = """
import json, sys, torch
import regional_inductor as ri
from net import Net

torch.manual_seed(0)
model, eager = Net(), Net()
eager.load_state_dict(model.state_dict())
ri.load(sys.argv[1], model)
worst = 0.0
for rows in (4, 6, 9):
    x = torch.randn(rows, 16)
    results = []
    for one in (model, eager):
        one.zero_grad()
        out = one(x)
        out.square().sum().backward()
        results.append([out.detach(), *(p.grad for p in one.parameters())])
    worst = max(worst, *(float((a - b).abs().max()) for a, b in zip(*results)))
from torch._dynamo.utils import counters
print(json.dumps({
    "worst": worst,
    "graphs": counters["stats"].get("unique_graphs", 0),
    "code generation": "torch._inductor.lowering" in sys.modules,
    "tracer": "regional_inductor.backend" in sys.modules,
}))
"""


@pytest.fixture
def net(tmp_path, monkeypatch):
    (tmp_path / "net.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "net", raising=False)
    import net

    yield net
    sys.modules.pop("net", None)


def run_elsewhere(program, tmp_path, *arguments, **variables):
    script = tmp_path / "elsewhere.py"
    script.write_text(program)
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path]),
        **variables,
    }
    return subprocess.run(
        [sys.executable, str(script), *map(str, arguments)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.inductor
def test_a_process_without_compiler_or_caches_runs_it_and_traces_nothing(net, tmp_path, path):
    torch.manual_seed(0)
    model = ri.compile(net.Net())
    for rows in (4, 6):
        model(torch.randn(rows, 16)).square().sum().backward()
    compiled = [region.status for region in model.report.regions]
    model.save(path)
    assert "eager" not in compiled
    done = run_elsewhere(
        LOADS,
        tmp_path,
        path,
        PATH="/nonexistent",
        CXX="/nonexistent",
        TORCHINDUCTOR_CACHE_DIR=str(tmp_path / "empty"),
        **{disk.FOLDER: str(tmp_path / "none"), disk.SWITCH: "1"},
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["worst"] <= 1e-4
    assert found["graphs"] == 0
    assert not found["code generation"]
    assert not found["tracer"]
    assert not (tmp_path / "none").exists()


def test_changed_code_is_an_error_where_it_is_loaded(net, tmp_path, path):
    model = ri.compile(net.Net(), region_backend="eager")
    for rows in (4, 6):
        model(torch.randn(rows, 16)).square().sum().backward()
    model.save(path)
    done = run_elsewhere(LOADS, tmp_path, path)
    assert done.returncode == 0, done.stderr
    for change, message in (
        (("y.sin()", "y.cos()"), "the code of net.tail, which was compiled into Net, has changed"),
        (("self.norm(x)) * x", "self.norm(x)) + x"), "the code of Net.forward has changed"),
        (("FACTOR = 2.0", "FACTOR = 4.0"), "FACTOR'] is 4.0, and was 2.0"),
    ):
        (tmp_path / "net.py").write_text(MODULE.replace(*change))
        done = run_elsewhere(LOADS, tmp_path, path)
        assert done.returncode != 0
        assert message in done.stderr


@pytest.mark.inductor
def test_saving_compiles_no_region_again(net, path, monkeypatch):
    from regional_inductor.stages import compile as stage

    model = ri.compile(net.Net())
    model(torch.randn(4, 16)).square().sum().backward()
    monkeypatch.setattr(stage, "_compile_batch", lambda *_, **__: pytest.fail("compiled"))
    model.save(path)


@pytest.mark.inductor
def test_regions_of_symbolic_sizes_come_from_the_store_when_saved(net, tmp_path, path, monkeypatch):
    from regional_inductor.stages import compile as stage

    monkeypatch.setenv(disk.SWITCH, "1")
    monkeypatch.setenv(disk.FOLDER, str(tmp_path / "regions"))
    model = ri.compile(net.Net())
    for rows in (4, 6):
        model(torch.randn(rows, 16)).square().sum().backward()
    monkeypatch.setattr(stage, "_compile_batch", lambda *_, **__: pytest.fail("compiled"))
    model.save(path)


def test_library_calls_that_need_no_import_are_what_inductor_calls():
    importlib.import_module("torch._inductor.lowering")  # which fills the table
    table = importlib.import_module("torch._inductor.select_algorithm").extern_kernels
    for name in bundle.TORCHS_OWN:
        assert getattr(table, name) is getattr(torch, name)


@pytest.mark.inductor
def test_equal_regions_and_shared_objects_are_in_the_file_once(path):
    model = ri.compile(Repeated())
    model(torch.ones(8, 8))
    model.save(path)
    parts = saved_file.read(path).parts
    libraries = [name for name in parts if name.startswith("library ")]
    assert saved_file.read(path).about["regions"] == 1
    assert len(libraries) == 1
    digest = hashlib.sha256(parts[libraries[0]]).hexdigest()
    assert libraries[0] == f"library {digest}"
