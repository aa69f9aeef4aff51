"""The faults: each a piece of the library's text, what it becomes, and the tests that must notice."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """One fault.

    Attributes:
        name: What goes wrong, in a few words.
        file: The file of the package.
        old: Text that is in it exactly once.
        new: What takes its place.
        tests: Arguments of pytest: the tests that this is the business of.
    """

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


_KEYS = ("tests/test_region_key.py",)
_RANDOM = ("tests/properties/test_stitched_equals_eager.py", "tests/stages/test_outline.py")

FAULTS = (
    Fault(
        "the key ignores strides",
        "region_key.py",
        "_sizes(value.stride()), expression_of",
        "expression_of",
        _KEYS,
    ),
    Fault(
        "the key ignores the dtype",
        "region_key.py",
        "        str(value.dtype),\n        str(value.device),",
        "        str(value.device),",
        _KEYS,
    ),
    Fault(
        "the key ignores which inputs share memory",
        "region_key.py",
        "pattern.append((known, index))",
        "pass",
        _KEYS,
    ),
    Fault(
        "the key ignores the options",
        "region_key.py",
        'f"options {_spell(dict(options), {}, module)}"',
        '"options"',
        _KEYS,
    ),
    Fault(
        "the key ignores constants",
        "region_key.py",
        'return f"{type(value).__name__}:{value!r}"',
        "return type(value).__name__",
        _KEYS,
    ),
    Fault(
        "a region's own option gives way to the default",
        "regions.py",
        "{**self.default_options, **dict(mark.options)}",
        "{**dict(mark.options), **self.default_options}",
        ("tests/correctness/test_03_options.py",),
    ),
    Fault(
        "a region's options are dropped",
        "regions.py",
        "{**self.default_options, **dict(mark.options)}",
        "dict(self.default_options)",
        ("tests/correctness/test_03_options.py",),
    ),
    Fault(
        "outputs of a region are swapped",
        "stages/outline.py",
        "graph.output(tuple(inner[node] for node in interface.outputs))",
        "graph.output(tuple(inner[node] for node in reversed(interface.outputs)))",
        _RANDOM,
    ),
    Fault(
        "arguments of a region are swapped",
        "stages/outline.py",
        "arguments = [self.environment[node] for node in interface.inputs]",
        "arguments = [self.environment[node] for node in reversed(interface.inputs)]",
        _RANDOM,
    ),
    Fault(
        "a level is off by one",
        "contraction.py",
        "max(map(of_inside, before))",
        "max(map(of_outside, before))",
        ("tests/properties/test_fewest_regions.py", "tests/test_contraction.py"),
    ),
    Fault(
        "a level is never raised",
        "contraction.py",
        "outside[i] = inside[i] + 1",
        "outside[i] = inside[i]",
        ("tests/test_contraction.py", "tests/properties/test_partition_guarantees.py"),
    ),
    Fault(
        "the order of writes and reads is lost",
        "_torch/ops.py",
        "        _mutation_edges(result, nodes, found)\n",
        "        pass\n",
        ("tests/correctness/test_06_hidden_order.py",),
    ),
    Fault(
        "the drop-in pass doesn't check dtypes",
        "runtime.py",
        '            f"{argument}.dtype is {argument}_dtype",\n',
        "",
        ("tests/correctness/test_07_outside_torch_compile.py",),
    ),
    Fault(
        "a failure that should raise leaves the region eager",
        "stages/compile.py",
        'if settings.on_error == "raise":',
        "if False:",
        ("tests/stages/test_compile.py",),
    ),
    Fault(
        "memory drops what was used last",
        "cache.py",
        "popitem(last=False)",
        "popitem(last=True)",
        ("tests/test_cache.py",),
    ),
    Fault(
        "an entry of the store is taken for another's",
        "entry.py",
        'if key is not None and header["key"] != key:',
        "if False:",
        ("tests/test_disk.py",),
    ),
    Fault(
        "damage to an entry is not noticed",
        "entry.py",
        "if hashlib.sha256(body).digest() != data[len(_MAGIC) : start]:",
        "if False:",
        ("tests/test_disk.py",),
    ),
    Fault(
        "any seal will do",
        "trust.py",
        "if not sealed.startswith(_MAGIC) or not hmac.compare_digest(",
        "if not sealed.startswith(_MAGIC) or False and not hmac.compare_digest(",
        ("tests/test_trust.py",),
    ),
    Fault(
        "verify overlooks a NaN",
        "comparison.py",
        "nonfinite = int((~finite & ~same).sum())",
        "nonfinite = 0",
        ("tests/test_verify.py",),
    ),
    Fault(
        "a bisection keeps what it should leave",
        "selection.py",
        "if known.id not in self.kept:",
        "if known.id in self.kept:",
        ("tests/test_bisect.py", "-k", "process or wrong_numbers"),
    ),
    Fault(
        "a run-time failure names no region",
        "runtime.py",
        "    if add_note is not None:\n        add_note(text)\n    elif",
        "    if add_note is not None:\n        pass\n    elif",
        ("tests/test_failing_regions.py", "-k", "run_time"),
    ),
)
