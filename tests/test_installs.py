"""Broken and missing libraries: `env` still answers, every other command names the library and how to install it."""

import os
import subprocess
import sys

import pytest

from mpsdiag import installs
from mpsdiag.cli import main

NAMES = ("torch", "transformers", "numpy", "pydantic", "datasets", "pandas", "accelerate")
COMMAND = [sys.executable, "-c", "from mpsdiag.cli import main; main()"]


@pytest.fixture
def loaded():
    """What transformers knows of its libraries it finds out once; that must not be here."""
    from mpsdiag.environment import default_attention

    return default_attention()


@pytest.mark.usefixtures("loaded")
@pytest.mark.parametrize("name", NAMES)
def test_env_answers_0_and_names_what_is_missing(name, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, name, None)  # an import of it fails now
    with pytest.raises(SystemExit) as end:
        main(["env"])
    out, _ = capsys.readouterr()
    assert end.value.code == 0
    assert f"- {name} fails: not installed" in out


@pytest.mark.parametrize("name", NAMES)
def test_the_sentence_names_the_library_and_the_pip_line(name, monkeypatch):
    assert installs.explained(ValueError("x")) is None
    monkeypatch.setitem(sys.modules, name, None)
    assert f"pip install {name}" in installs.explained(ValueError("x"))


@pytest.mark.parametrize(("name", "words"), [("torch", ["check"]), ("pydantic", ["report", "x.jsonl"])])
def test_a_library_that_breaks_at_its_import(name, words, tmp_path):
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").write_text("raise OSError('libbroken.so: \\x1b[31mcannot open')")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    for command, code in ((["env"], 0), (["env", "--json"], 0), (words, 2)):
        process = subprocess.run(
            [*COMMAND, *command], capture_output=True, text=True, check=False, env=environment, timeout=200
        )
        assert process.returncode == code, process.stderr
        text = process.stdout + process.stderr
        assert "libbroken.so" in text
        assert "Traceback" not in text
        assert "Unexpected" not in text
        assert "\x1b" not in text
        if code:
            assert f"pip install --force-reinstall --no-deps {name}" in process.stderr
