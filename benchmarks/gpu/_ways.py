"""The ways to run a marked model on a CUDA device.

Private torch APIs that these benchmarks need are here. Checked on torch 2.11 and 2.13.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.gpu._llama import Marks


@dataclass(frozen=True)
class Way:
    """How a model is compiled and what is marked in it.

    `compiler` is "eager", "aot_eager", "pytorch", "full", "blocks" or "ours"; `options` are those of
    that compiler's own call.
    """

    label: str
    compiler: str
    marks: Marks = field(default_factory=Marks)
    options: dict[str, Any] = field(default_factory=dict)


PARTS, WHOLE = Marks("parts"), Marks("blocks")
_REPLAYED = {"triton.cudagraphs": True}

WAYS: dict[str, Way] = {
    "eager": Way("eager", "eager"),
    "aot_eager": Way("aot_eager", "aot_eager"),
    "pytorch": Way("PyTorch's pass", "pytorch", PARTS),
    "pytorch-mincut": Way("PyTorch's pass, min-cut", "pytorch", PARTS, {"mincut": True}),
    "pytorch-cudagraphs": Way(
        "PyTorch's pass, cudagraphs by region", "pytorch", Marks("parts", _REPLAYED)
    ),
    "full": Way("torch.compile", "full"),
    "reduce-overhead": Way(
        "torch.compile, reduce-overhead", "full", options={"mode": "reduce-overhead"}
    ),
    "blocks": Way("torch.compile block by block", "blocks"),
    "ours": Way("ours", "ours", PARTS, {"capture": "model"}),
    "ours-auto": Way("ours, as it comes", "ours", PARTS),
    "ours-blocks": Way("ours, blocks captured", "ours", PARTS, {"capture": "blocks"}),
    "ours-whole": Way("ours, blocks marked", "ours", WHOLE, {"capture": "model"}),
    "ours-whole-blocks": Way(
        "ours, blocks marked and captured", "ours", WHOLE, {"capture": "blocks"}
    ),
    "ours-whole-blocks-late": Way(
        "ours, blocks marked and captured, backward late",
        "ours",
        WHOLE,
        {"capture": "blocks", "backward": "late"},
    ),
    "ours-cudagraphs": Way(
        "ours, cudagraphs by region", "ours", Marks("parts", _REPLAYED), {"capture": "model"}
    ),
    "ours-graph": Way(
        'ours, cudagraphs="graph"', "ours", PARTS, {"capture": "model", "cudagraphs": "graph"}
    ),
    "ours-whole-graph": Way(
        'ours, blocks marked, cudagraphs="graph"',
        "ours",
        WHOLE,
        {"capture": "model", "cudagraphs": "graph"},
    ),
}


def missing(way: Way) -> str:
    """Why this version of the library can't run a way, or an empty string."""
    if way.compiler != "ours":
        return ""
    import regional_inductor as ri

    parameters = inspect.signature(ri.compile).parameters
    for name, value in way.options.items():
        if name not in parameters or f"'{value}'" not in str(parameters[name].annotation).replace(
            '"', "'"
        ):
            return f"ri.compile does not offer {name}={value!r}"
    return ""


def compiled(way: Way, model: Any) -> Callable[..., Any]:
    """The model, ready for its first call, which compiles it."""
    import torch

    if way.compiler == "eager":
        return model  # type: ignore[no-any-return]
    if way.compiler == "aot_eager":
        return torch.compile(model, backend="aot_eager", fullgraph=True)
    if way.compiler == "pytorch":
        return torch.compile(model, backend=_pytorch_backend(**way.options), fullgraph=True)
    if way.compiler == "full":
        return torch.compile(model, fullgraph=True, **way.options)
    if way.compiler == "blocks":
        for block in model.layers:
            block.compile(fullgraph=True)
        return model  # type: ignore[no-any-return]
    import regional_inductor as ri

    return ri.compile(model, **way.options)  # type: ignore[no-any-return]


def _pytorch_backend(mincut: bool = False) -> Any:
    from functorch.compile import min_cut_rematerialization_partition
    from torch._dynamo.backends.common import aot_autograd
    from torch.fx.passes.regional_inductor import regional_inductor

    options = {"partition_fn": min_cut_rematerialization_partition} if mincut else {}
    return aot_autograd(fw_compiler=regional_inductor, bw_compiler=regional_inductor, **options)


def described(way: Way, model: Any) -> dict[str, Any]:
    """What this library compiled: region calls, distinct compiles, and what stayed eager and why."""
    report = getattr(model, "report", None) if way.compiler == "ours" else None
    if report is None:
        return {}
    statuses = [region.status for region in report.regions]
    eager = {f"{r.name}: {r.reason}" for r in report.regions if r.status == "eager"}
    found: dict[str, Any] = {"regions": len(statuses), "compiles": statuses.count("compiled")}
    slower = [f.text for f in report.findings if "makes the region slower" in f.message]
    if slower:
        here = f"{Path(__file__).parents[2]}/"
        found["slower as CUDA graphs"] = "; ".join(slower[:3]).replace(here, "")
    if eager:
        found["stayed eager"] = "; ".join(sorted(eager)[:3])
    return found
