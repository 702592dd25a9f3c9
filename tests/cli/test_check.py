"""`mpsdiag check` as a user meets it: exit codes, one JSON document, words that keep measured and emulated apart."""

import contextlib
import io
import json
import math
import re

import pytest
import torch

from mpsdiag.checking.diagnosis import Diagnosis
from mpsdiag.cli import main
from mpsdiag.inputs.installed import evaluation_hides_nonfinite
from mpsdiag.reporting import check as check_sections
from mpsdiag.reporting.formats.markdown import issue_block
from mpsdiag.serialization import number


@pytest.fixture
def run(capsys, monkeypatch):
    """Run the command in this process; gives (exit code, stdout, stderr)."""
    monkeypatch.setenv("COLUMNS", "200")

    def call(*words):
        with pytest.raises(SystemExit) as end:
            main(["check", *words])
        out, err = capsys.readouterr()
        return end.value.code or 0, out, err

    return call


@pytest.fixture(scope="module")
def found_2_8():
    """The document of torch 2.8, made once, with the exit code it came with."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), pytest.raises(SystemExit) as end:
        main(["check", "--emulate", "2.8", "--json"])
    assert end.value.code == 1
    return document(out.getvalue())


def refuse(constant):
    raise AssertionError(f"bare {constant} is not JSON")


def document(out):
    return json.loads(out, parse_constant=refuse)


def test_the_cpu_is_not_affected(run):
    code, out, err = run("--device", "cpu")
    assert code == 0
    assert out.startswith("not affected: cpu with torch")
    assert "Measured on this machine's cpu" in out
    assert err == ""


def test_torch_2_8_is_affected_in_evaluation_only(found_2_8):
    found = found_2_8
    assert found["verdict"] == "affected"
    assert found["emulated"] == {"release": "2.8", "macos": 15}
    assert found["scenario"]["eval_loss"] == "nan"
    assert math.isfinite(found["scenario"]["train_loss"])
    assert found["scenario"]["dead_rows"] > 0
    assert found["scenario"]["exposure"]["rows"] == found["scenario"]["dead_rows"]
    assert set(found["scenario"]["exposure"]["reasons"]) == {"padding on the left"}
    assert found["scenario"]["cause"]["cause"] == "dead_rows"
    assert found["scenario"]["cause"]["also"] == []
    assert found["scenario"]["first_nonfinite"]["layer"] == 0
    assert (found["probes"][0]["training"], found["probes"][0]["evaluation"]) == ("pass", "fail")


def test_the_fixes_are_tried_and_told_apart(found_2_8):
    fixes = {fix["name"]: fix for fix in found_2_8["fixes"]}
    assert {name for name, fix in fixes.items() if fix["resolves"]} == {"eager", "safe_sdpa", "mps_safe"}
    assert fixes["safe_sdpa"]["exact"]
    assert not fixes["eager"]["exact"]
    assert "already NaN when they reach the CPU" in fixes["cpu_loss"]["why"]
    assert set(fixes["eager"]) >= {"name", "resolves", "exact", "max_abs_logit_diff", "eval_loss"}
    assert number(fixes["safe_sdpa"]["max_abs_logit_diff"]) < 1e-4


def test_torch_2_9_is_not(run):
    code, out, _ = run("--emulate", "2.9")
    assert code == 0
    assert out.startswith("not affected: EMULATED MPS of torch 2.9 on macOS 15")
    assert "Nothing here was measured on MPS" in out


@pytest.mark.needs(transformers="5.1")  # Older ones repair the masks beside torch 2.4.
def test_torch_2_4_is_affected_in_training_too(run):
    code, out, _ = run("--emulate", "2.4", "--json")
    found = document(out)
    assert code == 1
    assert found["scenario"]["train_loss"] == "nan"
    assert (found["probes"][0]["training"], found["probes"][0]["evaluation"]) == ("fail", "fail")


@pytest.mark.needs(transformers="4.56")  # Older ones make the query contiguous.
@pytest.mark.parametrize("words", [("--emulate", "2.8", "--emulate-macos", "14"), ("--emulate", "2.5")])
def test_the_kernel_and_the_pipeline_are_told_apart(run, words):
    code, out, _ = run(*words, "--json")
    found = document(out)
    assert code == 1
    assert found["verdict"] == "affected"
    assert found["kernel"]["verdict"] == "affected"
    assert found["scenario"]["verdict"] == "not_affected"
    assert math.isfinite(found["scenario"]["eval_loss"])
    advice = found["advice"][0]["text"]
    assert "query that is not contiguous" in advice
    assert "down the composite path, where a fully masked row gives zeros" in advice
    assert "These would make it reach the kernel: a .contiguous()" in advice


def test_a_device_that_is_not_there_leaves_it_undecided(run):
    if torch.backends.mps.is_available():
        pytest.skip("there is an MPS device here")
    code, out, _ = run("--device", "mps")
    assert code == 3
    assert out.startswith("undecided: mps")
    assert "MPS" in out
    assert "built without MPS" in re.sub(r"\s+", " ", out)
    assert "on which nothing ran" in out.splitlines()[0]
    assert "Measured on" not in out
    assert "Nothing was measured: no probe ran" in out


@pytest.mark.parametrize("words", [("--device", "cuda:9"), ("SDPA007", "--device", "cpu")])
def test_where_no_probe_ran_nothing_is_called_measured(run, words):
    code, out, _ = run(*words, "--markdown")
    assert code == 3
    assert "on which nothing ran" in out.splitlines()[0]
    assert "Measured on" not in out
    assert "Nothing was measured: no probe ran" in out


def test_real_text_shows_what_the_filter_hides(run, wikitext):
    code, out, _ = run("--emulate", "2.8", "--dataset", str(wikitext / "test.txt"), "--json")
    found = document(out)
    assert code == 1
    assert found["schema"] == 1
    assert found["scenario"]["eval_loss"] == "nan"
    assert found["scenario"]["nonfinite_batches"] < found["scenario"]["eval_batches"]
    hidden = evaluation_hides_nonfinite()
    assert found["scenario"]["stock_eval_loss"] == "nan" or hidden
    assert math.isfinite(float(found["scenario"]["stock_eval_loss"])) is hidden
    commands = [command for advice in found["advice"] for command in advice["commands"]]
    assert any("logging_nan_inf_filter" in command for command in commands) is hidden


def test_right_padding_does_not_show_it(run):
    _, out, _ = run("--emulate", "2.8", "--padding-side", "right", "--json")
    found = document(out)
    assert found["scenario"]["dead_rows"] == found["scenario"]["exposure"]["rows"] == 0
    assert found["scenario"]["verdict"] == "not_affected"
    assert found["kernel"]["verdict"] == "affected"
    assert "padding on the left" in found["advice"][0]["text"]


def test_below_level_3_the_other_defects_are_named(run):
    _, out, _ = run("--emulate", "2.8", "--level", "1")
    assert "SDPA009" in out
    assert "mpsdiag check --level 3" in out
    assert "SDPA014" not in out


def test_the_document_follows_its_schema(run):
    _, out, _ = run("--emulate", "2.4", "--level", "1", "--json")
    found = document(out)
    assert found["scenario"] is None
    Diagnosis.model_validate(found)
    properties = Diagnosis.model_json_schema(by_alias=True)["properties"]
    assert set(found) == set(properties)


def test_the_markdown_block_is_complete(found_2_8):
    out = issue_block(check_sections.document(Diagnosis.model_validate(found_2_8)))
    assert out.startswith("**mpsdiag check: affected: EMULATED MPS of torch 2.8")
    assert "| safe\\_sdpa (attention) | yes, exact |" in out or "| safe_sdpa (attention) | yes, exact |" in out
    assert "<details><summary>Environment" in out


def test_one_probe_by_its_id(run):
    code, out, _ = run("SDPA001", "--emulate", "2.9", "--json")
    found = document(out)
    assert code == 0
    assert [probe["id"] for probe in found["probes"]] == ["SDPA001"]
    assert found["scenario"] is None


def test_a_probe_by_itself_says_nothing_of_the_others_and_is_found_in_any_case(run):
    code, out, _ = run("sdpa003", "--device", "cpu", "--json")
    assert code == 0
    assert [advice["text"] for advice in document(out)["advice"]] == ["The probes that ran passed: SDPA003."]
    code, out, _ = run("sdpa001", "--device", "cpu", "--json")
    assert code == 0
    assert "Fully masked rows come out correct" in document(out)["advice"][0]["text"]


def test_the_list_names_every_probe(run):
    code, out, _ = run("--list")
    assert code == 0
    assert "SDPA001" in out
    assert "SDPA026" in out


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--emulate", "1.9"), "1.9"),
        (("--emulate", "2.8", "--dtype", "float64"), "MPS does not support float64"),
        (("--emulate", "2.8", "--device", "cuda"), "--emulate runs on the CPU"),
        (("--device", "cdua"), "Did you mean 'cuda'"),
        (("--level", "4"), "Level 4 does not exist"),
        (("--padding-side", "lefft"), "Did you mean 'left'"),
        (("--dtype", "flota32"), "Did you mean 'float32'"),
        (("SDPA999",), "Unknown probe 'SDPA999'"),
        (("--dataset", "no/such/file.txt"), "no/such/file.txt"),
        (("--model", "tiny-gtp2"), "tiny-gpt2"),
        (("--json", "--markdown"), "cannot be combined"),
    ],
)
def test_bad_input_gets_one_sentence(run, words, sentence):
    code, out, err = run(*words)
    assert code == 2
    assert out == ""
    assert sentence in err
    assert "Traceback" not in err
    assert len(err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "note"),
    [
        (("SDPA001", "--emulate-macos", "14"), "--emulate-macos has no effect without --emulate"),
        (("SDPA001", "--model", "x", "--level", "3"), "--model, --level have no effect when probes are named"),
        (("--level", "1", "--seed", "3"), "--seed has no effect at level 1"),
        (("SDPA001",), None),
    ],
)
def test_options_without_effect_are_named(run, words, note):
    code, _, err = run(*words, "--device", "cpu")
    assert code == 0
    assert err == "" if note is None else err.startswith(f"mpsdiag: note: {note}")


@pytest.mark.parametrize("command", ["check", "trace"])
@pytest.mark.parametrize("seed", ["-1", "4294967296"])
def test_a_seed_that_numpy_would_refuse_is_bad_usage(capsys, command, seed):
    with pytest.raises(SystemExit) as end:
        main([command, "--seed", seed])
    assert end.value.code == 2
    assert "Invalid value for '--seed'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "sentence"), [(b"", "empty"), (b"\x00\x01\xff\xfe" * 64, "binary"), (b"\n = Title = \n\n", "")]
)
def test_a_file_without_text_is_refused(run, tmp_path, content, sentence):
    path = tmp_path / "data.txt"
    path.write_bytes(content)
    code, _, err = run("--device", "cpu", "--dataset", str(path))
    assert code == 2
    assert "data.txt" in err
    assert sentence in err


def test_weights_that_are_not_finite_are_blamed_and_not_the_device(run, tmp_path):
    from mpsdiag.inputs.builtin import byte_tokenizer
    from mpsdiag.inputs.models import build_model

    model = build_model("tiny-llama")
    with torch.no_grad():
        model.model.layers[1].self_attn.k_proj.weight[0, 0] = float("nan")
    model.save_pretrained(tmp_path)
    byte_tokenizer("left").save_pretrained(tmp_path)
    code, out, _ = run("--device", "cpu", "--model", str(tmp_path), "--json")
    found = document(out)
    assert code == 3
    assert found["scenario"]["cause"]["cause"] == "bad_weights"
    assert found["scenario"]["cause"]["module"] == "model.layers.1.self_attn.k_proj"
    assert "weights themselves are bad" in found["advice"][0]["text"]


def test_weights_that_the_checkpoint_lacks_are_said_to_be_random_and_no_bar_is_shown(capfd, tmp_path):
    from safetensors.torch import load_file, save_file

    from mpsdiag.inputs.builtin import byte_tokenizer
    from mpsdiag.inputs.models import build_model

    build_model("tiny-llama").save_pretrained(tmp_path)
    byte_tokenizer("left").save_pretrained(tmp_path)
    weights = {name: weight.clone() for name, weight in load_file(tmp_path / "model.safetensors").items()}
    kept = {name: weight for name, weight in weights.items() if ".layers.1." not in name}
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    capfd.readouterr()
    for command in ("check", "trace"):
        with pytest.raises(SystemExit):
            main([command, "--device", "cpu", "--model", str(tmp_path), "--json"])
        out, err = capfd.readouterr()
        assert document(out)["notes"] == [
            "the checkpoint lacks weights of model.layers.1 (9 tensors): they are random, and so are the losses"
        ]
        assert err == ""
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(SystemExit):
        main(["trace", "--device", "cpu", "--model", str(tmp_path), "--json"])
    out, err = capfd.readouterr()
    assert (document(out)["notes"], err) == ([], "")


def test_a_hub_name_without_network_is_explained(run, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    code, _, err = run("--device", "cpu", "--model", "somebody/some-model")
    assert code == 2
    assert "somebody/some-model" in err
    assert "Traceback" not in err


def test_ctrl_c_ends_with_130(run, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("mpsdiag.checking.run.check", interrupt)
    code, _, err = run("--device", "cpu")
    assert code == 130
    assert "interrupted" in err
