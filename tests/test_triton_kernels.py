"""Kernels of Triton in stored regions: their files leave one cache folder and are found in another.

Neither Triton nor a GPU is needed: the kernels here are stand-ins with what Inductor's have.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import pickle
import sys
import threading
import types

import pytest

from regional_inductor._torch import bundle, triton_kernels

HASHES = ("ab" * 32, "cd" * 32)

# What Inductor hands to `async_compile.triton`: Python that defines a kernel. This one counts how often it is made
# ready, and reads the choice of an earlier process.
SOURCE = """
import os, pathlib
from torch._inductor.runtime.autotune_cache import AutotuneCache

class Result:
    def __init__(self, digest):
        self.kernel = type("Compiled", (), {"hash": digest})()

class CachingAutotuner:
    def __init__(self, hashes):
        self.compile_results = [Result(digest) for digest in hashes]
        self.launchers = []
        self.inductor_meta = {"kernel_name": "triton_fused_add"}
        self.triton_meta = {"device": 0}
        self.autotune_cache_info = None
        cache = AutotuneCache.create({"autotune_local_cache": True}, __file__, "configs")
        self.save_cache_hook = cache.save
        self.chosen = cache._read()

    def set_compile_info(self, *args):
        pass

    def precompile(self, **kwargs):
        self.launchers = list(self.compile_results)

    def _precompile_config(self, config):
        return Result("ef" * 32)

    def run(self, x):
        return x + 1

triton_add = CachingAutotuner(HASHES)
""".replace("HASHES", repr(HASHES))

WRAPPER = f"""
\"\"\"Compile-time auto-tuning block: triton_fused_add = async_compile.triton('triton_add', ...)\"\"\"
from torch._inductor.async_compile import AsyncCompile

async_compile = AsyncCompile()
triton_fused_add = async_compile.triton('triton_add', '''{SOURCE}''', device_str='cuda')
async_compile.wait(globals())
del async_compile

def call(args):
    x, = args
    args.clear()
    return (triton_fused_add.run(x),)
"""


class Config:
    """A configuration, as far as Inductor writes it down."""

    kwargs = {"XBLOCK": 64}  # noqa: RUF012 - as Triton's has them
    num_warps = 4
    num_stages = 1


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Gives a machine with folders of its own, of which each call makes another."""
    from torch._inductor.codecache import PyCodeCache

    def of_name(name):
        monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / name / "inductor"))
        monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / name / "triton"))
        PyCodeCache.cache_clear()
        return tmp_path / name / "triton"

    yield of_name
    PyCodeCache.cache_clear()


def path_key(digest):
    from torch._inductor.runtime.runtime_utils import triton_hash_to_path_key

    return triton_hash_to_path_key(digest)


def fill(cache, digests=HASHES):
    """A folder for each kernel, as Triton writes it."""
    for digest in digests:
        folder = cache / path_key(digest)
        folder.mkdir(parents=True)
        (folder / "add.cubin").write_bytes(b"\x7fELF" + digest.encode())
        (folder / "add.json").write_text(json.dumps({"hash": digest}))
        children = {name: str(folder / name) for name in ("add.cubin", "add.json")}
        (folder / "__grp__add.json").write_text(json.dumps({"child_paths": children}))


@pytest.fixture
def compiled(machine, monkeypatch):
    """A region as Inductor leaves it, and the folder of Triton's cache that its kernels are in."""
    import torch._inductor.config as inductor_config
    from torch._inductor.codecache import PyCodeCache

    cache = machine("first")
    fill(cache)
    with inductor_config.patch(compile_threads=1):
        module = PyCodeCache.load(WRAPPER)

    class CompiledFxGraph:
        source_code = WRAPPER
        current_callable = staticmethod(module.call)

    return CompiledFxGraph()


def test_a_region_finds_its_kernels_on_a_machine_with_empty_caches(compiled, machine, tmp_path):
    parts = bundle.dump(compiled)
    bundle.check(parts)
    assert not [name for name, data in parts.items() if str(tmp_path).encode() in data]
    cache = machine("second")
    loaded = bundle.load(parts)
    assert loaded([1]) == (2,)
    for digest in HASHES:
        folder = cache / path_key(digest)
        assert (folder / "add.cubin").read_bytes() == b"\x7fELF" + digest.encode()
        children = json.loads((folder / "__grp__add.json").read_text())["child_paths"]
        assert children == {name: str(folder / name) for name in ("add.cubin", "add.json")}


def test_inputs_that_must_be_aligned_are_copied_again_after_loading(compiled, machine):
    from torch._inductor.utils import align_inputs_from_check_idxs
    from torch.utils._ordered_set import OrderedSet

    class Aligned(type(compiled)):
        pass

    Aligned.__name__ = "CompiledFxGraph"
    aligned = Aligned()
    aligned.current_callable = align_inputs_from_check_idxs(
        compiled.current_callable, [0], OrderedSet()
    )
    import torch

    parts = bundle.dump(aligned)
    machine("second")
    loaded = bundle.load(parts)
    whole = torch.zeros(5)
    arguments = [whole[1:]]
    assert whole[1:].data_ptr() % 16
    seen = []
    kernel = next(iter(loaded.triton.values()))
    kernel.run = lambda x: seen.append(x.data_ptr() % 16)
    loaded(arguments)
    assert seen == [0]


def test_a_choice_made_when_a_kernel_first_ran_goes_along(compiled, machine):
    parts = bundle.dump(compiled)
    updated = []
    bundle.when_chosen(compiled, lambda: updated.append(bundle.with_choices(compiled, parts)))
    kernel = compiled.current_callable.__globals__["triton_fused_add"]
    assert kernel.chosen is None
    kernel.save_cache_hook(Config(), 10)
    (later,) = updated
    bundle.check(later)
    machine("second")
    loaded = next(iter(bundle.load(later).triton.values()))
    assert loaded.chosen["XBLOCK"] == 64
    machine("third")
    assert next(iter(bundle.load(parts).triton.values())).chosen is None


def test_a_configuration_found_by_descent_takes_its_binary_along(compiled, machine, tmp_path):
    parts = bundle.dump(compiled)
    updated = []
    bundle.when_chosen(compiled, lambda: updated.append(bundle.with_choices(compiled, parts)))
    fill(tmp_path / "first" / "triton", ["ef" * 32])
    kernel = compiled.current_callable.__globals__["triton_fused_add"]
    kernel.save_cache_hook(Config(), 10, found_by_coordesc=True)
    cache = machine("second")
    bundle.load(updated[0])
    assert (cache / path_key("ef" * 32) / "add.cubin").exists()


def test_a_choice_that_cannot_be_stored_disturbs_nobody(compiled):
    def failing():
        raise OSError("no space left")

    bundle.when_chosen(compiled, failing)
    compiled.current_callable.__globals__["triton_fused_add"].save_cache_hook(Config(), 10)


def test_a_kernel_that_is_listened_to_is_pickled_as_if_it_were_not(compiled):
    bundle.when_chosen(compiled, lambda: None)
    kernel = compiled.current_callable.__globals__["triton_fused_add"]
    assert pickle.loads(pickle.dumps(kernel.save_cache_hook)).__func__.__name__ == "save"


def test_a_kernel_whose_files_are_gone_is_not_stored(compiled, tmp_path):
    for path in (tmp_path / "first" / "triton" / path_key(HASHES[1])).iterdir():
        path.unlink()
    with pytest.raises(bundle.NotBundledError, match="Triton's cache lacks triton_fused_add"):
        bundle.dump(compiled)


@pytest.mark.parametrize(
    ("attribute", "value", "message"),
    [
        ("__class__", type("MultiKernelCall", (), {}), "MultiKernelCall among its kernels"),
        ("triton_meta", {"device": "two"}, "not of one kind and device"),
    ],
)
def test_a_kernel_of_another_kind_is_not_stored(compiled, attribute, value, message):
    kernel = compiled.current_callable.__globals__["triton_fused_add"]
    setattr(kernel, attribute, value)
    with pytest.raises(bundle.NotBundledError, match=message):
        bundle.dump(compiled)


def test_a_folder_that_triton_has_filled_itself_stays_as_it_is(compiled, machine):
    parts = bundle.dump(compiled)
    cache = machine("second")
    mine = cache / path_key(HASHES[0])
    mine.mkdir(parents=True)
    (mine / "add.cubin").write_bytes(b"mine")
    (cache / path_key(HASHES[1])).mkdir()  # Triton makes an empty one when it looks
    bundle.load(parts)
    assert [path.name for path in mine.iterdir()] == ["add.cubin"]
    assert (mine / "add.cubin").read_bytes() == b"mine"
    assert (cache / path_key(HASHES[1]) / "add.cubin").exists()


def test_a_changed_file_is_not_put_back(compiled, machine):
    parts = bundle.dump(compiled)
    name = next(name for name in parts if name.endswith("add.cubin"))
    changed = {**parts, name: b"other"}
    with pytest.raises(ValueError, match="not the one that the bundle names"):
        bundle.check(changed)
    machine("second")
    with pytest.raises(ValueError, match="not the one that the bundle names"):
        bundle.load(changed)


@pytest.mark.parametrize(
    "path", ["../../x", "AAAAAAAAAAAAAAAAAAAA/../x", "AAAAAAAAAAAAAAAAAAAA/.."]
)
def test_a_name_that_leads_elsewhere_is_refused(machine, tmp_path, path):
    machine("first")
    with pytest.raises(ValueError, match="no file of Triton's cache"):
        triton_kernels.put_back({path: b""}, 0)
    assert not (tmp_path / "first").exists()


def test_a_choice_file_of_another_kind_is_refused(machine):
    machine("first")
    with pytest.raises(ValueError, match="no file of Inductor's choices"):
        triton_kernels.put_choice_back("pass", {"x.py": "import os"})


# --- one binary, two keys --------------------------------------------------------------------------


@pytest.fixture
def triton(monkeypatch, tmp_path):
    """What Triton's key is made of: source, ptxas as the process asked for it first, options, environment."""

    def key(source, backend, options, env_vars):
        return f"{source}-{backend.hash()}-{options}-{sorted(env_vars.items())}"

    def version(arch):
        return "ptxas of torch" if "TRITON_PTXAS_PATH" in os.environ else "ptxas of triton"

    compiler = types.SimpleNamespace(get_cache_key=key)
    asked_first = functools.lru_cache(version)
    nvidia = types.SimpleNamespace(get_ptxas_version=asked_first)
    for name, module in {
        "triton": types.SimpleNamespace(
            knobs=types.SimpleNamespace(cache=types.SimpleNamespace(dir=str(tmp_path / "triton")))
        ),
        "triton.compiler": types.SimpleNamespace(compiler=compiler),
        "triton.backends.nvidia": types.SimpleNamespace(
            compiler=types.SimpleNamespace(**vars(nvidia))
        ),
    }.items():
        monkeypatch.setitem(sys.modules, name, module)
    triton_kernels._ptxas_versions.cache_clear()
    yield types.SimpleNamespace(
        compiler=compiler,
        backend=types.SimpleNamespace(
            target=types.SimpleNamespace(arch=90), hash=lambda: f"{asked_first(90)}-90"
        ),
        folder=tmp_path / "triton",
    )
    triton_kernels._ptxas_versions.cache_clear()


def cached_under(triton, key):
    from torch._inductor.runtime.runtime_utils import triton_hash_to_path_key

    digest = hashlib.sha256(key.encode()).hexdigest()
    (triton.folder / triton_hash_to_path_key(digest)).mkdir(parents=True)


@pytest.mark.parametrize("asked", ["ptxas of triton", "ptxas of torch"])
def test_a_binary_is_found_whichever_ptxas_the_process_that_made_it_had_asked(
    triton, asked, monkeypatch
):
    monkeypatch.setenv("TRITON_PTXAS_PATH", "/torch/bin/ptxas")
    assert triton.backend.hash() == "ptxas of torch-90"
    cached_under(triton, f"source-{asked}-90-options-[]")
    usual = triton.compiler.get_cache_key
    with triton_kernels._whatever_ptxas_was_asked_first():
        key = triton.compiler.get_cache_key("source", triton.backend, "options", env_vars={})
        other = triton.compiler.get_cache_key("another", triton.backend, "options", env_vars={})
    assert key == f"source-{asked}-90-options-[]"
    assert other == "another-ptxas of torch-90-options-[]"  # which nobody has compiled
    assert triton.compiler.get_cache_key is usual
    assert os.environ["TRITON_PTXAS_PATH"] == "/torch/bin/ptxas"


def test_two_threads_that_load_leave_triton_s_own_function_behind(triton):
    usual = triton.compiler.get_cache_key
    inside, go_on = threading.Event(), threading.Event()

    def first():
        with triton_kernels._whatever_ptxas_was_asked_first():
            inside.set()
            go_on.wait(30)

    def second():
        with triton_kernels._whatever_ptxas_was_asked_first():
            pass

    threads = [threading.Thread(target=first), threading.Thread(target=second)]
    threads[0].start()
    assert inside.wait(30)
    threads[1].start()
    threads[1].join(0.2)  # by then it waits
    go_on.set()
    for thread in threads:
        thread.join(30)
    assert triton.compiler.get_cache_key is usual
