"""Compiling calls of modules in place, and what is asked while they run.

Checked on torch 2.11.0 and 2.13.0: `nn.Module._compiled_call_impl`, which `module.compile()` sets and pickling and
copying leave out; `nn.Module._call_impl`; `torch._C._current_autograd_node`, `torch._C._autograd._get_sequence_nr`;
`torch._dynamo.config.skip_nnmodule_hook_guards`; `torch.utils._python_dispatch._get_current_dispatch_mode`.
"""

from __future__ import annotations

import contextlib
import itertools
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode

from .dynamo import own_traces_only

_CALL = "_compiled_call_impl"
_NUMBERS = itertools.count()
_NO_WORK = (
    "aten.empty",
    "aten.new_empty",
)  # checkpointing makes one around each call on torch 2.11


def compiled_call(module: nn.Module) -> Any:
    """What is called in place of a module, or None."""
    return module.__dict__.get(_CALL)


def set_compiled_call(module: nn.Module, call: Any) -> None:
    if call is None:
        module.__dict__.pop(_CALL, None)
    else:
        module.__dict__[_CALL] = call


def call_uncompiled(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Call a module, hooks included, as if nothing were called in its place."""
    return module._call_impl(*args, **kwargs)  # type: ignore[no-untyped-call]


def run_module(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    return module._call_impl(*args, **kwargs)  # type: ignore[no-untyped-call]


def run_function(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return function(*args, **kwargs)


def compiled_entry(
    run: Callable[..., Any],
    name: str,
    backend: Callable[..., Any],
    *,
    fullgraph: bool,
    dynamic: bool | None,
) -> Callable[..., Any]:
    """A compiled copy of a function that Dynamo knows nothing of yet.

    It keeps its cache by the code object, and what it has learnt of sizes that vary by file, line and
    name: modules that are unlike each other shall share neither.
    """
    name = f"{re.sub(r'[^0-9A-Za-z]+', '_', name).strip('_')}_{next(_NUMBERS)}"

    def entry(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError  # its code is replaced

    entry.__code__ = run.__code__.replace(co_name=name)
    entry.__name__ = entry.__qualname__ = name
    with own_traces_only():
        compiled: Callable[..., Any] = torch.compile(
            entry, backend=backend, fullgraph=fullgraph, dynamic=dynamic
        )
    return compiled


def recompile_limit() -> int:
    """How many times Dynamo compiles one code object before it leaves it to eager mode."""
    import torch._dynamo.config as dynamo_config

    return int(dynamo_config.recompile_limit)


def in_backward() -> bool:
    """Whether this thread runs a backward pass: what is called now recomputes a checkpoint."""
    return torch._C._current_autograd_node() is not None


def sequence_number() -> int:
    """The number that the next node of this thread's autograd graph will have."""
    return int(torch._C._autograd._get_sequence_nr())


def backward_sequence_number() -> int | None:
    """The number of the node whose backward runs in this thread, or None."""
    node = torch._C._current_autograd_node()
    return None if node is None else int(node._sequence_nr())


def guard_hooks() -> None:
    """Have Dynamo, which compiles in this thread, guard on there being no hooks.

    Without, what was compiled for a block without hooks serves one with hooks, which then never run.
    """
    import torch._dynamo.config as dynamo_config

    dynamo_config.skip_nnmodule_hook_guards = False


def hooks_are_guarded() -> bool:
    config = sys.modules.get("torch._dynamo.config")
    return config is not None and not config.skip_nnmodule_hook_guards


def stop_guarding_hooks() -> None:
    import torch._dynamo.config as dynamo_config

    dynamo_config.skip_nnmodule_hook_guards = True


class OperatorWatch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Calls back for each operator that runs eagerly and makes new tensors, but for what is paused."""

    def __init__(self, seen: Callable[[str], None]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._seen = seen

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = str(func)
        if not func.is_view and not name.startswith(_NO_WORK):
            self._seen(name)
        return func(*args, **(kwargs or {}))

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """Functions that the user compiles run compiled under this mode, where torch knows the method."""
        return True

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Take the mode off, as compiled code runs under no mode; one that isn't on top stays."""
        if _get_current_dispatch_mode() is not self:
            yield
            return
        self.__exit__(None, None, None)  # type: ignore[no-untyped-call]
        try:
            yield
        finally:
            self.__enter__()  # type: ignore[no-untyped-call]
