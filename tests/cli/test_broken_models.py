"""Models and data that do not fit each other, as a user of check, trace and train meets them."""

import json
import shutil

import pytest

from mpsdiag.cli import main
from mpsdiag.inputs.builtin import byte_tokenizer
from mpsdiag.inputs.models import build_model

COMMANDS = {
    "check": ["check", "--device", "cpu"],
    "trace": ["trace", "--device", "cpu", "--eval-max-batches", "1"],
    "train": ["train", "--device", "cpu", "--mode", "sft", "--max_steps", "1", "--disable_tqdm", "true"],
}


@pytest.fixture
def run(capsys, monkeypatch, tmp_path):
    """Run a command in this process; gives (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def call(command, *words):
        with pytest.raises(SystemExit) as end:
            main([*COMMANDS[command], *map(str, words)])
        out, err = capsys.readouterr()
        return end.value.code or 0, out, err

    return call


def saved(folder, **options):
    build_model("tiny-gpt2", **options).save_pretrained(folder)
    byte_tokenizer("left").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    """A GPT-2 of 128 positions."""
    return saved(tmp_path_factory.mktemp("short"), max_positions=128)


@pytest.fixture(scope="module")
def long_text(tmp_path_factory):
    file = tmp_path_factory.mktemp("text") / "long.txt"
    file.write_text("\n".join(" ".join(["water"] * count) for count in range(20, 60)), encoding="utf-8")
    return file


@pytest.mark.parametrize("command", COMMANDS)
def test_a_broken_model_is_a_sentence_and_exit_code_2(run, command, short, tmp_path):
    folder = shutil.copytree(short, tmp_path / "model")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    code, out, err = run(command, "--model", folder)
    assert (code, out) == (2, "")
    assert "damaged or cut short" in err
    assert "Traceback" not in err


@pytest.mark.parametrize("command", ["check", "train"])
def test_a_vocabulary_smaller_than_the_tokenizers(run, command, tmp_path):
    folder = saved(tmp_path / "model", vocab_size=50, max_positions=128)
    code, out, err = run(command, "--model", folder)
    assert (code, out) == (2, "")
    assert "the model has only 0 to 49" in err
    assert "Traceback" not in err


def test_a_vocabulary_smaller_than_the_tokenizers_is_what_trace_finds(run, tmp_path):
    folder = saved(tmp_path / "model", vocab_size=50, max_positions=128)
    code, out, _ = run("trace", "--model", folder, "--json")
    found = json.loads(out)
    assert (code, found["origin"]["cause"], found["origin"]["also"]) == (1, "bad_inputs", [])


def test_check_cuts_texts_to_the_positions_of_the_model(run, short, long_text):
    code, out, _ = run("check", "--model", short, "--dataset", long_text, "--json")
    document = json.loads(out)
    scenario = document["scenario"]
    # GPT-2 numbers positions from the left edge, padding included: that makes the exit code, not the cut.
    assert (code, document["invariance"]["cause"], scenario["verdict"]) == (1, "positions", "not_affected")
    assert any("positions for 128 tokens" in note for note in scenario["exposure"]["notes"])


def test_trace_cuts_texts_to_the_positions_of_the_model(run, short, long_text):
    code, out, _ = run("trace", "--model", short, "--dataset", long_text, "--json")
    found = json.loads(out)
    assert (code, found["origin"], found["case"]["max_length"]) == (0, None, 128)
