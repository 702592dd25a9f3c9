"""The whole command through the real uv, on a local index of tiny wheels."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from mpsdiag.bisect.tries import read_tries

PREDICATE = ("--", "python", "predicate.py")
PYTHON = f"cp{sys.version_info.major}{sys.version_info.minor}"


def answer(run, *words):
    code, out, err = run("--json", *words)
    return code, json.loads(out), err


def test_a_break_and_a_cure_are_found_in_few_tries(index, run):
    index.add_torch()
    code, found, err = answer(run, "--torch", "2.0..2.6", *PREDICATE)
    assert code == 0
    assert (found["last_good"], found["first_bad"]) == ("2.2.0", "2.2.1")
    assert found["last_bad"] is found["first_good"] is None
    assert found["pip"] == "pip install torch==2.2.0"
    assert found["compare"].endswith("/pytorch/compare/v2.2.0...v2.2.1")
    assert len(found["tries"]) <= 6  # log2(13) + 2
    assert "at most 4 tries left" in err
    one = found["tries"][0]
    assert one["freeze"] == ["accelerate==" + one["freeze"][0].split("==")[1], "torch==2.0.0", one["freeze"][2]]

    code, found, _ = answer(run, "--torch", "2.4.1..2.9.1", "--out", "cure", *PREDICATE)
    assert code == 0
    assert (found["last_bad"], found["first_good"]) == ("2.6.1", "2.7.0")
    assert found["last_good"] is found["first_bad"] is None
    assert found["pip"] == "pip install torch==2.7.0"


def test_the_report_renders_it_again(index, run, tmp_path, capsys):
    index.add_torch(v2_7_0={"code": index.GOOD, "requires": ["extra==1"]}).add("extra", "1")
    code, out, _ = run("--torch", "2.6.0..2.7.1", *PREDICATE)
    assert code == 0
    assert out.startswith("torch: last bad 2.6.1, first good 2.7.0.\n")
    assert "pip install torch==2.7.0" in out
    assert "Other packages that differ between the two: extra absent and 1." in out

    from mpsdiag.cli import main

    def report(*words):
        with pytest.raises(SystemExit) as ended:
            main(["report", "reports/bisect-torch", *words])
        return ended.value.code, capsys.readouterr()

    assert report()[1].out == out
    code, printed = report("--json")
    assert json.loads(printed.out)["first_good"] == "2.7.0"
    assert report("--out", "rendered")[0] == 0
    assert "| 2.7.0 | ✓ good | exit code 0 |" in (tmp_path / "rendered" / "report.md").read_text()
    assert "first good 2.7.0" in (tmp_path / "rendered" / "report.html").read_text()
    code, printed = report("--format", "csv")
    assert code == 2
    assert "no format 'csv'" in printed.err
    code, printed = report("--fail-if", "any nan in sdpa")
    assert code == 2
    assert "rendered alone" in printed.err


def test_releases_that_cannot_be_tested_are_named_with_the_reason(index, run):
    index.add_torch(
        v2_6_0={"code": index.BAD, "requires": ["nowhere==1"]},
        v2_6_1=index.CRASH,
        v2_7_0={"code": index.GOOD, "tag": f"{PYTHON}-{PYTHON}-win_amd64"},
        v2_7_1={"code": index.GOOD, "broken": True},
        v2_8_0={"code": index.GOOD, "yanked": True},
    )
    code, found, _ = answer(run, "--torch", "2.4..2.9.1", *PREDICATE)
    assert code == 0
    assert found["sentence"] == (
        "torch: last bad 2.5.1, first good 2.8.1; 2.6.0 to 2.7.1 (4 releases) could not be tested."
    )
    reasons = {one["release"]: one["reason"] for one in found["untestable"]}
    assert "nowhere" in reasons["2.6.0"]
    assert reasons["2.6.1"] == "ended by SIGABRT"
    assert "platform" in reasons["2.7.0"]
    assert "2.7.1" in reasons
    assert "2.8.0" not in found["releases"]  # yanked


def test_a_crash_or_a_hang_may_count_as_bad(index, run):
    index.add_torch(v2_7_0=index.HANG, v2_7_1=index.CRASH)
    code, found, _ = answer(run, "--torch", "2.6.1..2.8.1", "--crash-is", "bad", "--timeout", "1", *PREDICATE)
    assert code == 0
    assert (found["last_bad"], found["first_good"]) == ("2.7.1", "2.8.0")
    code, found, _ = answer(run, "--torch", "2.6.1..2.8.1", "--timeout", "1", "--find", "fix", *PREDICATE)
    assert code == 0
    assert (found["last_bad"], found["first_good"]) == ("2.6.1", "2.8.0")
    reasons = {one["release"]: one["reason"] for one in found["untestable"]}
    assert reasons == {"2.7.0": "did not finish within 1 s", "2.7.1": "ended by SIGABRT"}


def test_an_impossible_pair_is_tried_against_the_resolver_and_marked(index, run):
    index.add_torch(v2_6_1={"code": index.BAD, "requires": ["transformers<1"]})
    code, found, _ = answer(run, "--torch", "2.6.1..2.7.0", *PREDICATE)
    assert code == 0
    assert found["last_bad"] == "2.6.1"
    assert found["tries"][0]["overridden"]
    assert found["tries"][0]["reason"] == "exit code 1, installed against the resolver's advice"


def test_an_end_that_cannot_be_tested_leaves_it_undecided(index, run):
    index.add_torch(v2_6_1={"code": index.BAD, "requires": ["nowhere==1"]})
    code, out, _ = run("--torch", "2.6.1..2.7.1", *PREDICATE)
    assert code == 3
    assert "torch 2.6.1, an end of the range, cannot be tested" in out


def test_ends_that_do_not_differ(index, run):
    index.add_torch()
    code, out, _ = run("--torch", "2.7.0..2.8.1", *PREDICATE)
    assert code == 1
    assert "are both good" in out
    code, out, _ = run("--torch", "2.2.0..2.2.1", "--find", "fix", *PREDICATE)
    assert code == 1
    assert "enclose a break, not a fix" in out


def test_a_predicate_that_always_fails_shows_its_last_words(index, run, tmp_path):
    index.add_torch()
    (tmp_path / "predicate.py").write_text("import nothing_of_the_kind\n")
    code, out, _ = run("--torch", "2.2.0..2.8.1", *PREDICATE)
    assert code == 1
    assert "are both bad" in out
    assert "No module named 'nothing_of_the_kind'" in out


def test_a_dry_run_lists_and_builds_nothing(index, run, tmp_path):
    index.add_torch()
    code, found, _ = answer(run, "--torch", "2.0..2.6", "--dry-run", *PREDICATE)
    assert code == 0
    assert found["releases"][::12] == ["2.0.0", "2.6.0"]
    assert (found["tries"], found["next"], found["done"]) == (6, "2.0.0", [])
    assert not (tmp_path / "reports").exists()
    assert not (tmp_path / "cache").exists()
    code, out, _ = run("--torch", "2.0..2.6", "--dry-run", *PREDICATE)
    assert code == 0
    assert "tries: 6" in out


def test_nightly_builds_count_where_asked_for(index, run):
    index.add_torch().add("torch", "2.10.0.dev20251001", index.GOOD).add("torch", "2.10.0.dev20251002", index.BAD)
    code, _, err = run("--torch", "2.9.0..2.10.0.dev20251002", *PREDICATE)
    assert code == 2
    assert "--nightly" in err
    code, found, _ = answer(run, "--torch", "2.9.0..2.10.0.dev20251002", "--nightly", *PREDICATE)
    assert code == 0
    assert (found["last_good"], found["first_bad"]) == ("2.10.0.dev20251001", "2.10.0.dev20251002")
    assert found["pip"].startswith("pip install --pre torch==2.10.0.dev20251001")
    assert found["compare"] is None


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_the_search_resumes_after_kill_9_and_after_ctrl_c(index, run, tmp_path, number):
    index.add_torch()
    (tmp_path / "predicate.py").write_text(
        "import sys, time, torch\nopen('tried', 'a').write(torch.__version__ + ' ')\n"
        "time.sleep(0.4)\nsys.exit(torch.BROKEN)\n"
    )
    words = ["bisect", "--device", "cpu", "--torch", "2.0..2.6", *PREDICATE]
    program = [sys.executable, "-c", "from mpsdiag.cli import main; main()"]
    with subprocess.Popen([*program, *words], stdout=subprocess.DEVNULL) as process:
        journal = tmp_path / "reports" / "bisect-torch" / "journal.jsonl"
        deadline = time.monotonic() + 60
        while not (journal.exists() and journal.read_bytes().count(b"\n") >= 3):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        os.kill(process.pid, number)
    assert process.returncode == (130 if number == signal.SIGINT else -9)
    kept = journal.read_bytes()
    with journal.open("ab") as stream:
        stream.write(b'{"schema": 1, "kind": "try", "key": "torn')
    done = len(read_tries(journal).tries)
    code, found, err = answer(run, *words[3:5], *PREDICATE)
    assert code == 0
    assert (found["last_good"], found["first_bad"]) == ("2.2.0", "2.2.1")
    assert journal.read_bytes().startswith(kept)
    assert f"{done} of the tries are already in the journal" in err
    tried = (tmp_path / "tried").read_text().split()
    assert len(tried) - len(set(tried)) <= 1  # what was running when it was killed


def test_a_finished_search_is_not_repeated_and_a_changed_predicate_is(index, run, tmp_path):
    index.add_torch()
    _, first, _ = answer(run, "--torch", "2.6.0..2.8.1", *PREDICATE)
    _, again, err = answer(run, "--torch", "2.6.0..2.8.1", *PREDICATE)
    assert again["tries"] == first["tries"]
    assert "exit code" not in err
    (tmp_path / "predicate.py").write_text("import sys, torch\nsys.exit(torch.__version__ < '2.8')\n")
    _, changed, _ = answer(run, "--torch", "2.6.0..2.8.1", *PREDICATE)
    assert changed["first_good"] == "2.8.0"
    started = time.perf_counter()
    _, fresh, _ = answer(run, "--torch", "2.6.0..2.8.1", "--fresh", *PREDICATE)
    assert time.perf_counter() - started < 30
    assert fresh["first_good"] == "2.8.0"
    assert (tmp_path / "reports" / "bisect-torch" / "journal.1.jsonl").exists()
    assert sum(one["build_seconds"] for one in fresh["tries"]) < 3.0  # the environments are still there


def test_the_environment_is_isolated_and_python_is_its_own(index, run, tmp_path, monkeypatch):
    index.add_torch()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "torch.py").write_text("raise SystemExit(77)")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "predicate.py").write_text(
        "import sys, torch\nprint(sys.prefix)\nassert 'typer' not in sys.modules\n"
        "try:\n    import typer\nexcept ImportError:\n    sys.exit(torch.BROKEN)\nsys.exit(125)\n"
    )
    code, found, _ = answer(run, "--torch", "2.6.1..2.7.0", "--", "python", "sub/predicate.py")
    assert code == 0
    assert all("environments" in one["log_tail"] for one in found["tries"])


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--torch", "2.6..2.0"], "in the wrong order"),
        (["--torch", "2.0..2.0.0"], "a single release"),
        (["--torch", "2.0"], "not a range"),
        (["--torch", "2.0..two"], "'two' is not a version"),
        (["--torch", "2.0..2.99"], "torch 2.99 is not a release"),
        (["--torch", "1.99..2.6"], "torch 1.99 is not a release"),
        (["--torch", "2.0..2.6", "--transformers", "4.52.4..5.24"], "Only one package can vary"),
        ([], "Only one package can vary"),
        (["--torch", "2.0..2.6", "--pin", "transformers>=4"], "--pin transformers==VERSION"),
        (["--torch", "2.0..2.6", "--pin", "torch==2.1"], "torch is the package that varies"),
        (["--torch", "2.0..2.6", "--pin", "accelerate==1", "--pin", "accelerate==2"], "given twice"),
        (["--torch", "2.0..2.6", "--find", "brake"], "Did you mean 'break'?"),
        (["--torch", "2.0..2.6", "--bad-if", "exit=1"], "not a condition"),
        (["--torch", "2.0..2.6", "--crash-is", "good"], "bad, skip"),
        (["--torch", "2.0..2.6", "--timeout", "0"], "--timeout"),
        (["--torch", "2.0..2.6", "--python", "9.9"], "uv finds no Python '9.9'"),
        (["--torch", "2.0..2.6", "--device", "tpu"], "Unknown device"),
        (["--torch", "2.0..2.6", "--", "python", "absent.py"], "no script 'absent.py'"),
        (["--torch", "2.0..2.6", "--", "absent-program"], "no program 'absent-program'"),
    ],
)
def test_bad_input_is_one_sentence(index, run, words, sentence):
    index.add_torch()
    code, out, err = run(*words)
    assert code == 2
    assert sentence in err
    assert out == ""
    assert "Traceback" not in err


def test_without_uv_it_says_how_to_get_it(index, run, monkeypatch):
    monkeypatch.setitem(sys.modules, "uv", None)
    monkeypatch.setenv("PATH", "/nowhere")
    code, _, err = run("--torch", "2.0..2.6")
    assert code == 2
    assert "pip install 'mpsdiag[bisect]'" in err


def test_without_a_network_it_says_so(index, run, monkeypatch):
    monkeypatch.setenv("UV_DEFAULT_INDEX", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    code, _, err = run("--torch", "2.0..2.6", *PREDICATE)
    assert code == 3
    assert "cannot reach the package index" in err


def test_a_full_disk_is_a_sentence(index, run, monkeypatch, tmp_path):
    index.add_torch()
    from mpsdiag.bisect.installer import find_uv

    uv = tmp_path / "bin" / "uv"
    uv.parent.mkdir()
    uv.write_text(
        f'#!/bin/sh\ncase "$*" in *"pip install"*) echo "error: No space left on device (os error 28)" >&2; exit 2;; '
        f'esac\nexec {find_uv()} "$@"\n'
    )
    uv.chmod(0o755)
    monkeypatch.setitem(sys.modules, "uv", None)
    monkeypatch.setenv("PATH", f"{uv.parent}:{os.environ['PATH']}")
    code, _, err = run("--torch", "2.0..2.6", *PREDICATE)
    assert code == 3
    assert "The disk is full" in err


def test_a_code_that_aborts(index, run, tmp_path):
    index.add_torch()
    (tmp_path / "predicate.py").write_text("import sys\nsys.exit(200)\n")
    code, _, err = run("--torch", "2.0..2.6", *PREDICATE)
    assert code == 3
    assert "exit code 200, which aborts the search" in err


def test_a_journal_of_something_else_is_refused(index, run, tmp_path):
    index.add_torch()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "journal.jsonl").write_text('{"schema": 2, "kind": "header"}\n')
    code, _, err = run("--torch", "2.0..2.6", "--out", "other", *PREDICATE)
    assert code == 2
    assert "is not a journal of `mpsdiag bisect`" in err
