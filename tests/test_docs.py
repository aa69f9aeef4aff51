"""Every code block of the README and the docs runs, and the docs build without a warning.

A page's blocks run in order, in one namespace and one empty folder. ``python`` blocks run as they stand;
a ``text`` block is what the block before it printed (``...`` for what varies); ``sh`` blocks are commands.
In HTML comments, which no reader sees: ``invisible-code-block: python`` prepares something, ``file: NAME``
writes the block that follows to a file as well. No block is left out.
"""

from __future__ import annotations

import contextlib
import doctest
import functools
import importlib
import io
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from sybil import Document, Example, Region, Sybil
from sybil.evaluators.python import PythonEvaluator
from sybil.parsers.markdown import CodeBlockParser

from regional_inductor import cli

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
LANGUAGES = {"python", "text", "sh"}
COMPILED = {"quick-start.md", "tools.md"}
"""Pages whose regions are truly compiled; the others run theirs as they are, which takes no compiler."""


def languages(page: Path) -> Iterator[str]:
    """What follows the opening fence of each block; ``""`` for drawings and the like."""
    opens = True
    for fence in re.findall(r"^```(.*)$", page.read_text(), re.MULTILINE):
        if opens:
            yield fence.strip()
        opens = not opens


WITH_EXAMPLES = [page for page in PAGES if set(languages(page)) & {"python", "sh"}]


# --- how a block runs -----------------------------------------------------------------------------


def run_python(example: Example) -> None:
    run = PythonEvaluator()
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        run(example)
    example.namespace["printed"] = printed.getvalue()


def run_commands(example: Example) -> None:
    """Commands of ours run here, others in a shell: a start of Python with torch takes seconds."""
    commands = [line for line in example.parsed.splitlines() if line and line[0] != "#"]
    if not all(command.startswith("regional-inductor ") for command in commands):
        bin_folder = Path(sys.executable).parent
        done = subprocess.run(
            ["sh", "-e", "-c", example.parsed],
            env={**os.environ, "PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        example.namespace["printed"] = done.stdout + done.stderr
        return
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        codes = [cli.main(shlex.split(command)[1:]) for command in commands]
    assert codes == [0] * len(commands), printed.getvalue()
    example.namespace["printed"] = printed.getvalue()


def compare(example: Example) -> str | None:
    """The difference between a block of text and what was printed before it."""
    wanted = doctest.Example("", example.parsed)
    checker, flags = (
        doctest.OutputChecker(),
        doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE,
    )
    printed = example.namespace.get("printed", "")
    if checker.check_output(wanted.want, printed, flags):
        return None
    return checker.output_difference(wanted, printed, flags)


def files(document: Document) -> Iterable[Region]:
    """``<!-- file: NAME -->`` before a block: the block is a file, too."""
    pattern = r"<!-- file: (\S+) -->(?=\s*```\w+\n(.*?)^```)"
    for match in re.finditer(pattern, document.text, re.DOTALL | re.MULTILINE):
        yield Region(
            match.start(),
            match.end(),
            match.groups(),
            lambda example: Path(example.parsed[0]).write_text(example.parsed[1]) and None,
        )


EXAMPLES = Sybil(
    parsers=[
        CodeBlockParser("python", run_python),
        CodeBlockParser("text", compare),
        CodeBlockParser("sh", run_commands),
        files,
    ]
)


@pytest.fixture
def changed_functions_restored() -> Iterator[None]:
    """Examples mark functions of transformers, which stay marked as long as the process lives."""
    pytest.importorskip("transformers")
    module = importlib.import_module("transformers.models.llama.modeling_llama")
    original = module.apply_rotary_pos_emb
    yield
    module.apply_rotary_pos_emb = original


@pytest.mark.inductor
@pytest.mark.usefixtures("changed_functions_restored")
@pytest.mark.filterwarnings("default")  # an example may show a warning
@pytest.mark.parametrize("page", WITH_EXAMPLES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_examples_of_a_page_run_as_they_stand(page, ri, monkeypatch, tmp_path):
    if page.name not in COMPILED:
        for name in ("compile", "verify"):
            usual = functools.partial(getattr(ri, name), region_backend="eager")
            monkeypatch.setattr(ri, name, usual)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for example in EXAMPLES.parse(page).examples():
        example.evaluate()


# --- what holds of the pages ----------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_block_of_code_is_one_that_runs(page):
    others = {name for name in languages(page) if name and name[0] != "{"} - LANGUAGES
    assert others == set(), "say python, sh or text, or write it without a language"


def test_a_block_of_text_that_was_not_printed_is_an_error():
    page = Document(
        "```python\nprint('one 1')\n```\n\n```text\none ...\n```\n\n```text\ntwo\n```\n", "p.md"
    )
    first, second, third = _examples_in(page)
    first.evaluate()
    second.evaluate()
    with pytest.raises(Exception, match="Expected:\n    two\nGot:\n    one 1"):
        third.evaluate()


def _examples_in(page: Document) -> list[Example]:
    for parser in EXAMPLES.parsers:
        for region in parser(page):
            page.add(region)
    return list(page.examples())


def test_relative_links_lead_to_files_that_exist():
    broken = []
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", page.read_text()):
            if not (page.parent / target).exists():
                broken.append(f"{page.relative_to(ROOT)}: {target}")
    assert broken == []


def test_the_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("sphinx", reason="the extra `docs`, which needs Python 3.11")
    done = subprocess.run(
        [
            *f"{sys.executable} -m sphinx -q -W --keep-going -b html".split(),
            ROOT / "docs",
            tmp_path,
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    api = (tmp_path / "api.html").read_text()
    package = importlib.import_module("regional_inductor")
    assert [name for name in package.__all__ if f'id="regional_inductor.{name}"' not in api] == [
        "rules"
    ]
    assert 'id="module-regional_inductor.rules"' in api
