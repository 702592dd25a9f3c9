"""What a release predicts, beside what was seen."""

from __future__ import annotations

import pytest

from mpsdiag.emulation.selection import Emulation
from mpsdiag.probes.declaration import Finding
from mpsdiag.probes.known import CATALOGUE
from mpsdiag.probes.run import minor_of, predicted, run_probe, strikes, surprises


def finding(name, training="pass", evaluation="pass", seen="right"):
    return Finding(name, "title", "pass", "detail", training=training, evaluation=evaluation, seen=seen)


@pytest.mark.parametrize(
    ("version", "minor"),
    [("2.8.1", "2.8"), ("2.8", "2.8"), ("2.13.0+cpu", "2.13"), ("2.15.0.dev20261101", "2.15"), ("2.19.0", "2.15")],
)
def test_versions_are_read(version, minor):
    assert minor_of(version) == minor


def test_the_dead_row_in_training_is_another_range():
    probe = CATALOGUE["SDPA001"]
    assert strikes(probe, "2.4", mode="training")
    assert not strikes(probe, "2.5", mode="training")
    assert strikes(probe, "2.5", mode="evaluation")
    assert not strikes(probe, "2.9")


def test_macos_matters_where_it_does():
    assert "SDPA002" in predicted("2.8", 15)
    assert "SDPA002" not in predicted("2.8", 14)
    assert "SDPA012" not in predicted("2.7", 14)
    assert "SDPA019" not in predicted("2.8", 26)


def test_the_sentence_of_the_issue():
    (sentence,) = surprises([finding("SDPA001", seen="zeros, mean of V")], "2.8.0", 15)
    assert sentence.startswith("SDPA001 ")
    assert sentence.endswith("in evaluation: torch 2.8 on MPS should give NaN here, but this machine gives zeros.")


def test_a_failure_nobody_predicted_says_what_was_seen():
    (sentence,) = surprises([finding("SDPA001", evaluation="fail", seen="NaN")], "2.9.1", 26)
    assert "torch 2.9 on MPS should give zeros here, but this machine gives NaN." in sentence


def test_each_grad_mode_is_compared():
    sentences = surprises([finding("SDPA001", training="fail", evaluation="pass", seen="NaN")], "2.8", 15)
    assert ["in training" in sentence for sentence in sentences] == [True, False]


@pytest.mark.parametrize("status", ["skip", "error"])
def test_what_did_not_run_contradicts_nothing(status):
    assert surprises([finding("SDPA001", status, status)], "2.8", 15) == []


def test_the_sweep_and_strange_ids_predict_nothing():
    assert surprises([finding("SWEEP", evaluation="fail"), finding("SDPA999", evaluation="fail")], "2.8") == []


@pytest.mark.parametrize("release", ["2.4", "2.8", "2.12", "2.14"])
def test_an_emulated_machine_holds_no_surprise(release):
    findings = [
        run_probe(name, device="cpu", emulation=Emulation(release), isolate=False)
        for name in ("SDPA001", "SDPA003", "SDPA009", "SDPA014", "SDPA021", "SDPA026")
    ]
    assert surprises(findings, release, 15) == []


def test_an_emulated_machine_with_another_release_is_noticed():
    found = run_probe("SDPA001", device="cpu", emulation=Emulation("2.8"))
    (sentence,) = surprises([found], "2.9", 15)
    assert "this machine gives NaN" in sentence
