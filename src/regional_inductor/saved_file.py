"""The file of a saved function or model: what it says of itself before anything in it is believed.

The bytes are an `Entry`: a header of JSON, a digest, named parts. What needs unpickling is read after
the header has shown that the file fits this process.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ._torch import machine
from ._torch.kept_guards import KeptGuards
from ._torch.module_hooks import Hooks
from .entry import DamagedError, Entry
from .errors import LoadError
from .own_code import package_digest
from .trust import Seal, UntrustedError, is_sealed

FORMAT = 1
"""Files of another format are refused; it changes with what `Saved` and its parts hold."""

_KEY = "saved function"
_AGAIN_BY_US = "save it again with the regional_inductor that is to load it"
_AGAIN = "save it again with the torch and on the kind of machine that it is to be loaded on"


@dataclass(frozen=True)
class Source:
    """A function whose code became part of what was compiled.

    Attributes:
        module: Where it is.
        name: Its name.
        line: Where it was in its file.
        text: Its source; ``""`` where it couldn't be read.
    """

    module: str
    name: str
    line: int
    text: str


@dataclass(frozen=True)
class SavedCall:
    """One captured call.

    Attributes:
        function: Name of the part with torch's bytes of it.
        graphs: Tokens of its graphs, which are names of parts as well.
        guards: Guards that torch doesn't save.
        autocast: Device kinds and dtypes for which autocast was on.
        looks: The arguments, for people.
        modes: What else was so in the process, for people.
    """

    function: str
    graphs: tuple[str, ...]
    guards: KeptGuards
    autocast: tuple[tuple[str, Any], ...]
    looks: str
    modes: str


@dataclass(frozen=True)
class Saved:
    """What a file holds besides graphs.

    Attributes:
        module: The module that the function, or the model's class, is in.
        name: Its qualified name.
        code: Digest of the code that was captured, without what it calls.
        sources: All functions whose code was captured, but for torch's.
        calls: The captured calls, in order.
        compile_arguments: What `compile` was called with; None where that can't be kept.
        main: The file of ``__main__`` then.
        hooks: Hooks of the modules in a model, which were captured with it.
    """

    module: str
    name: str
    code: str
    sources: tuple[Source, ...]
    calls: tuple[SavedCall, ...]
    compile_arguments: Mapping[str, Any] | None
    main: str
    hooks: Hooks


@dataclass(frozen=True)
class SavedFile:
    """A file as far as it can be read without trust in it.

    Attributes:
        about: What it says of itself.
        parts: Bytes by name.
    """

    about: Mapping[str, Any]
    parts: Mapping[str, bytes] = field(repr=False)

    @property
    def is_module(self) -> bool:
        return bool(self.about["kind"] == "module")

    def saved(self) -> Saved:
        """Unpickles: only for a file that the user named."""
        found = pickle.loads(self.parts["saved"])
        assert isinstance(found, Saved)
        return found


def main_file() -> str:
    return str(getattr(sys.modules.get("__main__"), "__file__", ""))


def about(kind: str, name: str, device_kinds: frozenset[str]) -> dict[str, Any]:
    """What a file says of itself: what it holds, and what it was made for."""
    return {
        "format": FORMAT,
        "regional_inductor": package_digest(),
        "kind": kind,
        "name": name,
        "build": machine.build(),
        "devices": machine.device_models(device_kinds),
    }


def write(path: Path, header: Mapping[str, Any], parts: Mapping[str, bytes]) -> None:
    """Write a file: all of it or nothing, over what was there.

    With a secret in the environment (`trust`) it is sealed.
    """
    data = Entry(_KEY, header, parts).to_bytes()
    seal = Seal.from_environment()
    if seal is not None:
        data = seal.close(_KEY, data)
    descriptor, unfinished = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        os.chmod(
            unfinished, _mode_of_new_files() if not path.exists() else path.stat().st_mode & 0o777
        )
        os.replace(unfinished, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(unfinished)
        raise


def _mode_of_new_files() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return 0o666 & ~mask


def read(path: Path) -> SavedFile:
    """A file that this process may load, as far as the file itself says.

    Nothing of it is unpickled.

    Raises:
        OSError: It can't be read.
        LoadError: It is no such file, damaged, without the seal that is asked for, of another format,
            or made for another torch, Python, CPU or GPU.
    """
    try:
        found = Entry.from_bytes(_opened(path), _KEY)
    except DamagedError as error:
        raise LoadError(
            f"{path} is no file of a saved function: {error}",
            hint="name a file that regional_inductor.save wrote",
        ) from error
    header = found.about
    if header.get("format") != FORMAT:
        raise LoadError(
            f"{path} has format {header.get('format')}, and this regional_inductor reads {FORMAT}",
            hint=_AGAIN_BY_US,
        )
    if header["regional_inductor"] != package_digest():
        # Its parts name functions of this package, generated code calls them, and guards are what it says.
        raise LoadError(f"{path} was saved by another regional_inductor", hint=_AGAIN_BY_US)
    _fits(path, header["build"], machine.build())
    if header["devices"]:
        _fits(path, header["devices"], machine.device_models(frozenset({"cuda"})))
    return SavedFile(header, found.parts)


def _opened(path: Path) -> bytes:
    data = path.read_bytes()
    seal = Seal.from_environment()
    if seal is not None:
        try:
            return seal.open(_KEY, data)
        except UntrustedError as error:
            raise LoadError(
                f"{path} doesn't carry the seal of the secret in the environment",
                hint="with a secret set, only files saved with it are loaded",
            ) from error
    if is_sealed(data):
        raise LoadError(
            f"{path} is sealed, and there is no secret in the environment to check it with",
            hint="set REGIONAL_INDUCTOR_CACHE_KEY or REGIONAL_INDUCTOR_CACHE_KEY_FILE",
        )
    return data


_WORDS = {
    "torch": "torch",
    "git": "another build of torch:",
    "cuda": "CUDA",
    "hip": "ROCm",
    "python": "Python",
    "system": "a machine with",
    "cpu": "a CPU with",
    "cpu flags": "a CPU with the instructions",
}


def _fits(path: Path, made_for: Mapping[str, str], now: Mapping[str, str]) -> None:
    for name, wanted in made_for.items():
        found = now.get(name, "none")
        if found != wanted:
            word = _WORDS.get(name, name)
            raise LoadError(
                f"{path} was made for {word} {wanted}, and this is {found}", hint=_AGAIN
            )
