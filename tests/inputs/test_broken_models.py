"""Folders that are no whole model: one sentence that is true of the folder, and nothing run."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from mpsdiag.errors import BadInput
from mpsdiag.inputs.builtin import byte_tokenizer
from mpsdiag.inputs.models import build_model, fitting_length, require_known_tokens
from mpsdiag.inputs.tokenizer import load_tokenizer


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    build_model("tiny-llama", max_positions=64).save_pretrained(folder)
    byte_tokenizer("left").save_pretrained(folder)
    return folder


@pytest.fixture
def folder(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "model")


def config(**values):
    def change(folder):
        file = folder / "config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **values}), encoding="utf-8")

    return change


def written(name, content):
    return lambda folder: (folder / name).write_text(content, encoding="utf-8")


def cut(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])


def without(*names):
    def change(folder):
        for name in names:
            (folder / name).unlink()

    return change


def pickled(folder):
    weights = folder / "model.safetensors"
    torch.save(load_file(weights), folder / "pytorch_model.bin")
    weights.unlink()


def of_t5(folder):
    from transformers import T5Config

    T5Config(vocab_size=259, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2).save_pretrained(folder)


def with_code(folder):
    config(model_type="mine", auto_map={"AutoConfig": "configuration_mine.MyConfig"})(folder)
    (folder / "configuration_mine.py").write_text("raise SystemExit(7)\n", encoding="utf-8")


NEWER = pytest.mark.needs(transformers="5.1")
"""Up to 4.57 transformers looks at less of a config.json, or later."""
SAVED = "Give a folder that save_pretrained wrote"


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (cut, "weights are damaged or cut short"),
        (config(hidden_size=32), "sizes of its weights differ from its config.json"),
        pytest.param(config(hidden_size="big"), "hidden_size", marks=NEWER),
        (config(num_attention_heads=0), "ZeroDivisionError"),
        pytest.param(written("config.json", "[1,2]"), "config.json is not a JSON object", marks=NEWER),
        (written("config.json", "{}"), "config.json names no model_type"),
        (written("config.json", "{"), "config.json is not JSON"),
        (without("config.json"), f"it has no config.json. {SAVED}"),
        (without("model.safetensors"), f"it has no weights (model.safetensors). {SAVED}"),
        (pickled, "safetensors weights, and loading a pickle can run any code"),
        (of_t5, "weights"),
        (config(model_type="mine"), "does not know the model type 'mine'"),
        (with_code, "--trust_remote_code"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_broken_model_is_one_sentence_that_is_true_of_it(folder, damage, sentence, capsys):
    damage(folder)
    with pytest.raises(BadInput) as caught:
        build_model(str(folder), from_config=False)
    said = str(caught.value)
    assert sentence in said
    assert "\n" not in said
    assert SAVED in sentence or SAVED not in said
    assert "LOAD REPORT" not in capsys.readouterr().err


TOKENIZER = ("tokenizer.json", "tokenizer_config.json")


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (without(*TOKENIZER), "there is none. Save the one it was trained with"),
        (written("tokenizer.json", '{"version": "1.0"}'), "its files cannot be used"),
        (written("tokenizer.json", "{"), "its files cannot be used"),
        pytest.param(written("config.json", "[1,2]"), "config.json is not a JSON object", marks=NEWER),
        pytest.param(config(num_attention_heads=0), "config.json cannot be used (ZeroDivisionError", marks=NEWER),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_broken_tokenizer_is_one_sentence(folder, damage, sentence):
    damage(folder)
    with pytest.raises(BadInput) as caught:
        load_tokenizer(str(folder))
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)
    assert SAVED not in str(caught.value)


def test_an_empty_tokenizer_is_none(tmp_path):
    """For a GPT-2 without tokenizer files transformers makes one that knows only the end of text."""
    build_model("tiny-gpt2", max_positions=64).save_pretrained(tmp_path)
    with pytest.raises(BadInput, match="there is none"):
        load_tokenizer(str(tmp_path))


def test_what_transformers_says_of_a_model_that_loads_is_not_lost(folder, caplog):
    weights = {name: weight.clone() for name, weight in load_file(folder / "model.safetensors").items()}
    weights.pop("model.norm.weight")
    from safetensors.torch import save_file
    from transformers.utils import logging

    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    before = logging.get_verbosity()  # any Trainer made earlier has set it
    logging.set_verbosity_warning()
    logging.enable_propagation()
    try:
        build_model(str(folder), from_config=False)
    finally:
        logging.disable_propagation()
        logging.set_verbosity(before)
    assert "model.norm.weight" in caplog.text


def test_token_ids_that_the_model_has_no_embedding_for():
    model = build_model("tiny-gpt2", vocab_size=50, max_positions=32)
    require_known_tokens(model, 49, "mine")
    with pytest.raises(BadInput, match=r"of 'mine' gives the token id 50, but the model has only 0 to 49"):
        require_known_tokens(model, 50, "mine")


def test_no_sequence_is_longer_than_the_positions_of_the_model(caplog):
    model = build_model("tiny-gpt2", max_positions=32)
    assert fitting_length(model, 32) == 32
    assert not caplog.records
    assert fitting_length(model, 33) == 32
    assert "model's 32 positions" in caplog.text
    del model.config.n_positions
    assert fitting_length(model, 33) == 33
