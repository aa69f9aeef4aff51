"""Generated code for one GPU, made to run on another of the same kind.

Inductor writes the number of the GPU into the code that it generates, so the ranks of a job, each with a GPU of its
own, would share nothing. Everything in that code that depends on the number is of one of a few forms; code with
anything else that looks like a number of a GPU is left alone.

Checked by reading torch 2.11 and 2.13: `CUDADeviceOpOverrides`, `get_raw_stream_name`, `DeviceProperties`,
`PythonWrapperCodegen.val_to_arg_str` for devices, `rand_strided` in the code that measures a module.
"""

from __future__ import annotations

import re

_NUMBERED = re.compile(
    r"""
    (?P<before>
        \b_DeviceGuard\(             # with torch.cuda._DeviceGuard(0):
      | \bset_device\(
      | \bget_raw_stream\(
      | \bdefault_generators\[
      | \bstream(?=\d+\b)           # stream0 = get_raw_stream(0)
      | \braw_stream(?=\d+\b)
      | \bsemaphores_cuda_
      | \btype='cuda',\s*index=      # of a device and of DeviceProperties
      | \bcuda:
    )
    (?P<number>\d+)\b
    """,
    re.VERBOSE,
)
# What has a number after such a name and isn't one of a GPU.
_OTHER = re.compile(r"\bempty_strided_cuda\(|\bcuda_graph\w*|\bdevice_str\b")
_SUSPICIOUS = re.compile(r"(?i)(cuda|device|gpu)\w*\s*[:=(\[,_]{0,2}\s*\d")


class UnmovableError(Exception):
    """Why code can't be made to run on another GPU."""


def moved(source: str, to: int) -> str:
    """The source of a generated module for another GPU.

    Args:
        source: As Inductor wrote it, kernels included.
        to: The GPU that it shall run on.

    Raises:
        UnmovableError: It names several GPUs, or something that may be the number of one.
    """
    found = {int(match["number"]) for match in _NUMBERED.finditer(source)}
    if len(found) > 1:
        raise UnmovableError(f"its code is for the GPUs {sorted(found)}")
    rest = _OTHER.sub("", _NUMBERED.sub("", source))
    unknown = _SUSPICIOUS.search(rest)
    if unknown:
        raise UnmovableError(f"its code holds {unknown[0]!r}, which may be the number of a GPU")
    return _NUMBERED.sub(lambda match: f"{match['before']}{to}", source)
