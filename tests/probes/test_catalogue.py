from __future__ import annotations

import re
import subprocess
import sys

import pytest

from mpsdiag.errors import BadInput
from mpsdiag.probes.known import CATALOGUE, find
from mpsdiag.probes.sweep import SWEEP_PROBE


def test_every_entry_of_the_table_is_there_in_order():
    assert list(CATALOGUE) == [f"SDPA{number:03d}" for number in range(1, 33)]


@pytest.mark.parametrize("probe", [*CATALOGUE.values(), SWEEP_PROBE], ids=lambda probe: probe.id)
def test_a_declaration_says_what_a_user_needs(probe):
    assert probe.title
    assert not probe.title.endswith(".")
    assert len(probe.title) <= 90
    assert probe.symptom.endswith(".")
    assert probe.remedy.text.endswith(".")
    assert probe.bad != probe.good
    assert all(re.fullmatch(r"https://github\.com/[\w-]+/[\w.-]+/(issues|pull)/\d+", url) for url in probe.upstream)
    assert all(re.fullmatch(r"2\.\d+", release) for release in probe.releases)
    assert (probe.trigger is None) == (probe.never_run is not None)


def test_what_a_release_has_says_in_which_it_is_fixed():
    for probe in CATALOGUE.values():
        assert probe.fixed, probe.id


@pytest.mark.parametrize(
    ("probe", "words"),
    [
        ("SDPA001", "2.0 to 2.8"),
        ("SDPA008", "2.12"),
        ("SDPA016", "2.5 to 2.6, 2.10 to 2.15"),
        ("SDPA007", "none released"),
        ("SDPA025", "not established"),
    ],
)
def test_the_releases_in_words(probe, words):
    assert CATALOGUE[probe].where == words


def test_level_one_is_the_dead_row_alone():
    assert [probe.id for probe in CATALOGUE.values() if probe.level == 1] == ["SDPA001"]


def test_find_takes_any_case_and_suggests_the_nearest():
    assert find("sdpa004").id == "SDPA004"
    with pytest.raises(BadInput, match=r"Did you mean 'SDPA0\d\d'"):
        find("SDPA04")


def test_listing_the_catalogue_loads_no_torch():
    code = "import sys; from mpsdiag.probes.known import CATALOGUE; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
