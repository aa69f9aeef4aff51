"""One run: what is wanted, how much time is left, and the processes that measure."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks._measure import in_fresh_process, say
from benchmarks.gpu._ways import WAYS, missing


@dataclass
class Run:
    """The wanted cases and the time for them.

    Attributes:
        layers: Depths to measure, where a benchmark varies it.
        distinct: Numbers of distinct blocks to measure, likewise.
        ways: Names of `_ways.WAYS`; empty for each benchmark's own choice.
        seconds: Budget of the whole run; a case that would start after it is left out.
        one_case: Most seconds that one process may take.
        log: Where the processes' standard error goes.
        device: "cuda", or "cpu" to try the scripts out.
        quick: Smaller shapes and fewer steps.
        left_out: What did not fit, for the remarks.
    """

    layers: tuple[int, ...] = ()
    distinct: tuple[int, ...] = ()
    ways: tuple[str, ...] = ()
    seconds: float = 3600.0
    one_case: float = 300.0
    log: Path | None = None
    device: str = "cuda"
    quick: bool = False
    left_out: list[str] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)

    @property
    def left(self) -> float:
        return self.seconds - (time.monotonic() - self.started)

    def wanted(self, *own: str) -> list[str]:
        """The ways to measure, of a benchmark's own choice; those not built yet are noted."""
        chosen = [way for way in own if not self.ways or way in self.ways]
        for way in list(chosen):
            reason = missing(WAYS[way])
            if reason:
                self.left_out.append(f"{WAYS[way].label}: {reason}")
                chosen.remove(way)
        return chosen

    def fresh(self, function: str, label: str, **arguments: Any) -> dict[str, Any] | None:
        """What a function measures in a process and a cache folder of its own; None if left out."""
        if self.left < 15:
            self.left_out.append(f"{label}: no time left")
            return None
        with tempfile.TemporaryDirectory(prefix="regional-inductor-bench-") as folder:
            say(f"{label} ({self.left:.0f} s left)")
            return in_fresh_process(
                function,
                cache=Path(folder) / "inductor",
                environment={"TRITON_CACHE_DIR": str(Path(folder) / "triton")},
                timeout=min(self.one_case, self.left),
                log=self.log,
                device=self.device,
                **arguments,
            )

    def remarks(self) -> list[str]:
        return [f"Left out: {one}." for one in dict.fromkeys(self.left_out)]
