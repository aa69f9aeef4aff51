"""Whose code runs in a backward pass, which calls again what a model's run had called."""

from __future__ import annotations

import threading
from contextlib import nullcontext

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from regional_inductor import RegionError, running
from regional_inductor._torch import checkpoints


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


class RunAgain(torch.autograd.Function):
    """A checkpoint that isn't torch's."""

    @staticmethod
    def forward(ctx, function, x):
        ctx.function = function
        ctx.save_for_backward(x)
        return function(x)

    @staticmethod
    def backward(ctx, gradient):
        x = ctx.saved_tensors[0].detach().requires_grad_()
        with torch.enable_grad():
            ctx.function(x).backward(gradient)
        return None, x.grad


def by_others(function, x):
    return RunAgain.apply(function, x)


def by_torch(function, x):
    return checkpoint(function, x, use_reentrant=False)


def by_torch_reentrantly(function, x):
    return checkpoint(function, x, use_reentrant=True)


TORCHS = [by_torch, by_torch_reentrantly]


def loss_of(capture, seen, how=by_others):
    """The loss of a run that checkpoints a function; the function notes whose run it is part of."""

    def noting(x):
        seen.append(running.current())
        return x.sin()

    x = torch.ones(3, requires_grad=True)
    with nullcontext() if capture is None else running.run_of(capture):
        return how(noting, x).sum()


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


def test_where_two_models_could_be_meant_it_is_an_error():
    mine, others = Named(), Named()
    loss = in_another_thread(loss_of, mine, [])
    in_another_thread(loss_of, others, [])
    with pytest.raises(RegionError, match="for which of the models") as caught:
        loss.backward()
    assert "in the thread that calls backward" in caught.value.hint


@pytest.mark.parametrize("how", TORCHS)
def test_torchs_checkpoints_belong_to_the_run_that_made_them_whichever_thread_they_run_in(how):
    running.follow_checkpoints()
    mine, others = Named(), Named()
    seen, seen_there = [], []
    loss = in_another_thread(loss_of, mine, seen, how)
    others_loss = in_another_thread(loss_of, others, seen_there, how)
    loss_of(others, [], how)
    loss.backward()
    in_another_thread(others_loss.backward)
    assert seen == [mine, mine]
    assert seen_there == [others, others]


@pytest.mark.parametrize("how", TORCHS)
def test_torchs_checkpoints_outside_every_run_stay_outside(how):
    running.follow_checkpoints()
    others, seen = Named(), []
    loss = in_another_thread(loss_of, None, seen, how)
    in_another_thread(loss_of, others, [], how)  # nodes of the same numbers
    loss.backward()
    assert seen == [None, None]


def test_torchs_checkpoints_in_checkpoints_belong_to_the_run_as_well():
    running.follow_checkpoints()
    capture, others, seen = Named(), Named(), []

    def twice(function, x):
        return by_torch(lambda y: by_torch(function, y.cos()), x)

    loss = in_another_thread(loss_of, capture, seen, twice)
    in_another_thread(loss_of, others, [], twice)
    loss.backward()
    assert seen == [capture] * len(seen)
    assert len(seen) > 1


def test_what_torchs_checkpoints_are_made_of_may_be_unknown(monkeypatch):
    class Other:
        def __init__(self, function):
            pass

    assert checkpoints.is_known()
    monkeypatch.setattr(torch.utils.checkpoint, "_CheckpointFrame", Other)
    assert not checkpoints.is_known()


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
