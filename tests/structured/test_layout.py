"""ChannelSpace against brute force on random layout programs, without a framework."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cxr_compress.structured.layout import ChannelLayout, ChannelSpace, join


def test_tie_layouts_of_different_length_raises():
    space = ChannelSpace()
    with pytest.raises(ValueError, match="one length, got 3 and 4"):
        space.tie(space.allocate("a", 3), space.allocate("b", 4))


def test_solve_untied_owners_are_groups_of_their_own():
    space = ChannelSpace()
    space.allocate("a", 3)
    space.allocate("b", 2)
    partition = space.solve()
    assert [(group.name, group.start, group.stop) for group in partition.groups] == [("a", 0, 3), ("b", 3, 5)]


def test_solve_tie_through_concat_ties_each_part_to_its_own_branch():
    # c(5) + concat(a(2), b(3)): c's channels 0-1 go with a's, 2-4 with b's, and all three are one group.
    space = ChannelSpace()
    a, b, c = space.allocate("a", 2), space.allocate("b", 3), space.allocate("c", 5)
    space.tie(c, join([a, b]))
    partition = space.solve()
    assert partition.groups[0].owners == ("a", "b", "c")
    assert partition.set_of[c.ids].tolist() == partition.set_of[np.concatenate([a.ids, b.ids])].tolist()
    assert partition.set_count == 5


def test_protect_gives_the_reason_to_everything_tied():
    space = ChannelSpace()
    a, b = space.allocate("a", 2), space.allocate("b", 2)
    space.allocate("c", 2)
    space.tie(a, b)
    space.protect(b, "because")
    space.protect(a, "because")
    assert [group.reason for group in space.solve().groups] == ["because", ""]


@st.composite
def programs(draw):
    """A random program: layouts made by conv, concat, depthwise x2, flatten x2, and adds of equal lengths."""
    space = ChannelSpace()
    layouts: list[ChannelLayout] = []
    ties: list[tuple[ChannelLayout, ChannelLayout]] = []
    for number in range(draw(st.integers(1, 10))):
        kind = draw(st.sampled_from(["conv", "concat", "repeat", "tile", "add"]))
        if kind == "conv" or not layouts:
            layouts.append(space.allocate(f"conv{number}", draw(st.integers(1, 4))))
        elif kind == "concat":
            layouts.append(join([draw(st.sampled_from(layouts)) for _ in range(draw(st.integers(1, 3)))]))
        elif kind == "repeat":
            layouts.append(draw(st.sampled_from(layouts)).repeat(2))
        elif kind == "tile":
            layouts.append(draw(st.sampled_from(layouts)).tile(2))
        else:
            first = draw(st.sampled_from(layouts))
            second = draw(st.sampled_from([layout for layout in layouts if len(layout) == len(first)]))
            space.tie(first, second)
            ties.append((first, second))
            layouts.append(first)
    return space, ties


@given(programs())
def test_solve_random_program_equals_brute_force(program):
    space, ties = program
    partition = space.solve()
    sets = [{number} for number in range(len(partition.set_of))]
    for first, second in ties:
        for a, b in zip(first.ids.tolist(), second.ids.tolist(), strict=True):
            if sets[a] is not sets[b]:
                sets[a] |= sets[b]
                for member in sets[b]:
                    sets[member] = sets[a]
    for a, b in combinations(range(len(sets)), 2):
        assert (partition.set_of[a] == partition.set_of[b]) == (b in sets[a])


@given(programs())
def test_solve_random_program_groups_own_disjoint_runs_that_cover_all_units(program):
    space, _ = program
    partition = space.solve()
    runs = sorted((group.start, group.stop) for group in partition.groups)
    assert [number for start, stop in runs for number in range(start, stop)] == list(range(partition.set_count))
    owners = [owner for group in partition.groups for owner in group.owners]
    assert len(owners) == len(set(owners))
