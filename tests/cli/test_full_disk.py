"""A disk that fills at every phase: a small file system of its own, where this user may mount one.

What was computed is printed, every file is whole or absent, and what is missing is named.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import mpsdiag
from mpsdiag.benching.journal.journal import read_journal
from mpsdiag.benching.journal.record import Header, Record
from mpsdiag.benching.journal.writer import JournalFull, JournalWriter
from mpsdiag.cli import main
from mpsdiag.reporting.formats.export import write_folder

JOURNAL = Path(__file__).parents[1] / "data" / "emulated.jsonl"
PAGE = 4096
CELL = ["--model", "tiny-llama", "--attn-implementation", "sdpa", "--trainer", "standard", "--padding-side", "left"]
CELL += ["--device", "cpu", "--emulate", "2.8", "--max-length", "64", "--batch-size", "2", "--rounds", "0"]


@pytest.fixture
def disk(tmp_path):
    """Make a disk of so many pages."""
    folder, mount = tmp_path / "disk", shutil.which("mount")
    folder.mkdir()
    mounted = []

    def make(pages):
        words = [mount, "-t", "tmpfs", "-o", f"size={pages * PAGE}", "tmpfs", str(folder)]
        if mount is None or os.geteuid() != 0 or subprocess.run(words, capture_output=True, check=False).returncode:
            pytest.skip("this user may not mount a tmpfs; the tests with a limit of file sizes stand in for it")
        mounted.append(folder)
        return folder

    yield make
    for one in mounted:
        subprocess.run(["umount", "--lazy", str(one)], check=True)


def ends(words, code):
    with pytest.raises(SystemExit) as end:
        main([str(word) for word in words])
    assert end.value.code == code


def test_the_journal_is_whole_when_it_fills_and_goes_on_when_there_is_room(disk):
    folder = disk(8)
    header, record = Header(mpsdiag="1", command="", created=""), read_journal(JOURNAL).records[0]
    fill = folder / "fill"
    fill.write_bytes(bytes(5 * PAGE))
    with JournalWriter(folder / "journal.jsonl", header) as journal:
        written = []

        def write_on():
            while True:
                number = str(len(written))
                journal.append(Record.model_validate({**record.model_dump(by_alias=True), "key": number}))
                written.append(number)

        with pytest.raises(JournalFull, match="No space left on device"):
            write_on()
        assert written
        assert [one.key for one in read_journal(folder).records] == written
        fill.unlink()
        journal.append(record)
    found = read_journal(folder)
    assert [one.key for one in found.records] == [*written, record.key]
    assert found.warnings == []


def test_every_file_of_a_report_is_whole_or_absent_and_named(disk, tmp_path):
    folder, story, failed = disk(24), mpsdiag.report(JOURNAL), []
    write_folder(story, tmp_path / "whole")
    whole = {path.relative_to(tmp_path / "whole"): path.read_bytes() for path in (tmp_path / "whole").rglob("*.*g")}
    write_folder(story, folder, failed.append)
    assert failed
    assert all("No space left on device" in sentence for sentence in failed)
    found = {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.*g")}
    assert found.items() < whole.items()
    for name in ("report.md", "report.html", "cells.csv"):
        assert (folder / name).exists() != any(name in sentence for sentence in failed)


@pytest.mark.parametrize(("pages", "code", "word"), [(1, 2, "journal.jsonl"), (4, 3, "report.html")])
def test_a_bench_whose_disk_fills(disk, pages, code, word):
    """One page has room for the lock and no journal; four for the journal, and not for the report."""
    command = [sys.executable, "-m", "mpsdiag", "bench", *CELL, "--max-steps", "1", "--eval-max-batches", "1"]
    folder = disk(pages)
    done = subprocess.run([*command, "--out", str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    assert "No space left on device" in done.stderr
    assert word in done.stderr
    assert ("WHICH FIX RESOLVES IT" in done.stdout) == (code == 3)
    assert not {"Traceback", "Unexpected"} & set(done.stderr.split())
    if code == 3:
        assert [one.status for one in read_journal(folder).records] == ["ok"]


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        ("check --level 1 --html a.html", "not affected"),
        ("train --mode evaluate --max_length 64 --eval_max_batches 1 --output_dir .", "eval_loss"),
    ],
)
def test_the_answer_comes_before_the_file_that_cannot_be_written(disk, monkeypatch, capsys, words, answer):
    folder = disk(1)
    (folder / "fill").write_bytes(bytes(PAGE))
    monkeypatch.chdir(folder)
    ends(words.split(), 2)
    out, err = capsys.readouterr()
    assert answer in out
    assert "No space left on device" in err
    assert {path.name for path in folder.iterdir()} == {"fill"}


def test_a_finding_is_shown_where_its_script_cannot_be_written(monkeypatch, tmp_path, capsys):
    def full(path, *_, **__):
        raise mpsdiag.BadInput(f"Cannot write {path.name}: No space left on device.")

    monkeypatch.setattr("mpsdiag.tracing.run.write_repro", full)
    ends(["trace", "--emulate", "2.8", "--max-length", "64", "--repro", tmp_path / "a.py"], 1)
    out = capsys.readouterr().out
    assert "dead_rows" in out
    assert "Cannot write a.py: No space left on device." in out
