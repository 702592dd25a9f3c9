"""What `mpsdiag run` works out before it becomes the script's process."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys

import pytest

from mpsdiag.errors import BadInput
from mpsdiag.fixes.script import prepare
from mpsdiag.fixes.startup import FOLDER, RunRequest, wish_of


def _prepare(target, *arguments, as_module=False, fixes=("safe_sdpa",), emulate=None, macos=15, environ=None):
    return prepare(
        str(target), arguments, as_module=as_module, fixes=fixes, emulate=emulate, macos=macos, environ=environ or {}
    )


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "train me.py"
    path.write_text("")
    return path


@pytest.mark.parametrize("wish", [RunRequest(("eager",)), RunRequest(("sdpa",), "2.8", 14)])
def test_a_wish_survives_the_environment(wish):
    assert wish_of(wish.environment({"OTHER": "1"})) == wish
    assert wish_of({"OTHER": "1"}) is None


def test_an_older_wish_is_replaced_whole():
    outer = RunRequest(("eager",), "2.8", 14).environment({"PYTHONPATH": "/mine"})
    inner = RunRequest(("safe_sdpa",)).environment(outer)
    assert wish_of(inner) == RunRequest(("safe_sdpa",))
    assert inner["PYTHONPATH"].split(os.pathsep) == [str(FOLDER), "/mine"]


def test_the_current_folder_does_not_slip_into_the_path():
    assert RunRequest(("eager",)).environment({})["PYTHONPATH"] == str(FOLDER)
    assert RunRequest(("eager",)).environment({"PYTHONPATH": ""})["PYTHONPATH"] == str(FOLDER)


def test_the_command_is_pythons_own(script):
    launch = _prepare(script, "--lr", "1", "--", "-x", emulate="2.8.0", environ={"HOME": "/h"})
    assert launch.command == (sys.executable, str(script), "--lr", "1", "--", "-x")
    assert launch.environment["HOME"] == "/h"
    assert wish_of(launch.environment) == RunRequest(("safe_sdpa",), "2.8", 15)
    assert "emulated MPS of torch 2.8 on macOS 15" in launch.note
    assert "stock attention" in _prepare(script, fixes=["sdpa"]).note
    both = _prepare(script, fixes=["safe_sdpa", "positions"])
    assert both.note.startswith("safe_sdpa and positions are installed")
    assert wish_of(both.environment).fixes == ("safe_sdpa", "positions")
    assert _prepare("json.tool", "a", as_module=True).command == (sys.executable, "-m", "json.tool", "a")


def test_a_folder_with_a_main_is_a_script(tmp_path):
    with pytest.raises(BadInput, match=r"without a __main__\.py"):
        _prepare(tmp_path)
    (tmp_path / "__main__.py").write_text("")
    assert _prepare(tmp_path).command[1] == str(tmp_path)


def test_a_module_of_the_current_folder_is_found(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput, match=f"No module named mine.train .*{tmp_path.name}"):
        _prepare("mine.train", as_module=True)
    (tmp_path / "mine").mkdir()
    assert _prepare("mine.train", as_module=True).command[1:] == ("-m", "mine.train")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"fixes": ["safe_spda"]}, "Did you mean 'safe_sdpa'"),
        ({"fixes": ["positons"]}, "Did you mean 'positions'"),
        ({"fixes": ["flex_attention"]}, 'mpsdiag.apply(model, "flex_attention")'),
        ({"emulate": "1.9"}, "Unknown torch release '1.9'"),
        ({"emulate": "2.8", "macos": 16}, "macOS 16"),
    ],
)
def test_bad_options_are_one_sentence(options, words, script):
    with pytest.raises(BadInput) as problem:
        _prepare(script, **options)
    assert words in str(problem.value)


def test_a_script_that_is_not_there(tmp_path, monkeypatch):
    with pytest.raises(BadInput, match="There is no script"):
        _prepare(tmp_path / "nowhere.py")
    command = tmp_path / "launcher"
    command.write_text("#!/bin/sh\n")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BadInput, match=f"mpsdiag run {command}"):
        _prepare("launcher")


def test_a_script_that_may_not_be_read(script, monkeypatch):
    # Asked of the system through os.access: to root, who may run this, every file is readable.
    monkeypatch.setattr(os, "access", lambda path, mode: str(path) != str(script) or mode != os.R_OK)
    with pytest.raises(BadInput, match="permission denied"):
        _prepare(script)


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["python", "-I", "x.py"], "-I"),
        (["/usr/bin/python3.12", "-BE", "-m", "x"], "-E"),
        (["python", "-X", "utf8", "-Werror", "-S", "x.py"], "-S"),
        (["env", "A=1", "python3", "-I"], "-I"),
        ("python3 -u -I x.py", "-I"),
        (["/bin/sh", "-c", "cd /x && python -E y.py"], "-E"),
        (["python", "x.py", "-I"], ""),
        (["python", "-c", "print('-I')"], ""),
        (["python", "-WI", "x.py"], ""),
        (["python", "-X", "I"], ""),
        (["echo", "-I"], None),
        ([], None),
    ],
)
def test_what_keeps_a_python_from_the_hook(words, why):
    hook = runpy.run_path(str(FOLDER / "sitecustomize.py"))
    assert hook["_shuts_out"](hook["_words"](words)) == why


def test_a_python_that_is_not_reached_is_named_once(tmp_path):
    (tmp_path / "tool").write_text(f"#!{sys.executable} -I\n")
    (tmp_path / "tool").chmod(0o755)
    (tmp_path / "script.py").write_text(
        "import os, subprocess, sys\n"
        "for words in (['-c', ''], ['-I', '-c', ''], ['-I', '-c', ''], ['-E', '-c', '\\33[31m = 1']):\n"
        "    subprocess.run([sys.executable, *words], check=False, stderr=subprocess.DEVNULL)\n"
        "subprocess.run(['./tool'], check=True)\n"
        "subprocess.run([sys.executable, '-c', ''], env={'A': 'b'}, check=True)\n"
        "os.system('unclosed \" quote 2>/dev/null')\n"
    )
    launch = _prepare(tmp_path / "script.py", environ=dict(os.environ))
    done = subprocess.run(
        launch.command, cwd=tmp_path, env=dict(launch.environment), capture_output=True, text=True, check=True
    )
    lines = [line for line in done.stderr.splitlines() if line.startswith("mpsdiag: nothing can be installed in ")]
    assert [line.rpartition(": ")[2] for line in lines] == [
        "-I keeps it out.",
        "-E keeps it out.",
        "-I keeps it out.",
        "PYTHONPATH is not passed on to it.",
    ]
    assert all(line.isprintable() for line in lines)
