"""What one call of a compiled region runs and leaves behind, counted through the interpreter.

Counted on functions with a few regions and many, so that what is paid once a call of the whole function
drops out. The limits are what was counted last, on Python 3.11 (other versions inline more); lower them
when the code does better.
"""

from __future__ import annotations

import gc
import sys
from collections import Counter

import pytest
import torch
from support.counting import python_calls
from torch.fx.traceback import annotate

pytestmark = pytest.mark.inductor

FEW, MANY = 2, 6
BACKEND_CALLS = 2  # the region's function and Inductor's `call`
BACKEND_C_CALLS = 4  # clear, assert_size_stride, empty_strided, the kernel
DROP_IN_CALLS = 2
DROP_IN_C_CALLS = 5  # and the check of all arguments


def with_regions(count: int):
    def function(x):
        for _ in range(count):
            with annotate({"compile_with_inductor": "region"}):
                x = (x.sin() + 0.5).tanh()
            x = torch.neg(x)
        return x

    return function


def without_regions(count: int):
    def function(x):
        for _ in range(count):
            x = torch.neg(x)
        return x

    return function


def calls_a_region(backend) -> Counter[str]:
    """Functions called for each region more, those of the operator between taken off."""
    x = torch.randn(10)

    def calls(function, backend) -> Counter[str]:
        torch._dynamo.reset()
        options = {"options": {"lowering": "auto"}} if backend == "regional_inductor" else {}
        compiled = torch.compile(function, backend=backend, fullgraph=True, **options)
        with torch.no_grad():
            for _ in range(3):  # some things happen at the first call only
                compiled(x)
            return python_calls(compiled, x)

    def a_region(make, backend) -> Counter[str]:
        many, few = calls(make(MANY), backend), calls(make(FEW), backend)
        many.subtract(few)
        return many

    found = a_region(with_regions, backend)
    found.subtract(a_region(without_regions, "aot_eager"))
    assert all(count % (MANY - FEW) == 0 for count in found.values()), found
    return Counter({name: count // (MANY - FEW) for name, count in found.items() if count})


def python_functions(found: Counter[str]) -> int:
    return sum(count for name, count in found.items() if not name.startswith("c:"))


def test_a_region_of_the_backend_costs_few_calls():
    found = calls_a_region("regional_inductor")
    assert python_functions(found) <= BACKEND_CALLS, found
    assert sum(found.values()) - python_functions(found) <= BACKEND_C_CALLS, found


@pytest.mark.parametrize("kernels", ["compiled now", "from Inductor's cache"])
def test_a_region_of_the_drop_in_pass_costs_few_calls(kernels):
    """AOTAutograd wraps what it has just compiled otherwise than what it loads from its cache."""
    from torch._dynamo.backends.common import aot_autograd
    from torch._inductor.utils import fresh_cache

    import regional_inductor as ri
    from regional_inductor.cache import memory

    def graph_pass(gm, inputs):
        return ri.regional_inductor(gm, *inputs)

    backend = aot_autograd(fw_compiler=graph_pass, bw_compiler=graph_pass)
    with fresh_cache():
        memory.clear()
        if kernels != "compiled now":
            calls_a_region(backend)
            memory.clear()
        found = calls_a_region(backend)
    assert python_functions(found) <= DROP_IN_CALLS, found
    assert sum(found.values()) - python_functions(found) <= DROP_IN_C_CALLS, found


def test_calls_leave_nothing_behind():
    compiled = torch.compile(with_regions(MANY), backend="regional_inductor", fullgraph=True)
    x = torch.randn(10)
    calls = 200

    def left() -> int:
        gc.collect()
        before = sys.getallocatedblocks()
        for _ in range(calls):
            compiled(x)
        gc.collect()
        return sys.getallocatedblocks() - before

    with torch.no_grad():
        # What calls leave, they leave in each round; the process around them fills caches now and then.
        fewest = min(left() for _ in range(5))
    assert fewest < calls, f"{fewest} blocks after {calls} calls of {MANY} regions"
