"""`regional-inductor cache`: what it says of the store on disk, and does to it."""

from __future__ import annotations

import hashlib
import json

import pytest

from regional_inductor import cli, disk
from regional_inductor.disk import Disk
from regional_inductor.entry import Entry

KEY, OTHER = "a1" * 32, "b2" * 32


def entry(key, name):
    library = b"\x7fELF"
    digest = hashlib.sha256(library).hexdigest()
    bundle = {
        "form": "graph",
        "kernels": {"k": {"library": digest, "module": "k.kernel", "function": "kernel"}},
    }
    about = {
        "name": name,
        "direction": "forward",
        "nodes": 6,
        "ops": ["aten.mul", "aten.silu"],
        "seconds": 1.5,
        "build": {"torch": "2.13.0"},
    }
    parts = {
        "bundle": json.dumps(bundle).encode(),
        "graph": b"the generated code",
        f"library {digest}": library,
    }
    return Entry(key, about, parts)


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setenv(disk.SWITCH, "1")
    monkeypatch.setenv(disk.FOLDER, str(tmp_path / "store"))
    return Disk(tmp_path / "store")


@pytest.fixture
def filled(store):
    store.put(entry(KEY, "swiglu"))
    store.put(entry(OTHER, "rope"))
    return store


def run(capsys, *arguments):
    code = cli.main(["cache", *arguments])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def test_ls_shows_a_line_a_region_and_what_they_take(filled, capsys):
    code, out, _ = run(capsys, "ls")
    assert code == 0
    lines = out.splitlines()
    assert [line for line in lines if line.strip().startswith(("a1a1a1a1a1a1", "b2b2b2b2b2b2"))]
    assert any("swiglu" in line and "forward" in line and "1.50" in line for line in lines)
    assert lines[-1].startswith("2 entries, ")
    assert "of 4.0 GiB" in out


def test_ls_of_an_empty_store_says_where_it_looked(store, capsys):
    assert run(capsys, "ls") == (0, f"no entries in {store.folder}\n", "")


def test_ls_reads_a_damaged_entry_as_such_and_leaves_it_there(filled, capsys):
    path = filled.folder / f"{KEY}.region"
    path.write_bytes(b"")
    code, out, _ = run(capsys, "ls")
    assert code == 0
    assert "not used: it is no entry" in out
    assert path.exists()


def test_show_takes_the_beginning_of_a_key(filled, capsys):
    code, out, _ = run(capsys, "show", "a1")
    assert code == 0
    assert KEY in out
    assert "aten.mul, aten.silu" in out
    assert "the generated code" not in out
    assert "the generated code" in run(capsys, "show", "a1", "--code")[1]


def test_show_says_what_a_region_assumes_of_sizes_and_sums_up_triton_s_files(store, capsys):
    whole = entry(KEY, "swiglu")
    files = {f"triton {'K' * 52}/add.{kind}": bytes(1024) for kind in ("cubin", "ptx")}
    store.put(Entry(KEY, whole.about, {**whole.parts, "guards": b"2 <= L['t0']", **files}))
    out = run(capsys, "show", "a1")[1]
    assert "holds where" in out
    assert "2 <= L['t0']" in out
    assert "2, 2.0 KiB" in out
    assert "cubin" not in out


@pytest.mark.parametrize(
    ("prefix", "message"), [("", "2 entries begin with ''"), ("ff", "no entry begins with 'ff'")]
)
def test_a_key_that_is_not_one_is_an_error_with_a_way_out(filled, capsys, prefix, message):
    code, _, err = run(capsys, "show", prefix)
    assert code == 2
    assert message in err
    assert "regional-inductor cache ls" in err


def test_clear_removes_one_or_all(filled, capsys):
    assert run(capsys, "clear", "a1")[1] == f"removed 1 entries from {filled.folder}\n"
    assert [stored.key for stored in filled.entries()] == [OTHER]
    assert run(capsys, "clear")[0] == 0
    assert filled.entries() == []


def test_clear_with_one_wrong_key_removes_nothing(filled, capsys):
    assert run(capsys, "clear", "a1", "ff")[0] == 2
    assert len(filled.entries()) == 2


def test_verify_finds_what_will_not_be_used_and_removes_it_if_asked(filled, capsys):
    assert run(capsys, "verify")[0] == 0
    path = filled.folder / f"{KEY}.region"
    path.write_bytes(path.read_bytes()[:-1])
    code, out, _ = run(capsys, "verify")
    assert code == 1
    assert "a1a1a1a1a1a1 it is cut short or changed" in out
    assert "1 entries are whole, 1 are not, in" in out
    assert path.exists()
    assert "1 are not and were removed" in run(capsys, "verify", "--remove")[1]
    assert [stored.key for stored in filled.entries()] == [OTHER]


def test_verify_looks_into_a_whole_entry_whose_bundle_lacks_a_part(store, capsys):
    whole = entry(KEY, "swiglu")
    store.put(Entry(KEY, whole.about, {"bundle": whole.parts["bundle"]}))
    code, out, _ = run(capsys, "verify")
    assert code == 1
    assert "the bundle lacks graph, library" in out


def test_a_store_that_is_switched_off_is_said_to_be(store, capsys, monkeypatch):
    monkeypatch.setenv(disk.SWITCH, "0")
    code, _, err = run(capsys, "ls")
    assert code == 2
    assert "switched off (REGIONAL_INDUCTOR_CACHE=0)" in err


def test_a_folder_open_to_others_is_not_verified(filled, capsys):
    filled.folder.chmod(0o777)
    code, out, _ = run(capsys, "verify")
    assert code == 1
    assert "open to other users" in out
