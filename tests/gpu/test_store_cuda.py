"""A region compiled once on a machine with a GPU is not compiled again by any later process."""

from __future__ import annotations

import pytest
from support import stores

pytestmark = pytest.mark.timeout(600)

# What Triton compiles in this process, and what Inductor's workers are given to compile; how often configurations
# are tried out.
_WATCHED = """
import torch._inductor.async_compile as async_compile
import torch._inductor.runtime.triton_heuristics as heuristics
from torch._dynamo.utils import counters
from triton import knobs

seen = {"compiled by triton": 0, "given to workers": 0, "tried out": 0, "tuned": 0}

def compiled(**what):
    seen["compiled by triton"] += not what["cache_hit"]

knobs.compilation.listener = compiled

def counted(owner, name, what):
    usual = getattr(owner, name)
    def counting(*args, **kwargs):
        seen[what] += 1
        return usual(*args, **kwargs)
    setattr(owner, name, counting)

counted(async_compile.CompiledTritonKernels, "save", "given to workers")
counted(heuristics.CachingAutotuner, "benchmark_all_configs", "tried out")
"""

TRAINED = """
@ri.region("norm")
def norm(x, scale):
    return torch.nn.functional.rms_norm(x, (256,)) * scale

@ri.region("gate")
def gate(x, y):
    return torch.nn.functional.silu(x) * y

def main():
    x = torch.randn(64, 256, device="cuda", requires_grad=True)
    scale = torch.randn(256, device="cuda", requires_grad=True)
    w = torch.randn(256, 256, device="cuda") / 16
    f = lambda x: gate(norm(x, scale) @ w, norm(x, scale))
    out = torch.compile(f, backend="regional_inductor", fullgraph=True)(x)
    out.sum().backward()
    return [out, x.grad, scale.grad]
"""

# The second input has an address that the first's kernels weren't made for.
UNALIGNED = """
def main():
    @ri.region("wave")
    def wave(x):
        return (x.sin() + 1) * x

    compiled = torch.compile(wave, backend="regional_inductor", fullgraph=True)
    whole = torch.randn(4097, device="cuda")
    first = compiled(whole[:4096])
    moved = torch.empty(4097, device="cuda")[1:].copy_(whole[:4096])
    assert moved.data_ptr() % 16
    second = compiled(moved)
    assert torch.equal(first, second)
    return [second]
"""

MATMUL = """
@ri.region("tuned", options={"max_autotune": True, "max_autotune_gemm_backends": "TRITON,ATEN"})
def tuned(x, w):
    return (x @ w).relu()

def main():
    x = torch.randn(256, 256, device="cuda", dtype=torch.bfloat16)
    w = torch.randn(256, 256, device="cuda", dtype=torch.bfloat16) / 16
    out = torch.compile(lambda x, w: tuned(x, w) + 1, backend="regional_inductor", fullgraph=True)(x, w)
    seen["tuned"] = counters["inductor"]["select_algorithm_autotune"]
    return [out]
"""

TRANSPOSED = """
@ri.region("turned", options={"max_autotune_pointwise": True})
def turned(x, y):
    return x.t().contiguous().sin() + y

def main():
    x, y = torch.randn(512, 1024, device="cuda"), torch.randn(1024, 512, device="cuda")
    compiled = torch.compile(turned, backend="regional_inductor", fullgraph=True)
    compiled(x, y)
    return [compiled(x, y)]
"""

DESCENDED = TRANSPOSED.replace(
    '{"max_autotune_pointwise": True}', '{"coordinate_descent_tuning": True}'
)

ATTENTION = """
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

def main():
    q = torch.randn(1, 2, 256, 64, device="cuda", requires_grad=True)
    mask = create_block_mask(lambda b, h, i, j: i >= j, None, None, 256, 256, device="cuda")

    def attend(q):
        with ri.region("attention"):
            return flex_attention(q, q, q, block_mask=mask)

    out = ri.compile(attend)(q)
    out.sum().backward()
    return [out, q.grad]
"""

DYNAMIC = """
def main():
    @ri.region("scaled")
    def scaled(x):
        return (x * x).mean(-1) * x.shape[0]

    compiled = torch.compile(scaled, backend="regional_inductor", fullgraph=True, dynamic=True)
    return [compiled(torch.randn(rows, 256, device="cuda")) for rows in (64, 80)]
"""

PROGRAMS = {
    "symbolic sizes": DYNAMIC,
    "trained": TRAINED,
    "unaligned inputs": UNALIGNED,
    "tuned matmul": MATMUL,
    "tuned pointwise": TRANSPOSED,
    "attention": ATTENTION,
}


def run(program, folder, number, **variables):
    """The program in a process with caches of its own and the store of all."""
    return stores.run(
        _WATCHED + program,
        stores.environment(
            folder / "store",
            folder / f"inductor {number}",
            TRITON_CACHE_DIR=str(folder / f"triton {number}"),
            TORCH_LOGS="+regional_inductor",
            **variables,
        ),
    )


def stored(folder):
    return {path.name: path.stat().st_size for path in (folder / "store").glob("*.region")}


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_second_process_with_empty_caches_compiles_nothing(tmp_path, program):
    first = run(PROGRAMS[program], tmp_path, 1)
    assert set(first["statuses"]) <= {"compiled", "shared"}, first["stderr"]
    assert stored(tmp_path), first["stderr"]
    second = run(PROGRAMS[program], tmp_path, 2)
    assert set(second["statuses"]) <= {"disk", "shared"}, second["stderr"]
    assert second["generated"] == 0
    assert second["seen"]["compiled by triton"] == 0, second["stderr"]
    assert second["seen"]["given to workers"] == 0
    assert second["values"] == first["values"]


def test_a_second_process_needs_no_compiler_of_c(tmp_path):
    """Triton makes a small library for the driver with it, once for each of its cache folders."""
    first = run(TRAINED, tmp_path, 1)
    second = run(TRAINED, tmp_path, 2, CC="/nonexistent/cc")
    assert set(second["statuses"]) <= {"disk", "shared"}, second["stderr"]
    assert second["values"] == first["values"]


def test_what_was_chosen_when_a_kernel_first_ran_is_kept(tmp_path):
    first = run(TRANSPOSED, tmp_path, 1)
    if not first["seen"]["tried out"]:
        pytest.skip("this torch has one configuration for the kernel")
    second = run(TRANSPOSED, tmp_path, 2)
    assert second["statuses"] == ["disk"], second["stderr"]
    assert second["seen"]["tried out"] == 0
    assert second["values"] == first["values"]


def test_a_matmul_is_tuned_once(tmp_path):
    first = run(MATMUL, tmp_path, 1)
    assert first["seen"]["tuned"] == 1
    second = run(MATMUL, tmp_path, 2)
    assert second["statuses"] == ["disk"], second["stderr"]
    assert second["seen"]["tuned"] == 0


def test_coordinate_descent_is_done_once(tmp_path):
    run(DESCENDED, tmp_path, 1)
    second = run(DESCENDED, tmp_path, 2)
    assert second["statuses"] == ["disk"], second["stderr"]
    assert second["seen"]["compiled by triton"] == 0, second["stderr"]


def test_a_damaged_kernel_is_compiled_anew(tmp_path):
    first = run(TRAINED, tmp_path, 1)
    for path in (tmp_path / "store").glob("*.region"):
        whole = path.read_bytes()
        path.write_bytes(whole[:-20] + bytes(20))
    second = run(TRAINED, tmp_path, 2)
    assert "compiled" in second["statuses"]
    assert second["values"] == first["values"]
