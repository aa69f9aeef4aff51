"""The command line: what it accepts, what it hands on, what it says."""

from __future__ import annotations

from pathlib import Path

import pytest

from regional_inductor import cli, demo


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


def test_help_documents_the_exit_codes_and_an_example(capsys):
    with pytest.raises(SystemExit) as exit_info:
        cli.main(["demo", "--help"])
    assert exit_info.value.code == 0
    text = capsys.readouterr().out
    assert "exit codes: 0 equal to eager" in text
    assert "regional-inductor demo --layers 8" in text


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
