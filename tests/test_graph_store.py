"""What AOTAutograd and the pass made of a captured graph serves later processes, and nothing else does."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._functorch.aot_autograd
from support.counting import calls_of

import regional_inductor as ri
from regional_inductor import region_backends
from regional_inductor._torch import aot_results, inductor
from regional_inductor._torch.aot_results import UnkeptError
from regional_inductor.cache import memory
from regional_inductor.options import MARK_KEY

pytestmark = pytest.mark.skipif(
    not torch.__version__.startswith("2.13"), reason="kept on torch 2.13 only"
)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("REGIONAL_INDUCTOR_CACHE", "1")
    monkeypatch.setenv("REGIONAL_INDUCTOR_CACHE_DIR", str(tmp_path / "store"))
    return tmp_path / "store"


def as_another_process() -> None:
    torch._dynamo.reset()
    memory.clear()


def runs_of_aot(call: Callable[[], Any]) -> tuple[Any, int]:
    """What a call gives, and how often AOTAutograd traced in it, other than for a region alone."""
    compile_region = inductor.compile_standalone

    def uncounted(*args: Any) -> Any:
        before = len(runs)
        try:
            return compile_region(*args)
        finally:
            del runs[before:]

    with (
        calls_of(torch._functorch.aot_autograd, "create_aot_state") as runs,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr(inductor, "compile_standalone", uncounted)
        return call(), len(runs)


def started(function: Any, *args: Any, grad: bool = False, **options: Any) -> tuple[Any, int]:
    """The first call of a function in a new process, as good as; and runs of AOTAutograd in it."""
    as_another_process()
    compiled = ri.compile(function, **options)
    with contextlib.nullcontext() if grad else torch.no_grad():
        return runs_of_aot(lambda: compiled(*args))


def tail(mark: dict[str, Any] | None = None, scale: float = 2.0) -> Callable[..., Any]:
    """A function with one region, always the same lines."""

    def function(x: torch.Tensor) -> torch.Tensor:
        y = x.cos()
        with contextlib.nullcontext() if mark is None else ri.region("tail", **mark):
            y = y.sin() * scale
        return y + 1

    return function


class Block(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = torch.nn.LayerNorm(8)
        self.linear = torch.nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with ri.region("gate"):
            y = torch.nn.functional.silu(self.norm(x)) * x
        return self.linear(y).relu()


class Stack(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = torch.nn.ModuleList(Block() for _ in range(8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return x


# --- what is served -------------------------------------------------------------------------------


@pytest.mark.inductor
@pytest.mark.parametrize("capture", ["model", "blocks"])
def test_a_later_start_runs_no_aotautograd(store, capture):
    model, x = Stack(), torch.randn(4, 8)
    with torch.no_grad():
        expected = model(x)
    first, runs = started(model, x, capture=capture)
    before = ri.last_report()
    assert runs == 1
    second, runs = started(model, x, capture=capture)
    after = model.report
    assert runs == 0
    torch.testing.assert_close(second, expected)
    assert torch.equal(first, second)
    assert [r.status for r in after.regions] == ["disk"] + ["shared"] * (len(before.regions) - 1)
    for old, new in zip(before.regions, after.regions, strict=True):
        same = ("name", "key", "source", "module_path", "ops", "kernels", "inputs", "outputs")
        assert [getattr(old, n) for n in same] == [getattr(new, n) for n in same]
    assert after.graphs[0].operators == before.graphs[0].operators
    assert after.code == before.code
    assert after.environment == before.environment
    assert ri.Report.from_json(after.to_json()).to_json() == after.to_json()
    assert "gate" in str(after)


@pytest.mark.inductor
def test_the_registered_backend_is_served_too(store, under_test):
    x = torch.randn(3, 5)
    for expected_runs in (1, 0):
        as_another_process()
        with torch.no_grad():
            compiled = under_test.compile(tail({}))
            out, runs = runs_of_aot(lambda: compiled(x))  # noqa: B023 - called at once
        torch.testing.assert_close(out, tail()(x))
        assert runs == expected_runs


@pytest.mark.inductor
def test_inputs_are_written_and_views_returned_as_in_eager_mode(store):
    def function(x: torch.Tensor, kept: torch.Tensor) -> tuple[torch.Tensor, ...]:
        kept.add_(x.mean())
        with ri.region("tail"):
            y = x.sin() * kept
        return y, x.view(-1), x, kept[1:]

    for expected_runs in (1, 0):
        x, kept, other = torch.randn(3, 4), torch.zeros(3, 4), torch.zeros(3, 4)
        actual, runs = started(function, x, kept)
        expected = function(x, other)
        assert runs == expected_runs
        torch.testing.assert_close((actual, kept), (expected, other))
        assert actual[1].data_ptr() == x.data_ptr()
        assert actual[2] is x
        assert actual[3]._base is kept or actual[3].data_ptr() == kept[1:].data_ptr()


@pytest.mark.inductor
def test_profilers_and_errors_name_regions_that_were_served(store):
    x = torch.randn(3, 5)
    started(tail({}), x)
    as_another_process()
    compiled = ri.compile(tail({}))
    with torch.no_grad():
        compiled(x)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            compiled(x)
    assert ri.last_report().regions[0].status == "disk"
    assert "tail" in {event.name for event in profile.events()}


@pytest.mark.inductor
def test_what_was_served_can_be_saved_and_verified(store, tmp_path):
    x = torch.randn(3, 5)
    started(saved, x)
    as_another_process()
    compiled = ri.compile(saved)
    with torch.no_grad():
        expected, runs = runs_of_aot(lambda: compiled(x))
        assert runs == 0
        ri.save(compiled, tmp_path / "saved.ri")
        assert torch.equal(ri.load(tmp_path / "saved.ri")(x), expected)
        assert ri.verify(compiled, x).regions[0].name == "tail"


def saved(x):
    with ri.region("tail"):
        y = x.sin() * 2
    return y + 1


# --- what is told apart ---------------------------------------------------------------------------


@pytest.mark.inductor
@pytest.mark.parametrize(
    ("mark", "options"),
    [
        (None, {}),
        ({"options": {"max_fusion_size": 7}}, {}),
        ({"id": "one"}, {}),
        ({"numerics": "eager"}, {}),
        ({}, {"numerics": "eager"}),
        ({}, {"options": {"max_fusion_size": 7}}),
        ({}, {"merge": "all"}),
        ({}, {"on_error": "raise"}),
        ({}, {"collectives": "include"}),
        ({}, {"recompute": "off"}),
    ],
    ids=str,
)
def test_other_marks_and_options_are_other_graphs(store, mark, options):
    x = torch.randn(3, 5)
    assert started(tail({}), x)[1] == 1
    out, runs = started(tail(mark), x, **options)
    assert runs == 1
    torch.testing.assert_close(out, tail()(x))
    regions = ri.last_report().regions
    assert len(regions) == (mark is not None)
    if mark and "options" in mark:
        assert dict(regions[0].options) == mark["options"]
    assert started(tail({}), x)[1] == 0


@pytest.mark.inductor
def test_other_tensors_constants_and_states_are_other_graphs(store, monkeypatch):
    x = torch.randn(3, 5)
    assert started(tail({}), x)[1] == 1
    for other in (x.double(), x[:2], x.t().contiguous().t(), torch.randn(3, 6)[:, 1:]):
        out, runs = started(tail({}), other)
        assert runs == 1
        torch.testing.assert_close(out, tail()(other))
    assert started(tail({}, scale=3.0), x)[1] == 1
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        assert started(tail({}), x)[1] == 1
    finally:
        torch.set_num_threads(threads)
    with torch.autocast("cpu", torch.bfloat16):
        assert started(tail({}), x)[1] >= 1
    with torch._dynamo.config.patch(automatic_dynamic_shapes=False):
        assert started(tail({}), x)[1] == 1
    monkeypatch.setattr("regional_inductor.graph_store.package_digest", lambda: "another version")
    assert started(tail({}), x)[1] == 1
    monkeypatch.undo()


@pytest.mark.inductor
def test_training_is_never_served(store):
    x = torch.randn(3, 5)
    started(tail({}), x)
    for _ in range(2):
        trained, expected = x.clone().requires_grad_(), x.clone().requires_grad_()
        out, runs = started(tail({}), trained, grad=True)
        assert runs == 1
        out.sum().backward()
        tail()(expected).sum().backward()
        torch.testing.assert_close(trained.grad, expected.grad)
    # Without gradients the same tensor is another input, and its graph is served.
    assert [started(tail({}), trained)[1] for _ in range(2)] == [1, 0]


@pytest.mark.inductor
def test_symbolic_sizes_are_never_served(store):
    for rows in (3, 4):
        x = torch.randn(rows, 5)
        out, runs = started(tail({}), x, dynamic=True)
        assert runs >= 1  # a region of symbolic sizes takes one of its own
        torch.testing.assert_close(out, tail()(x))


# --- what is not kept -----------------------------------------------------------------------------


@pytest.mark.inductor
def test_a_region_that_fails_is_told_of_by_each_process(store, monkeypatch):
    x = torch.randn(3, 5)

    def failing(*_: Any) -> Any:
        raise ValueError("no compiler today")

    monkeypatch.setitem(region_backends.BACKENDS, "inductor", failing)
    for _ in range(2):
        with pytest.warns(ri.RegionWarning, match="no compiler today"):
            out, runs = started(tail({}), x)
        assert runs == 1
        torch.testing.assert_close(out, tail()(x))
    monkeypatch.undo()


@pytest.mark.inductor
@pytest.mark.filterwarnings("ignore::regional_inductor.RegionWarning")
def test_a_mark_with_a_misspelt_key_warns_in_each_process(store):
    def function(x: torch.Tensor) -> torch.Tensor:
        with torch.fx.traceback.annotate({MARK_KEY: {"inductor_confgs": {}}}):
            return x.sin() * 2

    for _ in range(2):
        assert started(function, torch.randn(3, 5))[1] == 1
        assert "misspelt" in {finding.kind for finding in ri.last_report().findings}


@pytest.mark.inductor
def test_nothing_is_kept_without_a_store(store, monkeypatch):
    monkeypatch.setenv("REGIONAL_INDUCTOR_CACHE", "0")
    assert [started(tail({}), torch.randn(3, 5))[1] for _ in range(2)] == [1, 1]
    assert not store.exists()


@pytest.mark.inductor
def test_nothing_is_kept_where_somebody_implements_operators_of_torch(store, monkeypatch):
    monkeypatch.setattr(torch.library, "_impls", {"aten/sin/CPU"})
    assert [started(tail({}), torch.randn(3, 5))[1] for _ in range(2)] == [1, 1]


@pytest.mark.inductor
def test_a_process_that_used_vmap_is_served(store):
    x = torch.randn(3, 5)
    torch.vmap(torch.sin)(x)  # has torch implement operators of its own for its transforms
    assert any(name.endswith("/FuncTorchBatched") for name in torch.library._impls)
    assert [started(tail({}), x)[1] for _ in range(2)] == [1, 0]


@pytest.mark.inductor
def test_nothing_is_kept_where_somebody_tells_vmap_how_to_batch_an_operator(store, monkeypatch):
    monkeypatch.setattr(torch.library, "_impls", {"aten/sin_/FuncTorchBatched"})
    assert [started(tail({}), torch.randn(3, 5))[1] for _ in range(2)] == [1, 1]


@pytest.mark.inductor
def test_regions_that_are_gone_are_compiled_anew(store):
    x = torch.randn(3, 5)
    started(tail({}), x)
    for path in store.glob("*.region"):
        if b"result" not in path.read_bytes():
            path.unlink()
    out, runs = started(tail({}), x)
    assert runs == 1
    torch.testing.assert_close(out, tail()(x))


@pytest.mark.inductor
def test_a_damaged_graph_is_compiled_anew_and_reported(store):
    x = torch.randn(3, 5)
    started(tail({}), x)
    (path,) = (path for path in store.glob("*.region") if b"result" in path.read_bytes())
    path.write_bytes(path.read_bytes()[:-9] + b"damaged!!")
    with pytest.warns(ri.RegionWarning, match="cut short or changed"):
        out, runs = started(tail({}), x)
    assert runs == 1
    torch.testing.assert_close(out, tail()(x))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert started(tail({}), x)[1] == 0


# --- which graphs can be described ----------------------------------------------------------------


def described(function: Any, *args: Any) -> list[str]:
    found: list[Any] = []

    def backend(gm: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        try:
            found.append(aot_results.lines_of(gm, inputs, MARK_KEY))
        except UnkeptError as error:
            found.append(error)
        return gm.forward

    torch._dynamo.reset()
    torch.compile(function, backend=backend, fullgraph=True)(*args)
    if isinstance(found[0], UnkeptError):
        raise found[0]
    return found[0]


def users_own(x):
    return x + 1


def allowed(x):
    return users_own(x)


def test_two_captures_of_one_function_are_described_alike():
    assert described(tail({}), torch.ones(3)) == described(tail({}), torch.ones(3))


@pytest.mark.parametrize(
    ("function", "why"),
    [
        (
            lambda x: torch.utils.checkpoint.checkpoint(torch.sin, x, use_reentrant=False),
            "get_attr|calls",
        ),
        (lambda x: torch.cond(x.sum() > 0, torch.sin, torch.cos, (x,)), "get_attr|calls"),
        (allowed, "calls"),
    ],
    ids=["checkpoint", "cond", "function of the user's"],
)
def test_what_a_text_does_not_show_is_not_described(function, why):
    torch._dynamo.allow_in_graph(users_own)
    try:
        with pytest.raises(UnkeptError, match=why):
            described(function, torch.ones(3))
    finally:
        torch._dynamo.disallow_in_graph(users_own)
