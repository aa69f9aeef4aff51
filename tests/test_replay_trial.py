"""Whether a region's CUDA graph pays: timed on calls that come anyway, told in the report, gone afterwards.

The trees and the clock are made up here; tests/gpu/test_cuda_graphs.py has real ones.
"""

from __future__ import annotations

import pytest
import torch

from regional_inductor import replay_trial
from regional_inductor._torch import cudagraphs
from regional_inductor.replay_trial import Pair, is_slower, trial_of

PLAN = cudagraphs.Plan(0, (), (), (), ())


class Watch:
    """A stopwatch for which each way takes what it is told, in seconds."""

    def __init__(self, replayed=3e-6, launched=1e-6):
        self.seconds = {"replay": replayed, "plain": launched}
        self.ran = []
        self.timed = []
        self.usable = self.replays = True

    def is_usable(self):
        return self.usable

    def seconds_of(self, call):
        before = len(self.ran)
        result = call()
        (way,) = self.ran[before:]
        self.timed.append(way)
        return self.seconds[way], result

    def has_replayed(self):
        return self.replays

    def way(self, name):
        def call(arguments):
            self.ran.append(name)
            (value,) = arguments
            arguments.clear()
            return value, name

        return call


@pytest.fixture
def watch():
    return Watch()


def on_trial(watch, monkeypatch, done=None):
    """A recorded callable on trial, with trees that replay from the first call on."""
    replay = watch.way("replay")
    monkeypatch.setattr(cudagraphs, "_replaying", lambda *_: replay)
    trial = trial_of(watch.way("plain"), watch, done or (lambda pairs: None))
    return cudagraphs.recorded(watch.way("plain"), PLAN, "inference", trial=trial)


def test_each_call_returns_what_was_replayed_whatever_was_tried(watch, monkeypatch):
    run = on_trial(watch, monkeypatch)
    assert [run([float(number)]) for number in range(20)] == [(n, "replay") for n in range(20)]


def test_a_few_calls_after_the_warm_up_run_twice_and_no_later_one(watch, monkeypatch):
    run = on_trial(watch, monkeypatch)
    ran = []
    for _ in range(20):
        before = len(watch.ran)
        run([0.0])
        ran.append("".join(name[0] for name in watch.ran[before:]))
    tried = 1 + replay_trial.PAIRS
    warm = replay_trial.WARM_UP_CALLS
    assert ran == ["r"] * warm + ["pr"] * tried + ["r"] * (20 - warm - tried)
    assert len(watch.timed) == 2 * tried


def test_nothing_of_the_trial_is_left_in_the_call(watch, monkeypatch):
    run = on_trial(watch, monkeypatch)
    for _ in range(20):
        run([0.0])
    (now,) = [cell.cell_contents for cell in run.__closure__]
    assert now is cudagraphs._replaying()


def test_the_first_pair_counts_for_nothing(watch, monkeypatch):
    told = []
    run = on_trial(watch, monkeypatch, told.append)
    for number in range(20):
        watch.seconds["plain"] = 1.0 if number == replay_trial.WARM_UP_CALLS else 1e-6
        run([0.0])
    assert told == [[Pair(3e-6, 1e-6)] * replay_trial.PAIRS]


def test_nothing_holds_the_inputs_when_they_are_replayed(watch, monkeypatch):
    """The trees refuse to replay over an input that has outlived its recording."""
    import weakref

    alive = []
    inputs = []

    def replay(arguments):
        watch.ran.append("replay")
        reference = weakref.ref(arguments[0])
        arguments.clear()
        inputs.clear()
        alive.append(reference() is not None)

    monkeypatch.setattr(cudagraphs, "_replaying", lambda *_: replay)
    trial = trial_of(watch.way("plain"), watch, lambda pairs: None)
    run = cudagraphs.recorded(watch.way("plain"), PLAN, "inference", trial=trial)
    for _ in range(8):
        inputs.append(torch.ones(2))
        run([inputs[0]])
    assert watch.timed
    assert alive == [False] * 8


def test_calls_that_record_anew_are_not_counted_and_end_the_trial(watch, monkeypatch):
    told = []
    watch.replays = False
    run = on_trial(watch, monkeypatch, told.append)
    for _ in range(60):
        run([0.0])
    assert told == []
    assert len(watch.timed) == 2 * (replay_trial.MOST_CALLS - replay_trial.WARM_UP_CALLS)


def test_while_a_stream_is_recorded_nothing_is_tried(watch, monkeypatch):
    watch.usable = False
    run = on_trial(watch, monkeypatch)
    for _ in range(20):
        run([0.0])
    assert watch.ran == ["replay"] * 20


def test_a_try_that_fails_for_want_of_memory_fails_nothing(watch, monkeypatch):
    def exhausted(arguments):
        watch.ran.append("plain")
        raise torch.OutOfMemoryError("none left")

    monkeypatch.setattr(cudagraphs, "_replaying", lambda *_: watch.way("replay"))
    trial = trial_of(exhausted, watch, lambda pairs: None)
    run = cudagraphs.recorded(exhausted, PLAN, "inference", trial=trial)
    for number in range(20):
        assert run([float(number)]) == (number, "replay")
    assert watch.ran.count("plain") == 1


def test_slower_is_what_takes_longer_by_medians_and_by_more_than_chance():
    assert is_slower([Pair(3, 2), Pair(3, 2), Pair(3, 100)])
    assert not is_slower([Pair(2.1, 2)] * 3)
    assert not is_slower([Pair(1, 2)] * 3)


# --- in the report --------------------------------------------------------------------------------


@pytest.fixture
def trees(monkeypatch, watch):
    """As if every region were recorded on a device: the trees run it, and the clock is made up."""

    def replaying(call, arguments, plan, direction):
        def replay(arguments):
            watch.ran.append("replay")
            return call(arguments)

        return replay

    class Counting(Watch):
        def seconds_of(self, call):
            before = len(watch.ran)
            result = call()
            way = "replay" if len(watch.ran) > before else "plain"
            watch.timed.append(way)
            return watch.seconds[way], result

    monkeypatch.setattr(cudagraphs, "why_not", lambda graph: "")
    monkeypatch.setattr(cudagraphs, "_replaying", replaying)
    monkeypatch.setattr(cudagraphs, "Stopwatch", lambda device: Counting())
    monkeypatch.setattr(
        "torch._dynamo.backends.cudagraphs.get_device_node_mapping",
        lambda graph: {torch.device("cuda", 0): None},
    )
    return watch


RECORDED = {"triton.cudagraphs": True}


def slower(report):
    return [f for f in report.findings if "makes the region slower" in f.message]


@pytest.mark.inductor
def test_a_recording_that_makes_a_region_slower_is_told_with_line_and_remedy(ri, trees):
    tail = ri.region("tail", options=RECORDED)(lambda x: x.sin() * 2)
    compiled = ri.compile(lambda x: tail(tail(x) @ x))
    x = torch.randn(4, 4)
    for _ in range(3):
        compiled(x)
    assert slower(compiled.report) == []
    for _ in range(12):
        torch.testing.assert_close(compiled(x), ((x.sin() * 2) @ x).sin() * 2)
    (finding,) = slower(compiled.report)
    assert finding.kind == "cudagraphs"
    assert finding.region == "tail"
    assert finding.source.startswith(__file__)
    assert "3 us a call, 1 us launch by launch (medians of 5 calls each" in finding.message
    assert 'leave "triton.cudagraphs" out of its options' in finding.remedy
    assert "makes the region slower" in str(compiled.report)
    # Two calls of one compiled region are tried once.
    assert len(trees.timed) == 2 * (1 + replay_trial.PAIRS)


@pytest.mark.inductor
def test_a_recording_that_pays_is_not_told(ri, trees):
    trees.seconds = {"replay": 1e-6, "plain": 3e-6}
    tail = ri.region("tail", options=RECORDED)(lambda x: x.sin() * 2)
    compiled = ri.compile(tail)
    for _ in range(15):
        compiled(torch.ones(4))
    assert trees.timed
    assert slower(compiled.report) == []


@pytest.mark.inductor
def test_backward_regions_are_tried_and_gradients_stay_right(ri, trees):
    tail = ri.region("tail", options=RECORDED)(lambda x: x.sin() * x)
    compiled = ri.compile(lambda x: tail(x @ x))
    for _ in range(15):
        x = torch.randn(4, 4, requires_grad=True)
        compiled(x).sum().backward()
        y = x.detach().requires_grad_()
        ((y @ y).sin() * (y @ y)).sum().backward()
        torch.testing.assert_close(x.grad, y.grad)
    assert len(trees.timed) == 4 * (1 + replay_trial.PAIRS)
    assert len(slower(compiled.report)) == 1  # one mark


@pytest.mark.inductor
def test_a_region_that_draws_is_never_run_twice(ri, trees):
    tail = ri.region("tail", options=RECORDED)(lambda x: torch.nn.functional.dropout(x, 0.5) * 2)
    compiled = ri.compile(tail)
    for _ in range(15):
        compiled(torch.ones(4))
    assert trees.ran
    assert trees.timed == []


@pytest.mark.inductor
def test_what_a_region_writes_is_written_once(ri, trees):
    @ri.region("tail", options=RECORDED)
    def tail(x):
        x.add_(1)
        return x * 2

    compiled = ri.compile(tail)
    x = torch.zeros(4)
    for _ in range(15):
        compiled(x)
    assert torch.equal(x, torch.full((4,), 15.0))


@pytest.mark.inductor
def test_the_trial_draws_no_random_numbers(ri, trees):
    tail = ri.region("tail", options=RECORDED)(lambda x: x.sin() * 2)
    compiled = ri.compile(tail)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    for _ in range(15):
        compiled(torch.ones(4))
    assert trees.timed
    assert torch.equal(torch.get_rng_state(), before)
