"""What torch's ahead-of-time path keeps of a capture, without what loading it only reads past.

Torch pickles with each guard where in the user's code it comes from and the text that it was built as,
guards that are never built, a mode of fake tensors for each parameter, and with AOTAutograd's result the
graphs as text: three quarters of the bytes, half of the time of loading. None of it is about what runs.

Checked on torch 2.11 and 2.13: `GuardsStatePickler`, which `pickle_guards_state` names and whose own
class methods its pickles refer to; `Guard`, which fills in the rest when it is built;
`skip_nnmodule_hook_guards`, with which hooks of modules are not guarded on;
`BundledAOTAutogradSerializableCallable`, `deserialize_bundled_cache_entry`, which copies a result for
another serialisation; the graphs as text in `BundledAOTAutogradResult`.
"""

from __future__ import annotations

import contextlib
import functools
import pickle
from collections.abc import Iterator
from typing import Any

import torch
from torch._dynamo import config as dynamo_config
from torch._dynamo import guards
from torch._dynamo.aot_compile_types import BundledAOTAutogradSerializableCallable
from torch._guards import Guard
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode


class _GuardsPickler(guards.GuardsStatePickler):
    def reducer_override(self, value: Any) -> Any:
        if type(value) is Guard:
            return Guard, (value.originating_source, value.create_fn)
        return super().reducer_override(value)

    @classmethod
    def _unpickle_tensor(
        cls,
        meta_tensor: torch.Tensor,
        device: torch.device,
        pytype: type,
        dispatch_keys_raw: int,
        grad: Any,
    ) -> torch.Tensor:
        keys = torch._C.DispatchKeySet.from_raw_repr(dispatch_keys_raw)
        tensor = FakeTensor(_fake_mode(), meta_tensor, device, pytype=pytype, dispatch_keys=keys)
        tensor.grad = grad
        return tensor


@functools.cache
def _fake_mode() -> FakeTensorMode:
    """One for all: these tensors are only looked at, while guards are built."""
    return FakeTensorMode()


@contextlib.contextmanager
def slim_guards() -> Iterator[None]:
    """Guards that are saved inside the block are saved without what isn't checked."""
    usual = guards.GuardsStatePickler
    guards.GuardsStatePickler = _GuardsPickler  # type: ignore[misc]
    try:
        yield
    finally:
        guards.GuardsStatePickler = usual  # type: ignore[misc]


def is_never_built(guard_type: str) -> bool:
    """Whether torch builds nothing of a guard of this type, as it is set up."""
    return guard_type == "EMPTY_NN_MODULE_HOOKS_DICT" and dynamo_config.skip_nnmodule_hook_guards


class SlimResult(BundledAOTAutogradSerializableCallable):
    """AOTAutograd's result as torch serialises it.

    Args:
        compiled: What AOTAutograd made of a graph.
    """

    def __init__(self, compiled: Any) -> None:
        super().__init__(compiled)

    @classmethod
    def deserialize_compile_artifacts(cls, data: bytes) -> Any:
        from torch._functorch._aot_autograd.aot_autograd_result import (
            deserialize_bundled_cache_entry,
        )

        entry, kernels, constants = pickle.loads(data)
        if kernels or constants:
            return super().deserialize_compile_artifacts(data)
        entry.__deepcopy__ = lambda memo: entry  # nobody serialises it again
        return cls(deserialize_bundled_cache_entry(entry))


def without_texts(entry: Any) -> None:
    """Drop the graphs as text from AOTAutograd's result: they are for logs."""
    entry.aot_joint_graph_str = None
    entry.aot_forward_graph_str = None
    entry.aot_backward_graph_str = None
