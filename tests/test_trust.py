"""What is refused before anything is unpickled."""

from __future__ import annotations

import os
import pickle

import pytest

from regional_inductor.trust import (
    KEY,
    KEY_FILE,
    Seal,
    UntrustedError,
    private_folder,
    read_private,
)

SEAL = Seal(b"k" * 32)
SEALED = SEAL.close("region-a", b"the body")


def private_file(path, body=b"x" * 32):
    path.write_bytes(body)
    path.chmod(0o600)
    return path


# --- seals -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("body", [b"", b"\x00", b"the body" * 1000])
def test_a_sealed_body_comes_back(body):
    assert SEAL.open("name", SEAL.close("name", body)) == body


def test_no_changed_bit_goes_unseen():
    for place in range(len(SEALED)):
        changed = bytearray(SEALED)
        changed[place] ^= 1
        with pytest.raises(UntrustedError):
            SEAL.open("region-a", bytes(changed))


def test_no_truncated_or_longer_entry_is_opened():
    for length in range(len(SEALED)):
        with pytest.raises(UntrustedError):
            SEAL.open("region-a", SEALED[:length])
    with pytest.raises(UntrustedError):
        SEAL.open("region-a", SEALED + b"\x00")


def test_a_body_replayed_under_another_name_is_refused():
    with pytest.raises(UntrustedError, match="the entry 'region-b'"):
        SEAL.open("region-b", SEALED)


def test_name_and_body_cannot_trade_bytes():
    start = len(SEALED) - len(b"the body")
    digest = SEAL.close("ab", b"c")[:start]
    with pytest.raises(UntrustedError):
        SEAL.open("a", digest + b"bc")


def test_another_key_s_seal_is_refused():
    with pytest.raises(UntrustedError, match="check that all writers use one key"):
        Seal(b"l" * 32).open("region-a", SEALED)


def test_a_malicious_pickle_without_a_seal_never_reaches_the_unpickler(tmp_path):
    class Malicious:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    with pytest.raises(UntrustedError):
        pickle.loads(SEAL.open("region-a", pickle.dumps(Malicious())))
    assert not (tmp_path / "ran").exists()


# --- keys ------------------------------------------------------------------------------------------


def test_a_short_key_is_refused_with_a_way_to_make_one():
    with pytest.raises(
        UntrustedError, match=r"has 31 bytes, at least 32(.|\n)*openssl rand -hex 32"
    ):
        Seal(b"k" * 31)


def test_the_key_comes_from_a_variable_or_from_a_file_that_one_names(tmp_path):
    file = private_file(tmp_path / "key", b"k" * 32 + b"\n")
    for variables in ({KEY: "k" * 32}, {KEY_FILE: str(file)}):
        assert Seal.from_environment(variables).open("region-a", SEALED) == b"the body"
    assert Seal.from_environment({}) is None


def test_an_empty_key_is_an_error_and_not_no_key():
    with pytest.raises(UntrustedError, match="has 0 bytes"):
        Seal.from_environment({KEY: ""})


def test_two_sources_of_a_key_are_an_error(tmp_path):
    with pytest.raises(UntrustedError, match="both"):
        Seal.from_environment({KEY: "k" * 32, KEY_FILE: str(tmp_path)})


def test_a_key_file_that_others_can_read_is_refused(tmp_path):
    file = private_file(tmp_path / "key")
    file.chmod(0o640)
    with pytest.raises(UntrustedError, match=r"open to other users \(mode 0640\)"):
        Seal.from_environment({KEY_FILE: str(file)})


# --- files and folders -----------------------------------------------------------------------------


def test_a_new_folder_is_private_and_found_again(tmp_path):
    folder = private_folder(tmp_path / "deep" / "cache")
    assert folder.stat().st_mode & 0o777 == 0o700
    assert private_folder(folder) == folder


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o755, 0o701])
def test_a_folder_open_to_others_is_refused(tmp_path, mode):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache").chmod(mode)
    with pytest.raises(UntrustedError, match="chmod go="):
        private_folder(tmp_path / "cache")


def test_a_symbolic_link_is_followed_neither_to_a_folder_nor_to_a_file(tmp_path):
    private_folder(tmp_path / "real")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(UntrustedError, match="symbolic link"):
        private_folder(tmp_path / "link")
    private_file(tmp_path / "file")
    (tmp_path / "other").symlink_to(tmp_path / "file")
    with pytest.raises(UntrustedError, match="symbolic link"):
        read_private(tmp_path / "other")


def test_what_belongs_to_another_user_is_refused(tmp_path, monkeypatch):
    folder, file = private_folder(tmp_path / "cache"), private_file(tmp_path / "file")
    owner = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    for check, path in ((private_folder, folder), (read_private, file)):
        with pytest.raises(UntrustedError, match=f"belongs to user {owner}"):
            check(path)


@pytest.mark.timeout(20)
def test_a_pipe_or_a_folder_in_a_file_s_place_is_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe", 0o600)
    (tmp_path / "folder").mkdir(0o700)
    for name in ("pipe", "folder"):
        with pytest.raises(UntrustedError):
            read_private(tmp_path / name)


def test_a_private_file_is_read_and_a_missing_one_is_missing(tmp_path):
    assert read_private(private_file(tmp_path / "file", b"body")) == b"body"
    with pytest.raises(FileNotFoundError):
        read_private(tmp_path / "none")
