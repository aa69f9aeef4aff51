"""Where in the user's code a node comes from."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import sys
import traceback
import types

import torch
from torch.fx.node import Node

_FRAME = re.compile(r'File "([^"]+)", line (\d+)')
_TORCH = os.path.dirname(os.path.abspath(torch.__file__)) + os.sep
_OURS = os.path.dirname(os.path.abspath(__file__)) + os.sep


def user_source(node: Node) -> str:
    """The innermost line of the user's code that produced a node, as `file:line`, or ``""``."""
    return _innermost(node.meta.get("stack_trace") or node.stack_trace or "")


@functools.lru_cache(maxsize=4096)
def _innermost(stack_trace: str) -> str:
    for file, line in reversed(_FRAME.findall(stack_trace)):
        if _is_users(file):
            return f"{file}:{line}"
    return ""


def raised_at(error: BaseException) -> str:
    """The innermost line of the user's code that an exception came through, as `file:line`, or ``""``."""
    return _innermost("".join(traceback.format_tb(error.__traceback__)))


def calling_line() -> str:
    """``file:line`` of the user's code that runs now, or ``""``."""
    frame: types.FrameType | None = sys._getframe(1)
    while frame is not None:
        if _is_users(frame.f_code.co_filename):
            return f"{frame.f_code.co_filename}:{frame.f_lineno}"
        frame = frame.f_back
    return ""


def _is_users(file: str) -> bool:
    return not file.startswith((_TORCH, _OURS, "<")) and file != contextlib.__file__


def module_path(nodes: tuple[Node, ...]) -> str:
    """The qualified name of the innermost module that all the nodes were called in, or ``""``."""
    common: list[str] | None = None
    for node in nodes:
        names = module_names(node)
        if not names:
            continue
        if common is None:
            common = names
        else:
            shared = 0
            for a, b in zip(common, names, strict=False):
                if a != b:
                    break
                shared += 1
            common = common[:shared]
    return common[-1] if common else ""


def module_names(node: Node) -> list[str]:
    """The qualified names of the modules that a node was called in, outermost first."""
    stack = node.meta.get("nn_module_stack") or node.meta.get("fwd_nn_module_stack") or {}
    return [_qualified(str(value[0])) for value in stack.values()]


@functools.lru_cache(maxsize=65536)
def _qualified(path: str) -> str:
    """`L['self'].layers.0.mlp` and Dynamo's other spellings as `layers.0.mlp`."""
    path = re.sub(r"^[LG]\['[^']*'\]\.?|^L__self___?", "", path)
    path = re.sub(r"\['([^']*)'\]|\[(\d+)\]", lambda m: "." + (m.group(1) or m.group(2)), path)
    path = path.replace("._modules.", ".").replace(".modules.", ".")
    path = path.replace(".forward.__self__", "")  # inside a module that `mark` has marked
    return re.sub(r"\.(_modules|_orig_mod)(?=\.|$)", "", path).strip(".")
