"""Everything that reaches into Inductor.

Checked on torch 2.11 and 2.13: `torch._inductor.standalone_compile(aot=True)`, `AOTCompiledArtifact`,
`config.patch`, `config.save_config_portable`, `torch._functorch.config`.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import pickle
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.fx
from torch._guards import TracingContext, tracing
from torch._subclasses.fake_tensor import FakeTensorMode

from ..identity import identity_of
from . import generated


def compile_standalone(
    module: torch.fx.GraphModule,
    inputs: Sequence[Any],
    options: Mapping[str, Any],
    mode: FakeTensorMode,
) -> Any:
    """Compile one outlined region with `torch._inductor.standalone_compile`.

    The function is looked up at call time, so that tools which patch it keep working.

    Args:
        module: The region; left as it is (Inductor works on a copy).
        inputs: Fake inputs, all of `mode`.
        options: Inductor's options, checked before.
        mode: The fake tensor mode whose ShapeEnv holds the region's symbols.

    Returns:
        An `AOTCompiledArtifact`.
    """
    import torch._functorch.config as functorch_config
    import torch._inductor
    import torch._inductor.config as inductor_config

    with contextlib.ExitStack() as stack:
        stack.enter_context(tracing(TracingContext(mode)))
        stack.enter_context(inductor_config.patch(dict(options)))
        if hasattr(functorch_config, "remat_using_tags_for_fwd_loss_bwd_graph"):
            # The enclosing graph has been rematerialised; a region is no such graph.
            stack.enter_context(
                functorch_config.patch(remat_using_tags_for_fwd_loss_bwd_graph=False)
            )
        code = stack.enter_context(generated.recorded_code())
        artifact = torch._inductor.standalone_compile(
            module, list(inputs), dynamic_shapes="from_tracing_context", aot=True
        )
        generated.attach_code(artifact, code)
        return artifact


def backend_identity() -> str:
    """Changes when something patches `standalone_compile`, so that a patch is never shared past."""
    import torch._inductor

    function = torch._inductor.standalone_compile
    module = getattr(function, "__module__", "")
    return "inductor" if module == "torch._inductor" else f"inductor:{identity_of(function)}"


def artifact_bytes(artifact: Any) -> bytes | None:
    """A compiled region as bytes, or None for what isn't one of Inductor's artifacts."""
    from torch._inductor.standalone_compile import AOTCompiledArtifact

    return artifact.serialize() if isinstance(artifact, AOTCompiledArtifact) else None


def artifact_from_bytes(data: bytes) -> Callable[..., Any]:
    from torch._inductor.standalone_compile import AOTCompiledArtifact

    return AOTCompiledArtifact.deserialize(data)


def configured(options: Mapping[str, Any]) -> contextlib.AbstractContextManager[Any]:
    """Inductor's config with a region's options."""
    import torch._inductor.config as inductor_config

    patched: contextlib.AbstractContextManager[Any] = inductor_config.patch(dict(options))
    return patched


def bundles_triton() -> bool:
    """Whether Inductor puts the binaries of Triton's kernels into what it serialises."""
    from torch._inductor.triton_bundler import TritonBundler

    return bool(TritonBundler.is_enabled())


def regional_output_code(module: torch.fx.GraphModule) -> Any:
    """The stitched graph in the wrapper that AOTAutograd's cache can serialise."""
    from torch._inductor.output_code import RegionalOutputCode

    return RegionalOutputCode(module)


def portable_code(module: torch.fx.GraphModule) -> Any:
    """The stitched graph in a wrapper that AOTAutograd's results hold by a token."""
    from .stitched_code import StitchedCode

    return StitchedCode(module, module)


def autograd_cache_forced() -> bool:
    import torch._functorch.config as functorch_config

    return bool(functorch_config.force_autograd_cache)


def caches_forbidden() -> bool:
    """Whether the user wants everything compiled anew."""
    import torch._inductor.config as inductor_config

    return bool(inductor_config.force_disable_caches)


@contextlib.contextmanager
def tagged(tag: str | None) -> Iterator[None]:
    """Let Inductor's and AOTAutograd's cache keys see a text of ours; None takes it out again."""
    import torch.compiler.config as compiler_config

    old = compiler_config.cache_key_tag.split(_TAG)[0]
    new = old if tag is None else f"{old}{_TAG}{hashlib.sha256(tag.encode()).hexdigest()}"
    with compiler_config.patch(cache_key_tag=new):  # type: ignore[attr-defined]
        yield


_TAG = " regional_inductor:"


def config_key() -> str:
    """A digest of Inductor's and functorch's config as they are now.

    All of it but what can't change the code: `save_config_portable`, which is made for caches,
    leaves out whatever starts with an underscore or holds a function, and some of that does.
    """
    import torch._functorch.config as functorch_config
    import torch._inductor.config as inductor_config

    digest = hashlib.sha256()
    for config in (inductor_config, functorch_config):
        for name, value in sorted(config.get_config_copy().items()):
            if not name.startswith(_CODE_NEUTRAL) and not _is_where_we_started(config, name, value):
                digest.update(f"{name}={_portable(value)}\n".encode())
    common = sys.modules.get("torch._inductor.codegen.common")
    for table in ("custom_backend_passes", "custom_backend_codegen_configs"):
        for device, value in sorted(getattr(common, table, {}).items()):
            if value is None:  # torch's own devices, listed at the first compile
                continue
            digest.update(f"{table}.{device}={_portable(value)}\n".encode())
    return digest.hexdigest()


# What is written where, by how many workers, and which caches are asked.
_CODE_NEUTRAL = (
    "trace.",
    "compile_threads",
    "worker_",
    "quiesce_async_compile",
    "fx_graph_cache",
    "fx_graph_remote_cache",
    "autotune_local_cache",
    "autotune_remote_cache",
    "bundle_triton_into_fx_graph_cache",
    "force_disable_caches",
    "enable_autograd_cache",
    "enable_remote_autograd_cache",
    "force_autograd_cache",
    "strict_autograd_cache",
    "bundled_autograd_cache",
    "autograd_cache_",
    "bypass_autograd_cache_key",
    "force_non_lazy_backward_lowering",
    "cache_key_tag",
    "debug",
    "verbose_progress",
)


def _is_where_we_started(config: Any, name: str, value: Any) -> bool:
    """Whether an entry is the directory that the process was started in, for want of another.

    torch 2.13 resolves an empty path to Intel's CUTLASS so; no code comes from there.
    """
    if name != "xpu.cutlass_dir" or os.environ.get("TORCHINDUCTOR_CUTLASS_DIR"):
        return False
    return bool(value == config._config[name].default)


def _portable(value: Any) -> str:
    if callable(value):
        return f"{getattr(value, '__qualname__', type(value).__qualname__)}:{identity_of(value)}"
    try:
        return hashlib.sha256(pickle.dumps(value)).hexdigest()
    except Exception:  # noqa: BLE001 - anything may sit in a config; its identity is the cautious key
        return f"{type(value).__qualname__}:{identity_of(value)}"


def is_imported() -> bool:
    return "torch._inductor.config" in sys.modules


def new_fake_mode() -> FakeTensorMode:
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    return FakeTensorMode(shape_env=ShapeEnv())
