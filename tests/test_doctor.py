"""`regional-inductor doctor` and `explain` as commands: verdicts, remedies, exit codes."""

from __future__ import annotations

import json
import sys

import pytest
import torch

from regional_inductor import cli, doctor
from regional_inductor.report import Report


def checks_of(look):
    return {check.name: check for check in look()}


def pretend(monkeypatch, version):
    monkeypatch.setattr(torch, "__version__", version)


# --- doctor ---------------------------------------------------------------------------------------


def test_this_machine_is_fit(capsys):
    assert cli.main(["doctor"]) == 0
    out = capsys.readouterr().out
    for name in ("Python", "torch", "regional-inductor", "backend", "C++ compiler", "GPU", "cache"):
        assert name in out
    assert "regions can be compiled here" in out
    assert max(map(len, out.splitlines())) <= 100


def test_every_check_that_is_not_ok_has_a_remedy(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")
    pretend(monkeypatch, "2.10.1+cpu")
    checks = doctor.examine()
    assert all(check.remedy for check in checks if check.verdict != "ok")
    assert doctor.exit_code(checks) == 1


def test_an_old_torch(monkeypatch):
    pretend(monkeypatch, "2.10.1+cpu")
    check = checks_of(doctor._torch)["torch"]
    assert (check.verdict, check.remedy) == ("bad", "pip install 'torch>=2.11'")


@pytest.mark.parametrize("version", ["2.11.0", "2.13.0+cpu", "3.0.0a0+git123"])
def test_supported_versions_of_torch(monkeypatch, version):
    pretend(monkeypatch, version)
    assert checks_of(doctor._torch)["torch"].verdict == "ok"


def test_an_unsupported_python(monkeypatch):
    monkeypatch.setattr(doctor.sys, "version_info", (3, 14, 0))
    check = checks_of(doctor._python)["Python"]
    assert (check.verdict, check.remedy) == ("bad", "use Python 3.10 to 3.13")


def test_a_missing_compiler_is_bad_and_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert cli.main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert "No C++ compiler: `no-such-compiler` is not on the PATH" in out
    assert "way out: Install one" in out
    assert out.rstrip().endswith("regions can't be compiled here: C++ compiler")


def test_missing_python_headers(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor.toolchain.sysconfig, "get_path", lambda name: str(tmp_path))
    check = checks_of(doctor._compiler)["C++ compiler"]
    assert check.verdict == "bad"
    assert check.detail.startswith("No Python headers")
    assert check.remedy.startswith("Install them")


def test_a_package_that_is_on_the_path_only(monkeypatch):
    monkeypatch.setattr(doctor.importlib.metadata, "entry_points", lambda **_: ())
    check = checks_of(doctor._entry_point)["backend"]
    assert check.verdict == "note"
    assert "regional_inductor.compile" in check.remedy


def test_a_gpu_that_this_torch_is_not_built_for(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(doctor.Path, "glob", lambda self, pattern: iter(["/dev/nvidia0"]))
    check = checks_of(doctor._gpu)["GPU"]
    assert (check.verdict, "built for the CPU only" in check.detail) == ("note", True)


def test_a_cuda_build_that_sees_no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    check = checks_of(doctor._gpu)["GPU"]
    assert check.detail == "torch is built for CUDA 12.8, and sees no GPU"
    assert "nvidia-smi" in check.remedy


def pretend_gpu(monkeypatch, capability, triton):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "A GPU")
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(doctor, "_installed", lambda package: triton)


def test_a_gpu_without_triton(monkeypatch):
    pretend_gpu(monkeypatch, (9, 0), None)
    checks = checks_of(doctor._gpu)
    assert checks["GPU 0"].verdict == "ok"
    assert checks["GPU 0"].detail == "A GPU, compute capability 9.0"
    assert checks["Triton"].verdict == "bad"
    assert checks["Triton"].remedy.startswith("pip install triton")


def test_a_gpu_that_triton_does_not_know(monkeypatch):
    pretend_gpu(monkeypatch, (6, 1), "3.4.0")
    checks = checks_of(doctor._gpu)
    assert checks["GPU 0"].verdict == "bad"
    assert checks["Triton"] == doctor.Check("Triton", "ok", "3.4.0")


def test_the_cache_folder_is_where_inductor_has_it(monkeypatch, tmp_path):
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    assert doctor.cache_folder({}) == doctor.Path(default_cache_dir())
    assert doctor.cache_folder({"TORCHINDUCTOR_CACHE_DIR": "/x"}) == doctor.Path("/x")


def test_a_cache_folder_that_can_not_be_written(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "below"))
    monkeypatch.setattr(doctor.os, "access", lambda path, mode: False)
    check = checks_of(doctor._cache)["cache"]
    assert (check.verdict, check.remedy) == (
        "bad",
        "set TORCHINDUCTOR_CACHE_DIR to a folder of yours",
    )
    assert "(not there yet) can't be written" in check.detail


def test_a_cache_folder_whose_files_can_not_be_run(monkeypatch, tmp_path):
    class Status:
        f_flag = doctor.os.ST_NOEXEC

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(doctor.os, "statvfs", lambda path: Status)
    assert "mounted noexec" in checks_of(doctor._cache)["cache"].detail


def test_a_full_disk(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(
        doctor.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 5 << 20})
    )
    check = checks_of(doctor._cache)["cache"]
    assert (check.verdict, check.detail) == ("note", f"{tmp_path}, 5 MiB free")


@pytest.fixture
def store(monkeypatch, tmp_path):
    monkeypatch.setenv("REGIONAL_INDUCTOR_CACHE", "1")
    monkeypatch.setenv("REGIONAL_INDUCTOR_CACHE_DIR", str(tmp_path / "store"))
    for name in ("SIZE", "KEY", "KEY_FILE"):
        monkeypatch.delenv(f"REGIONAL_INDUCTOR_CACHE_{name}", raising=False)
    monkeypatch.delenv("REGIONAL_INDUCTOR_REMOTE", raising=False)
    return tmp_path / "store"


def test_the_store_says_where_it_is_and_what_it_holds(store):
    check = checks_of(doctor._store)["store"]
    assert check == doctor.Check(
        "store", "ok", f"{store} (not there yet), 0 regions, 0 of 4,096 MiB"
    )
    assert not store.exists()
    store.mkdir(mode=0o700)
    (store / f"{'0' * 64}.region").write_bytes(b"0" * (3 << 20))
    check = checks_of(doctor._store)["store"]
    assert check.detail == f"{store}, 1 region, 3 of 4,096 MiB"


def test_a_store_that_is_switched_off(store, monkeypatch):
    monkeypatch.setenv("REGIONAL_INDUCTOR_CACHE", "0")
    check = checks_of(doctor._store)["store"]
    assert (check.verdict, check.remedy) == ("note", "unset REGIONAL_INDUCTOR_CACHE")


def test_a_store_that_others_can_write_to(store):
    store.mkdir()
    store.chmod(0o777)
    check = checks_of(doctor._store)["store"]
    assert check.verdict == "note"
    assert check.detail.startswith(f"{store} is not used: ")
    assert check.remedy.startswith("chmod go=")


def test_a_store_where_no_folder_can_be(store, monkeypatch):
    store.write_text("a file")
    assert checks_of(doctor._store)["store"].verdict == "note"
    below = store / "below"
    monkeypatch.setenv("REGIONAL_INDUCTOR_CACHE_DIR", str(below))
    check = checks_of(doctor._store)["store"]
    assert check.detail == f"{below} is not used: {store} is no folder"
    assert check.remedy == "set REGIONAL_INDUCTOR_CACHE_DIR to a folder of yours"


def test_a_store_that_is_described_wrongly_stops_every_compile(store, monkeypatch):
    monkeypatch.setenv("REGIONAL_INDUCTOR_CACHE_SIZE", "much")
    check = checks_of(doctor._store)["store"]
    assert (check.verdict, check.remedy) == ("bad", 'bytes, or text such as "4GiB"')


def test_a_remote_store_is_asked(store, monkeypatch):
    assert checks_of(doctor._remote_store) == {}
    monkeypatch.setenv("REGIONAL_INDUCTOR_REMOTE", "redis://localhost:1/0")
    assert checks_of(doctor._remote_store)["remote store"].verdict == "bad"  # no key
    monkeypatch.setenv("REGIONAL_INDUCTOR_CACHE_KEY", "k" * 32)

    class Server:
        def get(self, name):
            raise ConnectionError("refused")

    monkeypatch.setattr("regional_inductor.remote._redis", lambda url: Server())
    check = checks_of(doctor._remote_store)["remote store"]
    assert (check.verdict, check.detail) == (
        "note",
        "the remote store failed: ConnectionError: refused",
    )
    monkeypatch.setattr(Server, "get", lambda self, name: None)
    assert checks_of(doctor._remote_store)["remote store"].verdict == "ok"


@pytest.mark.parametrize("variable", ["TORCH_COMPILE_DISABLE", "TORCHDYNAMO_DISABLE"])
def test_switches_that_turn_compiling_off(monkeypatch, variable):
    monkeypatch.setenv(variable, "1")
    check = checks_of(doctor._known_bad)["TORCH_COMPILE_DISABLE"]
    assert (check.verdict, check.remedy) == ("bad", "unset it")
    monkeypatch.setenv(variable, "0")
    assert checks_of(doctor._known_bad)["combinations"].verdict == "ok"


def test_a_check_that_breaks_is_a_note(monkeypatch):
    def _driver():
        raise RuntimeError("driver crashed")

    monkeypatch.setattr(doctor, "CHECKS", (_driver,))
    (check,) = doctor.examine()
    assert (check.name, check.verdict) == ("driver", "note")
    assert check.detail == "could not be checked: RuntimeError: driver crashed"


# --- explain --------------------------------------------------------------------------------------

SCRIPT = """
import torch
from torch import nn

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.LayerNorm(4) for _ in range(2))
    def forward(self, x, times=1):
        for layer in self.layers:
            x = layer(x) * times
        return x

def build():
    return Model(), (torch.ones(2, 4),)

def with_keywords():
    return Model(), [torch.ones(2, 4)], {"times": 3}

def alone():
    return Model()

def failing():
    raise ValueError("no weights")

def wrong_arguments():
    return Model(), (torch.ones(2, 5),)

def graph():
    return torch.fx.symbolic_trace(lambda x: x.sin())
"""


@pytest.fixture
def script(tmp_path, monkeypatch):
    path = tmp_path / "tiny_model.py"
    path.write_text(SCRIPT)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield path
    sys.modules.pop("tiny_model", None)


def test_explain_marks_prints_and_writes_json(script, tmp_path, capsys):
    code = cli.main(
        ["explain", f"{script}:build", "--mark", "layers.*", "--json", str(tmp_path / "r.json")]
    )
    out = capsys.readouterr().out
    assert code == 0
    assert out.startswith("4 regions, ")
    assert "nothing compiled: a dry run" in out
    report = Report.from_json((tmp_path / "r.json").read_text())
    assert str(report) == out.rstrip("\n")
    assert json.loads((tmp_path / "r.json").read_text())["dry_run"] is True


@pytest.mark.parametrize("factory", ["tiny_model:build", "tiny_model.py:with_keywords"])
def test_a_module_in_the_current_folder_and_keyword_arguments(script, factory, capsys):
    assert cli.main(["explain", factory]) == 0
    assert "mark modules with regional_inductor.mark" in capsys.readouterr().out


def test_a_factory_of_a_graph_needs_no_arguments(script, capsys):
    assert cli.main(["explain", f"{script}:graph", "--merge", "scope"]) == 0
    assert "graph 0: 1 node, 0 marked" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["tiny_model.py"], 2, "write SCRIPT_OR_MODULE:FACTORY, as in model.py:build"),
        (["absent.py:build"], 2, "there is no file absent.py"),
        (["no_such_module:build"], 2, "there is no module 'no_such_module'"),
        (["tiny_model.py:biuld"], 2, "tiny_model.py has no 'biuld': did you mean 'build'?"),
        (["tiny_model.py:alone"], 2, "gave Model: return (model, args) or (model, args, kwargs)"),
        (["tiny_model.py:failing"], 1, "tiny_model.py:failing raised ValueError: no weights"),
        (["tiny_model.py:wrong_arguments"], 1, "the model raised"),
        (["tiny_model.py:build", "--mark", "layer.*"], 2, "did you mean 'layers.*'"),
    ],
)
def test_what_goes_wrong_is_said_on_stderr_with_its_exit_code(
    script, arguments, code, message, capsys
):
    assert cli.main(["explain", *arguments]) == code
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.out == ""


@pytest.mark.parametrize(
    ("command", "texts"),
    [
        ("explain", ["exit codes: 0 explained", "model.py:build --mark 'layers.*.mlp'"]),
        ("doctor", ["exit codes: 0 regions can be compiled here", "regional-inductor doctor &&"]),
    ],
)
def test_help_documents_exit_codes_and_examples(command, texts, capsys):
    with pytest.raises(SystemExit) as exit_info:
        cli.main([command, "--help"])
    assert exit_info.value.code == 0
    out = capsys.readouterr().out
    assert all(text in out for text in texts)


def test_the_demos_model_is_explained(monkeypatch, capsys):
    llama = pytest.importorskip("transformers.models.llama.modeling_llama")
    monkeypatch.setattr(
        llama, "apply_rotary_pos_emb", llama.apply_rotary_pos_emb
    )  # undoes its mark
    assert cli.main(["explain", "regional_inductor.demo_worker:example"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("30 regions, 6 distinct, nothing compiled: a dry run")
    assert "model.layers.*.self_attn" in out
