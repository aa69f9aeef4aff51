"""A region's mark as data: parsed, checked, and comparable.

What lands in a graph is a plain value, ``node.meta["custom"]["compile_with_inductor"]``: PyTorch's
tracers copy it, its exporter writes it as JSON.  :func:`parse_mark` turns such a value into a
:class:`Mark`, and says at once what is wrong with it.
"""

from __future__ import annotations

import collections.abc
import difflib
import enum
import math
import types
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, TypeGuard, Union, get_args, get_origin

import torch

from ._torch import config as inductor_config
from .errors import MarkError, OptionError, did_you_mean, warn

__all__ = ["MARK_KEY", "Mark", "check_options", "mode_options", "near_miss_keys", "parse_mark"]

MARK_KEY = "compile_with_inductor"
"""The key of a mark in ``node.meta["custom"]``, the same as for PyTorch's own pass."""

Numerics = Literal["default", "eager"]
Collectives = Literal["exclude", "include"]

_KNOWN_KEYS = (
    "inductor_configs",
    "inductor_region",
    "name",
    "numerics",
    "compile_timeout",
    "collectives",
    "scope",
    "entry",
    "eager",
    "source",
)
# What users reach for: our own argument names, and near words that difflib wouldn't connect.
_MEANT = {
    "options": "inductor_configs",
    "config": "inductor_configs",
    "configs": "inductor_configs",
    "config_patches": "inductor_configs",
    "inductor_options": "inductor_configs",
    "id": "inductor_region",
    "region": "inductor_region",
    "timeout": "compile_timeout",
}
_CONSTANTS = (
    *(bool, int, float, complex, str, bytes, frozenset, set),
    *(types.FunctionType, types.BuiltinFunctionType, type, enum.Enum, torch.dtype, torch.device),
)
_CARRIED = "_regional_inductor_value"
_CARRIERS: dict[int, type] = {}  # by id of what they carry, which they keep alive
_ALREADY_WARNED: set[str] = set()  # one warning for each mistake and process, not one for each node


@dataclass(frozen=True, eq=False)
class Mark:
    """What one mark asks for.

    Attributes:
        options: Inductor's options as pairs sorted by key, so ``dict(mark.options)`` gives them.
        id: Joins what lies apart; ``None`` when there is none.
        name: A label for reports.  It never joins regions.
        numerics: ``"eager"`` for bit-equal results, ``"default"``, or ``None`` for the backend's.
        compile_timeout: Seconds, or ``None`` for no limit.
        collectives: Whether collectives may be compiled, or ``None`` for the backend's choice.
        scope: Which kind of scope the mark came from, ``"module:MLP"`` or ``"code:rope"``.
        entry: A number of one entry of that scope; nodes that share it were written as one region.
        eager: Whether this is the opposite mark, ``ri.eager``, which keeps code out of regions.
        source: Where the user wrote it, ``file:line``.

    Two marks are equal if they agree in everything but `source`.  Nodes may share a region only if
    their :attr:`join_key` is the same.
    """

    options: tuple[tuple[str, Any], ...] = ()
    id: Hashable = None
    name: str | None = None
    numerics: Numerics | None = None
    compile_timeout: float | None = None
    collectives: Collectives | None = None
    scope: str | None = None
    entry: int | None = None
    eager: bool = False
    source: str = ""

    @cached_property
    def options_key(self) -> tuple[Hashable, ...]:
        """What two marks must agree in for "the same options": all that changes the compiled code."""
        return (
            freeze(dict(self.options)),
            self.numerics,
            self.compile_timeout,
            self.collectives,
            self.eager,
        )

    @cached_property
    def join_key(self) -> tuple[Hashable, ...]:
        """What must be equal to share a region: the options and the id, not name, scope or entry."""
        return (*self.options_key, _typed(self.id))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Mark) and self._identity() == other._identity()

    def __hash__(self) -> int:
        return hash(self._identity())

    def _identity(self) -> tuple[Hashable, ...]:
        return (self.join_key, self.name, self.scope, self.entry)


def parse_mark(value: Any, *, source: str = "", import_inductor: bool = False) -> Mark:
    """Read the value of a mark, and check it.

    Args:
        value: What was found under ``"compile_with_inductor"``.  Anything marks: a dict with the
            keys of this package or of PyTorch's pass, and also ``0``, a string, ``None`` or
            ``False`` (these last two give one warning, since they look like "don't").
        source: ``file:line`` of the marked code, for messages.  A mark that knows where it was
            written itself prefers that.
        import_inductor: Check the options even if that means importing Inductor's config.  If
            false, they are only checked when it is imported already.

    Returns:
        The mark; its ``eager`` is true for ``ri.eager``.

    Raises:
        OptionError: An option that Inductor doesn't have, or a value of the wrong type.
        MarkError: A name that is no string, or an id that can't be hashed.

    Example:
        >>> from regional_inductor.options import parse_mark
        >>> parse_mark({"name": "mlp", "inductor_configs": {"max_autotune": True}}).options
        (('max_autotune', True),)
    """
    if not isinstance(value, Mapping):
        if value is None or value is False:
            _warn_once(
                f"{MARK_KEY}: {value} marks code for compilation, like any other value",
                source=source,
                hint="leave the mark out, or use regional_inductor.eager() to keep code out of regions",
            )
        return Mark(source=source)

    name = value.get("name")
    source = str(value.get("source") or source)
    if name is not None and not isinstance(name, str):
        raise MarkError(
            f"the name of a region must be a string, not {_shown(name)}",
            source=source,
            hint='for example name="mlp"; to join what lies apart, use id=',
        )
    region = name or ""
    _warn_of_unknown_keys(value, region, source)
    options = _read_options(value.get("inductor_configs", {}), region, source)
    if options and (import_inductor or inductor_config.inductor_is_imported()):
        check_options(options, region=region, source=source)
    return Mark(
        options=tuple(sorted(options.items())),
        id=_read_id(value.get("inductor_region"), region, source),
        name=name,
        numerics=_read_choice("numerics", value, ("default", "eager"), region, source),
        compile_timeout=_read_timeout(value.get("compile_timeout"), region, source),
        collectives=_read_choice("collectives", value, ("exclude", "include"), region, source),
        scope=value.get("scope"),
        entry=value.get("entry"),
        eager=bool(value.get("eager")),
        source=source,
    )


def check_options(options: Mapping[str, Any], *, region: str = "", source: str = "") -> None:
    """Check option names and value types against Inductor's config, which this imports.

    Raises:
        OptionError: The first option that doesn't exist or whose value has the wrong type.

    Example:
        >>> from regional_inductor.options import check_options
        >>> check_options({"max_autotune": True, "triton.cudagraphs": False})
    """
    known = inductor_config.option_types()
    for key, option in options.items():
        if key not in known:
            raise OptionError(
                f"unknown Inductor option {key!r}",
                region=region,
                source=source,
                hint=_option_hint(key, known),
            )
        if not _fits(option, known[key]):
            raise OptionError(
                f"Inductor option {key!r} takes {_spelled(known[key])}, not {_shown(option)}",
                region=region,
                source=source,
                hint=f"its value now is {_shown(inductor_config.current_value(key))}",
            )


def mode_options(mode: str) -> dict[str, Any]:
    """Inductor's options for a mode of ``torch.compile``; imports Inductor.

    Args:
        mode: ``"default"``, ``"reduce-overhead"``, ``"max-autotune"``, ...: what the installed
            torch knows.

    Raises:
        OptionError: A mode that the installed torch doesn't know.

    Example:
        >>> from regional_inductor.options import mode_options
        >>> mode_options("max-autotune-no-cudagraphs")["max_autotune"]
        True
    """
    table = inductor_config.mode_table()
    if mode not in table:
        listed = "the modes are " + ", ".join(repr(known) for known in table)
        raise OptionError(f"unknown mode {mode!r}", hint=did_you_mean(str(mode), table, listed))
    return dict(table[mode])


def near_miss_keys(custom: Mapping[Any, Any]) -> list[tuple[str, str]]:
    """Keys of a node's custom meta that look like a misspelt mark, each with what was meant.

    Example:
        >>> from regional_inductor.options import near_miss_keys
        >>> near_miss_keys({"compile_with_inducter": 0, "stage": 1})
        [('compile_with_inducter', 'compile_with_inductor')]
    """
    return [
        (key, MARK_KEY)
        for key in custom
        if isinstance(key, str) and key != MARK_KEY and _resembles_mark_key(key)
    ]


def carried(value: Any) -> Any:
    """A value that Dynamo can carry from a mark into a graph; :func:`parse_mark` reverses it.

    Dynamo takes plain data, functions and classes for constants, and no other objects (a
    ``CustomGraphPass``, say).  Those travel as an attribute of a class of their own, one for each
    object, so that Dynamo's guard on the class is a guard on the object.
    """
    if isinstance(value, dict):
        return {key: carried(item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(carried(item) for item in value)
    if value is None or isinstance(value, _CONSTANTS):
        return value
    if id(value) not in _CARRIERS:
        _CARRIERS[id(value)] = type("Carrier", (), {_CARRIED: value})
    return _CARRIERS[id(value)]


def _unpacked(value: Any) -> Any:
    if isinstance(value, type):
        return vars(value).get(_CARRIED, value)
    if isinstance(value, dict):
        return {key: _unpacked(item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_unpacked(item) for item in value)
    return value


def freeze(value: Any) -> Hashable:
    """A hashable stand-in for an option's value, equal only for equal values of equal types.

    Types count because ``True == 1`` while Inductor tells them apart.  What can't be hashed is
    known by its identity, so that two of them are never taken for one.
    """
    if isinstance(value, Mapping):
        pairs = ((_typed(key), freeze(item)) for key, item in value.items())
        return (type(value).__name__, frozenset(pairs))
    if isinstance(value, (list, tuple)):
        return (type(value).__name__, tuple(freeze(item) for item in value))
    if isinstance(value, (set, frozenset)):
        return (type(value).__name__, frozenset(freeze(item) for item in value))
    return _typed(value) if is_hashable(value) else ("by identity", id(value))


def is_hashable(value: Any) -> TypeGuard[Hashable]:
    try:
        hash(value)
    except TypeError:
        return False
    return True


def _typed(value: Hashable) -> Hashable:
    if isinstance(value, tuple):
        return ("tuple", tuple(_typed(item) for item in value))
    return (type(value).__qualname__, value)


# --- reading one key ------------------------------------------------------------------------------


def _read_options(options: Any, region: str, source: str) -> dict[str, Any]:
    if not isinstance(options, Mapping):
        raise OptionError(
            f"the options of a region (inductor_configs) must be a dict, not {_shown(options)}",
            region=region,
            source=source,
            hint='for example options={"max_autotune": True}',
        )
    for key in options:
        if not isinstance(key, str):
            raise OptionError(
                f"the name of an Inductor option must be a string, not {_shown(key)}",
                region=region,
                source=source,
                hint='for example options={"max_autotune": True}',
            )
    return {key: _unpacked(option) for key, option in options.items()}


def _read_id(region_id: Any, region: str, source: str) -> Hashable:
    if not is_hashable(region_id):
        raise MarkError(
            f"the id of a region must be hashable, and {_shown(region_id)} is not",
            region=region,
            source=source,
            hint="use a string, a number or a tuple of them",
        )
    unpacked: Hashable = _unpacked(region_id)
    return unpacked


def _read_choice(
    key: str, value: Mapping[str, Any], choices: tuple[str, ...], region: str, source: str
) -> Any:
    chosen = value.get(key)
    if chosen is None or (isinstance(chosen, str) and chosen in choices):
        return chosen
    listed = " or ".join(repr(choice) for choice in choices)
    raise OptionError(
        f"{key} takes {listed}, not {_shown(chosen)}",
        region=region,
        source=source,
        hint=did_you_mean(str(chosen), choices, f"pass {listed}"),
    )


def _read_timeout(timeout: Any, region: str, source: str) -> float | None:
    if timeout is None:
        return None
    is_number = isinstance(timeout, (int, float)) and not isinstance(timeout, bool)
    if not is_number or not math.isfinite(timeout) or timeout <= 0:
        raise OptionError(
            f"compile_timeout takes a positive number of seconds, not {_shown(timeout)}",
            region=region,
            source=source,
            hint="for example compile_timeout=60.0; leave it out for no limit",
        )
    return float(timeout)


def unknown_keys(value: Any) -> list[tuple[str, str]]:
    """Keys of a mark's value that have no effect, each with a hint at what was meant.

    Example:
        >>> from regional_inductor.options import unknown_keys
        >>> unknown_keys({"name": "mlp", "options": {}})
        [("'options'", "did you mean 'inductor_configs'?")]
    """
    if not isinstance(value, Mapping):
        return []
    listed = "a mark may hold " + ", ".join(repr(known) for known in _KNOWN_KEYS[:6])
    found = []
    for key in value:
        if key not in _KNOWN_KEYS:
            meant = _MEANT.get(key) if isinstance(key, str) else None
            hint = (
                f"did you mean {meant!r}?" if meant else did_you_mean(str(key), _KNOWN_KEYS, listed)
            )
            found.append((repr(key), hint))
    return found


def _warn_of_unknown_keys(value: Mapping[Any, Any], region: str, source: str) -> None:
    for key, hint in unknown_keys(value):
        _warn_once(f"unknown key {key} in a mark has no effect", region, source, hint)


def _warn_once(what: str, region: str = "", source: str = "", hint: str = "") -> None:
    if what not in _ALREADY_WARNED:
        _ALREADY_WARNED.add(what)
        warn(what, region=region, source=source, hint=hint, stacklevel=3)


def _resembles_mark_key(key: str) -> bool:
    plain = key.lower().replace("-", "_").strip("_ ")
    return difflib.SequenceMatcher(None, plain, MARK_KEY).ratio() >= 0.85


def _option_hint(key: str, known: Iterable[str]) -> str:
    names = list(known)
    # "cudagraphs" is closest to other top-level words, while "triton.cudagraphs" was meant.
    by_tail = [name for name in names if name.rpartition(".")[2] == key.replace("-", "_")]
    if by_tail:
        return "did you mean " + " or ".join(repr(name) for name in by_tail) + "?"
    return did_you_mean(key, names, "torch._inductor.list_options() names all of them")


# --- does a value fit a declared type? ------------------------------------------------------------


def _fits(value: Any, declared: Any) -> bool:
    """Whether `value` can be of type `declared`; what can't be decided counts as fitting.

    As strict as ``torch.compile(options=...)`` on plain types (so `True` passes for an `int`), and
    also right about ``X | None``, literals and containers, which that one doesn't look at.
    """
    if declared is Any or declared is None or declared is types.NoneType:
        # A config whose default is None and that declares no type says nothing about its type.
        return True
    origin, arguments = get_origin(declared), get_args(declared)
    if origin in (Union, types.UnionType):
        return any(value is None if a is types.NoneType else _fits(value, a) for a in arguments)
    if origin is Literal:
        return any(type(value) is type(choice) and value == choice for choice in arguments)
    if origin is collections.abc.Callable or declared in (Callable, collections.abc.Callable):
        return callable(value)
    if isinstance(origin, type):
        return _fits(value, origin)
    if not isinstance(declared, type):
        return True
    if declared is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if declared in (list, tuple):
        # An exported program keeps marks as JSON, where a tuple becomes a list.
        return isinstance(value, (list, tuple))
    return isinstance(value, declared)


def _spelled(declared: Any) -> str:
    """A declared type in words that belong in a message."""
    origin, arguments = get_origin(declared), get_args(declared)
    if origin in (Union, types.UnionType):
        return " or ".join(_spelled(argument) for argument in arguments)
    if origin is Literal:
        return " or ".join(repr(choice) for choice in arguments)
    if declared is types.NoneType:
        return "None"
    if origin is collections.abc.Callable:
        return "a callable"
    if isinstance(origin, type):
        return _spelled(origin)
    if isinstance(declared, type):
        article = "an" if declared.__name__[0].lower() in "aeiou" else "a"
        return f"{article} {declared.__name__}"
    return str(declared).replace("typing.", "")


def _shown(value: Any) -> str:
    text = repr(value)
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({type(value).__name__})"
