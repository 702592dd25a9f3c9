"""Every probe fails under its defect, passes without it, and over all releases fails exactly in the stated range.

The ranges are written here from the table of known defects, not read from the catalogue.
"""

from __future__ import annotations

from functools import cache

import pytest

from mpsdiag.emulation.releases import RELEASES
from mpsdiag.emulation.selection import Emulation
from mpsdiag.probes.declaration import Finding
from mpsdiag.probes.known import CATALOGUE
from mpsdiag.probes.run import predicted, run_probe

# From table 5 of the facts (B1 is SDPA001 and so on): first and last release that have it. Rows whose defect an
# emulation can show. B1 with table 3, B21 with table 2: the composite path of 2.0 to 2.4 works in the query's dtype and
# has no safe softmax. B14 and B21 with section 9.
RANGES = {
    "SDPA001": [("2.0", "2.8")],
    "SDPA002": [("2.8", "2.8")],
    "SDPA003": [("2.8", "2.11")],
    "SDPA004": [("2.8", "2.10")],
    "SDPA005": [("2.8", "2.11")],
    "SDPA006": [("2.8", "2.12")],
    "SDPA008": [("2.12", "2.12")],
    "SDPA009": [("2.5", "2.11")],
    "SDPA010": [("2.5", "2.6")],
    "SDPA011": [("2.5", "2.6")],
    "SDPA014": [("2.10", "2.12")],
    "SDPA015": [("2.5", "2.12")],
    "SDPA016": [("2.5", "2.6"), ("2.10", "2.15")],
    "SDPA017": [("2.8", "2.12")],
    "SDPA019": [("2.5", "2.12")],
    "SDPA020": [("2.13", "2.13")],
    "SDPA021": [("2.0", "2.9")],
    "SDPA026": [("2.0", "2.13")],
    "SDPA030": [("2.13", "2.13")],
    "SDPA032": [("2.9", "2.11")],
    # Not in table 5: the direct operator's row of table 3.
    "SDPA029": [("2.8", "2.12")],
}
HITS_TRAINING = {"SDPA001": [("2.0", "2.4")], "SDPA021": [("2.0", "2.4")], "SDPA026": [("2.0", "2.13")]}
# Knowledge only, or for a real device only: never run under an emulation.
NEVER = {f"SDPA{number}" for number in ("007", "012", "013", "018", "022", "023", "024", "025", "027", "028", "031")}
MACOS = {"SDPA014": 26}  # the others on 15
CAUSE = {"SDPA032": "SDPA003"}  # of the others it is the defect of the same name


def within(ranges, release):
    at = RELEASES.index(release)
    return any(RELEASES.index(first) <= at <= RELEASES.index(last) for first, last in ranges)


@cache
def found(probe, release, macos=15, defects=None) -> Finding:
    return run_probe(probe, device="cpu", emulation=Emulation(release, macos, defects), isolate=False)


def test_the_tables_cover_the_catalogue():
    assert set(RANGES) | NEVER == set(CATALOGUE)
    assert not set(RANGES) & NEVER


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("probe", RANGES)
def test_fails_exactly_in_its_range(probe, release):
    finding = found(probe, release, MACOS.get(probe, 15))
    assert (finding.status == "fail") == within(RANGES[probe], release), finding.detail
    assert finding.status != "error"
    assert (finding.training == "fail") == within(HITS_TRAINING.get(probe, []), release), finding.detail


@pytest.mark.parametrize("probe", RANGES)
def test_fails_under_its_defect_alone_and_not_without_it(probe):
    for first, last in RANGES[probe]:
        for release in (first, last):
            alone = found(probe, release, defects=(CAUSE.get(probe, probe),))
            assert alone.status == "fail", (release, alone.detail)
            without = found(probe, release, MACOS.get(probe, 15), defects=())
            # The largest scores are not computed to the end on a CPU: without the abort nothing is said, never a pass.
            assert without.status == ("skip" if probe == "SDPA019" else "pass"), (release, without.detail)


@pytest.mark.parametrize("probe", sorted(NEVER))
def test_what_an_emulation_cannot_show_is_skipped_with_a_reason(probe):
    finding = found(probe, "2.8")
    assert (finding.status, finding.training, finding.evaluation) == ("skip", "skip", "skip")
    assert len(finding.detail) > 20
    assert finding.cases == 0


@pytest.mark.parametrize("release", RELEASES)
def test_the_prediction_is_the_table(release):
    expected = {probe for probe, ranges in RANGES.items() if within(ranges, release) and probe not in MACOS}
    # For a real device only: B12 (up to 2.7, of the releases that have the operation).
    expected |= {"SDPA012"} if within([("2.5", "2.7")], release) else set()
    assert set(predicted(release)) == expected
    # macOS 26 has the leak of B14, and B18 (up to 2.12) in place of the abort of B19.
    only_there = {"SDPA014"} if within(RANGES["SDPA014"], release) else set()
    only_there |= {"SDPA018"} if within([("2.5", "2.12")], release) else set()
    assert set(predicted(release, 26)) == expected - {"SDPA019"} | only_there


@pytest.mark.parametrize("macos", [14, 26])
@pytest.mark.parametrize("release", ["2.5", "2.8", "2.11", "2.14"])
def test_on_other_macos_the_failures_are_those_predicted(release, macos):
    failed = {probe for probe in RANGES if found(probe, release, macos).status == "fail"}
    assert failed == set(predicted(release, macos)) - NEVER


def test_strides_escape_below_macos_15_and_the_abort_above_it():
    assert found("SDPA002", "2.8", 14).status == "pass"
    assert found("SDPA003", "2.8", 14).status == "pass"
    assert found("SDPA001", "2.8", 14).status == "fail"
    assert found("SDPA019", "2.8", 26).status == "skip"


def test_a_defect_that_is_reached_from_a_macos_is_emulated_below_it_all_the_same():
    assert "SDPA002" in Emulation("2.8", 14).shown
    assert "SDPA002" not in predicted("2.8", 14)
    assert "SDPA002" in predicted("2.8", 15)
