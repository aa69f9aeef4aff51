"""Random graphs for property tests: programs that shrink, and the FX graphs they stand for.

A program is plain data (hypothesis draws and shrinks it); `build` makes it an FX graph with fake
values by running each step under a FakeTensorMode, so that views share fake storage and nothing is
dropped. Values are [4] or [2] float tensors; marks are written into the meta of each step's nodes.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch.fx import Graph, GraphModule, Node
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from regional_inductor._torch.exact_ops import CHECKED_VERSIONS

from .graphs import BINARY, MARK, UNARY

aten = torch.ops.aten

PURE = ("unary", "binary", "cat")
TUPLES = ("sort",)
VIEWS = ("half", "alias", "split")
MUTATION = ("add_", "sin_", "copy_", "fill_", "mul_out")
DRAWS = ("rand_like", "bernoulli", "normal_", "dropout")
EFFECTS = ("record", "assert")
FUNCTIONAL = PURE + TUPLES
EVERYTHING = PURE + TUPLES + VIEWS + MUTATION + DRAWS + EFFECTS

RECORDED: list[tuple[int, list[float]]] = []
"""What the operator `ri_tests::record` has seen, in order: an effect that no data edge shows."""


@torch.library.custom_op("ri_tests::record", mutates_args=())
def _record(x: torch.Tensor, number: int) -> None:
    RECORDED.append((number, x.tolist()))


@_record.register_fake
def _(x: torch.Tensor, number: int) -> None:
    return None


@dataclass(frozen=True)
class Step:
    """One operator; `a` and `b` pick operands among the values so far, counted from the latest."""

    kind: str
    a: int = 0
    b: int = 0
    mark: int | None = None


@dataclass(frozen=True)
class Program:
    """Steps over `inputs` tensors of four numbers; `marks` are the values that steps refer to."""

    steps: tuple[Step, ...]
    marks: tuple[Any, ...] = ()
    inputs: int = 2
    every_value: bool = False
    """Whether all values are outputs; otherwise those that nothing uses."""
    as_written: bool = False
    """Whether operators are spelt as Dynamo records them (torch functions, methods) or as ATen's."""


COMPILES_EXACTLY = tuple(map(int, torch.__version__.split(".")[:2])) in CHECKED_VERSIONS

# --- strategies -----------------------------------------------------------------------------------

_OPTIONS = ({}, {"max_autotune": True}, {"epilogue_fusion": False})


def raw_ids(count: int) -> tuple[Any, ...]:
    """PyTorch's marks with ids, each id with options of its own."""
    return tuple(
        {"inductor_region": i, **({"inductor_configs": dict(_OPTIONS[i % 3])} if i % 3 else {})}
        for i in range(count)
    )


def entries(scopes: int, count: int) -> tuple[Any, ...]:
    """Our marks: `count` entries of each of some scopes, each scope with options of its own."""
    return tuple(
        {
            "name": f"scope{s}",
            "scope": f"code:scope{s}",
            "entry": 100 * s + e,
            **({"inductor_configs": dict(_OPTIONS[s % 3])} if s % 3 else {}),
        }
        for s in range(scopes)
        for e in range(count)
    )


MARK_TABLES: tuple[tuple[Any, ...], ...] = (
    ({"inductor_region": "only"},),
    raw_ids(2),
    raw_ids(4),
    entries(1, 3),
    entries(2, 2),
    (*raw_ids(1), *entries(2, 2), {"eager": True}),
    (0, "tail", {"inductor_configs": {"max_autotune": True}}, {"inductor_configs": {}}),
    (
        # Where nothing can be compiled to eager's bits, such a mark keeps all of its code eager.
        {"name": "exact", "numerics": "eager" if COMPILES_EXACTLY else None, "entry": 1},
        {"name": "loose", "numerics": "default", "entry": 2},
        {"name": "shared", "inductor_region": "id", "entry": 3},
        {"name": "other", "inductor_region": "id", "entry": 4},
    ),
)


def programs(
    kinds: tuple[str, ...] = EVERYTHING,
    *,
    tables: tuple[tuple[Any, ...], ...] = MARK_TABLES,
    max_steps: int = 18,
    spelt: tuple[bool, ...] = (False, True),
) -> st.SearchStrategy[Program]:
    def with_table(table: tuple[Any, ...]) -> st.SearchStrategy[Program]:
        # Marked steps are likelier than unmarked ones, near operands likelier than far ones.
        mark = st.one_of(st.none(), *[st.integers(0, len(table) - 1)] * 2)
        operand = st.one_of(st.integers(0, 3), st.integers(0, 3), st.integers(0, 12))
        step = st.builds(Step, st.sampled_from(kinds), operand, operand, mark)
        return st.builds(
            Program,
            st.lists(step, min_size=2, max_size=max_steps).map(tuple),
            st.just(table),
            st.integers(1, 3),
            st.booleans(),
            st.sampled_from(spelt),
        )

    return st.sampled_from(tables).flatmap(with_table)


# --- from a program to a graph --------------------------------------------------------------------


def build(program: Program) -> GraphModule:
    """The program's graph; the same program always gives an equal graph."""
    return (_WrittenBuilder if program.as_written else _Builder)(program).build()


class _Builder:
    value_key = "val"

    def __init__(self, program: Program) -> None:
        self.program = program
        self.mode = torch._subclasses.FakeTensorMode(shape_env=ShapeEnv())
        self.graph = Graph()
        self.values: list[Node] = []
        self.mark: Any = None
        self.number = 0

    def build(self) -> GraphModule:
        with self.mode:
            for i in range(self.program.inputs):
                node = self.graph.placeholder(f"x{i}")
                node.meta[self.value_key] = torch.empty(4)
                self.values.append(node)
            for number, step in enumerate(self.program.steps):
                self.number = number
                self.mark = None if step.mark is None else (self.program.marks[step.mark],)
                self._add(step)
        results = [n for n in self.values if self.program.every_value or not n.users]
        self.graph.output(tuple(results))
        return GraphModule(torch.nn.Module(), self.graph)

    def call(self, target: Any, *args: Any, **kwargs: Any) -> Node:
        node = self.graph.call_function(target, args, kwargs)
        node.meta[self.value_key] = target(
            *torch.fx.map_arg(args, lambda n: n.meta[self.value_key]),
            **torch.fx.map_arg(kwargs, lambda n: n.meta[self.value_key]),
        )
        if self.mark is not None:
            node.meta["custom"] = {MARK: self.mark[0]}
        return node

    def method(self, name: str, *args: Any, **kwargs: Any) -> Node:
        node = self.call(getattr(torch.Tensor, name), *args, **kwargs)
        node.op, node.target = "call_method", name
        return node

    def pick(self, back: int, like: Node | None = None) -> Node:
        """The value so many places back, among those with as many numbers as another has."""
        found = [
            n
            for n in self.values
            if like is None or n.meta[self.value_key].shape == like.meta[self.value_key].shape
        ]
        return found[-1 - back % len(found)]

    def _add(self, step: Step) -> None:
        a = self.pick(step.a)
        b = self.pick(step.b, like=a)
        self.values += getattr(self, f"_{step.kind}")(a, b, step)

    def _unary(self, a: Node, b: Node, step: Step) -> list[Node]:
        return [self.call(UNARY[step.b % len(UNARY)], a)]

    def _binary(self, a: Node, b: Node, step: Step) -> list[Node]:
        return [self.call(BINARY[(step.a + step.b) % len(BINARY)], a, b)]

    def _cat(self, a: Node, b: Node, step: Step) -> list[Node]:
        if a.meta[self.value_key].shape[0] == 2:
            return [self.call(aten.cat.default, [a, b])]
        return [self.call(aten.flip.default, a, [0])]

    def _sort(self, a: Node, b: Node, step: Step) -> list[Node]:
        both = self.call(aten.sort.default, a)
        self.mark = (
            self.mark if step.b % 2 else None
        )  # a selection follows its producer, marked or not
        return [self.call(operator.getitem, both, 0)]

    def _half(self, a: Node, b: Node, step: Step) -> list[Node]:
        if a.meta[self.value_key].shape[0] == 2:
            return [self.call(aten.alias.default, a)]
        start = 2 * (step.b % 2)
        return [self.call(aten.slice.Tensor, a, 0, start, start + 2)]

    def _alias(self, a: Node, b: Node, step: Step) -> list[Node]:
        size = list(a.meta[self.value_key].shape)
        if step.b % 2:
            return [self.call(aten.view.default, a, size)]
        return [self.call(aten.expand.default, a, size)]

    def _split(self, a: Node, b: Node, step: Step) -> list[Node]:
        if a.meta[self.value_key].shape[0] == 2:
            return [self.call(aten.detach.default, a)]
        both = self.call(aten.split.Tensor, a, 2)
        return [self.call(operator.getitem, both, i) for i in range(2)]

    def _add_(self, a: Node, b: Node, step: Step) -> list[Node]:
        return [self.call(aten.add_.Tensor, a, b)]

    def _sin_(self, a: Node, b: Node, step: Step) -> list[Node]:
        return [self.call(aten.sin_.default, a)]

    def _copy_(self, a: Node, b: Node, step: Step) -> list[Node]:
        return [self.call(aten.copy_.default, a, b)]

    def _fill_(self, a: Node, b: Node, step: Step) -> list[Node]:
        return [self.call(aten.fill_.Scalar, a, 0.25 * step.b)]

    def _mul_out(self, a: Node, b: Node, step: Step) -> list[Node]:
        return [self.call(aten.mul.out, a, b, out=self.pick(step.a + step.b, like=a))]

    def _rand_like(self, a: Node, b: Node, step: Step) -> list[Node]:
        return [self.call(aten.rand_like.default, a)]

    def _bernoulli(self, a: Node, b: Node, step: Step) -> list[Node]:
        return [self.call(aten.bernoulli.p, a, 0.5)]

    def _normal_(self, a: Node, b: Node, step: Step) -> list[Node]:
        return [self.call(aten.normal_.default, a)]

    def _dropout(self, a: Node, b: Node, step: Step) -> list[Node]:
        both = self.call(aten.native_dropout.default, a, 0.5, True)
        return [self.call(operator.getitem, both, 0)]

    def _record(self, a: Node, b: Node, step: Step) -> list[Node]:
        self.call(torch.ops.ri_tests.record.default, a, self.number)
        return []

    def _assert(self, a: Node, b: Node, step: Step) -> list[Node]:
        number = self.call(aten.select.int, a, 0, 0)
        condition = self.call(aten.lt.Scalar, number, 0.5 if step.b % 4 == 3 else 1e9)
        self.call(aten._assert_async.msg, condition, f"assert {self.number}")
        return []


class _WrittenBuilder(_Builder):
    """The same steps in the words of a program: functions of torch, methods, Python's operators."""

    value_key = "example_value"

    def _unary(self, a: Node, b: Node, step: Step) -> list[Node]:
        name = ("sin", "cos", "tanh", "sigmoid")[step.b % 4]
        if step.b % 8 < 4:
            return [self.call(getattr(torch, name), a)]
        return [self.method(name, a)]

    def _binary(self, a: Node, b: Node, step: Step) -> list[Node]:
        kinds = (torch.add, operator.mul, torch.sub, operator.add)
        return [self.call(kinds[(step.a + step.b) % 4], a, b)]

    def _cat(self, a: Node, b: Node, step: Step) -> list[Node]:
        if a.meta[self.value_key].shape[0] == 2:
            return [self.call(torch.cat, [a, b])]
        return [self.method("flip", a, [0])]

    def _sort(self, a: Node, b: Node, step: Step) -> list[Node]:
        both = self.call(torch.sort, a) if step.b % 4 < 2 else self.method("sort", a)
        self.mark = self.mark if step.b % 2 else None
        return [self.call(operator.getitem, both, 0)]

    def _half(self, a: Node, b: Node, step: Step) -> list[Node]:
        if a.meta[self.value_key].shape[0] == 2:
            return [self.call(operator.getitem, a, slice(None))]
        start = 2 * (step.b % 2)
        if step.b % 4 < 2:
            return [self.call(operator.getitem, a, slice(start, start + 2))]
        return [self.method("narrow", a, 0, start, 2)]

    def _alias(self, a: Node, b: Node, step: Step) -> list[Node]:
        size = a.meta[self.value_key].shape[0]
        spelt = step.b % 4
        if spelt == 0:
            return [self.method("view", a, size)]
        if spelt == 1:
            return [self.call(torch.reshape, a, (size,))]
        if spelt == 2:
            return [self.method("contiguous", a)]
        return [self.call(torch.flatten, a)]

    def _split(self, a: Node, b: Node, step: Step) -> list[Node]:
        if a.meta[self.value_key].shape[0] == 2:
            return [self.method("detach", a)]
        both = self.method("chunk", a, 2) if step.b % 2 else self.call(torch.split, a, 2)
        return [self.call(operator.getitem, both, i) for i in range(2)]

    def _add_(self, a: Node, b: Node, step: Step) -> list[Node]:
        if step.b % 3 == 0:
            return [self.method("add_", a, b)]
        if step.b % 3 == 1:
            return [self.call(operator.iadd, a, b)]
        self.call(operator.setitem, a, slice(None), b)
        return []

    def _sin_(self, a: Node, b: Node, step: Step) -> list[Node]:
        functional = torch.nn.functional
        spelt = step.b % 4
        if spelt == 0:
            return [self.method("sin_", a)]
        if spelt == 1:
            return [self.call(torch.sin_, a)]
        if spelt == 2:
            return [self.call(functional.relu, a, inplace=True)]
        return [self.call(functional.leaky_relu, a, 0.5, True)]

    def _copy_(self, a: Node, b: Node, step: Step) -> list[Node]:
        return [self.method("copy_", a, b)]

    def _fill_(self, a: Node, b: Node, step: Step) -> list[Node]:
        if step.b % 2:
            return [self.method("zero_", a)]
        return [self.method("fill_", a, 0.25 * step.b)]

    def _mul_out(self, a: Node, b: Node, step: Step) -> list[Node]:
        return [self.call(torch.mul, a, b, out=self.pick(step.a + step.b, like=a))]

    def _rand_like(self, a: Node, b: Node, step: Step) -> list[Node]:
        return [
            self.call(torch.rand_like, a)
            if step.b % 2
            else self.call(torch.randn, a.meta[self.value_key].shape[0])
        ]

    def _bernoulli(self, a: Node, b: Node, step: Step) -> list[Node]:
        return [
            self.method("bernoulli", a, 0.5) if step.b % 2 else self.call(torch.bernoulli, a, 0.5)
        ]

    def _normal_(self, a: Node, b: Node, step: Step) -> list[Node]:
        return [self.method("normal_", a)]

    def _dropout(self, a: Node, b: Node, step: Step) -> list[Node]:
        functional = torch.nn.functional
        if step.b % 3 == 0:
            return [self.call(functional.dropout, a, 0.5, True)]
        if step.b % 3 == 1:
            return [self.call(functional.dropout, a, 0.5, True, True)]  # in place
        return [self.call(functional.gumbel_softmax, a)]

    def _assert(self, a: Node, b: Node, step: Step) -> list[Node]:
        number = self.call(operator.getitem, a, 0)
        condition = self.call(operator.lt, number, 0.5 if step.b % 4 == 3 else 1e9)
        self.call(torch._assert_async, condition, f"assert {self.number}")
        return []


# --- running graphs -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """Everything that a call of a graph can be seen to do."""

    outputs: list[list[float]] | None
    inputs: list[list[float]]
    aliases: list[tuple[int, int, tuple[int, ...]]]
    """For each output and input: which storage (by first occurrence), offset and strides."""
    recorded: list[tuple[int, list[float]]]
    next_draw: list[float]
    error: str


def arguments(program: Program, *, overlapping: bool = False) -> list[torch.Tensor]:
    """The inputs; if overlapping, all are views of one storage, as no graph can tell."""
    generator = torch.Generator().manual_seed(11)
    if overlapping:
        base = torch.randn(4, generator=generator)
        return [base[:] for _ in range(program.inputs)]
    return [torch.randn(4, generator=generator) for _ in range(program.inputs)]


def observe(function: Any, args: list[torch.Tensor]) -> Run:
    """Call a function and take down what it did; floats are compared as bits through `hex`."""
    RECORDED.clear()
    torch.manual_seed(5)
    outputs: Any = ()
    error = ""
    try:
        outputs = function(*args)
    except RuntimeError as raised:
        if "assert " not in str(raised):
            raise
        error = str(raised).splitlines()[0]
    storages: dict[int, int] = {}
    tensors = [*outputs, *args]
    return Run(
        outputs=None if error else [_bits(o) for o in outputs],
        inputs=[] if error else [_bits(a) for a in args],
        aliases=[
            (
                storages.setdefault(t.untyped_storage().data_ptr(), len(storages)),
                t.storage_offset(),
                t.stride(),
            )
            for t in tensors
        ],
        recorded=[(number, [x.hex() for x in values]) for number, values in RECORDED],
        next_draw=[] if error else torch.rand(2).tolist(),
        error=error,
    )


def _bits(tensor: torch.Tensor) -> list[Any]:
    if tensor.dtype is torch.float32:
        nan = torch.isnan(tensor)
        return torch.where(nan, 0.5, tensor).view(torch.int32).tolist() + nan.tolist()
    return tensor.tolist()
