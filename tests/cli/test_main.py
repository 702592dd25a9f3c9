"""The command line as a whole: quick help, no torch for it, the words of the contract."""

import importlib
import os
import subprocess
import sys
import threading
from pathlib import Path

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
    assert err.startswith("mpsdiag: Unexpected ZeroDivisionError: division by zero. Please report it with the")
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
    "train": [["--model"], ["--dataset"], ["--eval_dataset"], ["--output_dir"], ["--resume_from_checkpoint"]],
    "run": [[]],
}


@pytest.mark.parametrize(("command", "option"), [(name, words) for name, options in PATHS.items() for words in options])
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
    assert err.strip().splitlines()[-1].startswith("mpsdiag: ")
    assert err.count("\n") == 1 or command == "train"


@pytest.mark.skipif(os.name != "posix", reason="no user ids")
@pytest.mark.parametrize(("command", "option"), [(name, words) for name, options in PATHS.items() for words in options])
def test_a_path_that_may_not_be_used_is_one_sentence(command, option, tmp_path):
    """In a fork that gives up its rights, as root may read everything; what it imports is imported before."""
    for name in ("benching.run.bench", "benching.plan.matrix_file", "bisect.environments", "training.pipeline"):
        importlib.import_module(f"mpsdiag.{name}")
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o000)
    extra = [str(tmp_path)] if option == ["--against"] else []
    words = [command, *extra, *option, str(closed / "x")]
    with (tmp_path / "err").open("w+") as err:
        child = os.fork()
        if child == 0:
            os.dup2(err.fileno(), 2)
            sys.stderr = err
            if os.geteuid() == 0:
                os.seteuid(65534)
            try:
                main(words)
            except SystemExit as end:
                err.flush()
                os._exit(end.code or 0)
            os._exit(99)
        _, status = os.waitpid(child, 0)
        err.seek(0)
        said = err.read()
    assert os.waitstatus_to_exitcode(status) == 2, said
    assert "Unexpected" not in said
    assert said.strip().splitlines()[-1].startswith("mpsdiag: ")


def test_a_current_folder_that_is_gone_is_one_sentence(tmp_path, monkeypatch, capsys):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(SystemExit) as end:
        main(["check", "--list"])
    assert end.value.code == 2
    assert "current folder no longer exists" in capsys.readouterr().err


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


OF_FILES = [["check", "--model"], ["check", "--dataset"], ["trace", "--batch"], ["trace", "--dataset"]]
OF_FILES += [["trace"], ["compare", str(Path(__file__))], ["run"], ["trace", "--model"], ["trace", "--checkpoints"]]
OF_FILES += [["bench", "--dry-run", option] for option in ("--model", "--dataset", "--eval-dataset")]
OF_TRAIN = ["dataset", "model", "eval_dataset", "resume_from_checkpoint", "deepspeed", "accelerator_config"]
OF_FILES += [["train", f"--{option}"] for option in (*OF_TRAIN, "fsdp_config", "gradient_checkpointing_kwargs")]


@pytest.mark.parametrize("kind", ["pipe", "zero"])
@pytest.mark.parametrize("words", [["report"], ["report", "--against"], ["bench", "--dry-run"], *OF_FILES])
def test_what_is_read_without_end_is_refused(kind, words, tmp_path, capsys):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    with pytest.raises(SystemExit) as end:
        main([*words, str(tmp_path / kind), *([str(tmp_path / kind)] if "--against" in words else [])])
    assert end.value.code == 2
    err = capsys.readouterr().err
    whole = ("not a file.", "not a recorded case", "was not written by", "There is no folder", "is not a folder")
    assert any(words in err for words in whole), err


@pytest.mark.parametrize("words", [["train", "--resume_from_checkpoint"], ["trace", "--checkpoints"]])
@pytest.mark.parametrize("name", ["trainer_state.json", "model.safetensors"])
def test_a_pipe_in_a_checkpoint_is_refused(name, words, tmp_path, capsys):
    os.mkfifo(tmp_path / name)
    with pytest.raises(SystemExit) as end:
        main([*words, str(tmp_path)])
    assert end.value.code == 2
    assert f"{tmp_path}" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["bench", "--device", "cpu", "--out"], ["report"]])
def test_a_pipe_in_the_place_of_a_journal_is_refused(words, tmp_path, capsys):
    os.mkfifo(tmp_path / "journal.jsonl")
    with pytest.raises(SystemExit) as end:
        main([*words, str(tmp_path)])
    assert end.value.code == 2
    assert "journal.jsonl is a device, a socket or a named pipe" in capsys.readouterr().err


def test_where_memory_ends_it_is_one_sentence(monkeypatch, capsys):
    def too_much(*_, **__):
        raise MemoryError

    monkeypatch.setattr(sys.modules["mpsdiag.cli.main"], "app", too_much)
    with pytest.raises(SystemExit) as end:
        main(["report", "x"])
    assert (end.value.code, capsys.readouterr().err) == (
        2,
        "mpsdiag: There is not enough memory for this. Use smaller files or numbers, or free some memory.\n",
    )


@pytest.mark.parametrize("option", ["--model", "--dataset"])
def test_a_pipe_in_a_folder_is_refused_too(option, tmp_path, capsys):
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(SystemExit) as end:
        main(["check", option, str(tmp_path)])
    assert end.value.code == 2
    assert "not a file. Give a file." in capsys.readouterr().err


def test_a_journal_can_come_through_a_pipe(capsys):
    data = (Path(__file__).parents[1] / "data" / "every_end.jsonl").read_bytes()
    reading, writing = os.pipe()
    writer = threading.Thread(target=lambda: (os.write(writing, data), os.close(writing)))
    writer.start()
    with pytest.raises(SystemExit) as end:
        main(["report", f"/dev/fd/{reading}", "--json"])
    writer.join()
    os.close(reading)
    out, err = capsys.readouterr()
    assert (end.value.code, '"headline"' in out) == (0, True), err
