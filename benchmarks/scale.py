"""Spreading compiles over ranks keeps a job's cold start near that of one region, until the store saturates.

On paper: nothing is compiled here, and no machine is measured. A discrete-event simulation (simpy) of a
job whose ranks all need the same regions, started with empty caches, in four ways; and the bytes and
requests that one store has to bear. The parameters are assumptions, each with its reason in the first
table; put in your own: `python -m benchmarks.scale --help`. The draws are seeded: equal parameters give
equal figures.
"""

from __future__ import annotations

import argparse
import math
import random
import sys
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import simpy

from benchmarks._measure import say
from benchmarks._outcome import Outcome, Row, markdown_table

PAGE = Path(__file__).parent.parent / "docs" / "scale.md"
ALONE = "every rank alone"
BROADCAST = "one rank, then broadcast"
SPREAD = "spread over ranks"
SPREAD_HOSTS = "spread, one fetch a host"
WAYS = (ALONE, BROADCAST, SPREAD, SPREAD_HOSTS)
RANKS = (1, 8, 64, 256, 1000)
QUICK = (1, 8, 64)
MESSAGE = (
    128  # bytes of a request or an answer that carries no body: a key's digest and its framing
)

Steps = Generator[simpy.Event, Any, None]


def _given(default: float, source: str) -> Any:
    return field(default=default, metadata={"source": source})


@dataclass(frozen=True)
class Parameters:
    """What the figures depend on; each field's metadata says where its default comes from."""

    regions: float = _given(200, "the question asked: distinct regions of one large training job")
    body: float = _given(
        100_000,
        "bytes an entry: shared object and wrapper of SwiGLU or RMSNorm on a CPU, 64 to 72 kB, rounded up",
    )
    compile_s: float = _given(
        3.0, "seconds a region, median, assumed; `ri.last_report()` says yours"
    )
    spread: float = _given(0.5, "sigma of the log-normal of compile seconds, assumed")
    skew_s: float = _given(5.0, "seconds over which ranks reach the compile, evenly, assumed")
    request_s: float = _given(20e-6, "seconds of one store's only thread a request, assumed")
    bandwidth: float = _given(1.25e9, "bytes a second in and out of the store: a 10 Gbit/s link")
    latency_s: float = _given(100e-6, "seconds a hop of a broadcast, assumed")
    host: float = _given(8, "ranks a host: the usual eight accelerators")


@dataclass(frozen=True)
class Start:
    """One simulated cold start: until the last rank has all regions, and what it asked of the store."""

    seconds: float
    compiles: int
    requests: int
    sent: float
    busy_s: float


class _Store:
    """One thread that answers requests in turn, over one link."""

    def __init__(self, env: simpy.Environment, given: Parameters) -> None:
        self.env, self.given = env, given
        self.thread = simpy.Resource(env, capacity=1)
        self.requests, self.bytes, self.busy = 0, 0.0, 0.0

    def ask(self, size: float) -> Steps:
        with self.thread.request() as turn:
            yield turn
            seconds = self.given.request_s + size / self.given.bandwidth
            self.requests += 1
            self.bytes += size
            self.busy += seconds
            yield self.env.timeout(seconds)


class _Job:
    """The state that the ranks of one simulated job share."""

    def __init__(self, ranks: int, hosted: bool, given: Parameters) -> None:
        draw = random.Random(0)
        self.env = simpy.Environment()
        self.given, self.ranks, self.regions = given, ranks, int(given.regions)
        self.per_host = int(given.host) if hosted else 1
        self.cost = [
            given.compile_s * math.exp(given.spread * draw.gauss(0, 1)) for _ in range(self.regions)
        ]
        self.arrival = [draw.uniform(0, given.skew_s) for _ in range(ranks)]
        self.store = _Store(self.env, given)
        self.owner: dict[int, int] = {}
        self.published = [self.env.event() for _ in range(self.regions)]
        self.on_host: dict[tuple[int, int], simpy.Event] = {}
        self.compiles = 0

    def compile(self, region: int) -> simpy.Event:
        self.compiles += 1
        return self.env.timeout(self.cost[region])

    def alone(self, rank: int) -> Steps:
        yield self.env.timeout(self.arrival[rank])
        for region in range(self.regions):
            yield self.compile(region)

    def first_rank(self) -> Steps:
        """A collective: it starts when the compiles are done and the last rank has come."""
        yield self.env.timeout(self.arrival[0])
        for region in range(self.regions):
            yield self.compile(region)
        yield self.env.timeout(max(0.0, max(self.arrival) - self.env.now))
        hop = self.given.latency_s + self.regions * self.given.body / self.given.bandwidth
        yield self.env.timeout(math.ceil(math.log2(self.ranks)) * hop)

    def spread(self, rank: int) -> Steps:
        """Claim from a place of one's own, compile what one wins, then fetch what others won."""
        yield self.env.timeout(self.arrival[rank])
        host, others, neighbours = rank // self.per_host, [], []
        start = rank * self.regions // self.ranks if self.ranks < self.regions else rank
        for step in range(self.regions):
            region = (start + step) % self.regions
            if (host, region) in self.on_host:  # a rank of this host has claimed it on disk
                neighbours.append(self.on_host[host, region])
                continue
            self.on_host[host, region] = self.env.event()
            yield from self.store.ask(MESSAGE)
            if self.owner.setdefault(region, rank) != rank:
                others.append(region)
                continue
            yield self.compile(region)
            self.on_host[host, region].succeed()
            yield from self.store.ask(MESSAGE + self.given.body)
            self.published[region].succeed()
        for region in others:  # before waiting for neighbours, who may be waiting for these
            yield self.published[region]
            yield from self.store.ask(MESSAGE + self.given.body)
            self.on_host[host, region].succeed()
        yield from neighbours


def simulate(way: str, ranks: int, given: Parameters) -> Start:
    """One cold start of `ranks` ranks, all with the same regions, in one of `WAYS`."""
    job = _Job(ranks, way == SPREAD_HOSTS, given)
    if way == ALONE:
        running = [job.env.process(job.alone(rank)) for rank in range(ranks)]
    elif way == BROADCAST:
        running = [job.env.process(job.first_rank())]
    else:
        running = [job.env.process(job.spread(rank)) for rank in range(ranks)]
    job.env.run(until=simpy.AllOf(job.env, running))
    store = job.store
    return Start(job.env.now, job.compiles, store.requests, store.bytes, store.busy)


# --- arithmetic ------------------------------------------------------------------------------------


def load(ranks: int, hosted: bool, given: Parameters) -> Row:
    """What the store must hold and bear, by counting: a claim and a body each reader and region."""
    readers = math.ceil(ranks / given.host) if hosted else ranks
    requests = 2 * readers * int(given.regions)
    moved = readers * given.regions * given.body + requests * MESSAGE
    return {
        "ranks": ranks,
        "way": SPREAD_HOSTS if hosted else SPREAD,
        "store holds, MB": given.regions * given.body / 1e6,
        "requests": requests,
        "moved, GB": moved / 1e9,
        "store busy, s": requests * given.request_s + moved / given.bandwidth,
    }


def saturation(hosted: bool, given: Parameters) -> int:
    """From how many ranks on the store is busy for longer than one median compile takes."""

    def busy(ranks: int) -> float:
        seconds = load(ranks, hosted, given)["store busy, s"]
        assert isinstance(seconds, float)
        return seconds

    high = 1
    while busy(high) <= given.compile_s:
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if busy(middle) <= given.compile_s else (low, middle)
    return high


# --- tables ----------------------------------------------------------------------------------------


def main(quick: bool, given: Parameters | None = None) -> Outcome:
    given = given or Parameters()
    return Outcome(
        {
            "parameters": parameters_table(given),
            "what one store bears": [
                load(ranks, hosted, given)
                for ranks in (8, 64, 256, 1000)
                for hosted in (False, True)
            ],
            "where it saturates: busy for longer than one median compile": [
                {"way": SPREAD, "from ranks": saturation(False, given)},
                {"way": SPREAD_HOSTS, "from ranks": saturation(True, given)},
            ],
            "simulated cold start": [
                row for ranks in (QUICK if quick else RANKS) for row in cold_starts(ranks, given)
            ],
        }
    )


def parameters_table(given: Parameters) -> list[Row]:
    return [
        {
            "parameter": f.name,
            "value": f"{getattr(given, f.name):g}",
            "source": f.metadata["source"],
        }
        for f in fields(given)
    ]


def cold_starts(ranks: int, given: Parameters) -> list[Row]:
    say(f"scale: {ranks} ranks")
    rows: list[Row] = []
    for way in WAYS:
        found = simulate(way, ranks, given)
        rows.append(
            {
                "ranks": ranks,
                "way": way,
                "until the last rank, s": found.seconds,
                "compiles": found.compiles,
                "requests": found.requests,
                "moved, GB": found.sent / 1e9,
                "store busy, s": found.busy_s,
            }
        )
    return rows


def markdown(outcome: Outcome) -> str:
    return "\n\n".join(f"## {title}\n\n{markdown_table(t)}" for title, t in outcome.tables.items())


def command(argv: Sequence[str] | None = None) -> int:
    from benchmarks.__main__ import publish

    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__)
    for f in fields(Parameters):
        parser.add_argument(f"--{f.name}", type=float, default=f.default, help=f.metadata["source"])
    parser.add_argument("--quick", action="store_true", help="up to 64 ranks")
    parser.add_argument(
        "--publish", action="store_true", help=f"write the tables to docs/{PAGE.name}"
    )
    chosen = vars(parser.parse_args(argv))
    quick, published = chosen.pop("quick"), chosen.pop("publish")
    text = markdown(main(quick, replace(Parameters(), **chosen)))
    if published:
        publish(text, PAGE)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(command())
