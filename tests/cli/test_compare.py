"""`mpsdiag compare`: two documents of check side by side; and `mpsdiag report` on one of them."""

import json

import pytest

from mpsdiag.checking.diagnosis import Diagnosis, FixResult, Judged, ProbeResult
from mpsdiag.cli import main
from mpsdiag.environment import gather
from mpsdiag.findings import Emulated
from mpsdiag.serialization import dumps


def document(evaluation="fail", release="2.8", probes=("SDPA001",), **more):
    word = "affected" if evaluation == "fail" else "not_affected"
    return Diagnosis(
        verdict=word,
        reason="r",
        level=1,
        device="cpu",
        emulated=Emulated(release=release, macos=15),
        environment=gather().model_copy(update={"chip": release}),
        kernel=Judged(verdict=word, reason="k"),
        probes=[
            ProbeResult(id=name, title="t", status=evaluation, detail="d", training="pass", evaluation=evaluation)
            for name in probes
        ],
        **more,
    ).to_dict()


@pytest.fixture
def write(tmp_path):
    def write(name, made):
        path = tmp_path / name
        path.write_text(made if isinstance(made, str) else dumps(made, indent=2))
        return path

    return write


@pytest.fixture
def run(capsys):
    def call(*words):
        with pytest.raises(SystemExit) as end:
            main([str(word) for word in words])
        out, err = capsys.readouterr()
        return end.value.code or 0, out, err

    return call


def test_the_same_findings_of_two_releases(run, write):
    first, second = write("a.json", document()), write("b.json", document(release="2.7"))
    code, out, _ = run("compare", first, second)
    assert code == 0
    assert out.startswith("same findings")
    assert "Chip" in out  # the environments differ, which is no finding


def test_what_differs_is_named(run, write):
    first, second = write("a.json", document()), write("b.json", document("pass", "2.9"))
    code, out, _ = run("compare", first, second, "--json")
    found = json.loads(out)
    assert (code, found["same"]) == (1, False)
    assert {one["what"]: (one["first"], one["second"]) for one in found["differences"] if one["finding"]} == {
        "verdict": ("affected", "not_affected"),
        "kernel": ("affected", "not_affected"),
        "SDPA001, evaluation": ("fail", "pass"),
    }
    code, out, _ = run("compare", first, second, "--markdown")
    assert code == 1
    assert "| SDPA001, evaluation | fail | pass |" in out


def test_a_fix_that_resolves_it_on_one_side_only_is_a_finding(run, write):
    def fix(resolves):
        values = {"exact": False, "max_abs_logit_diff": None, "loss_moved_by": None, "why": ""}
        return FixResult(name="eager", kind="attention", resolves=resolves, eval_loss=1.0, **values)

    first, second = (write(f"{word}.json", document(fixes=[fix(word)])) for word in (True, False))
    code, out, _ = run("compare", first, second)
    assert code == 1
    assert out.startswith("1 finding differs")


def test_what_only_one_side_looked_at_is_shown_and_is_no_finding(run, write):
    first, second = write("a.json", document()), write("b.json", document(probes=("SDPA001", "SDPA002")))
    code, out, _ = run("compare", first, second)
    assert code == 0
    assert "SDPA002, evaluation" in out


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "was not written by `mpsdiag check --json`"),
        ("[]", "was not written by"),
        ('{"schema": 9, "verdict": "x", "kernel": 1}', "newer mpsdiag (schema 9)"),
        ('{"schema": 1, "verdict": "x", "kernel": 1}', "damaged document"),
    ],
)
def test_other_files_are_refused_with_one_sentence(run, write, text, sentence):
    code, out, err = run("compare", write("a.json", text), write("b.json", document()))
    assert (code, out) == (2, "")
    assert sentence in err
    assert len(err.splitlines()) == 1
    code, _, err = run("compare", "nowhere.json", write("b.json", document()))
    assert code == 2
    assert "nowhere.json" in err


def test_report_renders_a_check_again(run, write, tmp_path):
    path = write("a.json", document())
    code, out, _ = run("report", path)
    assert code == 0
    assert out.startswith("affected: EMULATED MPS of torch 2.8")
    assert run("report", path, "--format", "markdown")[1].startswith("**mpsdiag check: affected")
    assert json.loads(run("report", path, "--json")[1]) == document()
    assert run("report", path, "--out", tmp_path / "a.html")[0] == 0
    assert (tmp_path / "a.html").read_text().startswith("<!DOCTYPE html>")
    code, _, err = run("report", path, "--format", "csv")
    assert code == 2
    assert "Choose from: terminal, markdown, html, json" in err
    code, _, err = run("report", path, "--fail-if", "any nan in sdpa")
    assert code == 2
    assert "mpsdiag compare" in err
