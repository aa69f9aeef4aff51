"""The other ways to run the same code, and what is read off PyTorch's compilers.

Private torch APIs that the benchmarks need are here. Checked on torch 2.13.0.
"""

from __future__ import annotations

import gc
import importlib
import os
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch


def fake_tensors(shape: tuple[int, ...], *, shared: bool) -> Callable[[], torch.Tensor]:
    """Gives fake float32 tensors of one mode: one and the same, or each with a storage of its own."""
    from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

    mode = FakeTensorMode()

    def fresh() -> torch.Tensor:
        # An operator run under the mode costs ten times as much.
        return FakeTensor(mode, torch.empty(shape, device="meta"), torch.device("cpu"))

    one = fresh()
    return (lambda: one) if shared else fresh


def without_code(graph: torch.fx.Graph) -> torch.fx.GraphModule:
    """A module of a graph. Generating code that nobody runs would be half of the time to build the graph."""
    gm = torch.fx.GraphModule(torch.nn.Module(), torch.fx.Graph())
    gm._graph = graph
    graph.owning_module = gm
    return gm


# --- graph passes: a graph in, a graph with compiled regions out ------------------------------------


def pass_of(way: str) -> Callable[..., Any]:
    """PyTorch's pass or our drop-in, looked up when it is needed."""
    if way == "pytorch":
        from torch.fx.passes.regional_inductor import regional_inductor

        return regional_inductor
    import regional_inductor as ri

    return ri.regional_inductor


def outlining_of(way: str) -> Callable[[torch.fx.GraphModule], Any]:
    """Partition, outline and code generation, without compiling."""
    if way == "pytorch":
        from torch.fx.passes.regional_inductor import _create_inductor_marked_regions

        return _create_inductor_marked_regions
    import regional_inductor as ri

    return ri.outline_regions


def marked_regions(gm: torch.fx.GraphModule) -> int:
    """How many submodules an outlined graph calls."""
    return sum(node.op == "call_module" for node in gm.graph.nodes)


def dependency_view(gm: torch.fx.GraphModule) -> Any:
    """The transitive closure that PyTorch's partitioner starts from, for its memory alone."""
    from torch.fx.passes.infra.partitioner import _DependencyViewer

    return _DependencyViewer(gm)


def backend_of(
    graph_pass: Callable[..., Any], partition: Callable[..., Any] | None = None
) -> Callable[..., Any]:
    """A graph pass as both compilers of AOTAutograd, as PyTorch's tests put their pass together."""
    from torch._dynamo.backends.common import aot_autograd

    more = {} if partition is None else {"partition_fn": partition}
    return aot_autograd(fw_compiler=graph_pass, bw_compiler=graph_pass, **more)


class EarlyPass:
    """Our drop-in pass, told of the backward graph, as `ri.compile` runs it while a model is in training mode.

    `partition` is for AOTAutograd: the same as it takes by itself.
    """

    def __init__(self) -> None:
        from torch._functorch.partitioners import default_partition

        from regional_inductor.backend import read_settings
        from regional_inductor.early_backward import EarlyBackward

        settings = read_settings({}, merge="all", on_error="raise")
        early = EarlyBackward(settings)
        self.settings = replace(settings, early=early)
        self.partition = early.noting(default_partition)

    def __call__(self, gm: torch.fx.GraphModule, *inputs: Any) -> Any:
        from regional_inductor.backend import run_pass
        from regional_inductor.report import Report, publish

        report = Report()
        result = run_pass(gm, inputs, self.settings, report)
        publish(report)
        return result


class TimedPass:
    """A graph pass that takes down how long each of its runs took, the first also in seconds of CPU.

    With `again`, each graph is also copied beforehand and the pass is run over the copies: what it
    costs where the process has compiled the same before. `parts` has seconds by part of the first runs.
    """

    def __init__(
        self, way: str, again: int = 0, graph_pass: Callable[..., Any] | None = None
    ) -> None:
        self.way = way
        self.graph_pass = graph_pass or pass_of(way)
        self.again = again
        self.first: list[float] = []
        self.cpu: list[float] = []
        self.repeated: list[list[float]] = [[] for _ in range(again)]
        self.parts: dict[str, float] = {}

    def __call__(self, gm: torch.fx.GraphModule, inputs: Any) -> Any:
        from copy import deepcopy

        copies = [deepcopy(gm) for _ in range(self.again)]
        cpu, start = cpu_seconds(), time.perf_counter()
        result = self.graph_pass(gm, *inputs)
        self.first.append(time.perf_counter() - start)
        self.cpu.append(cpu_seconds() - cpu)
        self._note_parts()
        for copied, taken in zip(copies, self.repeated, strict=True):
            start = time.perf_counter()
            self.graph_pass(copied, *inputs)
            taken.append(time.perf_counter() - start)
        return result

    def _note_parts(self) -> None:
        """Add what the run just made took: stages, and each region's steps."""
        found: dict[str, float] = {
            "the pass, wall": self.first[-1],
            "the pass, processors, compilers included": self.cpu[-1],
        }
        report = last_report() if self.way == "ours" else None
        for graph in report.graphs if report else ():
            for stage, seconds in graph.seconds.items():
                found[f"stage {stage}"] = found.get(f"stage {stage}", 0.0) + seconds
        regions = [r for r in report.regions if r.status == "compiled"] if report else []
        for number, region in enumerate(regions, 1):
            label = f"{region.direction} region {number} of {len(region.ops)} operators"
            found |= {f"{label}, {step}": seconds for step, seconds in region.steps.items()}
        for part, seconds in found.items():
            self.parts[part] = self.parts.get(part, 0.0) + seconds


def cpu_seconds() -> float:
    """Of this process and of those that it started and that have ended: compilers."""
    return sum(os.times()[:4])


# --- processes --------------------------------------------------------------------------------------


def import_torch() -> None:
    """This module has done it."""


def import_transformers() -> None:
    importlib.import_module("transformers")


# The backends that a warm-up compiles with, by what is warmed up.
WARM_UPS: dict[str, Callable[[], Any]] = {
    "pytorch": lambda: backend_of(pass_of("pytorch")),
    "drop-in": lambda: backend_of(pass_of("ours")),
    "ours": lambda: "regional_inductor",
    "inductor": lambda: "inductor",
    "aot_eager": lambda: "aot_eager",
}
WARMED_BEFORE_FORKING = [
    *(("pytorch", False), ("pytorch", True), ("drop-in", False), ("drop-in", True)),
    *(("ours", False), ("inductor", False)),
]
_warm: set[tuple[str, bool]] = set()


def prepare_compilers() -> None:
    """Before processes are forked: imports, what Inductor finds out about the machine, and all warm-ups.

    Each is a compile of something that is not in any cache and one of something that is.
    """
    from torch._inductor.cpu_vec_isa import pick_vec_isa
    from torch.hub import tqdm

    tqdm.monitor_interval = (
        0  # else AOTAutograd's progress bar starts a thread, which forked processes would lack
    )
    for way in ("pytorch", "ours"):
        backend_of(pass_of(way))
    for module in ("torch._inductor.compile_fx", "torch._inductor.codegen.cpp"):
        importlib.import_module(module)
    pick_vec_isa()
    # The folder as it is now is for processes that warm up by themselves.
    # (No space in the name of the other: g++ is given it in a line that is split.)
    warm = f"{os.environ['TORCHINDUCTOR_CACHE_DIR']}-warm-up"
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = warm
    os.environ["REGIONAL_INDUCTOR_CACHE_DIR"] = os.path.join(warm, "regions")
    with torch._inductor.config.patch(compile_threads=1):  # forked processes would lack the threads
        leaves_files = os.fork()
        if leaves_files == 0:
            for way, train in WARMED_BEFORE_FORKING:
                _compile_unrelated(way, train, (6, 4))
            os._exit(0)
        for way, train in WARMED_BEFORE_FORKING:
            warm_up(way, train)
        _, failed = os.waitpid(leaves_files, 0)
        assert not failed
        for way, train in WARMED_BEFORE_FORKING:  # as a warm start does, with nothing in memory
            _compile_unrelated(way, train, (6, 4))
    gc.collect()


def warm_up(way: str, train: bool = False) -> None:
    """Compile and run something unrelated, once a process or before it was forked."""
    if (way, train) not in _warm:
        _compile_unrelated(way, train, (7, 5))
        _warm.add((way, train))
    keep_link_stubs()


def _compile_unrelated(way: str, train: bool, shape: tuple[int, int]) -> None:
    from benchmarks import _models

    x = torch.randn(shape, requires_grad=train)
    y = torch.compile(_models.unrelated, backend=WARM_UPS[way]())(x)
    if train:
        y.sum().backward()
    forget_everything()


def keep_link_stubs() -> None:
    """Ours makes them once a process, in three runs of the compiler; the process this was forked from outlives it."""
    from regional_inductor._torch import link_stubs

    for (_, *of), folder in list(link_stubs._folders.items()):
        link_stubs._folders[os.getpid(), of[0], of[1]] = folder


# --- whole models ----------------------------------------------------------------------------------


def compiled_model(way: str, model: torch.nn.Module) -> Callable[..., Any]:
    """A model of `_models.py` run in one of the ways; compiled when first called."""
    if way == "eager":
        return model
    if way == "pytorch":
        return torch.compile(model, backend=backend_of(pass_of("pytorch")))
    if way == "aot_eager":
        return torch.compile(model, backend="aot_eager")
    if way == "full":
        return torch.compile(model)
    if way == "nested":
        # It takes plain functions only, so this is for the whole process.
        (block,) = {type(block) for block in model.layers}
        block.forward = torch.compiler.nested_compile_region(block.forward)
        return torch.compile(model)
    if way == "blocks":
        for block in model.layers:
            block.compile()
        return model
    import regional_inductor as ri

    if way == "ours":
        return ri.compile(model)
    _, _, capture = way.partition(":")  # "ours:blocks", "ours:model"
    return ri.compile(model, capture=capture)


def bare_calls(function: Callable[..., Any], *args: torch.Tensor) -> Callable[[list[Any]], Any]:
    """Inductor's own `call(args)` of one compiled function, with nothing around it."""
    from torch._inductor.codecache import PyCodeCache
    from torch._inductor.utils import fresh_cache

    with fresh_cache(), torch.no_grad():
        before = set(map(id, PyCodeCache.modules))
        torch.compile(function, fullgraph=True)(*args)
        made = [m for m in PyCodeCache.modules if id(m) not in before and hasattr(m, "call")]
    (module,) = made
    call: Callable[[list[Any]], Any] = module.call
    return call


def parts_of_calls() -> tuple[Callable[..., Any], Callable[..., Any]]:
    """What Inductor's generated calls use: one makes an output, one checks an input's sizes and strides."""
    guards = torch._C._dynamo.guards
    return guards._empty_strided_cpu, guards.assert_size_stride


def forget_everything() -> None:
    """Dynamo's compiled code of this process."""
    torch._dynamo.reset()


def forget_counts() -> None:
    torch._dynamo.utils.counters.clear()


def forget_steps() -> None:
    """What torch's compilers took down of the time of their steps."""
    torch._dynamo.utils.compilation_time_metrics.clear()


def seconds_of_steps() -> dict[str, float]:
    """Seconds by step since `forget_steps`; steps lie within one another."""
    metrics = torch._dynamo.utils.compilation_time_metrics
    return {step: sum(taken) for step, taken in metrics.items()}


def counts() -> dict[str, int]:
    """What torch's compilers did since `forget_counts`."""
    counters = torch._dynamo.utils.counters
    return {
        "graphs": counters["stats"]["unique_graphs"],
        "AOTAutograd": counters["aot_autograd"]["total"],
    }


def last_report() -> Any:
    import regional_inductor as ri

    return ri.last_report()


def statuses_of_last_report() -> list[str]:
    """What became of each region of the last compile of ours."""
    report = last_report()
    return [region.status for region in report.regions] if report else []
