"""`contraction.resolve` on plain integer graphs, with a brute-force search as the oracle."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence

import pytest

from regional_inductor.contraction import resolve


def random_dag(rng: random.Random, size: int, density: float) -> list[list[int]]:
    return [[j for j in range(i + 1, size) if rng.random() < density] for i in range(size)]


def random_groups(rng: random.Random, size: int, colours: int, share: float) -> list[int]:
    return [rng.randrange(colours) if rng.random() < share else -1 for _ in range(size)]


def units_of(group: Sequence[int]) -> list[object]:
    """Each node's unit after contraction: its group, or itself."""
    return [("group", g) if g >= 0 else ("node", i) for i, g in enumerate(group)]


def contracted(successors: Sequence[Sequence[int]], group: Sequence[int]) -> dict[object, set]:
    units = units_of(group)
    edges: dict[object, set] = {unit: set() for unit in units}
    for i, after in enumerate(successors):
        edges[units[i]] |= {units[j] for j in after if units[j] != units[i]}
    return edges


def is_acyclic(edges: dict[object, set]) -> bool:
    """By removing sinks until none is left: nothing in common with how `resolve` finds out."""
    left = {unit: set(after) for unit, after in edges.items()}
    while left:
        sinks = {unit for unit, after in left.items() if not after & left.keys()}
        if not sinks:
            return False
        for unit in sinks:
            del left[unit]
    return True


def number_of_groups(group: Sequence[int]) -> int:
    return len({g for g in group if g >= 0})


def longest_alternation(successors: Sequence[Sequence[int]], group: Sequence[int]) -> int:
    """The most times that one path enters the coloured nodes: no split can do with fewer groups.

    Counted over explicit paths by memoised search from the end, one colour only.
    """
    coloured = [g >= 0 for g in group]
    entries = [0] * len(group)
    for i in reversed(range(len(group))):
        best = max((entries[j] - (coloured[i] and coloured[j]) for j in successors[i]), default=0)
        entries[i] = best + coloured[i]
    return max(entries, default=0)


def splits_of(nodes: Sequence[int]) -> Iterator[list[list[int]]]:
    """All partitions of a set."""
    if not nodes:
        yield []
        return
    first, rest = nodes[0], nodes[1:]
    for parts in splits_of(rest):
        yield [[first], *parts]
        for k in range(len(parts)):
            yield [*parts[:k], [first, *parts[k]], *parts[k + 1 :]]


def fewest_groups(successors: Sequence[Sequence[int]], group: Sequence[int]) -> int:
    """The fewest groups of any acyclic split, by trying them all."""
    colours = sorted({g for g in group if g >= 0})
    members = [[i for i, g in enumerate(group) if g == c] for c in colours]
    best = len(group)
    for choice in itertools.product(*(list(splits_of(m)) for m in members)):
        parts = [part for parts in choice for part in parts]
        if len(parts) >= best:
            continue
        candidate = [-1] * len(group)
        for number, part in enumerate(parts):
            for i in part:
                candidate[i] = number
        if is_acyclic(contracted(successors, candidate)):
            best = len(parts)
    return best


def some_graphs(count: int, **sizes: int) -> Iterator[tuple[list[list[int]], list[int]]]:
    colours = sizes.get("colours", 4)
    for seed in range(count):
        rng = random.Random(seed)
        size = rng.randint(1, sizes.get("size", 30))
        successors = random_dag(rng, size, rng.choice([0.03, 0.1, 0.2, 0.4]))
        groups = random_groups(rng, size, rng.randint(1, colours), rng.choice([0.3, 0.6, 1.0]))
        yield successors, groups


# --- what every result must be --------------------------------------------------------------------


def test_contracting_all_groups_at_once_leaves_the_graph_acyclic():
    for successors, wanted in some_graphs(400):
        group, _ = resolve(successors, wanted)
        assert is_acyclic(contracted(successors, group))


def test_every_group_is_a_part_of_one_wanted_group_and_no_node_is_lost():
    for successors, wanted in some_graphs(200):
        group, _ = resolve(successors, wanted)
        assert [g < 0 for g in group] == [g < 0 for g in wanted]
        for g in set(group) - {-1}:
            assert len({wanted[i] for i in range(len(group)) if group[i] == g}) == 1


def test_groups_that_can_stay_whole_are_returned_as_they_are():
    kept = 0
    for successors, wanted in some_graphs(400):
        if is_acyclic(contracted(successors, wanted)):
            kept += 1
            group, _ = resolve(successors, wanted)
            assert number_of_groups(group) == number_of_groups(wanted)
    assert kept > 50


def test_the_order_names_each_unit_by_its_first_member_and_is_topological():
    for successors, wanted in some_graphs(200):
        group, order = resolve(successors, wanted)
        first = {g: group.index(g) for g in set(group) - {-1}}
        unit = [first.get(g, i) for i, g in enumerate(group)]
        assert sorted(order) == sorted(set(unit))
        place = {u: k for k, u in enumerate(order)}
        for i, after in enumerate(successors):
            for j in after:
                assert place[unit[i]] <= place[unit[j]]


def test_units_without_a_cycle_between_them_keep_their_places():
    """Groups in one piece move nothing: the order is the old one."""
    for seed in range(100):
        rng = random.Random(seed)
        successors = random_dag(rng, 20, 0.2)
        cuts = sorted(rng.sample(range(21), 6))
        wanted = [-1] * 20
        for number, (start, end) in enumerate(itertools.pairwise(cuts)):
            if number % 2 == 0:
                wanted[start:end] = [number] * (end - start)
        _, order = resolve(successors, wanted)
        assert order == sorted(order)


def test_the_result_does_not_depend_on_the_numbers_of_the_groups():
    for successors, wanted in some_graphs(100):
        renamed = [-1 if g < 0 else 100 - g for g in wanted]
        assert resolve(successors, wanted) == resolve(successors, renamed)


def test_it_is_deterministic_and_leaves_its_arguments_alone():
    for successors, wanted in some_graphs(100):
        before = ([list(after) for after in successors], list(wanted))
        assert resolve(successors, wanted) == resolve(successors, wanted)
        assert (successors, wanted) == before


def test_nothing_and_no_groups():
    assert resolve([], []) == ([], [])
    assert resolve([[1], [2], []], [-1, -1, -1]) == ([-1, -1, -1], [0, 1, 2])


# --- how few groups -------------------------------------------------------------------------------


def test_two_groups_each_convex_alone_and_a_cycle_together():
    """A={a1,a2}, B={b1,b2}, edges a1->b1 and b2->a2: one of the two must be split, not both."""
    a1, b1, b2, a2 = range(4)
    group, order = resolve([[b1], [], [a2], []], [0, 1, 1, 0])
    assert number_of_groups(group) == 3
    assert (group[a1] == group[a2]) != (group[b1] == group[b2])
    assert len(order) == 3


def test_one_colour_is_split_into_as_few_groups_as_its_longest_alternation():
    split = 0
    for successors, wanted in some_graphs(300, colours=1):
        group, _ = resolve(successors, wanted)
        assert number_of_groups(group) == longest_alternation(successors, wanted)
        split += number_of_groups(group) > 1
    assert split > 50


def test_a_chain_that_alternates():
    """c u c u c: three groups, in order."""
    successors = [[1], [2], [3], [4], []]
    assert resolve(successors, [0, -1, 0, -1, 0]) == ([0, -1, 1, -1, 2], [0, 1, 2, 3, 4])


def test_chains_side_by_side_are_split_at_the_same_levels():
    """Two chains c u c: two groups in all, not four."""
    successors = [[1], [2], [], [4], [5], []]
    group, _ = resolve(successors, [0, -1, 0, 0, -1, 0])
    assert group == [0, -1, 1, 0, -1, 1]


def test_a_cycle_of_three_groups_costs_one_more():
    """a1->b1, b2->c1, c2->a2."""
    group, _ = resolve([[1], [], [3], [], [5], []], [0, 1, 1, 2, 2, 0])
    assert number_of_groups(group) == 4


def test_cycles_apart_from_one_another_are_split_apart():
    """The known case twice, with nothing in common: three groups each."""
    group, _ = resolve([[1], [], [3], [], [5], [], [7], []], [0, 1, 1, 0, 2, 3, 3, 2])
    assert number_of_groups(group) == 6
    assert not set(group[:4]) & set(group[4:])


def test_one_colour_never_takes_more_than_brute_force():
    for successors, wanted in some_graphs(120, colours=1, size=7):
        group, _ = resolve(successors, wanted)
        assert number_of_groups(group) == fewest_groups(successors, wanted)


def test_two_colours_take_at_most_one_more_than_brute_force_and_rarely():
    """The fewest for several colours is a hard problem; this holds how near to it we are."""
    more = []
    for seed in range(150):
        rng = random.Random(seed)
        size = rng.randint(4, 8)
        successors = random_dag(rng, size, rng.choice([0.15, 0.25, 0.4]))
        wanted = random_groups(rng, size, 2, 0.8)
        group, _ = resolve(successors, wanted)
        more.append(number_of_groups(group) - fewest_groups(successors, wanted))
    assert min(more) == 0
    assert max(more) <= 1
    assert sum(more) <= 8


# --- effort ---------------------------------------------------------------------------------------


class Counted(list):
    """An adjacency list that counts how often a node's successors are asked for."""

    visits = 0

    def __getitem__(self, index):
        Counted.visits += 1
        return super().__getitem__(index)

    def __iter__(self):
        for item in super().__iter__():
            Counted.visits += 1
            yield item


def visits(size: int, kind: str) -> int:
    rng = random.Random(size)
    if kind == "layers, one mark":
        wanted = [0 if i % 10 < 6 else -1 for i in range(size)]
    elif kind == "layers, a mark each":
        wanted = [i // 10 if i % 10 < 6 else -1 for i in range(size)]
    else:
        wanted = random_groups(rng, size, 4, 0.6)
    near = [sorted({i + 1, i + rng.randint(1, 30)}) for i in range(size)]
    successors = Counted([j for j in after if j < size] for after in near)
    Counted.visits = 0
    resolve(successors, wanted)
    return Counted.visits


@pytest.mark.parametrize("kind", ["layers, one mark", "layers, a mark each", "four ids at random"])
def test_the_number_of_visits_grows_no_faster_than_the_graph(kind):
    """Counted rather than timed, so that a busy machine can't fail it."""
    assert visits(20_000, kind) <= 11 * visits(2_000, kind)
