"""Libraries that were not written to their end are found, and made anew."""

from __future__ import annotations

import os
import subprocess
from types import SimpleNamespace

import pytest
import torch

pytestmark = pytest.mark.inductor


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """The bytes of a library, as the compiler writes it."""
    path = tmp_path_factory.mktemp("library") / "kernel.so"
    command = [os.environ.get("CXX", "g++"), "-shared", "-fPIC", "-x", "c++", "-", "-o", str(path)]
    subprocess.run(command, input=b'extern "C" int kernel() { return 3; }', check=True)
    return path.read_bytes()


class Builder:
    """Stands for Inductor's, which makes a file that is missing."""

    def __init__(self, path, content):
        self.path, self.content, self.builds = path, content, 0

    def get_target_file_path(self):
        return str(self.path)

    def build(self):
        self.builds += 1
        self.path.write_bytes(self.content() if callable(self.content) else self.content)


@pytest.fixture
def make(tmp_path):
    """Asks Inductor for a library, as a kernel does."""
    from torch._inductor import codecache

    from regional_inductor._torch.whole_libraries import mending

    def ask(builder):
        with mending():
            codecache._worker_compile_cpp(str(tmp_path / "lock"), (builder,))

    return ask


def test_the_beginning_of_a_library_is_no_library(library, tmp_path):
    from regional_inductor._torch.whole_libraries import is_whole

    path = tmp_path / "kernel.so"
    path.write_bytes(library)
    assert is_whole(str(path))
    for size in [0, 1, 63, 64, 1000, *range(2000, len(library), 997), len(library) - 1]:
        path.write_bytes(library[:size])
        assert not is_whole(str(path)), size
    path.write_bytes(b"x" * len(library))
    assert not is_whole(str(path))
    assert not is_whole(str(tmp_path / "missing.so"))


def test_the_beginning_of_a_library_without_a_table_of_sections_is_no_library(library, tmp_path):
    """Linkers put that table last, and `strip` can take it away; what is loaded are the segments."""
    from regional_inductor._torch.whole_libraries import is_whole

    stripped = bytearray(library)
    stripped[40:48] = bytes(8)  # where the table begins
    stripped[60:62] = bytes(2)  # how many entries it has
    path = tmp_path / "kernel.so"
    path.write_bytes(stripped)
    assert is_whole(str(path))
    path.write_bytes(stripped[:5000])
    assert not is_whole(str(path))


def test_a_half_written_library_is_made_anew_and_a_whole_one_is_left(make, library, tmp_path):
    builder = Builder(tmp_path / "kernel.so", library)
    builder.path.write_bytes(library[: len(library) // 2])
    make(builder)
    make(builder)
    assert builder.path.read_bytes() == library
    assert builder.builds == 1


def test_a_compiler_that_leaves_half_a_library_is_told_of_and_leaves_none(make, library, tmp_path):
    builder = Builder(tmp_path / "kernel.so", library[:1000])
    with pytest.raises(OSError, match="left half a library"):
        make(builder)
    assert not builder.path.exists()


def test_a_damaged_precompiled_header_is_removed_and_done_without(make, library, tmp_path):
    from torch._inductor.exc import CppCompileError

    header = tmp_path / "prefix.h"
    compiled = tmp_path / "prefix.h.gch"
    compiled.write_bytes(b"gpch")

    def content():
        if compiled.exists():
            command = ["g++", "-include", str(header), "kernel.cpp"]
            raise CppCompileError(command, "fatal error: cannot read PCH file")
        return library

    builder = Builder(tmp_path / "kernel.so", content)
    make(builder)
    assert builder.path.read_bytes() == library
    assert not compiled.exists()


def test_a_damaged_library_of_what_the_processor_can_do_is_no_answer(monkeypatch, tmp_path):
    """Without an answer Inductor has no vector instructions, and the code in its cache is written for them."""
    from torch._inductor.cpu_vec_isa import VecISA

    from regional_inductor._torch.whole_libraries import is_whole, mending

    class Plain(VecISA):
        _bit_width, _macro, _arch_flags, _dtype_nelements = 0, (), "", {}

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    code = 'extern "C" int kernel() { return 3; }'
    assert Plain().check_build(code)
    (library,) = tmp_path.rglob("*.so")
    library.write_bytes(library.read_bytes()[:3000])
    assert not Plain().check_build(code)
    with mending():
        assert Plain().check_build(code)
    assert is_whole(str(library))
    with mending():
        assert not Plain().check_build("no code")


@pytest.mark.parametrize("damaged", [b"", b"def call(args):\n    ret", b"\xff\xfe\x00"])
def test_a_damaged_python_module_is_written_anew_and_a_whole_one_is_left(
    monkeypatch, tmp_path, damaged
):
    """An empty one was imported, and had no function to call."""
    from torch._inductor.codecache import PyCodeCache
    from torch._inductor.output_code import CompiledFxGraph

    from regional_inductor._torch.whole_libraries import mending

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    code = "\n\ndef call(args):\n    return args\n"
    key, path = PyCodeCache.write(code)
    graph = SimpleNamespace(cache_key=key, source_code=code)
    for write in (lambda: PyCodeCache.write(code), lambda: CompiledFxGraph.write_to_disk(graph)):
        with open(path, "wb") as file:
            file.write(damaged)
        with mending():
            write()
        with open(path) as file:
            assert file.read() == code
        before = os.stat(path).st_ino
        with mending():
            write()
        assert os.stat(path).st_ino == before
    assert PyCodeCache.load_by_key_path(key, path).call([3]) == [3]


def test_on_a_torch_that_nobody_has_looked_at_nothing_is_replaced(monkeypatch):
    from torch._inductor import codecache

    from regional_inductor._torch.whole_libraries import mending

    before = codecache._worker_compile_cpp
    monkeypatch.setattr(torch, "__version__", "2.99.0")
    with mending():
        assert codecache._worker_compile_cpp is before


def test_inductor_is_left_as_it_was():
    from torch._inductor import codecache, cpp_builder, cpu_vec_isa

    from regional_inductor._torch.whole_libraries import mending

    def places():
        builder = cpp_builder.CppBuilder.get_target_file_path
        return codecache._worker_compile_cpp, cpu_vec_isa.VecISA.check_build, builder

    before = places()
    with mending(), mending():
        assert not set(places()) & set(before)
    assert places() == before
