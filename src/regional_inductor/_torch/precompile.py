"""A function captured whole, forward and backward, as bytes: torch's ahead-of-time path, taken apart.

Dynamo's capture gives a graph, bytecode and guards; AOTAutograd's serialisable result holds what is
around the graphs. Both are torch's own. What differs from `torch._dynamo.aot_compile`: graphs are ours
(`stitched_code`), and no guard is dropped unseen (`kept_guards`).

Checked on torch 2.11 and 2.13: `convert_frame.fullgraph_capture` and `get_traced_fn`, what
`GraphCaptureOutput` gives, `CheckFunctionManager.UNSUPPORTED_SERIALIZATION_GUARD_TYPES`,
`AOTCompiledFunction` and `CompileArtifacts`, `BundledAOTAutogradSerializableCallable`,
`BundledAOTAutogradResult`'s fields, and the entries of `torch._functorch.config` named below.
"""

from __future__ import annotations

import contextlib
import dis
import inspect
import re
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.fx

from . import kept_guards

CHECKED_VERSIONS = ((2, 11), (2, 12), (2, 13))


class NotCapturedError(Exception):
    """Why a call can't be captured whole, or not saved."""


@dataclass(frozen=True)
class Captured:
    """One capture of a function.

    Attributes:
        function: Torch's own ahead-of-time compiled function.
        guards: The guards that torch doesn't save.
        codes: The functions that were traced, the outermost included.
        graphs: The stitched graphs in it, forward first.
        device: Kind of the device that it is for.
    """

    function: Any
    guards: kept_guards.KeptGuards
    codes: tuple[types.CodeType, ...]
    graphs: tuple[Any, ...]
    device: str

    def to_bytes(self, outside: Mapping[str, Any]) -> bytes:
        """All but the stitched graphs, of which it holds tokens.

        Args:
            outside: Objects that are named and not pickled.

        Raises:
            NotCapturedError: The function holds what can't be pickled.
        """
        from torch._dynamo.aot_compile import AOTCompiledFunction

        try:
            data: bytes = AOTCompiledFunction.serialize(
                self.function, dict(outside)
            ).serialized_data
        except Exception as error:
            raise NotCapturedError(_first_line(error)) from error
        return data

    def accepts(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
        """Whether its guards hold for a call."""
        try:
            return bool(self.function.guard_check(*args, **kwargs))
        except Exception:  # noqa: BLE001 - arguments of another kind may fail a guard in any way
            return False


def why_not() -> str:
    """Why nothing can be captured on this torch, or ``""``."""
    version = tuple(int(part) for part in torch.__version__.split(".")[:2])
    return "" if version in CHECKED_VERSIONS else f"not checked on torch {torch.__version__}"


def why_not_now() -> str:
    """Why nothing can be captured with the configuration of now, or ``""``."""
    import torch._inductor.config as inductor_config

    return "Inductor's force_disable_caches is on" if inductor_config.force_disable_caches else ""


def capture(
    function: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    compile_graph: Callable[[torch.fx.GraphModule, list[Any]], Callable[..., Any]],
) -> Captured:
    """Capture a call whole and compile its graphs.

    Args:
        function: A function or bound method.
        args: Arguments to trace with.
        kwargs: The same by name.
        compile_graph: Takes the captured graph through AOTAutograd; its graphs become `StitchedCode`.

    Raises:
        NotCapturedError: Dynamo breaks the graph, or there is nothing to compile.
    """
    import torch._functorch.config as functorch_config
    from torch._dynamo import convert_frame
    from torch._dynamo.aot_compile import AOTCompiledFunction, CompileArtifacts
    from torch._dynamo.exc import TorchDynamoException
    from torch._dynamo.graph_utils import _graph_device_type
    from torch._dynamo.hooks import Hooks
    from torch._dynamo.package import SourceInfo
    from torch._dynamo.utils import dynamo_timed, get_metrics_context
    from torch._guards import TracingContext, tracing

    from .slim_state import slim_guards

    with contextlib.ExitStack() as stack:
        stack.enter_context(get_metrics_context())
        stack.enter_context(dynamo_timed("regional_inductor.save"))
        stack.enter_context(functorch_config.patch(strict_autograd_cache=True))
        modes = _mode_stack(stack)
        try:
            output = convert_frame.fullgraph_capture(function, tuple(args), dict(kwargs))
        except TorchDynamoException as error:
            raise NotCapturedError(_reason(error)) from error
        captured, given = output.graph_capture_output, output.backend_input
        if captured.output_graph is None or given is None:
            raise NotCapturedError("it runs no tensor operation that could be compiled")
        context = TracingContext(given.fake_mode)
        context.tensor_to_context = given.tensor_to_context
        with (
            tracing(context),
            functorch_config.patch(
                enable_autograd_cache=True,
                enable_remote_autograd_cache=False,
                bypass_autograd_cache_key=True,
                bundled_autograd_cache=True,
                force_non_lazy_backward_lowering=True,
                force_autograd_cache=True,
            ),
        ):
            compiled, graphs = _serialisable(
                compile_graph(given.graph_module, given.example_inputs)
            )
        traced, _ = convert_frame.get_traced_fn(function)
        # What AOTAutograd found out: which inputs are one tensor, and whose memory overlaps. Torch's own
        # path loses these.
        captured.output_graph._aotautograd_guards.extend(context.guards_context.aotautograd_guards)
        scope = {
            "L": dict(captured.output_graph.local_scope),
            "G": captured.output_graph.global_scope,
        }
        guards = kept_guards.Collector(scope, traced.__code__.co_freevars)
        with modes(), slim_guards():
            checks = captured.build_guards(
                traced.__code__,
                hooks=Hooks(guard_filter_fn=guards.keep_what_torch_saves),
                save=True,
                strict_error=True,
            )
        assert checks.guards_state is not None
        device = _graph_device_type(given.graph_module.graph)
        artifacts = CompileArtifacts(
            signature=inspect.signature(traced, follow_wrapped=False),
            guard_manager=checks.guard_manager,
            guards_state=checks.guards_state,
            backend_id=given.backend_id,
            compiled_fn=compiled,
            original_code=traced.__code__,
            runtime_env=_environment(captured, traced.__globals__),
            source_info=SourceInfo(inlined_sources=set()),
            device_type=device,
            backend_name="regional_inductor",
        )
        made = AOTCompiledFunction(_artifacts=artifacts, _extra_globals=traced.__globals__)
        codes = tuple(dict.fromkeys([traced.__code__, *captured.traced_code]))
        kept = guards.kept(captured.import_sources, traced.__globals__)
        return Captured(made, kept, codes, graphs, device)


@contextlib.contextmanager
def globals_given_back(function: Callable[..., Any]) -> Iterator[None]:
    """Take out of a function's globals what captures inside the block put there.

    Torch does that when the code that it compiled dies; a capture of the whole function compiles none.
    """
    variables = function.__globals__
    before = set(variables)
    try:
        yield
    finally:
        for name in variables.keys() - before:
            if name.startswith(("__builtins_dict__", "__compiled_fn")):
                del variables[name]


_INSTALLED = re.compile(r"__.*_\d+(_c\d+)?$")  # names of what Dynamo put among the globals


def _environment(captured: Any, variables: Mapping[str, Any]) -> Any:
    """What the bytecode needs besides the arguments, such that another process has it as well."""
    environment = captured.get_runtime_env()
    for instruction in dis.get_instructions(environment.bytecode):
        if instruction.opname in ("STORE_GLOBAL", "DELETE_GLOBAL"):
            # Loaded, it would write to a dict of its own.
            raise NotCapturedError(f"it assigns the global variable {instruction.argval}")
    for name in environment.external_refs - {
        *environment.used_globals,
        *environment.import_sources,
    }:
        value = variables.get(name)
        if isinstance(value, types.ModuleType):
            if _INSTALLED.match(name):
                environment.import_sources[name] = value.__name__
        elif value is not None and _INSTALLED.match(name) and not _is_of_backend(name):
            raise NotCapturedError(
                f"what it returns is made with a {type(value).__qualname__} of this process ({name})"
            )
    return environment


def _is_of_backend(name: str) -> bool:
    return name.startswith("__compiled_fn")


def _mode_stack(
    stack: contextlib.ExitStack,
) -> Callable[[], contextlib.AbstractContextManager[Any]]:
    """Torch function modes are put away while Dynamo traces (2.13), and back while guards are built."""
    from torch._dynamo.variables import torch_function

    manager = getattr(torch_function, "torch_function_mode_stack_state_mgr", None)
    if manager is None or not hasattr(manager, "temp_restore_stack"):
        return contextlib.nullcontext
    stack.enter_context(manager)
    return lambda: manager.temp_restore_stack() if manager.stack else contextlib.nullcontext()


def _serialisable(compiled: Any) -> tuple[Any, tuple[Any, ...]]:
    """AOTAutograd's result as torch serialises it, and the stitched graphs in it."""
    from .slim_state import SlimResult, without_texts

    if getattr(compiled, "serialize", None) is None:
        raise NotCapturedError("AOTAutograd can't serialise what it made of the graph")
    entry = compiled.serialize()
    # For compiled autograd, which would compile the backward graph once more; it holds that graph.
    entry.serialized_bw_module = None
    without_texts(entry)
    loadable = [entry.compiled_fw, *([entry.compiled_bw] if entry.compiled_bw is not None else [])]
    return SlimResult(compiled), tuple(one.result for one in loadable)


class LoadedFunction:
    """One saved capture, runnable again.

    Args:
        data: What `Captured.to_bytes` gave, from a source that is trusted: it is unpickled.
        module_globals: Global variables of the function's module in this process.
        outside: The objects that were named and not pickled, as this process has them.
    """

    def __init__(
        self, data: bytes, module_globals: dict[str, Any], outside: Mapping[str, Any]
    ) -> None:
        from torch._dynamo import convert_frame
        from torch._dynamo.aot_compile import AOTCompiledFunction
        from torch._dynamo.utils import get_metrics_context
        from torch._guards import CompileContext, compile_context

        with (
            compile_context(CompileContext(convert_frame.get_compile_id({}))),
            get_metrics_context(),
        ):
            made = AOTCompiledFunction.deserialize(data, module_globals, dict(outside))
        artifacts = made._artifacts
        self.run: Callable[..., Any] = made.fn
        self.signature: inspect.Signature = artifacts.signature
        self.import_sources: dict[str, str] = dict(artifacts.runtime_env.import_sources)
        self._closure = dict(
            zip(
                artifacts.runtime_env.bytecode.co_freevars,
                artifacts.runtime_env.closure or (),
                strict=False,
            )
        )
        self._guards: Any = artifacts.guard_manager
        self._made = made

    def variables(self, bound: dict[str, Any]) -> dict[str, Any]:
        """The frame's local variables for a call's bound arguments."""
        if self._closure:
            return {**{name: cell.cell_contents for name, cell in self._closure.items()}, **bound}
        return bound

    def accepts(self, variables: dict[str, Any]) -> bool:
        """Whether the guards that torch saved hold."""
        return bool(self._guards.check(variables))

    def why_not(self, variables: dict[str, Any]) -> str:
        """Which guard fails, in torch's words."""
        found = self._guards.check_verbose(variables)
        parts = getattr(found, "verbose_code_parts", None) or [str(found)]
        return "; ".join(str(part).split("#")[0].strip() for part in parts)


def closed_over(function: Callable[..., Any]) -> dict[str, Any]:
    """What a function closes over and the process that loads has of its own: functions and modules."""
    code: types.CodeType = function.__code__
    cells = dict(zip(code.co_freevars, function.__closure__ or (), strict=True))
    return {
        f"closure {name}": cell.cell_contents
        for name, cell in cells.items()
        if isinstance(cell.cell_contents, (types.FunctionType, type, torch.nn.Module))
    }


def _reason(error: BaseException) -> str:
    """What Dynamo says of a graph break: its first line, and the user's line."""
    text = str(error)
    first = _first_line(error)
    explained = next(
        (
            line.strip().removeprefix("Explanation:").strip()
            for line in text.splitlines()
            if line.strip().startswith("Explanation:")
        ),
        "",
    )
    return f"{first}: {explained}" if explained else first


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def line_of(error: BaseException) -> str:
    """``file:line`` of the user's code that Dynamo's error is about, or ``""``."""
    cause = error.__cause__
    frames: Any = getattr(cause, "real_stack", None) or ()
    for frame in reversed(list(frames)):
        return f"{frame.filename}:{frame.lineno}"
    return ""
