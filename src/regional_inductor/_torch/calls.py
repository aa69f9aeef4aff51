"""What a captured frame was called with, described without holding its tensors.

Whoever saves a compiled function captures it again, with arguments like those of the first capture. A
description keeps what a tracer looks at: sizes, strides, types, which storages are shared, which sizes
were symbolic, and the modes that were on.

Checked on torch 2.11 and 2.13: `InstructionTranslator.current_tx().output.root_tx`,
`ShapeEnv.var_to_sources`, names and properties of Dynamo's sources, `torch.utils._pytree`,
`torch._dynamo.maybe_mark_dynamic`, `torch.compiler.config.dynamic_sources`.
"""

from __future__ import annotations

import contextlib
import inspect
import re
import types
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.utils._pytree as pytree


class NotDescribedError(Exception):
    """Why arguments can't be made again."""


@dataclass(frozen=True)
class TensorLike:
    """What a tracer sees of a tensor; `number` tells tensors of one call apart, `storage` storages."""

    number: int
    kind: type[torch.Tensor]
    dtype: torch.dtype
    device: torch.device
    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    storage: int
    storage_bytes: int
    requires_grad: bool
    inference: bool
    dynamic: frozenset[int]


@dataclass(frozen=True)
class Held:
    """An object that is no plain data: held weakly where that can be."""

    get: Callable[[], Any]
    kind: str


@dataclass(frozen=True)
class Modes:
    """The modes of the thread, which are part of what was captured."""

    grad: bool
    inference: bool
    autocast: tuple[tuple[str, torch.dtype], ...]

    @classmethod
    def now(cls) -> Modes:
        autocast = []
        for kind in ("cpu", "cuda", "xpu", "mps", "hpu"):
            with contextlib.suppress(RuntimeError):
                if torch.is_autocast_enabled(kind):
                    autocast.append((kind, torch.get_autocast_dtype(kind)))
        return cls(torch.is_grad_enabled(), torch.is_inference_mode_enabled(), tuple(autocast))

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """As they were, whatever is on now."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(torch.inference_mode(self.inference))
            stack.enter_context(torch.set_grad_enabled(self.grad))
            for kind in dict(Modes.now().autocast).keys() - dict(self.autocast).keys():
                stack.enter_context(torch.autocast(kind, enabled=False))
            for kind, dtype in self.autocast:
                stack.enter_context(torch.autocast(kind, dtype=dtype))
            yield


@dataclass(frozen=True)
class ModuleState:
    """What a capture sees of a module and may be changed before it is captured again."""

    module: Callable[[], torch.nn.Module | None]
    training: Mapping[str, bool]
    requires_grad: Mapping[str, bool]

    @classmethod
    def of(cls, module: torch.nn.Module) -> ModuleState:
        return cls(
            weakref.ref(module),
            {name: child.training for name, child in module.named_modules()},
            {name: value.requires_grad for name, value in module.named_parameters()},
        )

    @contextlib.contextmanager
    def restored(self) -> Iterator[None]:
        module = self.module()
        if module is None:
            raise NotDescribedError("a module that it was called with is gone")
        now = ModuleState.of(module)
        gradients = [(value, value.grad) for value in module.parameters()]
        self._put(module)
        for value, _ in gradients:
            value.grad = None  # no part of the capture, and torch's guards can't be saved with one
        try:
            yield
        finally:
            now._put(module)
            for value, gradient in gradients:
                value.grad = gradient

    def _put(self, module: torch.nn.Module) -> None:
        for name, child in module.named_modules():
            child.training = self.training.get(name, child.training)
        for name, value in module.named_parameters():
            value.requires_grad_(self.requires_grad.get(name, value.requires_grad))


@dataclass(frozen=True)
class CapturedCall:
    """One capture of a frame.

    Attributes:
        code: The frame's code; another than the compiled function's after a graph break.
        arguments: Its local variables, described.
        modes: The modes that were on.
        modules: States of the modules among the arguments.
        dynamic: Names of the numbers that were symbolic, as Dynamo writes sources.
    """

    code: types.CodeType
    arguments: Mapping[str, Any]
    modes: Modes
    modules: tuple[ModuleState, ...]
    dynamic: tuple[str, ...] = ()

    def is_of(self, function: Callable[..., Any]) -> bool:
        return self.code is getattr(function, "__code__", None)

    def like(self) -> dict[str, Any]:
        """Arguments like those that it was captured with; tensors hold nothing in particular.

        Raises:
            NotDescribedError: Some can't be made, or are gone.
        """
        made: dict[str, Any] = _Maker().make(dict(self.arguments))
        return made

    @contextlib.contextmanager
    def repeated(self) -> Iterator[None]:
        """The modes, modules and symbolic numbers of the capture, while it is done again."""
        import torch._dynamo.config as dynamo_config
        import torch.compiler.config as compiler_config

        with contextlib.ExitStack() as stack:
            for state in self.modules:
                stack.enter_context(state.restored())
            stack.enter_context(self.modes.entered())
            # What is symbolic is said one by one: what other captures taught Dynamo must not widen it.
            stack.enter_context(dynamo_config.patch(automatic_dynamic_shapes=False))
            sources = ",".join(re.escape(name) + "$" for name in self.dynamic)
            stack.enter_context(compiler_config.patch(dynamic_sources=sources))  # type: ignore[attr-defined]
            yield


def captured_call() -> CapturedCall | None:
    """The frame that Dynamo has just captured and is having compiled, described; None elsewhere."""
    from torch._dynamo.symbolic_convert import InstructionTranslator
    from torch._guards import TracingContext

    try:
        root: Any = InstructionTranslator.current_tx().output.root_tx
    except AttributeError:
        return None
    context = TracingContext.try_get()
    environment = context.fake_mode.shape_env if context and context.fake_mode else None
    symbolic = _symbolic(environment, root.f_locals)
    return described_call(root.f_code, root.f_locals, symbolic.sizes, symbolic.numbers)


def described_call(
    code: types.CodeType,
    variables: Mapping[str, Any],
    sizes: Mapping[int, set[int]],
    numbers: Iterable[str],
) -> CapturedCall:
    """A call described.

    Args:
        code: The code that runs.
        variables: Its local variables: the arguments.
        sizes: Symbolic dimensions, by id of the tensor.
        numbers: Symbolic numbers, as Dynamo writes sources.
    """
    describer = _Describer(sizes)
    arguments = describer.describe(dict(variables))
    return CapturedCall(code, arguments, Modes.now(), tuple(describer.modules), tuple(numbers))


@dataclass
class _Symbolic:
    sizes: dict[int, set[int]] = field(default_factory=dict)  # dimensions, by id of the tensor
    numbers: list[str] = field(default_factory=list)


def _symbolic(environment: Any, variables: Mapping[str, Any]) -> _Symbolic:
    found = _Symbolic()
    for sources in getattr(environment, "var_to_sources", {}).values():
        for source in sources:
            prop = getattr(getattr(source, "prop", None), "name", "")
            try:
                if prop == "SIZE":
                    owner = eval(_name(source.base), {"L": variables})
                    found.sizes.setdefault(id(owner), set()).add(source.idx)
                elif not prop and type(eval(_name(source), {"L": variables})) is int:
                    found.numbers.append(_name(source))
            except Exception:  # noqa: BLE001 - a source that isn't an argument is no argument's size
                continue
    return found


def _name(source: Any) -> str:
    name = source.name
    return str(name() if callable(name) else name)


class _Describer:
    def __init__(self, dynamic: Mapping[int, set[int]]) -> None:
        self.modules: list[ModuleState] = []
        self._dynamic = dynamic
        self._tensors: dict[int, TensorLike] = {}
        self._storages: dict[int, int] = {}

    def describe(self, values: Any) -> Any:
        return pytree.tree_map(self._leaf, values)

    def _leaf(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return self._tensor(value)
        if value is None or isinstance(value, (*_PLAIN, type, types.FunctionType)):
            return value
        if isinstance(value, torch.nn.Module):
            self.modules.append(ModuleState.of(value))
        try:
            return Held(weakref.ref(value), type(value).__qualname__)
        except TypeError:
            return Held(lambda: value, type(value).__qualname__)

    def _tensor(self, value: torch.Tensor) -> Any:
        known = self._tensors.get(id(value))
        if known is not None:
            return known
        if type(value) not in (torch.Tensor, torch.nn.Parameter):
            return Held(lambda: None, f"{type(value).__qualname__}, a subclass of torch.Tensor")
        if value.layout is not torch.strided or value.is_quantized:
            return Held(lambda: None, f"tensor with layout {value.layout}")
        storage = value.untyped_storage()
        described = TensorLike(
            len(self._tensors),
            type(value),
            value.dtype,
            value.device,
            tuple(value.shape),
            tuple(value.stride()),
            int(value.storage_offset()),
            self._storages.setdefault(storage._cdata, len(self._storages)),
            storage.nbytes(),
            value.requires_grad,
            value.is_inference(),
            frozenset(self._dynamic.get(id(value), ())),
        )
        self._tensors[id(value)] = described
        return described


_PLAIN = (bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.memory_format)


class _Maker:
    def __init__(self) -> None:
        self._tensors: dict[int, torch.Tensor] = {}
        self._storages: dict[int, torch.UntypedStorage] = {}

    def make(self, described: Any) -> Any:
        return pytree.tree_map(
            self._leaf, described, is_leaf=lambda v: isinstance(v, (TensorLike, Held))
        )

    def _leaf(self, value: Any) -> Any:
        if isinstance(value, TensorLike):
            if value.number not in self._tensors:
                self._tensors[value.number] = self._tensor(value)
            return self._tensors[value.number]
        if isinstance(value, Held):
            found = value.get()
            if found is None:
                raise NotDescribedError(
                    f"it was called with a {value.kind}, which can't be made again"
                    if "ensor" in value.kind
                    else f"the {value.kind} that it was called with is gone"
                )
            return found
        return value

    def _tensor(self, like: TensorLike) -> torch.Tensor:
        import torch._dynamo

        with torch.inference_mode(like.inference), torch.no_grad():
            if like.storage not in self._storages:
                # Zeros, and never what the memory held before: it may be read as an index.
                self._storages[like.storage] = torch.zeros(
                    like.storage_bytes, dtype=torch.uint8, device=like.device
                ).untyped_storage()
            value = torch.empty(0, dtype=like.dtype, device=like.device)
            value.set_(self._storages[like.storage], like.offset, like.size, like.stride)
            if issubclass(like.kind, torch.nn.Parameter):
                value = torch.nn.Parameter(value, requires_grad=like.requires_grad)
        if like.requires_grad:
            value.requires_grad_()
        for dimension in like.dynamic:
            torch._dynamo.maybe_mark_dynamic(value, dimension)
        return value


def bound(
    function: Callable[..., Any], variables: Mapping[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A frame's local variables as the arguments of a call of its function."""
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    for parameter in inspect.signature(function, follow_wrapped=False).parameters.values():
        value = variables[parameter.name]
        if parameter.kind is parameter.VAR_POSITIONAL:
            args += value
        elif parameter.kind is parameter.VAR_KEYWORD:
            kwargs.update(value)
        elif parameter.kind is parameter.KEYWORD_ONLY:
            kwargs[parameter.name] = value
        else:
            args.append(value)
    return tuple(args), kwargs
