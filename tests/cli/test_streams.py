"""Every command with streams that are closed, full, or read no further: the exit code of the contract, no traceback."""

import io
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from mpsdiag.cli import output as streams

JOURNAL = Path(__file__).parent.parent / "data" / "every_end.jsonl"
REPORT = ["report", JOURNAL]
GATE = [*REPORT, "--fail-if", "any nan in sdpa"]
DRY = ["bench", "--device", "cpu", "--dry-run"]
TO_STDOUT = "mpsdiag: Cannot write to standard output: No space left on device."

needs_full = pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="no device that is always full")


def mpsdiag(words, redirections):
    """Run a command as a shell does with these redirections; every stream that is left is a pipe that is read."""
    line = f'"$0" -c "from mpsdiag.cli import main; main()" "$@" {redirections}'
    return subprocess.run(
        ["/bin/sh", "-c", line, sys.executable, *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


@needs_full
@pytest.mark.parametrize("words", [GATE, [*REPORT, "--json"], DRY, [*DRY, "--json"], ["check", "--list"], ["--help"]])
def test_output_that_cannot_be_written_is_one_sentence_and_2(words):
    done = mpsdiag(words, ">/dev/full")
    assert done.returncode == 2
    said = [line for line in done.stderr.splitlines() if "gate" not in line]
    assert len(said) == 1
    assert said[0].startswith(TO_STDOUT)


@pytest.mark.parametrize(("words", "code"), [([*REPORT, "--json"], 0), (GATE, 1), (DRY, 0)])
def test_a_reader_who_has_seen_enough_changes_no_exit_code(words, code):
    """The command's own: it may be a verdict, and 1 must not come to mean a closed pipe."""
    read, write = os.pipe()
    os.close(read)  # nobody will ever read: surer than `| true`, which may be slow to end
    try:
        done = subprocess.run(
            [sys.executable, "-c", "from mpsdiag.cli import main; main()", *map(str, words)],
            stdout=write,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            timeout=120,
        )
    finally:
        os.close(write)
    assert done.returncode == code
    assert [line for line in done.stderr.splitlines() if "gate" not in line] == []


@pytest.mark.parametrize("redirections", [">&-", "2>&-", "<&- >&- 2>&-", pytest.param("2>/dev/full", marks=needs_full)])
@pytest.mark.parametrize(("words", "code"), [(GATE, 1), (["report", "nowhere"], 2), (DRY, 0)])
def test_streams_that_are_closed_and_words_that_cannot_be_said_change_nothing(words, code, redirections):
    done = mpsdiag(words, redirections)
    assert done.returncode == code
    assert "Traceback" not in done.stderr
    if "2>" in redirections and redirections != "<&- >&- 2>&-" and code < 2:
        assert done.stdout


def test_cells_run_without_standard_streams(tmp_path):
    words = ["--attention", "sdpa", "--trainer", "standard", "--padding", "left", "--device", "cpu"]
    few = ["--sequence-length", "64", "--train-steps", "1", "--eval-batches", "1", "--rounds", "0"]
    done = mpsdiag(["bench", *words, *few, "--out", tmp_path / "out"], "<&- >&- 2>&-")
    assert done.returncode == 0
    assert (tmp_path / "out" / "report.md").exists()


@pytest.mark.parametrize(("encoding", "mark"), [("ascii", "x NaN"), ("latin-1", "x NaN"), ("utf-8", "✗ NaN")])
def test_marks_are_spelled_as_the_stream_can(encoding, mark):
    done = subprocess.run(
        [sys.executable, "-c", "from mpsdiag.cli import main; main()", *map(str, REPORT)],
        env={**os.environ, "PYTHONIOENCODING": encoding},
        capture_output=True,
        check=True,
    )
    assert mark in done.stdout.decode(encoding)


def test_a_document_is_utf_8_where_the_encoding_cannot_hold_it():
    done = subprocess.run(
        [sys.executable, "-c", "from mpsdiag.cli import main; main()", *map(str, REPORT), "--format", "markdown"],
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        check=True,
    )
    assert "×" in done.stdout.decode("utf-8")


def test_a_full_pipe_that_somebody_made_non_blocking_loses_nothing():
    read, write = os.pipe()
    os.set_blocking(write, False)
    parts = []

    def drain():
        while part := os.read(read, 65536):
            parts.append(part)

    reader = threading.Thread(target=drain)
    with io.TextIOWrapper(streams._Data(write, "wb"), encoding="utf-8") as stream:
        reader.start()
        stream.write("x" * 2**20)
    reader.join()
    os.close(read)
    assert b"".join(parts) == b"x" * 2**20


@needs_full
def test_output_fails_once_and_what_follows_goes_nowhere():
    with streams._Data(os.open("/dev/full", os.O_WRONLY), "wb") as sink:
        with pytest.raises(streams.CannotPrint, match="No space left on device"):
            sink.write(b"data")
        assert sink.write(b"more") == 4
