"""Is a region faster as a CUDA graph of its own? Tried once, on calls that come anyway.

A replay saves the launches of a region's kernels. It costs a look at the inputs, copies of those that
move, and a launch: for a region of one small kernel that is more than it saves. So at a few calls after
the warm-up the region also runs without its recording, on the same inputs, and what it gives then is
thrown away. Afterwards nothing of this is left in the call.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ._torch.cudagraphs import BoxedCall, Trial
from .options import Mark
from .regions import Finding, RegionCall

WARM_UP_CALLS = 4
"""The trees run a callable as it is, then record it; these are followed by a first pair that isn't counted."""
PAIRS = 5
"""How often both ways are timed."""
MOST_CALLS = 40
"""After so many calls a region that is recorded anew all the time is left alone."""
WORTH_SAYING = 1.1
"""How many times the other way's time counts as slower."""

_SLOWER = "a CUDA graph of its own makes the region slower"


class Stopwatch(Protocol):
    """Times calls on one device; `_torch.cudagraphs.Stopwatch` does it for real."""

    def is_usable(self) -> bool:
        """Whether the device may be waited for now."""

    def seconds_of(self, call: Callable[[], Any]) -> tuple[float, Any]:
        """From an idle device until what was called has finished there, and what it returned."""

    def has_replayed(self) -> bool:
        """Whether the latest call of something recorded replayed it, rather than recording it."""


@dataclass(frozen=True)
class Pair:
    """Seconds of one call, replayed and without its recording."""

    replayed: float
    launched: float


def is_slower(pairs: Sequence[Pair]) -> bool:
    """Whether replays take longer, by medians, and by more than chance."""
    replayed, launched = _medians(pairs)
    return replayed > WORTH_SAYING * launched


def _medians(pairs: Sequence[Pair]) -> tuple[float, float]:
    return (
        statistics.median(pair.replayed for pair in pairs),
        statistics.median(pair.launched for pair in pairs),
    )


class Trials:
    """The trials of one capture: one for each compiled region, and one finding for each mark.

    Args:
        findings: Where to say what was found, while the compiled function runs.
    """

    def __init__(self, findings: list[Finding]) -> None:
        self._findings = findings
        self._tried: set[str] = set()

    def of(
        self, key: str, call: RegionCall, plain: BoxedCall, stopwatch: Stopwatch
    ) -> Trial | None:
        """A trial for one call of a region; None if another call of the same region has one.

        Args:
            key: The region's key.
            call: What is known of the call.
            plain: Runs the region without a recording. It must neither write to its inputs nor draw random
                numbers, since its results are thrown away.
            stopwatch: Times calls on the region's device.
        """
        if key in self._tried:
            return None
        self._tried.add(key)
        return trial_of(plain, stopwatch, lambda pairs: self._tell(call, pairs))

    def _tell(self, call: RegionCall, pairs: Sequence[Pair]) -> None:
        if not is_slower(pairs) or any(_is_about(f, call.mark, call) for f in self._findings):
            return
        replayed, launched = (f"{seconds * 1e6:.0f}" for seconds in _medians(pairs))
        self._findings.append(
            Finding(
                "cudagraphs",
                f"{_SLOWER}: {replayed} us a call, {launched} us launch by launch (medians of "
                f"{len(pairs)} calls each, from an idle device until they are done)",
                call.source,
                'leave "triton.cudagraphs" out of its options, mark more together, or record '
                'everything as one with cudagraphs="graph"',
                call.name,
            )
        )


def _is_about(finding: Finding, mark: Mark, call: RegionCall) -> bool:
    if finding.kind != "cudagraphs" or not finding.message.startswith(_SLOWER):
        return False
    return finding.source == call.source and finding.region.startswith(mark.name or call.name)


def trial_of(
    plain: BoxedCall, stopwatch: Stopwatch, done: Callable[[Sequence[Pair]], None]
) -> Trial:
    """A trial of one recorded callable against the same without its recording.

    Args:
        plain: The callable without its recording.
        stopwatch: Times calls.
        done: Gets what was timed, if there was enough of it.

    Returns:
        A function of a replaying callable and of a function that ends the trial; it gives what to call
        until then.
    """

    def around(replay: BoxedCall, settle: Callable[[BoxedCall], None]) -> BoxedCall:
        pairs: list[Pair] = []
        calls = 0

        def run(arguments: list[Any]) -> Any:
            nonlocal calls
            calls += 1
            if calls > MOST_CALLS:
                settle(replay)
                return replay(arguments)
            if calls <= WARM_UP_CALLS or not stopwatch.is_usable():
                return replay(arguments)
            # The other way first: the trees count on inputs to die in the replay, and so nothing may hold
            # them longer.
            launched = _seconds(plain, list(arguments), stopwatch)
            if launched is None:
                settle(replay)
                return replay(arguments)
            replayed, result = stopwatch.seconds_of(lambda: replay(arguments))
            if stopwatch.has_replayed():
                pairs.append(Pair(replayed, launched))
            if len(pairs) > PAIRS:
                settle(replay)
                done(pairs[1:])  # the first finds cold caches and an allocator without blocks
            return result

        return run

    return around


def _seconds(call: BoxedCall, arguments: list[Any], stopwatch: Stopwatch) -> float | None:
    """Of a call whose result nobody wants; None if there was no memory for it, say."""
    try:
        return stopwatch.seconds_of(lambda: call(arguments))[0]
    except Exception:  # noqa: BLE001 - a trial must not fail what works without it
        return None
