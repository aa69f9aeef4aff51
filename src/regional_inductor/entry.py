"""The file of one stored compiled region: a header to read without trust, and named parts.

Nothing here unpickles. The digest finds damage; that nobody put the entry there on purpose is for
`trust` to say. Parts are compressed: regions that were compiled together hold the same library each, and
with compression all of them together take less than one uncompressed copy of each library would.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

SCHEMA = 2
"""Part of every key: entries of another schema are never asked for."""

_MAGIC = b"regional-inductor entry\n"
_DIGEST = hashlib.sha256().digest_size
_LENGTH = 8
_LEVEL = 1  # higher ones save a tenth more and take three times as long


class DamagedError(Exception):
    """Bytes that are no entry, or not the one asked for."""


@dataclass(frozen=True)
class Entry:
    """One compiled region as bytes.

    Attributes:
        key: The key that it is stored under.
        about: What a person may want to know of it; JSON.
        parts: Its bytes, by name.
    """

    key: str
    about: Mapping[str, Any] = field(default_factory=dict)
    parts: Mapping[str, bytes] = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        packed = {name: zlib.compress(part, _LEVEL) for name, part in self.parts.items()}
        header = {
            "schema": SCHEMA,
            "key": self.key,
            "about": dict(self.about),
            "parts": {name: [len(packed[name]), len(part)] for name, part in self.parts.items()},
        }
        encoded = json.dumps(header).encode()
        body = b"".join((len(encoded).to_bytes(_LENGTH, "big"), encoded, *packed.values()))
        return _MAGIC + hashlib.sha256(body).digest() + body

    @classmethod
    def from_bytes(cls, data: bytes, key: str | None = None) -> Entry:
        """The entry.

        Args:
            data: What `to_bytes` gave.
            key: The key that it was asked for by; None takes any.

        Raises:
            DamagedError: It is cut short, changed, of another schema, or another key's.
        """
        start = len(_MAGIC) + _DIGEST
        body = data[start:]
        if not data.startswith(_MAGIC):
            raise DamagedError("it is no entry")
        if hashlib.sha256(body).digest() != data[len(_MAGIC) : start]:
            raise DamagedError("it is cut short or changed")
        try:
            end = _LENGTH + int.from_bytes(body[:_LENGTH], "big")
            header = json.loads(body[_LENGTH:end])
            if header["schema"] != SCHEMA:
                raise DamagedError(f"its schema is {header['schema']}, not {SCHEMA}")
            if key is not None and header["key"] != key:
                raise DamagedError("it is another key's")
            parts = {}
            for name, (length, unpacked) in header["parts"].items():
                parts[name] = _unpacked(body[end : end + length], unpacked)
                end += length
            return cls(header["key"], header["about"], parts)
        except (KeyError, TypeError, ValueError, AttributeError, zlib.error) as error:
            raise DamagedError(f"its header can't be read: {error}") from error


def _unpacked(part: bytes, length: int) -> bytes:
    """What was packed, and never more than was announced."""
    unpacker = zlib.decompressobj()
    data = unpacker.decompress(part, length + 1)
    if len(data) != length or not unpacker.eof:
        raise DamagedError("a part is not as long as it is said to be")
    return data
