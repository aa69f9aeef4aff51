"""The command line: what it accepts, what it hands on, what it says."""

from __future__ import annotations

import argparse
import io
import re
import sys
from pathlib import Path

import pytest

from regional_inductor import cli, demo
from regional_inductor.regions import Finding
from regional_inductor.rendering import show
from regional_inductor.report import Report


@pytest.fixture
def demo_calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[demo.Settings, Path | None]]:
    calls: list[tuple[demo.Settings, Path | None]] = []

    def run(settings: demo.Settings, json_path: Path | None) -> int:
        calls.append((settings, json_path))
        return 7

    monkeypatch.setattr(demo, "run", run)
    return calls


def test_demo_without_options_runs_the_default_settings(demo_calls):
    cli.main(["demo"])
    assert demo_calls == [(demo.Settings(), None)]


def test_demo_options_reach_the_settings(demo_calls):
    cli.main(["demo", "--steps", "9", "--layers", "2", "--seed", "-3", "--json", "out.json"])
    assert demo_calls == [(demo.Settings(steps=9, layers=2, seed=-3), Path("out.json"))]


def test_the_exit_code_is_the_commands(demo_calls):
    assert cli.main(["demo"]) == 7


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["demonstrate"], "invalid choice: 'demonstrate'"),
        (["demo", "--steps", "many"], "invalid int value: 'many'"),
        (
            ["demo", "--steps", str(demo.WARM_UP_STEPS)],
            f"{demo.WARM_UP_STEPS} is below {demo.WARM_UP_STEPS + 1}",
        ),
        (["demo", "--layers", "0"], "0 is below 1"),
    ],
)
def test_wrong_usage_is_explained_with_exit_code_2(arguments, message, capsys):
    with pytest.raises(SystemExit) as exit_info:
        cli.main(arguments)
    assert exit_info.value.code == 2
    assert message in capsys.readouterr().err


def commands() -> list[str]:
    (actions,) = [a for a in cli._parser()._actions if isinstance(a, argparse._SubParsersAction)]
    return list(actions.choices)


@pytest.mark.parametrize("command", commands())
def test_the_help_of_each_command_documents_its_exit_codes_and_has_examples(command, capsys):
    with pytest.raises(SystemExit) as exit_info:
        cli.main([command, "--help"])
    assert exit_info.value.code == 0
    text = capsys.readouterr().out
    assert re.search(r"exit codes:\s+0 ", text)
    assert re.search(r"; 2\s+wrong usage|\n\s+2 wrong usage", text)
    assert re.search(rf"examples?:\s+regional-inductor {command}", text)


def test_the_page_about_the_command_line_names_commands_that_there_are():
    page = (Path(__file__).parent.parent / "docs" / "command-line.md").read_text()
    assert set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)) <= set(commands())


SCRIPT = """
import torch
import regional_inductor as ri

class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = torch.nn.LayerNorm(4)
    def forward(self, x):
        return self.norm(x)

def build():
    return Model(), (torch.ones(2, 4),)

def broken():
    raise KeyError("weights")

def misfit():
    return Model(), (torch.ones(2, 5),)

def badly_marked():
    ri.mark(Model(), "nrom")
"""


@pytest.mark.parametrize("command", ["explain", "verify", "bisect"])
@pytest.mark.parametrize(
    ("factory", "more", "code", "message"),
    [
        (
            "build",
            ["--mark", "nrom"],
            2,
            "--mark: pattern 'nrom' matches no module of Model\n  way out: did you mean 'norm'?\n",
        ),
        ("biuld", [], 2, "has no 'biuld': did you mean 'build'?"),
        ("badly_marked", [], 2, "model.py:22\n  way out: did you mean 'norm'?"),
        ("broken", [], 1, "raised KeyError: 'weights'\n  raised at: {script}:16\n"),
        ("misfit", [], 1, "the model raised "),
    ],
)
def test_what_goes_wrong_has_an_exit_code_and_a_line(
    command, factory, more, code, message, tmp_path, capsys
):
    script = tmp_path / "model.py"
    script.write_text(SCRIPT)
    assert cli.main([command, f"{script}:{factory}", *more]) == code
    said = capsys.readouterr()
    assert message.replace("{script}", str(script)) in said.err
    assert said.err.startswith("regional-inductor: ")
    assert said.out == ""


@pytest.mark.parametrize("command", ["explain", "verify", "bisect"])
def test_an_error_in_the_model_comes_with_its_line(command, tmp_path, capsys):
    script = tmp_path / "model.py"
    script.write_text(SCRIPT)
    assert cli.main([command, f"{script}:misfit"]) == 1
    # As Dynamo says it, or as we do.
    assert re.search(r'model\.py(", line |:)10\b', capsys.readouterr().err)


@pytest.mark.parametrize(
    ("command", "option"), [("explain", "--html"), ("explain", "--json"), ("verify", "--json")]
)
def test_where_nothing_can_be_written_the_model_is_not_even_built(
    command, option, tmp_path, capsys
):
    script = tmp_path / "model.py"
    script.write_text(SCRIPT)
    for file, why in (
        (tmp_path / "missing" / "r", f"there is no folder {tmp_path / 'missing'} to write it into"),
        (tmp_path, f"{tmp_path} is a folder: name a file in it"),
    ):
        with pytest.raises(SystemExit) as exit_info:
            cli.main([command, f"{script}:broken", option, str(file)])
        assert exit_info.value.code == 2
        assert f"argument {option}: {why}" in capsys.readouterr().err


def test_a_file_that_can_not_be_written_after_all_is_said_on_one_line(
    tmp_path, capsys, monkeypatch
):
    def is_full(self, *args, **kwargs):
        raise OSError(28, "No space left on device", str(self))

    script = tmp_path / "model.py"
    script.write_text(SCRIPT)
    monkeypatch.setattr(Path, "write_text", is_full)
    page = tmp_path / "r.html"
    assert cli.main(["explain", f"{script}:build", "--html", str(page)]) == 1
    said = capsys.readouterr()
    assert said.err == f"regional-inductor: {page} can't be written: No space left on device\n"


@pytest.mark.parametrize("columns", [60, 300])
def test_a_terminal_gets_its_own_width_and_colours(columns, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr(sys, "stdout", Terminal())
    finding = Finding("cheap", "one op " * 30, "model.py:3", "mark more", "add")
    show(Report(findings=[finding]))
    text = sys.stdout.getvalue()
    assert "\x1b[33mcheap" in text
    lines = re.sub(r"\x1b\[[0-9;]*m", "", text).splitlines()
    assert min(columns, 100) - 20 < max(len(line.rstrip()) for line in lines) <= min(columns, 100)


def test_what_is_no_terminal_gets_plain_text(capsys):
    show(Report())
    assert capsys.readouterr().out == f"{Report()}\n"


def test_the_command_alone_has_exit_codes_and_examples_too(capsys):
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    assert re.search(
        r"exit codes: 0 .*\n\nexamples:\n  regional-inductor ", capsys.readouterr().out
    )


def test_explain_writes_a_page_where_html_says(tmp_path, capsys):
    page, script = tmp_path / "report.html", tmp_path / "model.py"
    script.write_text(
        "import torch\n"
        "def build():\n"
        "    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.LayerNorm(4))\n"
        "    return model, (torch.ones(2, 4),)\n"
    )
    assert cli.main(["explain", f"{script}:build", "--mark", "1", "--html", str(page)]) == 0
    assert "regions" in capsys.readouterr().out
    assert page.read_text().startswith("<!doctype html>")
