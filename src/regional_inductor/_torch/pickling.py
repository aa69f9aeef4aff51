"""GraphPickler: graphs with fake values and compiled regions as bytes.

Checked on torch 2.11 and 2.13: `torch.fx._graph_pickler.GraphPickler` and its `Options`.
"""

from __future__ import annotations

import torch.fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

# Tracers keep Python objects here that name live frames, modules and classes.
_UNPICKLABLE_META = frozenset(
    {
        "source_fn_stack",
        "nn_module_stack",
        "fwd_source_fn_stack",
        "fwd_nn_module_stack",
        "from_node",
        "desc",
        "eager_input_vals",
        "grapharg",
        "torch_fn",
        "_dynamo_source",
    }
)


def dump_graph_module(module: torch.fx.GraphModule) -> bytes:
    from torch.fx._graph_pickler import GraphPickler, Options

    options = Options(
        ops_filter=None, node_metadata_key_filter=lambda key: key not in _UNPICKLABLE_META
    )
    return GraphPickler.dumps(module, options)


def load_graph_module(data: bytes) -> torch.fx.GraphModule:
    from torch.fx._graph_pickler import GraphPickler

    module = GraphPickler.loads(data, FakeTensorMode(shape_env=ShapeEnv()))
    assert isinstance(module, torch.fx.GraphModule)
    module.recompile()
    return module
