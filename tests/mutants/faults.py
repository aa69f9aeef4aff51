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
        "outputs = tuple([inner[node] for node in interface.outputs])",
        "outputs = tuple([inner[node] for node in reversed(interface.outputs)])",
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
        "checked_calls.py",
        "elif value.dtype is not kind.dtype or value",
        "elif value",
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
    Fault(
        "the key takes 1, 1.0 and True for one constant",
        "region_key.py",
        'return f"{type(value).__name__}:{value!r}"',
        'return f"{float(value) if isinstance(value, (bool, int, float)) else value!r}"',
        _KEYS,
    ),
    Fault(
        "the key ignores where in its storage an input begins",
        "region_key.py",
        "_sizes(value.stride()), expression_of(value.storage_offset())",
        "_sizes(value.stride())",
        _KEYS,
    ),
    Fault(
        "the key ignores whether an input requires gradients",
        "region_key.py",
        'f"grad={value.requires_grad}",',
        '"grad",',
        _KEYS,
    ),
    Fault(
        "the key ignores the state of the process",
        "region_key.py",
        '"environment": [environment],',
        '"environment": [],',
        _KEYS,
    ),
    Fault(
        "the key ignores which values a region gives",
        "region_key.py",
        'lines.append(f"out {_spell(node.args, number, module)} {metadata}")',
        'lines.append("out")',
        _KEYS,
    ),
    Fault(
        "the key takes an option's object for the next one at its address",
        "region_key.py",
        'f"options {_spell(dict(options), {}, module)}"',
        'f"options {sorted(map(repr, options.items()))}"',
        _KEYS,
    ),
    Fault(
        "a store is asked without what this machine is",
        "region_store.py",
        '            "build": machine.build(),\n            "devices": devices,\n        },\n        sort_keys',
        "        },\n        sort_keys",
        ("tests/test_stored_key.py",),
    ),
    Fault(
        "different options join in one region",
        "stages/partition.py",
        "return (marked.mark.join_key, marked.direction)",
        "return (marked.mark.id, marked.direction)",
        ("tests/stages/test_partition.py", "tests/properties/test_partition_guarantees.py"),
    ),
    Fault(
        "forward and backward join in one region",
        "stages/partition.py",
        "return (marked.mark.join_key, marked.direction)",
        "return (marked.mark.join_key,)",
        ("tests/stages/test_partition.py", "tests/properties/test_partition_guarantees.py"),
    ),
    Fault(
        "entries of a scope in different places join",
        "stages/partition.py",
        "place: Hashable = (joinable, marked.entry)",
        "place: Hashable = (joinable, None)",
        ("tests/stages/test_partition.py", "tests/properties/test_partition_guarantees.py"),
    ),
    Fault(
        "unmarked nodes may change their order",
        "stages/partition.py",
        "            successors[previous].append(i)\n        previous = i",
        "            pass\n        previous = i",
        ("tests/properties/test_partition_guarantees.py",),
    ),
    Fault(
        "a value that another region needs is no output",
        "stages/outline.py",
        "if owner_of(user) != number:",
        "if owner_of(user) is None:",
        _RANDOM,
    ),
    Fault(
        "a region with a random draw counts as pure",
        "stages/outline.py",
        'vars(submodule)["_is_impure"] = traits.ordered or traits.draws or traits.opaque',
        'vars(submodule)["_is_impure"] = traits.ordered or traits.opaque',
        ("tests/stages/test_outline.py", "tests/correctness/test_06_hidden_order.py"),
    ),
    Fault(
        "a region that stays eager gives its first output for all",
        "stages/stitch.py",
        "user.replace_all_uses_with(inner[outputs[index]])",
        "user.replace_all_uses_with(inner[outputs[0]])",
        ("tests/stages/test_stitch.py", "tests/stages/test_compile.py", *_RANDOM),
    ),
    Fault(
        "a region that stays eager keeps its marks",
        "stages/stitch.py",
        "                _unmark(inner[node])\n",
        "",
        ("tests/stages/test_stitch.py", "tests/stages/test_compile.py"),
    ),
    Fault(
        "what is published can be seen half written",
        "disk.py",
        'unfinished = self.folder / f"{entry.key}.{os.getpid()}.{os.urandom(4).hex()}{_UNFINISHED}"',
        "unfinished = self._path(entry.key)",
        ("tests/test_disk.py",),
    ),
    Fault(
        "a file that others may write is believed",
        "trust.py",
        "    if mode & 0o077:",
        "    if mode & 0o007:",
        ("tests/test_trust.py",),
    ),
    Fault(
        "the beginning of a library counts as a library",
        "_torch/whole_libraries.py",
        "return all(segment[offset_at] + segment[size_at] <= size for segment in segments)",
        "return True",
        ("tests/test_whole_libraries.py",),
    ),
    Fault(
        "a damaged Python module is imported",
        "_torch/whole_libraries.py",
        "    if not is_whole_text:",
        "    if False:",
        ("tests/test_whole_libraries.py",),
    ),
    Fault(
        "a process that only compiles has no full collection",
        "garbage.py",
        "        if is_due and gc.isenabled():",
        "        if False:",
        ("tests/test_garbage.py",),
    ),
    Fault(
        "a dead pool of workers is waited for",
        "_torch/workers.py",
        "        while not done.wait(_LOOK_EVERY_S):\n            give_up_dead_pools()",
        "        done.wait()",
        ("tests/test_worker_pools.py",),
    ),
    Fault(
        "backward graphs are compiled while others capture",
        "backend.py",
        "stack.enter_context(dynamo.compiling_alone())",
        "stack.enter_context(contextlib.nullcontext())",
        ("tests/test_threads.py",),
    ),
    Fault(
        "early backward regions are asked for under the forward graph's switches",
        "early_backward.py",
        "with dynamo.as_in_backward(), warnings.catch_warnings():",
        "with warnings.catch_warnings():",
        ("tests/test_early_backward.py",),
    ),
    Fault(
        "a backward region that failed early counts as done",
        "early_backward.py",
        "for region in regions if region.call is not None",
        "for region in regions",
        ("tests/test_early_backward.py",),
    ),
)
