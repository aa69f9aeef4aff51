"""Guards of a capture that torch doesn't save: on the identity of objects, and on global variables.

Torch's ahead-of-time path leaves them out, and then calls what was compiled for one activation function,
or one value of a global, with another. Here what they are about is described by name and value, and
compared with what is found in the process that loads.

Checked on torch 2.11 and 2.13: `GuardFilterEntry`, names of guard types, Dynamo's source expressions
(``L['self'].act``, ``G['EPS']``, ``G['__import_torch_dot_nn']``).
"""

from __future__ import annotations

import contextlib
import enum
import functools
import hashlib
import re
import sys
import sysconfig
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from . import targets

Description = tuple[Any, ...]
"""What an object is, by plain values that mean the same in another process."""

_ABOUT_THE_OBJECT = frozenset(
    {
        "BUILTIN_MATCH",
        "CLASS_MATCH",
        "CLOSURE_MATCH",
        "CONSTANT_MATCH",
        "EQUALS_MATCH",
        "BOOL_MATCH",
        "NONE_MATCH",
        "FUNCTION_MATCH",
        "ID_MATCH",
        "MODULE_MATCH",
        "NN_MODULE",
        "WEAKREF_ALIVE",
    }
)
# How a value is looked at, by the type of guard.
_VIEW_OF = {
    "TYPE_MATCH": "type",
    "NOT_NONE_MATCH": "type",
    "SEQUENCE_LENGTH": "length",
    "EMPTY_NN_MODULE_HOOKS_DICT": "length",
    "MAPPING_KEYS_CHECK": "keys",
    "DICT_KEYS_MATCH": "keys",
    "DICT_CONTAINS": "contains",
    "DICT_NOT_CONTAINS": "contains",
    "SET_CONTAINS": "contains",
    "SET_NOT_CONTAINS": "contains",
    "HASATTR": "attribute",
    "NOT_PRESENT_IN_GENERIC_DICT": "own attribute",
}
_ALREADY_SURE = frozenset({"DUPLICATE_INPUT", "DICT_VERSION"})
_UNKNOWN: Description = ("unknown",)


class NotKeptError(Exception):
    """Why a guard can't be checked in another process; `name` is Dynamo's expression."""

    def __init__(self, name: str, what: str) -> None:
        super().__init__(what)
        self.name = name


@dataclass(frozen=True)
class Kept:
    """One guard: where its object is found, how it is looked at, and what has to be seen.

    `about` is the key or name that is looked for, in views that look for one.
    """

    name: str
    view: str
    description: Description
    about: Any = None


@dataclass(frozen=True)
class KeptGuards:
    """The guards of one capture that torch doesn't save.

    Attributes:
        local: About arguments: checked at each call.
        outside: About global variables of the user's modules: checked at each call as well.
        settled: About what belongs to libraries: checked once, when loaded.
    """

    local: tuple[Kept, ...] = ()
    outside: tuple[Kept, ...] = ()
    settled: tuple[Kept, ...] = ()


class Collector:
    """Collects what torch leaves out while it builds the guards of one capture.

    Args:
        scope: What ``L`` and ``G`` were in the capture.
        closed_over: Names of the variables that the function closes over.
    """

    def __init__(
        self, scope: Mapping[str, Mapping[str, Any]], closed_over: Sequence[str] = ()
    ) -> None:
        self._scope = scope
        # Of functions and classes torch saves nothing that a guard on a part of them could be checked with.
        names = "|".join(map(re.escape, closed_over)) or "(?!)"
        self._through = re.compile(
            rf"\bL\['({names})'\]|\.__(defaults|kwdefaults|closure|code|mro|dict)__"
        )
        self._left_out: dict[tuple[str, str], Any] = {}

    def keep_what_torch_saves(self, entries: Sequence[Any]) -> Sequence[bool]:
        """For torch: which guards it shall save."""
        from torch._dynamo.guards import CheckFunctionManager

        from .slim_state import is_never_built

        unsaved = set(CheckFunctionManager.UNSUPPORTED_SERIALIZATION_GUARD_TYPES)
        kept = []
        for entry in entries:
            if is_never_built(entry.guard_type):
                kept.append(False)
                continue
            name = _expression(entry.orig_guard)
            kinds = {entry.guard_type, *entry.derived_guard_types}
            ours = entry.guard_type in _VIEW_OF or bool(kinds & (_ABOUT_THE_OBJECT - unsaved))
            saved = (
                not entry.is_global
                and not kinds & unsaved
                and not (ours and self._through.search(name))
                and unmarked(entry.value) is entry.value
                and not _is_about_a_mark(entry.orig_guard.originating_source, self._scope)
            )
            kept.append(saved)
            if not saved:
                self._left_out[name, entry.guard_type] = entry
        return kept

    def kept(
        self,
        imports: Mapping[str, str],
        variables: Mapping[str, Any],
    ) -> KeptGuards:
        """The guards that torch left out, described.

        Args:
            imports: Modules by the alias that Dynamo gave them.
            variables: Globals of the function's module.

        Raises:
            NotKeptError: One is about an object that means nothing elsewhere.
        """
        sorted_out: dict[str, list[Kept]] = {"local": [], "outside": [], "settled": []}
        for (name, kind), entry in self._left_out.items():
            if _is_about_a_mark(entry.orig_guard.originating_source, self._scope):
                continue
            where = _where(name, imports, variables)
            root = _ROOT.search(name)
            home = _home_of(root[1], imports, variables) if root else ""
            guard = _described(name, kind, entry, home)
            if guard is not None:
                sorted_out[where].append(guard)
        return KeptGuards(**{where: tuple(found) for where, found in sorted_out.items()})


def _expression(guard: Any) -> str:
    source = guard.originating_source
    name = source.name
    return str(name() if callable(name) else name)


def _is_about_a_mark(source: Any, scope: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether a guard looks into a wrapper of this package: marks change no result."""
    source = getattr(source, "base", None)
    while source is not None:
        name = source.name
        with contextlib.suppress(Exception):
            value = eval(str(name() if callable(name) else name), _helpers(), dict(scope))
            if unmarked(value) is not value:
                return True
        source = getattr(source, "base", None)
    return False


def unmarked(value: Any) -> Any:
    """A marked function or method as it was before it was marked."""
    if isinstance(value, types.MethodType):
        inner = unmarked(value.__func__)
        if inner is value.__func__:
            return value
        return (
            inner
            if isinstance(inner, types.MethodType)
            else types.MethodType(inner, value.__self__)
        )
    while (
        isinstance(value, types.FunctionType)
        and value.__code__.co_filename.startswith(_PACKAGE)
        and hasattr(value, "__wrapped__")
    ):
        value = value.__wrapped__
    return value


_PACKAGE = str(Path(__file__).parent.parent)

_ROOT = re.compile(r"\bG\['([^']+)'\]")  # `x` of ``type(G['x']).y[0]``


def _where(name: str, imports: Mapping[str, str], variables: Mapping[str, Any]) -> str:
    root = _ROOT.search(name)
    if root is None:
        return "local"
    return "outside" if _is_the_users(_home_of(root[1], imports, variables)) else "settled"


def _home_of(root: str, imports: Mapping[str, str], variables: Mapping[str, Any]) -> str:
    """The module that a global variable is, or belongs to."""
    if root in imports:
        return imports[root]
    if root.startswith("__builtins_dict__"):
        return "builtins"
    value = variables.get(root)
    if isinstance(value, types.ModuleType):
        return value.__name__
    if isinstance(value, (type, *_FUNCTIONS)):
        return str(value.__module__)
    return str(variables.get("__name__", ""))


def _is_ours(module: str) -> bool:
    """Torch and this package: the same build is asked for anyway."""
    return module.partition(".")[0] in ("torch", "regional_inductor", "builtins")


def _is_the_users(module: str) -> bool:
    """Whether a module is neither part of Python nor an installed package, and so may change in a run."""
    if _is_ours(module) or module.partition(".")[0] in sys.stdlib_module_names:
        return module == "__main__"
    file = str(getattr(sys.modules.get(module), "__file__", None) or "")
    return not file.startswith(_INSTALLED)


_INSTALLED = tuple(sysconfig.get_paths()[name] for name in ("purelib", "platlib"))


def _described(name: str, kind: str, entry: Any, home: str) -> Kept | None:
    """The guard, or None where there is nothing left to check."""
    if kind in _ALREADY_SURE or not name:
        return None
    value = entry.value
    if kind in _VIEW_OF:
        view = _VIEW_OF[kind]
        given = getattr(entry.orig_guard.create_fn, "keywords", {})
        about = given.get("key", given.get("attr"))
        if about is not None and describe(about) == _UNKNOWN:
            raise NotKeptError(name, f"it depends on whether {name} has {about!r}")
        return Kept(name, view, _VIEWS[view](value, about), about)
    if kind in _ABOUT_THE_OBJECT or {"ID_MATCH", "EQUALS_MATCH"} & set(entry.derived_guard_types):
        if _is_ours(home) and isinstance(value, (type, *_FUNCTIONS, types.ModuleType)):
            return None  # code of this very build
        description = describe(value)
        if description != _UNKNOWN:
            return Kept(name, "object", description)
        if isinstance(value, torch.nn.Module):
            return Kept(name, "type", _of_class(type(value)))
        raise NotKeptError(name, f"it depends on which {type(value).__qualname__} {name} is")
    if _is_ours(home):
        return None
    if isinstance(value, torch.Tensor):
        raise NotKeptError(name, f"it reads the tensor {name}, which is no argument of it")
    raise NotKeptError(name, f"it depends on {name} in a way that can't be checked later ({kind})")


_FUNCTIONS = (
    types.FunctionType,
    types.BuiltinFunctionType,
    types.MethodDescriptorType,
    types.WrapperDescriptorType,
    types.MethodWrapperType,
)
_CONSTANTS = (
    bool,
    int,
    float,
    complex,
    str,
    bytes,
    torch.dtype,
    torch.device,
    torch.layout,
    torch.memory_format,
    type(None),
    type(Ellipsis),
    type(NotImplemented),
    slice,
    range,
)


def describe(value: Any) -> Description:
    """What an object is, by name and value; `("unknown",)` where that says too little.

    Marks don't count.
    """
    value = unmarked(value)
    if isinstance(value, enum.Enum):
        return ("enum", *_of_class(type(value)), value.name)
    if isinstance(value, _CONSTANTS):
        return ("constant", type(value).__qualname__, repr(value))
    if isinstance(value, (tuple, list, frozenset)):
        items = value if not isinstance(value, frozenset) else sorted(value, key=repr)
        described = tuple(describe(item) for item in items)
        return _UNKNOWN if _UNKNOWN in described else ("items", type(value).__qualname__, described)
    if isinstance(value, types.ModuleType):
        return ("module", value.__name__)
    if isinstance(value, type):
        return ("class", *_of_class(value))
    if targets.is_operator(value):
        return ("operator", str(value))
    if isinstance(value, types.FunctionType):
        return _of_function(value)
    if isinstance(value, types.CodeType):
        return ("code", value.co_name, code_digest(value))
    if isinstance(value, (staticmethod, classmethod)):
        return (type(value).__name__, describe(value.__func__))
    if isinstance(value, property):
        return ("property", describe(value.fget), describe(value.fset))
    if isinstance(value, types.MethodType):
        return ("method", describe(value.__func__), _of_class(type(value.__self__)))
    if isinstance(value, _FUNCTIONS):
        owner = getattr(value, "__objclass__", None) or getattr(value, "__self__", None)
        home = getattr(owner, "__qualname__", None) or getattr(
            owner, "__name__", type(owner).__qualname__
        )
        return ("builtin", str(home), value.__name__)
    if isinstance(value, functools.partial):
        parts = (value.func, tuple(value.args), tuple(sorted(value.keywords.items())))
        described = tuple(describe(part) for part in parts)
        return _UNKNOWN if _UNKNOWN in described else ("partial", *described)
    return _UNKNOWN


def _of_class(kind: type) -> Description:
    return kind.__module__, kind.__qualname__


def _of_function(function: types.FunctionType) -> Description:
    inner = function.__closure__ or ()
    cells = []
    for cell in inner:
        try:
            cells.append(_shallow(cell.cell_contents))
        except ValueError:
            cells.append(("empty",))
    defaults = (function.__defaults__ or (), tuple(sorted((function.__kwdefaults__ or {}).items())))
    return (
        "function",
        function.__module__,
        function.__qualname__,
        code_digest(function.__code__),
        _shallow(defaults),
        tuple(cells),
    )


def _shallow(value: Any) -> Description:
    """A value next to a function: the name of its class where it is nothing that can be described."""
    value = unmarked(value)
    if isinstance(value, types.FunctionType):
        return "function", value.__module__, value.__qualname__, code_digest(value.__code__)
    described = describe(value)
    return ("instance", *_of_class(type(value))) if described == _UNKNOWN else described


def code_digest(code: types.CodeType) -> str:
    """What a function does, whatever file and line it stands in."""
    digest = hashlib.sha256()

    def add(code: types.CodeType) -> None:
        digest.update(code.co_code)
        digest.update(repr((code.co_names, code.co_varnames, code.co_freevars)).encode())
        for constant in code.co_consts:
            if isinstance(constant, types.CodeType):
                add(constant)
            elif isinstance(constant, frozenset):
                digest.update(repr(sorted(constant, key=repr)).encode())
            else:
                digest.update(repr(constant).encode())

    add(code)
    return digest.hexdigest()


# --- checking --------------------------------------------------------------------------------------

_VIEWS: Mapping[str, Callable[[Any, Any], Description]] = {
    "object": lambda value, about: describe(value),
    "type": lambda value, about: _of_class(type(value)),
    "length": lambda value, about: (len(value),),
    "keys": lambda value, about: tuple(describe(key) for key in value),
    "contains": lambda value, about: (about in value,),
    "attribute": lambda value, about: (hasattr(value, about),),
    "own attribute": lambda value, about: (about in getattr(value, "__dict__", {}),),
}


class Checks:
    """Guards ready to be checked.

    Args:
        guards: What to check.
    """

    def __init__(self, guards: Iterable[Kept]) -> None:
        self._guards = [(guard, eval(f"lambda L, G: {guard.name}", _helpers())) for guard in guards]
        self._same: dict[
            int, Any
        ] = {}  # what was found right: most are the same object at each call

    def failing(self, local: Mapping[str, Any], outside: Mapping[str, Any]) -> str:
        """The first guard that doesn't hold, in words, or ``""``."""
        for index, (guard, find) in enumerate(self._guards):
            try:
                value = find(local, outside)
            except Exception as error:  # noqa: BLE001 - what isn't there isn't what it was
                return f"{guard.name} is not there ({type(error).__name__})"
            if guard.view == "object" and index in self._same and value is self._same[index]:
                continue
            if _VIEWS[guard.view](value, guard.about) != guard.description:
                return f"{guard.name} is {_short(value)}, and was {_was(guard)}"
            if guard.view == "object" and not isinstance(value, (tuple, list)):
                self._same[index] = value
        return ""


@functools.cache
def _helpers() -> dict[str, Any]:
    """What Dynamo's expressions may call, besides Python's own functions."""
    from torch._dynamo import guards

    return dict(guards._get_closure_vars())


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _was(guard: Kept) -> str:
    match guard.description:
        case ("constant", _, text):
            return str(text)
        case (("function" | "class" | "method" | "module" | "builtin") as kind, *names):
            return f"the {kind} {'.'.join(str(n) for n in names[:2])}"
        case (seen,):
            return f"looked at for {guard.about or guard.view} then: {seen}"
    return f"a {'.'.join(str(part) for part in guard.description[:2])}"
