"""What may be loaded: files that only this user can write, and bodies sealed with a key that the user gave.

Compiled regions are executable code. So a body is believed for one of two reasons: it lies in a folder
and a file that nobody but this user can write, or it carries a seal, HMAC-SHA256 over the name that it
was asked for by and its bytes. Both are checked before a byte of the body is unpickled.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import stat
from collections.abc import Mapping
from pathlib import Path

from regional_inductor.errors import RegionError

__all__ = [
    "KEY",
    "KEY_FILE",
    "Seal",
    "UntrustedError",
    "is_sealed",
    "own_seal",
    "private_folder",
    "read_private",
    "read_regular",
]

KEY = "REGIONAL_INDUCTOR_CACHE_KEY"
KEY_FILE = "REGIONAL_INDUCTOR_CACHE_KEY_FILE"
SHORTEST_KEY = 32  # bytes: as long as the digest, below which RFC 2104 discourages
_MAGIC = b"regional-inductor sealed 1\n"
_DIGEST = hashlib.sha256().digest_size


class UntrustedError(RegionError):
    """A file, folder or entry that must not be loaded; nothing of it has been unpickled."""


class Seal:
    """Seals bodies, and opens only what was sealed with the same key under the same name.

    Args:
        key: The secret, at least 32 bytes.

    Raises:
        UntrustedError: The key is too short.

    Example:
        >>> from regional_inductor.trust import Seal
        >>> seal = Seal(b"k" * 32)
        >>> seal.open("region-1", seal.close("region-1", b"body"))
        b'body'
    """

    def __init__(self, key: bytes) -> None:
        if len(key) < SHORTEST_KEY:
            raise UntrustedError(
                f"the key of a shared cache has {len(key)} bytes, at least {SHORTEST_KEY} are needed",
                hint="make one with `openssl rand -hex 32`",
            )
        self._key = key

    @classmethod
    def from_environment(cls, variables: Mapping[str, str] | None = None) -> Seal | None:
        """The seal whose key a variable holds, or a private file that a variable names; None if neither is set.

        Raises:
            UntrustedError: Both are set, the key is too short, or others can read or write its file.
        """
        given = os.environ if variables is None else variables
        text, file = given.get(KEY), given.get(KEY_FILE)
        if text is not None and file is not None:
            raise UntrustedError(f"both {KEY} and {KEY_FILE} are set", hint="unset one of them")
        if text is not None:
            return cls(text.strip().encode())
        return None if file is None else cls(read_private(Path(file)).strip())

    def close(self, name: str, body: bytes) -> bytes:
        """The sealed form of a body that is to be found by `name`."""
        return _MAGIC + self._digest(name, body) + body

    def open(self, name: str, sealed: bytes) -> bytes:
        """The body.

        Raises:
            UntrustedError: It is cut short, changed, sealed with another key, or under another name.
        """
        start = len(_MAGIC) + _DIGEST
        body = sealed[start:]
        if not sealed.startswith(_MAGIC) or not hmac.compare_digest(
            sealed[len(_MAGIC) : start], self._digest(name, body)
        ):
            raise UntrustedError(
                f"the entry {name!r} of a shared cache doesn't carry the seal of this key",
                hint="check that all writers use one key; an entry that was changed is never loaded",
            )
        return body

    @property
    def fingerprint(self) -> str:
        """Tells keys apart without giving them away."""
        return self._digest("fingerprint", b"").hex()[:32]

    def _digest(self, name: str, body: bytes) -> bytes:
        # The name's length keeps ("ab", "c") and ("a", "bc") apart.
        encoded = name.encode()
        head = _MAGIC + len(encoded).to_bytes(8, "big") + encoded
        return hmac.new(self._key, head + body, hashlib.sha256).digest()


def is_sealed(data: bytes) -> bool:
    """Whether bytes say of themselves that they are sealed; whose seal it is, nobody knows yet."""
    return data.startswith(_MAGIC)


def own_seal(folder: Path) -> Seal:
    """The seal whose key a private folder of this user's holds; one is drawn where there is none.

    Raises:
        UntrustedError: Others can read or write the folder or the key.
        OSError: It can't be read, or written where there is none.
    """
    path = private_folder(folder) / "secret"
    try:
        return Seal(read_private(path))
    except FileNotFoundError:
        drawn = folder / f"secret.{os.getpid()}.{os.urandom(4).hex()}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    with open(drawn, "wb", opener=lambda name, _: os.open(name, flags, 0o600)) as file:
        file.write(os.urandom(SHORTEST_KEY))
    # A link, unlike a rename, leaves what another process of this user was quicker to put there.
    try:
        os.link(drawn, path)
    except FileExistsError:
        pass
    finally:
        drawn.unlink()
    return Seal(read_private(path))


def private_folder(path: Path) -> Path:
    """Make a folder that only this user can enter, or check that an existing one is such.

    Raises:
        UntrustedError: It is a symbolic link, no folder, another user's, or open to others.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        path.mkdir(mode=0o700)
    except FileExistsError:
        pass
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode):
        raise UntrustedError(f"{path} is not a folder, or a symbolic link", hint="name a folder")
    _belongs_to_us(path, found)
    return path


def read_private(path: Path) -> bytes:
    """The bytes of a regular file that only this user can read and write.

    The opened file is what is checked, so that it can't be exchanged between check and reading.

    Raises:
        UntrustedError: It is a symbolic link, not a regular file, another user's, or open to others.
        FileNotFoundError: There is none.
    """
    return _read(path, private=True)


def read_regular(path: Path) -> bytes:
    """The bytes of a regular file, whoever's it is: for bodies that carry a seal.

    Raises:
        UntrustedError: It is a symbolic link, or not a regular file.
        FileNotFoundError: There is none.
    """
    return _read(path, private=False)


def _read(path: Path, *, private: bool) -> bytes:
    try:
        # Without O_NONBLOCK, opening a pipe that someone put there would wait for a writer forever.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise
    except OSError as cause:
        raise UntrustedError(
            f"{path} can't be opened as a file of this user: {cause.strerror}",
            hint="name the file itself, not a symbolic link",
        ) from cause
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise UntrustedError(f"{path} is not a regular file", hint="remove it")
        if private:
            _belongs_to_us(path, found)
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            return file.read()
    finally:
        os.close(descriptor)


def _belongs_to_us(path: Path, found: os.stat_result) -> None:
    if found.st_uid != os.geteuid():
        raise UntrustedError(
            f"{path} belongs to user {found.st_uid}, not to user {os.geteuid()} who would load it",
            hint="use a place of your own",
        )
    mode = stat.S_IMODE(found.st_mode)
    if mode & 0o077:
        raise UntrustedError(
            f"{path} is open to other users (mode {mode:04o})", hint=f"chmod go= '{path}'"
        )
