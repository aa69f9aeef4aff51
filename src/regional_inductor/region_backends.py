"""How one outlined region becomes a callable: through Inductor, one way or the other, or as it is."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeAlias

import torch
import torch.fx

from ._torch import direct, direct_artifact, exact_lowering, inductor, kernel_batches
from ._torch.fx import is_boxed
from ._torch.values import fake_mode_of, in_one_mode
from .errors import OptionError
from .regions import RegionCall, Settings

lock = threading.RLock()
"""Inductor's compile pipeline keeps its state in globals; one compile runs at a time."""

RegionBackend: TypeAlias = (
    "Callable[[torch.fx.GraphModule, dict[str, Any], RegionCall, Settings], Callable[..., Any]]"
)


def backend_text(settings: Settings) -> str:
    """What a region key says of the backend: its name, who patched it, and the way it goes."""
    if settings.region_backend != "inductor":
        return settings.region_backend
    return f"{inductor.backend_identity()} {may_lower_directly(settings)}"


def may_lower_directly(settings: Settings) -> bool:
    """Whether regions of this run may take the direct way, where they are fit for it.

    Whoever patches `standalone_compile` wants to see every region. AOTAutograd's cache serialises all that
    the pass returns, which standalone artifacts can; what is packed into a file of ours needs no such thing.
    """
    if settings.lowering != "auto":
        return settings.lowering == "direct"
    return inductor.backend_identity() == "inductor" and (
        settings.for_file or not inductor.autograd_cache_forced()
    )


def may_share_a_compiler_run(call: RegionCall, settings: Settings) -> bool:
    """Whether a region's kernels may be compiled together with those of others.

    A time limit is for the region alone. Whoever patches `standalone_compile` may want to run what
    it returns, at once.
    """
    return (
        settings.region_backend == "inductor"
        and call.mark.compile_timeout is None
        and inductor.backend_identity() == "inductor"
        and kernel_batches.is_possible()
    )


def serialisable(
    compiled: Callable[..., Any],
    module: torch.fx.GraphModule,
    options: dict[str, Any],
    call: RegionCall,
    settings: Settings,
) -> Callable[..., Any]:
    """A compiled region that takes plain arguments and, if Inductor compiled it, can be serialised.

    Args:
        compiled: The compiled region.
        module: The outlined region.
        options: Inductor's options that it was compiled with.
        call: What is known of it.
        settings: What was asked for.
    """
    if not is_boxed(compiled):
        return compiled
    if not direct.is_lowered_directly(compiled):
        return lambda *args: compiled(list(args))
    other_way = replace(settings, lowering="standalone")

    def compile_standalone() -> Callable[..., Any]:
        with lock:
            return _inductor(module, options, call, other_way)

    return direct_artifact.as_artifact(compiled, compile_standalone)


def numerics_text(call: RegionCall, settings: Settings) -> str:
    """What a region key says of how results are rounded, after what the backend says."""
    return f" {exact_lowering.identity()}" if is_exact(call, settings) else ""


def is_exact(call: RegionCall, settings: Settings) -> bool:
    """Whether a region has to be compiled so that it gives eager's bits."""
    if settings.region_backend != "inductor":
        return False
    return (call.mark.numerics or settings.numerics) == "eager"


def _inductor(
    module: torch.fx.GraphModule, options: dict[str, Any], call: RegionCall, settings: Settings
) -> Callable[..., Any]:
    if not is_exact(call, settings):
        return _lowered(module, options, settings)
    for name, value in exact_lowering.required_options(module).items():
        if options.get(name, value) != value:
            raise OptionError(
                f'numerics="eager" needs {name}={value!r}, and the options say {options[name]!r}',
                region=call.name,
                source=call.source,
                hint="leave one of the two out",
            )
    return lowered_exactly(module, options, settings)


def lowered_exactly(
    module: torch.fx.GraphModule, options: dict[str, Any], settings: Settings
) -> Callable[..., Any]:
    """A region compiled so that each operator in it gives eager's bits, as far as is known."""
    with exact_lowering.exact_code():
        return _lowered(
            exact_lowering.with_exact_operators(module),
            {**options, **exact_lowering.required_options(module)},
            settings,
        )


def _lowered(
    module: torch.fx.GraphModule, options: dict[str, Any], settings: Settings
) -> Callable[..., Any]:
    values = [node.meta["val"] for node in module.graph.nodes if node.op == "placeholder"]
    mode = fake_mode_of(values) or inductor.new_fake_mode()
    inputs = in_one_mode(values, mode)
    if may_lower_directly(settings) and not direct.refusal(module, options):
        with contextlib.suppress(direct.DirectLoweringRefusedError):
            return direct.compile_direct(module, inputs, options, mode)
    trains = any(isinstance(v, torch.Tensor) and v.requires_grad for v in inputs)
    with torch.set_grad_enabled(trains and torch.is_grad_enabled()):
        compiled: Callable[..., Any] = inductor.compile_standalone(module, inputs, options, mode)
    return compiled


def _eager(
    module: torch.fx.GraphModule, options: dict[str, Any], call: RegionCall, settings: Settings
) -> Callable[..., Any]:
    """Runs a region's own graph: partitioning, keys and stitching without a compiler."""
    return module


BACKENDS: dict[str, RegionBackend] = {"inductor": _inductor, "eager": _eager}
