"""Many at once, and many in a row: threads, processes, forks, shapes, compile-and-drop cycles."""

from __future__ import annotations

import gc
import os
from collections import Counter

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.traceback import annotate, preserve_node_meta

import regional_inductor as ri

from .running import assert_works, finished


def test_32_threads_compile_and_run_one_model(subject):
    result = subject.run("--threads", "32")
    assert result["errors"] == []
    assert (result["equal"], result["runs"]) == (True, 96)


def test_8_processes_compile_and_run_one_model_over_one_cache(subject):
    for result in [finished(process) for process in [subject.start() for _ in range(8)]]:
        assert_works(result)
    assert_works(subject.run())


def test_one_of_several_processes_is_killed_and_the_others_finish(subject):
    processes = [subject.start(FAULT="waits") for _ in range(4)]
    subject.wait_for_compiler()
    processes[0].kill()
    processes[0].communicate()
    for process in processes[1:]:
        assert_works(finished(process))


def test_a_fork_runs_what_was_compiled_and_compiles(subject):
    result = subject.run("--fork")
    assert result["equal"], result


# --- in this process ------------------------------------------------------------------------------


def test_recompiles_under_changing_shapes():
    def function(x):
        with ri.region("shapes"):
            y = (x.sin() + 1).tanh() * x.sum(-1, keepdim=True)
        return y.flip(0)

    compiled = ri.compile(function)
    for rows in (1, 2, 3, 7, 8, 1, 64, 5):
        for columns in (1, 4, 16, 3):
            x = torch.randn(rows, columns, requires_grad=True)
            ours, theirs = compiled(x), function(x)
            torch.testing.assert_close(ours, theirs)
            (mine,) = torch.autograd.grad(ours.sum(), x)
            (its,) = torch.autograd.grad(theirs.sum(), x)
            torch.testing.assert_close(mine, its)
    assert "eager" not in {region.status for region in compiled.report.regions}


def compile_and_drop(number, backend):
    def function(x):
        with annotate({"compile_with_inductor": "cycle"}):
            return (x.sin() + number).tanh()  # another region each time

    x = torch.ones(4)
    with preserve_node_meta():
        gm = make_fx(function, tracing_mode="fake")(x)
    gm = ri.regional_inductor(gm, region_backend=backend)
    torch.testing.assert_close(gm(x), function(x))


def living():
    """How many objects of the kinds that a compile makes are alive."""
    for _ in range(3):  # what a finalizer lets go is garbage of the next round
        gc.collect()
    kinds = ("GraphModule", "Graph", "Node", "FakeTensor", "FakeTensorMode", "RegionCall", "module")
    found = Counter(type(value).__name__ for value in gc.get_objects())
    return {kind: found[kind] for kind in kinds} | {
        "GraphModule": sum(count for name, count in found.items() if "GraphModule" in name)
    }


def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def test_thousands_of_compile_and_drop_cycles_keep_memory_bounded(monkeypatch):
    from regional_inductor.cache import memory

    monkeypatch.setattr(memory, "limit", 16)
    for number in range(200):
        compile_and_drop(number, "eager")
    objects, megabytes = living(), resident()
    for number in range(200, 3200):
        compile_and_drop(number, "eager")
    after = living()
    grown = {kind: after[kind] - objects[kind] for kind in after}
    assert all(count <= 0.02 * 3000 for count in grown.values()), grown
    assert resident() - megabytes < 60


class Normed(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.norm = torch.nn.Linear(4, 4), torch.nn.LayerNorm(4)

    def forward(self, x):
        return self.norm(self.linear(x))


def test_models_that_are_compiled_and_dropped_are_freed():
    def cycle(number):
        model = Normed()
        ri.mark(model, "norm", name=f"norm{number}")
        ri.compile(model, region_backend="eager")(torch.ones(2, 4)).sum().backward()
        torch._dynamo.reset()

    for number in range(
        70
    ):  # torch keeps what it measured of the last 64 compiles, and all that hangs on it
        cycle(number)
    objects = living()
    for number in range(70, 170):
        cycle(number)
    grown = {kind: count - objects[kind] for kind, count in living().items()}
    assert all(count <= 0.2 * 100 for count in grown.values()), grown


def test_a_worker_that_crashes_and_a_pool_that_dies_cost_one_region_each(monkeypatch):
    """Inductor's processes, which compile Triton's kernels: here they are given other work."""
    from functools import partial

    from torch._inductor import config
    from torch._inductor.async_compile import AsyncCompile

    from regional_inductor.stages import compile as stage

    def build(module, options, call, settings):
        pool = AsyncCompile.process_pool()
        if call.name == "crash":
            pool.submit(partial(os._exit, 1)).result(120)
        elif call.name == "dies":
            pool.process.kill()
            pool.submit(partial(int, 3)).result(120)
        else:
            assert pool.submit(partial(int, 3)).result(120) == 3
        return module

    stage.forget_compiled_regions()
    monkeypatch.setitem(stage._BACKENDS, "inductor", build)

    def function(x):
        for number, name in enumerate(("a", "crash", "b", "dies", "c")):
            with ri.region(name):
                x = x.sin() * (number + 2)
            x = x.flip(0)
        return x

    x = torch.randn(4)
    with config.patch(compile_threads=2, worker_start_method="subprocess"):
        compiled = ri.compile(function)
        try:
            with pytest.warns(ri.RegionWarning) as caught:
                torch.testing.assert_close(compiled(x), function(x))
        finally:
            AsyncCompile.process_pool().shutdown()
            AsyncCompile.process_pool.cache_clear()
            AsyncCompile._ready_future = None
    assert [(r.name, r.status) for r in compiled.report.regions] == [
        ("a", "compiled"),
        ("crash", "eager"),
        ("b", "compiled"),
        ("dies", "eager"),
        ("c", "compiled"),
    ]
    assert len([w for w in caught if w.category is ri.RegionWarning]) == 2
    stage.forget_compiled_regions()


def test_a_time_limit_ends_workers(monkeypatch):
    from functools import partial
    from time import sleep

    from torch._inductor import config
    from torch._inductor.async_compile import AsyncCompile

    from regional_inductor.timelimit import TimeLimitError, time_limit

    with config.patch(compile_threads=2, worker_start_method="subprocess"):
        pool = AsyncCompile.process_pool()
        pool.submit(partial(int, 3)).result(120)

        def wait():
            with time_limit(1):
                pool.submit(partial(sleep, 600)).result()

        with pytest.raises(TimeLimitError):
            wait()
        assert isinstance(pool.process.wait(60), int)
        AsyncCompile.process_pool.cache_clear()
        AsyncCompile._ready_future = None
