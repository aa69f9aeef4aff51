"""Storage of compiled regions on disk: a file each, named by its key, published at once or not at all.

What may be loaded is `trust`'s to say, what is in a file `entry`'s. A file that fails either is a
miss, reported once. Reading, writing and evicting need no lock; locks only keep two processes from
compiling one region at the same time.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .entry import DamagedError, Entry
from .errors import OptionError, RegionWarning, compose
from .trust import Seal, UntrustedError, private_folder, read_private, read_regular

if TYPE_CHECKING:
    from filelock import BaseFileLock

FOLDER = "REGIONAL_INDUCTOR_CACHE_DIR"
SWITCH = "REGIONAL_INDUCTOR_CACHE"
SIZE = "REGIONAL_INDUCTOR_CACHE_SIZE"
DEFAULT_SIZE = 4 << 30  # bytes: tens of thousands of CPU regions
_SUFFIX = ".region"
_UNFINISHED = ".unfinished"
_ABANDONED = 3600.0  # seconds after which an unfinished file has no writer any more


@dataclass(frozen=True)
class Stored:
    """A file of the store.

    Attributes:
        key: Its key.
        path: Where it is.
        size: Bytes.
        used: When it was last read or written, in seconds since the epoch.
    """

    key: str
    path: Path
    size: int
    used: float


class Disk:
    """A folder of compiled regions, the least recently used of which go when it is full.

    Args:
        folder: Made if it is missing, closed to other users.
        limit: Bytes that all entries together may take.
        seal: For a folder that others can write too: entries carry a seal, which is then what is
            believed. Without one the folder and its files must be this user's own.
    """

    def __init__(self, folder: Path, limit: int = DEFAULT_SIZE, seal: Seal | None = None) -> None:
        self.folder = folder
        self.limit = limit
        self.seal = seal
        self._said: set[str] = set()

    @classmethod
    def from_environment(cls, variables: Mapping[str, str] | None = None) -> Disk | None:
        """The store that the environment asks for, or None where it is switched off.

        Raises:
            OptionError: A switch or size that can't be read.
            UntrustedError: A key for seals that can't be used.
        """
        given = os.environ if variables is None else variables
        switch = given.get(SWITCH, "1")
        if switch not in ("0", "1"):
            raise OptionError(f"{SWITCH}={switch!r} is not a choice", hint="1 or 0")
        if switch == "0":
            return None
        folder = given.get(FOLDER) or _default_folder(given)
        return cls(
            Path(folder),
            bytes_of(given.get(SIZE, "") or str(DEFAULT_SIZE)),
            Seal.from_environment(given),
        )

    def get(self, key: str) -> Entry | None:
        """The entry of a key. One that is damaged, or can't be trusted, counts as missing."""
        if not self._is_usable():
            return None
        path = self._path(key)
        try:
            entry = self._read(path, key)
        except FileNotFoundError:
            return None
        except (UntrustedError, DamagedError, OSError) as error:
            self.reject(key, error)
            return None
        # Reading is using; a folder that is read-only keeps its order of age.
        with contextlib.suppress(OSError):
            os.utime(path)
        return entry

    def holds(self, key: str) -> bool:
        """Whether there is a file for a key; whether it can be used, `get` says."""
        return self._path(key).exists()

    def put(self, entry: Entry) -> bool:
        """Publish an entry: whoever looks sees all of it or nothing. Says whether it is stored."""
        data = entry.to_bytes()
        if self.seal is not None:
            data = self.seal.close(entry.key, data)
        if len(data) > self.limit:
            self._say(f"a compiled region of {len(data)} bytes exceeds {SIZE}={self.limit}")
            return False
        unfinished = self.folder / f"{entry.key}.{os.getpid()}.{os.urandom(4).hex()}{_UNFINISHED}"
        try:
            self._open_folder()
            self._write(unfinished, data)
            unfinished.replace(self._path(entry.key))
        except (OSError, UntrustedError) as error:
            with contextlib.suppress(OSError):
                unfinished.unlink()
            self._say(f"compiled regions can't be stored in {self.folder}: {error}")
            return False
        self.evict()
        return True

    def reject(self, key: str, why: object) -> None:
        """Report an entry that must not be used, and drop it if it is ours to drop."""
        self._say(f"the stored region {key[:12]} in {self.folder} is not used: {why}")
        path = self._path(key)
        with contextlib.suppress(OSError):
            if path.lstat().st_uid == os.geteuid():
                path.unlink()

    def entries(self) -> list[Stored]:
        """All files of the store, those not used for longest first."""
        found = []
        with contextlib.suppress(FileNotFoundError), os.scandir(self.folder) as items:
            for item in items:
                if not item.name.endswith(_SUFFIX):
                    continue
                with contextlib.suppress(FileNotFoundError):  # another process evicts as well
                    status = item.stat(follow_symlinks=False)
                    key = item.name.removesuffix(_SUFFIX)
                    found.append(Stored(key, Path(item.path), status.st_size, status.st_mtime))
        return sorted(found, key=lambda stored: (stored.used, stored.key))

    def evict(self) -> None:
        """Drop what was not used for longest until the rest is within the limit."""
        entries = self.entries()
        total = sum(stored.size for stored in entries)
        for stored in entries:
            if total <= self.limit:
                break
            with contextlib.suppress(OSError):
                stored.path.unlink()
            total -= stored.size
        self._drop_abandoned()

    def remove(self, key: str) -> None:
        """Drop one entry.

        Raises:
            OSError: There is none, or it can't be dropped.
        """
        self._path(key).unlink()

    def clear(self) -> int:
        """Drop all entries; returns how many there were."""
        entries = self.entries()
        for stored in entries:
            with contextlib.suppress(FileNotFoundError):
                stored.path.unlink()
        return len(entries)

    def check(self, key: str) -> Entry:
        """The entry of a key, without counting as a use.

        Raises:
            UntrustedError: It must not be loaded.
            DamagedError: It can't be.
            OSError: It can't be read.
        """
        self._open_folder()
        return self._read(self._path(key), key)

    @contextlib.contextmanager
    def lock(self, key: str, timeout: float) -> Iterator[bool]:
        """Holds the lock that whoever compiles a key holds; gives whether it was had in time.

        A process that ends, however it ends, gives its locks back. Where locks can't be made
        (a read-only folder), everybody has them.
        """
        held = self._lock_of(key)
        if held is None:
            yield True
            return
        from filelock import Timeout

        try:
            held.acquire(timeout=timeout, poll_interval=0.05)
        except Timeout:
            yield False
            return
        except (OSError, NotImplementedError) as error:
            self._say(f"locks can't be made in {self.folder}: {error}")
            yield True
            return
        try:
            yield True
        finally:
            held.release()

    def _lock_of(self, key: str) -> BaseFileLock | None:
        from filelock import FileLock

        try:
            self._open_folder()
            locks = self.folder / "locks"
            if self.seal is None:
                private_folder(locks)
            else:
                locks.mkdir(exist_ok=True)
        except (OSError, UntrustedError):
            return None  # `put` will say so
        mode = 0o600 if self.seal is None else 0o666
        return FileLock(locks / f"{key}.lock", mode=mode, thread_local=False)

    def _open_folder(self) -> None:
        if self.seal is None:
            private_folder(self.folder)
        else:
            self.folder.mkdir(parents=True, exist_ok=True)

    def _is_usable(self) -> bool:
        """Whether there is a folder to read from; one that can't be trusted is reported once."""
        if not self.folder.exists():
            return False
        try:
            self._open_folder()
        except (OSError, UntrustedError) as error:
            self._say(f"the store of compiled regions is not used: {error}")
            return False
        return True

    def trouble(self) -> Exception | None:
        """Why nothing can be stored or loaded here, or None; makes no folder."""
        if self.folder.exists():
            try:
                self._open_folder()
            except (OSError, UntrustedError) as error:
                return error
        existing = next(path for path in (self.folder, *self.folder.parents) if path.exists())
        if not existing.is_dir():
            return NotADirectoryError(f"{existing} is no folder")
        if not os.access(existing, os.W_OK | os.X_OK):
            return PermissionError(f"{existing} can't be written")
        return None

    def _read(self, path: Path, key: str) -> Entry:
        if self.seal is not None:
            return Entry.from_bytes(self.seal.open(key, read_regular(path)), key)
        return Entry.from_bytes(read_private(path), key)

    def _write(self, path: Path, data: bytes) -> None:
        # Not synced: what a crash of the machine leaves half written has a wrong digest.
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        mode = 0o600 if self.seal is None else 0o666  # less the umask
        with open(path, "wb", opener=lambda name, _: os.open(name, flags, mode)) as file:
            file.write(data)

    def _drop_abandoned(self) -> None:
        """Files that a writer which was killed left behind, and locks that nobody took for long."""
        long_ago = time.time() - _ABANDONED
        for folder, suffix in ((self.folder, _UNFINISHED), (self.folder / "locks", ".lock")):
            with contextlib.suppress(OSError), os.scandir(folder) as items:
                for item in items:
                    if item.name.endswith(suffix) and item.stat().st_mtime < long_ago:
                        with contextlib.suppress(OSError):
                            os.unlink(item.path)

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}{_SUFFIX}"

    def _say(self, what: str) -> None:
        """One warning for each thing that went wrong; the compile goes on without the store."""
        if what not in self._said:
            self._said.add(what)
            text = compose(what, hint=f"{SWITCH}=0 switches the store off")
            warnings.warn(RegionWarning(text), stacklevel=2)


def bytes_of(text: str) -> int:
    """A size such as ``"500MB"`` or ``"4GiB"`` in bytes.

    Raises:
        OptionError: It is none.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?\s*", text, re.IGNORECASE)
    if match is None:
        raise OptionError(f"{SIZE}={text!r} is no size", hint='bytes, or text such as "4GiB"')
    power = " kmgt".index(match[2].lower() or " ")
    return int(float(match[1]) * (1024 if match[3] else 1000) ** power)


def _default_folder(variables: Mapping[str, str]) -> Path:
    base = variables.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "regional-inductor"
