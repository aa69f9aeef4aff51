"""Compiled regions across processes: which may be stored, under which key, and their way there and back."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from . import ranks
from ._torch import bundle, inductor, machine, portable, symbols
from ._torch.fx import is_boxed
from .cache import memory
from .disk import FOLDER, SIZE, SWITCH, Disk
from .entry import SCHEMA, Entry
from .errors import warn
from .own_code import package_digest
from .region_key import combined_key, key_on_any_gpu
from .region_requests import RegionRequest
from .regions import CompiledRegion, Settings
from .remote import URL, Remote
from .trust import KEY, KEY_FILE

WAIT = 1800.0
"""Seconds after which a region that another process is compiling is compiled here as well."""

log = logging.getLogger("regional_inductor")

Compile = Callable[[Sequence[RegionRequest]], dict[str, CompiledRegion]]

_opened: dict[tuple[str | None, ...], tuple[Disk | None, Remote | None]] = {}
_VARIABLES = (FOLDER, SWITCH, SIZE, KEY, KEY_FILE, URL, "XDG_CACHE_HOME", "HOME")


_stored_under: dict[str, str] = {}  # by region key, for regions that this process stored or loaded


def stored_under(key: str) -> str | None:
    """What the region with this region key is stored under on disk, as far as this process knows."""
    return _stored_under.get(key)


def in_memory(key: str) -> Callable[..., Any] | None:
    """The compiled region with this region key, if this process has it."""
    return memory.get(key)


def loaded_by_key(
    key: str, stored: str, options: Mapping[str, Any]
) -> tuple[Callable[..., Any], Literal["memory", "disk"]] | None:
    """A region of fixed sizes on the CPU, and where it came from; None if it isn't to be had.

    Args:
        key: Its region key.
        stored: What it is stored under.
        options: Inductor's options that it was compiled with.
    """
    known, local = memory.get(key), disk()
    if known is not None:
        return known, "memory"
    entry = None if local is None else local.get(stored)
    if local is None or entry is None:
        return None
    try:
        with inductor.configured(options):
            call = bundle.load(entry.parts)
    except Exception as error:  # noqa: BLE001 - whatever is wrong with it, compiling helps
        local.reject(stored, f"{type(error).__name__}: {error}")
        return None
    memory.put(key, call)
    _stored_under[key] = stored
    return call, "disk"


def disk() -> Disk | None:
    """The store on disk that the environment asks for now, or None where it is switched off."""
    return _stores()[0]


def remote() -> Remote | None:
    """The store on a server that the environment asks for now, or None."""
    return _stores()[1]


def _stores() -> tuple[Disk | None, Remote | None]:
    asked = tuple(os.environ.get(name) for name in _VARIABLES)
    if asked not in _opened:
        _opened[asked] = Disk.from_environment(), Remote.from_environment()
    return _opened[asked]


def loaded_or_compiled(
    requests: Sequence[RegionRequest], settings: Settings, compile_batch: Compile
) -> dict[str, CompiledRegion]:
    """What memory lacks: from disk, other ranks or a server, or compiled and published.

    Args:
        requests: One for each distinct key.
        settings: Says whether Inductor compiles regions; nothing else is stored.
        compile_batch: Compiles distinct regions.
    """
    if settings.region_backend != "inductor":
        return compile_batch(requests)
    local, server = _stores()
    job = ranks.job(local.folder if local is not None and local.seal is None else None)
    if local is None and server is None and job is None:
        return compile_batch(requests)
    reason = forbidden()
    if reason:
        log.info("compiled regions are not stored: %s", reason)
        return compile_batch(requests)
    keys = {r.key: stored_keys(r) for r in requests if _is_stored(r)}
    supply = _Supply(keys, compile_batch, local, server)
    found = supply.from_disk(requests)
    missing = [r for r in requests if r.key not in found]
    if job is None or not missing:
        return found | supply.made_here(missing)
    return found | supply.shared_by(job, missing)


@dataclass
class _Supply:
    """The places that one batch of requests may be served from.

    Attributes:
        keys: What regions are stored under, by region key; those that aren't stored are missing. The first
            is that of whoever else has the same work; others, of what only the GPU at hand can run.
        compile_batch: Compiles distinct regions.
        disk: The store on disk, if any.
        server: The store on a server, if any.
        entries: Those made or loaded so far, by the key that they are stored under.
    """

    keys: Mapping[str, tuple[str, ...]]
    compile_batch: Compile
    disk: Disk | None
    server: Remote | None
    entries: dict[str, Entry] = field(default_factory=dict)

    def from_disk(self, requests: Sequence[RegionRequest]) -> dict[str, CompiledRegion]:
        """What the store on disk has."""
        return self._found(requests, self.disk, "disk")

    def made_here(self, requests: Sequence[RegionRequest]) -> dict[str, CompiledRegion]:
        """From a server, or compiled, with other processes of this machine in mind.

        Regions that another process is compiling come last: this one compiles the others first and looks
        for them then. It never waits while it holds a lock, so no two processes wait for each other.
        """
        if self.disk is None:
            return self._compiled(requests)
        ours: list[RegionRequest] = []
        theirs: list[RegionRequest] = []
        with contextlib.ExitStack() as locks:
            for request in requests:
                keys = self.keys.get(request.key)
                mine = keys is None or locks.enter_context(self.disk.lock(keys[0], timeout=0))
                (ours if mine else theirs).append(request)
            found = self._compiled(ours)
        for request in theirs:
            with self.disk.lock(self.keys[request.key][0], timeout=WAIT):
                found |= self._compiled([request])
        return found

    def shared_by(
        self, job: ranks.Job, requests: Sequence[RegionRequest]
    ) -> dict[str, CompiledRegion]:
        """Each made by one rank and fetched by the others; what can't be stored each makes itself."""
        asking = {self.keys[r.key][0]: r for r in requests if r.key in self.keys}
        found: dict[str, CompiledRegion] = {}

        def produce(keys: Sequence[str]) -> dict[str, bytes | None]:
            found.update(self.made_here([asking[key] for key in keys]))
            made = [self.entries[key] for key in keys if key in self.entries]
            return {entry.key: entry.to_bytes() for entry in made}

        def accept(key: str, body: bytes) -> bool:
            started = time.perf_counter()
            entry = None
            try:
                entry = Entry.from_bytes(body, key)
                region = self._loaded(asking[key], entry, "fetched", started)
            except Exception as error:  # noqa: BLE001 - whatever is wrong with it, compiling helps
                if not _is_the_device_s(error, entry):
                    warn(f"a region that another rank compiled can't be loaded: {error!r}")
                return False
            if region is None:
                return False
            found[region.key] = region
            self._put_on_disk(entry)
            return True

        job.share(list(asking), produce, accept)
        return found | self.made_here([r for r in requests if r.key not in found])

    def _compiled(self, requests: Sequence[RegionRequest]) -> dict[str, CompiledRegion]:
        """Under the locks of what is stored: looked for once more, then compiled and published."""
        found = self.from_disk(requests)
        fetched = self._found([r for r in requests if r.key not in found], self.server, "fetched")
        for key in fetched:
            for stored in self.keys[key]:
                if stored in self.entries:
                    self._put_on_disk(self.entries[stored])
        found |= fetched
        missing = [r for r in requests if r.key not in found]
        if not missing:
            return found
        started = time.perf_counter()
        try:
            compiled = self.compile_batch(missing)
        except BaseException:
            # One region failed, or Dynamo captures again: what was compiled before needn't be again.
            for request in missing:
                seconds = time.perf_counter() - started
                self._publish(request, memory.get(request.key), seconds)
            raise
        for request in missing:
            region = compiled[request.key]
            self._publish(request, region.call, region.seconds)
        return found | compiled

    def _found(
        self,
        requests: Sequence[RegionRequest],
        store: Disk | Remote | None,
        status: Literal["disk", "fetched"],
    ) -> dict[str, CompiledRegion]:
        """What a store has; an entry that can't be loaded is reported and counts as missing."""
        found = {}
        for request in requests:
            for key in self.keys.get(request.key, ()):
                started = time.perf_counter()
                entry = None if store is None else store.get(key)
                if store is None or entry is None:
                    continue
                try:
                    region = self._loaded(request, entry, status, started)
                except Exception as error:  # noqa: BLE001 - whatever is wrong with it, compiling helps
                    if not _is_the_device_s(error, entry):
                        store.reject(key, f"{type(error).__name__}: {error}")
                    continue
                if region is not None:
                    found[request.key] = region
                    break
        return found

    def _loaded(
        self,
        request: RegionRequest,
        entry: Entry,
        status: Literal["disk", "fetched"],
        started: float,
    ) -> CompiledRegion | None:
        """None where what its compile assumed of sizes doesn't hold for those at hand."""
        guards = entry.parts.get("guards")
        if guards is not None and not symbols.guards_hold(guards.decode(), request.sizes):
            log.info(
                "region %s is compiled anew: other sizes than the stored one", request.call.name
            )
            return None
        gpu = portable.only_gpu(request.module)
        if gpu is not None and entry.key == self.keys[request.key][0]:
            entry = replace(entry, parts=bundle.moved(entry.parts, gpu))
        with inductor.configured(request.options):
            call = bundle.load(entry.parts)
        memory.put(request.key, call)
        self.entries[entry.key] = entry
        if status == "disk":
            _stored_under[request.key] = entry.key
        self._follow(call, entry)
        return CompiledRegion(
            request.key,
            call,
            status,
            seconds=time.perf_counter() - started,
            options=request.options,
            boxed=is_boxed(call),
            started=started,
        )

    def _publish(
        self, request: RegionRequest, call: Callable[..., Any] | None, seconds: float
    ) -> None:
        keys = self.keys.get(request.key)
        if keys is None or call is None:
            return
        try:
            parts = bundle.dump(call)
            if request.sizes:
                parts["guards"] = symbols.guards_on(request.sizes).encode()
        except (bundle.NotBundledError, symbols.UnstatedError) as error:
            log.info("region %s is not stored: %s", request.call.name, error)
            return
        except Exception as error:
            log.info("region %s is not stored: %r", request.call.name, error)
            log.debug("why it is not stored", exc_info=True)
            return
        key = keys[0] if len(keys) == 1 or bundle.is_movable(parts) else keys[1]
        entry = Entry(key, _about(request, seconds), parts)
        self.entries[key] = entry
        self._put(entry)
        _stored_under[request.key] = key
        self._follow(call, entry)

    def _follow(self, call: Callable[..., Any], entry: Entry) -> None:
        """Store what is chosen for a region's kernels when they first run, so that no process chooses again."""
        if not bundle.has_triton(entry.parts):
            return

        def chosen() -> None:
            self._put(replace(entry, parts=bundle.with_choices(call, entry.parts)))

        try:
            bundle.when_chosen(call, chosen)
        except Exception:
            log.debug("choices for the region %s aren't stored", entry.key[:12], exc_info=True)

    def _put(self, entry: Entry) -> None:
        self._put_on_disk(entry)
        if self.server is not None:
            self.server.put(entry)

    def _put_on_disk(self, entry: Entry) -> None:
        if self.disk is not None:
            self.disk.put(entry)


def _is_the_device_s(error: Exception, entry: Entry | None) -> bool:
    """Whether the GPU at hand may be why an entry can't be loaded: Triton's kernels are put onto it."""
    if entry is None or not bundle.has_triton(entry.parts):
        return False
    log.debug("the stored region %s is compiled anew", entry.key[:12], exc_info=error)
    return True


def stored_keys(request: RegionRequest) -> tuple[str, ...]:
    """What a region is stored under: its key, and everything that this machine's code depends on.

    A region on a GPU has two: one for any GPU of this kind, under which is stored what can be made to run on
    each, and one with the GPU's number, for the rest.
    """
    kinds = portable.device_kinds(request.module)
    operators = portable.signatures(request.module)
    key = combined_key(request.parts_for_all)
    keys = [_stored_key(key, operators, machine.devices(kinds))]
    gpu = portable.only_gpu(request.module)
    if gpu is not None:
        anywhere = key_on_any_gpu(request.module, request.parts_for_all)
        keys.insert(0, _stored_key(f"any GPU {anywhere}", operators, machine.one_gpu(gpu)))
    return tuple(keys)


def _stored_key(
    region: str, operators: Mapping[str, Sequence[str]], devices: Mapping[str, str]
) -> str:
    text = json.dumps(
        {
            "region": region,
            "operators": operators,
            "schema": SCHEMA,
            "package": package_digest(),
            "build": machine.build(),
            "devices": devices,
        },
        sort_keys=True,
    )
    return hashlib.sha256(text.encode()).hexdigest()


def forbidden() -> str:
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
        "region key": combined_key(request.parts_for_all),
        "made": time.time(),
        "build": machine.build(),
        "devices": machine.devices(portable.device_kinds(request.module)),
    }
