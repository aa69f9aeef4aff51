"""The sweep over real models: `make test-models` runs it; here, one model and the page it writes."""

from __future__ import annotations

import pytest
from tests.models.__main__ import page, run_one, table
from tests.models.architectures import ARCHITECTURES
from tests.models.trial import MODES, Outcome, distance, trial


def _named(name):
    return next(architecture for architecture in ARCHITECTURES if architecture.name == name)


def test_it_covers_what_the_page_promises():
    count = {
        library: sum(a.library == library for a in ARCHITECTURES)
        for library in ("transformers", "timm", "diffusers")
    }
    assert count["transformers"] >= 40
    assert count["timm"] >= 8
    assert count["diffusers"] >= 3


@pytest.mark.inductor
@pytest.mark.filterwarnings("default")  # what transformers and Dynamo warn of is not the point
def test_a_marked_bert_equals_eager_in_evaluation():
    outcome = trial(_named("bert"), MODES[1])
    assert (outcome.verdict, outcome.detail) == ("equal", "")
    assert outcome.regions > outcome.distinct > 0


def test_a_wrong_gradient_is_a_distance():
    import torch

    right = ([torch.ones(2)], [torch.ones(2), None])
    assert distance(right, right) == 0
    assert distance(([torch.ones(2)], [torch.tensor([1.0, 1.5]), None]), right) == 0.5
    assert distance(([torch.ones(2)], [torch.ones(2), torch.ones(1)]), right) == float("inf")
    assert distance(([torch.tensor([1.0, torch.nan])], right[1]), right) == float("inf")


def test_the_table_has_a_row_for_each_architecture_and_a_note_for_each_failure():
    good, bad = vars(Outcome("train", "equal", regions=7, distinct=3)), vars(Outcome("eval", "n/a"))
    worse = vars(Outcome("train", "error", detail="Traceback\nValueError: no", eager=["too odd"]))
    text = table({"llama": [good, bad], "bert": [worse]})
    assert "| llama | transformers | 7 | 3 | equal | - | - | - | - | - |" in text
    assert "**error**" in text
    assert "too odd" in text
    assert "- bert, train: ValueError: no" in text
    assert "resnet" not in text


def test_the_page_counts_runs(monkeypatch):
    monkeypatch.setattr("tests.models.__main__.version", lambda name: "1.0")
    outcomes = [vars(Outcome("train", "equal")), vars(Outcome("eval", "stock", detail="no"))]
    assert "1 architectures, 2 runs: 1 equal to eager, 1 where stock" in page({"llama": outcomes})


def test_a_mode_that_is_not_done_in_time_leaves_the_others_theirs(monkeypatch):
    asked = []

    def process(folder, minutes, name, *modes):
        asked.append(modes)
        done = [vars(Outcome(mode, "equal")) for mode in modes if mode != "--stock"]
        if "dynamic" in modes:
            done = done[: modes.index("dynamic")]
        return done, "not done after 6 minutes"

    monkeypatch.setattr("tests.models.__main__._process", process)
    outcomes = run_one("swin", 6.0)
    assert [o["verdict"] for o in outcomes] == ["equal", "equal", "stock", "equal", "equal"]
    assert outcomes[2]["detail"].splitlines() == [
        "not done after 6 minutes",
        "stock torch.compile: not done after 6 minutes",
    ]
    assert asked[1:] == [("dynamic", "--stock"), ("autocast", "checkpoint")]


def test_a_mode_that_stock_is_done_with_is_an_error(monkeypatch):
    def process(folder, minutes, name, *modes):
        if "--stock" in modes:
            return [vars(Outcome(modes[0], "n/a", detail="\nstock differs by 0.0e+00"))], ""
        return [], "exit code -11"

    monkeypatch.setattr("tests.models.__main__._process", process)
    assert {o["verdict"] for o in run_one("swin", 6.0)} == {"error"}
