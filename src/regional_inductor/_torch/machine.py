"""What a stored compiled region depends on besides its key: torch's build, Python, CPU and GPUs.

Checked on torch 2.11 and 2.13: `torch.version`, `torch.backends.cpu.get_cpu_capability`,
`torch.cuda.get_device_properties`, `torch._C._cuda_getDriverVersion`.
"""

from __future__ import annotations

import hashlib
import importlib
import platform
import sys
import sysconfig
from functools import cache
from pathlib import Path
from typing import Any

import torch


@cache
def build() -> dict[str, str]:
    """What a shared object and generated code are made for: torch's build, Python's ABI, the CPU."""
    return {
        "torch": torch.__version__,
        "git": str(getattr(torch.version, "git_version", "")),
        "cuda": str(torch.version.cuda),
        "hip": str(torch.version.hip),
        "python": str(sysconfig.get_config_var("SOABI") or sys.version),
        "system": f"{platform.system()} {platform.machine()} {' '.join(platform.libc_ver())}",
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "cpu flags": _cpu_flags(),
    }


def devices(kinds: frozenset[str]) -> dict[str, str]:
    """The accelerators of some kinds, such as ``{"cuda"}``, and the compiler that serves them."""
    found: dict[str, str] = {}
    if "cuda" in kinds and torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            found[f"cuda:{index}"] = _gpu(index)
        found["triton"] = _triton_version()
        found["driver"] = _driver_version()
    return found


def one_gpu(number: int) -> dict[str, str]:
    """One of the GPUs that this process sees, whatever its number, and the compiler that serves it."""
    return {"cuda": _gpu(number), "triton": _triton_version(), "driver": _driver_version()}


def device_models(kinds: frozenset[str]) -> dict[str, str]:
    """The models of accelerator of some kinds here, however many there are, and their compiler."""
    found: dict[str, str] = {}
    if "cuda" in kinds and torch.cuda.is_available():
        models = sorted({_gpu(index) for index in range(torch.cuda.device_count())})
        found["cuda"] = "; ".join(models)
        found["triton"] = _triton_version()
        found["driver"] = _driver_version()
    return found


@cache
def _gpu(index: int) -> str:
    properties: Any = torch.cuda.get_device_properties(index)
    return (
        f"{properties.name}, {properties.major}.{properties.minor}, "
        f"{properties.multi_processor_count} SMs, {properties.total_memory} bytes"
    )


@cache
def _driver_version() -> str:
    """The newest CUDA that the driver serves."""
    ask = getattr(torch._C, "_cuda_getDriverVersion", None)
    return "unknown" if ask is None else str(ask())


@cache
def _triton_version() -> str:
    try:
        return str(importlib.import_module("triton").__version__)
    except ImportError:
        return "none"


@cache
def _cpu_flags() -> str:
    """A digest of what the CPU can do: kernels are compiled for exactly this (-march=native)."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return hashlib.sha256(" ".join(sorted(value.split())).encode()).hexdigest()[:16]
    return platform.processor()
