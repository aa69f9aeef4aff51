"""One compile for the ranks of a job, each of which has a GPU of its own: keys and code without the GPU's number."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest
import torch
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx import Graph, GraphModule

from regional_inductor._torch import bundle
from regional_inductor._torch.moving import UnmovableError, moved
from regional_inductor.region_key import combined_key, key_on_any_gpu, key_parts

aten = torch.ops.aten


@pytest.fixture(autouse=True)
def devices_need_not_exist(monkeypatch):
    """Where torch sees a GPU, it allocates on the device of each fake tensor; no test needs a second GPU."""
    monkeypatch.setattr(fake_tensor, "init_gpu_context", lambda device: None, raising=False)


def region_on(*devices: str, dtype: torch.dtype = torch.float32, fill: str | None = None) -> Any:
    """A region that adds its inputs, which are on some devices, up."""
    mode = FakeTensorMode()
    graph = Graph()

    def value(device: str) -> FakeTensor:
        with mode:
            meta = torch.empty(4, dtype=dtype, device="meta")
        return FakeTensor(mode, meta, torch.device(device))

    total = None
    for index, device in enumerate(devices):
        node = graph.placeholder(f"x{index}")
        node.meta["val"] = value(device)
        total = node if total is None else graph.call_function(aten.add.Tensor, (total, node))
        total.meta["val"] = value(device)
    if fill:
        zeros = graph.call_function(aten.full.default, ([4], 0.0), {"device": torch.device(fill)})
        zeros.meta["val"] = value(fill)
        total = graph.call_function(aten.add.Tensor, (total, zeros))
        total.meta["val"] = value(fill)
    graph.output((total,))
    return GraphModule({}, graph)


def keys_of(module: GraphModule) -> tuple[str, str]:
    parts = key_parts(module, {}, backend="inductor", environment="here")
    return combined_key(parts), key_on_any_gpu(module, parts)


def test_the_same_work_on_another_gpu_has_another_key_and_the_same_one_for_any_gpu():
    first, second = (keys_of(region_on(*2 * [gpu], fill=gpu)) for gpu in ("cuda:0", "cuda:1"))
    assert first[0] != second[0]
    assert first[1] == second[1]


def test_the_key_for_any_gpu_tells_other_work_apart():
    keys = [
        keys_of(region_on("cuda:0"))[1],
        keys_of(region_on("cuda:0", dtype=torch.float16))[1],
        keys_of(region_on("cuda:0", "cuda:0"))[1],
        keys_of(region_on("cuda:0", "cpu"))[1],
        keys_of(region_on("cpu"))[1],
    ]
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize("devices", [("cuda:0", "cuda:1"), ("cpu",), ("xpu:0",)])
def test_what_is_on_no_gpu_or_on_several_keeps_its_key(devices):
    own, anywhere = keys_of(region_on(*devices))
    assert own == anywhere


WRAPPERS = {
    "2.11": """
triton_poi_0 = async_compile.triton('triton_poi_0', '''
@triton_heuristics.pointwise(
    size_hints={'x': 16}, filename=__file__,
    triton_meta={'signature': {'in_ptr0': '*fp32'}, 'device': DeviceProperties(type='cuda', index=0, multi_processor_count=132, cc=90)},
    inductor_meta={'device_type': 'cuda', 'num_load': 1},
)
@triton.jit
def triton_poi_0(in_ptr0, xnumel, XBLOCK : tl.constexpr):
    tmp0 = tl.load(in_ptr0 + (0))
''', device_str='cuda')

def call(args):
    with torch.cuda._DeviceGuard(0):
        torch.cuda.set_device(0)
        buf0 = empty_strided_cuda((10, 0), (1, 0), torch.float32)
        buf1 = torch.ops.aten.full.default([0], 0, device=device(type='cuda', index=0))
        stream0 = get_raw_stream(0)
        triton_poi_0.run(buf0, 10, stream=stream0)
        return (buf0, 0)

def benchmark_compiled_module():
    arg0_1 = rand_strided((10, ), (1, ), device='cuda:0', dtype=torch.float32)
""",
    "2.13": """
# %arg0_1 : Tensor "f32[10][1]cuda:0" = PlaceHolder[target=arg0_1]
def call(args):
    with torch.cuda._DeviceGuard(0):
        torch.cuda.set_device(0)
        raw_stream0 = get_raw_stream(0)
        semaphores_cuda_0 = empty_strided_cuda((1, ), (1, ), torch.uint32)
        triton_poi_0.run(semaphores_cuda_0, 10, stream=raw_stream0)
""",
}


@pytest.mark.parametrize("version", WRAPPERS)
def test_code_is_the_same_on_another_gpu_but_for_the_gpu_s_number(version):
    source = WRAPPERS[version]
    other = moved(source, 3)
    assert other != source
    assert moved(other, 0) == source
    for form in ("DeviceGuard(0)", "set_device(0)", "cuda:0", "index=0", "stream0", "stream(0)"):
        assert form not in other
    for kept in ("(10, 0), (1, 0)", "in_ptr0 + (0)", "return (buf0, 0)"):
        assert source.count(kept) == other.count(kept)


@pytest.mark.parametrize(
    "line",
    [
        "x = on_device(0)",
        "x = Gpu(0)",
        "x = f(device_index=0)",
        "with torch.cuda.device(0): pass",
    ],
)
def test_code_that_may_name_a_gpu_in_another_way_stays_where_it_is(line):
    with pytest.raises(UnmovableError, match="may be the number of a GPU"):
        moved(WRAPPERS["2.11"] + line, 1)


def test_code_for_two_gpus_stays_where_it_is():
    with pytest.raises(UnmovableError, match=r"GPUs \[0, 1\]"):
        moved(WRAPPERS["2.11"] + "y = x.to('cuda:1')", 2)


def parts_of(source: str, **described: Any) -> dict[str, bytes]:
    bundle = {"form": "graph", "kernels": {}, **described}
    return {"graph": source.encode(), "bundle": json.dumps(bundle).encode()}


def test_what_was_chosen_for_a_kernel_goes_with_it():
    def digest(parts: dict[str, bytes]) -> str:
        (source,) = bundle._kernels_named_in(parts["graph"].decode()).triton.values()
        return hashlib.sha256(source.encode()).hexdigest()

    parts = parts_of(WRAPPERS["2.11"])
    triton = {"device": 0, "files": {"a/b": "c"}, "choices": {digest(parts): {"x": "y"}}}
    parts = parts_of(WRAPPERS["2.11"], triton=triton)
    other = bundle.moved(parts, 1)
    assert digest(other) != digest(parts)
    expected = {"device": 1, "files": {"a/b": "c"}, "choices": {digest(other): {"x": "y"}}}
    assert json.loads(other["bundle"])["triton"] == expected
    assert bundle.moved(other, 0) == parts


def test_only_directly_lowered_code_that_can_be_rewritten_is_for_any_gpu():
    assert bundle.is_movable(parts_of(WRAPPERS["2.13"]))
    assert not bundle.is_movable(parts_of(WRAPPERS["2.13"] + "on_device(0)"))
    assert not bundle.is_movable({"artifact": b"", "bundle": b'{"form": "artifact"}'})
