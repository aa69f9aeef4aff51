"""timm imports torchvision, whose wheels on PyPI hold operators built for torch with CUDA.

Beside a CPU build of torch these don't load, and importing torchvision then stops at registering
shape functions for operators that nobody defined. timm's models call none of them, so that defining
their schemas is all that the import needs.
"""

from __future__ import annotations

import importlib
import sys

import torch

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_defined: list[torch.library.Library] = []  # a library that is collected takes its schemas along


def importable_torchvision() -> None:
    """Import torchvision, with its operators where they load and with their schemas elsewhere."""
    try:
        importlib.import_module("torchvision")
    except RuntimeError:
        library = torch.library.Library("torchvision", "FRAGMENT")
        _defined.append(library)
        for schema in _SCHEMAS:
            library.define(schema)
        for name in [name for name in sys.modules if name.startswith("torchvision")]:
            del sys.modules[name]
        importlib.import_module("torchvision")
