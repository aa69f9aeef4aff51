"""Shared by all tests: one Inductor cache folder a run, clean state around each test."""

from __future__ import annotations

import os
import random
import shutil
import sys
import tempfile
from importlib.metadata import entry_points
from pathlib import Path

# Inductor reads the folder when it is imported, and xdist's workers inherit the environment: so
# this comes before torch. Compiled kernels are then shared by all tests of one run.
_CACHE_FOLDER = None
if "TORCHINDUCTOR_CACHE_DIR" not in os.environ:
    _CACHE_FOLDER = tempfile.mkdtemp(prefix="regional-inductor-tests-")
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = _CACHE_FOLDER
# Nor does any test see the user's compiled regions, or those of another test: what a test stores, it
# stores in a folder of its own (tests/support/stores.py).
os.environ["REGIONAL_INDUCTOR_CACHE"] = "0"
# Two cores: a pool of compile workers costs more than it gives.
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")

sys.path.insert(0, str(Path(__file__).parent))  # makes `support` importable under any import mode

import pytest  # noqa: E402
import torch  # noqa: E402
from support.under_test import AGAINST, UnderTest  # noqa: E402


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "inductor: compiles with Inductor, needs a C++ compiler")
    config.addinivalue_line(
        "markers", "both_lowerings: with and without the second AOTAutograd of standalone_compile"
    )
    config.addinivalue_line("markers", "gpu: needs a CUDA device (tests/gpu)")
    # torch 2.13 warns about its own use of torch.jit while it imports parts of itself, whichever
    # test happens to be the first to need them.
    own = r"ignore:.torch\.jit\.:DeprecationWarning"
    config.addinivalue_line("filterwarnings", own)
    if AGAINST != "ours":
        config.addinivalue_line("filterwarnings", "default")  # those are not ours to answer for


def _installed_for_this_run(folder: Path) -> None:
    """Without installation (PYTHONPATH=src) torch finds the backend neither here nor in the processes of tests.

    So what an installation would leave behind is put where both look.
    """
    installed = folder / "regional_inductor-0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: regional-inductor\nVersion: 0\n"
    )
    (installed / "entry_points.txt").write_text(
        "[torch_dynamo_backends]\nregional_inductor = regional_inductor.backend:dynamo_backend\n"
    )
    sys.path.append(str(folder))
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (before, str(folder))))


_INSTALLATION = None
if not entry_points(group="torch_dynamo_backends", name="regional_inductor"):
    _INSTALLATION = tempfile.mkdtemp(prefix="regional-inductor-installed-")
    _installed_for_this_run(Path(_INSTALLATION))


def pytest_unconfigure(config: pytest.Config) -> None:
    is_worker = hasattr(config, "workerinput")
    if _CACHE_FOLDER is not None and not is_worker:
        shutil.rmtree(_CACHE_FOLDER, ignore_errors=True)
    if _INSTALLATION is not None:
        shutil.rmtree(_INSTALLATION, ignore_errors=True)


def pytest_report_header() -> str:
    return f"regional_inductor tests run against: {AGAINST}"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if metafunc.definition.get_closest_marker("both_lowerings"):
        metafunc.parametrize("lowering", ("auto", "standalone"), indirect=True)


@pytest.fixture(autouse=True)
def lowering(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """How regions get to Inductor in this test."""
    if hasattr(request, "param"):
        monkeypatch.setenv("REGIONAL_INDUCTOR_LOWERING", request.param)


@pytest.fixture(autouse=True)
def clean_state():
    """Each test starts with an empty Dynamo cache, the same seeds and no thread-local leftovers."""
    torch._dynamo.reset()
    _forget_graph_breaks()
    random.seed(0)
    torch.manual_seed(0)
    yield
    torch._dynamo.reset()


def _forget_graph_breaks():
    """Warnings of breaks inside regions come with the next compile; not with the next test's."""
    seen = sys.modules.get("regional_inductor._torch.dynamo")
    if seen is not None:
        seen.lost_regions()


@pytest.fixture
def under_test(request: pytest.FixtureRequest) -> UnderTest:
    """The pass and the backend under test; marked `inductor`, its regions are truly compiled."""
    inductor = request.node.get_closest_marker("inductor") is not None
    return UnderTest(against=AGAINST, region_backend="inductor" if inductor else "eager")


@pytest.fixture
def ri():
    """The package itself, for tests of what PyTorch's pass has no counterpart for."""
    if AGAINST != "ours":
        pytest.skip("about this library's own surface")
    return pytest.importorskip("regional_inductor")
