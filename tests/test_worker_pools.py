"""Inductor's pools of processes, when the process at the top of one has died; the real ones are in tests/faults."""

from __future__ import annotations

import subprocess
import sys
import threading
from concurrent.futures import Future

import pytest
import torch

import regional_inductor as ri
from regional_inductor._torch import workers
from regional_inductor.stages import compile as stage


class Counter:
    """As torch calls it: without what a context manager is told."""

    def __exit__(self):
        pass


class Pool:
    """Stands for torch's `SubprocPool`."""

    def __init__(self):
        self.process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
        self.write_lock = threading.Lock()
        self.running = True
        self.running_waitcounter = Counter()
        self.pending_futures = {}

    def submit(self, *, dies=False):
        future = self.pending_futures[len(self.pending_futures)] = Future()
        if dies:
            self.process.kill()
        elif self.running and self.process.poll() is None:
            future.set_result(3)
        return future

    def shutdown(self):
        assert not self.running
        for future in self.pending_futures.values():
            if not future.done():
                future.set_exception(RuntimeError("pool closed"))

    def end(self):
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def pool_of_the_day(monkeypatch):
    """Asks Inductor for its pool; each that it makes is one of the above."""
    import functools

    from torch._inductor import async_compile

    made = []

    @functools.lru_cache(1)
    def process_pool():
        made.append(Pool())
        async_compile._pool_set.add(made[-1])
        return made[-1]

    monkeypatch.setattr(async_compile, "_pool_set", set())
    monkeypatch.setattr(async_compile.AsyncCompile, "process_pool", process_pool)
    yield lambda: async_compile.AsyncCompile.process_pool()
    for pool in made:
        pool.end()


def test_what_waits_for_a_pool_that_dies_goes_on(pool_of_the_day):
    pool = pool_of_the_day()
    with workers.dead_pools_given_up(), pytest.raises(RuntimeError, match="pool closed"):
        pool.submit(dies=True).result(30)


def test_a_pool_that_lives_is_left_alone(pool_of_the_day):
    pool = pool_of_the_day()
    workers.give_up_dead_pools()
    workers.renew_broken_pools()
    assert pool.running
    assert pool_of_the_day() is pool


def test_a_pool_that_dies_costs_one_region_of_a_batch(pool_of_the_day, monkeypatch):
    def build(module, options, call, settings):
        assert pool_of_the_day().submit(dies=call.name == "dies").result(30) == 3
        return module

    monkeypatch.setitem(stage._BACKENDS, "inductor", build)
    stage.forget_compiled_regions()

    def function(x):
        for name in ("a", "dies", "b"):
            with ri.region(name):
                x = x.sin() * len(name)
            x = x.flip(0)
        with ri.region("c"):
            return x.cos()

    compiled = ri.compile(function)
    x = torch.randn(4)
    with pytest.warns(ri.RegionWarning, match="region: dies"):
        torch.testing.assert_close(compiled(x), function(x))
    statuses = {region.name: region.status for region in compiled.report.regions}
    assert statuses == {"a": "compiled", "dies": "eager", "b": "shared", "c": "compiled"}
    stage.forget_compiled_regions()


# --- started before they are needed -----------------------------------------------------------------


@pytest.fixture
def started(monkeypatch):
    """As if Triton were there: what happened, in order."""
    from torch._inductor import async_compile

    seen = []
    monkeypatch.setattr(workers, "_triton_is_there", lambda: True)
    monkeypatch.setattr(async_compile, "maybe_warm_pool", lambda: seen.append("workers"))
    return seen


def test_workers_are_started_before_anything_is_captured(ri, started):
    ri.compile(ri.region("tail")(lambda x: x + 1))
    assert started == ["workers"]


def test_the_backend_starts_workers_before_it_differentiates(started):
    compiled = torch.compile(lambda x: x + 1, backend="regional_inductor")
    compiled(torch.ones(2))
    assert started == ["workers"]


@pytest.mark.parametrize("why", ["nothing is compiled", "no Triton"])
def test_workers_that_nobody_needs_are_not_started(ri, started, monkeypatch, why):
    backend = "eager" if why == "nothing is compiled" else "inductor"
    if why == "no Triton":
        monkeypatch.setattr(workers, "_triton_is_there", lambda: False)
    ri.compile(lambda x: x + 1, region_backend=backend)
    assert started == []
