from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

DATA = Path(__file__).parent.parent / "data"


@pytest.fixture
def report(capsys):
    """Runs `mpsdiag report`; gives exit code, stdout and stderr."""

    def run(*words: object) -> tuple[int, str, str]:
        from mpsdiag.cli.main import main

        with pytest.raises(SystemExit) as ended:
            main(["report", *map(str, words)])
        shown = capsys.readouterr()
        return int(ended.value.code or 0), shown.out, shown.err

    return run


def test_a_journal_is_shown_on_the_terminal(report):
    code, out, _ = report(DATA / "every_end.jsonl")
    assert code == 0
    assert out.startswith("Affected: sdpa attention")


def test_a_folder_that_bench_wrote_is_taken_for_its_journal(report, tmp_path):
    shutil.copy(DATA / "every_end.jsonl", tmp_path / "journal.jsonl")
    assert report(tmp_path)[1].startswith("Affected")


def test_json_is_one_document_and_nothing_else_on_stdout(report):
    code, out, _ = report(DATA / "every_end.jsonl", "--json")
    assert code == 0
    assert json.loads(out)["schema"] == 2


@pytest.mark.parametrize(
    ("name", "start"),
    [("a.md", "# mpsdiag report"), ("a.html", "<!DOCTYPE html>"), ("a.csv", '"environment",'), ("a.json", "{")],
)
def test_the_suffix_of_out_chooses_the_format(report, tmp_path, name, start):
    code, out, err = report(DATA / "emulated.jsonl", "--out", tmp_path / name)
    assert code == 0
    assert out == ""
    assert err == f"mpsdiag: wrote {tmp_path / name}\n"
    assert (tmp_path / name).read_text(encoding="utf-8").startswith(start)


def test_parquet_is_written_into_a_file(report, tmp_path):
    import pandas as pd

    code, _, _ = report(DATA / "emulated.jsonl", "--format", "parquet", "--out", tmp_path / "cells")
    assert code == 0
    assert len(pd.read_parquet(tmp_path / "cells")) > 5
    code, _, err = report(DATA / "emulated.jsonl", "--format", "parquet")
    assert code == 2
    assert "--out FILE.parquet" in err


def test_markdown_links_pictures_that_are_there(report, tmp_path):
    import re

    report(DATA / "every_end.jsonl", "--out", tmp_path / "a.md")
    links = re.findall(r'(?:src|srcset)="([^"]+)"', (tmp_path / "a.md").read_text(encoding="utf-8"))
    assert links
    assert all((tmp_path / link).is_file() for link in links)


def test_a_folder_as_out_gets_everything(report, tmp_path):
    report(DATA / "every_end.jsonl", "--out", tmp_path / "all")
    assert {path.name for path in (tmp_path / "all").iterdir()} == {
        "report.md",
        "report.html",
        "report.pictures",
        "cells.csv",
    }


def test_journals_merge_and_environments_stay_apart(report):
    _, out, _ = report(DATA / "every_end.jsonl", DATA / "emulated.jsonl", "--json")
    assert set(json.loads(out)["environments"]) == {"A", "B"}


def test_the_same_journal_twice_counts_once(report, tmp_path):
    _, out, err = report(DATA / "every_end.jsonl", DATA / ".." / "data" / "every_end.jsonl", "--json")
    assert "more than once" not in err
    shutil.copy(DATA / "every_end.jsonl", tmp_path / "copy.jsonl")
    _, again, err = report(DATA / "every_end.jsonl", tmp_path / "copy.jsonl", "--json")
    assert "more than once; the newest counts" in err
    assert json.loads(out)["scenes"] == json.loads(again)["scenes"]


def test_a_torn_line_is_told_on_stderr(report):
    code, _, err = report(DATA / "torn.jsonl")
    assert code == 0
    assert "torn" in err


def test_older_results_are_compared_with(report):
    _, out, _ = report(DATA / "every_end.jsonl", "--against", DATA / "older.jsonl")
    assert out.startswith("Against the older results, of 14 cells: 1 newly NaN")


@pytest.mark.parametrize(
    ("gate", "code"),
    [
        ("any nan in safe_sdpa", 0),
        ("any nan in sdpa", 1),
        ("safe_sdpa.eval_time > 1.5 * sdpa.eval_time", 0),
        ("safe_sdpa.eval_time > 1.001 * sdpa.eval_time", 1),
        ("unmask_sdpa.eval_time > 1.5 * sdpa.eval_time", 1),
    ],
)
def test_gates_decide_the_exit_code(report, gate, code):
    found, _, err = report(DATA / "every_end.jsonl", "--fail-if", gate)
    assert found == code
    assert err.startswith("mpsdiag: gate ")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["nowhere.jsonl"], "no journal at nowhere.jsonl"),
        ([DATA / "newer.jsonl"], "newer mpsdiag"),
        ([DATA / "make_journals.py"], "is not an mpsdiag journal"),
        ([DATA / "every_end.jsonl", "--format", "htlm"], "Did you mean 'html'?"),
        ([DATA / "every_end.jsonl", "--out", "x.pdf"], "What to write into x.pdf?"),
        ([DATA / "every_end.jsonl", "--json", "--format", "csv"], "cannot be combined"),
        ([DATA / "every_end.jsonl", "--fail-if", "any nan in saef_sdpa"], "Did you mean 'safe_sdpa'?"),
        ([DATA / "every_end.jsonl", "--fail-if", "nonsense"], "is not a gate"),
        ([DATA / "every_end.jsonl", "--out", "/proc/nowhere/a.md"], "Cannot write"),
        ([DATA / "every_end.jsonl", "--format", "csv", "--out", DATA], "is a folder"),
    ],
)
def test_bad_input_is_one_sentence(report, words, sentence):
    code, out, err = report(*words)
    assert code == 2
    assert out == ""
    assert sentence in err
    assert "Traceback" not in err


def test_a_terminal_without_our_marks_gets_ascii():
    done = subprocess.run(
        [sys.executable, "-c", "from mpsdiag.cli import main; main()", "report", str(DATA / "every_end.jsonl")],
        env={"PYTHONIOENCODING": "ascii", "PATH": ""},
        capture_output=True,
        check=True,
    )
    assert b"x NaN" in done.stdout
    assert done.stdout.isascii()


def test_torch_is_not_imported():
    code = (
        "import sys\n"
        "from mpsdiag.cli.main import app\n"
        "try:\n"
        "    app(sys.argv[1:])\n"
        "finally:\n"
        "    assert 'torch' not in sys.modules, 'torch was imported'\n"
    )
    words = ["report", str(DATA / "every_end.jsonl"), "--format", "html", "--fail-if", "any oom in eager"]
    subprocess.run([sys.executable, "-c", code, *words], capture_output=True, check=True)
