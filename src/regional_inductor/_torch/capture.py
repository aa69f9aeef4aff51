"""Capturing with Dynamo and AOTAutograd for a dry run, and leaving no trace of it.

Checked on torch 2.11 and 2.13: `convert_frame.input_codes`, `eval_frame.cached_backends`, `reset_code`,
`ExtraState.invalidate`, `pgo._CODE_STATE`, `utils.counters`, `callback_handler`, `innermost_fn`,
`innermost_backend`, `functorch.config.force_non_lazy_backward_lowering`.
"""

from __future__ import annotations

import contextlib
import copy
import types
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch._C._dynamo.eval_frame import _debug_get_cache_entry_list, reset_code


@contextlib.contextmanager
def without_a_trace() -> Iterator[None]:
    """Let Dynamo compile, and put its caches and counters back.

    Code that nobody had compiled before is forgotten again. Of other code the entries made inside
    are switched off; those made before stay valid.
    """
    from torch._dynamo import config, convert_frame, eval_frame, pgo, utils
    from torch._dynamo.callback import callback_handler

    frames = _FramesSeen(convert_frame.input_codes)
    counters = {name: Counter(values) for name, values in utils.counters.items()}
    reasons = list(utils.graph_break_reasons)
    seconds = {name: list(values) for name, values in utils.compilation_time_metrics.items()}
    numbers = convert_frame.FRAME_COUNTER, Counter(convert_frame.FRAME_COMPILE_COUNTER)
    sizes = pgo._CODE_STATE, pgo._INIT_CODE_STATE
    callbacks = list(callback_handler.start_callbacks), list(callback_handler.end_callbacks)
    backends = set(eval_frame.cached_backends)
    pgo._CODE_STATE, pgo._INIT_CODE_STATE = copy.deepcopy(sizes)
    callback_handler.start_callbacks.clear()
    callback_handler.end_callbacks.clear()
    convert_frame.input_codes = frames  # type: ignore[assignment]
    try:
        with config.patch(
            automatic_dynamic_local_pgo=False,
            automatic_dynamic_remote_pgo=False,
            recompile_limit=config.recompile_limit + 8,  # the user's own entries count too
        ):
            yield
    finally:
        convert_frame.input_codes = frames.tracker
        frames.forget()
        for number in set(eval_frame.cached_backends) - backends:
            del eval_frame.cached_backends[number]
        callback_handler.start_callbacks[:], callback_handler.end_callbacks[:] = callbacks
        pgo._CODE_STATE, pgo._INIT_CODE_STATE = sizes
        convert_frame.FRAME_COUNTER = numbers[0]
        _refill(convert_frame.FRAME_COMPILE_COUNTER, numbers[1])
        _refill(utils.compilation_time_metrics, seconds)
        utils.graph_break_reasons[:] = reasons
        _refill(utils.counters, counters)


def _refill(mapping: Any, values: Any) -> None:
    mapping.clear()
    mapping.update(values)


class _FramesSeen:
    """Stands in for Dynamo's list of the code objects it was shown, and takes down which."""

    def __init__(self, tracker: Any) -> None:
        self.tracker = tracker
        # By identity: equal code objects of two functions have caches of their own.
        self._before: dict[_ById, list[Any]] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tracker, name)

    def __contains__(self, code: types.CodeType) -> bool:
        return code in self.tracker

    def add(self, code: types.CodeType) -> None:
        key = _ById(code)
        if key not in self._before:
            self._before[key] = [entry.code for entry in _debug_get_cache_entry_list(code)]
        self.tracker.add(code)

    def forget(self) -> None:
        for code, before in ((key.code, before) for key, before in self._before.items()):
            if not before:
                reset_code(code)
                continue
            for entry in _debug_get_cache_entry_list(code):
                if not any(entry.code is known for known in before):
                    _switch_off(entry)


class _ById:
    """A code object as a key of a dict, by identity."""

    def __init__(self, code: types.CodeType) -> None:
        self.code = code

    def __hash__(self) -> int:
        return id(self.code)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _ById) and other.code is self.code


def _switch_off(entry: Any) -> None:
    from torch._dynamo.guards import DeletedGuardManagerWrapper

    state = getattr(entry.guard_manager, "extra_state", None)
    if state is not None:
        state.invalidate(entry, DeletedGuardManagerWrapper("it belonged to a dry run"))


@contextlib.contextmanager
def backward_at_once() -> Iterator[None]:
    """Have AOTAutograd hand over the backward graph together with the forward graph."""
    import torch._functorch.config as functorch_config

    with functorch_config.patch(force_non_lazy_backward_lowering=True, force_autograd_cache=False):
        yield


@contextlib.contextmanager
def usual_functorch_config(values: dict[str, Any]) -> Iterator[None]:
    """The config from before `backward_at_once`, which region keys are made of."""
    import torch._functorch.config as functorch_config

    with functorch_config.patch(**values):
        yield


def functorch_values() -> dict[str, Any]:
    import torch._functorch.config as functorch_config

    names = ("force_non_lazy_backward_lowering", "force_autograd_cache")
    return {name: getattr(functorch_config, name) for name in names}


def graph_breaks() -> list[tuple[str, str]]:
    """The graph breaks that Dynamo has seen so far: why, on one line, and `file:line`."""
    from torch._dynamo.utils import graph_break_reasons

    found = []
    for reason in graph_break_reasons:
        frame = reason.user_stack[-1] if reason.user_stack else None
        line = f"{frame.filename}:{frame.lineno}" if frame is not None else ""
        found.append((_in_words(reason.reason), line))
    return found


def _in_words(reason: str) -> str:
    """What Dynamo calls a break, and its explanation; not its hints and links."""
    title, *rest = reason.strip().splitlines() or [""]
    if title.startswith("generic_jump"):
        return f"Python branches on a value that only a run knows ({title})"
    explained = (
        line.strip().removeprefix("Explanation: ") for line in rest if "Explanation:" in line
    )
    return ". ".join([title, *explained])


def uncompiled(model_or_fn: Any) -> Any:
    """What `torch.compile` was given, for what it returned; anything else as it is."""
    from torch._dynamo.eval_frame import OptimizedModule, innermost_fn

    if isinstance(model_or_fn, OptimizedModule):
        return uncompiled(model_or_fn._orig_mod)
    if isinstance(model_or_fn, torch.nn.Module):
        return model_or_fn
    inner = innermost_fn(model_or_fn)
    if inner is model_or_fn:  # a wrapper of ours around a compiled callable
        inner = vars(inner).get("_torchdynamo_orig_callable", inner) if _has_dict(inner) else inner
    return inner


def _has_dict(value: Any) -> bool:
    return hasattr(value, "__dict__")


def backend_of(model_or_fn: Any) -> Any:
    """The backend that something was compiled with, or None for what is not compiled."""
    from torch._dynamo.eval_frame import OptimizedModule, innermost_backend

    if isinstance(model_or_fn, OptimizedModule):
        callback = model_or_fn.dynamo_ctx.callback
    elif isinstance(model_or_fn, torch.nn.Module):
        call = model_or_fn._compiled_call_impl
        return getattr(call, "backend", None) or backend_of(call)  # ours, in place, says it itself
    else:
        callback = _closure(model_or_fn).get("callback")
    return innermost_backend(callback) if callable(callback) else None


def _closure(function: Any) -> dict[str, Any]:
    names = getattr(getattr(function, "__code__", None), "co_freevars", ())
    cells = getattr(function, "__closure__", None) or ()
    found = {}
    for name, cell in zip(names, cells, strict=False):
        with contextlib.suppress(ValueError):  # not filled yet
            found[name] = cell.cell_contents
    return found


def compile_arguments(model_or_fn: Any) -> dict[str, Any]:
    """`mode` and `options` of the `torch.compile` call that made something, as far as given."""
    given = getattr(backend_of(model_or_fn), "kwargs", None)
    return dict(given) if isinstance(given, dict) else {}


def backend_function(model_or_fn: Any) -> Any:
    """The function that compiles graphs for something compiled, or None."""
    backend = backend_of(model_or_fn)
    return getattr(backend, "compiler_fn", backend)


def backend_name(backend: Any) -> str:
    """What a user called a backend: `inductor`, `regional_inductor`, a function's name."""
    name = getattr(backend, "compiler_name", None) or getattr(backend, "__name__", None)
    return str(name or type(backend).__name__)


def compiles_marks(backend: Any) -> bool:
    """Whether a backend is this library's, or made with PyTorch's own regional pass."""
    inner = getattr(backend, "compiler_fn", backend)
    compilers = getattr(inner, "kwargs", None) or {}
    functions = (inner, *(compilers.values() if isinstance(compilers, dict) else ()))
    return any(
        str(getattr(function, "__module__", "")).startswith(
            ("regional_inductor.", "torch.fx.passes.regional_inductor")
        )
        for function in functions
    )


@contextlib.contextmanager
def own_compiles_off(model: Any) -> Iterator[None]:
    """Run modules that were compiled in place (`module.compile()`) as if they weren't."""
    modules = model.modules() if isinstance(model, torch.nn.Module) else ()
    compiled = [m for m in modules if m.__dict__.get("_compiled_call_impl") is not None]
    calls = [module.__dict__.pop("_compiled_call_impl") for module in compiled]
    try:
        yield
    finally:
        for module, call in zip(compiled, calls, strict=True):
            module.__dict__["_compiled_call_impl"] = call


def boxed(function: Callable[..., Any]) -> Callable[[list[Any]], Any]:
    """AOTAutograd's calling convention: one list, emptied so that inputs can be freed early."""

    def run(args: list[Any]) -> Any:
        values = list(args)
        args.clear()
        return function(*values)

    run._boxed_call = True  # type: ignore[attr-defined]
    return run


def compile_with(
    function: Callable[..., Any], backend: Callable[..., Any], dynamic: bool | None
) -> Callable[..., Any]:
    compiled: Callable[..., Any] = torch.compile(function, backend=backend, dynamic=dynamic)
    return compiled
