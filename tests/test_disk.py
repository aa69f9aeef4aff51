"""The folder of compiled regions: what is published, what is believed, what goes when it is full."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from pathlib import Path

import pytest

from regional_inductor import RegionWarning, disk
from regional_inductor.disk import Disk, bytes_of
from regional_inductor.entry import DamagedError, Entry
from regional_inductor.errors import OptionError
from regional_inductor.trust import Seal, UntrustedError

KEY, OTHER = "a" * 64, "b" * 64


def entry(key=KEY, body=b"body"):
    return Entry(key, {"name": "mlp"}, {"graph": body, "library": b"\x00\x01"})


@pytest.fixture
def store(tmp_path):
    return Disk(tmp_path / "store")


@pytest.fixture
def shared(tmp_path):
    """A store whose folder others may write, so that only seals are believed."""
    return Disk(tmp_path / "shared", seal=Seal(b"k" * 32))


def path_of(store, key=KEY):
    return store.folder / f"{key}.region"


# --- publishing ------------------------------------------------------------------------------------


def test_what_is_put_comes_back_in_a_private_file_of_a_private_folder(store):
    assert store.get(KEY) is None
    assert store.put(entry())
    assert store.get(KEY) == entry()
    assert store.folder.stat().st_mode & 0o777 == 0o700
    assert path_of(store).stat().st_mode & 0o777 == 0o600
    assert [stored.key for stored in store.entries()] == [KEY]


def test_another_store_on_the_same_folder_finds_it(store):
    store.put(entry())
    assert Disk(store.folder).get(KEY) == entry()


def test_a_later_entry_of_a_key_replaces_the_earlier(store):
    store.put(entry())
    store.put(entry(body=b"newer"))
    assert store.get(KEY) == entry(body=b"newer")
    assert len(store.entries()) == 1


KILLED = """
import os, signal, sys
from pathlib import Path
from regional_inductor.disk import Disk
from regional_inductor.entry import Entry

store = Disk(Path(sys.argv[1]))
working = Path.replace
Path.replace = lambda *args: os.kill(os.getpid(), signal.SIGKILL)  # all is written, nothing published
with store.lock("a" * 64, timeout=0):
    store.put(Entry("a" * 64, {}, {"graph": b"x" * 100_000}))
"""


def test_a_process_killed_while_it_publishes_leaves_no_entry_and_no_lock(store):
    done = subprocess.run([sys.executable, "-c", KILLED, str(store.folder)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert list(store.folder.glob("*.unfinished"))
    assert store.get(KEY) is None
    assert store.entries() == []
    with store.lock(KEY, timeout=0) as held:
        assert held
    assert store.put(entry())
    assert store.get(KEY) == entry()


def test_what_a_killed_process_left_is_cleared_away_in_time(store):
    store.put(entry())
    left = store.folder / f"{OTHER}.1.00.unfinished"
    left.write_bytes(b"x")
    store.put(entry())
    assert left.exists()  # somebody may still be writing it
    os.utime(left, (1, 1))
    store.put(entry())
    assert not left.exists()


def test_a_full_disk_costs_a_warning_and_nothing_else(store, monkeypatch):
    store.put(entry(OTHER))
    working = os.open

    def full(path, *args, **kwargs):
        if str(path).endswith(".unfinished"):
            path = "/dev/full"
            args = (os.O_WRONLY,)
        return working(path, *args, **kwargs)

    monkeypatch.setattr(os, "open", full)
    with pytest.warns(RegionWarning, match="No space left on device"):
        assert not store.put(entry())
    assert store.get(KEY) is None
    assert store.get(OTHER) == entry(OTHER)


READ_ONLY = """
import os, sys, warnings
from pathlib import Path
import filelock
from regional_inductor.disk import Disk
from regional_inductor.entry import Entry

if os.geteuid() == 0:
    os.setuid(65534)  # root may write anywhere
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    store = Disk(Path(sys.argv[1]))
    with store.lock("b" * 64, timeout=0) as held:
        print(held, store.put(Entry("b" * 64)), bool(store.get("a" * 64)), *[w.message for w in caught])
"""


def test_a_read_only_folder_is_read_and_locks_nobody_out():
    with tempfile.TemporaryDirectory() as folder:  # pytest's own is closed to other users
        Path(folder).chmod(0o711)
        store = Disk(Path(folder) / "store")
        store.put(entry())
        path_of(store).chmod(0o400)
        if os.geteuid() == 0:
            os.chown(path_of(store), 65534, 65534)
            os.chown(store.folder, 65534, 65534)
        store.folder.chmod(0o500)
        done = subprocess.run(
            [sys.executable, "-c", READ_ONLY, str(store.folder)],
            check=False,
            capture_output=True,
            text=True,
        )
        store.folder.chmod(0o700)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("True False True compiled regions can't be stored in")
    assert "Permission denied" in done.stdout


# --- what is believed ------------------------------------------------------------------------------


class Malicious:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def damages(tmp_path):
    whole = entry().to_bytes()
    yield "empty", b""
    yield "cut short", whole[:-1]
    yield "cut in the header", whole[:60]
    yield "longer", whole + b"\x00"
    yield "another key's", entry(OTHER).to_bytes()
    yield "a pickle", pickle.dumps(Malicious(tmp_path / "ran"))
    yield "of another schema", whole.replace(b'"schema": 2', b'"schema": 3')


@pytest.mark.parametrize("number", range(7))
def test_a_damaged_entry_is_a_miss_reported_once(store, tmp_path, number):
    name, data = list(damages(tmp_path))[number]
    store.put(entry())
    path_of(store).write_bytes(data)
    with pytest.warns(RegionWarning, match=f"the stored region {KEY[:12]} in .* is not used"):
        assert store.get(KEY) is None, name
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Disk(store.folder).get(KEY) is None
    assert not (tmp_path / "ran").exists()
    assert store.put(entry())
    assert store.get(KEY) == entry()


def test_no_changed_bit_goes_unseen():
    whole = entry().to_bytes()
    for place in range(len(whole)):
        changed = bytearray(whole)
        changed[place] ^= 1
        with pytest.raises(DamagedError):
            Entry.from_bytes(bytes(changed), KEY)


def test_a_whole_entry_of_another_schema_is_said_to_be_one(monkeypatch):
    monkeypatch.setattr("regional_inductor.entry.SCHEMA", 3)
    newer = entry().to_bytes()
    monkeypatch.undo()
    with pytest.raises(DamagedError, match="its schema is 3, not 2"):
        Entry.from_bytes(newer, KEY)


def test_a_part_that_grows_beyond_what_is_announced_is_refused(monkeypatch):
    import zlib

    usual = zlib.compress
    monkeypatch.setattr(
        "regional_inductor.entry.zlib.compress", lambda part, level: usual(bytes(1 << 24), level)
    )
    bomb = entry().to_bytes()
    monkeypatch.undo()
    assert len(bomb) < 1 << 18
    with pytest.raises(DamagedError, match="not as long as it is said to be"):
        Entry.from_bytes(bomb, KEY)


def test_regions_that_share_a_library_take_less_than_a_copy_each(store):
    library = b"".join(number.to_bytes(4, "big") for number in range(20_000))
    for number in range(4):
        store.put(Entry(f"{number:064}", {}, {"library": library}))
    assert sum(stored.size for stored in store.entries()) < 2 * len(library)
    assert store.get(f"{0:064}").parts["library"] == library


def test_a_symbolic_link_is_not_followed(store, tmp_path):
    store.put(entry())
    path_of(store).rename(tmp_path / "elsewhere")
    path_of(store).symlink_to(tmp_path / "elsewhere")
    with pytest.warns(RegionWarning, match="symbolic link"):
        assert store.get(KEY) is None
    assert (tmp_path / "elsewhere").exists()


def test_a_file_open_to_others_is_not_used(store):
    store.put(entry())
    path_of(store).chmod(0o644)
    with pytest.warns(RegionWarning, match=r"open to other users \(mode 0644\)"):
        assert store.get(KEY) is None


def test_a_folder_open_to_others_is_neither_read_nor_written(store):
    store.put(entry())
    store.folder.chmod(0o777)
    with pytest.warns(RegionWarning, match=r"open to other users \(mode 0777\)(.|\n)*chmod go="):
        assert store.get(KEY) is None
    with pytest.warns(RegionWarning, match="can't be stored"):
        assert not store.put(entry(OTHER))
    assert path_of(store).exists()


def test_another_user_s_folder_and_files_are_not_used(store, monkeypatch):
    store.put(entry())
    owner = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    with pytest.warns(RegionWarning, match=f"belongs to user {owner}"):
        assert store.get(KEY) is None
    monkeypatch.undo()
    assert store.get(KEY) == entry()


# --- shared folders --------------------------------------------------------------------------------


def test_sealed_entries_are_believed_wherever_they_lie(shared):
    assert shared.put(entry())
    shared.folder.chmod(0o777)
    assert shared.get(KEY) == entry()


@pytest.mark.parametrize(
    "data",
    [
        entry().to_bytes(),
        Seal(b"l" * 32).close(KEY, entry().to_bytes()),
        Seal(b"k" * 32).close(OTHER, entry(OTHER).to_bytes()),
        Seal(b"k" * 32).close(KEY, entry().to_bytes())[:-1],
        Seal(b"k" * 32).close(KEY, entry().to_bytes()).replace(b"mlp", b"mlq"),
        Seal(b"k" * 32).close(KEY, entry(OTHER).to_bytes()),
    ],
    ids=["unsealed", "another secret", "replayed", "cut short", "tampered", "swapped within"],
)
def test_a_shared_entry_without_its_seal_is_a_miss_with_one_warning(shared, data):
    shared.put(entry())
    path_of(shared).write_bytes(data)
    with pytest.warns(RegionWarning, match="is not used") as caught:
        assert shared.get(KEY) is None
    assert len(caught) == 1


def test_a_malicious_pickle_in_a_shared_folder_never_runs(shared, tmp_path):
    shared.put(entry())
    path_of(shared).write_bytes(pickle.dumps(Malicious(tmp_path / "ran")))
    with pytest.warns(RegionWarning):
        assert shared.get(KEY) is None
    assert not (tmp_path / "ran").exists()


def test_sealed_entries_mean_nothing_to_a_store_without_the_secret(shared):
    shared.put(entry())
    with pytest.warns(RegionWarning):
        assert Disk(shared.folder).get(KEY) is None


# --- locks -----------------------------------------------------------------------------------------


def test_one_key_has_one_holder_and_other_keys_are_free(store):
    with store.lock(KEY, timeout=0) as first:
        assert first
        with store.lock(KEY, timeout=0) as second, store.lock(OTHER, timeout=0) as other:
            assert (second, other) == (False, True)
    with store.lock(KEY, timeout=0) as again:
        assert again


def test_who_waits_gets_the_lock_when_it_is_given_back(store):
    waiting = threading.Event()

    def hold():
        with store.lock(KEY, timeout=0):
            waiting.set()
            time.sleep(0.2)

    holder = threading.Thread(target=hold)
    holder.start()
    waiting.wait(10)
    with store.lock(KEY, timeout=60) as held:
        assert held
    holder.join()


def test_a_key_that_stays_locked_is_waited_for_as_long_as_asked(store):
    with store.lock(KEY, timeout=0), store.lock(KEY, timeout=0.01) as held:
        assert not held


# --- size ------------------------------------------------------------------------------------------


def test_what_was_not_used_for_longest_goes_first(tmp_path):
    size = len(entry().to_bytes())
    store = Disk(tmp_path / "store", limit=2 * size)
    store.put(entry(KEY))
    store.put(entry(OTHER))
    os.utime(path_of(store, KEY), (1, 1))
    os.utime(path_of(store, OTHER), (2, 2))
    assert store.get(KEY)  # used now: the other is the older one
    store.put(entry("c" * 64))
    assert store.get(OTHER) is None
    assert {stored.key for stored in store.entries()} == {KEY, "c" * 64}


def test_an_entry_larger_than_the_limit_is_not_stored(tmp_path):
    store = Disk(tmp_path / "store", limit=100)
    with pytest.warns(RegionWarning, match="exceeds REGIONAL_INDUCTOR_CACHE_SIZE=100"):
        assert not store.put(entry(body=b"x" * 200))
    assert store.entries() == []


def test_clearing_leaves_nothing(store):
    store.put(entry())
    store.put(entry(OTHER))
    assert store.clear() == 2
    assert store.get(KEY) is None


# --- the environment -------------------------------------------------------------------------------


def test_folder_size_and_secret_come_from_the_environment(tmp_path):
    store = Disk.from_environment(
        {
            disk.FOLDER: str(tmp_path),
            disk.SIZE: "2MiB",
            "REGIONAL_INDUCTOR_CACHE_KEY": "k" * 32,
        }
    )
    assert (store.folder, store.limit) == (tmp_path, 2 << 20)
    assert store.seal is not None
    assert Disk.from_environment({disk.SWITCH: "0"}) is None
    assert Disk.from_environment({"XDG_CACHE_HOME": "/x"}).folder.parent.as_posix() == "/x"


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({disk.SWITCH: "off"}, "REGIONAL_INDUCTOR_CACHE='off' is not a choice"),
        ({disk.SIZE: "much"}, "REGIONAL_INDUCTOR_CACHE_SIZE='much' is no size"),
    ],
)
def test_what_the_environment_says_wrongly_is_an_error(variables, message):
    with pytest.raises(OptionError, match=message):
        Disk.from_environment(variables)


def test_a_secret_that_is_too_short_is_an_error_and_not_no_secret():
    with pytest.raises(UntrustedError, match="has 5 bytes"):
        Disk.from_environment({"REGIONAL_INDUCTOR_CACHE_KEY": "short"})


@pytest.mark.parametrize(
    ("text", "size"),
    [("10", 10), ("1k", 1000), ("1KiB", 1024), ("2.5 MB", 2_500_000), ("4GiB", 4 << 30)],
)
def test_sizes_are_read_as_people_write_them(text, size):
    assert bytes_of(text) == size
