"""Marks on modules of a model, by name or by the module itself."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from ._torch.annotate import own_code
from .errors import MarkError
from .marking import Handle, Site, find_site, without
from .options import Collectives, Numerics
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
    make_value,
    with_defaults,
)

__all__ = ["ModuleHandle", "mark", "marked_modules"]

_BENEATH = "_regional_inductor_forward"  # on a module: the instance's forward from before the mark


class ModuleHandle(Handle):
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
        site, _ = find_site(module.__dict__.get("forward"))
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
    site, on_top = find_site(module.__dict__.get("forward"))
    if site is None:
        _install(module, Site(_forward_beneath(module), (value,), "forward" not in module.__dict__))
        return _MarkedModule(path, module, value, is_new=True)
    if site.has_on_top(value):
        return _MarkedModule(path, module, value, is_new=False)
    values = (*without(site.values, value), value)
    if on_top:
        # A new wrapper, not a change of this one: deep copies of the module share it.
        _install(module, replace(site, values=values))
    else:
        site.become(values)
    return _MarkedModule(path, module, value, is_new=True)


def _unmark_module(module: nn.Module, value: Value) -> None:
    site, on_top = find_site(module.__dict__.get("forward"))
    if site is None:
        return
    values = without(site.values, value)
    if not on_top:
        site.become(values)
    elif values:
        _install(module, replace(site, values=values))
    else:
        _uninstall(module, site)


def _install(module: nn.Module, site: Site) -> None:
    # Not setattr: some modules watch their attributes, and this one is no business of theirs.
    module.__dict__["forward"] = types.MethodType(site.wrapper, module)


def _uninstall(module: nn.Module, site: Site) -> None:
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
