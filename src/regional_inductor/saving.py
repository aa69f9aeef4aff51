"""`ri.save`: what was compiled so far, as a file that needs neither tracing nor a compiler to load."""

from __future__ import annotations

import contextlib
import inspect
import os
import pickle
import re
import types
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ._torch import calls, precompile
from ._torch.calls import CapturedCall, NotDescribedError
from ._torch.kept_guards import NotKeptError, code_digest
from ._torch.module_hooks import hooks_inside
from .backend import compile_captured
from .block_capture import capture_in_place
from .compilations import Compilation, compilation_of
from .errors import RegionError, SaveError
from .packing import NotPackedError, Packer
from .report import Report, last_report, put_back
from .saved_file import Saved, SavedCall, Source, about, main_file, write


def save(compiled: Callable[..., Any], path: str | os.PathLike[str]) -> None:
    """Save what a compiled function or model was compiled for so far; `load` runs it elsewhere.

    The calls that were captured so far are captured once more, each with arguments like those that it
    had then: forward and backward, with the same symbolic sizes. Regions that are compiled already are
    not compiled again. A call that an earlier one covers is left out. What was compiled stays as it is.

    The file holds executable code, and no parameters: those of a model come from the model that it is
    loaded onto.

    Args:
        compiled: What `compile` returned, called at least once.
        path: The file, which is replaced as a whole.

    Raises:
        SaveError: Nothing has been compiled yet; a graph break; a region, argument or variable that
            can't be put into a file. Nothing is written then.

    Example:
        >>> import os, tempfile, torch, regional_inductor as ri
        >>> def gelu_twice(x):
        ...     return torch.nn.functional.gelu(x) * 2
        >>> compiled = ri.compile(gelu_twice)
        >>> expected = compiled(torch.ones(3))
        >>> path = os.path.join(tempfile.mkdtemp(), "gelu.ri")
        >>> ri.save(compiled, path)
        >>> torch.equal(ri.load(path)(torch.ones(3)), expected)
        True
    """
    compilation = _checked(compiled)
    before = last_report()
    with precompile.globals_given_back(_function(compilation)):
        try:
            with _whole(compilation):
                captures = _captures(compilation)
        finally:
            put_back(before)
        header, parts = _packed(compilation, captures)
    write(Path(path), header, parts)


def _checked(compiled: Callable[..., Any]) -> Compilation:
    compilation = compilation_of(compiled)
    if compilation is None:
        raise SaveError(
            f"a {type(compiled).__name__} that regional_inductor.compile didn't return can't be saved",
            hint="pass what regional_inductor.compile returned",
        )
    reason = precompile.why_not()
    if reason:
        raise SaveError(f"nothing can be saved: {reason}", hint="use a version that was checked")
    reason = precompile.why_not_now()
    if reason:
        raise SaveError(f"nothing can be saved: {reason}", hint="switch it off while saving")
    _check_is_captured_whole(compilation)
    if not compilation.calls and compilation.called and compilation.original._forward_pre_hooks:
        raise SaveError(
            f"{compilation.name} is captured block by block, and has forward pre-hooks, which may change what "
            "it is called with",
            source=compilation.source,
            hint='compile it with capture="model", or save it without them',
        )
    if not compilation.calls:
        raise SaveError(
            "nothing has been compiled yet",
            source=compilation.source,
            hint="call it once with arguments of each kind that the file is to serve, then save it",
        )
    if compilation.settings.cudagraphs == "graph":
        raise SaveError(
            'recordings of cudagraphs="graph" can\'t be saved',
            source=compilation.source,
            hint='compile with cudagraphs="off" for the file',
        )
    function = _function(compilation)
    for call in compilation.calls:
        if call.code is not function.__code__:
            raise _in_pieces(compilation, call)
    return compilation


def _check_is_captured_whole(compilation: Compilation) -> None:
    """Dynamo never starts from a frame of torch's own, such as `Sequential.forward`."""
    home = type(compilation.original).__module__
    is_module = isinstance(compilation.original, torch.nn.Module)
    if is_module and home.startswith("torch.nn.") and _function(compilation).__module__ == home:
        raise SaveError(
            f"torch compiles what is in a {compilation.name}, and not the {compilation.name} as a whole",
            hint="make it an attribute of a module of your own, and compile and save that",
        )


def _function(compilation: Compilation) -> types.FunctionType:
    """The function that Dynamo captures, unbound."""
    function = inspect.unwrap(compilation.function, stop=lambda f: hasattr(f, "__code__"))
    function = getattr(function, "__func__", function)
    if not isinstance(function, types.FunctionType):
        raise SaveError(
            f"a {type(function).__name__} can't be saved",
            hint="compile a function or a torch.nn.Module",
        )
    if not isinstance(compilation.original, torch.nn.Module) and inspect.ismethod(
        compilation.original
    ):
        raise SaveError(
            f"the method {compilation.name} can't be saved: it belongs to an object",
            source=compilation.source,
            hint="compile the module itself, or a function that takes the object as an argument",
        )
    return function


def _in_pieces(compilation: Compilation, call: CapturedCall) -> SaveError:
    code = call.code
    found = re.search(r"torch_dynamo_resume_in_.*_at_(\d+)$", code.co_name)
    line = int(found[1]) if found else code.co_firstlineno
    return SaveError(
        f"a graph break cuts {compilation.name} into pieces, and only whole captures can be saved",
        source=f"{code.co_filename}:{line}",
        hint="fullgraph=True says what breaks; move it out of the function, or save the part without it",
    )


def _whole(compilation: Compilation) -> contextlib.AbstractContextManager[None]:
    """The model as it is without calls in place of its blocks."""
    blocks = None if compilation.called is None else capture_in_place(compilation.original)
    return contextlib.nullcontext() if blocks is None else blocks.lifted()


# --- capturing once more ---------------------------------------------------------------------------


def _captures(compilation: Compilation) -> list[tuple[CapturedCall, precompile.Captured]]:
    captures: list[tuple[CapturedCall, precompile.Captured]] = []
    for call in compilation.calls:
        with_call = _captured(compilation, call, [captured for _, captured in captures])
        if with_call is not None:
            captures.append((call, with_call))
    return captures


def _captured(
    compilation: Compilation, call: CapturedCall, so_far: Iterable[precompile.Captured]
) -> precompile.Captured | None:
    """A call captured once more; None where what was captured so far serves it."""
    settings = replace(compilation.settings, for_file=True)

    def compile_graph(gm: torch.fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        return compile_captured(gm, inputs, settings, Report())

    function = _function(compilation)
    try:
        with call.repeated():
            args, kwargs = calls.bound(function, call.like())
            if any(captured.accepts(args, kwargs) for captured in so_far):
                return None
            given = args[1:] if isinstance(compilation.original, torch.nn.Module) else args
            return precompile.capture(compilation.function, given, kwargs, compile_graph)
    except precompile.NotCapturedError as error:
        raise SaveError(
            f"{compilation.name} can't be captured whole: {error}",
            source=precompile.line_of(error) or compilation.source,
            hint="fullgraph=True shows it at the first call; move it out of what is compiled",
        ) from error
    except NotKeptError as error:
        raise SaveError(
            f"{compilation.name} can't be saved: {error}",
            source=compilation.source,
            hint="make it an argument, or part of the module",
        ) from error
    except NotDescribedError as error:
        raise SaveError(
            f"a call of {compilation.name} can't be repeated: {error}",
            source=compilation.source,
            hint="compile it anew and save it while what it was called with is still there",
        ) from error
    except RegionError:
        raise
    except TypeError as error:
        if "local scope" not in str(error):
            raise _refused(compilation, error) from error
        raise SaveError(
            f"{compilation.name} can't be saved: the class of an object that it uses is defined in a function",
            source=compilation.source,
            hint="define the class at the top level of a module, where another process finds it",
        ) from error
    except Exception as error:
        raise _refused(compilation, error) from error


def _refused(compilation: Compilation, error: Exception) -> SaveError:
    return SaveError(
        f"{compilation.name} can't be captured for a file: {type(error).__name__}: {error}",
        source=compilation.source,
        hint="torch's ahead-of-time path refuses it; the error above this one is torch's",
    )


# --- packing ---------------------------------------------------------------------------------------


def _packed(
    compilation: Compilation, captures: list[tuple[CapturedCall, precompile.Captured]]
) -> tuple[dict[str, Any], dict[str, bytes]]:
    packer = Packer()
    function = _function(compilation)
    is_module = isinstance(compilation.original, torch.nn.Module)
    closed_over = precompile.closed_over(function) if is_module or is_findable(function) else {}
    saved_calls = []
    parts: dict[str, bytes] = {}
    for number, (call, captured) in enumerate(captures):
        for graph in captured.graphs:
            try:
                packer.add(graph.token, graph.module)
            except NotPackedError as error:
                raise SaveError(
                    f"{'the region' if error.call else compilation.name} can't be saved: {error}",
                    region=error.call.name if error.call else "",
                    source=error.call.source if error.call else compilation.source,
                    hint="regional_inductor.eager() keeps code out of regions",
                ) from error
        try:
            parts[f"function {number}"] = captured.to_bytes(closed_over)
        except precompile.NotCapturedError as error:
            raise SaveError(
                f"{compilation.name} can't be saved: {error}",
                source=compilation.source,
                hint="pass what it names as an argument",
            ) from error
        saved_calls.append(
            SavedCall(
                f"function {number}",
                tuple(graph.token for graph in captured.graphs),
                captured.guards,
                call.modes.autocast,
                _looks(call),
                _modes(call),
            )
        )
    owner: Any = function
    if is_module:
        owner = type(compilation.original)
    saved = Saved(
        owner.__module__,
        owner.__qualname__,
        code_digest(function.__code__),
        tuple(_sources({code for _, captured in captures for code in captured.codes})),
        tuple(saved_calls),
        # A loaded model is compiled, if it comes to that, as what was saved: whole.
        _kept({**compilation.arguments, "capture": "model"}),
        main_file(),
        hooks_inside(compilation.original) if is_module else {},
    )
    parts["saved"] = pickle.dumps(saved)
    kind = "module" if is_module else "function"
    header = about(kind, compilation.name, frozenset(captured.device for _, captured in captures))
    header |= {"calls": [call.looks for call in saved_calls], "regions": packer.regions}
    return header, parts | packer.parts


def is_findable(function: Callable[..., Any]) -> bool:
    """Whether another process has a function of this name, if it has its module."""
    return "<locals>" not in function.__qualname__


def _kept(arguments: Any) -> Any:
    """What `compile` was called with, if it can be pickled."""
    try:
        pickle.dumps(arguments)
    except Exception:  # noqa: BLE001 - anything may be among a user's rules
        return None
    return arguments


def _sources(codes: Iterable[types.CodeType]) -> Iterable[Source]:
    for code in sorted(codes, key=lambda c: (c.co_filename, c.co_firstlineno, c.co_name)):
        module = inspect.getmodule(code)
        if module is None or module.__name__.partition(".")[0] in ("torch", "regional_inductor"):
            continue
        try:
            text = inspect.getsource(code)
        except (OSError, TypeError):
            text = ""
        yield Source(module.__name__, code.co_name, code.co_firstlineno, text)


def _modes(call: CapturedCall) -> str:
    """What torch's guard of its global state compares, in a few words."""
    parts = ["gradients on" if call.modes.grad else "gradients off"]
    parts += [f"autocast to {dtype} on {kind}" for kind, dtype in call.modes.autocast]
    return ", ".join([*parts, f"torch.get_num_threads() {torch.get_num_threads()}"])


def _looks(call: CapturedCall) -> str:
    """The arguments of a call in a few words: ``x: float32[4, 8]``."""

    def text(value: Any) -> str:
        if isinstance(value, calls.TensorLike):
            sizes = ("?" if d in value.dynamic else str(n) for d, n in enumerate(value.size))
            return f"{str(value.dtype).removeprefix('torch.')}[{', '.join(sizes)}]"
        if isinstance(value, calls.Held):
            return value.kind
        if isinstance(value, (tuple, list)):
            return f"({', '.join(map(text, value))})"
        if isinstance(value, dict):
            return f"{{{', '.join(f'{k}: {text(v)}' for k, v in value.items())}}}"
        return repr(value)

    return ", ".join(f"{name}: {text(value)}" for name, value in call.arguments.items())
