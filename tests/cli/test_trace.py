"""`mpsdiag trace` as a user meets it."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from mpsdiag.cli import main
from mpsdiag.tracing.run import TraceReport


@pytest.fixture
def run(capsys, monkeypatch):
    """Run the command in this process; gives (exit code, stdout, stderr)."""
    monkeypatch.setenv("COLUMNS", "200")

    def call(*words):
        with pytest.raises(SystemExit) as end:
            main(["trace", *map(str, words)])
        out, err = capsys.readouterr()
        return end.value.code or 0, out, err

    return call


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A saved tiny model with its tokenizer."""
    from mpsdiag.inputs.builtin import byte_tokenizer
    from mpsdiag.inputs.models import build_model

    folder = tmp_path_factory.mktemp("model")
    build_model("tiny-llama").save_pretrained(folder)
    byte_tokenizer("left").save_pretrained(folder)
    return folder


def document(out):
    def refuse(constant):
        raise AssertionError(f"bare {constant} is not JSON")

    return json.loads(out, parse_constant=refuse)


def test_a_clean_run(run):
    code, out, err = run("--device", "cpu", "--eval-max-batches", 1, "--max-length", 32)
    assert code == 0
    assert out.startswith("all finite: cpu with torch")
    assert "Measured on this machine's cpu" in out
    assert err == ""


def test_dead_rows_under_emulation(run):
    code, out, _ = run("--emulate", "2.8", "--eval-max-batches", 2, "--max-length", 48)
    assert code == 1
    assert out.startswith("dead_rows: fully masked rows, on EMULATED MPS of torch 2.8 on macOS 15")
    assert "Nothing here was measured on MPS" in out
    assert "model.layers.0.self_attn" in out
    assert "scaled_dot_product_attention" in out
    assert 'mpsdiag.install("safe_sdpa")' in out


def test_tiny_mistral_with_right_padding(run):
    """The dead rows come from the sliding window, and it is named."""
    code, out, _ = run("--emulate", "2.8", "--model", "tiny-mistral", "--padding-side", "right", "--json")
    found = document(out)
    assert code == 1
    assert found["origin"]["cause"] == "dead_rows"
    assert "sliding window" in found["origin"]["summary"]
    assert set(found["origin"]["evidence"]["where"]) == {"padding after the last real token"}


def test_the_document_follows_its_schema(run):
    _, out, _ = run("--emulate", "2.8", "--eval-max-batches", 1, "--json")
    found = document(out)
    assert found["schema"] == 1
    TraceReport.model_validate(found)
    assert set(found) == set(TraceReport.model_json_schema(by_alias=True)["properties"])


def test_the_exact_fix_resolves_it(run):
    code, _, _ = run(
        "--emulate", "2.8", "--attn-implementation", "safe_sdpa", "--eval-max-batches", 2, "--max-length", 48
    )
    assert code == 0


def test_the_markdown_block(run):
    code, out, _ = run("--emulate", "2.8", "--eval-max-batches", 1, "--markdown")
    assert code == 1
    assert out.startswith("**mpsdiag trace: dead_rows")
    assert "| operation | scaled_dot_product_attention |" in out.replace("\\_", "_")
    assert "<details><summary>Environment" in out


def test_training(run):
    diverging = ("--model", "tiny-gpt2", "--max-steps", 3, "--learning-rate", 1e25)
    code, out, _ = run("--device", "cpu", "--train", *diverging, "--max-length", 32, "--json")
    found = document(out)
    assert code == 1
    assert (found["mode"], found["origin"]["cause"]) == ("training", "divergence")
    code, out, _ = run("--device", "cpu", "--train", "--max-steps", 2, "--max-length", 32)
    assert code == 0
    assert "training steps" in out


def test_a_script_is_written_beside_the_report(run, tmp_path, monkeypatch):
    monkeypatch.setattr("mpsdiag.tracing.repro.repro_script._run", lambda text, emulation: "1 of 1 values")
    path = tmp_path / "repro.py"
    code, out, _ = run("--emulate", "2.8", "--eval-max-batches", 1, "--repro", path, "--json")
    found = document(out)
    assert code == 1
    assert found["repro"] == str(path)
    assert "it shows the fault" in found["repro_note"]
    compile(path.read_text(), "repro", "exec")
    code, _, err = run("--repro", tmp_path / "x.txt")
    assert code == 2
    assert "does not end in .py" in err


def test_real_text(run, wikitext):
    code, out, _ = run("--emulate", "2.8", "--dataset", wikitext / "test.txt", "--eval-max-batches", 2, "--json")
    found = document(out)
    assert code == 1
    assert found["origin"]["cause"] == "dead_rows"


def test_a_saved_batch_with_a_saved_model(run, checkpoint, tmp_path):
    ids = torch.randint(3, 250, (2, 9))
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    save_file({"input_ids": ids, "attention_mask": mask}, tmp_path / "b.safetensors")
    code, out, _ = run("--model", checkpoint, "--batch", tmp_path / "b.safetensors", "--emulate", "2.8", "--json")
    found = document(out)
    assert code == 1
    assert (found["origin"]["cause"], found["origin"]["evidence"]["dead_rows"]) == ("dead_rows", 4)
    code, _, _ = run("--model", checkpoint, "--batch", tmp_path / "b.safetensors", "--device", "cpu")
    assert code == 0


def test_bad_weights_and_since_which_checkpoint(run, checkpoint, tmp_path):
    for step in (5, 10, 15):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        for path in checkpoint.iterdir():
            (folder / path.name).write_bytes(path.read_bytes())
        if step > 5:
            weights = {name: weight.clone() for name, weight in load_file(folder / "model.safetensors").items()}
            weights["model.layers.1.mlp.up_proj.weight"][0, 0] = float("inf")
            save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    code, out, _ = run(
        "--checkpoints", tmp_path, "--device", "cpu", "--eval-max-batches", 1, "--max-length", 32, "--json"
    )
    origin = document(out)["origin"]
    assert code == 1
    assert (origin["cause"], origin["layer"]) == ("bad_weights", 1)
    assert origin["evidence"]["history"]["bad_since"] == "checkpoint-10"
    assert "since checkpoint-10; checkpoint-5 is the last finite one" in origin["summary"]


def test_a_device_that_is_not_there_leaves_it_undecided(run):
    if torch.backends.mps.is_available():
        pytest.skip("there is an MPS device here")
    code, out, err = run("--device", "mps")
    assert (code, out) == (3, "")
    assert "built without MPS" in err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("nowhere",), "There is no folder nowhere"),
        (("--model", "."), "Cannot load"),
        (("--model", "tiny-gtp2"), "tiny-gpt2"),
        (("--dataset", "no/such.txt"), "no/such.txt"),
        (("--batch", "no.safetensors"), "Cannot read the batch"),
        (("--device", "cdua"), "Did you mean 'cuda'"),
        (("--emulate", "1.9"), "1.9"),
        (("--emulate", "2.8", "--dtype", "float64"), "MPS does not support float64"),
        (("--emulate", "2.8", "--device", "cuda"), "--emulate runs on the CPU"),
        (("--padding-side", "lefft"), "Did you mean 'left'"),
        (("--attn-implementation", "spda"), "Did you mean 'sdpa'"),
        (("--dtype", "flota32"), "Did you mean 'float32'"),
        (("--json", "--markdown"), "cannot be combined"),
        (("--checkpoints", "nowhere"), "There is no folder nowhere"),
    ],
)
def test_bad_input_gets_one_sentence(run, words, sentence, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(*words)
    assert code == 2
    assert out == ""
    assert sentence in err
    assert "Traceback" not in err
    assert len(err.strip().splitlines()) == 1


def test_a_model_whose_weights_are_pickles_is_refused_with_the_reason(run, checkpoint, tmp_path):
    (tmp_path / "config.json").write_bytes((checkpoint / "config.json").read_bytes())
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x02")
    code, _, err = run("--model", tmp_path, "--device", "cpu")
    assert code == 2
    assert "loading a pickle can run any code" in err


def test_a_model_folder_given_as_a_case_is_pointed_out(run, checkpoint):
    code, _, err = run(checkpoint)
    assert code == 2
    assert "give it as --model" in err


@pytest.mark.parametrize(
    ("batch", "sentence"),
    [
        ({"input_idz": torch.ones(2, 5, dtype=torch.long)}, "Did you mean 'input_ids'"),
        (
            {"input_ids": torch.ones(2, 5, dtype=torch.long), "attention_mask": torch.ones(2, 4, dtype=torch.long)},
            "(2, 4)",
        ),
    ],
)
def test_a_batch_that_does_not_fit(run, batch, sentence, tmp_path):
    save_file(batch, tmp_path / "b.safetensors")
    code, _, err = run("--batch", tmp_path / "b.safetensors", "--device", "cpu")
    assert code == 2
    assert sentence in err


def test_options_without_effect_are_named(run, tmp_path):
    ids = torch.ones(2, 5, dtype=torch.long)
    save_file({"input_ids": ids, "labels": ids.clone()}, tmp_path / "b.safetensors")
    words = ("--device", "cpu", "--batch", tmp_path / "b.safetensors", "--no-compare")
    _, _, err = run(*words, "--max-steps", 3, "--emulate-macos", 14, "--batch-size", 2)
    assert err.splitlines() == [
        "mpsdiag: note: --emulate-macos has no effect without --emulate.",
        "mpsdiag: note: --batch-size has no effect with a recorded folder or a saved batch.",
        "mpsdiag: note: --max-steps has no effect without --train.",
    ]
    _, _, err = run(*words, "--train", "--max-steps", 1)
    assert err == ""


def test_ctrl_c_ends_with_130(run, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("mpsdiag.tracing.run.investigate", interrupt)
    code, _, err = run("--device", "cpu")
    assert code == 130
    assert "interrupted" in err
