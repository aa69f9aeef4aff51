"""Which operators under ``numerics="eager"`` equal eager on the machine at hand, tried once each.

The list of operators known to be exact was proven on one kind of processor. On others, and on CUDA,
an operator is compiled by itself and compared with eager on dense random bits before a region takes
it in. So it is the operator that stays eager, not the region around it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any

import torch.fx
from torch.fx.node import Node

from ._torch import exact_ops, exact_trials
from ._torch.exact_trials import Attempt, Verdict
from ._torch.fx import is_boxed
from ._torch.inductor import new_fake_mode
from ._torch.trial_inputs import dense_inputs, outside_tracing
from .exactness import difference
from .region_backends import lock, lowered_exactly
from .regions import Settings
from .trial_store import TrialStore

ROUNDS = {"cpu": 4, "cuda": 16}
ROUNDS_OF_SINGLE_NUMBERS = 32
"""For operands of one number next to others: each round sees only one of theirs."""


def left_eager_after_trials(nodes: Iterable[Node], settings: Settings) -> dict[Node, str]:
    """Try what has to be tried of some operators.

    Args:
        nodes: Operators that may be compiled, as far as the list says.
        settings: Whether anything may be compiled at all.

    Returns:
        Why an operator stays eager, for those that do. An operator that was never tried, in a dry
        run, does not.
    """
    doubtful = [node for node in nodes if exact_ops.needs_trial(node)]
    if settings.tries_operators and settings.region_backend == "inductor":
        untried: dict[Hashable, Node] = {}
        for node in doubtful:
            if exact_trials.verdict(node) is None:
                untried.setdefault(exact_trials.signature(node), node)
        if untried:
            with lock, outside_tracing():
                _try(list(untried.values()), settings)
    reasons: dict[Node, str] = {}
    for node in doubtful:
        found = exact_trials.verdict(node)
        if found is not None and found.reason:
            reasons[node] = found.reason
    return reasons


def _try(nodes: Sequence[Node], settings: Settings) -> None:
    """Find the first candidate of each operator that equals eager, unless an earlier process did."""
    store = TrialStore()
    started = time.perf_counter()
    mode = new_fake_mode()
    tried: dict[Node, list[Attempt]] = {}
    for node in nodes:
        kept = store.taken(node)
        if kept is not None:
            exact_trials.decide(node, kept)
            continue
        try:
            call = exact_trials.alone(node, mode)
            tried[node] = [a for a in exact_trials.attempts(call) if exact_trials.fits(a)]
        except Exception as error:  # noqa: BLE001 - it may ask for sizes that a trial doesn't have
            exact_trials.decide(node, Verdict(f"can't be tried by itself: {_told(error)}"))
    reasons, failed = _reasons([a for attempts in tried.values() for a in attempts], settings)
    for node, attempts in tried.items():
        equal = [a for a in attempts if not reasons[a]]
        # What Inductor makes of the operator by itself is the last candidate.
        found = Verdict("", equal[0].choice) if equal else Verdict(reasons[attempts[-1]])
        exact_trials.decide(node, found)
        if not failed.intersection(attempts):
            store.keep(node, found, time.perf_counter() - started)


def _told(error: Exception) -> str:
    first_line = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {first_line}"


def _reasons(
    attempts: Sequence[Attempt], settings: Settings
) -> tuple[dict[Attempt, str], set[Attempt]]:
    """For each attempt what differs from eager; what can't be compiled is looked for by halving.

    Returns:
        The reasons, and those of the attempts that failed, so that nothing could be compared.
    """
    if not attempts:
        return {}, set()
    module, owners = exact_trials.in_one_graph(attempts)
    try:
        compiled = lowered_exactly(module, {}, settings)
        return _compared(attempts, module, compiled, owners), set()
    except Exception as error:  # noqa: BLE001 - whatever Inductor can't do stays eager, and says why
        if len(attempts) == 1:
            return {attempts[0]: f"can't be compiled by itself: {_told(error)}"}, {attempts[0]}
    half = len(attempts) // 2
    reasons, failed = _reasons(attempts[:half], settings)
    others, failed_too = _reasons(attempts[half:], settings)
    return {**reasons, **others}, failed | failed_too


def _compared(
    attempts: Sequence[Attempt],
    module: torch.fx.GraphModule,
    compiled: Callable[..., Any],
    owners: Sequence[int],
) -> dict[Attempt, str]:
    reasons = dict.fromkeys(attempts, "")
    operands = module.graph.find_nodes(op="placeholder")
    fakes = [operand.meta["val"] for operand in operands]
    places = [operand.meta["place"] for operand in operands]
    single = any(fake.dim() == 0 for fake in fakes)
    rounds = max(ROUNDS[fake.device.type] for fake in fakes)
    for seed in range(ROUNDS_OF_SINGLE_NUMBERS if single else rounds):
        inputs = dense_inputs(fakes, places, seed)
        expected = module(*inputs)
        result = compiled(list(inputs)) if is_boxed(compiled) else compiled(*inputs)
        for owner, a, b in zip(owners, result, expected, strict=True):
            differs = difference(a, b)
            if differs:
                where = f"isn't equal to eager bit for bit on this machine: {differs}"
                reasons[attempts[owner]] = reasons[attempts[owner]] or where
    return reasons
