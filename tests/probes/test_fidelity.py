"""The emulator against what owners of Macs printed; the document and its script stay true to each other."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
fidelity = importlib.import_module("fidelity")
mac_bench = importlib.import_module("mac_bench")
sys.path.remove(str(BENCHMARKS))

OBSERVATIONS = {observation["id"]: observation for observation in fidelity.observations()}
RERUN = [name for name, observation in OBSERVATIONS.items() if "not_rerun" not in observation]
DOCUMENT = (BENCHMARKS.parent / "docs" / "fidelity.md").read_text(encoding="utf-8")


def test_what_is_run_again_and_what_has_a_run_are_the_same():
    assert set(RERUN) == set(mac_bench.RUNS)
    assert len(RERUN) >= 33
    assert all(observation.get("not_rerun", "a reason") for observation in OBSERVATIONS.values())


@pytest.mark.parametrize(
    "name",
    [
        # Older ones write finite masks for GPT-2.
        pytest.param(name, marks=[pytest.mark.needs(transformers="4.56")] if name == "thesis_gpt2_sdpa_nan" else [])
        for name in RERUN
    ],
)
def test_the_emulation_gives_what_the_mac_gave(name):
    compared = fidelity.compare(OBSERVATIONS[name])
    said = [run.said for run in compared.runs]
    expected = "outcome only" if "not_matched" in OBSERVATIONS[name] else "matched"
    assert compared.state == expected, said
    assert f"| {name} |" in DOCUMENT
    row = next(line for line in DOCUMENT.splitlines() if line.startswith(f"| {name} |"))
    assert row.rstrip().endswith(f"| {expected} |")


@pytest.mark.parametrize(
    ("name", "release"),
    [
        ("pt156707_bool_row", "2.9"),
        ("pt157727_fixed_zero_rows", "2.8"),
        ("pt163597_L8_wrong", "2.12"),
        ("pt181133_permuted_wrong", "2.12"),
        ("pt174861_t28_2pass_wrong", "2.11"),
        ("pt195910_t2110_bf16", "2.13"),
        ("pt195910_t2140_bf16", "2.13"),
        ("pt184126_dropout_ignored", "2.11"),
        ("pt176767_dv24_shape", "2.12"),
    ],
)
def test_another_release_does_not_match(name, release):
    observation = OBSERVATIONS[name] | {"assumed": {"releases": [release], "macos": 26, "why": ""}}
    assert fidelity.compare(observation).state == "differs"


@pytest.mark.parametrize(
    "name",
    [
        # Older ones write finite masks for GPT-2.
        pytest.param(name, marks=[pytest.mark.needs(transformers="4.56")] if name == "thesis_gpt2_sdpa_nan" else [])
        for name in RERUN
    ],
)
def test_a_figure_that_is_not_the_printed_one_is_a_difference(name):
    observation = OBSERVATIONS[name]
    run = mac_bench.Run(observation["outcome"], "", dict.fromkeys(observation.get("figures", {}), 12345.678))
    for figure, printed in observation.get("figures", {}).items():
        assert not fidelity.figure_agrees(figure, printed, run)


def test_the_document_has_the_comparison_with_the_shipped_kernels():
    lines, differ = fidelity.against_kernels()
    assert differ == 0
    assert "**1201 of 1201 runs agree**" in DOCUMENT
    rows = [line for line in lines if line.startswith("| 2.")]
    assert sum(int(row.split("|")[4]) for row in rows) == 1201
    for row in rows:  # the last digits of errors depend on the machine
        assert any(line.startswith("|".join(row.split("|")[:6])) for line in DOCUMENT.splitlines()), row
    assert "MPSGraph" in DOCUMENT
    assert "2.15" in DOCUMENT


def test_a_defect_left_out_is_counted_against_the_kernels(monkeypatch):
    monkeypatch.setattr(fidelity.kernel_runs, "defects_of", lambda release, macos: ())
    assert fidelity.against_kernels()[1] > 200


def test_figures_are_compared_in_their_printed_digits():
    assert mac_bench.agrees("4.14", 4.1389)
    assert not mac_bench.agrees("4.14", 4.1451)
    assert mac_bench.agrees("0.000", 2e-7)
    assert mac_bench.agrees("32", "32")
    assert not mac_bench.agrees("32", "24")
    assert not mac_bench.agrees("0.1", float("nan"))


def test_what_is_not_run_stays_in_the_document_with_its_reason():
    for name, observation in OBSERVATIONS.items():
        if "not_rerun" in observation:
            assert f"**{name}** (not run): {observation['not_rerun']}." in DOCUMENT
            assert fidelity.compare(observation).runs == ()
