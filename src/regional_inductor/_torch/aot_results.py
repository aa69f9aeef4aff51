"""Dynamo's graphs as text, and what AOTAutograd made of one as bytes.

Torch's own cache for this keeps pickles in a folder whose writers nobody checks, and its key sees no
annotations. So its result is taken from where torch would save it, and kept elsewhere.

Only graphs are described that hold nothing but tensors of known metadata, torch's own functions and plain
constants; anything else raises.

Checked on torch 2.13: `AOTAutogradCache.try_load` and `.save`, `AOTAutogradCacheInfo`,
`graph_compile._should_save_cache` and `AOTAutogradCache.make_entry`, which ask for `_fx_graph_cache_key`,
`SerializableAOTDispatchCompiler`, `BundledAOTAutogradResult`, `ViewAndMutationMeta`,
`SerializableCompiledFunction`; keys of node meta in Dynamo's graphs; `torch.library._impls`, `predispatch.VMAP_DECOMPOSITIONS_LIB`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import pickle
import re
import sys
import time
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.fx
from torch._functorch import predispatch
from torch._ops import OpOverload, OpOverloadPacket
from torch._subclasses.fake_tensor import FakeTensor

from . import portable
from .symbols import symbols_of
from .versions import is_one_of

CHECKED_VERSIONS = ((2, 13),)


class UnkeptError(Exception):
    """Why what becomes of a graph can't be kept for another process."""


# --- what stands around a graph -------------------------------------------------------------------


def why_not_now() -> str:
    """Why nothing may be kept or taken in the state that torch is in, or ``""``."""
    import torch._dynamo.config as dynamo_config
    import torch._functorch.config as functorch_config

    if not is_one_of(CHECKED_VERSIONS):
        return f"it wasn't checked on torch {torch.__version__}"
    if functorch_config.force_autograd_cache:
        return "AOTAutograd's own cache is forced"
    if not functorch_config.enable_autograd_cache:
        return "AOTAutograd's cache is switched off"
    if getattr(dynamo_config, "caching_precompile", False):
        return "torch's caching_precompile is on"
    if torch._C._len_torch_dispatch_stack() or torch._C._len_torch_function_stack():
        return "a mode of torch is on"
    if torch._C._functorch.peek_interpreter_stack() is not None:
        return "it is in a transform of functorch"
    for implementation in sorted(getattr(torch.library, "_impls", ())):
        if _is_of_somebody_else(implementation):
            return f"somebody implements {implementation}"
    return ""


# What torch 2.13 registers from Python itself, besides fake implementations and those of `vmap`.
_TORCHS_IMPLEMENTATIONS = frozenset({"aten/_foreach_mm/CUDA", "aten/linalg_lu_solve.out/MPS"})


def _is_of_somebody_else(implementation: str) -> bool:
    return (
        implementation.startswith("aten/")
        and not implementation.endswith("/Meta")
        and implementation not in _TORCHS_IMPLEMENTATIONS
        and implementation not in getattr(predispatch.VMAP_DECOMPOSITIONS_LIB, "_op_impls", ())
    )


def state() -> str:
    """What AOTAutograd may look at besides the graph, Inductor's and functorch's config, as text."""
    import torch._dynamo.config as dynamo_config

    config = [
        f"{name}={_portable(value)}"
        for name, value in sorted(dynamo_config.get_config_copy().items())
        if name not in _PLACES
    ]
    return "\n".join([*config, f"device {torch.get_default_device()}"])


_PLACES = ("base_dir", "debug_dir_root")


def _portable(value: Any) -> str:
    if isinstance(value, (set, frozenset)):
        return f"{{{', '.join(sorted(map(_portable, value)))}}}"
    if isinstance(value, (types.FunctionType, types.ModuleType, type)):
        return f"{getattr(value, '__module__', '')}.{value.__name__}"
    return repr(value)


# --- a graph as text ------------------------------------------------------------------------------


def lines_of(module: torch.fx.GraphModule, inputs: Sequence[Any], mark_key: str) -> list[str]:
    """A graph of Dynamo's that only computes, with all that compiling it depends on, as text.

    Args:
        module: The graph, marked.
        inputs: What Dynamo hands over with it.
        mark_key: The annotation whose entries are numbers drawn anew in each process.

    Raises:
        UnkeptError: It holds what only this process knows, or what may differ in ways that a text doesn't show.
    """
    if next(module.parameters(), None) is not None or next(module.buffers(), None) is not None:
        raise UnkeptError("its graph holds tensors")
    if hasattr(module, "saved_tensors_hooks_pack_0"):
        raise UnkeptError("it has hooks for saved tensors")
    numbers = _Numbers()
    lines = []
    for value in inputs:
        lines.append(
            f"input {_tensor(value)}" if isinstance(value, torch.Tensor) else _spelled(value)
        )
    lines.append(f"aliases {_aliases(inputs)}")
    for node in module.graph.nodes:
        lines.append(_node(node, numbers, mark_key))
    return lines


class _Numbers:
    """Numbers for what has another name in each process, by first appearance."""

    def __init__(self) -> None:
        self._known: dict[Any, int] = {}
        self._first: int | None = None

    def of(self, value: Any) -> int:
        return self._known.setdefault(value, len(self._known))

    def since_the_first(self, sequence: int) -> int:
        """Autograd counts what was recorded since the process started; which came before which stays."""
        if self._first is None:
            self._first = sequence
        return sequence - self._first


_READ = frozenset(
    {"custom", "nn_module_stack", "seq_nr", "source_fn_stack", "stack_trace", "tensor_dict"}
)
_NEUTRAL = frozenset({"creation_timestamp", "example_value", "grapharg"})


def _node(node: torch.fx.Node, numbers: _Numbers, mark_key: str) -> str:
    unknown = node.meta.keys() - _READ - _NEUTRAL
    if unknown:
        raise UnkeptError(f"{node.name} carries {', '.join(sorted(map(str, unknown)))}")
    value = node.meta.get("example_value")
    if symbols_of(value):
        raise UnkeptError("its sizes are symbolic")
    parts = [node.op, node.name, _target(node), _spelled(node.args), _spelled(dict(node.kwargs))]
    for item in value if isinstance(value, (tuple, list)) else (value,):
        if isinstance(item, torch.Tensor):
            parts.append(_tensor(item) if node.op == "placeholder" else _kind(item))
    parts.append(f"mark {_custom(node.meta.get('custom') or {}, numbers, mark_key)}")
    parts.append(f"tensor {_spelled(dict(node.meta.get('tensor_dict') or {}))}")
    if "seq_nr" in node.meta:
        parts.append(f"sequence {numbers.since_the_first(node.meta['seq_nr'])}")
    for key, (path, kind) in (node.meta.get("nn_module_stack") or {}).items():
        parts.append(f"in {numbers.of(('module', key))} {path} {_named(kind)}")
    for name, origin in node.meta.get("source_fn_stack") or ():
        parts.append(f"from {name} {origin if isinstance(origin, str) else _named(origin)}")
    parts.append(_NUMBERED.sub(r"\1", str(node.meta.get("stack_trace") or "")))
    return "\n ".join(parts)


# Frames of block capture are called by a name with a number of this process.
_NUMBERED = re.compile(r'(in_place\.py", line \d+), in \S+')


def _custom(custom: Any, numbers: _Numbers, mark_key: str) -> str:
    if not isinstance(custom, dict):
        raise UnkeptError("an annotation is no dict")
    if mark_key not in custom:
        return _spelled(custom)
    mark = custom[mark_key]
    if mark is None or mark is False:
        raise UnkeptError("a mark that warns")
    if isinstance(mark, dict):
        entry = mark.get("entry")
        mark = {**mark, "entry": None if entry is None else numbers.of(("entry", entry))}
    return _spelled({**custom, mark_key: mark})


def _target(node: torch.fx.Node) -> str:
    if node.op in ("placeholder", "output"):
        return ""
    if node.op == "call_method" and isinstance(node.target, str):
        method = getattr(torch.Tensor, node.target, None)
        if (
            isinstance(method, types.FunctionType)
            and method.__module__.partition(".")[0] != "torch"
        ):
            raise UnkeptError(f"somebody replaced {node.target} of tensors")
        return node.target
    if node.op != "call_function":
        raise UnkeptError(f"{node.op} {node.target}")
    target: Any = node.target
    if isinstance(target, (OpOverload, OpOverloadPacket)):
        if portable.is_torchs_operator(target):
            return str(target)
    elif isinstance(target, types.BuiltinFunctionType):
        for home in _HOMES:
            if getattr(home, target.__name__, None) == target:
                return f"{getattr(home, '__name__', 'functions')}.{target.__name__}"
        if target.__module__ in ("_operator", "builtins", "math"):
            return f"{target.__module__}.{target.__qualname__}"
    elif isinstance(target, types.FunctionType) and _is_torchs(target):
        return f"{target.__module__}.{target.__qualname__}"
    raise UnkeptError(f"it calls {target}")


_HOMES: tuple[Any, ...] = tuple(
    getattr(torch._C, name)
    for name in ("_VariableFunctions", "_nn", "_special", "_linalg", "_fft", "_nested", "_sparse")
    if hasattr(torch._C, name)
)
_OTHER_HOMES = ("torch._dynamo", "torch._higher_order_ops", "torch.distributed", "torch.library")


def _is_torchs(function: types.FunctionType) -> bool:
    """Whether it is what torch itself has under its name."""
    home = function.__module__
    if home.partition(".")[0] != "torch" or home.startswith(_OTHER_HOMES):
        return False
    return getattr(sys.modules.get(home), function.__qualname__, None) is function


def _named(value: Any) -> str:
    return f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', type(value).__qualname__)}"


def _spelled(value: Any) -> str:
    """A constant as text that differs wherever it does: 1, 1.0 and True are three."""
    if isinstance(value, torch.fx.Node):
        return f"%{value.name}"
    if type(value) in (bool, int, float, complex, str, bytes, type(None), type(...)):
        return f"{type(value).__name__}:{value!r}"
    if isinstance(value, (list, tuple)):
        if not isinstance(value, torch.Size) and type(value).__name__ not in _SEQUENCES:
            raise UnkeptError(f"a constant of type {type(value).__qualname__}")
        kind = "[" if isinstance(value, list) else "("
        return kind + ",".join(map(_spelled, value)) + ")"
    if isinstance(value, (dict, types.MappingProxyType)):
        pairs = [f"{_spelled(key)}:{_spelled(item)}" for key, item in value.items()]
        return "{" + ",".join(pairs) + "}"
    if isinstance(value, slice):
        return f"slice{_spelled((value.start, value.stop, value.step))}"
    if isinstance(value, (torch.dtype, torch.device, torch.layout, torch.memory_format)):
        return repr(value)
    raise UnkeptError(f"a constant of type {type(value).__qualname__}")


_SEQUENCES = ("list", "tuple", "immutable_list")


def spelled(value: Mapping[str, Any]) -> str:
    """Settings as text.

    Raises:
        UnkeptError: One is no plain value.
    """
    return _spelled(dict(value))


def _kind(value: torch.Tensor) -> str:
    if value.device.type != "cpu":
        raise UnkeptError(f"a value is on {value.device}")
    return f"{value.dtype} {value.device}"


def _tensor(value: torch.Tensor) -> str:
    if type(value) not in (torch.Tensor, torch.nn.Parameter, FakeTensor):
        raise UnkeptError(f"an input is a {type(value).__qualname__}")
    if value.layout is not torch.strided or value.device.type != "cpu":
        raise UnkeptError(f"an input is {value.layout} on {value.device}")
    if symbols_of(value):
        raise UnkeptError("its sizes are symbolic")
    return " ".join(
        map(
            str,
            (
                isinstance(value, torch.nn.Parameter),
                value.dtype,
                value.device,
                tuple(value.shape),
                value.stride(),
                value.storage_offset(),
                value.untyped_storage().nbytes(),
                value.requires_grad,
                value.is_leaf,
                value._is_view(),
                value.is_inference(),
                value.is_conj(),
                value.is_neg(),
            ),
        )
    )


def _aliases(inputs: Sequence[Any]) -> list[int]:
    """For each tensor the first one in the same memory, by position."""
    first: dict[int, int] = {}
    return [
        first.setdefault(value.untyped_storage()._cdata, index)
        for index, value in enumerate(inputs)
        if isinstance(value, torch.Tensor)
    ]


# --- AOTAutograd's result -------------------------------------------------------------------------


@contextlib.contextmanager
def results_offered(module: torch.fx.GraphModule) -> Iterator[None]:
    """Have AOTAutograd offer what it makes of a graph in the block (`result_of`), and save nothing.

    To be used while no other thread compiles: `dynamo.compiling_alone`.
    """
    from torch._functorch._aot_autograd import autograd_cache
    from torch._functorch._aot_autograd.schemas import AOTAutogradCacheInfo

    cache: Any = autograd_cache.AOTAutogradCache
    load: Any = cache.__dict__["try_load"]
    save: Any = cache.__dict__["save"]

    def try_load(mod: Any, args: Any, aot_config: Any, *rest: Any, **more: Any) -> Any:
        if mod is not module:
            return load.__func__(mod, args, aot_config, *rest, **more)
        info = AOTAutogradCacheInfo(_OURS, time.time_ns(), forward_symints=[])
        return None, dataclasses.replace(aot_config, cache_info=info)

    def keep(key: str, *rest: Any, **more: Any) -> None:
        if key != _OURS:
            save.__func__(key, *rest, **more)

    cache.try_load = staticmethod(try_load)
    cache.save = staticmethod(keep)
    try:
        yield
    finally:
        cache.try_load = load
        cache.save = save


_OURS = "regional_inductor"


def offering(compiler: Callable[..., Any]) -> Any:
    """A compiler of forward graphs for which AOTAutograd asks its cache."""
    from torch._functorch._aot_autograd.schemas import SerializableAOTDispatchCompiler
    from torch._inductor.output_code import OutputCode

    return SerializableAOTDispatchCompiler(OutputCode, compiler)


def offered_code(module: torch.fx.GraphModule) -> Any:
    """A stitched graph as what AOTAutograd offers."""
    from .stitched_code import StitchedCode

    code: Any = StitchedCode(module, module)
    code._fx_graph_cache_key = code.token  # without one AOTAutograd offers nothing
    return code


def guards_so_far() -> int:
    """How many guards AOTAutograd added to the capture at hand."""
    context = torch._guards.TracingContext.try_get()
    return 0 if context is None else len(context.guards_context.aotautograd_guards)


def result_of(compiled: Any, code: Any) -> bytes:
    """What AOTAutograd offered for an inference graph, as bytes; of the stitched graph they hold a token.

    Args:
        compiled: What AOTAutograd returned.
        code: What `offered_code` gave for the graph in it.

    Raises:
        UnkeptError: There is nothing, or it is more than a graph and wrappers around it.
    """
    from torch._functorch._aot_autograd.aot_autograd_result import (
        BundledAOTAutogradResult,
        BundledCompiledForward,
    )

    offer = getattr(compiled, "serialize", None)
    if offer is None:
        raise UnkeptError("AOTAutograd offers no result")
    entry = offer()
    if entry.compiled_bw is not None or entry.maybe_subclass_meta is not None:
        raise UnkeptError("it is no inference graph of plain tensors")
    metadata = entry.runtime_metadata
    if metadata.tokens or metadata.num_graphsafe_rng_states:
        raise UnkeptError("it has effects")
    if entry.guards_expr not in (None, "", "True"):
        raise UnkeptError(f"it holds under {entry.guards_expr} only")
    fields = {field.name: getattr(entry, field.name) for field in dataclasses.fields(entry)}
    fields["compiled_fw"] = BundledCompiledForward(code)
    fields["guards_expr"] = None
    config = dataclasses.replace(entry.sanitized_aot_config, aot_autograd_arg_pos_to_source=None)
    fields["sanitized_aot_config"] = config
    try:
        return pickle.dumps(BundledAOTAutogradResult(**fields))
    except Exception as error:
        raise UnkeptError(f"AOTAutograd's result can't be pickled: {error}") from error


def callable_of(data: bytes, call: Callable[[list[Any]], Any], token: str) -> Callable[..., Any]:
    """What AOTAutograd returned when it made a graph, around the graph as it is in this process.

    Args:
        data: What `result_of` gave, from a source that is trusted: it is unpickled.
        call: The stitched graph.
        token: What stands for it.
    """
    from torch._inductor.cudagraph_utils import BoxedDeviceIndex
    from torch._inductor.utils import BoxedBool

    from .stitched_code import StitchedCode

    code = StitchedCode(call, None, token)  # held until what names it is unpickled
    entry = pickle.loads(data)
    assert entry.compiled_fw.result is code
    config: Any = {
        "cudagraphs": BoxedBool(False),
        "boxed_forward_device_index": BoxedDeviceIndex(None),
    }
    compiled = entry.wrap_post_compile([], entry.sanitized_aot_config, config)

    def forward(*args: Any) -> Any:
        return compiled(list(args))

    return _outside_dynamo(forward)


def _outside_dynamo(function: Callable[..., Any]) -> Callable[..., Any]:
    disable: Any = torch._dynamo.disable
    wrapped: Callable[..., Any] = disable(function, reason="do not trace AOT-compiled graph")
    return wrapped
