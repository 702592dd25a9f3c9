"""Documents of Macs beside the emulator: planted ones, made by an emulation and marked as measured."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest

import mpsdiag
from mpsdiag.emulation.selection import Emulation
from mpsdiag.errors import BadInput
from mpsdiag.probes.run import run_probe

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
mac_probes = importlib.import_module("mac_probes")
fidelity = importlib.import_module("fidelity")
sys.path.pop(0)

PROBES = ("SDPA001", "SDPA009")


@pytest.fixture(autouse=True)
def two_probes(monkeypatch):
    """The emulator's side, of two quick probes instead of the whole catalogue."""
    monkeypatch.setattr(
        mac_probes,
        "probed",
        lambda emulation: {name: run_probe(name, device="cpu", emulation=emulation) for name in PROBES},
    )


def planted(release, **changes):
    """What a Mac whose kernels are those of an emulated release would have printed."""
    document = mpsdiag.check(emulate=release, probes=PROBES).to_dict()
    document["environment"]["system"] = "macOS 15.5"
    document["environment"]["versions"]["torch"] = "2.8.0"
    return {**document, "device": "mps", "emulated": None, **changes}


@pytest.fixture
def folder(tmp_path):
    """One Mac that agrees, one whose torch is called 2.8 and behaves as 2.10, and what was not measured."""
    (tmp_path / "deep").mkdir()
    undecided = planted("2.8", probes=[], verdict="undecided", reason="device 'mps' cannot be used here: no memory")
    documents = {
        "agrees": planted("2.8"),
        "deep/differs": planted("2.10"),
        "undecided": undecided,
        "emulated": planted("2.8", emulated={"release": "2.8", "macos": 15}),
        "newer": planted("2.8", environment={"system": "macOS 15.5", "versions": {"torch": "9.9.0"}}),
        "other": ["not a check"],
    }
    for name, document in documents.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(document), encoding="utf-8")
    (tmp_path / "torn.json").write_text('{"schema": 1,', encoding="utf-8")
    return tmp_path


def test_agreement_per_probe_and_disagreements_with_both_outputs(folder):
    found = {one.name: one for one in mac_probes.read_folder(folder)}
    assert found["agrees.json"].agree == list(PROBES)
    assert not found["agrees.json"].differ
    differs = found["deep/differs.json"]
    assert (differs.agree, list(differs.differ)) == (["SDPA009"], ["SDPA001"])
    mac, emulated = differs.differ["SDPA001"]
    assert mac.startswith("pass / pass: ")
    assert emulated.startswith("pass / fail: ")
    assert "NaN" in emulated
    assert found["undecided.json"].why_not == "undecided: device 'mps' cannot be used here: no memory"
    assert found["emulated.json"].why_not.startswith("not measured on MPS")
    assert "9.9" in found["newer.json"].why_not
    assert all("not a document" in found[name].why_not for name in ("other.json", "torn.json"))
    text = mac_probes.as_markdown(list(found.values()))
    assert "| agrees.json | torch 2.8, macOS 15 | 2 | 0 | 0 |" in text
    assert text.count("| SDPA001 |") == 1


def test_a_probe_that_ran_on_one_side_only_is_neither_agreement_nor_disagreement(folder):
    path = folder / "agrees.json"
    document = json.loads(path.read_text(encoding="utf-8"))
    document["probes"][0].update(status="skip", training="skip", evaluation="skip", detail="no memory")
    path.write_text(json.dumps(document), encoding="utf-8")
    found = next(one for one in mac_probes.read_folder(folder) if one.name == "agrees.json")
    assert (found.agree, list(found.apart), found.differ) == (["SDPA009"], ["SDPA001"], {})
    assert "skip / skip: no memory" in mac_probes.as_markdown([found])


def test_the_emulation_is_that_of_the_documents_torch_and_macos(folder):
    assert next(iter(mac_probes.read_folder(folder))).emulation == Emulation("2.8", 15)


@pytest.mark.parametrize(("pattern", "code"), [("*", 1), ("agrees.json", 0), ("undecided.json", 0), ("", 2)])
def test_the_exit_code(folder, pattern, code, monkeypatch, capsys):
    for path in folder.rglob("*.json"):
        if not pattern or not path.match(pattern):
            path.unlink()
    monkeypatch.setattr(sys, "argv", ["fidelity.py", "--against", str(folder)])
    with pytest.raises(SystemExit) as stopped:
        fidelity.main()
    assert int(stopped.value.code) == code
    assert ("No JSON document" in capsys.readouterr().err) == (code == 2)


def test_a_folder_without_documents_is_refused(tmp_path):
    with pytest.raises(BadInput, match="No JSON document"):
        mac_probes.read_folder(tmp_path)
