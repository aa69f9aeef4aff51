"""What a region is stored under: everything that the code made for it depends on."""

from __future__ import annotations

import pytest
import torch
from support.graphs import capture, mark_nodes

from regional_inductor import region_store
from regional_inductor._torch import machine
from regional_inductor.pipeline import run
from regional_inductor.region_requests import requests_of
from regional_inductor.regions import Settings


@pytest.fixture
def keys():
    """Gives the keys of one region, as they are now."""
    gm = mark_nodes(capture(lambda x: x.sin() + 1, torch.ones(4), mode="fake"), 0)
    settings = Settings(merge="all", region_backend="eager", on_error="raise")
    (request,) = requests_of(run(gm, (), settings, stop_after="outline"), settings)
    return lambda: region_store.stored_keys(request)


def test_the_same_region_on_the_same_machine_has_the_same_key(keys):
    assert keys() == keys()


@pytest.mark.parametrize("what", sorted(machine.build()))
def test_each_fact_of_the_build_separates(keys, monkeypatch, what):
    before = keys()
    other = {**machine.build(), what: "another"}
    monkeypatch.setattr(machine, "build", lambda: other)
    assert not set(keys()) & set(before)


def test_the_accelerators_of_the_machine_separate(keys, monkeypatch):
    before = keys()
    monkeypatch.setattr(machine, "devices", lambda kinds: {"cuda:0": "another"})
    assert not set(keys()) & set(before)


@pytest.mark.parametrize("name", ["SCHEMA", "package_digest"])
def test_the_librarys_own_code_and_schema_separate(keys, monkeypatch, name):
    before = keys()
    monkeypatch.setattr(region_store, name, 99 if name == "SCHEMA" else lambda: "another")
    assert not set(keys()) & set(before)
