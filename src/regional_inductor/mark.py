"""Marks placed from outside the code: on modules, on functions by path, on the nodes of a graph.

Each returns a handle that takes the marks away again.  `region` and `eager`, which are written in the
code, are in `scope`.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import sys
import types
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
import torch.fx
from torch import nn

from ._torch.annotate import own_code
from ._torch.targets import is_operator, is_same_operator, target_name
from .errors import MarkError, did_you_mean, warn
from .options import MARK_KEY, Collectives, Numerics, parse_mark
from .patterns import (
    Pattern,
    general_names,
    matches,
    modules_by_name,
    near_modules,
    spelled,
)
from .scope import (
    Value,
    caller_line,
    check_function,
    checked,
    eager,
    make_value,
    mark_calls,
    qualname,
    region,
    switch,
    with_defaults,
)

__all__ = [
    "FunctionHandle",
    "ModuleHandle",
    "NodeHandle",
    "eager",
    "mark",
    "mark_function",
    "mark_nodes",
    "region",
]

_H = TypeVar("_H", bound="_Handle")
_SITE = "_regional_inductor_site"  # on a wrapper of ours: its _Site
_BENEATH = "_regional_inductor_forward"  # on a module: the instance's forward from before the mark


class _Handle:
    """Takes marks away again: `remove()`, or the end of a `with` block."""

    def remove(self) -> None:
        """Take the mark away.  Doing so twice, or in any order with other handles, is fine."""
        raise NotImplementedError

    def _undo(self) -> None:
        """Undo what the call that made this handle changed, which may be nothing."""
        self.remove()

    def __enter__(self: _H) -> _H:
        return self

    def __exit__(self, *error: Any) -> None:
        self._undo()


@dataclass(eq=False)
class _Site:
    """A wrapper of ours and the marks that were put there; the last of them rules."""

    inner: Callable[..., Any]
    values: tuple[Value, ...]
    calls_class: bool = False  # of a module: there was no forward on the instance before
    wrapper: Callable[..., Any] = field(init=False)

    def __post_init__(self) -> None:
        self.wrapper = mark_calls(self.inner, self.values[-1])
        setattr(self.wrapper, _SITE, self)

    def has_on_top(self, value: Value) -> bool:
        return bool(self.values) and _same(self.values[-1], value)

    def become(self, values: tuple[Value, ...]) -> None:
        """Change the marks in place, for a wrapper that can't be taken out any more."""
        self.values = values
        switch(self.wrapper, values[-1] if values else None)


def _same(a: Value, b: Value) -> bool:
    return parse_mark(a) == parse_mark(b)


def _without(values: tuple[Value, ...], value: Value) -> tuple[Value, ...]:
    return tuple(kept for kept in values if not _same(kept, value))


def _find_site(function: Any) -> tuple[_Site | None, bool]:
    """Our site on a function or beneath later wrappers of others, and whether it is on top."""
    on_top = True
    while function is not None:
        function = getattr(function, "__func__", function)
        site = getattr(function, _SITE, None)
        # functools.wraps copies __dict__, so a wrapper around ours carries our attribute as well.
        if isinstance(site, _Site) and site.wrapper is function:
            return site, on_top
        on_top = False
        function = getattr(function, "__wrapped__", getattr(function, "func", None))
    return None, False


# --- modules --------------------------------------------------------------------------------------


class ModuleHandle(_Handle):
    """What :func:`mark` returns.

    Attributes:
        modules: The qualified names of the marked modules, in the order of ``named_modules()``.
    """

    def __init__(self, marked: list[_MarkedModule]) -> None:
        self.modules = [one.path for one in marked]
        self._marked = marked

    def remove(self) -> None:
        """Take the mark away from the modules, whichever call of :func:`mark` put it there."""
        for one in self._marked:
            _unmark_module(one.module, one.value)

    def _undo(self) -> None:
        for one in self._marked:
            if one.is_new:
                _unmark_module(one.module, one.value)

    def __repr__(self) -> str:
        return f"<marked modules: {', '.join(self.modules)}>"


@dataclass(frozen=True)
class _MarkedModule:
    path: str
    module: nn.Module
    value: Value
    is_new: bool


def mark(
    model: nn.Module,
    *patterns: Pattern,
    name: str | None = None,
    options: Mapping[str, Any] | None = None,
    id: Hashable = None,
    numerics: Numerics | None = None,
    compile_timeout: float | None = None,
    collectives: Collectives | None = None,
) -> ModuleHandle:
    """Mark modules of a model as regions, in place, by name pattern or by type.

    Each call of a marked module is one region, as far as the order of the graph allows.  Nothing
    is wrapped: the module stays the same object of the same class, with the same ``state_dict``
    keys, hooks and signature; only its ``forward`` is overridden on the instance.  A deep copy is
    marked too.  Pickling leaves the mark out, so that the file loads where this package is not
    installed; mark again after loading.  Hooks of a module run outside its mark.  A shallow copy
    (``copy.copy``, replicas of ``DataParallel``) would call the original: copy first, then mark.

    Marking the same modules again with the same arguments changes nothing.  With other arguments
    the later mark rules, so that an exception can follow a general rule; when it is removed, the
    earlier one holds again.

    Args:
        model: The model, compiled already or not.
        *patterns: Qualified names as ``model.named_modules()`` gives them, in which ``*``, ``?``
            and ``[...]`` stand for part of one dotted segment and ``**`` for any number of whole
            segments: ``"layers.*.mlp"`` matches ``layers.0.mlp`` and not ``layers.0.expert.mlp``;
            ``"**.mlp"`` matches both, and ``mlp`` too.  Or types, whose instances are all marked.
            Without any pattern the model itself is marked.  Containers that are never called
            (``ModuleList``, ``ModuleDict``) are passed over.
        name: A label for reports; by default the name of the module's class.
        options: Inductor's options for these regions.
        id: As in :func:`region`: what the calls of these modules produce joins as far as possible.
        numerics: As in :func:`region`.
        compile_timeout: As in :func:`region`, in seconds.
        collectives: As in :func:`region`.

    Returns:
        A handle with the names of the marked ``modules`` and ``remove()``.  As a context manager
        it undoes at its end what this call changed.

    Raises:
        MarkError: A pattern matches nothing that could be called (then nothing is marked at all),
            or a module's ``forward`` can't be marked.
        OptionError: An option that Inductor doesn't have, or a value of the wrong type.

    Example:
        >>> import torch
        >>> import regional_inductor as ri
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU(), torch.nn.Linear(4, 4))
        >>> handle = ri.mark(model, "1", torch.nn.Linear, options={"max_autotune": True})
        >>> handle.modules
        ['0', '1', '2']
        >>> handle.remove()
    """
    source = caller_line()
    value = make_value(name, options, id, numerics, compile_timeout, collectives)
    value = checked(value, source)
    found = _find_modules(model, patterns or ("",), source)
    for path, module in found:
        _check_module(path, module, source)
    return ModuleHandle([_mark_module(path, module, value, source) for path, module in found])


def marked_modules(model: nn.Module) -> Iterator[tuple[str, Value]]:
    """The modules that :func:`mark` has marked, by name, each with the mark that rules now."""
    for path, module in modules_by_name(model).items():
        site, _ = _find_site(module.__dict__.get("forward"))
        if site is not None and site.values:
            yield path, site.values[-1]


def _find_modules(
    model: nn.Module, patterns: tuple[Pattern, ...], source: str
) -> list[tuple[str, nn.Module]]:
    if not isinstance(model, nn.Module):
        raise MarkError(
            f"mark takes a torch.nn.Module and patterns, not {type(model).__qualname__}",
            source=source,
            hint="to mark a function, decorate it with regional_inductor.region",
        )
    named = modules_by_name(model)
    chosen: set[str] = set()
    for pattern in patterns:
        matching = {path for path, module in named.items() if matches(path, module, pattern)}
        callable_ones = {path for path in matching if _is_called(named[path])}
        if not callable_ones:
            _raise_no_match(model, pattern, matching, named, source)
        chosen |= callable_ones
    return [(path, module) for path, module in named.items() if path in chosen]


_NAMES_TO_LIST = 8


def _names_in(model: nn.Module, named: Mapping[str, nn.Module]) -> str:
    names = general_names(path for path, module in named.items() if _is_called(module))
    more = len(names) - _NAMES_TO_LIST
    listed = ", ".join(map(repr, names[:_NAMES_TO_LIST])) or "no modules"
    return f"{type(model).__qualname__} has {listed}" + (f" and {more} more" if more > 0 else "")


def _is_called(module: nn.Module) -> bool:
    return "forward" in module.__dict__ or type(module).forward is not nn.Module.forward


def _raise_no_match(
    model: nn.Module,
    pattern: Pattern,
    matching: set[str],
    named: Mapping[str, nn.Module],
    source: str,
) -> None:
    if matching:
        container = min(matching)
        raise MarkError(
            f"{spelled(pattern)} matches only {container!r}, a {type(named[container]).__qualname__}, "
            "which has no forward and is never called",
            source=source,
            hint=f"mark what it holds: {container + '.*' if container else '*'!r}",
        )
    near = " or ".join(repr(one) for one in near_modules(pattern, named))
    raise MarkError(
        f"{spelled(pattern)} matches no module of {type(model).__qualname__}",
        source=source,
        hint=f"did you mean {near}?" if near else _names_in(model, named),
    )


def _check_module(path: str, module: nn.Module, source: str) -> None:
    if isinstance(module, torch.jit.ScriptModule):
        raise MarkError(
            f"module {path!r} is a TorchScript module, which Dynamo doesn't trace",
            source=source,
            hint="mark the module before it is scripted, or leave it out",
        )
    check_function(module.forward, source)


def _mark_module(path: str, module: nn.Module, value: Value, source: str) -> _MarkedModule:
    value = with_defaults(value, type(module).__qualname__, "module", source)
    site, on_top = _find_site(module.__dict__.get("forward"))
    if site is None:
        _install(
            module, _Site(_forward_beneath(module), (value,), "forward" not in module.__dict__)
        )
        return _MarkedModule(path, module, value, is_new=True)
    if site.has_on_top(value):
        return _MarkedModule(path, module, value, is_new=False)
    values = (*_without(site.values, value), value)
    if on_top:
        # A new wrapper, not a change of this one: deep copies of the module share it.
        _install(module, replace(site, values=values))
    else:
        site.become(values)
    return _MarkedModule(path, module, value, is_new=True)


def _unmark_module(module: nn.Module, value: Value) -> None:
    site, on_top = _find_site(module.__dict__.get("forward"))
    if site is None:
        return
    values = _without(site.values, value)
    if not on_top:
        site.become(values)
    elif values:
        _install(module, replace(site, values=values))
    else:
        _uninstall(module, site)


def _install(module: nn.Module, site: _Site) -> None:
    # Not setattr: some modules watch their attributes, and this one is no business of theirs.
    module.__dict__["forward"] = types.MethodType(site.wrapper, module)


def _uninstall(module: nn.Module, site: _Site) -> None:
    if _BENEATH in module.__dict__:
        module.__dict__["forward"] = module.__dict__.pop(_BENEATH)
    elif site.calls_class:
        del module.__dict__["forward"]
    else:
        module.__dict__["forward"] = types.MethodType(site.inner, module)


def _forward_beneath(module: nn.Module) -> Callable[..., Any]:
    """A function of the module that does what its `forward` does now, without holding the module.

    What holds no module may be shared by deep copies, which `copy.deepcopy` rebinds for us.
    """
    present = module.__dict__.get("forward")
    if present is None:
        # The class's forward is looked up at each call: FSDP swaps the class, others patch it.
        @functools.wraps(type(module).forward)
        def class_forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
            return type(self).forward(self, *args, **kwargs)

        own_code(class_forward, type(module).forward)
        return class_forward
    if isinstance(present, types.MethodType) and present.__self__ is module:
        method: Callable[..., Any] = present.__func__
        return method
    # Another tool's callable, accelerate's partial for one. It stays an attribute of the module, so
    # that a deep copy of the module copies it as it would without the mark.
    module.__dict__[_BENEATH] = present

    @functools.wraps(type(module).forward)
    def instance_forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return getattr(self, _BENEATH)(*args, **kwargs)

    own_code(instance_forward, type(module).forward)
    return instance_forward


# --- functions ------------------------------------------------------------------------------------


class FunctionHandle(_Handle):
    """What :func:`mark_function` returns.

    Attributes:
        path: The dotted path of the marked function.
    """

    def __init__(self, path: str, place: _Place, value: Value, is_new: bool) -> None:
        self.path = path
        self._place = place
        self._value = value
        self._is_new = is_new

    def remove(self) -> None:
        """Take the mark away from the function, whichever call put it there."""
        site, on_top = _find_site(_inner_function(self._place.read()))
        if site is None:
            return
        site.become(_without(site.values, self._value))
        if on_top and not site.values:
            self._place.restore(site)

    def _undo(self) -> None:
        if self._is_new:
            self.remove()

    def __repr__(self) -> str:
        return f"<marked function: {self.path}>"


@dataclass(frozen=True)
class _Place:
    """An attribute of a module or a class that holds a function."""

    owner: Any
    attribute: str

    def read(self) -> Any:
        """What is there as it is stored: a staticmethod object, not the function in it."""
        return inspect.getattr_static(self.owner, self.attribute)

    def write(self, stored: Any) -> None:
        setattr(self.owner, self.attribute, stored)

    def is_inherited(self) -> bool:
        return self.attribute not in vars(self.owner)

    def patch(self, site: _Site) -> None:
        stored = self.read()
        _ORIGINALS[self, site.wrapper] = _INHERITED if self.is_inherited() else stored
        is_descriptor = isinstance(stored, (staticmethod, classmethod))
        self.write(type(stored)(site.wrapper) if is_descriptor else site.wrapper)

    def restore(self, site: _Site) -> None:
        # Where the wrapper came by a later import, it was never patched in: there it may stay.
        original = _ORIGINALS.pop((self, site.wrapper), site.wrapper)
        if original is _INHERITED:
            delattr(self.owner, self.attribute)
        else:
            self.write(original)


_INHERITED = object()
_ORIGINALS: dict[tuple[_Place, Callable[..., Any]], Any] = {}  # what a wrapper replaced, as stored


def mark_function(
    path: str,
    *,
    name: str | None = None,
    options: Mapping[str, Any] | None = None,
    id: Hashable = None,
    numerics: Numerics | None = None,
    compile_timeout: float | None = None,
    collectives: Collectives | None = None,
) -> FunctionHandle:
    """Mark a function that isn't yours, by its dotted path, until the handle is removed.

    The attribute that the path names is replaced by a marked function that calls the original.
    Code that looks the function up there, as functions of the same module do, is marked from then
    on.  Code that imported the function by name earlier still holds the original: a warning names
    those places, and each can be marked by its own path.

    Marking again with the same arguments changes nothing; with other arguments the later mark rules
    until it is removed.

    Args:
        path: ``"package.module.function"`` or ``"package.module.Class.method"``; for a subclass of
            ``torch.nn.Module``, ``"package.module.Class"`` means its ``forward``.
        name: A label for reports; by default the function's ``__qualname__``.
        options: As in :func:`region`.
        id: As in :func:`region`.
        numerics: As in :func:`region`.
        compile_timeout: As in :func:`region`, in seconds.
        collectives: As in :func:`region`.

    Returns:
        A handle with the ``path`` and ``remove()``; also a context manager.

    Raises:
        MarkError: Nothing at that path (near names are suggested), or no function.
        OptionError: An option that Inductor doesn't have, or a value of the wrong type.

    Warns:
        RegionWarning: Other loaded modules hold the function under a name of their own.

    Example:
        >>> import regional_inductor as ri
        >>> with ri.mark_function("torch.nn.RMSNorm.forward", options={"max_autotune": True}) as handle:
        ...     handle.path
        'torch.nn.RMSNorm.forward'
    """
    source = caller_line()
    value = make_value(name, options, id, numerics, compile_timeout, collectives)
    value = checked(value, source)
    place = _find_place(path, source)
    function = _inner_function(place.read())
    _check_marked_function(path, function, source)
    value = with_defaults(value, qualname(function), "code", source)
    site, _ = _find_site(function)
    if site is not None and place.is_inherited():
        # Marking Sub.method must not mark Base.method, nor leave the mark of that one inside.
        function, site = site.inner, None
    if site is not None:
        is_new = not site.has_on_top(value)
        site.become((*_without(site.values, value), value))
        return FunctionHandle(path, place, value, is_new)
    place.patch(_Site(function, (value,)))
    _warn_of_other_references(path, function, place, source)
    return FunctionHandle(path, place, value, is_new=True)


def _inner_function(stored: Any) -> Any:
    return stored.__func__ if isinstance(stored, (staticmethod, classmethod)) else stored


def _find_place(path: str, source: str) -> _Place:
    owner, rest = _import_prefix(path, source)
    for depth, part in enumerate(rest):
        if not hasattr(owner, part):
            known = [known for known in dir(owner) if not known.startswith("__")]
            raise MarkError(
                f"nothing at {path!r}: {_name_of(owner)} has no {part!r}",
                source=source,
                hint=did_you_mean(part, known, "check the path; it is one that Python can import"),
            )
        if depth < len(rest) - 1:
            owner = getattr(owner, part)
    target = getattr(owner, rest[-1]) if rest else owner
    if isinstance(target, type) and issubclass(target, nn.Module):
        return _Place(target, "forward")
    if not rest:
        raise MarkError(
            f"{path!r} is a module, not a function", source=source, hint="name a function in it"
        )
    return _Place(owner, rest[-1])


def _import_prefix(path: str, source: str) -> tuple[Any, list[str]]:
    """The module that the longest importable prefix of a path names, and what is left of the path."""
    parts = path.split(".")
    if not all(part.isidentifier() for part in parts):
        raise MarkError(
            f"{path!r} is no dotted path",
            source=source,
            hint='for example "package.module.function"',
        )
    module = None
    for depth in range(1, len(parts) + 1):
        name = ".".join(parts[:depth])
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError as error:
            # Something else missing is the module's own trouble, and the user has to see it.
            if error.name is None or not (name == error.name or name.startswith(error.name + ".")):
                raise
            if module is None:
                near = did_you_mean(parts[0], (known for known in sys.modules if "." not in known))
                raise MarkError(
                    f"nothing at {path!r}: no module named {parts[0]!r}",
                    source=source,
                    hint=near or "check the path, or install what it belongs to",
                ) from error
            return module, parts[depth - 1 :]
        if depth < len(parts) and _holds_function(module, parts[depth]):
            # torch has both a function and a submodule of some names; the function is meant.
            return module, parts[depth:]
    return module, []


def _holds_function(module: types.ModuleType, name: str) -> bool:
    return callable(vars(module).get(name))


def _check_marked_function(path: str, function: Any, source: str) -> None:
    if not callable(function) or isinstance(function, (type, nn.Module)):
        raise MarkError(
            f"{path!r} is no function but {type(function).__qualname__}",
            source=source,
            hint="name a function, a method or a subclass of torch.nn.Module",
        )
    check_function(function, source)


def _warn_of_other_references(path: str, function: Any, place: _Place, source: str) -> None:
    others = sorted(_other_references(function, place))
    if others:
        listed = ", ".join(others[:5]) + (f" and {len(others) - 5} more" if others[5:] else "")
        warn(
            f"the mark on {path} does not reach code that holds the function itself: {listed}",
            source=source,
            hint=f'mark those too, as in regional_inductor.mark_function("{others[0]}")',
            stacklevel=3,
        )


def _other_references(function: Any, place: _Place) -> Iterator[str]:
    for module_name, module in list(sys.modules.items()):
        if module_name.startswith("torch._C"):
            continue  # no code there looks anything up by name
        # vars(), as getattr would make lazy modules import what they offer.
        namespace = getattr(module, "__dict__", None) if module is not place.owner else None
        for name, held in list((namespace or {}).items()):
            if held is function:
                yield f"{module_name}.{name}"


def _name_of(owner: Any) -> str:
    return str(getattr(owner, "__qualname__", None) or getattr(owner, "__name__", owner))


# --- nodes ----------------------------------------------------------------------------------------


class NodeHandle(_Handle):
    """What :func:`mark_nodes` returns.

    Attributes:
        nodes: How many nodes were marked.
    """

    def __init__(self, marked: list[tuple[torch.fx.Node, Any]], value: Value) -> None:
        self.nodes = len(marked)
        self._marked = marked
        self._value = value

    def remove(self) -> None:
        """Give each node the mark back that it had; nodes that were marked anew since keep that."""
        for node, before in self._marked:
            custom = dict(node.meta.get("custom") or {})
            if custom.get(MARK_KEY) is not self._value:
                continue
            del custom[MARK_KEY]
            if before is not _UNMARKED:
                custom[MARK_KEY] = before
            if custom:
                node.meta["custom"] = custom
            else:
                del node.meta["custom"]

    def __repr__(self) -> str:
        return f"<{self.nodes} marked nodes>"


_UNMARKED = object()


def mark_nodes(
    gm: torch.fx.GraphModule,
    predicate: Any,
    *,
    name: str | None = None,
    options: Mapping[str, Any] | None = None,
    id: Hashable = None,
    numerics: Numerics | None = None,
    compile_timeout: float | None = None,
    collectives: Collectives | None = None,
) -> NodeHandle:
    """Mark nodes of a captured graph, as if the code they come from had been marked.

    The bodies of higher-order operators are searched too, each once however many nodes call it.
    Inputs, outputs and attribute reads are never marked.  Matching nodes form one region where
    they are connected; ``id=`` joins them beyond that.

    Args:
        gm: The graph, of any tracer.
        predicate: What to mark.  An operator overload (``torch.ops.aten.silu.default``), a packet
            (``torch.ops.aten.silu``: all its overloads), a higher-order operator, a function as
            Dynamo's graphs have it (``torch.nn.functional.silu``), the name of a method as Dynamo's
            graphs have it (``"relu"``), a function of a node that says yes or no, or a list of
            these.
        name: A label for reports.
        options: As in :func:`region`.
        id: As in :func:`region`.
        numerics: As in :func:`region`.
        compile_timeout: As in :func:`region`, in seconds.
        collectives: As in :func:`region`.

    Returns:
        A handle with the number of marked ``nodes`` and ``remove()``; also a context manager.

    Raises:
        MarkError: Nothing matches; the message names near operators that are in the graph.
        OptionError: An option that Inductor doesn't have, or a value of the wrong type.

    Example:
        >>> import torch
        >>> from torch.fx.experimental.proxy_tensor import make_fx
        >>> import regional_inductor as ri
        >>> gm = make_fx(lambda x: torch.relu(x.sin()) + 1)(torch.ones(3))
        >>> ri.mark_nodes(gm, [torch.ops.aten.sin, torch.ops.aten.relu.default], name="act").nodes
        2
    """
    source = caller_line()
    value = make_value(name, options, id, numerics, compile_timeout, collectives)
    value = checked(value, source)
    value["source"] = source
    candidates = list(_call_nodes(gm))
    targets = [node.target for node in candidates]
    chosen: dict[torch.fx.Node, None] = {}
    many = isinstance(predicate, (list, tuple, set, frozenset))
    for wanted in predicate if many else [predicate]:
        matching = _matching_nodes(candidates, targets, wanted)
        if not matching:
            raise _nothing_matches(wanted, targets, source)
        chosen.update(dict.fromkeys(matching))
    if not chosen:
        raise MarkError("no operator was given to mark", source=source, hint="pass at least one")
    return NodeHandle([(node, _set_mark(node, value)) for node in chosen], value)


def _call_nodes(gm: torch.fx.GraphModule) -> Iterator[torch.fx.Node]:
    for module in gm.modules():  # each module once, however often it is referenced
        if isinstance(module, torch.fx.GraphModule):
            for node in module.graph.nodes:
                if node.op in ("call_function", "call_method", "call_module"):
                    yield node


def _matching_nodes(
    nodes: list[torch.fx.Node], targets: list[Any], wanted: Any
) -> list[torch.fx.Node]:
    if isinstance(wanted, str) or _is_operator(wanted, targets):
        return [
            node for node in nodes if is_same_operator(node.target, wanted) or node.target == wanted
        ]
    return [node for node in nodes if wanted(node)]


def _is_operator(wanted: Any, targets: list[Any]) -> bool:
    """Whether something callable is what nodes call, not a predicate over nodes."""
    if is_operator(wanted) or any(target is wanted for target in targets):
        return True
    module = getattr(wanted, "__module__", None) or ""
    return module.partition(".")[0] in ("torch", "_operator", "operator", "builtins", "math")


def _nothing_matches(wanted: Any, targets: list[Any], source: str) -> MarkError:
    present = sorted({target_name(target) for target in targets})
    held = "the graph calls " + ", ".join(present[:8]) + (", ..." if present[8:] else "")
    if not present:
        held = "the graph calls nothing"
    if isinstance(wanted, str) or _is_operator(wanted, targets):
        name = target_name(wanted)
        return MarkError(
            f"no node of the graph calls {name}",
            source=source,
            hint=_same_last_name(name, present) or did_you_mean(name, present, held),
        )
    return MarkError(f"the predicate {qualname(wanted)} matches no node", source=source, hint=held)


def _same_last_name(name: str, present: list[str]) -> str:
    """A hint for a function that was named as if it were a method, or the other way round."""
    if "." in name:
        method = name.rpartition(".")[2]
        return f"the graph calls it as a method: pass {method!r}" if method in present else ""
    functions = [one for one in present if one.rpartition(".")[2] == name]
    return f"a string names a method; pass the function {functions[0]}" if functions else ""


def _set_mark(node: torch.fx.Node, value: Value) -> Any:
    """Mark one node and return the mark it had; its custom dict may be shared with other nodes."""
    custom = dict(node.meta.get("custom") or {})
    before = custom.get(MARK_KEY, _UNMARKED)
    node.meta["custom"] = {**custom, MARK_KEY: value}
    return before
