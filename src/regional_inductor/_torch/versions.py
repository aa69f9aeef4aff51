"""Which torch this is, for what was checked on some versions only."""

from __future__ import annotations

from collections.abc import Collection

import torch


def is_one_of(versions: Collection[tuple[int, int]]) -> bool:
    """Whether the running torch is of one of some releases, such as ``(2, 13)``."""
    major, minor = torch.__version__.split(".")[:2]
    return (int(major), int(minor)) in versions
