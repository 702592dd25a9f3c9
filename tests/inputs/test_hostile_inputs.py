"""Models and data with sizes, bytes and structures that no library wrote: one sentence, at once."""

import json
import time

import pytest

from mpsdiag.errors import BadInput
from mpsdiag.inputs.models import build_model, load_config
from mpsdiag.inputs.texts import load_texts


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("n_layer", -1),
        ("n_layer", 10**9),
        ("n_embd", -8),
        ("n_embd", 10**7),
        ("vocab_size", -5),
        ("vocab_size", 10**12),
        ("n_positions", 10**12),
        ("n_head", 1e308),
    ],
)
def test_a_size_that_no_model_has_is_a_sentence_within_seconds(key, value, tmp_path):
    build_model("tiny-gpt2").config.save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), key: value}))
    started = time.perf_counter()
    with pytest.raises(BadInput) as problem:
        load_config(str(tmp_path))
    assert time.perf_counter() - started < 20
    assert "config.json" in str(problem.value)
    assert "BadInput" not in str(problem.value)


def test_a_sentence_of_ours_is_not_wrapped(monkeypatch, tmp_path):
    def refused(*_, **__):
        raise BadInput("Our sentence.")

    build_model("tiny-gpt2").save_pretrained(tmp_path)
    monkeypatch.setattr("mpsdiag.inputs.models._with_what_attention_it_has", refused)
    with pytest.raises(BadInput, match=r"^Our sentence\.$"):
        build_model(str(tmp_path), from_config=False)


def test_a_lone_surrogate_is_a_question_mark(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "before \\ud800 after"}\n')
    try:
        [text] = load_texts(str(tmp_path / "a.jsonl"))
    except BadInput:
        return
    text.encode()


def test_parquet_that_is_not_utf_8_is_a_sentence(tmp_path):
    import pyarrow as pa
    from pyarrow import parquet

    array = pa.array([b"good", b"\xff\xfe"], pa.binary()).cast(pa.string(), safe=False)
    array = pa.StringArray.from_buffers(2, *array.buffers()[1:])
    parquet.write_table(pa.table({"text": array}), tmp_path / "a.parquet")
    with pytest.raises(BadInput, match=r"UTF-8"):
        load_texts(str(tmp_path / "a.parquet"))


@pytest.mark.parametrize("text", ["[]", "[1]", "null", "3", "[" * 5000])
@pytest.mark.parametrize("name", ["state.json", "dataset_dict.json"])
def test_a_saved_folder_whose_state_is_something_else(text, name, tmp_path):
    (tmp_path / name).write_text(text)
    with pytest.raises(BadInput):
        load_texts(str(tmp_path))
