"""The simulation of a job's cold start: what must hold for any parameters, and that its page shows its figures."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent))  # makes `benchmarks` importable

from benchmarks import scale
from benchmarks._outcome import markdown_table

SMALL = scale.Parameters(regions=12, skew_s=1.0)
SPREADS = (scale.SPREAD, scale.SPREAD_HOSTS)


@pytest.mark.parametrize("way", SPREADS)
@pytest.mark.parametrize("ranks", [1, 3, 8, 12, 20])
def test_spreading_compiles_each_distinct_region_once_whatever_the_ranks(way, ranks):
    assert scale.simulate(way, ranks, SMALL).compiles == 12


def test_alone_every_rank_compiles_everything_and_asks_nobody():
    found = scale.simulate(scale.ALONE, 5, SMALL)
    assert (found.compiles, found.requests, found.sent) == (60, 0, 0)


def test_a_broadcast_waits_for_the_last_rank_and_costs_a_hop_for_each_doubling():
    given = replace(SMALL, compile_s=0.0, skew_s=0.0, latency_s=1.0, body=0.0)
    assert scale.simulate(scale.BROADCAST, 1, given).seconds == 0
    assert scale.simulate(scale.BROADCAST, 8, given).seconds == 3
    late = scale.simulate(scale.BROADCAST, 8, replace(given, skew_s=100.0)).seconds
    assert late > 3 + 50


@pytest.mark.parametrize("way", SPREADS)
@pytest.mark.parametrize("ranks", [1, 8, 24])
def test_the_simulation_asks_what_the_arithmetic_counts(way, ranks):
    found = scale.simulate(way, ranks, SMALL)
    counted = scale.load(ranks, way == scale.SPREAD_HOSTS, SMALL)
    assert found.requests == counted["requests"]
    assert found.sent / 1e9 == pytest.approx(counted["moved, GB"])
    assert found.busy_s == pytest.approx(counted["store busy, s"])


def test_n_ranks_compile_n_regions_at_a_time():
    given = replace(SMALL, spread=0.0, skew_s=0.0, request_s=0.0, bandwidth=1e30)
    assert scale.simulate(scale.SPREAD, 4, given).seconds == pytest.approx(3 * given.compile_s)


def test_no_start_is_shorter_than_the_longest_compile():
    job = scale._Job(64, False, SMALL)
    for way in scale.WAYS:
        assert scale.simulate(way, 64, SMALL).seconds >= max(job.cost)


def test_a_slow_store_is_what_the_last_rank_waits_for():
    given = replace(SMALL, request_s=1.0)
    found = scale.simulate(scale.SPREAD, 16, given)
    assert found.seconds >= found.busy_s >= 2 * 16 * 12


@pytest.mark.parametrize("hosted", [False, True])
def test_saturation_is_the_first_number_of_ranks_that_keeps_the_store_busy_longer(hosted):
    given = scale.Parameters()
    ranks = scale.saturation(hosted, given)
    assert scale.load(ranks, hosted, given)["store busy, s"] > given.compile_s
    assert scale.load(ranks - 1, hosted, given)["store busy, s"] <= given.compile_s


def test_the_page_shows_what_the_command_prints():
    page = scale.PAGE.read_text()
    tables = scale.main(quick=True).tables
    for title, rows in tables.items():
        lines = markdown_table(rows).splitlines()
        assert f"### {title}" in page
        assert [line for line in lines if line not in page] == [], title


def test_parameters_can_be_given_on_the_command_line(capsys):
    assert scale.command(["--quick", "--regions", "3", "--body", "1e6"]) == 0
    assert "| 8 | spread over ranks | 3 | 48 |" in capsys.readouterr().out
