"""The pass under test, chosen by an environment variable.

`REGIONAL_INDUCTOR_TEST_AGAINST` is `ours` (default), `torch` (PyTorch's own pass, to see which
tests it fails) or `nothing` (a pass that returns its graph: whatever fails then is the test's own
fault).
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.fx import GraphModule

AGAINST = os.environ.get("REGIONAL_INDUCTOR_TEST_AGAINST", "ours")


@dataclasses.dataclass(frozen=True)
class UnderTest:
    """One pass, as a graph pass and as a backend, with regions compiled or run eagerly."""

    against: str
    region_backend: str

    def apply(self, gm: GraphModule, *example_inputs: Any, **options: Any) -> Any:
        """The drop-in pass, on a captured graph."""
        if self.against == "nothing":
            return gm
        if self.against == "torch":
            from torch.fx.passes.regional_inductor import regional_inductor

            with _tracing_context(gm):
                return regional_inductor(gm, *example_inputs)
        import regional_inductor as ri

        options.setdefault("region_backend", self.region_backend)
        return ri.regional_inductor(gm, *example_inputs, **options)

    def run(self, gm: GraphModule, *args: Any, example_inputs: Any = None, **options: Any) -> Any:
        """Apply the pass to a captured graph and call the result."""
        return call(self.apply(gm, *(example_inputs or args), **options), *args)

    def aot_backend(self, **options: Any) -> Callable[..., Any]:
        """The pass as both compilers of AOTAutograd, which is how PyTorch's own is used."""
        from torch._dynamo.backends.common import aot_autograd

        def compiler(gm: GraphModule, example_inputs: Any) -> Any:
            result = self.apply(gm, *example_inputs, **options)
            return result if self.against == "ours" else _boxed(result)

        return aot_autograd(fw_compiler=compiler, bw_compiler=compiler)

    def compile(self, fn: Any, *, dynamic: Any = None, fullgraph: bool = True, **options: Any):
        """`torch.compile` with the backend under test."""
        if self.against != "ours":
            backend = self.aot_backend()
            return torch.compile(fn, backend=backend, dynamic=dynamic, fullgraph=fullgraph)
        options.setdefault("region_backend", self.region_backend)
        return torch.compile(
            fn,
            backend="regional_inductor",
            dynamic=dynamic,
            fullgraph=fullgraph,
            options=options,
        )

    @contextlib.contextmanager
    def watch(self) -> Iterator[list[Seen]]:
        """Collect the regions compiled inside the `with`: their ops and the options they got."""
        seen: list[Seen] = []
        if self.against == "ours" and self.region_backend == "eager":
            yield seen
            import regional_inductor as ri

            seen += [
                Seen(tuple(r.ops), dict(r.options), r.direction) for r in ri.last_report().regions
            ]
            return
        with _recorded_standalone_compiles(seen):
            yield seen


@dataclasses.dataclass(frozen=True)
class Seen:
    """A region as it reached the compiler."""

    ops: tuple[str, ...]
    options: dict[str, Any]
    direction: str = ""

    def has(self, op: str) -> bool:
        return any(op in name.split(".") for name in map(str, self.ops))


def regions_with(seen: list[Seen], op: str) -> list[Seen]:
    """Those among the regions that hold an op, by its packet's name ("sin")."""
    return [region for region in seen if region.has(op)]


@contextlib.contextmanager
def _recorded_standalone_compiles(seen: list[Seen]) -> Iterator[None]:
    from torch._inductor import config

    original = torch._inductor.standalone_compile
    outside = config.get_config_copy()

    def recording(gm: GraphModule, example_inputs: Any, **kwargs: Any) -> Any:
        inside = config.get_config_copy()
        options = {k: v for k, v in inside.items() if k in outside and outside[k] != v}
        options.update(kwargs.get("options") or {})
        calls = [n for n in gm.graph.nodes if n.op == "call_function"]
        seen.append(Seen(tuple(str(n.target) for n in calls), options))
        return original(gm, example_inputs, **kwargs)

    torch._inductor.standalone_compile = recording
    try:
        yield
    finally:
        torch._inductor.standalone_compile = original


def _tracing_context(gm: GraphModule) -> contextlib.AbstractContextManager[Any]:
    """What PyTorch's pass needs and ours does not (test_drop_in.py has a test of that)."""
    from torch._guards import TracingContext, tracing
    from torch._subclasses.fake_tensor import FakeTensor

    if TracingContext.try_get() is not None:
        return contextlib.nullcontext()
    values = [n.meta.get("val") for n in gm.graph.nodes]
    modes = [v.fake_mode for v in values if isinstance(v, FakeTensor)]
    return tracing(TracingContext(modes[0])) if modes else contextlib.nullcontext()


def _boxed(result: Any) -> Any:
    """PyTorch's pass returns a graph without regions as it came; AOTAutograd wants it boxed."""
    from torch._functorch.aot_autograd import make_boxed_func
    from torch.fx.graph import _BoxedCodeGen

    graph = getattr(result, "graph", None)
    boxed = graph is None or isinstance(graph._codegen, _BoxedCodeGen)
    return result if boxed else make_boxed_func(result.forward)


def call(result: Any, *args: Any, **kwargs: Any) -> Any:
    """Call what a pass returned, whichever of the two calling conventions it has.

    Ours takes both, so it is called the plain way; that it takes the boxed one too is a test in
    test_drop_in.py. PyTorch's takes one list where it found a region.
    """
    if AGAINST == "ours" or kwargs:
        return result(*args, **kwargs)
    from torch.fx.graph import _BoxedCodeGen

    graph = getattr(result, "graph", None)
    boxed = graph is None or isinstance(graph._codegen, _BoxedCodeGen)
    return result(list(args)) if boxed else result(*args)
