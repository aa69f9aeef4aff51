"""Random programs: plain data that hypothesis draws and shrinks, and the Python source it stands for.

A program is a tree of blocks (marked, kept out, looped, conditional or plain) over statements. Every
operator may be applied to every value: operands that don't fit are fitted first, by a broadcast, a
cast or a transposition that the source shows. So each draw is a program that runs, and each part of
it can be dropped, which is what shrinking does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from hypothesis import strategies as st

ROWS, COLUMNS = "B", 6
"""Values are (B, 6), (6,), (B, 1) or (B, 6, 2): sizes that broadcast, and tails of vectors."""

# One template a kind: {a} and {b} are values of any shape, fitted where an operator asks for more.
POINTWISE = {
    "sin": "{a}.sin()",
    "tanh": "torch.tanh({a})",
    "exp": "torch.exp(-{a}.abs())",
    "sigmoid": "{a}.sigmoid()",
    "relu": "F.relu({a})",
    "gelu": "F.gelu({a})",
    "gelu_tanh": "F.gelu({a}, approximate='tanh')",
    "silu": "F.silu({a})",
    "rsqrt": "torch.rsqrt({a}.square() + 1)",
    "neg": "-{a}",
    "scale": "{a} * 0.5 + 1",
    "clamp": "{a}.clamp(-1.5, 1.5)",
    "add": "{a} + {b}",
    "sub": "{a} - {b}",
    "mul": "{a} * torch.tanh({b})",
    "div": "{a} / (1 + {b}.abs())",
    "maximum": "torch.maximum({a}, {b})",
    "where": "torch.where({a} > {b}, {a}, {b})",
    "lerp": "torch.lerp({a}, {b}, 0.25)",
    "addcmul": "torch.addcmul({a}, {a}, torch.tanh({b}), value=0.5)",
}
REDUCTIONS = {
    "sum": "({a}.sum(-1, keepdim=True) * 0.1).expand_as({a})",
    "mean": "{a} - {a}.mean(-1, keepdim=True)",
    "amax": "{a} - {a}.amax(-1, keepdim=True)",
    "softmax": "torch.softmax({a}, -1)",
    "logsumexp": "{a} - torch.logsumexp({a}, -1, keepdim=True)",
    "norm": "F.layer_norm({a}, {a}.shape[-1:])",
    "rms": "{a} * torch.rsqrt({a}.square().mean(-1, keepdim=True) + 1e-3)",
    "cumsum": "torch.cumsum({a}, -1) * 0.2",
}
VIEWS = {
    "reshape": "{a}.reshape(-1).view({a}.shape)",
    "transpose": "{a}.unsqueeze(0).transpose(0, -1).contiguous().transpose(0, -1).squeeze(0)",
    "strided": "torch.stack([{a}, -{a}], -1)[..., 1]",
    "flip": "torch.cat([{a}[..., 1:], {a}[..., :1]], -1)",
    "chunk": "torch.cat({a}.chunk(2, -1)[::-1], -1)",
    "detach": "{a}.detach()",
    "clone": "{a}.clone()",
    "select": "{a}[..., :1].expand_as({a})",
}
CASTS = {
    "bfloat16": "{a}.to(torch.bfloat16)",
    "float64": "{a}.double()",
    "float32": "{a}.float()",
}
MATRICES = {
    "matmul": "({a}.reshape(-1, {a}.shape[-1]) @ W[: {a}.shape[-1], : {a}.shape[-1]].to({a}.dtype))"
    ".reshape({a}.shape)",
    "linear": "F.linear({a}.float(), W[: {a}.shape[-1], : {a}.shape[-1]])",
}
DRAWS = {
    "dropout": "F.dropout({a}, 0.5)",
    "rand_like": "{a} * torch.rand_like({a})",
    "randn": "{a} + torch.randn({a}.shape[-1], dtype={a}.dtype, device={a}.device)",
}
# Writes go to a copy of their own, to a view of one, or to the buffer that the program is given.
WRITES = {
    "add_": "{n} = {a}.clone(); {n}.add_(0.5)",
    "mul_view": "{n} = {a}.clone(); {n}[..., :2].mul_(1.5)",
    "copy_": "{n} = {a}.clone(); {n}[..., 1:].copy_({n}[..., :-1].clone())",
    "setitem": "{n} = {a}.clone(); {n}[..., 0] = 0.25",
    "buffer": "buffer.add_({a}.detach().float().mean() * 0.1); {n} = {a} + buffer.to({a}.dtype)",
    "alias": "t = {a}.clone(); u = t.view(-1); t.mul_(0.5); {n} = {a} + u.view({a}.shape)",
}
BRANCHES = {
    # No condition at zero: a layer norm sums to zero, and rounding would choose the branch.
    "cond": (
        "{n} = torch.cond({a}.sum() > 0.37, lambda x: (x.sin(),), lambda x: ((x * 0.5).cos(),),"
        " ({a}.clone(),))[0]"
    ),
    "cond_deep": (
        "{n} = torch.cond({b}.sum() > 0.37, lambda x: (torch.tanh(x.exp().log1p()),),"
        " lambda x: (F.silu(x) - x,), ({a}.clone(),))[0]"
    ),
    "checkpoint": (
        "{n} = checkpoint(lambda x: torch.tanh(F.silu(x) * x), {a}, use_reentrant=False)"
    ),
}
KINDS = {**POINTWISE, **REDUCTIONS, **VIEWS, **CASTS, **MATRICES, **DRAWS, **WRITES, **BRANCHES}
_RARE = {**CASTS, **MATRICES, **DRAWS, **WRITES, **BRANCHES}

OPTIONS = ({}, {"epilogue_fusion": False}, {"max_fusion_size": 2}, {"cpp.simdlen": 256})


@dataclass(frozen=True)
class Statement:
    """One operator; `a` and `b` pick operands among the values so far, counted from the latest."""

    kind: str
    a: int = 0
    b: int = 0


@dataclass(frozen=True)
class Block:
    """Statements and blocks under one mark, in one loop or under neither.

    `scope`: "plain", "region", "eager", "twice" or "function" (a marked function, called twice).
    """

    body: tuple[Statement | Block, ...]
    scope: str = "plain"
    id: int | None = None
    options: int = 0


@dataclass(frozen=True)
class Program:
    """What is run: a body over `inputs` tensors and a buffer that it may write."""

    body: tuple[Statement | Block, ...]
    inputs: tuple[bool, ...] = (True, True)
    """For each input whether it asks for a gradient."""
    dynamic: bool = False
    merge: str = "scope"
    numerics: str = "default"
    outputs: int = 2
    device: str = "cpu"
    through: str = "compile"
    """By which entry point: "compile" (`ri.compile`); "drop-in" (the pass as AOTAutograd's compilers, as
    PyTorch's is used) or "halves" (the same in its two halves)."""


def statements(kinds: tuple[str, ...]) -> st.SearchStrategy[Statement]:
    operand = st.integers(0, 4)
    common = tuple(kind for kind in kinds if kind not in _RARE)
    kind = st.one_of(st.sampled_from(common), st.sampled_from(common), st.sampled_from(kinds))
    return st.builds(Statement, kind, operand, operand)


def programs(
    kinds: tuple[str, ...] = tuple(KINDS),
    numerics: str = "default",
    device: str = "cpu",
    through: str = "compile",
) -> st.SearchStrategy[Program]:
    """Programs of up to some thirty statements, in up to three levels of blocks."""
    statement = statements(kinds)

    def blocks(inner: st.SearchStrategy[Statement | Block]) -> st.SearchStrategy[Statement | Block]:
        return st.builds(
            Block,
            st.lists(inner, min_size=1, max_size=5).map(tuple),
            st.sampled_from(["region", "region", "region", "eager", "twice", "function", "plain"]),
            st.one_of(st.none(), st.none(), st.integers(0, 1)),
            st.integers(0, len(OPTIONS) - 1),
        )

    body = st.recursive(statement, blocks, max_leaves=12)
    return st.builds(
        Program,
        st.lists(st.one_of(blocks(statement), body), min_size=2, max_size=8).map(tuple),
        st.lists(st.sampled_from([True, True, True, False]), min_size=1, max_size=3).map(tuple),
        st.booleans(),
        st.sampled_from(["scope", "scope", "all"]),
        st.just(numerics),
        st.integers(1, 3),
        st.just(device),
        st.just(through),
    )


@dataclass
class _Writer:
    """Renders a body; values are named by number."""

    lines: list[str] = field(default_factory=list)
    values: list[str] = field(default_factory=list)
    functions: list[str] = field(default_factory=list)
    count: int = 0
    blocks: int = 0

    def write(self, body: tuple[Statement | Block, ...], indent: str) -> None:
        for item in body:
            if isinstance(item, Block):
                self.block(item, indent)
            else:
                self.statement(item, indent)

    def statement(self, item: Statement, indent: str) -> None:
        a, b = (self.values[-1 - at % len(self.values)] for at in (item.a, item.b))
        name, self.count = f"v{self.count}", self.count + 1
        template = KINDS[item.kind]
        if "{b}" in template:
            self.lines.append(f"{indent}b = fit({b}, {a})")
            b = "b"
        if "{n}" in template:
            self.lines.append(indent + template.format(a=a, b=b, n=name))
        else:
            self.lines.append(f"{indent}{name} = {template.format(a=a, b=b)}")
        self.values.append(name)

    def block(self, item: Block, indent: str) -> None:
        number, self.blocks = self.blocks, self.blocks + 1
        # An id stands for one set of options, or the library raises, rightly.
        options = OPTIONS[item.options if item.id is None else item.id % len(OPTIONS)]
        arguments = f'"r{number}"' + (f", options={options}" if options else "")
        if item.id is not None:
            arguments += f", id={item.id}"
        if item.scope == "function":
            self.function(item, number, arguments, indent)
            return
        heads: dict[str, Callable[[], str]] = {
            "region": lambda: f"with ri.region({arguments}):",
            "eager": lambda: "with ri.eager():",
            "twice": lambda: f"for turn{number} in range(2):",
            "plain": lambda: "if True:",
        }
        self.lines.append(indent + heads[item.scope]())
        self.write(item.body, indent + "    ")

    def function(self, item: Block, number: int, arguments: str, indent: str) -> None:
        """A marked function of one value, called on two of the latest."""
        inner = _Writer(values=["x"], blocks=100 * (number + 1))
        inner.write(item.body, "    ")
        self.functions += [
            *inner.functions,
            f"@ri.region({arguments})",
            f"def f{number}(x, buffer):",
            *inner.lines,
            f"    return {inner.values[-1]}",
            "",
        ]
        for operand in (self.values[-1], self.values[-2 % len(self.values)]):
            name, self.count = f"v{self.count}", self.count + 1
            self.lines.append(f"{indent}{name} = f{number}({operand}, buffer)")
            self.values.append(name)


def source(program: Program) -> str:
    """The program as a module: `fit`, the functions it marks, and `program(*inputs, buffer)`."""
    names = [f"x{index}" for index in range(len(program.inputs))]
    writer = _Writer(values=list(names))
    writer.write(program.body, "    ")
    outputs = ", ".join(writer.values[-program.outputs :])
    return "\n".join(
        [
            "import torch",
            "import torch.nn.functional as F",
            "from torch.utils.checkpoint import checkpoint",
            "",
            "import regional_inductor as ri",
            "",
            f"W = torch.linspace(-1, 1, 64).sin().view(8, 8).to({program.device!r})",
            "",
            "",
            "def fit(b, a):",
            "    if b.shape != a.shape:",
            "        b = b.reshape(-1)[: a.shape[-1]].expand_as(a)",
            "    return b.to(a.dtype)",
            "",
            "",
            *writer.functions,
            "",
            f"def program({', '.join(names)}, buffer):",
            *writer.lines,
            f"    return {outputs}",
            "",
        ]
    )
