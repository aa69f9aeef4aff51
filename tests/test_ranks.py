"""Ranks share what they compile: one makes it, the others fetch it, and nobody waits for ever."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import pytest
import torch
from support.under_test import AGAINST

from regional_inductor import ranks
from regional_inductor._torch import distributed
from regional_inductor.errors import OptionError, RegionWarning
from regional_inductor.ranks import Job
from regional_inductor.trust import Seal

pytestmark = [
    pytest.mark.skipif(AGAINST != "ours", reason="about this library's own surface"),
    pytest.mark.skipif(not torch.distributed.is_available(), reason="no torch.distributed"),
]
SEAL = Seal(b"k" * 32)
FOR_EVER = 3600.0  # the test's own time limit ends what waits that long


class Rank:
    """A job's rank that makes bodies in no time and takes down what it made and what it got."""

    def __init__(self, store, rank: int, count: int, limit: float = FOR_EVER, seal=SEAL) -> None:
        self.job = Job(store, rank, count, seal, limit)
        self.rank = rank
        self.batches: list[list[str]] = []
        self.got: dict[str, bytes] = {}

    @property
    def made(self) -> list[str]:
        return [key for batch in self.batches for key in batch]

    def share(self, *keys: str) -> None:
        self.job.share(keys, self.produce, self.accept)

    def produce(self, keys: Sequence[str]) -> dict[str, bytes | None]:
        self.batches.append(list(keys))
        return {key: self.body(key) for key in keys}

    def body(self, key: str) -> bytes | None:
        return f"{key} by {self.rank}".encode()

    def accept(self, key: str, body: bytes) -> bool:
        self.got[key] = body
        return True


@pytest.fixture
def store():
    return torch.distributed.HashStore()


def at_once(*calls: Callable[[], None]) -> None:
    errors: list[BaseException] = []

    def guarded(call: Callable[[], None]) -> None:
        try:
            call()
        except BaseException as error:  # noqa: BLE001 - raised below
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


@pytest.mark.parametrize("count", [2, 4])
def test_each_key_is_made_by_one_rank_and_fetched_by_the_others(store, count):
    keys = [f"key {i}" for i in range(11)]
    all_ranks = [Rank(store, rank, count) for rank in range(count)]
    at_once(*(lambda rank=rank: rank.share(*keys) for rank in all_ranks))
    assert sorted(key for rank in all_ranks for key in rank.made) == sorted(keys)
    for rank in all_ranks:
        assert sorted(rank.made + list(rank.got)) == sorted(keys)


def test_a_rank_claims_its_share_and_no_more_at_a_time(store):
    """Those that come later find something to do; what they don't come for is not left undone."""
    first = Rank(store, 2, 4)
    first.share(*"abcdefgh")
    assert first.batches[0] == ["e", "f"]  # a quarter, from half way on
    assert sorted(first.made) == list("abcdefgh")


def test_ranks_that_come_one_after_another_need_not_wait_for_each_other(store):
    first, second = Rank(store, 0, 2), Rank(store, 1, 2)
    first.share("a", "b")
    second.share("b", "c")
    assert (first.made, second.made) == (["a", "b"], ["c"])
    assert second.got == {"b": b"b by 0"}


def test_ranks_with_nothing_in_common_make_their_own(store):
    stages = [Rank(store, rank, 3) for rank in range(3)]
    at_once(*(lambda rank=rank: rank.share(f"stage {rank.rank}", "last") for rank in stages))
    made = [key for rank in stages for key in rank.made]
    assert sorted(made) == ["last", "stage 0", "stage 1", "stage 2"]


def test_what_a_rank_made_and_forgot_it_fetches_again(store):
    rank = Rank(store, 0, 2)
    rank.share("a")
    rank.share("a")
    assert rank.made == ["a"]
    assert rank.got == {"a": b"a by 0"}


def test_a_body_that_can_t_be_shared_is_made_by_each(store):
    first, second = Rank(store, 0, 2), Rank(store, 1, 2)
    first.body = lambda key: None
    first.share("a")
    second.share("a")
    assert (first.made, second.made) == (["a"], ["a"])


def test_when_making_raises_the_others_make_it_themselves(store):
    first, second = Rank(store, 0, 2), Rank(store, 1, 2)

    def fail(keys):
        raise ValueError("no compiler")

    with pytest.raises(ValueError, match="no compiler"):
        first.job.share(["a", "b"], fail, first.accept)
    second.share("a")
    assert second.made == ["a"]


def test_a_rank_that_dies_while_it_makes_something_is_waited_for_once(store):
    dead, other = Rank(store, 0, 2), Rank(store, 1, 2, limit=0.1)
    for key in "abc":
        dead.job._owner_of(key)
    with pytest.warns(RegionWarning, match=r"rank 0 delivered no compiled region for 0\.1 s"):
        other.share("a", "b", "d")
    assert sorted(other.made) == ["a", "b", "d"]
    other.job.limit = FOR_EVER
    other.share("c")
    assert "c" in other.made


def test_a_slow_rank_is_waited_for_and_what_it_delivers_late_is_still_used(store):
    slow, other = Rank(store, 0, 2), Rank(store, 1, 2)
    claimed, asked = threading.Event(), threading.Event()

    def slowly(keys):
        claimed.set()
        asked.wait()
        return slow.produce(keys)

    def wait_for_it():
        claimed.wait()
        check = store.check

        class Watched:
            def check(self, keys):
                asked.set()
                return check(keys)

            def __getattr__(self, name):
                return getattr(store, name)

        other.job._store = Watched()
        other.share("a")

    at_once(lambda: slow.job.share(["a"], slowly, slow.accept), wait_for_it)
    assert (slow.made, other.made) == (["a"], [])
    assert other.got == {"a": b"a by 0"}


@pytest.mark.parametrize("how", ["changed", "another key's", "cut short", "another secret"])
def test_a_body_without_the_seal_is_not_used(store, how):
    first = Rank(store, 0, 2, seal=Seal(b"x" * 32) if how == "another secret" else SEAL)
    second = Rank(store, 1, 2)
    first.share("a", "b")
    sealed = store.get("body/a/1")
    if how == "changed":
        store.set("body/a/1", sealed[:-1] + bytes([sealed[-1] ^ 1]))
    elif how == "another key's":
        store.set("body/a/1", store.get("body/b/1"))
    elif how == "cut short":
        store.set("body/a/1", sealed[:-1])
    with pytest.warns(RegionWarning, match="what another rank compiled is not used") as seen:
        second.share("a")
    assert len(seen) == 1
    assert (second.made, second.got) == (["a"], {})


def test_parts_that_are_missing_are_not_waited_for(store):
    first, second = Rank(store, 0, 2), Rank(store, 1, 2)
    first.share("a")
    store.delete_key("body/a/1")
    second.share("a")
    assert second.made == ["a"]


def test_a_body_that_can_t_be_loaded_is_made_here(store):
    first, second = Rank(store, 0, 2), Rank(store, 1, 2)
    first.share("a")
    second.accept = lambda key, body: False
    second.share("a")
    assert second.made == ["a"]


def test_a_store_that_fails_costs_the_sharing_and_nothing_else(store):
    class Failing:
        def __getattr__(self, name):
            raise ConnectionError("the rank that held the store is gone")

    rank = Rank(Failing(), 0, 2)
    with pytest.warns(RegionWarning, match="the job's store failed") as seen:
        rank.share("a", "b")
    rank.share("c")
    assert sorted(rank.made) == ["a", "b", "c"]
    assert len(seen) == 1


def test_bodies_of_any_size_go_through_torch_s_store():
    tcp = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    first, second = Rank(tcp, 0, 2), Rank(tcp, 1, 2)
    first.body = lambda key: b"\0" * (9 << 20)
    first.share("a")
    second.share("a")
    assert len(second.got["a"]) == 9 << 20


# ---- who shares at all ------------------------------------------------------------------------

SECRET = {"REGIONAL_INDUCTOR_CACHE_KEY": "s" * 32}


@pytest.fixture
def job_of_two(store, monkeypatch):
    monkeypatch.setattr(distributed, "job", lambda: (store, 0, 2))
    monkeypatch.setattr(ranks, "_jobs", [])


def delivers(first: Job, second: Job) -> bool:
    """Whether what one makes reaches the other."""
    made = []
    first.share(["a"], lambda keys: {"a": b"body"}, lambda key, body: False)
    second.share(["a"], lambda keys: made.extend(keys) or {}, lambda key, body: True)
    return not made


def other_process(folder, variables) -> Job:
    ranks._jobs.clear()
    found = ranks.job(folder, variables)
    assert found is not None
    return found


def test_ranks_with_one_private_folder_share_without_being_told(job_of_two, tmp_path):
    first, second = (other_process(tmp_path / "cache", {}) for _ in range(2))
    assert delivers(first, second)
    secret = tmp_path / "cache" / "secret"
    assert secret.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in secret.parent.iterdir()] == ["secret"]


def test_ranks_on_other_machines_share_for_one_secret_in_the_environment(job_of_two, tmp_path):
    assert delivers(other_process(tmp_path / "a", SECRET), other_process(None, SECRET))


def test_ranks_with_different_secrets_neither_share_nor_wait(job_of_two, tmp_path):
    assert not delivers(other_process(tmp_path / "a", {}), other_process(tmp_path / "b", {}))


def test_without_a_secret_that_is_private_nothing_is_shared(job_of_two, tmp_path):
    assert ranks.job(None, {}) is None
    (tmp_path / "open").mkdir(mode=0o755)
    (tmp_path / "open").chmod(0o755)
    assert ranks.job(tmp_path / "open", {}) is None
    private = tmp_path / "private"
    other_process(private, {})
    (private / "secret").chmod(0o644)
    assert ranks.job(private, {}) is None


def test_the_switch_and_the_limit_come_from_the_environment(job_of_two, monkeypatch):
    assert ranks.job(None, {**SECRET, ranks.SWITCH: "0"}) is None
    first = ranks.job(None, SECRET)
    assert first.limit == ranks.LIMIT
    again = ranks.job(None, {**SECRET, ranks.TIMEOUT: "7.5"})
    assert (again, again.limit) == (first, 7.5)
    with pytest.raises(OptionError, match="REGIONAL_INDUCTOR_RANKS='yes' is not a choice"):
        ranks.job(None, {**SECRET, ranks.SWITCH: "yes"})
    for limit in ("soon", "-1", "nan"):
        with pytest.raises(OptionError, match="is no number of seconds"):
            ranks.job(None, {**SECRET, ranks.TIMEOUT: limit})
    monkeypatch.setattr(distributed, "job", lambda: None)
    assert ranks.job(None, SECRET) is None
