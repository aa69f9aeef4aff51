"""Patterns over the qualified names and the types of a model's modules."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Iterable, Mapping

from torch import nn

Pattern = str | type[nn.Module]

# Segments of a qualified name that a wrapper module added; the user thinks of the name without.
_WRAPPER_SEGMENTS = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})


def modules_by_name(model: nn.Module) -> dict[str, nn.Module]:
    """All modules of a model by the name they have without wrappers; the root's name is ``""``.

    A wrapper and the module in it share one such name.  The inner one is meant, and comes later.
    """
    return {_without_wrappers(path): module for path, module in model.named_modules()}


def matches(path: str, module: nn.Module, pattern: Pattern) -> bool:
    if isinstance(pattern, type):
        return isinstance(module, pattern)
    if not path or not pattern:
        return path == pattern  # no wildcard stands for the model itself
    return _segments_match(path.split("."), pattern.split("."))


def near_modules(pattern: Pattern, named: Mapping[str, nn.Module]) -> list[str]:
    """What a pattern that matches nothing may have been meant to be, the likeliest first."""
    if isinstance(pattern, type):
        types = {type(module).__qualname__ for module in named.values()}
        return difflib.get_close_matches(pattern.__qualname__, sorted(types), n=3, cutoff=0.5)
    deeper = f"**.{pattern}"
    if any(matches(path, module, deeper) for path, module in named.items()):
        return [deeper]
    # One entry for all layers: a list of layers.0.mlp, layers.1.mlp, ... helps less.
    general = general_names(named)
    near = difflib.get_close_matches(pattern, general, n=3, cutoff=0.5)
    return near or difflib.get_close_matches(_generalised(pattern), general, n=3, cutoff=0.4)


def general_names(named: Iterable[str]) -> list[str]:
    """The names of a model's modules, with one entry for all layers: `layers.*.mlp`."""
    return list(dict.fromkeys(_generalised(path) for path in named if path))


def spelled(pattern: Pattern) -> str:
    return f"type {pattern.__qualname__}" if isinstance(pattern, type) else f"pattern {pattern!r}"


def is_wrapper_segment(name: str) -> bool:
    """Whether a wrapper (compiling, FSDP, checkpointing) calls the module in it this."""
    return name in _WRAPPER_SEGMENTS


def _segments_match(path: list[str], pattern: list[str]) -> bool:
    if not pattern:
        return not path
    if pattern[0] == "**":
        return any(_segments_match(path[skip:], pattern[1:]) for skip in range(len(path) + 1))
    return (
        bool(path)
        and fnmatch.fnmatchcase(path[0], pattern[0])
        and _segments_match(path[1:], pattern[1:])
    )


def _generalised(path: str) -> str:
    return _join("*" if segment.isdigit() else segment for segment in path.split("."))


def _without_wrappers(path: str) -> str:
    return _join(segment for segment in path.split(".") if segment not in _WRAPPER_SEGMENTS)


def _join(segments: Iterable[str]) -> str:
    return ".".join(segments)
