"""`mpsdiag bench` as its users meet it: a process, its exit code, its two streams, its folder."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mpsdiag.benching.journal.journal import read_journal
from mpsdiag.cli import main

MATRICES = Path(__file__).resolve().parents[2] / "benchmarks"
SMALL = [
    *(
        "--attn-implementation",
        "sdpa",
        "--attn-implementation",
        "safe_sdpa",
        "--trainer",
        "standard",
        "--padding-side",
        "left",
    ),
    *("--device", "cpu", "--emulate", "2.8", "--max-length", "96", "--max-steps", "1"),
    *("--eval-max-batches", "2", "--batch-size", "2", "--rounds", "1", "--max-rounds", "1", "--repeats", "2"),
]


COMMAND = [sys.executable, "-c", "from mpsdiag.cli import main; main()", "bench"]


def bench(*words, **environment):
    variables = {**os.environ, **environment}
    command = [*COMMAND, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=240, env=variables)


@pytest.fixture
def here(capsys):
    """The same in this process: exit code, stdout, stderr."""

    def run(*words):
        with pytest.raises(SystemExit) as caught:
            main(["bench", *map(str, words)])
        return caught.value.code, *capsys.readouterr()

    return run


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    out = tmp_path_factory.mktemp("bench") / "out"
    gates = ["--fail-if", "any nan in safe_sdpa", "--fail-if", "any nan in sdpa"]
    return bench(*SMALL, *gates, "--out", out, "--json"), out


def test_a_small_bench_finds_the_nan_and_the_fix(done):
    process, out = done
    assert process.returncode == 1, process.stderr  # the second gate
    records = {(r.cell.attn_implementation, r.round): r for r in read_journal(out).records}
    assert {place: r.status for place, r in records.items()} == {
        ("sdpa", 0): "nan",
        ("safe_sdpa", 0): "ok",
        ("sdpa", 1): "ok",
        ("safe_sdpa", 1): "ok",
    }
    assert records["safe_sdpa", 1].timing.device == "cpu"
    assert (out / "report.md").read_text().startswith("# ")
    assert sorted(path.name for path in (out / "logs").glob("*-0.log"))


def test_stdout_is_one_json_document_and_stderr_the_rest(done):
    process, out = done
    document = json.loads(process.stdout)
    assert document["bench"]["exit_code"] == 1
    assert [gate["tripped"] for gate in document["bench"]["gates"]] == [False, True]
    assert "gate tripped: any nan in sdpa" in process.stderr
    assert f"wrote {out}" in process.stderr


def test_running_it_again_resumes(done, here):
    _, out = done
    before = (out / "journal.jsonl").read_bytes()
    code, text, err = here(*SMALL, "--out", out)
    assert code == 0, err
    assert (out / "journal.jsonl").read_bytes() == before
    assert "emulated MPS of torch 2.8" in text


@pytest.mark.parametrize(("name", "cells"), [("demo", 18), ("default", 150)])
def test_the_ready_matrices_can_be_listed(here, name, cells):
    code, out, err = here(MATRICES / f"{name}.toml", "--dry-run", "--emulate", "2.8", "--json")
    assert code == 0, err
    assert len(json.loads(out)["cells"]) == cells


def test_a_dry_run_writes_nothing(here, tmp_path):
    code, out, _ = here("--device", "cpu", "--dry-run", "--out", tmp_path / "out")
    assert (code, (tmp_path / "out").exists()) == (0, False)
    assert "18 cells, 0 skipped" in out


def test_an_empty_part_is_nothing_to_do(here, tmp_path):
    words = ["--device", "cpu", "--shard", "3/4", "--out", tmp_path / "out"]
    said = "part 3 of 4 is empty: the matrix has 2 groups of cells that are compared, which stay together"
    assert here(*words) == (0, "", f"mpsdiag: {said}\n")
    assert here(*words, "--dry-run") == (0, f"0 cells, 0 skipped; {said}.\n", f"mpsdiag: {said}\n")
    code, out, _ = here(*words, "--json")
    assert (code, json.loads(out)["bench"]["exit_code"]) == (0, 0)
    assert json.loads(out)["headline"] == f"Nothing to do: {said}."
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--attn-implementation", "egar"], "Did you mean 'eager'?"),
        (["no-such.toml"], "There is no matrix file no-such.toml"),
        (["--emulate", "1.9"], "there is no emulation of torch '1.9'"),
        (["--dataset", "no/such/file.txt"], "does not exist"),
        (["--fail-if", "nonsense"], "is not a gate"),
        (["--retry", "timout"], "Did you mean 'timeout'?"),
        (["--shard", "5/4"], "does not exist"),
        (["--shard", "²/4"], "--shard '²/4' is not of the form I/N"),
        (["--rounds", "5", "--max-rounds", "3"], "--max-rounds: max_rounds (3) is smaller than rounds (5)"),
        (["--time-limit", "inf"], "--time-limit: should be"),
        (["--seed", "99999999999999999999999"], "--seed: should be at most 4294967295"),
        (["--threads", "100000"], "--threads: should be at most 1024"),
        (["--emulate-macos", "99"], "--emulate-macos: there is no macOS 99 to emulate: choose 13, 14, 15 or 26."),
        (["--out", ""], "--out is empty"),
        (["--max-cells", "3"], "more than --max-cells 3"),
        (["--out", "FILE/deeper"], "Choose another folder with --out"),
    ],
)
def test_bad_usage_is_a_sentence_and_exit_code_2(here, tmp_path, monkeypatch, words, sentence):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "FILE").write_text("")
    code, out, err = here("--device", "cpu", "--rounds", "0", *words)
    assert (code, out) == (2, "")
    assert sentence in err


def test_a_device_that_is_not_there_is_undecided(here, tmp_path):
    code, _, err = here("--device", "xpu", "--out", tmp_path, "--rounds", "0")
    assert code == 3
    assert "No cell of the matrix can run here" in err


@pytest.mark.parametrize(
    ("number", "lines"),
    [
        pytest.param(signal.SIGINT, 1, id="ctrl-c-while-the-first-process-starts"),
        pytest.param(signal.SIGINT, 2, id="ctrl-c-later"),
        pytest.param(signal.SIGTERM, 2, id="sigterm"),
        pytest.param(signal.SIGHUP, 2, id="sighup"),
    ],
)
def test_a_signal_ends_with_130_and_a_report_of_what_finished(tmp_path, number, lines):
    process = subprocess.Popen(
        [*COMMAND, *SMALL, "--seed", "0", "--seed", "1", "--out", tmp_path],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    journal = tmp_path / "journal.jsonl"
    end = time.monotonic() + 120
    while not journal.exists() or journal.read_bytes().count(b"\n") < lines:
        assert time.monotonic() < end
        time.sleep(0.05)
    os.killpg(process.pid, number)  # as a terminal and timeout(1) do: to the whole group
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert "Run the same command again to resume" in err
    assert out
    assert (tmp_path / "report.md").exists()
    assert lines - 1 <= len(read_journal(tmp_path).records) < 8


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere cells start without a fork server")
def test_a_folder_for_temporary_files_too_deep_for_a_socket_is_a_sentence(tmp_path):
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    done = bench(*SMALL, "--out", tmp_path / "out", TMPDIR=str(deep))
    assert (done.returncode, done.stdout) == (2, "")
    last = done.stderr.splitlines()[-1]
    assert str(deep) in last
    assert last.endswith("Set TMPDIR to a shorter folder, such as TMPDIR=/tmp.")
    assert "Traceback" not in done.stderr


def test_ctrl_c_during_the_report_is_130_with_a_whole_report(done, here, monkeypatch):
    from mpsdiag.reporting.formats import export

    write_folder = export.write_folder

    def interrupted(story, folder, failed):
        signal.raise_signal(signal.SIGINT)
        return write_folder(story, folder, failed)

    monkeypatch.setattr(export, "write_folder", interrupted)
    _, out = done
    (out / "report.md").unlink()
    code, text, err = here(*SMALL, "--out", out)
    assert (code, "the report is complete" in err) == (130, True)
    assert text
    assert (out / "report.md").exists()


@pytest.mark.parametrize("limit", [100, 1500, 4000, 20_000])
def test_a_disk_that_fills_is_a_sentence_and_costs_no_answer(done, limit, tmp_path):
    """From the report's first file to its page: no file may be longer than the limit, the journal is whole."""
    _, out = done
    shutil.copy(out / "journal.jsonl", tmp_path)
    before = (tmp_path / "journal.jsonl").read_bytes()
    process = full_disk(limit, *SMALL, "--out", tmp_path)
    assert process.returncode == 3, process.stderr
    assert "Affected" in process.stdout
    assert "File too large" in process.stderr
    assert not {"Traceback", "Unexpected"} & set(process.stderr.split())
    assert (tmp_path / "journal.jsonl").read_bytes() == before


@pytest.mark.parametrize("limit", [0, 900])
def test_a_disk_that_is_full_for_the_journal_is_a_sentence(limit, tmp_path):
    process = full_disk(limit, *SMALL, "--out", tmp_path)
    assert process.returncode in {2, 3}, process.stderr
    log = tmp_path / "logs" / "start.log"  # Some releases write files already when they are imported.
    assert "File too large" in process.stderr + (log.read_text(encoding="utf-8") if log.exists() else "")
    assert not {"Traceback", "Unexpected"} & set(process.stderr.split())


def full_disk(limit, *words):
    """A bench in a process that can write files of so many bytes at most, as on a disk that fills."""
    limited = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit})); {COMMAND[2]}"
    command = [sys.executable, "-c", limited, "bench", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)


def test_a_report_that_cannot_be_written_whole_is_3_after_the_answer(done, here, tmp_path):
    _, out = done
    (tmp_path / "journal.jsonl").write_bytes((out / "journal.jsonl").read_bytes())
    (tmp_path / "report.html").mkdir()
    code, text, err = here(*SMALL, "--out", tmp_path)
    assert code == 3
    assert "Affected" in text
    assert f"Cannot write {tmp_path / 'report.html'}" in err
    assert (tmp_path / "report.md").exists()
    assert (tmp_path / "cells.csv").exists()


def test_help_names_every_axis(here):
    code, out, _ = here("--help")
    assert code == 0
    for option in (
        "--model",
        "--attn-implementation",
        "--trainer",
        "--padding-side",
        "--dtype",
        "--fail-if",
        "--shard",
        "--cluster",
    ):
        assert option in out


def test_old_options_still_work_with_one_note(here):
    words = ["--attention", "sdpa", "--padding=left", "--sequence-length", "64", "--train-steps", "1"]
    old = here("--dry-run", "--json", "--device", "cpu", *words, "--eval-batches", "1")
    assert old[0] == 0, old[2]
    assert old[2].count("The old name still works.") == 1
    assert "--padding is now --padding-side" in old[2]
    new = here(
        *("--dry-run", "--json", "--device", "cpu", "--attn-implementation", "sdpa"),
        *("--padding-side=left", "--max-length", "64", "--max-steps", "1", "--eval-max-batches", "1"),
    )
    assert new[2] == ""
    assert new[1] == old[1]
