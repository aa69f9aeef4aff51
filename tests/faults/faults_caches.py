"""Caches that are damaged, foreign, read-only or out of reach."""

from __future__ import annotations

import random
import shutil

import pytest

from .running import assert_works, files_of, give_up_roots_rights


def halve(path, rng):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path, rng):
    path.write_bytes(b"")


def flip(path, rng):
    data = bytearray(path.read_bytes())
    for _ in range(16 if data else 0):
        data[rng.randrange(len(data))] ^= 0xFF
    path.write_bytes(data)


def rubbish(path, rng):
    path.write_bytes(rng.randbytes(path.stat().st_size))


@pytest.mark.parametrize("damage", [halve, empty, flip, rubbish])
def test_damaged_entries_of_the_store_are_not_used(filled_subject, damage):
    rng = random.Random(0)
    damaged = files_of(filled_subject, (".region",))
    assert damaged
    for path in damaged:
        damage(path, rng)
    result = filled_subject.run()
    assert result["equal"]
    assert "eager" not in result["statuses"]
    assert_works(filled_subject.run())


def test_entries_of_the_store_under_anothers_name_are_not_used(filled_subject):
    entries = files_of(filled_subject, (".region",))
    assert len(entries) >= 2
    contents = [path.read_bytes() for path in entries]
    for path, content in zip(entries, contents[1:] + contents[:1], strict=True):
        path.write_bytes(content)
    result = filled_subject.run()
    assert result["equal"]
    assert "eager" not in result["statuses"]
    assert_works(filled_subject.run())


@pytest.mark.parametrize("damage", [halve, empty, rubbish])
@pytest.mark.parametrize("kind", [".so", ".gch", ""], ids=["libraries", "headers", "everything"])
def test_a_damaged_cache_of_inductors_is_no_wrong_number_and_mends(filled_subject, damage, kind):
    """Without the store, which would not ask Inductor."""
    rng = random.Random(0)
    store = {"REGIONAL_INDUCTOR_CACHE": "0"}
    filled_subject.run(**store)
    for path in files_of(filled_subject, (kind,)):
        if path.is_relative_to(filled_subject.caches[0]) and not path.name.endswith(".lock"):
            damage(path, rng)
    assert filled_subject.run(**store)["equal"]
    assert_works(filled_subject.run(**store))


def test_unfinished_files_of_others_are_in_nobodys_way(filled_subject):
    for folder in filled_subject.caches:
        for path in list(folder.rglob("*")):
            if path.is_file():
                (path.parent / f"{path.name}.999999.unfinished").write_bytes(b"half")
                (path.parent / ".999999.1.tmp").write_bytes(b"half")
    assert_works(filled_subject.run())


@pytest.mark.parametrize("filled_before", [True, False], ids=["filled", "empty"])
def test_caches_that_can_only_be_read(filled_subject, filled_before):
    if not filled_before:
        for folder in filled_subject.caches:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
    for folder in filled_subject.caches:
        for path in [folder, *folder.rglob("*")]:
            path.chmod(0o555 if path.is_dir() else 0o444)
    result = filled_subject.run(preexec_fn=give_up_roots_rights)
    assert result["equal"]


@pytest.mark.parametrize("place", ["nowhere", "a file"])
def test_a_store_where_there_can_be_none(filled_subject, tmp_path, place):
    """Without a cache folder of Inductor's not even Dynamo can be imported; without ours all goes on."""
    (tmp_path / "file").write_text("no folder")
    folder = "/proc/none" if place == "nowhere" else str(tmp_path / "file")
    result = filled_subject.run(REGIONAL_INDUCTOR_CACHE_DIR=folder)
    assert result["equal"]
    assert "eager" not in result["statuses"]
    assert result["warnings"]
