"""A directly lowered region in the guise of the artifact that `standalone_compile` returns.

Whoever holds a graph of the drop-in pass may serialise it, with torch's `GraphPickler` too, which knows
compiled regions by the type of that artifact and asks it for bytes. A directly lowered region has none
that torch could read. So it is compiled the other way when somebody asks.

Checked on torch 2.11 and 2.13: `AOTCompiledArtifact.serialize`, what `GraphPickler` and
`RegionalOutputCode` ask of it, `torch._C._DisableAutocast`, `_is_any_autocast_enabled`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch


def as_artifact(
    lowered: Callable[[list[Any]], Any], compile_standalone: Callable[[], Any]
) -> Callable[..., Any]:
    """A region as a callable with plain arguments that can be serialised.

    Args:
        lowered: What `compile_direct` returned, or what was loaded in its place; takes one list.
        compile_standalone: Compiles the region with `standalone_compile`, when its bytes are wanted.
    """
    artifact: Callable[..., Any] = _type()(lowered, compile_standalone)
    return artifact


def lowered_of(compiled: Any) -> Callable[[list[Any]], Any] | None:
    """What `as_artifact` was given, or None for anything else."""
    return compiled.lowered if isinstance(compiled, _type()) else None


@functools.cache
def _type() -> Any:
    from torch._inductor.standalone_compile import AOTCompiledArtifact

    class DirectArtifact(AOTCompiledArtifact):
        def __init__(
            self, lowered: Callable[[list[Any]], Any], compile_standalone: Callable[[], Any]
        ) -> None:
            self.lowered = lowered
            self._compile_standalone = compile_standalone
            self._artifacts = None

        def __call__(self, *args: Any) -> Any:
            if not torch._C._is_any_autocast_enabled():
                return self.lowered(list(args))
            # What autocast does was captured with the graph; library calls must not do it again.
            with torch._C._DisableAutocast():
                return self.lowered(list(args))

        def serialize(self) -> bytes:
            data: bytes = self._compile_standalone().serialize()
            return data

    return DirectArtifact
