"""`mark_function`: code that the user doesn't own, by its dotted path."""

from __future__ import annotations

import functools
import importlib
import sys
import types
import warnings

import pytest
import torch
from test_mark import Capture, names
from torch import nn

import regional_inductor as ri

SOURCE = '''
import torch

def rotate(x):
    """Doc."""
    return x.sin()

def rope(x):
    return rotate(x) + 1

class Base:
    def method(self, x):
        return x.cos()

    @staticmethod
    def static(x):
        return x.tan()

    @classmethod
    def of_class(cls, x):
        return x.exp()

class Sub(Base):
    pass

class Block(torch.nn.Module):
    def forward(self, x):
        return x.log()

def stream(x):
    yield x

constant = 3
'''


@pytest.fixture(scope="module")
def ops_module(tmp_path_factory):
    # Once for all tests: Dynamo keeps modules of functions that it inlined in the globals of the
    # module it compiles for, and would go on guarding the first of several of one name.
    folder = tmp_path_factory.mktemp("site")
    (folder / "lib_of_others").mkdir()
    (folder / "lib_of_others" / "__init__.py").write_text("")
    (folder / "lib_of_others" / "ops.py").write_text(SOURCE)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield importlib.import_module("lib_of_others.ops")


@pytest.fixture
def lib(ops_module):
    """A module `lib_of_others.ops`, as its source has it at the start of each test."""
    holders = [ops_module, ops_module.Base, ops_module.Sub, ops_module.Block]
    before = [dict(vars(holder)) for holder in holders]
    yield ops_module
    for holder, attributes in zip(holders, before, strict=True):
        for name in {*vars(holder)} - {*attributes}:
            delattr(holder, name)
        for name, value in attributes.items():
            if vars(holder)[name] is not value:
                setattr(holder, name, value)


def marked(function):
    capture = Capture()
    torch._dynamo.reset()
    torch.compile(function, backend=capture, fullgraph=True)(torch.ones(3))
    return names(capture.marks())


def test_every_caller_in_the_module_is_marked_from_then_on(lib):
    handle = ri.mark_function("lib_of_others.ops.rotate", options={"max_autotune": True})
    assert handle.path == "lib_of_others.ops.rotate"
    assert marked(lambda x: lib.rope(x)) == [("sin", "rotate"), ("add", None)]
    assert lib.rotate.__doc__ == "Doc."


def test_the_handle_puts_the_original_back(lib):
    original = lib.rotate
    handle = ri.mark_function("lib_of_others.ops.rotate")
    assert lib.rotate is not original
    handle.remove()
    handle.remove()
    assert lib.rotate is original


def test_a_mark_placed_or_removed_after_compiling_takes_effect(lib):
    capture = Capture()
    compiled = torch.compile(lambda x: lib.rope(x), backend=capture, fullgraph=True)
    x = torch.ones(3)
    compiled(x)
    handle = ri.mark_function("lib_of_others.ops.rotate")
    compiled(x)
    compiled(x)
    assert len(capture.graphs) == 2
    assert names(capture.marks()) == [("sin", "rotate"), ("add", None)]
    ri.mark_function("lib_of_others.ops.rotate", name="other")
    compiled(x)
    assert names(capture.marks())[0] == ("sin", "other")
    handle.remove()
    compiled(x)
    assert len(capture.graphs) == 3


@pytest.mark.parametrize(
    ("path", "call", "op"),
    [
        ("Base.method", lambda lib, x: lib.Base().method(x), "cos"),
        ("Base.static", lambda lib, x: lib.Base.static(x), "tan"),
        ("Base.static", lambda lib, x: lib.Sub().static(x), "tan"),
        ("Base.of_class", lambda lib, x: lib.Sub.of_class(x), "exp"),
        ("Block.forward", lambda lib, x: lib.block(x), "log"),
        ("Block", lambda lib, x: lib.block(x), "log"),
    ],
)
def test_methods_of_every_kind_can_be_marked(lib, path, call, op):
    before = {name: dict(vars(kind)) for name, kind in vars(lib).items() if isinstance(kind, type)}
    lib.block = lib.Block()
    handle = ri.mark_function(f"lib_of_others.ops.{path}", name="m")
    assert marked(lambda x: call(lib, x)) == [(op, "m")]
    handle.remove()
    assert marked(lambda x: call(lib, x)) == [(op, None)]
    for name, attributes in before.items():
        assert {key: vars(getattr(lib, name)).get(key) for key in attributes} == attributes


def test_marking_an_inherited_method_leaves_the_base_class_alone(lib):
    base = ri.mark_function("lib_of_others.ops.Base.method", name="base")
    sub = ri.mark_function("lib_of_others.ops.Sub.method", name="sub")
    assert marked(lambda x: lib.Base().method(x)) == [("cos", "base")]
    assert marked(lambda x: lib.Sub().method(x)) == [("cos", "sub")]
    base.remove()
    assert marked(lambda x: lib.Base().method(x)) == [("cos", None)]
    assert marked(lambda x: lib.Sub().method(x)) == [("cos", "sub")]
    sub.remove()
    assert "method" not in vars(lib.Sub)


def test_marking_twice_is_marking_once(lib):
    original = lib.rotate
    ri.mark_function("lib_of_others.ops.rotate", id=1)
    wrapper = lib.rotate
    again = ri.mark_function("lib_of_others.ops.rotate", id=1)
    assert lib.rotate is wrapper
    again.remove()
    assert lib.rotate is original


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2), (0, 2, 1)])
def test_handles_may_be_removed_in_any_order(lib, order):
    original = lib.rotate
    handles = [ri.mark_function("lib_of_others.ops.rotate", name=name) for name in "abc"]
    left = list("abc")
    for index in order:
        assert marked(lambda x: lib.rotate(x)) == [("sin", left[-1])]
        handles[index].remove()
        left.remove("abc"[index])
    assert lib.rotate is original


def test_a_with_block_undoes_what_it_changed_and_no_more(lib):
    original = lib.rotate
    with ri.mark_function("lib_of_others.ops.rotate"):
        with ri.mark_function("lib_of_others.ops.rotate"):
            pass
        assert marked(lambda x: lib.rotate(x)) == [("sin", "rotate")]
        with ri.mark_function("lib_of_others.ops.rotate", name="inner"):
            assert marked(lambda x: lib.rotate(x)) == [("sin", "inner")]
        assert marked(lambda x: lib.rotate(x)) == [("sin", "rotate")]
    assert lib.rotate is original


def test_a_patch_that_another_tool_put_on_top_stays_and_the_mark_goes(lib):
    handle = ri.mark_function("lib_of_others.ops.rotate")
    ours = lib.rotate

    @functools.wraps(ours)
    def patched(x):
        return ours(x) * 2

    lib.rotate = patched
    assert marked(lambda x: lib.rotate(x)) == [("sin", "rotate"), ("mul", None)]
    handle.remove()
    assert lib.rotate is patched
    assert marked(lambda x: lib.rotate(x)) == [("sin", None), ("mul", None)]


def test_a_function_of_torch_written_in_c_can_be_marked():
    with ri.mark_function("torch.nn.functional.gelu", name="gelu"):
        assert marked(lambda x: nn.functional.gelu(x)) == [("gelu", "gelu")]
    assert marked(lambda x: nn.functional.gelu(x)) == [("gelu", None)]


# --- what the mark doesn't reach, and mistakes ----------------------------------------------------


def test_modules_that_hold_the_function_under_a_name_of_their_own_are_named(lib, monkeypatch):
    user = types.ModuleType("user_of_lib")
    user.turn = lib.rotate
    monkeypatch.setitem(sys.modules, "user_of_lib", user)
    with pytest.warns(ri.RegionWarning) as caught:
        ri.mark_function("lib_of_others.ops.rotate")
    (warning,) = caught
    lines = str(warning.message).splitlines()
    assert lines[0] == (
        "the mark on lib_of_others.ops.rotate does not reach code that holds the function itself: "
        "user_of_lib.turn"
    )
    assert lines[1].startswith(f"  marked at: {__file__}:")
    assert lines[2] == (
        '  way out: mark those too, as in regional_inductor.mark_function("user_of_lib.turn")'
    )
    assert warning.filename == __file__


def test_both_places_of_a_function_can_be_marked_and_restored(lib, monkeypatch):
    user = types.ModuleType("user_of_lib")
    user.turn = original = lib.rotate
    monkeypatch.setitem(sys.modules, "user_of_lib", user)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ri.RegionWarning)
        handles = [ri.mark_function("lib_of_others.ops.rotate")]
        handles.append(ri.mark_function("user_of_lib.turn"))
    assert marked(lambda x: user.turn(lib.rotate(x))) == [("sin", "rotate")] * 2
    for handle in handles:
        handle.remove()
    assert user.turn is original
    assert lib.rotate is original


def test_a_name_imported_after_the_mark_loses_it_with_the_handle(lib):
    handle = ri.mark_function("lib_of_others.ops.rotate")
    imported_later = lib.rotate
    assert marked(lambda x: imported_later(x)) == [("sin", "rotate")]
    handle.remove()
    assert marked(lambda x: imported_later(x)) == [("sin", None)]


@pytest.mark.parametrize(
    ("path", "what", "way_out"),
    [
        (
            "lib_of_others.ops.rotat",
            "nothing at 'lib_of_others.ops.rotat': lib_of_others.ops has no 'rotat'",
            "did you mean 'rotate'?",
        ),
        (
            "lib_of_others.ops.Base.metod",
            "nothing at 'lib_of_others.ops.Base.metod': Base has no 'metod'",
            "did you mean 'method'?",
        ),
        (
            "lib_of_others.opps.rotate",
            "nothing at 'lib_of_others.opps.rotate': lib_of_others has no 'opps'",
            "did you mean 'ops'?",
        ),
        (
            "lib_of_other.ops.rotate",
            "nothing at 'lib_of_other.ops.rotate': no module named 'lib_of_other'",
            "did you mean 'lib_of_others'?",
        ),
        (
            "lib_of_others.ops",
            "'lib_of_others.ops' is a module, not a function",
            "name a function in it",
        ),
        (
            "lib_of_others.ops.constant",
            "'lib_of_others.ops.constant' is no function but int",
            "name a function, a method or a subclass of torch.nn.Module",
        ),
        (
            "lib_of_others.ops.Base",
            "'lib_of_others.ops.Base' is no function but type",
            "name a function, a method or a subclass of torch.nn.Module",
        ),
        ("not a path", "'not a path' is no dotted path", 'for example "package.module.function"'),
    ],
)
@pytest.mark.usefixtures("lib")
def test_a_wrong_path_is_refused_with_near_names(path, what, way_out):
    with pytest.raises(ri.MarkError) as caught:
        ri.mark_function(path)
    lines = str(caught.value).splitlines()
    assert lines[0] == what
    assert lines[1].startswith(f"  marked at: {__file__}:")
    assert lines[2].startswith(f"  way out: {way_out.removesuffix('?')}")


def test_a_generator_function_is_refused_and_left_alone(lib):
    original = lib.stream
    with pytest.raises(ri.MarkError, match="stream is a generator function"):
        ri.mark_function("lib_of_others.ops.stream")
    assert lib.stream is original


def test_a_module_whose_own_import_fails_raises_what_it_raises(tmp_path, monkeypatch):
    (tmp_path / "broken_lib.py").write_text("import a_module_that_nobody_has\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="a_module_that_nobody_has"):
        ri.mark_function("broken_lib.function")
