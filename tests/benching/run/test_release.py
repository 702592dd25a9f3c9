"""Cells in the environment of another release: its Python, its versions, its crashes."""

import json
import sys
import venv
from pathlib import Path

import pytest

import mpsdiag
from mpsdiag.benching.journal.record import RELEASE_FUNCTION, Job
from mpsdiag.benching.plan.matrix_file import parse_matrix
from mpsdiag.benching.plan.request import BenchRequest
from mpsdiag.benching.run.executor import here
from mpsdiag.benching.run.launch import LIGHT, Isolation
from mpsdiag.errors import BadInput
from mpsdiag.release_environment import MARKER, Built, facts_in, find, versions_in
from mpsdiag.scenario.scenario import Scenario

NAME = "torch-9.9-py3.11-00000000"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An environment with nothing in it but its marker."""
    monkeypatch.setenv("MPSDIAG_CACHE", str(tmp_path))
    made = tmp_path / "environments" / NAME
    (made / "bin").mkdir(parents=True)
    built = Built(name=NAME, python="3.9.1", requirements=("torch==9.9",), freeze=("torch==9.9", "numpy==1.0"))
    (made / MARKER).write_text(built.model_dump_json())
    return made


@pytest.fixture
def run(folder, tmp_path):
    cell = Scenario(environment=NAME, max_steps=0, eval_max_batches=1)
    job = Job(key="k", cell=cell, function=RELEASE_FUNCTION, log=str(tmp_path / "cell.log"), time_limit=120.0)
    # A fork server would have the variables of the first test.
    return lambda: Isolation("spawn", preload=LIGHT).run(job)


def script(folder, text):
    python = folder / "bin" / "python"
    python.write_text(f"#!/bin/sh\n{text}\n")
    python.chmod(0o755)


def test_a_cell_runs_in_the_python_of_the_environment(folder, run, monkeypatch):
    venv.create(folder, symlinks=True)
    packages = next(folder.glob("lib/python*/site-packages"))
    paths = [str(Path(mpsdiag.__file__).parents[1]), *(one for one in sys.path if "site-packages" in one)]
    (packages / "beside.pth").write_text("\n".join(paths))
    monkeypatch.setenv("PYTHONPATH", "/nowhere")
    ended = run()
    assert ended.status == "ok", ended.reason + ended.log_tail
    assert ended.measured.exact
    assert not list(folder.parents[1].glob("*.answer.json"))


@pytest.mark.parametrize(
    ("text", "status", "signal", "reason"),
    [
        ("kill -ABRT $$", "crash", "SIGABRT", "ended by SIGABRT"),
        ("kill -KILL $$", "crash", "SIGKILL", "ended by SIGKILL"),
        ("echo no torch here >&2; exit 3", "error", None, f"the Python of {NAME} ended with exit code 3"),
    ],
)
def test_how_that_python_ends_is_how_the_cell_ends(folder, run, text, status, signal, reason):
    script(folder, text)
    ended = run()
    assert (ended.status, ended.signal) == (status, signal)
    assert reason in ended.reason
    assert ("no torch here" in ended.log_tail) == (status == "error")


def test_key_and_facts_are_those_of_the_environment(folder):
    script(folder, "")
    assert versions_in(None, {"torch": "2.0"}) == {"torch": "2.0"}
    assert versions_in(NAME, {"torch": "2.0", "transformers": "5"}) == {"torch": "9.9", "transformers": "missing"}
    facts = facts_in(NAME, {"chip": "A", "python": "3.11", "versions": {"torch": "2.0", "datasets": "5"}})
    assert facts == {"chip": "A", "python": "3.9.1", "versions": {"torch": "9.9", "numpy": "1.0"}}
    plain = Scenario()
    fields = {name: value for name, value in plain.model_dump().items() if name != "environment"}
    assert json.loads(plain.model_dump_json())["environment"] is None
    assert plain.key({}) != Scenario(environment=NAME).key({})
    assert Scenario(**fields).key({}) == plain.key({})


def test_an_environment_that_is_not_there_is_named(folder, tmp_path):
    spec = parse_matrix("[axes]\nenvironment = ['none', 'torch-9.8-py3.11-00000000']", "m")
    assert spec.environments == ["torch-9.8-py3.11-00000000"]
    with pytest.raises(BadInput, match=r"no environment 'torch-9.8.*`mpsdiag bisect` builds them"):
        here(BenchRequest(spec=spec, out=tmp_path, command=[]))
    script(folder, "")
    with pytest.raises(BadInput, match=f"Did you mean '{NAME}'"):
        find("torch-9.8-py3.11-00000000")
    with pytest.raises(BadInput, match="does not name an environment"):
        parse_matrix("[axes]\nenvironment = '../elsewhere'", "m")
