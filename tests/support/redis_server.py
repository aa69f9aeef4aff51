"""A Redis server of a test's own."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass
class Redis:
    """A running server.

    Attributes:
        url: Where it is: a socket in a folder of the test's.
        process: It.
        client: Speaks with it.
    """

    url: str
    process: subprocess.Popen[bytes]
    client: Any

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


def missing() -> str:
    """What a test of it lacks here, or ``""``."""
    if shutil.which("redis-server") is None:
        return "no redis-server (Debian: apt-get install redis-server)"
    try:
        import redis  # noqa: F401
    except ImportError:
        return "no client: pip install redis"
    return ""


@contextlib.contextmanager
def running(folder: Path) -> Iterator[Redis]:
    """A server that keeps nothing on disk and listens on no port."""
    import redis

    socket = folder / "redis.sock"
    settings = {"port": "0", "unixsocket": str(socket), "save": "", "dir": str(folder)}
    command = ["redis-server", *(part for name, v in settings.items() for part in (f"--{name}", v))]
    with open(folder / "redis.log", "wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    server = Redis(f"unix://{socket}", process, redis.Redis(unix_socket_path=str(socket)))
    try:
        deadline = time.monotonic() + 60
        while not _answers(server.client):
            assert process.poll() is None, (folder / "redis.log").read_text()
            assert time.monotonic() < deadline, "redis-server doesn't answer"
            time.sleep(0.05)
        yield server
    finally:
        server.client.close()
        server.stop()


def _answers(client: Any) -> bool:
    import redis

    try:
        return bool(client.ping())
    except redis.exceptions.ConnectionError:
        return False
