"""A region compiled once on a machine is not compiled again by any later process."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from support import stores

from regional_inductor import region_store
from regional_inductor.entry import Entry

# Forward and backward, an id'd region with a constant, and an operator of a library around which code is generated.
MODEL = """
class Block(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = torch.nn.LayerNorm(32)
        self.linear = torch.nn.Linear(32, 32)

    def forward(self, x):
        with ri.region("gate"):
            y = torch.nn.functional.silu(self.norm(x)) * x
        with ri.region("linear"):
            return self.linear(y).relu()

def main():
    model = torch.nn.Sequential(Block(), Block())
    x = torch.randn(4, 32, requires_grad=True)
    compiled = torch.compile(model, backend="regional_inductor", fullgraph=True)
    out = compiled(x)
    out.sum().backward()
    return [out, x.grad, *(p.grad for p in model.parameters())]
"""

DROP_IN = """
from torch._dynamo.backends.common import aot_autograd

def main():
    @ri.region("gate")
    def gate(x):
        return (x.sin() + 1).exp() * x

    x = torch.randn(4, 32, requires_grad=True)
    backend = aot_autograd(fw_compiler=ri.regional_inductor, bw_compiler=ri.regional_inductor)
    out = torch.compile(lambda x: gate(gate(x) @ x.T), backend=backend)(x)
    out.sum().backward()
    return [out, x.grad]
"""

WITHOUT_A_COMPILER = {
    "PATH": "/nonexistent"
}  # CXX is in the key: another compiler is another region


@pytest.mark.inductor
@pytest.mark.parametrize("program", [MODEL, DROP_IN], ids=["backend", "drop-in pass"])
def test_a_second_process_compiles_nothing_and_needs_no_compiler(tmp_path, program):
    first = stores.run(
        program, stores.environment(tmp_path / "store", stores.shared_inductor_cache())
    )
    assert set(first["statuses"]) <= {"compiled", "shared"}
    second = stores.run(
        program,
        stores.environment(tmp_path / "store", tmp_path / "empty", **WITHOUT_A_COMPILER),
    )
    assert (second["generated"], second["compilers"]) == (0, 0)
    assert set(second["statuses"]) <= {"disk", "shared"}
    assert len(second["statuses"]) == len(first["statuses"])
    assert second["values"] == first["values"]


# Inductor lowers the softmax for at most 4096 rows: a guard that no capture has by itself.
DYNAMIC = """
def main():
    @ri.region("scores")
    def scores(x, y):
        return torch.cat([x, y]).softmax(-1).sum(0) * x.shape[0]

    compiled = torch.compile(scores, backend="regional_inductor", fullgraph=True, dynamic=True)
    rows = (5, 3), (9, 4), (3000, 2000)
    inputs = [[torch.randn(n, 8, requires_grad=True) for n in pair] for pair in rows]
    outs = [compiled(*pair) for pair in inputs]
    for (x, y), out in zip(inputs, outs):
        torch.testing.assert_close(out, scores(x, y), rtol=1e-4, atol=1e-4)
        out.sum().backward()
    seen["captures"] = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    return [*outs, *(x.grad for x, _ in inputs)]

seen = {}
"""


@pytest.mark.inductor
def test_a_region_of_symbolic_sizes_is_loaded_with_the_guards_of_its_compile(tmp_path):
    variables = stores.environment(tmp_path / "store", stores.shared_inductor_cache())
    first = stores.run(DYNAMIC, variables)
    assert first["seen"]["captures"] == 2
    second = stores.run(
        DYNAMIC, stores.environment(tmp_path / "store", tmp_path / "empty", **WITHOUT_A_COMPILER)
    )
    assert second["seen"] == first["seen"]
    assert (second["generated"], second["compilers"]) == (0, 0)
    assert set(second["statuses"]) <= {"disk", "shared"}
    assert second["values"] == first["values"]


EXACT = """
def main():
    @ri.region("exact", numerics="eager")
    def exact(x):
        return torch.nn.functional.silu(x) * torch.nn.functional.layer_norm(x, (32,))

    x = torch.randn(16, 32)
    out = ri.compile(exact)(x)
    assert torch.equal(out, exact(x))
    return [out]
"""


@pytest.mark.inductor
def test_a_region_that_gives_eager_s_bits_is_loaded_and_still_does(tmp_path):
    variables = stores.environment(tmp_path / "store", stores.shared_inductor_cache())
    first = stores.run(EXACT, variables)
    second = stores.run(
        EXACT, stores.environment(tmp_path / "store", tmp_path / "empty", **WITHOUT_A_COMPILER)
    )
    assert (first["statuses"], second["statuses"]) == (["compiled"], ["disk"])
    assert (second["generated"], second["compilers"]) == (0, 0)


CUSTOM = """
@torch.library.custom_op("tests::scaled", mutates_args=())
def scaled(x: torch.Tensor) -> torch.Tensor:
    return x * FACTOR

@scaled.register_fake
def _(x):
    return torch.empty_like(x)

def main():
    @ri.region("scaled")
    def around(x):
        return torch.ops.tests.scaled(x.sin()) + 1

    x = torch.linspace(0, 1, 32)
    out = torch.compile(around, backend="regional_inductor", fullgraph=True)(x)
    torch.testing.assert_close(out, x.sin() * FACTOR + 1)
    return [out]
"""


@pytest.mark.inductor
def test_a_stored_region_calls_an_operator_of_a_library_as_it_is_by_then(tmp_path):
    variables = stores.environment(tmp_path / "store", stores.shared_inductor_cache())
    first = stores.run(CUSTOM.replace("FACTOR", "2"), variables)
    assert first["statuses"] == ["compiled"]
    for factor in ("2", "4"):
        later = stores.run(CUSTOM.replace("FACTOR", factor), variables)
        assert later["statuses"] == ["disk"]


_KEEPS_GRAPHS = torch.__version__.startswith("2.13")  # one file more a captured graph


def _about(file):
    return Entry.from_bytes(file.read_bytes()).about


# Distinct regions of one graph, whose kernels Inductor is given as one translation unit: one library, several kernels.
UNIT = """
def main():
    x = torch.randn(SIZE)

    def fn(x):
        with ri.region("a"):
            x = (x.sin() + 1).exp()
        x = x * 1
        with ri.region("b"):
            x = (x.cos() * 2).tanh()
        x = x * 1
        with ri.region("c"):
            return x.sigmoid() / 3 - x

    return [torch.compile(fn, backend="regional_inductor", fullgraph=True)(x)]
"""


@pytest.mark.inductor
def test_regions_that_were_compiled_together_are_loaded_and_evicted_alone(tmp_path):
    program = UNIT.replace("SIZE", "1237")
    variables = stores.environment(tmp_path / "store", stores.shared_inductor_cache())
    first = stores.run(program, variables)
    assert first["statuses"] == ["compiled"] * 3
    files = list((tmp_path / "store").glob("*.region"))
    regions = [file for file in files if _about(file)["ops"]]
    assert (len(regions), len(files)) == (3, 3 + _KEEPS_GRAPHS)
    regions[0].unlink()
    second = stores.run(program, variables)
    assert sorted(second["statuses"]) == ["compiled", "disk", "disk"]
    assert second["values"] == first["values"]


@pytest.mark.inductor
def test_two_processes_at_once_compile_each_region_once(tmp_path):
    program = UNIT.replace("SIZE", "1249")
    variables = stores.environment(tmp_path / "store", stores.shared_inductor_cache())
    both = [stores.start(program, variables) for _ in range(2)]
    results = [stores.finish(process) for process in both]
    assert (
        sorted(results[0]["statuses"] + results[1]["statuses"]) == ["compiled"] * 3 + ["disk"] * 3
    )
    assert results[0]["values"] == results[1]["values"]


class OneEntry:
    """A store with one entry, which can't be loaded."""

    def __init__(self, **described):
        bundle = {"form": "graph", "kernels": {}, **described}
        self.entry = Entry("s", {}, {"bundle": json.dumps(bundle).encode()})
        self.rejected = []

    def get(self, key):
        return self.entry

    def reject(self, key, why):
        self.rejected.append(key)


@pytest.mark.parametrize(
    ("described", "rejected"),
    [({}, ["s"]), ({"triton": {"files": {}, "choices": {}, "device": 0}}, [])],
    ids=["on the CPU", "of Triton"],
)
def test_an_entry_that_can_not_be_loaded_is_a_miss_and_stays_where_the_gpu_may_be_why(
    described, rejected
):
    store = OneEntry(**described)
    graph = torch.fx.Graph()
    graph.output(())
    request = SimpleNamespace(
        key="k", options={}, sizes={}, module=torch.fx.GraphModule(torch.nn.Module(), graph)
    )
    supply = region_store._Supply({"k": ("s",)}, None, store, None)
    assert supply.from_disk([request]) == {}
    assert store.rejected == rejected
