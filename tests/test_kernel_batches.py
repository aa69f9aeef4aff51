"""Kernels of many regions in one run of the C++ compiler: who shares a unit, and what each key still has alone."""

from __future__ import annotations

import contextlib
import glob
import importlib.machinery
import importlib.util
import os
import shutil
import sys

import pytest
import torch
from support.counting import compiler_runs
from support.graphs import marked, with_options

import regional_inductor as ri
from regional_inductor._torch import kernel_batches, link_stubs
from regional_inductor._torch.kernel_batches import UNIT_SIZE, WORTH_DIVIDING, Kernel, units_of
from regional_inductor._torch.translation_units import not_beside_others, unit_source

SOURCE = """
#include <torch/csrc/inductor/cpp_prefix.h>
extern "C"  void  kernel(const float* in_ptr0, float* out_ptr0)
{
    #pragma omp parallel
    #pragma GCC ivdep
    for (int i = 0; i < 4; ++i) out_ptr0[i] = in_ptr0[i];
}

// Python bindings to call kernel():
#define PY_SSIZE_T_CLEAN
#include <Python.h>
PyMODINIT_FUNC PyInit_kernel(void) { return nullptr; }
"""


def kernel(name: str, *, flags: str = "-O3", size: int = 100) -> Kernel:
    return Kernel(lambda: None, "", f"/cache/{name}.main.so", ("g++", flags), "x" * size)


def units(kernels, workers=2, everything=True):
    made, left = units_of(kernels, workers, everything=everything)
    return [sorted(k.key for k in unit) for unit in made], [k.key for k in left]


# --- which kernels share a unit -------------------------------------------------------------------


def test_kernels_with_one_command_line_share_a_unit():
    assert units([kernel("a"), kernel("b"), kernel("c")]) == ([["a", "b", "c"]], [])


def test_kernels_with_other_flags_have_another_unit():
    made, left = units([kernel("a"), kernel("b", flags="-O1"), kernel("c")])
    assert sorted(made) == [["a", "c"], ["b"]]
    assert left == []


def test_a_kernel_that_must_be_alone_is_alone_and_starts_at_once():
    alone = Kernel(lambda: None)
    made, left = units_of([kernel("a"), alone, kernel("b")], 2, everything=False)
    assert made == [[alone]]
    assert [k.key for k in left] == ["a", "b"]


def test_a_full_unit_starts_while_regions_are_still_lowered():
    full = [kernel(name, size=UNIT_SIZE // 2) for name in "ab"]
    assert units(full, everything=False) == ([["a", "b"]], [])
    assert units(full, workers=1, everything=False) == ([], ["a", "b"])


def test_much_work_is_divided_among_the_workers_evenly_and_little_is_not():
    much = [kernel(f"k{i}", size=WORTH_DIVIDING // 4) for i in range(8)]
    made, _ = units(much, workers=2)
    assert [len(unit) for unit in made] == [4, 4]
    assert len(units(much[:4], workers=2)[0]) == 1


def test_units_have_a_largest_size_whatever_the_workers():
    many = [kernel(f"k{i}", size=UNIT_SIZE // 4) for i in range(12)]
    made, _ = units(many, workers=1)
    assert [len(unit) for unit in made] == [4, 4, 4]


# --- the source of a unit -------------------------------------------------------------------------


def test_a_unit_has_each_include_once_and_a_namespace_for_each_kernel():
    assert not_beside_others(SOURCE) == ""
    text = unit_source({"ka": SOURCE, "kb": SOURCE})
    assert text.count("#include <Python.h>") == 1
    assert text.index("#include <Python.h>") < text.index("namespace unit_ka {")
    assert text.index("#define kernel kernel_kb") < text.index("namespace unit_kb {")
    assert (
        text.count("PyMODINIT_FUNC PyInit_kernel(void)") == 3
    )  # the kernels', renamed, and its own
    assert '{"ka.", PyInit_kernel_ka}' in text


@pytest.mark.parametrize(
    "line", ["#define SIZE 4", "#undef NDEBUG", "#if 1", '#pragma GCC optimize("O1")']
)
def test_a_kernel_whose_directives_reach_beyond_it_shares_no_unit(line):
    assert not_beside_others(f"{line}\n{SOURCE}") == f"it has {line}"


def test_a_kernel_without_known_bindings_shares_no_unit():
    assert not_beside_others('extern "C" void kernel() {}') != ""


# --- real compiles --------------------------------------------------------------------------------


@pytest.fixture
def cache():
    """An empty cache of Inductor's, with the compiler probed and its header compiled."""
    from torch._inductor.utils import fresh_cache

    from regional_inductor.stages.compile import forget_compiled_regions

    with fresh_cache():
        torch.compile(lambda x: x.tan().erf())(torch.ones(5))
        folder = os.environ["TORCHINDUCTOR_CACHE_DIR"]
        for path in libraries(folder).values():
            os.remove(path)
        forget_compiled_regions()
        yield folder
    forget_compiled_regions()


OPS = (torch.sin, torch.cos, torch.tanh)
PLAIN = (marked, marked, marked)


def distinct_regions(x, marks=PLAIN):
    for operator, mark in zip(OPS, marks, strict=True):
        with mark():
            x = operator(x.relu()) * 0.5 + x.softmax(-1)
        x = torch.matmul(x, x)
    return x


def example():
    return torch.randn(24, 24, generator=torch.Generator().manual_seed(0))


def run(function=distinct_regions, **options):
    from regional_inductor.stages.compile import forget_compiled_regions

    forget_compiled_regions()
    torch._dynamo.reset()
    options = {"on_error": "raise", **options}
    compiled = torch.compile(function, backend="regional_inductor", fullgraph=True, options=options)
    with compiler_runs() as runs:
        result = compiled(example())
    return result, runs


def libraries(cache):
    """The libraries of kernels, by key."""
    return {
        os.path.basename(path).split(".")[0]: path
        for path in glob.glob(f"{cache}/**/*.main.so", recursive=True)
    }


def forget_inductor():
    """What this process holds of kernels and code, as in a new process; the disk stays."""
    from torch._inductor.codecache import CppPythonBindingsCodeCache, PyCodeCache

    CppPythonBindingsCodeCache.cache.clear()
    for name in [name for name in sys.modules if name.endswith(".kernel")]:
        del sys.modules[name]
    PyCodeCache.cache_clear()


@pytest.mark.inductor
def test_distinct_regions_take_one_compiler_run_and_give_the_bits_that_they_give_alone(
    cache, monkeypatch
):
    together, runs = run()
    assert len(runs) == 1
    assert ri.last_report().compiles == len(OPS)
    for region in ri.last_report().regions:
        assert 0 < region.steps["compile"] < region.seconds
    again, runs = run()
    assert len(runs) == 0  # Inductor's own cache is warm
    assert torch.equal(again, together)
    torch.testing.assert_close(
        together, distinct_regions(torch.manual_seed(0) and torch.randn(24, 24))
    )

    forget_inductor()
    for path in libraries(cache).values():
        os.remove(path)
    monkeypatch.setattr(kernel_batches, "CHECKED_VERSIONS", ())
    alone, runs = run()
    assert len(runs) == len(OPS)
    assert torch.equal(alone, together)


@pytest.mark.inductor
def test_a_unit_names_the_libraries_it_needs_without_having_been_linked_to_them(cache, monkeypatch):
    if not sys.platform.startswith("linux"):
        pytest.skip("elsewhere units are linked as Inductor links kernels")
    expected, runs = run()
    assert "-Wl,--no-as-needed" in runs[0]
    forget_inductor()
    for path in libraries(cache).values():
        os.remove(path)
    # Loaded by a linker that finds nothing under the name, it would be linked in the usual way.
    monkeypatch.setattr(kernel_batches, "with_stubs", without_torch)
    result, runs = run()
    assert len(runs) == 2
    assert "-ltorch_cpu" in runs[1]
    assert torch.equal(result, expected)


@pytest.mark.inductor
def test_empty_libraries_are_made_once_a_process_and_again_when_somebody_removed_them(monkeypatch):
    if not sys.platform.startswith("linux"):
        pytest.skip("elsewhere units are linked as Inductor links kernels")
    monkeypatch.setattr(link_stubs, "_folders", {})
    command = ["g++", "unit.cpp", "-ltorch", "-lgomp"]
    with compiler_runs_of_stubs(monkeypatch) as made:
        first = link_stubs.with_stubs(command)
        assert link_stubs.with_stubs(command) == first
        assert made == ["libtorch.so"]
        shutil.rmtree(first[1].removeprefix("-L"))
        assert link_stubs.with_stubs(command) != first
        assert made == ["libtorch.so", "libtorch.so"]


@contextlib.contextmanager
def compiler_runs_of_stubs(monkeypatch):
    made, usual = [], link_stubs._make_stub

    def make(compiler, path):
        made.append(os.path.basename(path))
        usual(compiler, path)

    monkeypatch.setattr(link_stubs, "_make_stub", make)
    yield made


def without_torch(command):
    return [token for token in command if not token.startswith("-ltorch")]


@pytest.mark.inductor
def test_units_built_by_workers_in_the_background_give_the_same(cache, monkeypatch):
    import torch._inductor.config as config

    monkeypatch.setattr(kernel_batches, "UNIT_SIZE", 1)
    with config.patch(compile_threads=2):
        result, runs = run()
    assert len(runs) == len(OPS)
    forget_inductor()
    assert torch.equal(run()[0], result)


@pytest.mark.inductor
def test_each_key_loads_alone_after_the_others_are_evicted(cache, tmp_path):
    expected, _ = run()
    keys = libraries(cache)
    assert len(keys) == len(OPS)
    kept, path = next(iter(keys.items()))
    # A copy in another place is another library to the linker: nothing of the first is left in it.
    copy = shutil.copy(path, tmp_path / "alone.so")
    for name in (f"{kept}.kernel", f"anything.kernel_{kept}"):
        loader = importlib.machinery.ExtensionFileLoader(name, str(copy))
        spec = importlib.util.spec_from_file_location(name, str(copy), loader=loader)
        module = importlib.util.module_from_spec(spec)
        loader.exec_module(module)
        assert callable(module.kernel)
        assert module.kernel.__self__.__file__ == str(copy)
    with pytest.raises(ImportError, match=r"this library holds no kernel for other\.kernel"):
        importlib.util.module_from_spec(
            importlib.util.spec_from_file_location("other.kernel", str(copy))
        )

    forget_inductor()
    for key, other in keys.items():
        if key != kept:
            os.remove(other)
    again, runs = run()
    assert len(runs) == 1  # those that were evicted, and not the one that wasn't
    assert torch.equal(again, expected)
    assert set(libraries(cache)) == set(keys)


@pytest.mark.inductor
def test_regions_with_other_compiler_flags_have_another_unit(cache, monkeypatch):
    import torch._inductor.config as config

    def finish(self):
        raise NotImplementedError("built by nobody")

    made = []
    monkeypatch.setattr(kernel_batches, "_build_unit", made.append)
    monkeypatch.setattr(kernel_batches.RegionKernels, "finish", finish)
    other = lambda: with_options(**{"cpp.enable_unsafe_math_opt_flag": True})  # noqa: E731
    function = lambda x: distinct_regions(x, (marked, other, marked))  # noqa: E731
    # Without the header, which would be compiled once more for the other flags.
    with config.patch(cpp_cache_precompile_headers=False), pytest.warns(ri.RegionWarning):
        _, runs = run(function, on_error="eager")
    assert sorted(len(unit) for unit in made) == [1, 2]
    assert made[0][0].command != made[1][0].command
    assert runs == []


@pytest.fixture(params=["does not compile", "does not link"])
def broken_tanh(request, monkeypatch):
    """Inductor writes a kernel with tanh that the compiler, or the loader, refuses."""
    from torch._inductor.codegen import cpp

    code = {
        "does not compile": "no_such_function()",
        "does not link": "({ float no_such_symbol(float); no_such_symbol(1.0f); })",
    }[request.param]
    for overrides in (cpp.CppOverrides, cpp.CppVecOverrides):
        monkeypatch.setattr(overrides, "tanh", staticmethod(lambda x: f"{x} * {code}"))


@pytest.mark.inductor
def test_a_kernel_that_fails_is_retried_alone_and_only_its_region_stays_eager(cache, broken_tanh):
    with pytest.warns(ri.RegionWarning) as caught:
        result, _ = run(on_error="eager")
    assert len(caught) == 1
    assert [region.status for region in ri.last_report().regions] == [
        "compiled",
        "compiled",
        "eager",
    ]
    torch.testing.assert_close(result, distinct_regions(example()))


@pytest.mark.inductor
def test_a_region_that_failed_is_not_found_half_done_later(cache, monkeypatch):
    from torch._inductor.codegen import cpp

    def tanh_alone(x):
        with marked():
            return x.tanh() + 1

    with monkeypatch.context() as broken:
        for overrides in (cpp.CppOverrides, cpp.CppVecOverrides):
            broken.setattr(overrides, "tanh", staticmethod(lambda x: "no_such_function()"))
        for _ in range(2):
            with pytest.raises(Exception, match=r"RegionCompileError.*CppCompileError"):
                run(tanh_alone)


@pytest.mark.inductor
def test_regions_are_compiled_alone_where_somebody_has_patched_inductor(cache, monkeypatch):
    from torch._inductor.async_compile import AsyncCompile

    usual, seen = AsyncCompile.cpp_pybinding, []

    def patched(self, argtypes, source_code):
        seen.append(source_code)
        return usual(self, argtypes, source_code)

    monkeypatch.setattr(AsyncCompile, "cpp_pybinding", patched)
    _, runs = run()
    assert (len(runs), len(seen)) == (len(OPS), len(OPS))


@pytest.mark.inductor
def test_a_region_with_a_time_limit_is_compiled_alone(cache):
    limited = lambda: ri.region("limited", compile_timeout=600)  # noqa: E731 - a mark among marks
    _, runs = run(lambda x: distinct_regions(x, (marked, limited, marked)))
    assert len(runs) == 2


@pytest.mark.inductor
def test_kernels_of_other_threads_take_their_usual_way(cache):
    import threading

    from torch._inductor.async_compile import AsyncCompile

    usual = AsyncCompile.cpp_pybinding
    with kernel_batches.kernel_batch() as batch, batch.region() as region:
        result = []
        other = threading.Thread(
            target=lambda: result.append(torch.compile(torch.sqrt)(torch.ones(3) * 5))
        )
        other.start()
        other.join(120)
    assert torch.equal(result[0], (torch.ones(3) * 5).sqrt())  # rounded alike everywhere
    assert not region.waits
    assert AsyncCompile.cpp_pybinding is usual


@pytest.mark.inductor
def test_a_kernel_that_is_called_before_its_batch_is_built_is_built_then(cache):
    with kernel_batches.kernel_batch() as batch:
        with batch.region() as region:
            compiled = torch.compile(torch.sqrt)  # rounded alike everywhere
            result = compiled(torch.ones(3) * 5)
        assert region.waits
        region.finish()
    assert torch.equal(result, (torch.ones(3) * 5).sqrt())
    assert torch.equal(compiled(torch.zeros(3)), torch.zeros(3))


# --- worker processes -----------------------------------------------------------------------------


@pytest.fixture
def workers_allowed():
    """Inductor waits for workers only where it may have some."""
    import torch._inductor.config as config

    with config.patch(compile_threads=2):
        yield


class Graph:
    """What Inductor's cache of graphs saves, as far as bundles go."""

    bundle = None

    def set_triton_bundle(self, bundle):
        self.bundle = bundle


def test_regions_wait_for_workers_only_when_all_have_been_lowered(workers_allowed):
    from torch._inductor.async_compile import AsyncCompile
    from torch._inductor.codecache import LambdaFuture

    events, scopes = [], []
    with kernel_batches.kernel_batch() as batch:
        regions = []
        for name in ("first", "second"):
            with batch.region() as region:
                events.append(f"lower {name}")
                future = LambdaFuture(lambda name=name: events.append(f"compile {name}") or name)
                scopes.append({"kernel": future, "other": 1})
                AsyncCompile().wait(scopes[-1])
            assert region.waits
            assert region.has_workers
            regions.append(region)
        for region in regions:
            region.finish()
    assert events == ["lower first", "lower second", "compile first", "compile second"]
    assert scopes == [{"kernel": "first", "other": 1}, {"kernel": "second", "other": 1}]


def test_a_graph_is_saved_with_the_kernels_that_arrive_later(workers_allowed, monkeypatch):
    from torch._inductor.async_compile import AsyncCompile
    from torch._inductor.codecache import FxGraphCache, LambdaFuture
    from torch._inductor.triton_bundler import TritonBundler

    saved = []
    monkeypatch.setattr(FxGraphCache, "_save_graph", staticmethod(lambda *a: saved.append(a)))
    monkeypatch.setattr(TritonBundler, "collect", lambda: (f"bundle of {kernels}", None))
    kernels, graph = [], Graph()
    with kernel_batches.kernel_batch() as batch:
        with batch.region() as region:
            AsyncCompile().wait({"kernel": LambdaFuture(lambda: kernels.append("kernel"))})
            FxGraphCache._save_graph("key", graph, [], True, None)
            graph.prepared = True
        assert saved == []
        region.finish()
    (arguments,) = saved
    assert (arguments[0], *arguments[2:]) == ("key", [], True, None)
    assert arguments[1].bundle == graph.bundle == "bundle of ['kernel']"
    assert not hasattr(arguments[1], "prepared")
    with kernel_batches.kernel_batch() as batch, batch.region():
        FxGraphCache._save_graph("key", graph, [], True, None)
    assert len(saved) == 2  # where nothing waits, it is saved at once


def test_what_another_cache_bundles_at_once_is_waited_for_at_once(workers_allowed):
    import torch._functorch.config as functorch_config
    from torch._inductor.async_compile import AsyncCompile
    from torch._inductor.codecache import LambdaFuture

    with (
        functorch_config.patch(bundled_autograd_cache=True),
        kernel_batches.kernel_batch() as batch,
        batch.region() as region,
    ):
        scope = {"kernel": LambdaFuture(lambda: "compiled")}
        AsyncCompile().wait(scope)
    assert scope == {"kernel": "compiled"}
    assert not region.waits


def test_two_regions_with_one_triton_kernel_have_a_future_each(workers_allowed, monkeypatch):
    from torch._inductor.async_compile import AsyncCompile, CompiledTritonKernels
    from torch._inductor.codecache import LambdaFuture

    future = LambdaFuture(lambda: "compiled")
    monkeypatch.setattr(CompiledTritonKernels, "_cache", {"ours": future, "another's": 1})
    with kernel_batches.kernel_batch() as batch, batch.region():
        AsyncCompile().wait({"kernel": future})
    assert CompiledTritonKernels._cache == {"another's": 1}


@pytest.mark.inductor
def test_a_region_whose_worker_died_is_compiled_again_alone(cache, monkeypatch):
    asked = []

    def finish(self):
        asked.append(self)
        self.has_workers = True
        raise RuntimeError("A compilation subprocess exited unexpectedly")

    monkeypatch.setattr(kernel_batches.RegionKernels, "finish", finish)
    result, _ = run()
    assert len(asked) == len(OPS)
    assert {region.status for region in ri.last_report().regions} == {"compiled"}
    torch.testing.assert_close(result, distinct_regions(example()))


def test_the_copy_that_is_saved_later_takes_nothing_from_the_graph_when_it_dies():
    """`CompiledFxGraph.__del__` empties what the graph runs, which a copy has too."""
    import gc

    from torch._inductor.output_code import CompiledFxGraph

    from regional_inductor._torch.kernel_batches import RegionKernels

    class Runner:
        def __init__(self):
            self.partitions = ["code"]

    graph = CompiledFxGraph.__new__(CompiledFxGraph)
    graph.compiled_fn_runner = Runner()
    kernels = RegionKernels(None, {})
    kernels._save_later(lambda *_: None, ("key", graph))
    del kernels
    gc.collect()
    assert graph.compiled_fn_runner.partitions == ["code"]
