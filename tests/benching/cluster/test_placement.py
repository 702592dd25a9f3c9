"""Homes of groups, without any cluster."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpsdiag.benching.cluster.placement import Placement, Worker
from mpsdiag.scenario.scenario import Scenario

GROUPS = [Scenario(seed=seed) for seed in range(6)]


@pytest.fixture
def macs():
    return {"a": Worker("M1"), "b": Worker("M1"), "c": Worker("M4")}


def settled(workers, groups=GROUPS, before=None, cells=3):
    placement = Placement(workers)
    placement.settle(dict.fromkeys(groups, cells), before or {})
    return placement


def homes(placement, groups=GROUPS):
    return [placement.choose(group, {}, timed=True) for group in groups]


def test_groups_are_spread_evenly_and_always_alike(macs):
    assert homes(settled(macs)) == ["a", "b", "c", "a", "b", "c"]


def test_a_large_group_counts_for_what_it_is(macs):
    placement = Placement(macs)
    placement.settle({GROUPS[0]: 9, GROUPS[1]: 1, GROUPS[2]: 1, GROUPS[3]: 1, GROUPS[4]: 1}, {})
    assert Counter(homes(placement, GROUPS[:5])) == {"a": 1, "b": 2, "c": 2}


def test_earlier_rounds_decide_the_kind_of_machine_whatever_its_address_is_now():
    workers = {"new1": Worker("M4"), "new2": Worker("M1")}
    before = {GROUPS[0]: "M1", GROUPS[1]: "M1", GROUPS[2]: "M4"}
    assert homes(settled(workers, GROUPS[:3], before), GROUPS[:3]) == ["new2", "new2", "new1"]


def test_a_kind_that_is_no_more_gives_way(macs):
    placement = settled(macs, GROUPS[:1], {GROUPS[0]: "M2"})
    assert homes(placement, GROUPS[:1]) == ["a"]
    assert placement.kind(GROUPS[0]) == "M1"


def test_what_is_timed_waits_for_its_home_and_verdicts_take_any_machine_like_it(macs):
    placement = settled(macs)
    assert placement.choose(GROUPS[0], {"a": 1}, timed=True) is None
    assert placement.choose(GROUPS[0], {"a": 1}, timed=False) == "b"
    assert placement.choose(GROUPS[0], {"a": 1, "b": 1}, timed=False) is None
    assert placement.choose(GROUPS[2], {}, timed=False) == "c"


def test_a_worker_with_more_threads_takes_more_verdicts_but_one_timed_cell():
    placement = settled({"a": Worker("M1", slots=3)})
    assert placement.choose(GROUPS[0], {"a": 2}, timed=False) == "a"
    assert placement.choose(GROUPS[0], {"a": 3}, timed=False) is None
    assert placement.choose(GROUPS[0], {"a": 1}, timed=True) is None


def test_homes_are_where_cells_can_be_timed():
    placement = settled({"a": Worker("M1", times=False), "b": Worker("M1")})
    assert set(homes(placement)) == {"b"}
    assert settled({"a": Worker("M1", times=False)}).choose(GROUPS[0], {}, timed=False) == "a"


def test_what_is_timed_waits_for_a_worker_that_times_and_takes_it_when_it_comes():
    """Also where the home, of the verdicts, is one that does not."""
    placement = settled({"a": Worker("M1", times=False)})
    assert placement.choose(GROUPS[0], {}, timed=False) == "a"
    assert placement.choose(GROUPS[0], {}, timed=True, strangers=True) is None
    placement.workers = {"a": Worker("M1", times=False), "b": Worker("M1")}
    assert placement.choose(GROUPS[0], {}, timed=True) == "b"
    placement.workers = {"a": Worker("M1", times=False)}
    assert placement.choose(GROUPS[0], {}, timed=True, strangers=True) is None
    placement.workers = {"a": Worker("M1", times=False), "c": Worker("M1")}
    assert placement.choose(GROUPS[0], {}, timed=True) == "c"


def test_a_lost_home_is_replaced_by_its_like_and_by_a_stranger_only_if_allowed(macs):
    placement = settled(macs)
    placement.workers = {"b": macs["b"], "c": macs["c"]}
    assert placement.choose(GROUPS[0], {}, timed=True) == "b"
    placement.workers = {"b": macs["b"]}
    assert placement.choose(GROUPS[2], {}, timed=True) is None
    assert placement.choose(GROUPS[2], {}, timed=True, strangers=True) == "b"
    assert placement.kind(GROUPS[2]) == "M1"
    placement.workers = {}
    assert placement.choose(GROUPS[2], {}, timed=True, strangers=True) is None


@given(
    kinds=st.lists(st.sampled_from("xyz"), min_size=1, max_size=6),
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=6),
)
def test_no_home_has_more_than_its_share_and_one_group(kinds, sizes):
    workers = {f"{number}": Worker(kind) for number, kind in enumerate(kinds)}
    placement = Placement(workers)
    placement.settle(dict(zip(GROUPS, sizes, strict=False)), {})
    load = Counter()
    for group, size in zip(GROUPS, sizes, strict=False):
        load[placement.choose(group, {}, timed=True)] += size
    assert max(load.values()) <= sum(sizes) / len(workers) + max(sizes)
