import json
import platform

import pytest

from mpsdiag import environment
from mpsdiag.environment import Environment, facts, gather, relevant_variables, to_markdown, versions
from mpsdiag.errors import BadInput


def test_only_steering_variables_are_shown_and_secrets_are_not():
    shown = relevant_variables(
        {"PYTORCH_ENABLE_MPS_FALLBACK": "1", "HF_TOKEN": "hf_x", "HF_HOME": "here", "PATH": "/bin"}, clean=str.upper
    )
    assert shown == {"HF_HOME": "<set>", "HF_TOKEN": "<set>", "PYTORCH_ENABLE_MPS_FALLBACK": "1"}


def test_this_machine_is_described(monkeypatch):
    monkeypatch.setenv("PYTORCH_MPS_HIGH_WATERMARK_RATIO", "0.0")
    found = gather({"mps_built": False, "mps_available": False}, "sdpa")
    assert found.python == platform.python_version()
    assert found.versions["torch"] == versions()["torch"]
    assert found.memory is not None
    assert found.memory > 2**28
    assert found.variables["PYTORCH_MPS_HIGH_WATERMARK_RATIO"] == "0.0"
    json.dumps(found.model_dump())


def test_a_mac_is_asked_for_its_chip_and_build(monkeypatch):
    answers = {"sw_vers": "24F74", "sysctl": "Apple M4 Pro", "ioreg": '    "gpu-core-count" = 20'}
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    monkeypatch.setattr(platform, "mac_ver", lambda: ("15.5", ("", "", ""), "arm64"))
    monkeypatch.setattr(environment, "_ask", lambda program, *_: answers[program])
    found = gather()
    assert (found.system, found.system_build) == ("macOS 15.5", "24F74")
    assert (found.chip, found.gpu_cores) == ("Apple M4 Pro", 20)


def test_the_markdown_block_has_one_fact_a_line_and_leaves_unknown_ones_out():
    found = Environment(
        mpsdiag="0.1.0",
        python="3.11.7",
        system="macOS 15.5",
        machine="arm64",
        memory=64 * 2**30,
        mps_usable=False,
        mps_note="refuses work",
    )
    text = to_markdown(found, str)
    assert "- Memory: 64.0 GiB\n" in text
    assert "- MPS usable: no (refuses work)\n" in text
    assert "None" not in text
    assert text.startswith("<details>")
    assert ("Chip", "None") not in facts(found)


def test_a_program_that_is_not_there_gives_nothing():
    assert environment._ask("no-such-program-here") is None


@pytest.mark.parametrize(
    ("torch", "transformers", "declared", "sentence"),
    [
        ("2.5.1", "5.23.0", ["torch>=2.6; extra == 'torch'"], "transformers 5.23.0 needs torch 2.6 or newer"),
        ("2.4.1", "4.53.3", ["torch>=2.1; extra == 'torch'", "torch<2.7,>=2.1"], "needs torch 2.5 or newer"),
        ("2.13.0+cpu", "5.23.0", ["torch>=2.6; extra == 'torch'"], None),
        ("2.10.0", "4.56.2", None, None),
    ],
)
def test_a_torch_that_transformers_disables_is_refused_in_a_sentence(
    monkeypatch, torch, transformers, declared, sentence
):
    versions = {"torch": torch, "transformers": transformers}
    monkeypatch.setattr(environment.metadata, "version", versions.__getitem__)
    monkeypatch.setattr(environment.metadata, "requires", lambda name: declared)
    if sentence is None:
        environment.require_working_pair()
        return
    with pytest.raises(BadInput, match=sentence) as refused:
        environment.require_working_pair()
    assert torch in str(refused.value)
    assert "pip install -U" in str(refused.value)


def test_what_is_not_installed_is_left_to_the_import(monkeypatch):
    def missing(name):
        raise environment.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(environment.metadata, "version", missing)
    environment.require_working_pair()
