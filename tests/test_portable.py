"""Operators of libraries in stored regions: calls by name are stored, code that may have been compiled in is not."""

from __future__ import annotations

import pytest
import torch
from torch.fx import Graph, GraphModule

from regional_inductor._torch import portable

NAMESPACE = "portable_tests"


@pytest.fixture
def library():
    with torch.library._scoped_library(NAMESPACE, "FRAGMENT") as scoped:
        yield scoped


def operator(library, name, kind="CompositeExplicitAutograd", **keywords):
    library.define(f"{name}(Tensor x) -> Tensor", **keywords)
    library.impl(name, lambda x: x * 2, kind)
    return getattr(getattr(torch.ops, NAMESPACE), name).default


def region(target, *, trains=False):
    graph = Graph()
    x = graph.placeholder("x")
    x.meta["val"] = torch.empty(2, requires_grad=trains)
    graph.output((graph.call_function(target, (x,)),))
    return GraphModule(torch.nn.Module(), graph)


def test_a_call_of_an_operator_by_its_name_is_stored(library):
    assert portable.why_not(region(operator(library, "opaque"))) == ""


def test_a_call_of_an_operator_with_a_rule_for_fake_tensors_is_stored(library):
    target = operator(library, "described")
    torch.library.register_fake(f"{NAMESPACE}::described", torch.empty_like, lib=library)
    assert portable.why_not(region(target)) == ""


def test_an_operator_with_effects_is_not(library):
    target = operator(library, "effectful")
    torch.library._register_effectful_op(
        f"{NAMESPACE}::effectful", torch._higher_order_ops.effects._EffectType.ORDERED
    )
    assert "which has effects" in portable.why_not(region(target))


def test_an_operator_that_is_traced_through_is_not(library):
    target = operator(library, "composite", "CompositeImplicitAutograd")
    assert "composite.default, which is traced through" in portable.why_not(region(target))


def test_an_operator_with_rules_for_tracing_is_not(library):
    target = operator(library, "ruled")
    torch.library.register_torch_dispatch(
        f"{NAMESPACE}::ruled",
        torch.utils._python_dispatch.TorchDispatchMode,
        lambda *arguments: None,
        lib=library,
    )
    assert "rules of its own for tracing" in portable.why_not(region(target))


def test_an_operator_with_a_python_implementation_for_a_mode_is_not(library):
    target = operator(library, "python")
    target.py_impl(torch._C.DispatchKey.CPU)(lambda x: x + 1)
    assert "rules of its own for tracing" in portable.why_not(region(target))


def test_an_operator_with_a_layout_rule_of_the_user_s_is_not(library):
    from torch._inductor import lowering

    target = operator(library, "laid_out")
    lowering.add_layout_constraint(target, lambda *arguments: arguments)
    try:
        assert "rules of its own for layouts" in portable.why_not(region(target))
    finally:
        del lowering._maybe_layout_constraints[target]


def test_a_region_that_derives_the_backward_pass_itself_is_not(library):
    target = operator(library, "trained")
    assert "the backward formula of" in portable.why_not(region(target, trains=True))
    assert portable.why_not(region(torch.ops.aten.sin.default, trains=True)) == ""


def test_several_overloads_at_once_are_not(library):
    operator(library, "packet")
    target = getattr(torch.ops, NAMESPACE).packet
    assert "no one overload" in portable.why_not(region(target))


def test_what_the_code_relies_on_of_an_operator_is_named(library):
    target = operator(library, "tagged", tags=(torch.Tag.needs_fixed_stride_order,))
    assert portable.signatures(region(target)) == {
        f"{NAMESPACE}.tagged.default": [
            f"{NAMESPACE}::tagged(Tensor x) -> Tensor",
            "Tag.needs_fixed_stride_order",
        ]
    }
    assert portable.signatures(region(torch.ops.aten.sin.default)) == {}
