"""Sharing among the ranks of a job: each body is made by one of them and fetched by the others.

Ranks claim what they miss in the store that they met at, each from a place of its own on, make what they
have won, and publish it. Keys alone are exchanged, so ranks may want different things. Nobody waits
for a rank that hasn't come yet, or beyond a time limit: what doesn't come is made here as well.
"""

from __future__ import annotations

import math
import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from ._torch import distributed
from .errors import OptionError, RegionWarning, compose
from .trust import Seal, UntrustedError, own_seal

SWITCH = "REGIONAL_INDUCTOR_RANKS"
TIMEOUT = "REGIONAL_INDUCTOR_RANKS_TIMEOUT"
LIMIT = 300.0
"""Seconds without news from a rank after which the others no longer wait for it."""

_PART = 1 << 20  # bytes of one value: torch's TCPStore ends the connection at 8 MiB
_UNSHARED = b"-"
_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.01, 0.5


class KeyValueStore(Protocol):
    """What is used of `torch.distributed.Store`."""

    def get(self, key: str, /) -> bytes: ...
    def set(self, key: str, value: Any, /) -> None: ...
    def check(self, keys: list[str], /) -> bool: ...
    def compare_set(self, key: str, expected: str, desired: str, /) -> bytes: ...


Produce = Callable[[Sequence[str]], Mapping[str, "bytes | None"]]
"""Makes what some keys stand for; gives the bodies of those that others can use."""

Accept = Callable[[str, bytes], bool]
"""Takes a body that another rank made, and says whether it could be used."""


_jobs: list[tuple[Any, str, Job]] = []


def job(folder: Path | None, variables: Mapping[str, str] | None = None) -> Job | None:
    """This process's part in the sharing; None where there are no other ranks or no way to trust them.

    Ranks believe one another for a secret: that of the environment, or one in this user's private
    folder, which ranks on other machines have only if they share it. Those with another secret, or none,
    are as strangers: neither asked nor waited for.

    Args:
        folder: This user's private folder for compiled regions, or None.
        variables: The environment, if not this process's.

    Raises:
        OptionError: A switch or limit that can't be read.
        UntrustedError: A secret that can't be used.
    """
    given = os.environ if variables is None else variables
    switch = given.get(SWITCH, "1")
    if switch not in ("0", "1"):
        raise OptionError(f"{SWITCH}={switch!r} is not a choice", hint="1 or 0")
    limit = _seconds(given.get(TIMEOUT, ""))
    found = distributed.job() if switch == "1" else None
    if found is None:
        return None
    store, rank, count = found
    seal = Seal.from_environment(given)
    if seal is None and folder is not None:
        try:
            seal = own_seal(folder)
        except (OSError, UntrustedError):
            return None  # the store on disk says what is wrong with the folder
    if seal is None:
        return None
    prefix = f"regional_inductor/{seal.fingerprint}"
    for known_store, known_prefix, known in _jobs:
        if known_store is store and known_prefix == prefix:
            known.limit = limit
            return known
    ours = Job(distributed.connection_of_its_own(store, prefix), rank, count, seal, limit)
    _jobs[:] = [(store, prefix, ours)]
    return ours


def _seconds(text: str) -> float:
    try:
        limit = float(text or LIMIT)
    except ValueError:
        limit = -1.0
    if not limit >= 0:
        raise OptionError(f"{TIMEOUT}={text!r} is no number of seconds", hint="such as 300")
    return limit


class Job:
    """A rank's side of the sharing.

    Args:
        store: Where the ranks met. It is not trusted: bodies are sealed.
        rank: This process's number.
        count: How many ranks there are.
        seal: Of a key that only this user's ranks know.
        limit: Seconds without news from a rank after which it isn't waited for any more.
    """

    def __init__(
        self, store: KeyValueStore, rank: int, count: int, seal: Seal, limit: float = LIMIT
    ) -> None:
        self._store = store
        self._rank = rank
        self._count = count
        self._seal = seal
        self.limit = limit
        # A process that takes over a dead one's number must not take its claims for its own.
        self._me = f"{rank}.{os.urandom(8).hex()}"
        self._lost: set[str] = set()
        self._broken = False

    def share(self, keys: Sequence[str], produce: Produce, accept: Accept) -> None:
        """Make each key's body here, or take the one that another rank made.

        Args:
            keys: What this rank needs, each once.
            produce: Called for several keys at a time, for each key at most once. What it raises is
                raised; ranks that wait for these keys make them themselves then.
            accept: Called for what others made; for what it refuses, `produce` is.
        """
        waiting: dict[str, str] = {}
        for mine in self._claimed(keys, waiting):
            self._produce(mine, produce)
        refused = list(self._awaited(waiting, accept))
        if refused:
            produce(refused)

    def _claimed(self, keys: Sequence[str], waiting: dict[str, str]) -> Iterator[list[str]]:
        """What this rank has won, some at a time; notes in `waiting` whose the rest is.

        As many at a time as are this rank's share if all come: they may be compiled together. What a rank
        that comes later doesn't find claimed is its own.
        """
        ordered = sorted(keys)
        start = self._rank * len(ordered) // self._count
        remaining = ordered[start:] + ordered[:start]
        while remaining:
            most = math.ceil(len(remaining) / self._count)
            won: list[str] = []
            while remaining and len(won) < most:
                key = remaining.pop(0)
                owner = self._owner_of(key)
                if owner == self._me:
                    won.append(key)
                else:
                    waiting[key] = owner
            if won:
                yield won

    def _owner_of(self, key: str) -> str:
        """Who makes a key's body: whoever asked first; this rank, where the store is gone."""
        found = self._ask(lambda: self._store.compare_set(f"claim/{key}", "", self._me))
        if found is None:
            return self._me
        owner: str = found.decode()
        if owner == self._me and self._ask(lambda: self._store.check([f"made/{key}"])):
            return f"{self._me} earlier"  # and forgot it since
        return owner

    def _produce(self, keys: Sequence[str], produce: Produce) -> None:
        bodies: Mapping[str, bytes | None] = {}
        try:
            bodies = produce(keys)
        finally:
            for key in keys:
                self._publish(key, bodies.get(key))

    def _publish(self, key: str, body: bytes | None) -> None:
        """Parts first: whoever sees that a body was made finds all of it."""

        def publish() -> None:
            parts = 0
            if body is not None:
                sealed = self._seal.close(key, body)
                for parts, start in enumerate(range(0, len(sealed), _PART), 1):
                    self._store.set(f"body/{key}/{parts}", sealed[start : start + _PART])
            self._store.set(f"made/{key}", str(parts) if parts else _UNSHARED)

        self._ask(publish)

    def _awaited(self, waiting: Mapping[str, str], accept: Accept) -> Iterator[str]:
        """Takes what others make as it comes; gives what doesn't come or can't be used."""
        deadlines = dict.fromkeys(waiting.values(), time.monotonic() + self.limit)
        left = dict(waiting)
        pause = _SHORTEST_PAUSE
        while left:
            news = False
            for key, owner in list(left.items()):
                made = self._ask(lambda key=key: self._store.check([f"made/{key}"]))  # type: ignore[misc]
                if made:
                    news = True
                    del left[key]
                    deadlines[owner] = time.monotonic() + self.limit
                    if not self._fetched(key, accept):
                        yield key
                elif self._broken or owner in self._lost or time.monotonic() > deadlines[owner]:
                    self._give_up(owner)
                    del left[key]
                    yield key
            if left and not news:
                time.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)

    def _give_up(self, owner: str) -> None:
        if owner not in self._lost and not self._broken:
            rank = owner.partition(".")[0]
            _warn(
                f"rank {rank} delivered no compiled region for {self.limit:g} s: what it had claimed is "
                "compiled here as well"
            )
        self._lost.add(owner)

    def _fetched(self, key: str, accept: Accept) -> bool:
        sealed = self._ask(lambda: self._sealed(key))
        if sealed is None:
            return False
        try:
            body = self._seal.open(key, sealed)
        except UntrustedError as error:
            _warn(f"what another rank compiled is not used: {error}")
            return False
        return accept(key, body)

    def _sealed(self, key: str) -> bytes | None:
        parts = self._store.get(f"made/{key}")
        if parts == _UNSHARED:
            return None
        names = [f"body/{key}/{part}" for part in range(1, int(parts) + 1)]
        # `get` would wait for one that isn't there for as long as the store's own limit.
        if not self._store.check(names):
            return None
        return b"".join(self._store.get(name) for name in names)

    def _ask(self, request: Callable[[], Any]) -> Any:
        """What the store answers; None from the first failure on, after which all is made here."""
        if self._broken:
            return None
        try:
            return request()
        except Exception as error:  # noqa: BLE001 - without the store each rank compiles for itself
            self._broken = True
            _warn(f"the job's store failed, and ranks no longer share compiled regions: {error}")
            return None


def _warn(what: str) -> None:
    text = compose(what, hint=f"{TIMEOUT}=SECONDS sets the limit, {SWITCH}=0 switches sharing off")
    warnings.warn(RegionWarning(text), stacklevel=2)
