"""How often what is compiled, for the benchmarks' Llama: the same however many layers there are.

The limits are what was counted last. Lower them when the code does better; a count above is a regression.
"""

from __future__ import annotations

import importlib

import pytest
import torch
from support.counting import calls_of, compiler_runs

import regional_inductor as ri
from benchmarks import _models

INFERENCE_DISTINCT = 3  # norm, rotary embedding, SwiGLU
TRAINING_DISTINCT = 6  # and the backward pass of each
STANDALONE_COMPILES = 0  # of regions as plain as these; each is lowered directly
# In training, of seven distinct regions under merge="all": the norm, one of whose outputs is a detach of another.
DROP_IN_STANDALONE_COMPILES = 1
CODE_GENERATIONS = INFERENCE_DISTINCT
COMPILER_RUNS = 1  # the kernels of all regions of a graph are one translation unit


def compile_llama(
    layers: int, *, distinct: bool = False, train: bool = False, **options
) -> ri.Report:
    torch._dynamo.reset()
    shape = _models.Shape(layers, distinct, hidden=16, heads=2, mlp=24, sequence=8, batch=1)
    model, x = _models.Llama(shape), _models.inputs(shape, train)
    options = {"on_error": "raise", "lowering": "auto", **options}
    compiled = torch.compile(model, backend="regional_inductor", fullgraph=True, options=options)
    _models.run_once(compiled, x, train)
    return ri.last_report()


@pytest.mark.parametrize("layers", [1, 4, 16])
def test_distinct_regions_don_t_grow_with_layers(layers):
    from regional_inductor.stages.compile import forget_compiled_regions

    forget_compiled_regions()
    report = compile_llama(layers, region_backend="eager")
    assert len(report.regions) == 3 * layers + 1
    assert report.compiles == INFERENCE_DISTINCT


@pytest.mark.parametrize("layers", [2, 6])
def test_training_compiles_don_t_grow_with_layers(layers):
    from regional_inductor.stages.compile import forget_compiled_regions

    forget_compiled_regions()
    report = compile_llama(layers, train=True, region_backend="eager")
    assert len(report.regions) == 2 * (3 * layers + 1)
    assert report.compiles == TRAINING_DISTINCT


@pytest.mark.inductor
def test_each_distinct_region_goes_through_inductor_and_the_compiler_once(empty_cache):
    from torch._inductor.graph import GraphLowering

    # The function of the same name hides the module, and patching that would send regions elsewhere.
    standalone = importlib.import_module("torch._inductor.standalone_compile")
    with (
        compiler_runs() as runs,
        calls_of(standalone, "standalone_compile") as standalone_compiles,
        calls_of(GraphLowering, "compile_to_module") as generated,
    ):
        report = compile_llama(4)
    assert report.compiles == INFERENCE_DISTINCT
    assert len(standalone_compiles) <= STANDALONE_COMPILES
    assert len(generated) <= CODE_GENERATIONS
    assert len(runs) <= COMPILER_RUNS

    with (
        compiler_runs() as runs,
        calls_of(standalone, "standalone_compile") as standalone_compiles,
        calls_of(GraphLowering, "compile_to_module") as generated,
    ):
        report = compile_llama(8)
    assert report.compiles == 0
    assert (len(runs), len(standalone_compiles), len(generated)) == (0, 0, 0)


@pytest.mark.inductor
@pytest.mark.parametrize(("backward", "runs_of_both"), [("early", 1), ("late", 2)])
def test_early_backward_regions_share_the_forward_graph_s_compiler_run(
    empty_cache, backward, runs_of_both
):
    with compiler_runs() as runs:
        report = compile_llama(2, train=True, backward=backward)
    assert report.compiles == TRAINING_DISTINCT
    assert len(runs) == runs_of_both


@pytest.mark.inductor
def test_the_drop_in_pass_takes_no_second_aotautograd_for_plain_regions_either(empty_cache):
    from torch._dynamo.backends.common import aot_autograd

    def graph_pass(gm, inputs):
        return ri.regional_inductor(gm, *inputs, lowering="auto")

    standalone = importlib.import_module("torch._inductor.standalone_compile")
    shape = _models.Shape(2, hidden=16, heads=2, mlp=24, sequence=8, batch=1)
    model, x = _models.Llama(shape), _models.inputs(shape, train=True)
    backend = aot_autograd(fw_compiler=graph_pass, bw_compiler=graph_pass)
    with calls_of(standalone, "standalone_compile") as standalone_compiles:
        _models.run_once(torch.compile(model, backend=backend, fullgraph=True), x, train=True)
    assert len(standalone_compiles) <= DROP_IN_STANDALONE_COMPILES
    report = ri.last_report()
    assert report is not None
    assert report.compiles  # in the backward graph, which came last


@pytest.mark.inductor
def test_eight_distinct_blocks_take_one_compiler_run(empty_cache):
    with compiler_runs() as runs:
        report = compile_llama(8, distinct=True)
    assert report.compiles == 8 + INFERENCE_DISTINCT - 1  # SwiGLU is another in each
    assert len(runs) <= COMPILER_RUNS


def test_the_count_of_compiler_runs_sees_libraries_and_nothing_else():
    import subprocess

    with compiler_runs() as runs:
        # None of these exists: starting them is what is counted.
        for command in (
            ["no-such-g++", "a.cpp", "-shared", "-o", "a.so"],
            ["no-such-g++", "header.h", "-o", "header.h.gch"],
            ["no-such-g++", "--version"],
        ):
            with pytest.raises(FileNotFoundError):
                subprocess.run(command, check=False)
    assert runs == [["no-such-g++", "a.cpp", "-shared", "-o", "a.so"]]
