"""Whose code runs in a backward pass, where a checkpoint calls again what a model's run had called."""

from __future__ import annotations

import threading

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from regional_inductor import running


class Named:
    def call_marked(self, function, args, kwargs):
        return function(*args, **kwargs)


@pytest.fixture(autouse=True)
def no_other_runs():
    """Nor any of this thread: it starts anew."""

    def clear():
        running._threads.clear()
        vars(running._local).pop("runs", None)

    clear()
    yield
    clear()


def loss_of(capture, seen):
    """The loss of a run that checkpoints a function; the function notes whose run it is part of."""

    def noting(x):
        seen.append(running.current())
        return x.sin()

    x = torch.ones(3, requires_grad=True)
    with running.run_of(capture):
        return checkpoint(noting, x, use_reentrant=False).sum()


def in_another_thread(function, *arguments):
    found = []
    thread = threading.Thread(target=lambda: found.append(function(*arguments)))
    thread.start()
    thread.join()
    return found[0]


def test_a_checkpoint_belongs_to_the_run_of_its_thread():
    mine, others = Named(), Named()
    seen, seen_there = [], []
    loss = loss_of(mine, seen)
    in_another_thread(loss_of, others, seen_there)  # later, with the same numbers
    loss.backward()
    assert seen == [mine, mine]


def test_a_backward_pass_in_another_thread_belongs_to_the_only_run_that_it_can_be_of():
    mine, seen = Named(), []
    loss = loss_of(mine, seen)
    loss_of(mine, [])
    in_another_thread(loss.backward)
    assert seen == [mine, mine]


def test_where_two_models_could_be_meant_it_belongs_to_neither():
    mine, others = Named(), Named()
    seen = []
    loss = in_another_thread(loss_of, mine, seen)
    in_another_thread(loss_of, others, [])
    loss.backward()
    assert seen == [mine, None]


def test_of_many_earlier_runs_none_is_looked_at(monkeypatch):
    capture, seen, looked_at = Named(), [], []

    class Run(running._Run):
        def __getattribute__(self, name):
            if name == "end":
                looked_at.append(self)
            return super().__getattribute__(name)

    monkeypatch.setattr(running, "_Run", Run)
    for _ in range(100):
        loss_of(capture, [])
    loss = loss_of(capture, seen)
    for backward in (loss.backward, lambda: in_another_thread(loss_of(capture, seen).backward)):
        looked_at.clear()
        backward()
        assert len(looked_at) == 1
    assert seen == [capture] * 4


def test_threads_that_are_long_gone_are_forgotten():
    capture = Named()
    for _ in range(running._THREADS_KEPT + 5):
        in_another_thread(loss_of, capture, [])
    assert len(running._threads) == running._THREADS_KEPT
