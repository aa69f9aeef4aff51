"""Folders to run the subject in: with precompiled headers, which take longest and are no subject here."""

from __future__ import annotations

from pathlib import Path

import pytest

from .running import Subject


def pytest_collection_modifyitems(items):
    """Time for several programs that compile, also on a machine with other things to do."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.timeout(1800))


@pytest.fixture(scope="session")
def warm(tmp_path_factory):
    subject = Subject(tmp_path_factory.mktemp("warm"))
    assert subject.run("--warm", REGIONAL_INDUCTOR_CACHE="0")["equal"]
    return subject


@pytest.fixture(scope="session")
def filled(tmp_path_factory, warm):
    """Caches as a good run leaves them."""
    from .running import assert_works

    subject = Subject(tmp_path_factory.mktemp("filled"))
    subject.take(warm)
    assert_works(subject.run())
    return subject


@pytest.fixture
def subject(tmp_path, warm):
    """A place that has seen no kernel of the subject's."""
    subject = Subject(tmp_path)
    subject.take(warm)
    return subject


@pytest.fixture
def filled_subject(tmp_path, filled):
    """A place with caches as a good run leaves them."""
    subject = Subject(tmp_path)
    subject.take(filled)
    return subject
