"""Machines share compiled regions through a server that nobody need trust, and go on without it."""

from __future__ import annotations

import os
import pickle
import sys

import pytest
from support import redis_server, stores
from support.under_test import AGAINST

from regional_inductor import remote
from regional_inductor.entry import Entry
from regional_inductor.errors import OptionError, RegionWarning
from regional_inductor.remote import Remote
from regional_inductor.trust import Seal

pytestmark = pytest.mark.skipif(AGAINST != "ours", reason="about this library's own surface")
SEAL = Seal(b"k" * 32)
SECRET = {"REGIONAL_INDUCTOR_CACHE_KEY": "s" * 32}


class Server(dict):
    """Keeps bytes by name, as Redis does."""

    def set(self, name, value):
        self[name] = value


def entry(key: str, body: bytes = b"code") -> Entry:
    return Entry(key, {"name": key}, {"graph": body})


# ---- what is believed -------------------------------------------------------------------------


def test_an_entry_comes_back_as_it_was_put():
    server = Server()
    Remote(server, SEAL).put(entry("a"))
    assert Remote(server, SEAL).get("a") == entry("a")
    assert Remote(server, SEAL).get("b") is None
    assert all(name.startswith("regional-inductor:") for name in server)


class Bomb:
    def __reduce__(self):
        return os._exit, (1,)


def _spoilt(server: Server, how: str) -> None:
    name, other = "regional-inductor:a", "regional-inductor:b"
    good = server[name]
    server[name] = {
        "changed": good[:-1] + bytes([good[-1] ^ 1]),
        "cut short": good[:-1],
        "another key's": server[other],
        "another secret's": Seal(b"x" * 32).close("a", entry("a").to_bytes()),
        "without a seal": entry("a").to_bytes(),
        "a malicious pickle": pickle.dumps(Bomb()),
        "empty": b"",
    }[how]


@pytest.mark.parametrize(
    "how",
    [
        "changed",
        "cut short",
        "another key's",
        "another secret's",
        "without a seal",
        "a malicious pickle",
        "empty",
    ],
)
def test_an_entry_that_fails_is_a_miss_with_one_warning(how):
    server = Server()
    shared = Remote(server, SEAL)
    shared.put(entry("a"))
    shared.put(entry("b"))
    _spoilt(server, how)
    with pytest.warns(RegionWarning, match="the region a of the remote store is not used"):
        assert shared.get("a") is None
    assert shared.get("a") is None  # a second warning would be an error
    assert shared.get("b") == entry("b")


def test_a_server_that_fails_is_left_alone_for_a_while_and_then_asked_again(monkeypatch):
    class Failing(Server):
        asked = 0

        def get(self, name):
            Failing.asked += 1
            raise ConnectionError("gone")

    now = 1000.0
    monkeypatch.setattr(remote.time, "monotonic", lambda: now)
    shared = Remote(Failing(), SEAL)
    with pytest.warns(RegionWarning, match="the remote store failed: ConnectionError: gone"):
        assert shared.get("a") is None
    assert shared.get("a") is None  # a second warning would be an error
    shared.put(entry("a"))
    assert Failing.asked == 1
    now += remote.RETRY
    assert shared.get("a") is None
    assert Failing.asked == 2


# ---- what is asked for ------------------------------------------------------------------------


def test_without_the_variable_there_is_no_server():
    assert Remote.from_environment({}) is None
    assert Remote.from_environment({remote.URL: ""}) is None


def test_a_server_without_a_secret_is_an_error():
    with pytest.raises(OptionError, match="neither REGIONAL_INDUCTOR_CACHE_KEY nor"):
        Remote.from_environment({remote.URL: "redis://localhost"})


@pytest.mark.parametrize("url", ["localhost:6379", "http://localhost", "redis://localhost:port"])
def test_what_is_no_url_of_redis_is_an_error(url):
    pytest.importorskip("redis")
    with pytest.raises(OptionError, match="REGIONAL_INDUCTOR_REMOTE="):
        Remote.from_environment({remote.URL: url, **SECRET})


def test_a_missing_client_is_an_error_that_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "redis", None)
    with pytest.raises(OptionError, match=r"regional-inductor\[fleet\]"):
        Remote.from_environment({remote.URL: "redis://localhost", **SECRET})


# ---- a real server ----------------------------------------------------------------------------

PROGRAM = """
def chain(x):
    with ri.region("first"):
        return x.sin() * 2 + 1

def main():
    return [torch.compile(chain, backend="regional_inductor")(torch.linspace(0, 1, 8))]
"""
STOPPED_IN_MID_RUN = """
import os, signal, warnings
warnings.simplefilter("always")

def first(x):
    with ri.region("first"):
        return x.sin() * 2 + 1

def second(x):
    with ri.region("second"):
        return x.cos() * 3 - 1

def third(x):
    with ri.region("third"):
        return x.tanh() * 4 - 1

def main():
    x = torch.linspace(0, 1, 8)
    results = [torch.compile(first, backend="regional_inductor")(x)]
    assert ri.last_report().regions[0].status == "fetched"
    os.kill(int(os.environ["SERVER"]), signal.SIGKILL)
    for function in (second, third):
        results.append(torch.compile(function, backend="regional_inductor")(x) - function(x))
    return results
"""


@pytest.fixture
def redis(tmp_path):
    problem = redis_server.missing()
    if problem:
        if os.environ.get("REGIONAL_INDUCTOR_REDIS") == "required":
            pytest.fail(problem)
        pytest.skip(problem)
    with redis_server.running(tmp_path) as server:
        yield server


@pytest.mark.inductor
def test_a_second_machine_fills_from_the_server_and_goes_on_when_it_stops(tmp_path, redis):
    inductors = {"TORCHINDUCTOR_FX_GRAPH_REMOTE_CACHE": "1", "TORCHINDUCTOR_REDIS_URL": redis.url}
    shared = {**SECRET, "REGIONAL_INDUCTOR_REMOTE": redis.url, **inductors}
    first = stores.run(
        PROGRAM, stores.environment(tmp_path / "1", tmp_path / "inductor-1", **shared)
    )
    assert first["statuses"] == ["compiled"], first["stderr"]
    assert len(redis.client.keys("regional-inductor:*")) == 1

    # A machine with fresh folders and no compiler on its path.
    machine = stores.environment(tmp_path / "2", tmp_path / "inductor-2", PATH="/nonexistent")
    second = stores.run(PROGRAM, {**machine, **shared})
    assert (second["statuses"], second["generated"], second["compilers"]) == (["fetched"], 0, 0)
    assert second["values"] == first["values"]
    again = stores.run(PROGRAM, {**machine, **SECRET})  # and without the server, from its own disk
    assert again["statuses"] == ["disk"]

    # Inductor's own remote cache, without any store of ours: no code is generated, kernels are compiled;
    # but by standalone_compile, which doesn't find there what it put there.
    generated = int(os.environ.get("REGIONAL_INDUCTOR_LOWERING") == "standalone")
    off = {**inductors, "REGIONAL_INDUCTOR_CACHE": "0"}
    other = stores.run(
        PROGRAM, {**stores.environment(tmp_path / "4", tmp_path / "inductor-4"), **off}
    )
    assert (other["statuses"], other["generated"]) == (["compiled"], generated)
    assert other["values"] == first["values"]

    third = stores.environment(tmp_path / "3", stores.shared_inductor_cache(), **shared)
    stopped = stores.run(STOPPED_IN_MID_RUN, {**third, "SERVER": str(redis.process.pid)})
    assert stopped["values"][0] == first["values"][0]
    assert all(abs(value) < 1e-6 for values in stopped["values"][1:] for value in values)
    said = [
        line
        for line in stopped["stderr"].splitlines()
        if "RegionWarning: the remote store failed" in line
    ]
    assert len(said) == 1, said
