"""Reading and checking the value of a mark."""

from __future__ import annotations

import subprocess
import sys
import warnings

import pytest
import torch._inductor.config  # options are only checked at once where Inductor is imported

from regional_inductor import MarkError, OptionError, RegionWarning, options
from regional_inductor.options import (
    Mark,
    carried,
    check_options,
    mode_options,
    near_miss_keys,
    parse_mark,
)


@pytest.fixture(autouse=True)
def no_warning_was_given_yet(monkeypatch):
    monkeypatch.setattr(options, "_ALREADY_WARNED", set())


def message_of(error, *args, **kwargs):
    with pytest.raises(error) as caught:
        parse_mark(*args, **kwargs)
    return str(caught.value)


# --- values of PyTorch's pass ---------------------------------------------------------------------


@pytest.mark.parametrize("value", [0, 1, "anything", True, 3.5])
def test_any_value_marks(value):
    assert parse_mark(value) == Mark()


@pytest.mark.parametrize("value", [None, False])
def test_none_and_false_mark_too_and_warn_once(value):
    with pytest.warns(RegionWarning) as caught:
        assert parse_mark(value, source="model.py:3") == Mark()
    assert str(caught[0].message) == (
        f"compile_with_inductor: {value} marks code for compilation, like any other value\n"
        "  marked at: model.py:3\n"
        "  way out: leave the mark out, or use regional_inductor.eager() to keep code out of regions"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        parse_mark(value)


def test_options_and_id_of_pytorchs_pass_are_read():
    mark = parse_mark({"inductor_configs": {"max_autotune": True}, "inductor_region": 7})
    assert dict(mark.options) == {"max_autotune": True}
    assert mark.id == 7


def test_our_own_keys_are_read():
    value = {
        "name": "mlp",
        "numerics": "eager",
        "compile_timeout": 3,
        "collectives": "include",
        "scope": "module:MLP",
        "entry": 5,
        "source": "model.py:9",
    }
    assert parse_mark(value) == Mark(
        name="mlp",
        numerics="eager",
        compile_timeout=3.0,
        collectives="include",
        scope="module:MLP",
        entry=5,
    )
    assert parse_mark(value, source="elsewhere.py:1").source == "model.py:9"


def test_the_opposite_mark_is_known_as_such():
    assert parse_mark({"eager": True}).eager
    assert not parse_mark({}).eager


# --- what two marks must agree in -----------------------------------------------------------------


def test_name_scope_entry_and_line_do_not_keep_regions_apart():
    a = parse_mark({"name": "a", "scope": "code:f", "entry": 1, "source": "a.py:1"})
    b = parse_mark({"name": "b", "scope": "code:g", "entry": 2, "source": "b.py:1"})
    assert a.join_key == b.join_key


@pytest.mark.parametrize(
    "other",
    [
        {"inductor_configs": {"max_autotune": True}},
        {"inductor_region": 1},
        {"numerics": "eager"},
        {"compile_timeout": 1},
        {"collectives": "include"},
        {"eager": True},
    ],
)
def test_everything_else_keeps_them_apart(other):
    assert parse_mark(other).join_key != parse_mark({}).join_key


def test_the_order_of_options_does_not_matter():
    one = parse_mark({"inductor_configs": {"max_autotune": True, "size_asserts": False}})
    two = parse_mark({"inductor_configs": {"size_asserts": False, "max_autotune": True}})
    assert one == two
    assert hash(one) == hash(two)
    assert one.options == two.options


def test_equal_numbers_of_different_types_are_different_ids_and_options():
    assert (
        parse_mark({"inductor_region": 1}).join_key
        != parse_mark({"inductor_region": True}).join_key
    )
    one = Mark(options=(("triton.multi_kernel", 1),))
    assert one.join_key != Mark(options=(("triton.multi_kernel", True),)).join_key


def test_options_that_cannot_be_hashed_are_compared_by_content():
    a = parse_mark({"inductor_configs": {"custom_should_partition_ops": ["aten.mm"]}})
    b = parse_mark({"inductor_configs": {"custom_should_partition_ops": ["aten.mm"]}})
    c = parse_mark({"inductor_configs": {"custom_should_partition_ops": ["aten.bmm"]}})
    assert a.join_key == b.join_key
    assert hash(a) == hash(b)
    assert a.join_key != c.join_key


# --- mistakes -------------------------------------------------------------------------------------


def test_an_unknown_option_is_named_with_its_region_line_and_near_words():
    value = {"name": "mlp", "inductor_configs": {"max_autotun": True}}
    assert message_of(OptionError, value, source="model.py:12") == (
        "unknown Inductor option 'max_autotun'\n"
        "  region: mlp\n"
        "  marked at: model.py:12\n"
        "  way out: did you mean 'max_autotune' or 'max_autotune_gemm' or 'max_autotune_pointwise'?"
    )


def test_an_option_without_its_prefix_is_found():
    value = {"inductor_configs": {"cudagraphs": True}}
    assert "did you mean 'triton.cudagraphs'?" in message_of(OptionError, value)


def test_a_word_like_no_option_points_to_the_list():
    value = {"inductor_configs": {"qqqqqqqq": 1}}
    assert "torch._inductor.list_options() names all of them" in message_of(OptionError, value)


def test_a_value_of_the_wrong_type_says_what_is_taken():
    value = {"name": "mlp", "inductor_configs": {"max_autotune": 1}}
    assert message_of(OptionError, value, source="model.py:12") == (
        "Inductor option 'max_autotune' takes a bool, not 1 (int)\n"
        "  region: mlp\n"
        "  marked at: model.py:12\n"
        "  way out: its value now is False (bool)"
    )


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("max_autotune", True),
        ("triton.cudagraphs", False),
        ("cpu_gpu_bw", 3),  # a float takes an int
        ("reorder_prefetch_limit", None),
        ("reorder_prefetch_limit", 4),
        ("max_autotune_gemm_search_space", "EXHAUSTIVE"),
        ("post_grad_custom_pre_pass", lambda graph: None),
        ("post_grad_custom_pre_pass", None),
        ("worker_log_path", "log"),  # declares no type
        ("custom_should_partition_ops", ("aten.mm",)),
    ],
)
def test_right_values_pass(key, value):
    check_options({key: value})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("max_autotune", "yes"),
        ("max_autotune", None),
        ("cpu_gpu_bw", True),
        ("reorder_prefetch_limit", "four"),
        ("max_autotune_gemm_search_space", "exhaustive"),
        ("post_grad_custom_pre_pass", 3),
        ("custom_should_partition_ops", "aten.mm"),
    ],
)
def test_wrong_values_are_refused(key, value):
    with pytest.raises(OptionError, match=f"Inductor option '{key}' takes"):
        check_options({key: value})


def test_inductors_own_defaults_all_fit_the_types_it_declares():
    check_options(torch._inductor.config.get_config_copy())


def test_options_that_are_no_dict_are_refused():
    assert message_of(OptionError, {"name": "mlp", "inductor_configs": ["max_autotune"]}) == (
        "the options of a region (inductor_configs) must be a dict, not ['max_autotune'] (list)\n"
        "  region: mlp\n"
        '  way out: for example options={"max_autotune": True}'
    )


def test_an_option_whose_name_is_no_string_is_refused():
    text = message_of(OptionError, {"inductor_configs": {3: True}})
    assert text.startswith("the name of an Inductor option must be a string, not 3 (int)")


def test_an_id_that_cannot_be_hashed_is_refused():
    assert message_of(MarkError, {"name": "mlp", "inductor_region": [1]}, source="model.py:2") == (
        "the id of a region must be hashable, and [1] (list) is not\n"
        "  region: mlp\n"
        "  marked at: model.py:2\n"
        "  way out: use a string, a number or a tuple of them"
    )


def test_a_name_must_be_a_string():
    assert "must be a string, not 3 (int)" in message_of(MarkError, {"name": 3})


@pytest.mark.parametrize("timeout", [0, -1, True, "1", float("nan"), float("inf")])
def test_a_timeout_is_a_positive_number(timeout):
    text = message_of(OptionError, {"compile_timeout": timeout})
    assert text.startswith("compile_timeout takes a positive number of seconds, not")


@pytest.mark.parametrize(
    ("key", "choices"),
    [("numerics", "'default' or 'eager'"), ("collectives", "'exclude' or 'include'")],
)
def test_a_choice_names_its_choices(key, choices):
    assert f"{key} takes {choices}, not 'x' (str)" in message_of(OptionError, {key: "x"})
    assert "takes" in message_of(OptionError, {key: ["eager"]})


@pytest.mark.parametrize(
    ("key", "meant"), [("options", "inductor_configs"), ("nam", "name"), ("id", "inductor_region")]
)
def test_an_unknown_key_gives_one_warning_with_what_was_meant(key, meant):
    with pytest.warns(RegionWarning) as caught:
        parse_mark({key: 1, "numerics": "eager"}, source="model.py:4")
    (warning,) = caught
    assert str(warning.message) == (
        f"unknown key {key!r} in a mark has no effect\n"
        "  marked at: model.py:4\n"
        f"  way out: did you mean {meant!r}?"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        parse_mark({key: 1})


@pytest.mark.parametrize(
    "key",
    [
        "compile_with_inducter",
        "compile-with-inductor",
        "compiled_with_inductor",
        "Compile_With_Inductor",
    ],
)
def test_a_misspelt_mark_key_is_recognised(key):
    assert near_miss_keys({key: 0, "stage": 1}) == [(key, "compile_with_inductor")]


def test_other_annotations_are_no_misspelt_marks():
    assert near_miss_keys({"compile_with_inductor": 0, "pp_stage": 1, 3: 4, "inductor": 0}) == []


# --- modes, and what must not be imported ---------------------------------------------------------


def test_a_mode_maps_to_inductors_options():
    assert mode_options("max-autotune")["triton.cudagraphs"] is True
    assert mode_options("default") == {}


def test_a_mode_is_a_copy_of_its_own():
    mode_options("reduce-overhead")["triton.cudagraphs"] = False
    assert mode_options("reduce-overhead")["triton.cudagraphs"] is True


def test_an_unknown_mode_is_refused_with_near_words():
    with pytest.raises(OptionError) as caught:
        mode_options("reduced-overhead")
    assert str(caught.value) == (
        "unknown mode 'reduced-overhead'\n  way out: did you mean 'reduce-overhead'?"
    )


def test_what_dynamo_cannot_carry_comes_back_as_it_was():
    class Pass:
        pass

    held = Pass()
    value = {"inductor_configs": {"post_grad_custom_pre_pass": held, "max_autotune": True}}
    packed = carried(value)
    assert isinstance(packed["inductor_configs"]["post_grad_custom_pre_pass"], type)
    assert carried(value) == packed  # one class for one object, so that Dynamo's guards hold
    assert packed["inductor_configs"]["max_autotune"] is True
    assert options._unpacked(packed) == value


def test_marking_imports_neither_inductor_nor_dynamo():
    program = """
import sys
import regional_inductor as ri
import torch

@ri.region("f", options={"no_such_option": 1})
def f(x):
    return x + 1

with ri.region("g"), ri.eager():
    f(torch.ones(2))
ri.mark(torch.nn.Sequential(torch.nn.ReLU()), "0", options={"max_autotune": True})
loaded = [name for name in ("torch._inductor", "torch._dynamo") if name in sys.modules]
assert not loaded, loaded
from regional_inductor.options import parse_mark
parse_mark({"inductor_configs": {"no_such_option": 1}})
try:
    parse_mark({"inductor_configs": {"no_such_option": 1}}, import_inductor=True)
except ri.OptionError:
    print("checked")
"""
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stdout) == (0, "checked\n"), result.stderr
