"""Reports: their tables, their JSON, what changed between two of them, what regions cost."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

from regional_inductor import report_json
from regional_inductor._torch import generated
from regional_inductor.costs import costs_of
from regional_inductor.regions import Finding
from regional_inductor.report import (
    GraphReport,
    KernelReport,
    OperatorReport,
    RegionReport,
    Report,
    ValueReport,
)

SCHEMA = Path(__file__).parent.parent / "docs" / "report-schema.md"


@pytest.fixture
def explain(ri):
    def run(model_or_fn, *args, **kwargs):
        kwargs.setdefault("region_backend", "eager")
        return ri.explain(model_or_fn, *args, **kwargs)

    return run


def region(name="norm", **changes):
    fields = {
        "name": name,
        "direction": "forward",
        "source": "/home/me/model.py:7",
        "module_path": "layers.0.norm",
        "nodes": 3,
        "ops": ("aten.mul.Tensor", "aten.sum.dim_IntList", "aten.add.Tensor"),
        "options": {},
        "key": "k1",
        "shared_by": 1,
        "status": "compiled",
        "reason": "",
        "seconds": 0.0,
    }
    return RegionReport(**{**fields, **changes})


def report(*regions, findings=(), **fields):
    nodes = sum(r.nodes for r in regions) + 5
    graph = GraphReport(
        "", nodes, regions, {"collect": 0.01}, direction="forward", marked=nodes - 5
    )
    return Report([graph], list(findings), **fields)


def mlp(ri, width=8):
    model = nn.Sequential(nn.Linear(width, width), nn.LayerNorm(width))
    ri.mark(model, "1", name="norm")
    return model


# --- the table ------------------------------------------------------------------------------------


def test_an_empty_report_prints_its_headline():
    assert str(Report()) == "0 regions, 0 distinct, 0 compiled now"


def test_places_with_one_key_are_one_row_with_layer_numbers_left_out():
    text = str(
        report(
            region(seconds=1.5),
            region(module_path="layers.1.norm", status="shared"),
            region(module_path="final.norm", status="shared"),
        )
    )
    assert text.splitlines()[0] == "3 regions, 1 distinct, 1 compiled now"
    row, more = (re.sub(r" +", " ", line).strip() for line in text.splitlines()[-2:])
    assert (row, more) == ("norm forward layers.*.norm 3 3 compiled 1.50", "final.norm")
    assert "graph 0 forward: 14 nodes, 9 marked, 3 regions, 5 run eagerly" in text


def test_columns_without_content_are_left_out_and_options_shown_where_they_differ():
    plain = str(report(region()))
    assert "options" not in plain
    assert "flops" not in plain
    options = {"max_autotune": True, "epilogue_fusion": True}
    changed = region(options=options, changed_options={"max_autotune": True}, flops=2_500_000)
    text = str(report(changed))
    assert "max_autotune=True" in text
    assert "epilogue_fusion" not in text
    assert "2.5M" in text


def test_a_dry_run_that_leaves_nothing_eager_has_no_column_to_say_so():
    planned = region(status="planned")
    assert "status" not in str(report(planned, dry_run=True))
    eager = region(status="eager", key="", reason="views")
    text = str(report(planned, eager, dry_run=True))
    assert "to compile" in text
    assert "eager: views" in text


def test_what_the_bytes_mean_is_said_once():
    text = str(report(region(bytes_eager=5000, bytes_read=1000, bytes_written=24)))
    assert "5k>1.02k" in text
    assert text.splitlines()[-1] == (
        "bytes: read and written by its operators one by one > by one kernel for all of them"
    )
    assert "bytes" not in str(report(region()))


def test_regions_left_eager_say_why():
    text = str(report(region(key="", status="eager", reason="it only makes views")))
    assert text.startswith("1 region, 0 distinct, 0 compiled now, 1 left eager")
    assert "eager: it only makes views" in re.sub(r"\s+", " ", text)


def test_nothing_is_wider_than_100_columns():
    long = "a_rather_long_name_of_a_module." * 6
    wide = region(
        "name_of_a_region_that_goes_on_and_on_and_on_and_on",
        module_path=long + "0",
        changed_options={f"an.option.number.{i}": True for i in range(9)},
        reason="r" * 150,
        status="eager",
        bytes_eager=10**9,
        bytes_read=10**8,
        bytes_written=10**8,
        flops=10**12,
        seconds=123.0,
    )
    finding = Finding("broken", "m" * 230, "/" + "folder/" * 40 + "model.py:1", "r " * 120, "name")
    text = str(report(wide, region(), findings=[finding]))
    assert max(map(len, text.splitlines())) <= 100
    assert "\x1b" not in text
    assert "m" * 60 in text


def test_long_names_break_after_their_parts():
    long = region(
        "rotary_position_embedding_of_the_long_attention",
        module_path="decoder_layers_of_the_model.0.input_layernorm_before_attention",
        changed_options={"epilogue_fusion_with_a_long_name": False},
        bytes_eager=10**9,
        bytes_read=10**8,
        bytes_written=10**8,
        flops=10**12,
    )
    words = set(re.findall(r"[^\W_]+", str(report(long))))
    for name in (long.name, long.module_path, *long.changed_options):
        assert set(re.findall(r"[^\W_]+", name)) <= words


def test_markup_in_names_is_text():
    assert "[bold]x[/bold]" in str(report(region("[bold]x[/bold]")))


def test_findings_show_line_and_way_out():
    finding = Finding("cheap", "one op", "/somewhere/model.py:3", "mark more", "add")
    lines = [line.strip() for line in str(report(region(), findings=[finding])).splitlines()]
    assert lines[-4:] == [
        "findings",
        "cheap  add: one op",
        "at /somewhere/model.py:3",
        "way out: mark more",
    ]


def test_rich_prints_it_too():
    from rich.console import Console

    console = Console(width=60)
    with console.capture() as capture:
        console.print(report(region()))
    assert max(map(len, capture.get().splitlines())) <= 60


def test_its_representation_is_short():
    assert repr(report(region())) == "<Report: 1 graphs, 1 regions, 0 findings>"


# --- what regions take in, give out and cost ------------------------------------------------------


def test_inputs_and_outputs_with_shape_and_dtype(ri, explain):
    with torch.no_grad():
        (norm,) = explain(mlp(ri), torch.randn(2, 8)).regions
    assert sorted(map(str, norm.inputs)) == ["float32[2, 8]", "float32[8]", "float32[8]"]
    assert list(map(str, norm.outputs)) == ["float32[2, 8]"]
    assert {value.device for value in norm.inputs} == {"cpu"}


def outlined(ri, function, *args):
    """The one region of a function as `outline_regions` leaves it."""
    gm = make_fx(function, tracing_mode="fake")(*args)
    ri.mark_nodes(gm, lambda node: True)
    ri.outline_regions(gm)
    (region,) = [child for child in gm.children() if isinstance(child, torch.fx.GraphModule)]
    return region


def test_a_chain_of_pointwise_operators_moves_less_when_fused(ri):
    module = outlined(ri, lambda x, y: (x * y).sin() + y, torch.ones(10, 10), torch.ones(10, 10))
    costs = costs_of(module)
    assert costs.bytes_read == 2 * 400
    assert costs.bytes_written == 400
    assert costs.bytes_eager == (3 + 2 + 3) * 400
    assert costs.flops == 0


def test_matrix_multiplications_are_counted_as_torch_counts_them(ri):
    from torch.utils.flop_counter import FlopCounterMode

    def f(x, w, b):
        return torch.nn.functional.linear(x, w, b).relu() @ w

    args = torch.ones(6, 4), torch.ones(4, 4), torch.ones(4)
    with FlopCounterMode(display=False) as counter:
        f(*args)
    assert costs_of(outlined(ri, f, *args)).flops == counter.get_total_flops() > 0


@pytest.mark.parametrize("way", ["export", "symbolic_trace", "module"])
def test_what_torch_puts_together_from_operators_is_counted_too(ri, explain, way):
    from torch.utils.flop_counter import FlopCounterMode

    class Attention(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.out = torch.nn.Linear(8, 8)

        @ri.region("attention")
        def forward(self, x):
            weights = torch.matmul(x, x.transpose(1, 2)).softmax(-1)
            return self.out(x.transpose(1, 2).matmul(weights).transpose(1, 2) + x)

    model, x = Attention().requires_grad_(False), torch.ones(2, 6, 8)
    with FlopCounterMode(display=False) as counter:
        model(x)
    if way == "export":
        given = (ri.export(model, (x,)),)
    elif way == "module":
        given = (model, x)
    else:
        graph = torch.fx.symbolic_trace(model)
        ri.mark_nodes(graph, lambda node: True)
        given = (graph, x)
    assert explain(*given).regions[0].flops == counter.get_total_flops() > 0


def test_a_function_that_is_not_torchs_is_never_called_to_count(ri, explain):
    called = []

    def foreign(x):
        called.append(x)
        return x @ x

    graph = torch.fx.Graph()
    graph.output(graph.call_function(foreign, (graph.placeholder("x"),)))
    graph = torch.fx.GraphModule(torch.nn.Module(), graph)
    ri.mark_nodes(graph, lambda node: True)
    assert all(region.flops == 0 for region in explain(graph, torch.ones(2, 2)).regions)
    assert len(called) <= 1  # for the shapes


def test_views_of_inputs_are_not_written_and_each_storage_is_once(ri):
    def f(x):
        y = x + 1
        return x.t(), y, y.t(), y.view(-1)[:4]

    costs = costs_of(outlined(ri, f, torch.ones(10, 10)))
    assert (costs.bytes_read, costs.bytes_written) == (400, 400)


def test_one_of_several_results_is_written_by_itself(ri):
    def f(x):
        values, places = x.max(dim=0)
        return values, places

    costs = costs_of(outlined(ri, f, torch.ones(10, 10)))
    assert costs.bytes_written == 10 * 4 + 10 * 8


def test_views_move_nothing_and_expanded_inputs_count_once(ri):
    module = outlined(ri, lambda x: x.view(-1).view(2, 2) + 1, torch.ones(1, 1).expand(2, 2))
    costs = costs_of(module)
    assert costs.bytes_read == 4
    assert costs.bytes_eager <= 4 + 2 * 16


def test_symbolic_sizes_count_as_what_they_were_and_add_no_guard(ri, explain):
    @ri.region("scale")
    def scale(x):
        return x.sin() * 2

    static = explain(scale, torch.ones(6, 4), dynamic=False).regions[0]
    dynamic = explain(scale, torch.ones(6, 4), dynamic=True).regions[0]
    assert isinstance(dynamic.inputs[-1].shape[0], str)
    assert dynamic.bytes_read == static.bytes_read == 96
    assert dynamic.bytes_eager == static.bytes_eager


# --- the operators of a graph ---------------------------------------------------------------------


def test_each_operator_with_its_region_inputs_module_and_line(ri, explain):
    with torch.no_grad():
        (graph,) = explain(mlp(ri), torch.randn(2, 8)).graphs
    assert len(graph.operators) == graph.nodes
    _, first, *norm = graph.operators
    assert (first.op, first.region, first.module_path) == ("aten.addmm.default", None, "0")
    assert first.value == "float32[2, 8]"
    assert {(op.region, op.module_path) for op in norm} == {(0, "1")}
    assert norm[0].inputs == (1,)
    assert all(number < i for i, op in enumerate(graph.operators) for number in op.inputs)
    assert len(norm) == graph.regions[0].nodes


def test_operators_know_the_users_line(ri, explain):
    def f(x):
        return x.sin()

    (operator,) = explain(f, torch.ones(2)).graphs[0].operators
    assert operator == OperatorReport(
        "sin", "aten.sin.default", source=operator.source, value="float32[2]"
    )
    assert operator.source == f"{__file__}:{f.__code__.co_firstlineno + 1}"


def test_a_real_compile_knows_them_too_and_when_each_stage_began(ri):
    model = ri.compile(mlp(ri), region_backend="eager")
    with torch.no_grad():
        model(torch.randn(2, 8))
    (graph,) = model.report.graphs
    assert len(graph.operators) == graph.nodes
    stages = ["collect", "partition", "outline", "compile", "stitch"]
    assert list(graph.seconds) == list(graph.started) == stages
    assert sorted(graph.started.values()) == list(graph.started.values())
    (region,) = graph.regions
    assert graph.started["compile"] <= region.started <= graph.started["stitch"]
    assert set(region.key_parts) >= {"operators", "inputs", "options"}


# --- kernels and generated code -------------------------------------------------------------------

GENERATED = """
cpp_fused_add_sin_0 = async_compile.cpp_pybinding(['const float*', 'float*'], r'''
extern "C"  void  kernel(const float* in_ptr0, float* out_ptr0)
{
    auto tmp0 = std::sin(in_ptr0[0]);
}
''')


# Topologically Sorted Source Nodes: [y], Original ATen: [aten.mul, aten.sum]
# Source node to ATen node mapping:
triton_per_fused_mul_sum_1 = async_compile.triton('triton_per_fused_mul_sum_1', '''
import triton
''', device_str='cuda')

async_compile.wait(globals())

def call(self, args):
    arg0_1, arg1_1 = args
    assert_size_stride(arg0_1, (4,), (1,), 'torch.ops.aten.view.default')
    cpp_fused_add_sin_0(arg0_1, buf0)
    extern_kernels.mm(buf0, arg1_1, out=buf1)
    triton_per_fused_mul_sum_1.run(buf1, buf2, 4, stream=stream0)
    buf3 = torch.ops.aten.cumsum.default(buf2, dim=0, dtype=None)
    return (buf3, )
"""


def test_kernels_are_read_off_the_generated_code():
    ops = ["aten.sin.default", "aten.add.Tensor", "aten.mm.default", "aten.cumsum.default"]
    kernels = generated.kernels_in(GENERATED, ops)
    assert [(kernel.name, kernel.kind, kernel.ops) for kernel in kernels] == [
        ("cpp_fused_add_sin_0", "generated", ("aten.add", "aten.sin")),
        ("extern_kernels.mm", "library", ("aten.mm",)),
        ("triton_per_fused_mul_sum_1", "generated", ("aten.mul", "aten.sum")),
        ("torch.ops.aten.cumsum", "fallback", ("aten.cumsum",)),
    ]


@pytest.mark.inductor
def test_a_compiled_region_knows_its_kernels_its_steps_and_what_was_not_fused(ri):
    @ri.region("mix")
    def mix(x, w):
        return (x.sin() + 1) @ w

    compiled = ri.compile(mix)
    with torch._inductor.config.patch(fx_graph_cache=False):  # what a cache has isn't generated
        compiled(torch.ones(4, 4), torch.ones(4, 4))
    (region,) = compiled.report.regions
    assert [(kernel.kind, set(kernel.ops)) for kernel in region.kernels] == [
        ("generated", {"aten.sin", "aten.add"}),
        ("library", {"aten.mm"}),
    ]
    assert region.not_fused == ("aten.mm",)
    assert set(region.steps) == {"prepare", "lower", "generate", "compile"}
    assert sum(region.steps.values()) == pytest.approx(region.seconds)
    assert region.kernels[0].name in compiled.report.code[region.key]


@pytest.mark.inductor
def test_the_code_of_a_standalone_artifact_is_known_too(ri):
    def f(x):
        return x.sin() + 1

    gm = make_fx(f, tracing_mode="fake")(torch.ones(4))
    ri.mark_nodes(gm, lambda node: True, name="wave")
    ri.regional_inductor(gm, torch.ones(4), lowering="standalone")
    report = ri.last_report()
    (region,) = report.regions
    assert [kernel.kind for kernel in region.kernels] == ["generated"]
    assert region.not_fused == ()
    assert "async_compile" in report.code[region.key]


# --- JSON -----------------------------------------------------------------------------------------


def full_report(ri, explain):
    model = mlp(ri)
    found = explain(model, torch.randn(2, 8), options={"max_autotune": True})
    found.findings.append(Finding("cheap", "message", "file:1", "remedy", "region"))
    graph = found.graphs[0]
    kernel = KernelReport("cpp_fused_add_0", "generated", ("aten.add",))
    compiled = dataclasses.replace(
        graph.regions[0], kernels=(kernel,), not_fused=(), started=1.5, steps={"lower": 0.5}
    )
    found.graphs[0] = dataclasses.replace(graph, regions=(compiled, *graph.regions[1:]))
    found.code[compiled.key] = "def call(args): ..."
    return found


def test_a_report_comes_back_from_json_equal(ri, explain):
    before = full_report(ri, explain)
    after = Report.from_json(before.to_json())
    assert after == Report.from_json(after.to_json())
    assert after.regions == before.regions
    assert after.findings == before.findings
    assert after.environment == before.environment
    assert after.dry_run
    assert after.code == before.code
    assert after.graphs[0].operators == before.graphs[0].operators != ()
    assert str(after) == str(before)
    assert not before.diff(after)


def test_options_that_are_no_plain_data_become_text():
    options = {"custom": print, "sizes": (1, 2)}
    after = Report.from_json(report(region(options=options)).to_json())
    assert after.regions[0].options == {"custom": "<built-in function print>", "sizes": [1, 2]}


def test_fields_of_a_later_version_are_passed_over():
    document = json.loads(report(region()).to_json())
    document["graphs"][0]["regions"][0]["new"] = 1
    document["graphs"][0]["new"] = document["new"] = 1
    assert Report.from_json(json.dumps(document)).regions == report(region()).regions


def test_version_1_is_still_read():
    document = json.loads(report(region()).to_json())
    document["version"] = 1
    del document["code"], document["graphs"][0]["operators"], document["graphs"][0]["started"]
    for name in ("started", "steps"):
        del document["graphs"][0]["regions"][0][name]
    assert Report.from_json(json.dumps(document)).regions == report(region()).regions


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "not a report of regional_inductor"),
        ('{"schema": "x"}', "not a report of regional_inductor"),
        (
            json.dumps({"schema": report_json.SCHEMA, "version": 99}),
            "the report has version 99 of the schema, and this regional_inductor reads versions 1 and 2",
        ),
        ("{", "Expecting property name"),
    ],
)
def test_what_is_no_report_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        Report.from_json(text)


def test_the_documented_schema_has_the_fields_that_are_written(ri, explain):
    documented = SCHEMA.read_text()
    document = json.loads(full_report(ri, explain).to_json())
    graph = document["graphs"][0]
    for heading, written in (
        ("report", document),
        ("graph", graph),
        ("region", graph["regions"][0]),
        ("operator", graph["operators"][0]),
        ("kernel", graph["regions"][0]["kernels"][0]),
        ("value", graph["regions"][0]["inputs"][0]),
        ("finding", document["findings"][0]),
    ):
        section = documented.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
        assert re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE) == list(written), heading
    assert f"version {report_json.VERSION}" in documented


def test_each_kind_of_finding_is_documented():
    source = Path(report_json.__file__).parent
    code = "\n".join(path.read_text() for path in source.rglob("*.py"))
    kinds = set(re.findall(r'Finding\(\s*"([\w-]+)"', code))
    kinds |= set(re.findall(r'Error: "([\w-]+)",', code))
    section = SCHEMA.read_text().partition("\n## Kinds of findings\n")[2]
    assert kinds - set(re.findall(r"^\| `([\w-]+)` \|", section, re.MULTILINE)) == set()


# --- what changed ---------------------------------------------------------------------------------


def test_equal_reports_differ_in_nothing():
    changes = report(region()).diff(report(region(status="memory")))
    assert not changes
    assert str(changes) == "nothing changed"


def test_regions_gained_and_lost():
    changes = report(region("a")).diff(report(region("b", module_path="", source="model.py:9")))
    assert [r.name for r in changes.lost] == ["a"]
    assert [r.name for r in changes.gained] == ["b"]
    assert str(changes) == "lost: a forward at layers.0.norm\ngained: b forward at model.py:9"


def test_the_same_change_in_many_layers_is_said_once():
    layers = [f"layers.{number}.norm" for number in range(32)]
    value = ValueReport("x", "float32", (2, 8), "cpu")
    longer = ValueReport("x", "float32", (3, 8), "cpu")
    before = report(*(region(module_path=p, inputs=(value,)) for p in layers))
    after = report(*(region(module_path=p, inputs=(longer,), key="k2") for p in layers))
    changes = before.diff(after)
    assert len(changes.rekeyed) == 32
    assert str(changes) == (
        "re-keyed: norm forward in 32 places, at layers.*.norm, by parts not recorded\n"
        "    input 0: float32[2, 8] -> float32[3, 8]"
    )
    assert str(report().diff(after)) == "gained: norm forward in 32 places, at layers.*.norm"


def test_a_region_that_split_and_one_that_joined():
    whole, parts = report(region(nodes=4)), report(region(nodes=2), region(nodes=1))
    assert str(whole.diff(parts)) == "split: norm forward at layers.0.norm, 1 -> 2 regions"
    assert str(parts.diff(whole)) == "joined: norm forward at layers.0.norm, 2 -> 1 regions"


def test_one_more_call_of_a_module_is_a_gain_and_no_split():
    changes = report(region()).diff(report(region(), region()))
    assert (len(changes.gained), len(changes.split)) == (1, 0)


def test_code_that_moved_to_another_line_or_module_still_corresponds():
    assert not report(region()).diff(report(region(source="/home/me/model.py:99")))
    assert not report(region()).diff(report(region(module_path="blocks.0.norm")))


def rekeyed(before, after):
    changes = before.diff(after)
    assert changes
    assert not any((changes.gained, changes.lost, changes.split, changes.joined))
    return changes.rekeyed


def test_another_input_shape_re_keys_by_inputs(ri, explain):
    model = mlp(ri)
    with torch.no_grad():
        (change,) = rekeyed(explain(model, torch.randn(2, 8)), explain(model, torch.randn(3, 8)))
    assert change.parts == ("inputs", "values", "outputs")
    assert [d.partition(": ")[2] for d in change.details] == ["float32[2, 8] -> float32[3, 8]"]


def test_other_options_re_key_by_options(ri, explain):
    model, x = mlp(ri), torch.randn(2, 8)
    changes = rekeyed(explain(model, x), explain(model, x, options={"max_autotune": True}))
    assert {change.parts for change in changes} == {("options",)}
    assert changes[0].details == ("max_autotune: not set -> True",)


def test_another_constant_re_keys_by_arguments(ri, explain):
    def times(number):
        @ri.region("times")
        def f(x):
            return x * number + 1

        return f

    (change,) = rekeyed(explain(times(2), torch.ones(3)), explain(times(3), torch.ones(3)))
    assert change.parts == ("arguments",)
    assert change.details == ("aten.mul.Tensor(_, 2) -> aten.mul.Tensor(_, 3)",)


def test_other_strides_re_key_by_inputs_and_are_named(ri, explain):
    @ri.region("wave")
    def wave(x):
        return x.sin() * 2

    x = torch.ones(4, 6)
    (change,) = rekeyed(explain(wave, x), explain(wave, torch.ones(6, 4).t()))
    assert "inputs" in change.parts
    assert change.details == ("input 0: strides [6, 1] -> [1, 4]",)


def test_an_input_that_requires_gradients_now_is_named():
    x = ValueReport("x", "float32", (4,), "cpu", (1,))
    before = report(region(key="a", inputs=(x,)))
    after = report(region(key="b", inputs=(dataclasses.replace(x, requires_grad=True),)))
    assert before.diff(after).rekeyed[0].details == (
        "input 0: no gradient is required -> a gradient is required",
    )


def test_a_setting_that_changed_between_two_captures_of_one_report_is_named(ri):
    @ri.region("wave")
    def wave(x):
        return x.sin() * 2

    compiled = ri.compile(wave, region_backend="eager")
    compiled(torch.ones(4))
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        compiled(torch.ones(4, dtype=torch.float32))
    finally:
        torch.set_default_dtype(before)
    report = Report.from_json(compiled.report.to_json())
    assert report.captures == 2
    changes = str(report.capture(0).diff(report.capture(1)))
    assert "by environment\n    default_dtype: torch.float32 -> torch.float64" in changes


def test_a_part_that_reports_show_nothing_of_is_said_in_words():
    parts = {"inputs": "1", "symbols": "1"}
    before = report(region(key="a", key_parts=parts))
    after = report(region(key="b", key_parts={**parts, "symbols": "2"}))
    assert str(before.diff(after)).endswith(
        "by symbols\n    symbols: symbolic sizes belong to one capture, and each compiles its "
        "regions for itself"
    )


def test_another_operator_re_keys_by_operators(ri, explain):
    def using(op):
        @ri.region("f")
        def f(x):
            return op(x) + 1

        return f

    before, after = (
        explain(using(torch.sin), torch.ones(3)),
        explain(using(torch.cos), torch.ones(3)),
    )
    (change,) = rekeyed(before, after)
    assert change.parts[0] == "operators"
    assert change.details == ("operators: +aten.cos.default -aten.sin.default",)


def test_a_changed_setting_re_keys_by_environment_and_is_named(ri, explain):
    model, x = mlp(ri), torch.randn(2, 8)
    before = explain(model, x)
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        changes = rekeyed(before, explain(model, x))
    finally:
        torch.set_num_threads(threads)
    assert {change.parts for change in changes} == {("environment",)}
    assert changes[0].details == (f"threads: {threads} -> {threads + 1}",)


def test_a_changed_entry_of_inductors_config_is_named(ri, explain):
    import torch._inductor.config as config

    model, x = mlp(ri), torch.randn(2, 8)
    before = explain(model, x)
    with config.patch(max_fusion_size=17):
        changes = rekeyed(before, explain(model, x))
    assert changes[0].parts == ("environment",)
    with config.patch(max_fusion_size=18):
        pass  # set and put back, as another part of the process may have done
    with config.patch(max_fusion_size=17):
        again = rekeyed(before, explain(model, x))
    assert again[0].details == changes[0].details
    assert changes[0].details == ("inductor.max_fusion_size: not set -> 17",)


def test_two_captures_of_one_report_say_why_something_was_compiled_again(ri):
    model = ri.compile(mlp(ri), region_backend="eager", dynamic=False)
    with torch.no_grad():
        model(torch.randn(2, 8))
        model(torch.randn(5, 8))
    report = model.report
    assert report.captures == 2
    (change,) = report.capture(0).diff(report.capture(1)).rekeyed
    assert [d.partition(": ")[2] for d in change.details] == ["float32[2, 8] -> float32[5, 8]"]


def test_a_region_that_turned_eager_says_why():
    eager = report(region(status="eager", reason="it only makes views", key=""))
    changes = rekeyed(report(region(status="planned")), eager)
    assert changes[0].details[-1].startswith("planned -> eager: it only makes views")


def test_reports_without_key_parts_still_show_what_they_can():
    before, after = region(options={"a": 1}), region(options={"a": 2}, key="k2")
    (change,) = rekeyed(report(before), report(after))
    assert change.parts == ()
    assert change.details == ("a: 1 -> 2",)
    assert "by parts not recorded" in str(report(before).diff(report(after)))


def test_ten_thousand_regions_are_compared_and_printed_quickly():
    def many(key):
        return report(
            *(
                dataclasses.replace(region(key=f"{key}{i}"), module_path=f"layers.{i}.norm")
                for i in range(10_000)
            )
        )

    before, after = many("a"), many("b")
    assert len(before.diff(after).rekeyed) == 10_000
    assert str(before).startswith("10000 regions, 10000 distinct")


def test_values_print_as_type_and_shape():
    assert str(ValueReport("x", "bfloat16", (2, "s0"), "cuda:0")) == "bfloat16[2, s0]"
