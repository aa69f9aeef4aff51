"""What `regional-inductor cache` says of the store on disk, and does to it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

from ._torch import bundle
from .disk import FOLDER, SWITCH, Disk, Stored
from .entry import DamagedError, Entry
from .errors import RegionError
from .rendering import as_text, table
from .trust import UntrustedError

_KEY_LETTERS = 12


def disk_of_the_user() -> Disk:
    """The store that the environment names.

    Raises:
        RegionError: It is switched off, or described in a way that can't be read.
    """
    disk = Disk.from_environment()
    if disk is None:
        raise RegionError(f"the store is switched off ({SWITCH}=0)", hint=f"unset {SWITCH}")
    return disk


def listing(disk: Disk) -> str:
    """A line for each entry, those used last first, and what they take together."""
    entries = disk.entries()
    if not entries:
        return f"no entries in {disk.folder}"
    rows = [_row(stored, disk) for stored in reversed(entries)]
    titles = (
        ("key", False),
        ("region", False),
        ("pass", False),
        ("nodes", True),
        ("s", True),
        ("size", True),
        ("used", True),
        ("torch", False),
    )
    total = sum(stored.size for stored in entries)
    end = f"{len(entries)} entries, {_size(total)} of {_size(disk.limit)}, in {disk.folder}"
    return f"{as_text(table(titles, rows))}\n{end}"


def _row(stored: Stored, disk: Disk) -> tuple[str, ...]:
    end = (_size(stored.size), _ago(stored.used))
    try:
        about = disk.check(stored.key).about
    except (UntrustedError, DamagedError, OSError) as error:
        return (stored.key[:_KEY_LETTERS], f"not used: {_first_line(error)}", "", "", "", *end, "")
    return (
        stored.key[:_KEY_LETTERS],
        str(about.get("name", "")),
        str(about.get("direction", "")),
        str(about.get("nodes", "")),
        f"{about.get('seconds', 0.0):.2f}",
        *end,
        str(about.get("build", {}).get("torch", "")),
    )


def details(disk: Disk, prefix: str, *, code: bool = False) -> str:
    """One entry in full; `code` adds what Inductor generated.

    Raises:
        RegionError: No entry or several begin so, or it must not be loaded.
    """
    stored = _find(disk, prefix)
    try:
        entry = disk.check(stored.key)
    except DamagedError as error:
        raise RegionError(
            f"the entry {stored.key[:_KEY_LETTERS]} is damaged: {error}",
            hint="`regional-inductor cache verify --remove` drops it",
        ) from error
    about = dict(entry.about)
    made = about.pop("made", None)
    lines = [
        ("key", entry.key),
        ("file", str(stored.path)),
        ("size", _size(stored.size)),
        ("made", f"{_ago(made)} ago" if made else ""),
        ("used", f"{_ago(stored.used)} ago"),
        *_flat(about),
        *_parts_of(entry),
    ]
    text = as_text(table((("", False), ("", False)), lines))
    if code:
        text += "\n\n" + "\n\n".join(bundle.sources(entry.parts))
    return text


def _parts_of(entry: Entry) -> Iterator[tuple[str, str]]:
    """What an entry consists of; a line for all files of Triton's, of which a kernel has eight."""
    triton = [part for name, part in entry.parts.items() if name.startswith("triton ")]
    for name, part in entry.parts.items():
        if name == "guards":
            yield "holds where", part.decode()
        elif not name.startswith("triton "):
            yield f"part {name[:20]}", _size(len(part))
    if triton:
        yield "parts for Triton", f"{len(triton)}, {_size(sum(map(len, triton)))}"


def verified(disk: Disk, *, remove: bool = False) -> tuple[str, int]:
    """Reads every entry; says what is wrong with which, and how many are.

    `remove` drops those.
    """
    entries = disk.entries()
    bad = [(stored, problem) for stored in entries if (problem := _problem(disk, stored))]
    lines = [f"{stored.key[:_KEY_LETTERS]} {problem}" for stored, problem in bad]
    if remove:
        for stored, _ in bad:
            disk.remove(stored.key)
    done = " and were removed" if remove and bad else ""
    whole = len(entries) - len(bad)
    lines.append(f"{whole} entries are whole, {len(bad)} are not{done}, in {disk.folder}")
    return "\n".join(lines), len(bad)


def cleared(disk: Disk, prefixes: Sequence[str]) -> str:
    """Drops all entries, or those whose keys begin so.

    Raises:
        RegionError: No entry or several begin so; nothing is dropped then.
    """
    if not prefixes:
        return f"removed {disk.clear()} entries from {disk.folder}"
    found = {stored.key for stored in (_find(disk, prefix) for prefix in prefixes)}
    for key in found:
        disk.remove(key)
    return f"removed {len(found)} entries from {disk.folder}"


def _find(disk: Disk, prefix: str) -> Stored:
    found = [stored for stored in disk.entries() if stored.key.startswith(prefix)]
    if len(found) != 1:
        what = "no entry begins" if not found else f"{len(found)} entries begin"
        raise RegionError(
            f"{what} with {prefix!r} in {disk.folder}",
            hint=f"`regional-inductor cache ls` lists them; {FOLDER} names another folder",
        )
    return found[0]


def _problem(disk: Disk, stored: Stored) -> str:
    try:
        entry: Entry = disk.check(stored.key)
        bundle.check(entry.parts)
    except (UntrustedError, DamagedError, OSError, ValueError) as error:
        return _first_line(error)
    return ""


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _flat(item, f"{name} {key}".strip())
    elif isinstance(value, list):
        yield name, ", ".join(map(str, value))
    else:
        yield name, str(value)


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            break
        count /= 1024
    return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"


def _ago(moment: float) -> str:
    seconds = max(time.time() - moment, 0.0)
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"
