"""The table release x defect: what the script writes, and what is kept in reports/."""

from __future__ import annotations

import csv
import importlib
import io
import sys
from pathlib import Path

import pytest

from mpsdiag.emulation.releases import RELEASES
from mpsdiag.probes.declaration import Check, Finding
from mpsdiag.probes.known import CATALOGUE
from mpsdiag.probes.run import predicted

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))
defect_table = importlib.import_module("defect_table")
sys.path.remove(str(ROOT / "benchmarks"))

OFF = Check("one | other", ok=False, seen="NaN")
TABLE = {
    "2.4": [
        Finding("SDPA001", "title | one", "fail", "bad", "fail", "fail", 4, (OFF,)),
        Finding("SDPA012", "two", "skip", "too large"),
    ],
    "2.7": [
        Finding("SDPA001", "title | one", "pass", "good", "pass", "pass", 4),
        Finding("SDPA012", "two", "skip", "too large"),
    ],
}


@pytest.mark.parametrize(
    ("status", "training", "outcome"),
    [
        ("fail", "fail", "fails, training too"),
        ("fail", "pass", "fails in evaluation"),
        ("pass", "pass", "passes"),
        ("skip", "skip", "skipped"),
        ("error", "skip", "broke"),
    ],
)
def test_outcomes(status, training, outcome):
    assert defect_table.outcome(Finding("SDPA001", "t", status, "d", training, "fail")) == outcome


def test_differences_are_named_once_for_all_their_releases():
    assert defect_table.differences(TABLE, 15) == [
        "SDPA001 should fail under 2.7 and is `pass`: good.",
        "SDPA012 should fail under 2.7 and is `skip`: too large.",
    ]


def test_csv_has_a_line_for_every_cell():
    rows = list(csv.DictReader(io.StringIO(defect_table.as_csv(TABLE, 15))))
    assert [(row["release"], row["id"], row["status"], row["predicted"]) for row in rows] == [
        ("2.4", "SDPA001", "fail", "fail"),
        ("2.4", "SDPA012", "skip", ""),
        ("2.7", "SDPA001", "pass", "fail"),
        ("2.7", "SDPA012", "skip", "fail"),
    ]


def test_markdown_is_escaped_and_says_that_it_is_emulated():
    text = defect_table.as_markdown(TABLE, 15, "the command")
    (row,) = [line for line in text.splitlines() if line.startswith("| SDPA001 |")]
    assert row.count("|") - row.count("\\|") == 6
    assert row.endswith("|  | B | · |")
    assert "nothing here was" in text
    assert "Made by `the command`" in text
    assert "- SDPA012: too large." in text


def test_a_defect_is_run_on_the_nearest_macos_on_which_it_is_known():
    assert [defect_table.macos_of(name, 15) for name in ("SDPA001", "SDPA014", "SDPA019", "SWEEP")] == [15, 26, 15, 15]
    assert defect_table.macos_of("SDPA019", 26) == 15
    words = [defect_table.macos_in_words(name) for name in ("SDPA001", "SDPA014", "SDPA019", "SWEEP")]
    assert words == ["", "26 and later", "up to 15", ""]
    leak = Finding("SDPA014", "leak", "fail", "bad", "pass", "fail", 4)
    assert defect_table.expected_to_fail(leak, "2.11", 15)
    row = next(csv.DictReader(io.StringIO(defect_table.as_csv({"2.11": [leak]}, 15))))
    assert (row["macos"], row["predicted"]) == ("26", "fail")


def test_the_picture_is_the_same_every_time():
    first = defect_table.as_svg(TABLE, 15)
    assert first == defect_table.as_svg(TABLE, 15)
    assert first.lstrip().startswith(("<?xml", "<svg"))
    assert "SDPA012" in first


def test_the_table_that_is_kept_has_exactly_the_predicted_defects():
    """Except those that an emulation cannot show, which are skipped there and never passed."""
    kept = (ROOT / "reports" / "defects" / "defects.csv").read_text(encoding="utf-8")
    rows = list(csv.DictReader(io.StringIO(kept)))
    assert {row["release"] for row in rows} == set(RELEASES)
    assert {row["id"] for row in rows} == {*CATALOGUE, "SWEEP"}
    for release in RELEASES:
        of_release = {row["id"]: row for row in rows if row["release"] == release}
        failed = {name for name, row in of_release.items() if row["status"] == "fail"}
        skipped = {name for name, row in of_release.items() if row["status"] == "skip"}
        known = {name for name, row in of_release.items() if row["predicted"]}
        assert known == {name for name in CATALOGUE if name in predicted(release, defect_table.macos_of(name, 15))}
        assert failed == known - skipped
        assert skipped & known <= {"SDPA012", "SDPA018"}
        assert of_release["SWEEP"]["status"] == "pass"
        assert "error" not in {row["status"] for row in of_release.values()}
