"""`ri.load`: a saved function or model, run without tracing and without a compiler."""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import inspect
import os
import sys
import threading
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch

from ._torch import precompile
from ._torch.calls import Modes
from ._torch.kept_guards import Checks, code_digest
from ._torch.module_hooks import has_hooks, hooks_inside
from ._torch.stitched_code import StitchedCode
from .errors import LoadError, RegionError, UnsavedCallError
from .garbage import paused_collection
from .packing import Unpacker
from .saved_file import Saved, SavedCall, SavedFile, main_file, read


def load(
    path: str | os.PathLike[str],
    model: torch.nn.Module | None = None,
    *,
    otherwise: Literal["raise", "compile"] = "raise",
) -> Any:
    """Load what `save` wrote: no tracing, no compiler, no cache folder.

    **The file is executable code**, as a pickle is: load only what comes from where you would run a
    program from. What can be checked is checked before anything in it is executed: that it is whole, and
    made for this torch, Python, CPU and GPU. With a secret in the environment (docs/security.md) it must
    be sealed with it.

    Guards are checked at each call, as `torch.compile` does.

    Args:
        path: The file.
        model: For a saved model: an instance of the same class and structure, whose parameters and
            buffers are used. It is changed in place, as by `compile`; its state_dict keys are not.
        otherwise: What a call does that nothing in the file was compiled for: raise, or compile it as
            `compile` would have, with the arguments that it had.

    Returns:
        The function, or `model` itself.

    Raises:
        OSError: The file can't be read.
        LoadError: It is damaged or no such file; it was made for another torch, Python, CPU or GPU; the
            model is of another class; code that was compiled has changed since.

    A call of what is returned raises `UnsavedCallError` if no saved call is like it.

    Example:
        >>> import os, tempfile, torch, regional_inductor as ri
        >>> def gelu_twice(x):
        ...     return torch.nn.functional.gelu(x) * 2
        >>> compiled = ri.compile(gelu_twice)
        >>> expected = compiled(torch.ones(3))
        >>> path = os.path.join(tempfile.mkdtemp(), "gelu.ri")
        >>> compiled.save(path)
        >>> torch.equal(ri.load(path)(torch.ones(3)), expected)
        True
    """
    if otherwise not in ("raise", "compile"):
        raise LoadError(
            f"otherwise={otherwise!r} is not a choice", hint="one of 'raise', 'compile'"
        )
    reason = precompile.why_not()
    if reason:
        raise LoadError(f"nothing can be loaded: {reason}", hint="use a version that was checked")
    file = read(Path(path))
    name = str(file.about["name"])
    _check_kind(file, model, name)
    try:
        with paused_collection():
            saved = file.saved()
            function = _function_for(saved, model)
            _check_code(saved, function, name, is_module=model is not None)
            if model is not None:
                _check_hooks(saved, model, name)
            loaded = _Loaded(saved, file, function, model, otherwise)
    except RegionError:
        raise
    except Exception as error:
        raise LoadError(
            f"{name} can't be loaded from {path}: {type(error).__name__}: {error}",
            hint="the process needs the classes and modules that the function uses; save it again if "
            "they have changed",
        ) from error
    if model is None:
        result = _untraced(loaded.call)
        if function is not None:
            return functools.update_wrapper(result, function)
        result.__name__ = result.__qualname__ = name
        return result
    model._compiled_call_impl = _untraced(_WithHooks(model, loaded.call).call)
    return model


def _untraced(call: Callable[..., Any]) -> Callable[..., Any]:
    """A call that Dynamo leaves alone where something around it is compiled."""
    disabled: Callable[..., Any] = torch.compiler.disable(call)  # type: ignore[no-untyped-call]
    return disabled


def _check_kind(file: SavedFile, model: Any, name: str) -> None:
    if file.is_module and not isinstance(model, torch.nn.Module):
        raise LoadError(
            f"the file holds the model {name}, and none was given to load it onto",
            hint="regional_inductor.load(path, model), with an instance that has the parameters",
        )
    if not file.is_module and model is not None:
        raise LoadError(f"the file holds the function {name}, and not a model", hint="load(path)")


def _function_for(saved: Saved, model: torch.nn.Module | None) -> types.FunctionType | None:
    """The function or `forward` as this process has it; None where it has none of that name."""
    if model is not None:
        kind = type(model)
        if (kind.__module__, kind.__qualname__) != (saved.module, saved.name):
            raise LoadError(
                f"the file holds a {saved.module}.{saved.name}, and the model given is a "
                f"{kind.__module__}.{kind.__qualname__}",
                hint="give an instance of the class that was saved",
            )
        forward = inspect.unwrap(model.forward, stop=lambda f: hasattr(f, "__code__"))
        function = getattr(forward, "__func__", forward)
        if not isinstance(function, types.FunctionType):
            raise LoadError(
                f"the model's forward is a {type(function).__qualname__}",
                hint="give it as it was saved",
            )
        return function
    if saved.module == "__main__" and saved.main != main_file():
        return None
    try:
        found: Any = importlib.import_module(saved.module)
        for part in saved.name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError):
        return None
    # A decorator may have put something in its place: the function is what was written.
    found = getattr(found, "_torchdynamo_orig_callable", found)
    return found if isinstance(found, types.FunctionType) else None


def _check_code(
    saved: Saved, function: types.FunctionType | None, name: str, *, is_module: bool
) -> None:
    """That code which was compiled is still what it was."""
    again = "save it again, from the code as it is now"
    if function is not None and code_digest(function.__code__) != saved.code:
        what = f"{name}.forward" if is_module else name
        raise LoadError(f"the code of {what} has changed since it was saved", hint=again)
    elsewhere = saved.main != main_file()
    for source in saved.sources:
        if not source.text or (source.module == "__main__" and elsewhere and not is_module):
            continue
        if source.text not in _text_of(source.module):
            raise LoadError(
                f"the code of {source.module}.{source.name}, which was compiled into {name}, has "
                "changed since it was saved",
                source=f"{source.module}:{source.line}",
                hint=again,
            )


def _check_hooks(saved: Saved, model: torch.nn.Module, name: str) -> None:
    """That the modules in the model have the hooks that were captured with them."""
    now = hooks_inside(model)
    for path in sorted({*saved.hooks, *now}):
        wanted, found = saved.hooks.get(path, ()), now.get(path, ())
        if wanted != found:
            raise LoadError(
                f"{name}.{path} has {', '.join(found) or 'no hooks'}, and had "
                f"{', '.join(wanted) or 'none'} when it was saved",
                hint="hooks of modules in the model are compiled with it: give it those that it had, or save "
                "it with these",
            )


@functools.cache
def _text_of(module: str) -> str:
    """The source of a module, imported or not."""
    file = getattr(sys.modules.get(module), "__file__", None)
    if file is None:
        with contextlib.suppress(ImportError, ValueError):
            found = importlib.util.find_spec(module)
            file = found.origin if found is not None else None
    if file is None:
        return ""
    try:
        return Path(file).read_text()
    except (OSError, UnicodeDecodeError):
        return ""


class _Loaded:
    """The saved calls of one function, and which of them serves a call."""

    def __init__(
        self,
        saved: Saved,
        file: SavedFile,
        function: types.FunctionType | None,
        model: torch.nn.Module | None,
        otherwise: str,
    ) -> None:
        self._saved = saved
        self._name = str(file.about["name"])
        self._function = function
        self._model = model
        self._otherwise = otherwise
        self._compiled: Callable[..., Any] | None = None
        variables = _globals_of(function)
        closed_over = precompile.closed_over(function) if function is not None else {}
        unpacker = Unpacker(file.parts)
        self._calls = [
            _LoadedCall(call, file.parts, unpacker, variables, closed_over) for call in saved.calls
        ]
        self._bind = _binder(self._calls[0].signature)

    def call(self, *args: Any, **kwargs: Any) -> Any:
        bound = self._bind(*args, **kwargs)
        for one in self._calls:
            if one.serves(bound):
                return one.run(*args, **kwargs)
        if self._otherwise == "compile":
            return self._compile()(*args, **kwargs)
        raise self._unsaved(bound)

    def _unsaved(self, bound: dict[str, Any]) -> UnsavedCallError:
        lines = []
        for call, one in zip(self._saved.calls, self._calls, strict=True):
            why = one.why_not(bound)
            then = f" ({call.modes} then)" if why.startswith("GLOBAL_STATE") else ""
            lines.append(f"\n    {call.looks}: {why}{then}")
        return UnsavedCallError(
            f"no saved call of {self._name} is like this one; saved are{''.join(lines)}",
            hint='call it like this before saving, or load it with otherwise="compile"',
        )

    def _compile(self) -> Callable[..., Any]:
        if self._compiled is None:
            arguments = self._saved.compile_arguments
            function = self._function
            if arguments is None or function is None:
                raise UnsavedCallError(
                    f"no saved call of {self._name} is like this one, and it can't be compiled here: "
                    + (
                        "this process has no such function"
                        if function is None
                        else "its rules are not in the file"
                    ),
                    hint="call it like this before saving",
                )
            from .compiling import compile as compile_function  # the compiler's side of the package

            self._compiled = compile_function(function, **arguments)
        return self._compiled


class _LoadedCall:
    def __init__(
        self,
        call: SavedCall,
        parts: Mapping[str, bytes],
        unpacker: Unpacker,
        variables: dict[str, Any],
        closed_over: Mapping[str, Any],
    ) -> None:
        # Held until torch's bytes, which name them, are read.
        graphs = [StitchedCode(unpacker.graph(token), token=token) for token in call.graphs]
        modes = Modes(torch.is_grad_enabled(), torch.is_inference_mode_enabled(), call.autocast)
        with modes.entered():  # AOTAutograd switches autocast off in what was captured under it
            self._function = precompile.LoadedFunction(parts[call.function], variables, closed_over)
        del graphs
        self.run = self._function.run
        self.signature = self._function.signature
        imported = {
            alias: importlib.import_module(module)
            for alias, module in self._function.import_sources.items()
        }
        self._outside = _Outside(variables, imported)
        self._local = Checks(call.guards.local)
        self._globals = Checks(call.guards.outside)
        failing = Checks(call.guards.settled).failing({}, self._outside)
        failing = failing or self._globals.failing({}, self._outside)
        if failing:
            raise LoadError(
                f"what was compiled depends on what is not so here: {failing}",
                hint="save it again, in a process where it is as it is to be",
            )

    def serves(self, bound: dict[str, Any]) -> bool:
        variables = self._function.variables(bound)
        return self._function.accepts(variables) and not self._failing(variables)

    def why_not(self, bound: dict[str, Any]) -> str:
        variables = self._function.variables(bound)
        try:
            if not self._function.accepts(variables):
                return self._function.why_not(variables)
        except Exception as error:  # noqa: BLE001 - whatever a guard makes of other arguments
            return f"{type(error).__name__}: {error}"
        return self._failing(variables)

    def _failing(self, variables: dict[str, Any]) -> str:
        return self._local.failing(variables, self._outside) or self._globals.failing(
            variables, self._outside
        )


class _Outside(dict[str, Any]):
    """Global variables as guards name them: those of the module as they are now, and aliases."""

    def __init__(self, variables: Mapping[str, Any], imported: Mapping[str, Any]) -> None:
        super().__init__(imported)
        self._variables = variables

    def __missing__(self, name: str) -> Any:
        if name.startswith("__builtins_dict__"):
            found = self._variables.get("__builtins__", __builtins__)
            return found if isinstance(found, dict) else vars(found)
        return self._variables[name]


def _globals_of(function: types.FunctionType | None) -> dict[str, Any]:
    if function is not None:
        return function.__globals__
    return {}


def _binder(signature: inspect.Signature) -> Callable[..., dict[str, Any]]:
    """A function that gives a call's arguments by name: Python's own binding, many times faster."""
    names = {
        f"default_{parameter.name}": parameter.default
        for parameter in signature.parameters.values()
        if parameter.default is not parameter.empty
    }
    text = ", ".join(_parameters(signature))
    exec(f"def bind({text}):\n    return locals()", names)
    bind: Callable[..., dict[str, Any]] = names["bind"]
    return bind


def _parameters(signature: inspect.Signature) -> list[str]:
    """Parameters as they are written, with defaults by name."""
    texts = []
    before: Any = None
    for parameter in signature.parameters.values():
        kind = parameter.kind
        if before is parameter.POSITIONAL_ONLY and kind is not before:
            texts.append("/")
        if kind is parameter.KEYWORD_ONLY and before not in (kind, parameter.VAR_POSITIONAL):
            texts.append("*")
        stars = {"VAR_POSITIONAL": "*", "VAR_KEYWORD": "**"}.get(kind.name, "")
        default = "" if parameter.default is parameter.empty else f"=default_{parameter.name}"
        texts.append(f"{stars}{parameter.name}{default}")
        before = kind
    if before is inspect.Parameter.POSITIONAL_ONLY:
        texts.append("/")
    return texts


class _WithHooks:
    """Calls a loaded `forward` as `torch.nn.Module` would: the model's own hooks run around it."""

    def __init__(self, model: torch.nn.Module, call: Callable[..., Any]) -> None:
        self._model = model
        self._forward = functools.partial(call, model)
        self._lock = threading.RLock()

    def call(self, *args: Any, **kwargs: Any) -> Any:
        if not has_hooks(self._model):
            return self._forward(*args, **kwargs)
        variables = vars(self._model)
        with self._lock:
            before = variables.get("forward")
            variables["forward"] = self._forward
            try:
                return self._model._call_impl(*args, **kwargs)  # type: ignore[no-untyped-call]
            finally:
                if before is None:
                    del variables["forward"]
                else:
                    variables["forward"] = before
