"""What makes two outlined regions the same work.

A key that is too loose is a silent wrong answer, so everything that may change generated code goes
in; names and the order in which a capture happened to list independent inputs stay out. A key is
computed here, apart from any storage.
"""

from __future__ import annotations

import hashlib
import operator
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.fx
from torch.fx.node import Node

from ._torch import inductor, ops, portable, symbols
from ._torch.config import set_by_the_user
from ._torch.symbols import SYMBOLIC_TYPES, Sizes, expression_of, shape_env_of, symbols_of
from .identity import identity_aside, identity_of


def region_key(
    module: torch.fx.GraphModule,
    options: Mapping[str, Any],
    *,
    backend: str,
    environment: str,
) -> str:
    """The key of an outlined region.

    Args:
        module: The outlined region; its placeholders and nodes carry fake values.
        options: Inductor's options for this region, after defaults.
        backend: Which backend compiles it, and its identity where something patched it.
        environment: What `environment_key` gave for this process state.

    Returns:
        A hexadecimal digest. Equal digests mean that a callable compiled for one region may stand
        for the other: same operators, constants, input metadata, aliasing, options, environment.
    """
    return combined_key(key_parts(module, options, backend=backend, environment=environment))


def key_parts(
    module: torch.fx.GraphModule,
    options: Mapping[str, Any],
    *,
    backend: str,
    environment: str,
) -> dict[str, str]:
    """What a region key is made of, so that two keys can be compared part by part.

    Args:
        module: As for `region_key`.
        options: As for `region_key`.
        backend: As for `region_key`.
        environment: As for `region_key`.

    Returns:
        A digest for each of ``backend``, ``options``, ``environment``, ``inputs`` (their metadata),
        ``operators`` (which, in which order), ``arguments`` (how they are connected, constants,
        bodies of HOPs), ``values`` (metadata of what they compute), ``outputs``, ``aliases`` (among
        inputs) and ``symbols`` (the ShapeEnv, for symbolic sizes).
    """
    texts: dict[str, list[str]] = {
        "backend": [f"backend {backend}"],
        "options": [f"options {_spell(dict(options), {}, module)}"],
        "environment": [environment],
        "operators": [
            ops.target_identity(n) for n in module.graph.nodes if n.op.startswith("call")
        ],
    }
    texts |= _graph_texts(module)
    placeholders = [n for n in module.graph.nodes if n.op == "placeholder"]
    values = [n.meta.get("val") for n in module.graph.nodes]
    if any(symbols_of(value) for value in values):
        # Guards that a compile adds hold for the symbols and the ShapeEnv it ran under only.
        texts["symbols"] = [f"symbols {identity_aside(shape_env_of(values))}"]
    texts["aliases"] = [f"aliases {_alias_pattern([n.meta.get('val') for n in placeholders])}"]
    return {name: _digest(lines) for name, lines in texts.items()}


def key_on_any_gpu(module: torch.fx.GraphModule, parts: Mapping[str, str]) -> str:
    """The region key without the number of the GPU, for regions that know one only.

    Ranks of a job each have a GPU of their own; what they compile differs by its number.

    Args:
        module: As for `region_key`.
        parts: What `key_parts` gave for it.
    """
    index = portable.only_gpu(module)
    if index is None:
        return combined_key(parts)
    numbered = re.compile(rf"\b(cuda:|device\(type='cuda', index=){index}\b")
    texts = {
        name: [numbered.sub(r"\1any", line) for line in lines]
        for name, lines in _graph_texts(module).items()
    }
    return combined_key({**parts, **{name: _digest(lines) for name, lines in texts.items()}})


def _graph_texts(module: torch.fx.GraphModule) -> dict[str, list[str]]:
    """The lines that describe a graph, by the part of the key that they belong to."""
    texts: dict[str, list[str]] = {"inputs": [], "arguments": [], "values": [], "outputs": []}
    for line in _graph_lines(module):
        texts[_PART_OF_LINE.get(line.partition(" ")[0], "arguments")].append(line)
    return texts


def _digest(lines: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def sizes_of(module: torch.fx.GraphModule) -> Sizes:
    """The symbolic sizes of an outlined region.

    Raises:
        UnstatedError: They can't be told to another process.
    """
    values = [node.meta.get("val") for node in module.graph.nodes]
    inputs = [node.meta.get("val") for node in module.graph.nodes if node.op == "placeholder"]
    return symbols.sizes_of(inputs, values)


def parts_for_all(parts: Mapping[str, str], sizes: Sizes) -> dict[str, str]:
    """Parts that mean the same in every process, where a region's own hold no objects of this one.

    In them the sizes at capture and their ranges stand for the capture itself; what compiling assumes
    beyond them, whoever takes the region has to check.
    """
    if "symbols" not in parts:
        return dict(parts)
    return {**parts, "symbols": f"for all {_digest([symbols.facts_of(sizes)])}"}


_PART_OF_LINE = {"in": "inputs", "=": "values", "out": "outputs"}


def combined_key(parts: Mapping[str, str]) -> str:
    """The region key that some parts make."""
    text = "\n".join(f"{name} {digest}" for name, digest in sorted(parts.items()))
    return hashlib.sha256(text.encode()).hexdigest()


def environment_key() -> str:
    """Everything outside the graph that changes what a compile produces, as one line.

    Computed once a pass: Inductor's and functorch's config, and torch's numeric switches.
    """
    return f"environment {inductor.config_key()} {environment_state()!r}"


def environment_state() -> dict[str, Any]:
    """What `environment_key` is made of besides Inductor's and functorch's config, by name."""
    return {
        "torch": torch.__version__,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "deterministic_warn": torch.is_deterministic_algorithms_warn_only_enabled(),
        "fill_uninitialized": torch.utils.deterministic.fill_uninitialized_memory,  # type: ignore[attr-defined]
        "default_dtype": str(torch.get_default_dtype()),
        "grad": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "autocast": [
            (device, torch.is_autocast_enabled(device), str(torch.get_autocast_dtype(device)))
            for device in ("cpu", "cuda")
        ],
        "autocast_cache": torch.is_autocast_cache_enabled(),
        "backends": {name: _switch(name) for name in _BACKEND_SWITCHES},
        "threads": torch.get_num_threads(),
    }


def described_environment() -> dict[str, str]:
    """The environment as text by name, with those entries of Inductor's config that somebody set."""
    state = environment_state()
    state.update({f"backends.{name}": value for name, value in state.pop("backends").items()})
    state.update({f"inductor.{name}": value for name, value in set_by_the_user().items()})
    return {name: str(value) for name, value in state.items()}


_BACKEND_SWITCHES = (
    "fp32_precision",
    "cuda.matmul.fp32_precision",
    "cuda.matmul.allow_tf32",
    "cuda.matmul.allow_fp16_reduced_precision_reduction",
    "cuda.matmul.allow_bf16_reduced_precision_reduction",
    "cuda.matmul.allow_fp16_accumulation",
    "cudnn.enabled",
    "cudnn.deterministic",
    "cudnn.benchmark",
    "cudnn.allow_tf32",
    "cudnn.fp32_precision",
    "cudnn.conv.fp32_precision",
    "cudnn.rnn.fp32_precision",
    "mkldnn.enabled",
    "mkldnn.deterministic",
    "mkldnn.fp32_precision",
    "mkldnn.matmul.fp32_precision",
    "mkldnn.conv.fp32_precision",
    "mkldnn.rnn.fp32_precision",
)


def _switch(name: str) -> str:
    """A numeric switch under `torch.backends`, as text.

    torch refuses to answer the older ones (and `get_float32_matmul_precision`) once the newer ones
    were used; what they would say is in the newer ones then.
    """
    value: Any = torch.backends
    try:
        for part in name.split("."):
            value = getattr(value, part)
    except AttributeError:
        return "absent"
    except RuntimeError:
        return "mixed"
    return repr(value)


def _graph_lines(module: torch.fx.GraphModule) -> list[str]:
    number: dict[Node, int] = {}
    lines: list[str] = []
    for node in module.graph.nodes:
        number[node] = len(number)
        if node.op == "placeholder":
            lines.append(f"in {_metadata(node.meta.get('val'))}")
        elif node.op == "output":
            metadata = [_metadata(argument.meta.get("val")) for argument in node.all_input_nodes]
            lines.append(f"out {_spell(node.args, number, module)} {metadata}")
        elif node.op == "get_attr":
            lines.append(f"attr {_attribute(ops.attribute(module, str(node.target)))}")
        else:
            lines.append(
                f"{ops.target_identity(node)} {_spell(node.args, number, module)} "
                f"{_spell(node.kwargs, number, module)} {_hints(node)}"
            )
            if node.op == "call_module":
                lines.append(_attribute(module.get_submodule(str(node.target))))
            if node.op != "call_function" or node.target is not operator.getitem:
                # Values that the operator alone doesn't fix, such as strides of an input's kind.
                lines.append(f"= {_metadata(node.meta.get('val'))}")
    return lines


def _hints(node: Node) -> str:
    """Node meta that Inductor or AOTAutograd act upon."""
    acted_on: dict[str, str] = {
        key: str(node.meta[key])
        for key in ("recompute", "quantization_tag", "unbacked_bindings")
        if key in node.meta
    }
    custom = node.meta.get("custom")
    if isinstance(custom, dict):
        other = {k: repr(v) for k, v in custom.items() if k != "compile_with_inductor"}
        if other:
            acted_on["custom"] = str(sorted(other.items()))
    return str(sorted(acted_on.items())) if acted_on else ""


def _attribute(value: Any) -> str:
    if isinstance(value, torch.fx.GraphModule):
        return "{" + "\n".join(_graph_lines(value)) + "}"
    return f"object:{identity_of(value)}"


def _spell(value: Any, number: Mapping[Node, int], module: torch.fx.GraphModule) -> str:
    """An argument as text that differs wherever the argument does: 1, 1.0 and True are three."""
    if isinstance(value, Node):
        return f"%{number[value]}"
    if isinstance(value, (list, tuple)):
        # torch.Size and immutable lists mean the same to an operator as their plain kinds.
        kind = "[" if isinstance(value, list) else "("
        return kind + ",".join(_spell(item, number, module) for item in value) + ")"
    if isinstance(value, dict):
        return (
            "{"
            + ",".join(
                f"{k!r}:{_spell(v, number, module)}"
                for k, v in sorted(value.items(), key=lambda item: str(item[0]))
            )
            + "}"
        )
    if isinstance(value, slice):
        return f"slice{_spell((value.start, value.stop, value.step), number, module)}"
    if isinstance(value, SYMBOLIC_TYPES):
        return expression_of(value)
    if isinstance(value, (bool, int, float, complex, str, type(None))):
        return f"{type(value).__name__}:{value!r}"
    if isinstance(value, (torch.dtype, torch.device, torch.layout, torch.memory_format)):
        return repr(value)
    return f"{type(value).__module__}.{type(value).__qualname__}:{value!r}:{identity_of(value)}"


def _metadata(value: Any) -> str:
    if isinstance(value, (tuple, list)):
        return "(" + ",".join(map(_metadata, value)) + ")"
    if not isinstance(value, torch.Tensor):
        return f"{type(value).__name__}:{expression_of(value)}"
    parts = [
        type(value).__name__,
        str(value.dtype),
        str(value.device),
        str(value.layout),
        _sizes(value.shape),
        f"grad={value.requires_grad}",
    ]
    if value.layout is torch.strided:
        parts += [_sizes(value.stride()), expression_of(value.storage_offset())]
        parts.append(f"conj={value.is_conj()} neg={value.is_neg()}")
    subclass = getattr(value, "__tensor_flatten__", None)
    if subclass is not None:
        names, context = subclass()
        parts.append(f"{context!r}")
        parts += [f"{name}={_metadata(getattr(value, name))}" for name in names]
    return " ".join(parts)


def _sizes(sizes: Sequence[Any]) -> str:
    if all(type(size) is int for size in sizes):
        return str(tuple(sizes))
    return "(" + ",".join(expression_of(size) for size in sizes) + ")"


def _alias_pattern(values: Sequence[Any]) -> str:
    """Which inputs share storage, by position."""
    first: dict[tuple[int, int], int] = {}
    pattern = []
    for index, value in enumerate(values):
        if isinstance(value, torch.Tensor) and value.layout is torch.strided:
            try:
                storage = (id(getattr(value, "fake_mode", None)), value.untyped_storage()._cdata)
            except (RuntimeError, NotImplementedError):
                continue
            known = first.setdefault(storage, index)
            if known != index:
                pattern.append((known, index))
    return str(pattern)
