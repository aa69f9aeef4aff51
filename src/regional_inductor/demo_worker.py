"""One variant of the demo, in a process of its own: builds the model, trains it, compares it with eager.

Started by `demo` with one argument, a JSON object; writes one JSON object a line to standard output: what phase it
is in, each step's loss, and at the end its result. The eager worker runs first and leaves its weights, loss and
gradients at several points of the training in the folder; the others compute theirs from the same weights.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
import sysconfig
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import regional_inductor as ri

from .demo import EAGER, OURS, WARM_UP_STEPS, Region, Result, Settings

CORPUS_BYTES = 1_000_000
ROPE = "transformers.models.llama.modeling_llama.apply_rotary_pos_emb"


@dataclass(frozen=True)
class Probe:
    """One point of eager's training: the weights, a batch, and what eager makes of them."""

    weights: dict[str, Tensor]
    batch: Tensor
    loss: Tensor
    gradients: dict[str, Tensor]


def main(request: str) -> None:
    fields = json.loads(request)
    result = measure(fields["variant"], Settings(**fields["settings"]), Path(fields["folder"]))
    _say("result", result=asdict(result))


def measure(variant: str, settings: Settings, folder: Path) -> Result:
    """Trains the model in one way and compares it with what the eager worker left in `folder`."""
    _say("phase", phase="starting")
    model = build_model(settings)
    mark(model)
    batches = list(draw_batches(read_corpus(), settings))
    step = compile_step(variant, model)
    probes: list[Probe] = []

    def before_step(index: int) -> None:
        if variant == EAGER and index in probe_points(settings.steps):
            probes.append(take_probe(model, step, batches[index]))

    losses, seconds = train(model, step, batches, settings.learning_rate, before_step)
    path = folder / "probes.pt"
    if variant == EAGER:
        torch.save([asdict(probe) for probe in probes], path)
    else:
        probes = [Probe(**fields) for fields in torch.load(path)]
    _say("phase", phase="comparing with eager")
    differences = [compare(model, step, probe) for probe in probes]
    ordinary = statistics.median(seconds[WARM_UP_STEPS:])
    return Result(
        variant,
        cold_seconds=seconds[0] - ordinary,
        step_ms=ordinary * 1e3,
        losses=tuple(losses),
        loss_difference=largest(loss for loss, _ in differences),
        gradient_difference=largest(gradients for _, gradients in differences),
        regions=regions_of_last_report() if variant == OURS else (),
    )


# --- model, marks, data --------------------------------------------------------------------------------------------


def build_model(settings: Settings) -> nn.Module:
    """A Llama over bytes with random weights, equal for equal settings."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(settings.seed)
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=settings.hidden,
        intermediate_size=settings.intermediate,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.key_value_heads,
        max_position_embeddings=settings.sequence,
        use_cache=False,
    )
    model: nn.Module = LlamaForCausalLM(config)
    return model.train()


def example() -> tuple[nn.Module, tuple[Tensor]]:
    """The demo's model with its marks and one batch, for `regional-inductor explain`."""
    settings = Settings()
    model = build_model(settings)
    mark(model)
    return model, (torch.randint(256, (settings.batch, settings.sequence)),)


def mark(model: nn.Module) -> None:
    """All that is marked, and all that the demo does to the model: its code stays as it is."""
    ri.mark(model, "**.*norm", name="norm")
    ri.mark(model, "**.mlp", name="mlp")
    ri.mark_function(ROPE, name="rope")


def read_corpus(limit: int = CORPUS_BYTES) -> Tensor:
    """Python's own library sources, the first `limit` bytes, as a tensor of bytes."""
    text = bytearray()
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        text += path.read_bytes()
        if len(text) >= limit:
            break
    if not text:
        raise RuntimeError(
            f"no Python sources in {sysconfig.get_path('stdlib')}, and the demo trains on them"
        )
    return torch.tensor(list(text[:limit]), dtype=torch.long)


def draw_batches(corpus: Tensor, settings: Settings) -> Iterator[Tensor]:
    """One batch of byte sequences a step, [batch, sequence], the same ones for every variant."""
    generator = torch.Generator().manual_seed(settings.seed)
    for _ in range(settings.steps):
        starts = torch.randint(
            len(corpus) - settings.sequence, (settings.batch,), generator=generator
        )
        yield torch.stack([corpus[start : start + settings.sequence] for start in starts.tolist()])


# --- the four ways -------------------------------------------------------------------------------------------------


def compile_step(variant: str, model: nn.Module) -> Callable[[Tensor], Tensor]:
    """Returns a function from a batch to its loss, [] float32, which runs the model in the variant's way."""
    compiled: Callable[..., Any] = _COMPILE[variant](model)

    def step(batch: Tensor) -> Tensor:
        loss: Tensor = compiled(input_ids=batch, labels=batch).loss
        return loss

    return step


def _compile_pytorch_pass(model: nn.Module) -> Callable[..., Any]:
    from ._torch.peers import pytorch_regional_backend

    return torch.compile(model, backend=pytorch_regional_backend())


_COMPILE: dict[str, Callable[[nn.Module], Callable[..., Any]]] = {
    EAGER: lambda model: model,
    "pytorch_pass": _compile_pytorch_pass,
    "torch_compile": torch.compile,
    # A region that can't be compiled is a failed demo, not a slower one.
    OURS: lambda model: ri.compile(model, on_error="raise"),
}


def train(
    model: nn.Module,
    step: Callable[[Tensor], Tensor],
    batches: list[Tensor],
    learning_rate: float,
    before_step: Callable[[int], None],
) -> tuple[list[float], list[float]]:
    """AdamW over the batches; returns each step's loss and its seconds."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate)
    losses: list[float] = []
    seconds: list[float] = []
    for index, batch in enumerate(batches):
        before_step(index)
        if index == 0:
            _say("phase", phase="first step, compiling")
        start = time.perf_counter()
        loss = step(batch)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        seconds.append(time.perf_counter() - start)
        _say("step", step=index + 1, loss=losses[-1])
    return losses, seconds


# --- the comparison with eager ---------------------------------------------------------------------------------------


def probe_points(steps: int) -> set[int]:
    """Before which steps eager is sampled: at random weights, early, half way and at the end."""
    return {0, steps // 4, steps // 2, steps - 1}


def take_probe(model: nn.Module, step: Callable[[Tensor], Tensor], batch: Tensor) -> Probe:
    weights = {name: value.detach().clone() for name, value in model.state_dict().items()}
    loss, gradients = loss_and_gradients(model, step, batch)
    return Probe(weights, batch, loss, gradients)


def compare(
    model: nn.Module, step: Callable[[Tensor], Tensor], probe: Probe
) -> tuple[float, float]:
    """The relative difference of the loss, and the largest one of a parameter's gradient in L2 norm."""
    model.load_state_dict(probe.weights)
    loss, gradients = loss_and_gradients(model, step, probe.batch)
    if gradients.keys() != probe.gradients.keys():
        lost = sorted(probe.gradients.keys() ^ gradients.keys())
        raise RuntimeError(f"other parameters than in eager have a gradient: {', '.join(lost)}")
    by_parameter = (
        relative_difference(gradients[name], probe.gradients[name]) for name in gradients
    )
    return relative_difference(loss, probe.loss), largest(by_parameter)


def loss_and_gradients(
    model: nn.Module, step: Callable[[Tensor], Tensor], batch: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad()
    loss = step(batch)
    loss.backward()  # type: ignore[no-untyped-call]
    gradients = {
        name: parameter.grad.clone()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }
    model.zero_grad()
    return loss.detach(), gradients


def relative_difference(actual: Tensor, expected: Tensor) -> float:
    """||actual - expected|| / ||expected|| in float64; 0 where both are zero, NaN where either holds a NaN."""
    distance: float = torch.linalg.vector_norm(actual.double() - expected.double()).item()
    scale: float = torch.linalg.vector_norm(expected.double()).item()
    return distance / scale if scale else distance


def largest(differences: Iterable[float]) -> float:
    """The largest one; NaN if any is NaN, which max() would pass over."""
    values = list(differences)
    return math.nan if any(map(math.isnan, values)) else max(values)


def regions_of_last_report() -> tuple[Region, ...]:
    report = ri.last_report()
    if report is None:
        return ()
    return tuple(
        Region(
            name=region.name,
            direction=region.direction,
            source=region.source,
            module_path=region.module_path,
            nodes=region.nodes,
            key=region.key,
            status=region.status,
            seconds=region.seconds,
            options={key: repr(value) for key, value in region.options.items()},
        )
        for region in report.regions
    )


def _say(event: str, **fields: Any) -> None:
    print(json.dumps({"event": event, **fields}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
