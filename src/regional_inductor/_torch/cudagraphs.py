"""CUDA graphs: recording a callable with torch's CUDA-graph trees.

The trees (`torch._inductor.cudagraph_trees`) record a callable at its second call, replay it while its
static inputs stay where they are, share one memory pool among everything recorded on a device, and run
unrecorded what mutates inputs that may move. They need nothing of Inductor's code generation.

Checked on torch 2.11 and 2.13: `cudagraph_trees.cudagraphify_impl`, `get_manager`;
`cudagraph_utils.get_placeholder_info`, `check_multiple_devices_or_any_cpu_nodes`;
`_inductor.utils.get_first_incompatible_cudagraph_node`, `num_fw_fixed_arguments`, `count_tangents`;
`cudagraph_trees.ExecutionState` and `CUDAGraphTreeManager.path_state`;
`_dynamo.backends.cudagraphs.find_input_mutations`, `get_device_node_mapping`, `get_stack_traces`.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.fx
from torch.fx.node import Node

from .symbols import symbols_of

BoxedCall = Callable[[list[Any]], Any]
Trial = Callable[[BoxedCall, Callable[[BoxedCall], None]], BoxedCall]
"""Given what replays, and a function that ends the trial: what to call until then."""

MOST_SIZES = 32
"""Recordings of one callable with symbolic sizes; each holds its own outputs' memory."""


@dataclass(frozen=True)
class Plan:
    """What the trees have to know of a graph; taken from it before the pass changes it.

    `static` are inputs that stay where they are from call to call (parameters, buffers, and in a
    backward graph what the forward one saved); the others are copied into the recording's memory. Tensors in
    `resized` have symbolic sizes that no argument names: the inputs of a region, which takes them as they are.
    """

    device: int
    static: tuple[int, ...]
    mutated: tuple[int, ...]
    placeholders: Sequence[Any]
    stack_traces: Sequence[str | None]
    resized: tuple[int, ...] = ()

    @property
    def mutates_what_may_move(self) -> bool:
        return bool(set(self.mutated) - set(self.static))


def why_not(graph: torch.fx.GraphModule) -> str:
    """Why a graph of eager operators can't be recorded, in a few words, or an empty string."""
    from torch._dynamo.backends.cudagraphs import get_device_node_mapping
    from torch._inductor.cudagraph_utils import check_multiple_devices_or_any_cpu_nodes
    from torch._inductor.utils import get_first_incompatible_cudagraph_node

    devices = get_device_node_mapping(graph)
    if not devices:
        return "it holds no tensor"
    with (
        no_recording_within()
    ):  # or it trusts Inductor to split the graph where it leaves the device
        problem = check_multiple_devices_or_any_cpu_nodes(devices)
    if problem:
        return _first_words(problem)
    node = get_first_incompatible_cudagraph_node(graph)
    return f"{node.target} can't be recorded" if node is not None else ""


def _first_words(problem: str) -> str:
    return problem.partition(" due to ")[2].partition(". Found from")[0].strip() or problem


def plan_forward(graph: torch.fx.GraphModule, captured_inputs: int) -> Plan:
    """A plan for a forward or inference graph, made while AOTAutograd compiles it.

    `captured_inputs` says how many inputs Dynamo's graph had.
    """
    from torch._inductor.utils import num_fw_fixed_arguments

    placeholders = graph.graph.find_nodes(op="placeholder")
    metadata = _metadata()
    if metadata is not None:
        static = tuple(metadata.static_input_indices)
    else:
        static = tuple(range(num_fw_fixed_arguments(captured_inputs, len(placeholders))))
    return _plan(graph, static)


def plan_backward(graph: torch.fx.GraphModule) -> Plan:
    """A plan for a backward graph whose forward graph is recorded as well."""
    from torch._inductor.utils import count_tangents

    return _plan(graph, tuple(range(count_tangents(graph))))


def plan_region(region: torch.fx.GraphModule, call: Node, direction: str) -> Plan:
    """A plan for one call site of an outlined region, made while AOTAutograd compiles its graph.

    What earlier recordings of the same pool return is recognised by the trees themselves.
    """
    metadata = _metadata()
    known = set(metadata.static_input_indices) if metadata is not None else set()
    static = set()
    for index, placeholder in enumerate(call.graph.find_nodes(op="placeholder")):
        own = re.fullmatch(r"primals_(\d+)", placeholder.name)  # in backward graphs as well
        place = int(own[1]) - 1 if own else index if direction != "backward" else -1
        if place in known:
            static.add(placeholder)
    return _plan(region, tuple(i for i, a in enumerate(call.args) if a in static))


def _metadata() -> Any:
    from torch._guards import TracingContext

    context = TracingContext.try_get()
    return context.fw_metadata if context is not None else None


def _plan(graph: torch.fx.GraphModule, static: tuple[int, ...]) -> Plan:
    from torch._dynamo.backends.cudagraphs import (
        find_input_mutations,
        get_device_node_mapping,
        get_stack_traces,
    )
    from torch._inductor.cudagraph_utils import get_placeholder_info

    devices = [d for d in get_device_node_mapping(graph) if d.type == "cuda"]
    index = devices[0].index
    return Plan(
        torch.cuda.current_device() if index is None else index,
        static,
        tuple(sorted(find_input_mutations(graph.graph))),
        get_placeholder_info(graph.graph),
        get_stack_traces(graph),
        _resized(graph),
    )


def _resized(graph: torch.fx.GraphModule) -> tuple[int, ...]:
    """Places of tensors with symbols in their sizes that aren't arguments themselves."""
    values = [node.meta.get("val") for node in graph.graph.find_nodes(op="placeholder")]
    named = {value.node.expr for value in values if isinstance(value, torch.SymInt)}
    return tuple(
        place
        for place, value in enumerate(values)
        if isinstance(value, torch.Tensor) and not symbols_of(value) <= named
    )


@contextlib.contextmanager
def no_recording_within() -> Iterator[None]:
    """Inductor compiles without CUDA graphs of its own, whatever its config says."""
    import torch._inductor.config as inductor_config

    with inductor_config.patch({"triton.cudagraphs": False}):
        yield


def is_asked_for(options: Mapping[str, Any]) -> bool:
    """Whether Inductor would record what it compiles with these options."""
    import torch._inductor.config as inductor_config

    return bool(options.get("triton.cudagraphs", inductor_config.triton.cudagraphs))


def emptying(call: Callable[..., Any]) -> BoxedCall:
    """A callable that takes arguments as one that takes a list of them, which it empties."""

    def boxed(arguments: list[Any]) -> Any:
        taken = tuple(arguments)
        arguments.clear()
        return call(*taken)

    return boxed


def recorded(
    call: BoxedCall,
    plan: Plan,
    direction: str,
    most: int = MOST_SIZES,
    trial: Trial | None = None,
) -> BoxedCall:
    """A callable that records `call` and replays it, one recording a set of sizes.

    Args:
        call: Takes a list of arguments, which it empties.
        plan: What `plan_forward` or `plan_backward` found.
        direction: "forward", "backward" or "inference".
        most: How many sets of sizes are recorded; further ones run `call` as it is.
        trial: Compares replays with something else, for a while.

    Returns:
        A boxed callable.
    """
    now: BoxedCall = call  # until `start` is there

    def start(arguments: list[Any]) -> Any:
        unrecorded = running_backward(call, plan.device) if direction == "backward" else call
        if plan.resized:
            replay = _of_each_size(
                lambda some: _replaying(call, some, plan, direction), plan.resized, unrecorded, most
            )
        else:
            replay = _replaying(call, arguments, plan, direction)
            if any(type(value) is int for value in arguments):
                replay = _for_few_sizes(replay, unrecorded, most)
        settle(replay if trial is None else trial(replay, settle))
        return now(arguments)

    def settle(replay: BoxedCall) -> None:
        nonlocal now
        now = replay

    def run(arguments: list[Any]) -> Any:
        return now(arguments)

    now = start
    run._boxed_call = True  # type: ignore[attr-defined]
    return run


def _for_few_sizes(replay: BoxedCall, unrecorded: BoxedCall, most: int) -> BoxedCall:
    seen: set[tuple[int, ...]] = set()

    def run(arguments: list[Any]) -> Any:
        sizes = tuple(value for value in arguments if type(value) is int)
        if sizes not in seen:
            if len(seen) >= most:
                return unrecorded(arguments)
            seen.add(sizes)
        return replay(arguments)

    return run


def _of_each_size(
    record: Callable[[list[Any]], BoxedCall],
    resized: Sequence[int],
    unrecorded: BoxedCall,
    most: int,
) -> BoxedCall:
    """The trees tell sizes apart by integer arguments; here they are those of tensors as well."""
    recordings: dict[tuple[Any, ...], BoxedCall] = {}

    def run(arguments: list[Any]) -> Any:
        shapes = tuple(arguments[place].shape for place in resized)
        sizes = (shapes, tuple(value for value in arguments if type(value) is int))
        replay = recordings.get(sizes)
        if replay is None:
            if len(recordings) >= most:
                return unrecorded(arguments)
            replay = recordings[sizes] = record(arguments)
        return replay(arguments)

    return run


def _replaying(call: BoxedCall, arguments: list[Any], plan: Plan, direction: str) -> BoxedCall:
    from torch._guards import CompileContext
    from torch._inductor.cudagraph_trees import cudagraphify_impl

    # The trees look at the kinds of the arguments here, which must be real ones: ints, not symbols.
    replaying: BoxedCall = cudagraphify_impl(
        call,
        arguments,
        plan.static,
        device_index=plan.device,
        stack_traces=list(plan.stack_traces),
        is_backward=direction == "backward",
        is_inference=direction == "inference",
        placeholders=plan.placeholders,
        mutated_input_idxs=plan.mutated,
        compile_id=CompileContext.current_compile_id(),
    )
    return replaying


def running_backward(call: BoxedCall, device: int) -> BoxedCall:
    """A backward graph that isn't recorded although its forward graph is.

    The trees must hear of it, or they take the next forward pass for a part of this step.
    """
    from torch._inductor.cudagraph_trees import get_manager

    def run(arguments: list[Any]) -> Any:
        manager = get_manager(device, create_if_none_exists=False)
        if manager is not None:
            manager.set_to_running_backward()
        return call(arguments)

    run._boxed_call = True  # type: ignore[attr-defined]
    return run


class Stopwatch:
    """Times calls on one device, from when it is idle until what was called has finished there."""

    def __init__(self, device: int) -> None:
        self._device = device

    def is_usable(self) -> bool:
        """Whether the device may be waited for: while a stream is recorded it may not."""
        return not torch.cuda.is_current_stream_capturing()

    def seconds_of(self, call: Callable[[], Any]) -> tuple[float, Any]:
        torch.cuda.synchronize(self._device)
        start = time.perf_counter()
        result = call()
        torch.cuda.synchronize(self._device)
        return time.perf_counter() - start, result

    def has_replayed(self) -> bool:
        """Whether the latest call of something recorded replayed it; it may have recorded it anew."""
        from torch._inductor.cudagraph_trees import ExecutionState, get_manager

        manager = get_manager(self._device, create_if_none_exists=False)
        return manager is not None and manager.path_state is ExecutionState.EXECUTION
