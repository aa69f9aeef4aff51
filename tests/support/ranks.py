"""Processes that are the ranks of one job on this machine, talking through gloo."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import socket
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any

LIMIT = 240.0
"""Seconds after which a call that hasn't come back has failed; far beyond what a loaded machine needs."""


class RankError(AssertionError):
    """What a rank raised, with its traceback as text."""


class Ranks:
    """The ranks of one job: new processes, which run one function after another.

    Args:
        count: How many.
        variables: For each rank, or for all of them, the environment it has beyond this process's.
    """

    def __init__(
        self, count: int, variables: dict[str, str] | Sequence[dict[str, str]] | None = None
    ) -> None:
        context = multiprocessing.get_context("spawn")
        each = [variables or {}] * count if not isinstance(variables, Sequence) else variables
        port = _free_port()
        self.processes: list[Any] = []
        self._pipes: list[Connection] = []
        for rank, own in enumerate(each):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=_serve, args=(theirs, rank, count, port, dict(own)), daemon=True
            )
            process.start()
            theirs.close()
            self.processes.append(process)
            self._pipes.append(ours)

    def run(self, function: Callable[..., Any], *args: Any, dying: Sequence[int] = ()) -> list[Any]:
        """What a function returns on each rank, all at once.

        Args:
            function: One of a module that can be imported.
            *args: The same for all.
            dying: Ranks that are expected to end instead of returning; they give None.

        Raises:
            RankError: A rank raised, ended or took too long.
        """
        for pipe in self._pipes:
            pipe.send((function, args))
        deadline = time.monotonic() + LIMIT
        results: list[Any] = []
        for rank, pipe in enumerate(self._pipes):
            if not pipe.poll(max(deadline - time.monotonic(), 0)):
                raise RankError(f"rank {rank} is still at {function.__name__} after {LIMIT} s")
            try:
                fine, value = pipe.recv()
            except EOFError:
                fine, value = rank in dying, f"rank {rank} ended"
                value = None if fine else value
            if not fine:
                raise RankError(value)
            results.append(value)
        return results

    def close(self) -> None:
        for pipe in self._pipes:
            with contextlib.suppress(OSError):
                pipe.send(None)
        for process in self.processes:
            process.join(timeout=10)
            if process.is_alive():
                process.kill()
                process.join()

    def __enter__(self) -> Ranks:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _serve(pipe: Connection, rank: int, count: int, port: int, variables: dict[str, str]) -> None:
    os.environ.update(variables)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    import torch

    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=count)
    while (order := _next(pipe)) is not None:
        function, args = order
        try:
            torch._dynamo.reset()
            torch.manual_seed(0)
            with warnings.catch_warnings():
                # Torch's own warnings about its insides are not what these tests are about.
                warnings.simplefilter("ignore", DeprecationWarning)
                warnings.simplefilter("ignore", FutureWarning)
                pipe.send((True, function(*args)))
        except BaseException:  # noqa: BLE001 - the test is told, whatever it was
            pipe.send((False, f"rank {rank}:\n{traceback.format_exc()}"))
    os._exit(0)  # other ranks may be gone, and gloo's good-byes would wait for them


def _next(pipe: Connection) -> Any:
    try:
        return pipe.recv()
    except EOFError:
        return None


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
