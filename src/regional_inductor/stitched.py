"""The GraphModule that a pass leaves behind: it pickles with its compiled regions inside."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.fx
from torch.fx.node import Node

from ._torch import inductor
from ._torch.pickling import dump_graph_module, load_graph_module
from .checked_calls import guarded_function
from .errors import RegionError
from .runtime import named_function, region_calls


class StitchedGraphModule(torch.fx.GraphModule):
    """A GraphModule whose nodes call compiled regions.

    A plain GraphModule pickles its source and traces it again, which can't name a compiled region.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        return load_stitched, (dump_stitched(self),)


def make_stitched(module: torch.fx.GraphModule) -> None:
    """Turn a GraphModule into a `StitchedGraphModule`, in place.

    Each GraphModule has a class of its own, so exchanging that class touches no other module.
    """
    base = type(module).__mro__[1]
    if issubclass(base, StitchedGraphModule):
        return
    stitched = (
        StitchedGraphModule
        if base is torch.fx.GraphModule
        else type(base.__name__, (StitchedGraphModule, base), {"__module__": base.__module__})
    )
    implementation = type("GraphModuleImpl", (stitched,), {})
    implementation.__qualname__ = "GraphModuleImpl"
    module.__class__ = implementation


def dump_stitched(module: torch.fx.GraphModule) -> bytes:
    """The module as bytes, compiled regions included.

    Raises:
        RegionError: A region that Inductor did not compile, which has no bytes.
    """
    for node, call in region_calls(module):
        compiled = getattr(node.target, "__wrapped__", None)
        if node.op == "call_function" and inductor.artifact_bytes(compiled) is None:
            raise RegionError(
                "this region can't be pickled: it was not compiled by Inductor",
                region=call.name,
                source=call.source,
            )
    return dump_graph_module(module)


def load_stitched(data: bytes) -> torch.fx.GraphModule:
    """The module that `dump_stitched` wrote, its regions named and checked as before."""
    module = load_graph_module(data)
    for node, call in region_calls(module):
        if node.op != "call_function":
            continue
        assert callable(node.target)
        compiled: Callable[..., Any] = getattr(node.target, "__wrapped__", node.target)
        eager = getattr(module, call.submodule, None)
        if isinstance(eager, torch.fx.GraphModule):
            arguments = [argument for argument in node.args if isinstance(argument, Node)]
            expected = [argument.meta.get("val") for argument in arguments]
            node.target = guarded_function(compiled, eager, expected, call)
        else:
            node.target = named_function(compiled, call)
    make_stitched(module)
    module.recompile()
    return module
