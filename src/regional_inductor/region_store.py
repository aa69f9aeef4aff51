"""Compiled regions across processes: which may be stored, under which key, and their way there and back."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from ._torch import bundle, inductor, machine, portable
from .cache import memory
from .disk import FOLDER, SIZE, SWITCH, Disk
from .entry import SCHEMA, Entry
from .region_backends import is_boxed
from .region_requests import RegionRequest
from .regions import CompiledRegion, Settings
from .trust import KEY, KEY_FILE

WAIT = 1800.0
"""Seconds after which a region that another process is compiling is compiled here as well."""

log = logging.getLogger("regional_inductor")

Compile = Callable[[Sequence[RegionRequest]], dict[str, CompiledRegion]]

_disks: dict[tuple[str | None, ...], Disk | None] = {}


def disk() -> Disk | None:
    """The store that the environment asks for now, or None where it is switched off."""
    asked = tuple(os.environ.get(name) for name in _VARIABLES)
    if asked not in _disks:
        _disks[asked] = Disk.from_environment()
    return _disks[asked]


_VARIABLES = (FOLDER, SWITCH, SIZE, KEY, KEY_FILE, "XDG_CACHE_HOME", "HOME")


def loaded_or_compiled(
    requests: Sequence[RegionRequest], settings: Settings, compile_batch: Compile
) -> dict[str, CompiledRegion]:
    """What memory lacks: from disk, or compiled and published, with other processes in mind.

    Regions that another process is compiling come last: this one compiles the others first and looks
    for them then. It never waits while it holds a lock, so no two processes wait for each other.

    Args:
        requests: One for each distinct key.
        settings: Says whether Inductor compiles regions; nothing else is stored.
        compile_batch: Compiles distinct regions.
    """
    store = disk() if settings.region_backend == "inductor" else None
    if store is None:
        return compile_batch(requests)
    forbidden = _forbidden()
    if forbidden:
        log.info("compiled regions are not stored: %s", forbidden)
        return compile_batch(requests)
    keys = {r.key: stored_key(r) for r in requests if _is_stored(r)}
    found = {r.key: region for r in requests if (region := _loaded(r, keys, store))}
    missing = [r for r in requests if r.key not in found]
    ours: list[RegionRequest] = []
    theirs: list[RegionRequest] = []
    with contextlib.ExitStack() as locks:
        for request in missing:
            key = keys.get(request.key)
            mine = key is None or locks.enter_context(store.lock(key, timeout=0))
            (ours if mine else theirs).append(request)
        found |= _compiled(ours, keys, store, compile_batch)
    for request in theirs:
        with store.lock(keys[request.key], timeout=WAIT):
            found |= _compiled([request], keys, store, compile_batch)
    return found


def _compiled(
    requests: Sequence[RegionRequest], keys: Mapping[str, str], store: Disk, compile_batch: Compile
) -> dict[str, CompiledRegion]:
    """Under the locks of what is stored: looked for once more, then compiled and published."""
    found = {r.key: region for r in requests if (region := _loaded(r, keys, store))}
    missing = [r for r in requests if r.key not in found]
    if not missing:
        return found
    started = time.perf_counter()
    try:
        compiled = compile_batch(missing)
    except BaseException:
        # One region failed, or Dynamo captures again: what was compiled before needn't be again.
        for request in missing:
            _publish(request, keys, memory.get(request.key), time.perf_counter() - started, store)
        raise
    for request in missing:
        region = compiled[request.key]
        _publish(request, keys, region.call, region.seconds, store)
    return {**found, **compiled}


def stored_key(request: RegionRequest) -> str:
    """What a region is stored under: its key, and everything that this machine's code depends on."""
    kinds = portable.device_kinds(request.module)
    text = json.dumps(
        {
            "region": request.key,
            "schema": SCHEMA,
            "package": package_digest(),
            "build": machine.build(),
            "devices": machine.devices(kinds),
        },
        sort_keys=True,
    )
    return hashlib.sha256(text.encode()).hexdigest()


@cache
def package_digest() -> str:
    """A digest of this package's own code, any of which may change what a region compiles to."""
    digest = hashlib.sha256()
    folder = Path(__file__).parent
    for path in sorted(folder.rglob("*.py")):
        digest.update(f"{path.relative_to(folder)}\n".encode() + path.read_bytes())
    return digest.hexdigest()


def _forbidden() -> str:
    """Why nothing may be stored or taken now, or ``""``."""
    if inductor.caches_forbidden():
        return "Inductor's force_disable_caches is on"
    operator = portable.customised_tables()
    return f"keys don't see the user's own lowering of {operator}" if operator else ""


def _is_stored(request: RegionRequest) -> bool:
    reason = request.local or portable.why_not(request.module)
    if reason:
        log.info("region %s is not stored: %s", request.call.name, reason)
    return not reason


def _loaded(request: RegionRequest, keys: Mapping[str, str], store: Disk) -> CompiledRegion | None:
    key = keys.get(request.key)
    if key is None:
        return None
    started = time.perf_counter()
    entry = store.get(key)
    if entry is None:
        return None
    try:
        call = bundle.load(entry.parts, key[:12])
    except Exception as error:  # noqa: BLE001 - whatever is wrong with an entry, compiling it anew helps
        store.reject(key, f"{type(error).__name__}: {error}")
        return None
    memory.put(request.key, call)
    return CompiledRegion(
        request.key,
        call,
        "disk",
        seconds=time.perf_counter() - started,
        options=request.options,
        boxed=is_boxed(call),
        started=started,
    )


def _publish(
    request: RegionRequest,
    keys: Mapping[str, str],
    call: Callable[..., Any] | None,
    seconds: float,
    store: Disk,
) -> None:
    key = keys.get(request.key)
    if key is None or call is None:
        return
    try:
        parts = bundle.dump(call)
    except bundle.NotBundledError as error:
        log.info("region %s is not stored: %s", request.call.name, error)
        return
    store.put(Entry(key, _about(request, seconds), parts))


def _about(request: RegionRequest, seconds: float) -> dict[str, Any]:
    """What `regional-inductor cache` shows."""
    call = request.call
    return {
        "name": call.name,
        "direction": call.direction,
        "nodes": call.nodes,
        "ops": list(dict.fromkeys(call.ops)),
        "options": {name: repr(value) for name, value in request.options.items()},
        "seconds": round(seconds, 3),
        "region key": request.key,
        "made": time.time(),
        "build": machine.build(),
        "devices": machine.devices(portable.device_kinds(request.module)),
    }
