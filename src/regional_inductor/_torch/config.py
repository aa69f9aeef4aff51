"""Inductor's config, read without importing Inductor before somebody else did.

Checked on torch 2.11.0 and 2.13.0.  Used of `torch._inductor.config`: `get_config_copy()` and
`get_type(key)`, both also behind `torch.compile(options=...)`, and `_config`, where keys are that
are only another name of a key elsewhere; of `torch._inductor`: `list_mode_options`.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from functools import cache
from types import ModuleType
from typing import Any

_MODULE = "torch._inductor.config"


def inductor_is_imported() -> bool:
    return _MODULE in sys.modules


@cache
def option_types() -> dict[str, Any]:
    """Every Inductor option, dotted ones too, with its declared type; imports Inductor's config."""
    config: Any = _config()
    names = set(config.get_config_copy())
    # get_config_copy() leaves out keys that are only another name of a key elsewhere.
    names.update(getattr(config, "_config", ()))
    return {name: config.get_type(name) for name in sorted(names)}


def current_value(name: str) -> Any:
    """The value of an option as it is set now, outside any region."""
    return _config().__getattr__(name)


def changed_from(options: Mapping[str, Any]) -> dict[str, Any]:
    """Those of some options that differ from the values set now; all, while Inductor isn't loaded."""
    if not inductor_is_imported():
        return dict(options)
    return {name: value for name, value in options.items() if not _is_set(name, value)}


def _is_set(name: str, value: Any) -> bool:
    try:
        now = current_value(name)
        return type(now) is type(value) and bool(now == value)
    except Exception:  # noqa: BLE001 - an option's value may be anything, and compare as it likes
        return False


def set_by_the_user() -> dict[str, str]:
    """Entries of Inductor's config that aren't at their default, as text by name.

    Empty while Inductor isn't loaded: nobody can have changed them then.
    """
    if not inductor_is_imported():
        return {}
    config: Any = _config()
    is_default = getattr(config, "_is_default", None)
    if is_default is None:
        return {}
    return {
        name: repr(value)
        for name, value in config.get_config_copy().items()
        # What was patched and put back counts as set for torch, at the value it always had.
        if not is_default(name) and repr(value) != repr(config._config[name].default)
    }


def mode_table() -> dict[str, dict[str, Any]]:
    """The options of each `torch.compile` mode; imports Inductor."""
    inductor: Any = importlib.import_module("torch._inductor")
    table: dict[str, dict[str, Any]] = inductor.list_mode_options()
    return table


def _config() -> ModuleType:
    # Through torch._inductor: importing the config alone is what `import torch._inductor` does too.
    return importlib.import_module(_MODULE)
