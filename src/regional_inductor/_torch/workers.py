"""The threads and processes in which Inductor compiles kernels, when they must end or have died.

Checked on torch 2.11, 2.12 and 2.13: `async_compile.AsyncCompile.pool` and `.process_pool` (cached functions),
`._ready_future`, `async_compile._pool_set`, `SubprocPool.process`, `.running`, `.write_lock`,
`.running_waitcounter`, `.pending_futures` and `.shutdown`.
On another version nothing is found, and nothing is ended or renewed. Also `async_compile.maybe_warm_pool`, which
Inductor's own backend calls, and `torch.utils._triton.has_triton_package`.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any

from .versions import is_one_of

CHECKED_VERSIONS = ((2, 11), (2, 12), (2, 13))


def start_early() -> None:
    """Have Inductor's worker processes started, as its own backend does before anything else.

    It takes them seconds to be there. Until then Inductor compiles each Triton kernel in this process, one
    after another.
    """
    if not _triton_is_there():
        return  # nobody else needs them, and so Inductor isn't imported for it
    from torch._inductor import async_compile

    start = getattr(async_compile, "maybe_warm_pool", None)
    if start is not None:
        start()


def _triton_is_there() -> bool:
    from torch.utils._triton import has_triton_package

    return bool(has_triton_package())


def thread_ids() -> list[int]:
    """Native ids of the threads that wait for compilers."""
    module = _module()
    threads = None if module is None else _made(module.AsyncCompile, "pool")
    if not isinstance(threads, ThreadPoolExecutor):
        return []
    return [thread.native_id for thread in threads._threads if thread.native_id is not None]


def busy_pools() -> set[int]:
    """The processes at the top of Inductor's pools of processes that have work."""
    found: set[int] = set()
    module = _module()
    for pool in () if module is None else _process_pools(module):
        if isinstance(pool, Executor):
            if getattr(pool, "_pending_work_items", None):
                found |= set(getattr(pool, "_processes", None) or ())
        elif getattr(pool, "pending_futures", None):
            found.add(pool.process.pid)
    return found


def drop_waiting_work() -> None:
    """Forget what Inductor's threads were still to do; later compiles get threads of their own."""
    module = _module()
    threads = None if module is None else _made(module.AsyncCompile, "pool")
    if module is not None and isinstance(threads, ThreadPoolExecutor):
        module.AsyncCompile.pool.cache_clear()
        threads.shutdown(wait=False, cancel_futures=True)


def give_up_dead_pools() -> None:
    """Let nobody wait for a pool whose process is dead, which torch doesn't notice.

    It holds the other end of the pipe open by itself, and so does each worker that the process left behind.
    """
    module = _module()
    for pool in () if module is None else _process_pools(module):
        if isinstance(pool, Executor) or pool.process.poll() is None:
            continue
        if not pool.write_lock.acquire(timeout=0.1):
            continue  # somebody fills a pipe that nobody empties
        try:
            was_running, pool.running = pool.running, False
            if was_running:
                pool.running_waitcounter.__exit__()
        finally:
            pool.write_lock.release()
        pool.shutdown()  # of one that doesn't run: whatever is waited for gets an exception


@contextlib.contextmanager
def dead_pools_given_up() -> Iterator[None]:
    """Look after the pools while this is open: what waits for one that dies goes on, with an exception."""
    done = threading.Event()

    def look() -> None:
        while not done.wait(_LOOK_EVERY_S):
            give_up_dead_pools()

    thread = threading.Thread(target=look, name="regional_inductor-pools", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()


_LOOK_EVERY_S = 0.5


def renew_broken_pools() -> None:
    """Let Inductor make a new pool of processes where the one that it has is dead.

    It would go on asking the dead one: every later region that needs it would fail.
    """
    module = _module()
    if module is None:
        return
    give_up_dead_pools()
    for pool in _process_pools(module):
        if not _is_broken(pool):
            continue
        module._pool_set.discard(pool)
        if _made(module.AsyncCompile, "process_pool") is pool:
            module.AsyncCompile.process_pool.cache_clear()
            module.AsyncCompile._ready_future = None


def _is_broken(pool: Any) -> bool:
    if isinstance(pool, Executor):
        return bool(getattr(pool, "_broken", False))
    return not pool.running


def _module() -> Any:
    module = sys.modules.get("torch._inductor.async_compile")
    imported = hasattr(module, "AsyncCompile")  # another thread may be about to
    return module if imported and is_one_of(CHECKED_VERSIONS) else None


def _process_pools(module: Any) -> Iterable[Any]:
    return list(getattr(module, "_pool_set", ()))


def _made(owner: Any, name: str) -> Any:
    """What a cached function has made, without making it."""
    function: Any = getattr(owner, name, None)
    with contextlib.suppress(AttributeError):
        return function() if function.cache_info().currsize else None
    return None
