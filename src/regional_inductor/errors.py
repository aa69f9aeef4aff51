"""The errors and warnings of this package, all of one shape.

Each message says what failed, in which region, where the user marked it, and the way out::

    unknown Inductor option 'max_autotun'
      region: swiglu
      marked at: model.py:12
      way out: did you mean 'max_autotune'?

The parts stay readable as attributes (``error.what``, ``.region``, ``.source``, ``.hint``), so that
a report can show them in columns.  An empty part is left out of the message.
"""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

__all__ = [
    "ConflictError",
    "LoadError",
    "MarkError",
    "MissingValueError",
    "OptionError",
    "RegionCompileError",
    "RegionError",
    "RegionWarning",
    "SaveError",
    "UnsavedCallError",
]

_E = TypeVar("_E", bound="RegionError")


class RegionError(RuntimeError):
    """Base of every error that this package raises on purpose.

    Args:
        what: What failed, one sentence without a full stop.
        region: Name of the region, if it is known.
        source: Where the user wrote the mark, as ``file:line``, if it is known.
        hint: What to do next.

    Example:
        >>> from regional_inductor.errors import RegionError
        >>> print(RegionError("it failed", region="mlp", source="model.py:3", hint="try again"))
        it failed
          region: mlp
          marked at: model.py:3
          way out: try again
    """

    _place = "marked at"  # what `source` is

    def __init__(self, what: str, *, region: str = "", source: str = "", hint: str = "") -> None:
        self.what = what
        self.region = region
        self.source = source
        self.hint = hint
        super().__init__(compose(what, region=region, source=source, hint=hint, place=self._place))

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        # BaseException would rebuild from self.args, the composed text, and lose the parts.
        return _rebuild, (type(self), self.what, self.region, self.source, self.hint)


class OptionError(RegionError, ValueError):
    """An option that doesn't exist, or a value that can't be right.

    Example:
        >>> import regional_inductor as ri
        >>> try:
        ...     ri.compile(lambda x: x, options={"max_autotun": True})
        ... except ri.OptionError as error:
        ...     print(error.what)
        unknown Inductor option 'max_autotun'
        >>> right = ri.compile(lambda x: x, options={"max_autotune": True})
    """


class ConflictError(RegionError, ValueError):
    """One explicit id was given two different sets of options.

    Example:
        >>> import torch, regional_inductor as ri
        >>> from torch.fx.experimental.proxy_tensor import make_fx
        >>> gm = make_fx(lambda x: x.sin().cos())(torch.ones(3))
        >>> _ = ri.mark_nodes(gm, torch.ops.aten.sin, id="both", options={"max_autotune": True})
        >>> _ = ri.mark_nodes(gm, torch.ops.aten.cos, id="both")
        >>> try:
        ...     ri.regional_inductor(gm, torch.ones(3))
        ... except ri.ConflictError as error:
        ...     print(error.hint)
        give both places the same options, or each an id of its own
    """


class RegionCompileError(RegionError):
    """Inductor could not compile a region; its own exception is the ``__cause__``.

    Raised where ``on_error="raise"``, the default of the drop-in pass; with ``"eager"`` the region
    stays eager, and the report has the reason.

    Example:
        >>> import regional_inductor as ri
        >>> def failed_regions(step, *args):
        ...     try:
        ...         step(*args)  # compiled with on_error="raise"
        ...     except ri.RegionCompileError as error:
        ...         return error.region, error.source, error.__cause__
        >>> failed_regions(print, "no region failed")
        no region failed
    """


class MissingValueError(RegionError):
    """A node of a region carries no fake value, so nothing is known about its shape or dtype.

    Example:
        >>> import torch, regional_inductor as ri
        >>> gm = torch.fx.symbolic_trace(lambda x: x.sin())
        >>> _ = ri.mark_nodes(gm, "sin")
        >>> try:
        ...     ri.regional_inductor(gm)
        ... except ri.MissingValueError:
        ...     gm = ri.regional_inductor(gm, torch.ones(3), region_backend="eager")
        >>> gm(torch.zeros(3))
        tensor([0., 0., 0.])
    """


class MarkError(RegionError, ValueError):
    """A mark that can't be placed: a pattern without a match, an id that can't be hashed, and the like.

    Example:
        >>> import torch, regional_inductor as ri
        >>> model = torch.nn.ModuleDict({"norm": torch.nn.LayerNorm(4)})
        >>> try:
        ...     ri.mark(model, "nrom")
        ... except ri.MarkError as error:
        ...     print(error.hint)
        did you mean 'norm'?
    """


class SaveError(RegionError):
    """A compiled function or model that can't be saved: nothing was compiled yet, a graph break, and the like.

    Example:
        >>> import regional_inductor as ri
        >>> try:
        ...     ri.save(ri.compile(lambda x: x.sin()), "sin.ri")
        ... except ri.SaveError as error:
        ...     print(error.what)
        nothing has been compiled yet
    """

    _place = "at"


class LoadError(RegionError):
    """A file that can't be loaded: damaged, of another torch or machine, or not for this model.

    Example:
        >>> import tempfile, regional_inductor as ri
        >>> with tempfile.NamedTemporaryFile() as file:
        ...     try:
        ...         ri.load(file.name)
        ...     except ri.LoadError as error:
        ...         print(error.hint)
        name a file that regional_inductor.save wrote
    """

    _place = "at"


class UnsavedCallError(RegionError):
    """A loaded function was called in a way that nothing in its file was compiled for.

    Example:
        >>> import tempfile, torch, regional_inductor as ri
        >>> def double(x):
        ...     return x * 2
        >>> compiled = ri.compile(double, dynamic=False)
        >>> _ = compiled(torch.ones(3))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     ri.save(compiled, f"{folder}/double.ri")
        ...     loaded = ri.load(f"{folder}/double.ri")
        >>> try:
        ...     loaded(torch.ones(4))
        ... except ri.UnsavedCallError:
        ...     print("not saved")
        not saved
    """


class RegionWarning(UserWarning):
    """Something that was asked for has no effect, or not the effect that it seems to have.

    Example:
        >>> import warnings, regional_inductor as ri
        >>> warnings.simplefilter("error", ri.RegionWarning)  # what has no effect raises from here on
    """


def compose(
    what: str, *, region: str = "", source: str = "", hint: str = "", place: str = "marked at"
) -> str:
    """The message of an error or a warning from its parts; empty parts are left out."""
    lines = [what]
    if region:
        lines.append(f"  region: {region}")
    if source:
        lines.append(f"  {place}: {source}")
    if hint:
        lines.append(f"  way out: {hint}")
    return "\n".join(lines)


def warn(
    what: str, *, region: str = "", source: str = "", hint: str = "", stacklevel: int = 2
) -> None:
    """Give a :class:`RegionWarning` of the same shape as the errors; ``stacklevel`` as in ``warnings.warn``."""
    warnings.warn(
        compose(what, region=region, source=source, hint=hint),
        RegionWarning,
        stacklevel=stacklevel + 1,
    )


def did_you_mean(name: str, known: Iterable[str], otherwise: str = "") -> str:
    """A hint that names what ``name`` is likely a misspelling of, or ``otherwise``."""
    close = difflib.get_close_matches(name, list(known), n=3, cutoff=0.6)
    if not close:
        return otherwise
    return "did you mean " + " or ".join(repr(match) for match in close) + "?"


def _rebuild(kind: type[_E], what: str, region: str, source: str, hint: str) -> _E:
    return kind(what, region=region, source=source, hint=hint)
