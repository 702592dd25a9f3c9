import subprocess
import sys
import textwrap

import pytest
import torch

from mpsdiag.errors import BadInput
from mpsdiag.inputs.builtin import BYTE_VOCABULARY, byte_tokenizer
from mpsdiag.inputs.models import build_model
from mpsdiag.inputs.tokenizer import load_tokenizer
from mpsdiag.words import BUILTIN_MODELS


@pytest.mark.parametrize("name", BUILTIN_MODELS)
def test_built_in_models_are_small_seeded_and_in_evaluation_mode(name):
    model = build_model(name)
    config = model.config.get_text_config()
    assert (config.num_hidden_layers, config.hidden_size, config.num_attention_heads) == (2, 64, 4)
    # One more stands for a picture.
    assert config.vocab_size == BYTE_VOCABULARY + (name == "tiny-vlm") == len(byte_tokenizer()) + (name == "tiny-vlm")
    assert (config.pad_token_id, config.bos_token_id, config.eos_token_id) == (0, 1, 2)
    assert not model.training
    again, other = build_model(name), build_model(name, seed=1)
    first = next(model.parameters())
    assert torch.equal(first, next(again.parameters()))
    assert not torch.equal(first, next(other.parameters()))


def test_what_each_of_them_is_there_for():
    assert build_model("tiny-llama").config.num_key_value_heads == 2
    assert build_model("tiny-mistral").config.sliding_window == 16
    assert build_model("tiny-qwen2").model.layers[0].self_attn.q_proj.bias is not None
    assert build_model("tiny-gpt2", vocab_size=300, max_positions=99).transformer.wpe.weight.shape[0] == 99


def test_the_global_generator_is_left_alone():
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    build_model("tiny-gpt2", seed=3)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_every_dtype_has_the_same_weights_rounded(dtype):
    model, full = build_model("tiny-qwen2", dtype=dtype), build_model("tiny-qwen2")
    kind = getattr(torch, dtype)
    for ours, theirs in zip(model.parameters(), full.parameters(), strict=True):
        assert ours.dtype == kind
        assert torch.equal(ours, theirs.to(kind))


@pytest.mark.parametrize("mode", ["sdpa", "eager", "safe_sdpa", "unmask_sdpa", "min_mask_sdpa"])
def test_the_attention_that_was_asked_for_is_in_place(mode):
    assert build_model("tiny-llama", attention=mode).config._attn_implementation == mode


def test_a_saved_folder_comes_back_with_its_weights_or_new_ones(tmp_path):
    model = build_model("tiny-gpt2", seed=5, max_positions=64)
    model.save_pretrained(tmp_path)
    same = build_model(str(tmp_path), from_config=False)
    new = build_model(str(tmp_path), from_config=True, seed=6)
    wanted = model.lm_head.weight
    assert torch.equal(same.lm_head.weight, wanted)
    assert not torch.equal(new.lm_head.weight, wanted)
    assert new.config.n_positions == 64


@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [
        ("tiny-gpt3", {}, "Did you mean 'tiny-gpt2'"),
        ("./nowhere", {}, "does not exist"),
        ("nobody/nothing", {}, "looked for on the hub"),
        ("nobody/nothing", {"from_config": False}, "looked for on the hub"),
        ("two words", {}, "neither a path nor a model name"),
        (" ", {}, "empty"),
        ("tiny-gpt2", {"dtype": "float8"}, "Unknown dtype 'float8'"),
        ("tiny-gpt2", {"attention": "safe_spda"}, "Did you mean 'safe_sdpa'"),
    ],
)
def test_bad_names_are_one_sentence(name, options, sentence):
    with pytest.raises(BadInput, match=sentence) as caught:
        build_model(name, **options)
    assert "\n" not in str(caught.value)


def test_a_folder_without_a_model_says_so(tmp_path):
    with pytest.raises(BadInput, match="Give a folder that save_pretrained wrote"):
        build_model(str(tmp_path))
    (tmp_path / "config.json").write_text("{", encoding="utf-8")
    with pytest.raises(BadInput, match="Cannot load the model"):
        build_model(str(tmp_path))


def test_pickled_weights_are_refused(tmp_path):
    """Only safetensors are read from a checkpoint."""
    model = build_model("tiny-gpt2", max_positions=64)
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(BadInput, match="Cannot load the model"):
        build_model(str(tmp_path), from_config=False)


def test_code_that_comes_with_a_model_does_not_run(tmp_path):
    folder, trap = tmp_path / "model", tmp_path / "ran"
    folder.mkdir()
    (folder / "config.json").write_text(
        '{"model_type": "trap", "auto_map": {"AutoConfig": "trap.TrapConfig"}}', encoding="utf-8"
    )
    (folder / "trap.py").write_text(f"open({str(trap)!r}, 'w').close()\n", encoding="utf-8")
    with pytest.raises(BadInput):
        build_model(str(folder))
    assert not trap.exists()


# Tokenizers.


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_byte_tokenizer_pads_on_its_side_and_round_trips(side):
    tokenizer = byte_tokenizer(side)
    text = "Grüße, 世界!\n\tok "
    ids = tokenizer(text)["input_ids"]
    assert ids == [1, *(3 + byte for byte in text.encode())]
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    padded = tokenizer(["a", "abc"], padding=True)
    assert padded["attention_mask"][0] == ([0, 0, 1, 1] if side == "left" else [1, 1, 0, 0])


def test_padding_sides_are_checked():
    with pytest.raises(BadInput, match="Did you mean 'left'"):
        byte_tokenizer("lefft")


def saved_tokenizer(folder, **changes):
    tokenizer = byte_tokenizer("right")
    for name, value in changes.items():
        setattr(tokenizer, name, value)
    tokenizer.save_pretrained(folder)
    return str(folder)


def test_a_tokenizer_without_a_pad_token_is_given_one_and_it_is_said(tmp_path, caplog):
    name = saved_tokenizer(tmp_path, pad_token=None)
    tokenizer = load_tokenizer(name, padding_side="left")
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == 2
    assert tokenizer.padding_side == "left"
    assert "has no pad token; padding with its '<eos>' token" in caplog.text


def test_a_tokenizer_that_has_nothing_to_pad_with_is_refused(tmp_path):
    name = saved_tokenizer(tmp_path, pad_token=None, eos_token=None)
    with pytest.raises(BadInput, match="no pad token and no end-of-text token"):
        load_tokenizer(name)


def test_a_tokenizer_that_is_not_there(tmp_path):
    with pytest.raises(BadInput, match="Cannot load the tokenizer"):
        load_tokenizer(str(tmp_path))


def test_making_all_of_it_is_fast_and_imports_no_tables():
    """After the imports of transformers' Trainer: under 0.3 s, and neither pandas nor pyarrow of our own."""
    code = """
        import sys, time
        import torch
        from transformers import AutoModelForCausalLM, GPT2LMHeadModel, PreTrainedTokenizerFast
        tables = {"pandas", "pyarrow"}
        before = tables & set(sys.modules)
        from mpsdiag.inputs.texts import encode, load_texts
        from mpsdiag.inputs.models import build_model
        from mpsdiag.inputs.builtin import byte_tokenizer
        start = time.process_time()
        build_model("tiny-gpt2")
        encode(load_texts("synthetic"), byte_tokenizer(), 512)
        print(time.process_time() - start, bool((tables & set(sys.modules)) - before))
    """
    shown = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True, timeout=120
    ).stdout.split()
    assert float(shown[0]) < 0.3
    assert shown[1] == "False"
