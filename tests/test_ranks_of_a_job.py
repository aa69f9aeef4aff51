"""Jobs of two and four processes: each distinct region is compiled by one of them."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from support.rank_compiles import compile_for, compile_second, die_while_compiling
from support.ranks import Ranks
from support.stores import environment, shared_inductor_cache
from support.under_test import AGAINST

pytestmark = [
    pytest.mark.inductor,
    pytest.mark.skipif(AGAINST != "ours", reason="about this library's own surface"),
    pytest.mark.skipif(
        not (torch.distributed.is_available() and torch.distributed.is_gloo_available()),
        reason="no gloo",
    ),
]
SECRET = "s" * 32


@pytest.fixture
def machines(tmp_path):
    """For each of some ranks the environment of a machine of its own: nothing on disk is shared."""

    def variables(count: int, **more: str) -> list[dict[str, str]]:
        shared = {"REGIONAL_INDUCTOR_CACHE_KEY": SECRET, **more}
        cache = shared_inductor_cache()
        taken = len(list(tmp_path.iterdir()))
        folders = [tmp_path / f"disk-{taken + i}" for i in range(count)]
        for folder in folders:
            folder.mkdir(mode=0o700)
        return [environment(folder, cache, **shared) for folder in folders]

    return variables


def statuses(outcomes) -> Counter[str]:
    return Counter(status for outcome in outcomes for status in outcome["regions"].values())


def compiles_by_key(outcomes) -> Counter[str]:
    found: Counter[str] = Counter()
    for outcome in outcomes:
        for name, status in outcome["regions"].items():
            found[outcome["keys"][name]] += status == "compiled"
    return found


def test_two_ranks_compile_each_distinct_region_once(machines):
    with Ranks(2, machines(2)) as ranks:
        same = [["sin", "cos", "tanh", "exp"]] * 2
        outcomes = ranks.run(compile_for, same)
        assert all(outcome["right"] for outcome in outcomes)
        assert statuses(outcomes) == {"compiled": 4, "fetched": 4}
        assert set(compiles_by_key(outcomes).values()) == {1}

        # Pipeline stages: keys meet, positions don't.
        stages = [["sqrt", "relu"], ["sin", "relu", "abs"]]
        outcomes = ranks.run(compile_for, stages)
        assert all(outcome["right"] for outcome in outcomes)
        assert outcomes[0]["regions"]["sqrt"] == outcomes[1]["regions"]["abs"] == "compiled"
        assert outcomes[1]["regions"]["sin"] == "memory"
        assert sorted(o["regions"]["relu"] for o in outcomes) == ["compiled", "fetched"]
        assert [outcome["warnings"] for outcome in outcomes] == [[], []]

        # Uneven shapes: what only one rank needs it compiles itself, and nobody waits.
        outcomes = ranks.run(compile_for, [["sigmoid"]] * 2, [8, 10])
        assert all(outcome["right"] for outcome in outcomes)
        assert statuses(outcomes) == {"compiled": 2}
        assert set(compiles_by_key(outcomes).values()) == {1}
        assert [outcome["warnings"] for outcome in outcomes] == [[], []]


def test_four_ranks_and_one_that_dies_while_it_compiles(machines):
    with Ranks(4, machines(4)) as ranks:
        same = [["sin", "cos", "tanh", "exp"]] * 4
        outcomes = ranks.run(compile_for, same)
        assert all(outcome["right"] for outcome in outcomes)
        assert set(compiles_by_key(outcomes).values()) == {1}
        assert statuses(outcomes) == {"compiled": 4, "fetched": 12}

        ranks.run(die_while_compiling, 3)
        dead = ranks.run(compile_second, [["sqrt"]] * 4, "claimed", 3, 2.5, dying=[3])
        assert dead[3] is None
        assert all(outcome["right"] for outcome in dead[:3])
        assert statuses(dead[:3]) == {"compiled": 3}
        for outcome in dead[:3]:
            (warning,) = outcome["warnings"]
            assert warning.startswith("rank 3 delivered no compiled region for 2.5 s")
