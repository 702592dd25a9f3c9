"""The command line as a whole: quick help, no torch for it, the words of the contract."""

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
    monkeypatch.setattr("mpsdiag.environment.gather", broken)
    with pytest.raises(SystemExit) as end:
        main(["env"])
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


@pytest.mark.parametrize("words", [["chekc"], ["check", "--emulat", "2.8"], ["check", "--level", "two"]])
def test_bad_usage_ends_with_2(words, capsys):
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 2
    assert "Traceback" not in capsys.readouterr().err
