"""A store of compiled regions that machines share, on a server that nobody need trust: entries are sealed.

Whatever is wrong with the server or an entry costs a miss and one warning, never a compile.
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from .entry import DamagedError, Entry
from .errors import OptionError, RegionWarning, compose
from .trust import KEY, KEY_FILE, Seal, UntrustedError

URL = "REGIONAL_INDUCTOR_REMOTE"
RETRY = 60.0
"""Seconds for which a server that failed is left alone."""

_PREFIX = "regional-inductor:"
_CONNECT_S, _ANSWER_S = 2.0, 10.0


class Server(Protocol):
    """What is used of `redis.Redis`; another server is a class with these two."""

    def get(self, name: str, /) -> Any: ...
    def set(self, name: str, value: bytes, /) -> Any: ...


class Remote:
    """Compiled regions by key on a server.

    Args:
        server: Keeps bytes by name.
        seal: Of a secret that all who share the entries have, and nobody else.
    """

    def __init__(self, server: Server, seal: Seal) -> None:
        self._server = server
        self._seal = seal
        self._quiet_until = 0.0
        self._said: set[str] = set()

    @classmethod
    def from_environment(cls, variables: Mapping[str, str] | None = None) -> Remote | None:
        """The server that `REGIONAL_INDUCTOR_REMOTE` names, or None where it is not set.

        Nothing is connected yet.

        Raises:
            OptionError: An URL that isn't one of Redis, no client for it, or no secret.
            UntrustedError: A secret that can't be used.
        """
        given = os.environ if variables is None else variables
        url = given.get(URL, "")
        if not url:
            return None
        seal = Seal.from_environment(given)
        if seal is None:
            raise OptionError(
                f"{URL} is set, and neither {KEY} nor {KEY_FILE}",
                hint="what comes from a server is believed for its seal alone: give all machines one secret",
            )
        return cls(_redis(url), seal)

    def get(self, key: str) -> Entry | None:
        """The entry of a key; whatever goes wrong counts as missing."""
        sealed = self._ask(lambda: self._server.get(_PREFIX + key))
        if sealed is None:
            return None
        try:
            return Entry.from_bytes(self._seal.open(key, bytes(sealed)), key)
        except (UntrustedError, DamagedError) as error:
            self.reject(key, error)
            return None

    def put(self, entry: Entry) -> None:
        """Publish an entry."""
        sealed = self._seal.close(entry.key, entry.to_bytes())
        self._ask(lambda: self._server.set(_PREFIX + entry.key, sealed))

    def reject(self, key: str, why: object) -> None:
        """Report an entry that must not be used. Whoever compiles the region puts a good one there."""
        self._say(f"the region {key[:12]} of the remote store is not used: {why}")

    def _ask(self, request: Callable[[], Any]) -> Any:
        """What the server answers, or None; one that failed isn't asked again for a while."""
        if time.monotonic() < self._quiet_until:
            return None
        try:
            return request()
        except Exception as error:  # noqa: BLE001 - whatever a client raises, compiling goes on without it
            self._quiet_until = time.monotonic() + RETRY
            self._say(f"the remote store failed: {type(error).__name__}: {error}")
            return None

    def _say(self, what: str) -> None:
        if what not in self._said:
            self._said.add(what)
            text = compose(what, hint=f"without {URL} none is used")
            warnings.warn(RegionWarning(text), stacklevel=2)


def _redis(url: str) -> Server:
    if not url.startswith(("redis://", "rediss://", "unix://")):
        raise OptionError(f"{URL}={url!r} is no URL of Redis", hint="redis://HOST:PORT/DATABASE")
    try:
        import redis
    except ImportError as cause:
        raise OptionError(
            f"{URL} needs the client of Redis", hint="pip install 'regional-inductor[fleet]'"
        ) from cause
    try:
        server: Server = redis.Redis.from_url(
            url, socket_connect_timeout=_CONNECT_S, socket_timeout=_ANSWER_S
        )
    except ValueError as cause:
        raise OptionError(
            f"{URL}={url!r} can't be used: {cause}", hint="redis://HOST:PORT/DATABASE"
        ) from cause
    return server
