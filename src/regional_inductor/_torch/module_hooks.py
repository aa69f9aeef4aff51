"""Hooks of modules, which `torch.nn.Module.__call__` runs around `forward`.

Torch guards on none (`skip_nnmodule_hook_guards`): those of modules inside a capture are traced into it.
Checked on torch 2.11 and 2.13: the names of the dictionaries.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

_KINDS = {
    "_forward_pre_hooks": "forward pre-hooks",
    "_forward_hooks": "forward hooks",
    "_backward_pre_hooks": "backward pre-hooks",
    "_backward_hooks": "backward hooks",
}

Hooks = Mapping[str, tuple[str, ...]]
"""Modules by path, with what hooks each has."""


def has_hooks(model: torch.nn.Module) -> bool:
    """Whether any run around this very module."""
    return any(getattr(model, kind) for kind in _KINDS) or has_global_hooks()


def has_global_hooks() -> bool:
    """Whether hooks are registered for all modules of the process."""
    return bool(torch.nn.modules.module._has_any_global_hook())  # type: ignore[no-untyped-call]


def hooks_inside(model: torch.nn.Module) -> Hooks:
    """The hooks of the modules in a model, its own excepted."""
    found: dict[str, tuple[str, ...]] = {}
    for path, module in model.named_modules():
        kinds = [
            f"{len(hooks)} {name}" for kind, name in _KINDS.items() if (hooks := vars(module)[kind])
        ]
        if kinds and path:
            found[path] = tuple(kinds)
    return found
