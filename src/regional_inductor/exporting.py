"""`ri.export`: torch.export with the marks kept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch


def export(
    module: torch.nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any] | None = None,
    *,
    dynamic_shapes: Any = None,
    **more: Any,
) -> torch.export.ExportedProgram:
    """Export a model so that its marks arrive in the exported graph.

    `torch.export.export` is non-strict by default: it runs the Python code under a tracer that
    records no annotations, and the marks are gone. The strict mode captures with Dynamo, which
    keeps them.

    Args:
        module: The model.
        args: Positional example inputs.
        kwargs: Keyword example inputs.
        dynamic_shapes: Which sizes are symbolic, as for `torch.export.export`.
        **more: Passed on to `torch.export.export`; `strict` is always true.

    Returns:
        The exported program. `ri.regional_inductor(program.module())` compiles its regions.

    Raises:
        torch._dynamo.exc.Unsupported: Dynamo can't capture the whole model as one graph.

    Example:
        >>> import torch, regional_inductor as ri
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Tanh())
        >>> _ = ri.mark(model, "1", name="tanh")
        >>> program = ri.export(model, (torch.ones(2, 4),))
        >>> gm = ri.regional_inductor(program.module(), region_backend="eager")
        >>> [region.name for region in ri.last_report().regions]
        ['tanh']
    """
    more.pop("strict", None)
    return torch.export.export(
        module, args, dict(kwargs or {}), dynamic_shapes=dynamic_shapes, strict=True, **more
    )
