"""Tensors that Inductor put beside a region's code are stored with it."""

from __future__ import annotations

import pytest
import torch

from regional_inductor._torch import bundle

WRAPPER = """
constant0 = None  # what Inductor writes for a constant
def call(args):
    return (constant0,)
"""


@pytest.fixture
def compiled():
    """Makes a directly lowered region with a constant, as Inductor leaves it."""
    from torch._inductor.codecache import PyCodeCache

    def of_constant(constant):
        key, path = PyCodeCache.write(WRAPPER)
        module = PyCodeCache.load_by_key_path(key, path, attrs={"constant0": constant})

        class CompiledFxGraph:
            source_code = WRAPPER
            constants = {"constant0": constant}  # noqa: RUF012 - as Inductor's has them
            current_callable = staticmethod(module.call)

        return CompiledFxGraph()

    yield of_constant
    PyCodeCache.cache_clear()


CONSTANTS = {
    "plain": torch.arange(6.0).reshape(2, 3),
    "transposed": torch.arange(6).reshape(2, 3).t(),
    "a number": torch.tensor(2.5, dtype=torch.bfloat16),
    "empty": torch.empty(0, 3),
    "broadcast": torch.ones(1).expand(3),
    "of truth values": torch.tensor([True, False]),
    "not a number": torch.tensor([float("nan"), -0.0]),
}


@pytest.mark.parametrize("kind", CONSTANTS)
def test_a_constant_comes_back_bit_for_bit(compiled, kind):
    constant = CONSTANTS[kind]
    parts = bundle.dump(compiled(constant))
    bundle.check(parts)
    (loaded,) = bundle.load(parts)([])
    torch.testing.assert_close(loaded, constant, rtol=0, atol=0, equal_nan=True)
    assert loaded.dtype == constant.dtype
    assert torch.equal(loaded.signbit(), constant.signbit())
    assert loaded.data_ptr() != constant.data_ptr() or not constant.numel()


@pytest.mark.parametrize(
    "constant",
    [torch.ones(2).to_sparse(), torch.ones(2, requires_grad=True), torch.ones(2, device="meta")],
    ids=["sparse", "trained", "elsewhere"],
)
def test_a_constant_of_another_kind_is_not_stored(compiled, constant):
    with pytest.raises(bundle.NotBundledError, match="constant of a kind"):
        bundle.dump(compiled(constant))


def test_a_bundle_without_its_constant_is_not_whole(compiled):
    parts = bundle.dump(compiled(torch.ones(2)))
    del parts["constant constant0"]
    with pytest.raises(ValueError, match="lacks constant constant0"):
        bundle.check(parts)
