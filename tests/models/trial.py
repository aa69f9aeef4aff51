"""One architecture against eager: forward and backward, in each mode of the sweep.

usage: python -m tests.models.trial NAME [MODE ...] [--stock]        prints one line of JSON a mode; with
--stock under torch.compile alone, whatever comes of it
"""

from __future__ import annotations

import contextlib
import copy
import json
import re
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

import regional_inductor as ri

from .architectures import ARCHITECTURES, Architecture, Inputs
from .torchvision_operators import importable_torchvision

_MARKED = re.compile(
    r"^[^_].*Norm(2d|alization)?$|^[^_].*(MLP|Mlp|FeedForward|FFN|DenseActDense|Intermediate)$|Rotary"
)
_ACTIVATIONS = (nn.GELU, nn.SiLU, nn.ReLU, nn.Tanh)
_SHAPES = ((2, 16), (3, 24))


@dataclass(frozen=True)
class Mode:
    """How a model is run."""

    name: str
    train: bool = True
    dynamic: bool = False
    autocast: bool = False
    checkpoint: bool = False

    @property
    def tolerance(self) -> float:
        """The largest distance that counts as equal."""
        return 2e-2 if self.autocast else 5e-4


MODES = (
    Mode("train"),
    Mode("eval", train=False),
    Mode("dynamic", dynamic=True),
    Mode("autocast", autocast=True),
    Mode("checkpoint", checkpoint=True),
)


@dataclass
class Outcome:
    """What came out of one mode.

    Attributes:
        verdict: "equal", "differs", "error", "n/a" (the model has no such mode) or "stock" (stock
            ``torch.compile`` fails or differs too).
        worst: The largest difference over all outputs and gradients, relative to the largest
            entry of each.
    """

    mode: str
    verdict: str
    detail: str = ""
    worst: float = 0.0
    regions: int = 0
    distinct: int = 0
    eager: list[str] = field(default_factory=list)
    seconds: float = 0.0


def mark(model: nn.Module) -> None:
    """Norms, MLPs and activations, by class."""
    modules = list(model.modules())
    kinds = {type(m) for m in modules if _MARKED.search(type(m).__name__)}
    kinds |= {type(m) for m in modules if isinstance(m, _ACTIVATIONS)}
    # torch's drawing differs from Inductor's own unless asked for; dropout inside an MLP needs it.
    ri.mark(
        model, *sorted(kinds, key=lambda kind: kind.__qualname__), options={"fallback_random": True}
    )


def run(
    model: Callable[..., Any], parameters: list[nn.Parameter], inputs: Inputs, mode: Mode
) -> Any:
    """Outputs, and with training the gradients of a random projection of them."""
    torch.manual_seed(7)
    precision = torch.autocast("cpu", torch.bfloat16) if mode.autocast else contextlib.nullcontext()
    with torch.set_grad_enabled(mode.train), precision:
        outputs = [
            leaf
            for leaf in tree_leaves(model(**inputs))
            if isinstance(leaf, torch.Tensor) and leaf.is_floating_point()
        ]
    if not mode.train:
        return outputs, []
    drawn = torch.Generator().manual_seed(11)
    terms = [
        (out.double() * torch.randn(out.shape, generator=drawn, dtype=torch.float64)).mean()
        for out in outputs
        if out.requires_grad
    ]
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    gradients = torch.autograd.grad(torch.stack(terms).sum(), trained, allow_unused=True)
    return [out.detach() for out in outputs], list(gradients)


def distance(actual: Any, expected: Any) -> float:
    """Largest difference relative to the largest entry; gradients also to those of the model."""
    worst = 0.0
    outputs, gradients = actual
    floor = 1e-3 * max((float(g.abs().max()) for g in expected[1] if g is not None), default=0.0)
    for a, e, least in [
        *((a, e, 0.0) for a, e in zip(outputs, expected[0], strict=True)),
        *((a, e, floor) for a, e in zip(gradients, expected[1], strict=True)),
    ]:
        if a is None or e is None:
            if (a is None) != (e is None):
                return float("inf")
            continue
        if a.shape != e.shape or a.dtype != e.dtype or not torch.equal(a.isnan(), e.isnan()):
            return float("inf")
        if e.numel():
            scale = max(float(e.nan_to_num().abs().max()), least, 1e-12)
            worst = max(worst, float((a - e).nan_to_num().abs().max()) / scale)
    return worst


def prepare(architecture: Architecture, mode: Mode) -> nn.Module | None:
    """The model in this mode, or None where it has no such mode."""
    torch.manual_seed(3)
    model = architecture.build()
    model.train(mode.train)
    if mode.checkpoint:
        switches = {
            "transformers": "gradient_checkpointing_enable",
            "timm": "set_grad_checkpointing",
            "diffusers": "enable_gradient_checkpointing",
        }
        switch = getattr(model, switches[architecture.library], None)
        if switch is None:
            return None
        try:
            switch()
        except (ValueError, AssertionError, NotImplementedError):
            return None
    return model


def attempt(architecture: Architecture, mode: Mode, compiler: Callable[[nn.Module], Any]) -> float:
    """The distance of a compiled copy from eager, over two inputs."""
    model = prepare(architecture, mode)
    assert model is not None
    compiled = compiler(copy.deepcopy(model))
    torch.manual_seed(5)
    shapes = _SHAPES if mode.dynamic else (_SHAPES[0], _SHAPES[0])
    worst = 0.0
    for shape in shapes:
        inputs = architecture.inputs(*shape)
        expected = run(model, list(model.parameters()), copy.deepcopy(inputs), mode)
        actual = run(compiled, list(compiled.parameters()), inputs, mode)
        error = distance(actual, expected)
        if mode.autocast:
            # Rounding to bfloat16 between operators is eager's; a fused region skips some. So both
            # are held against float32.
            exact = Mode(mode.name, train=mode.train)
            reference = run(model, list(model.parameters()), inputs, exact)
            in_float = [float_of(result) for result in (actual, expected, reference)]
            error = max(
                0.0, distance(in_float[0], in_float[2]) - 2 * distance(in_float[1], in_float[2])
            )
        worst = max(worst, error)
    return worst


def float_of(result: Any) -> Any:
    return tuple([None if t is None else t.float() for t in part] for part in result)


def trial(architecture: Architecture, mode: Mode) -> Outcome:
    """Compile with marks, compare with eager; where that fails, ask stock torch.compile."""
    started = time.perf_counter()
    outcome = Outcome(mode.name, "n/a")
    if prepare(architecture, mode) is None:
        return outcome

    def ours(model: nn.Module) -> Any:
        mark(model)
        return ri.compile(model, dynamic=True if mode.dynamic else None)

    try:
        outcome.worst = attempt(architecture, mode, ours)
        outcome.verdict = "equal" if outcome.worst <= mode.tolerance else "differs"
    except Exception:  # noqa: BLE001 - whatever it is goes into the table
        outcome.verdict, outcome.detail = "error", traceback.format_exc(limit=-4)
    regions = ri.last_report().regions
    outcome.regions = len(regions)
    outcome.distinct = len({r.key for r in regions if r.status != "eager"})
    outcome.eager = sorted({r.reason for r in regions if r.status == "eager"})
    if outcome.verdict in ("differs", "error"):
        _ask_stock(architecture, mode, outcome)
    outcome.seconds = round(time.perf_counter() - started, 1)
    return outcome


def _ask_stock(architecture: Architecture, mode: Mode, outcome: Outcome) -> None:
    def stock(model: nn.Module) -> Any:
        model.compile(dynamic=True if mode.dynamic else None, options={"fallback_random": True})
        return model

    torch._dynamo.reset()
    try:
        worst = attempt(architecture, mode, stock)
    except Exception as error:  # noqa: BLE001 - stock's failure, whatever it is, is the finding
        first = next(iter(str(error).splitlines()), "")
        outcome.verdict = "stock"
        outcome.detail += f"\nstock torch.compile: {type(error).__name__}: {first}"
        return
    if worst > mode.tolerance:
        outcome.verdict = "stock"
    outcome.detail += f"\nstock torch.compile differs by {worst:.1e}"


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def main(names: list[str]) -> None:
    known = {architecture.name: architecture for architecture in ARCHITECTURES}
    wanted = [mode for mode in MODES if mode.name in names[1:]] or list(MODES)
    one = _stock_alone if "--stock" in names else trial
    for mode in wanted:
        torch._dynamo.reset()
        with quiet():
            print(json.dumps(asdict(one(known[names[0]], mode))), flush=True)


def _stock_alone(architecture: Architecture, mode: Mode) -> Outcome:
    outcome = Outcome(mode.name, "n/a")
    _ask_stock(architecture, mode, outcome)
    return outcome


if __name__ == "__main__":
    importable_torchvision()  # transformers imports it as well, where it is installed
    main(sys.argv[1:])
