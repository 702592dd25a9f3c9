"""The command line as a whole: quick help, no torch for it, the words of the contract."""

import os
import subprocess
import sys

import pytest

from mpsdiag.cli import main

COMMANDS = ("check", "compare", "bench", "report", "train", "trace", "run", "env")


def test_help_names_every_command(capsys):
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    assert not end.value.code
    out = capsys.readouterr().out
    assert all(f"\n  {command} " in out for command in COMMANDS)


@pytest.mark.parametrize("words", [["--help"], *([command, "--help"] for command in COMMANDS)])
def test_help_needs_neither_torch_nor_transformers(words):
    program = (
        "import sys\n"
        "from mpsdiag.cli import main\n"
        "try:\n"
        f"    main({words!r})\n"
        "except SystemExit:\n"
        "    heavy = {'torch', 'transformers', 'pandas', 'datasets', 'matplotlib'} & set(sys.modules)\n"
        "    sys.exit(f'loaded: {heavy}' if heavy else 0)\n"
    )
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    assert "usage: mpsdiag" in answer.stdout.replace("Usage", "usage")


def test_what_nobody_foresaw_is_a_sentence_its_traceback_kept_and_no_finding(capsys, monkeypatch, tmp_path):
    def broken(*_, **__):
        raise ZeroDivisionError("division by zero\nand more")

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("mpsdiag.reporting.check.catalogue_document", broken)
    with pytest.raises(SystemExit) as end:
        main(["check", "--list"])
    assert end.value.code == 3
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(
        "mpsdiag: Unexpected ZeroDivisionError: division by zero. Please report it with the"
    )
    assert err.count("\n") == 1
    [file] = tmp_path.glob("mpsdiag-*.txt")
    assert str(file) in err
    assert "in broken" in file.read_text()


def test_3_is_for_commands_that_have_it(capsys, monkeypatch, tmp_path):
    def broken(*_, **__):
        raise ZeroDivisionError

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("mpsdiag.benching.journal.journal.read_journal", broken)
    with pytest.raises(SystemExit) as end:
        main(["report", str(tmp_path)])
    assert end.value.code == 2
    assert "Unexpected ZeroDivisionError" in capsys.readouterr().err


LONG = "x" * 300
PATHS = {
    "check": [["--model"], ["--dataset"]],
    "trace": [["--model"], ["--dataset"], ["--batch"], ["--checkpoints"], []],
    "bench": [[], ["--model"], ["--dataset"], ["--out"]],
    "report": [[], ["--against"]],
}


@pytest.mark.parametrize(
    ("command", "option"), [(name, words) for name, options in PATHS.items() for words in options]
)
@pytest.mark.parametrize("kind", ["long", "circle", "below a file"])
def test_every_path_that_cannot_be_used_is_one_sentence(command, option, kind, capsys, tmp_path):
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    (tmp_path / "file").write_text("x")
    path = {"long": tmp_path / LONG, "circle": tmp_path / "a", "below a file": tmp_path / "file" / "x"}[kind]
    extra = [str(tmp_path)] if option == ["--against"] else []
    words = [command, *extra, *option, str(path)]
    if command == "bench":
        words += ["--rounds", "0", "--attn-implementation", "sdpa", "--trainer", "standard"]
    with pytest.raises(SystemExit) as end:
        main(words)
    out, err = capsys.readouterr()
    assert (end.value.code, out) == (2, ""), err
    assert "Unexpected" not in err
    assert err.count("\n") == 1


def test_a_current_folder_that_is_gone_is_one_sentence(tmp_path, monkeypatch, capsys):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(SystemExit) as end:
        main(["check", "--list"])
    assert end.value.code == 2
    assert "current folder does not exist" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["chekc\x1b[31m"], ["check", "--level", "\x1b]0;title\x07two"]])
def test_nothing_that_steers_the_terminal_is_printed(words, capsys):
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 2
    assert "\x1b" not in capsys.readouterr().err


@pytest.mark.parametrize("words", [["chekc"], ["check", "--emulat", "2.8"], ["check", "--level", "two"]])
def test_bad_usage_ends_with_2(words, capsys):
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["pipe", "zero"])
@pytest.mark.parametrize("words", [["report"], ["report", "--against"], ["bench", "--dry-run"]])
def test_what_is_read_without_end_is_refused(kind, words, tmp_path, capsys):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    with pytest.raises(SystemExit) as end:
        main([*words, str(tmp_path / kind), *([str(tmp_path / kind)] if "--against" in words else [])])
    assert end.value.code == 2
    assert "not a file. Give a file." in capsys.readouterr().err
