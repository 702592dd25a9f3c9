"""`mpsdiag env`: what a user pastes into an issue."""

import getpass
import json
import socket
from pathlib import Path

import pytest

from mpsdiag.cli import main
from mpsdiag.environment import Environment


@pytest.fixture
def run(capsys):
    def call(*words):
        with pytest.raises(SystemExit) as end:
            main(["env", *words])
        out, err = capsys.readouterr()
        return end.value.code or 0, out, err

    return call


def test_the_block_names_what_others_leave_out(run):
    code, out, err = run()
    assert (code, err) == (0, "")
    for line in ("- torch: ", "- transformers: ", "- MPS built: ", "- MPS available: ", "- Memory: "):
        assert line in out
    assert "- Default attention: sdpa\n" in out


def test_the_document_is_json_with_a_schema(run):
    _, out, _ = run("--json")
    found = json.loads(out)
    assert found.pop("schema") == 1
    assert Environment.model_validate(found).default_attention == "sdpa"


def test_nothing_personal_gets_out(run, monkeypatch):
    home, host = str(Path.home()), socket.gethostname()
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefghijklmnopqrst")
    monkeypatch.setenv("HF_HOME", f"{home}/caches/{getpass.getuser()}/on/{host}")
    monkeypatch.setenv("PYTORCH_EXTRA", "hf_abcdefghijklmnopqrst")
    for words in ((), ("--json",)):
        _, out, _ = run(*words)
        assert "abcdefghijklmnopqrst" not in out
        assert home not in out
        assert f"/{getpass.getuser()}/" not in out
        assert f"/{host}" not in out
        assert "HF_HOME" in out
