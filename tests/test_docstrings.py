"""Each public name says what it takes, gives and raises, and has an example that runs."""

from __future__ import annotations

import doctest
import inspect
import re
import warnings

import pytest

import regional_inductor as ri

FUNCTIONS = [name for name in ri.__all__ if inspect.isroutine(getattr(ri, name))]
CLASSES = [name for name in ri.__all__ if inspect.isclass(getattr(ri, name))]


def documented() -> list[tuple[str, object]]:
    """Every public name, public methods of public classes, and the public names of `ri.rules`."""
    found: list[tuple[str, object]] = [(name, getattr(ri, name)) for name in ri.__all__]
    for name in CLASSES:
        cls = getattr(ri, name)
        for member, value in vars(cls).items():
            if not member.startswith("_") and not issubclass(cls, (Exception, Warning)):
                found.append((f"{name}.{member}", getattr(value, "__func__", value)))
    for name in ri.rules.__all__:
        found.append((f"rules.{name}", getattr(ri.rules, name)))
    return [(name, value) for name, value in found if callable(value) or inspect.ismodule(value)]


DOCUMENTED = documented()


def sections(text: str) -> dict[str, str]:
    """The sections of a docstring in Google's style, by their headings."""
    parts = re.split(r"^(\w+):\n", inspect.cleandoc(text), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


@pytest.mark.parametrize("name", ri.__all__)
def test_it_says_what_it_is_and_shows_how_it_is_used(name):
    text = inspect.getdoc(getattr(ri, name)) or ""
    first = text.partition("\n\n")[0]
    assert first.rstrip()[-1:] in (".", ":")
    if name != "rules":  # its functions have examples of their own
        assert doctest.DocTestParser().get_examples(sections(text).get("Example", "")), (
            "an Example: section with >>> lines"
        )


@pytest.mark.parametrize("name", FUNCTIONS)
def test_it_names_each_argument_what_comes_back_and_what_is_raised(name):
    function = getattr(ri, name)
    found = sections(function.__doc__)
    signature = inspect.signature(function)
    arguments = signature.parameters
    listed = re.findall(r"^ {4}\*{0,2}(\w+):", found.get("Args", ""), re.MULTILINE)
    assert listed == list(arguments)
    assert "Returns" in found or signature.return_annotation in (None, "None")
    assert "Raises" in found or not arguments


@pytest.mark.filterwarnings("default")  # an example may show one
@pytest.mark.parametrize(("name", "value"), DOCUMENTED, ids=[name for name, _ in DOCUMENTED])
def test_its_example_runs(name, value):
    finder = doctest.DocTestFinder(recurse=False)
    module = inspect.getmodule(value)
    said: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        for test in finder.find(value, name, module=module, globs={}):
            # What Dynamo put among the globals it takes out again itself, when what it compiled dies.
            runner.run(test, out=said.append, clear_globs=False)
    assert runner.summarize(verbose=False).failed == 0, "".join(said)
