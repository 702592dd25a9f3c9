import json

import pytest

from mpsdiag.errors import BadInput
from mpsdiag.inputs.builtin import byte_tokenizer
from mpsdiag.inputs.texts import encode, is_heading, load_texts, open_splits, synthetic_texts


def test_synthetic_text_is_seeded_and_of_very_different_lengths():
    texts = synthetic_texts(200)
    assert texts == synthetic_texts(200)
    assert texts != synthetic_texts(200, seed=1)
    assert texts != synthetic_texts(200, split="validation")
    lengths = sorted(map(len, texts))
    assert lengths[-1] > 20 * lengths[0]
    assert load_texts("synthetic", limit=300) == synthetic_texts(300)


def test_plain_text_drops_blank_lines_and_headings(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text(" \n = Title = \n \n First . \n = = Part = = \n\nSecond = 2\n", encoding="utf-8")
    assert load_texts(str(file)) == [" First . ", "Second = 2"]
    assert load_texts(str(file), limit=1) == [" First . "]
    assert load_texts(str(file), split="whatever") == [" First . ", "Second = 2"]


def test_headings():
    assert is_heading(" = Homarus gammarus = \n")
    assert not is_heading("x = 1 =")
    assert not is_heading(" = is a sign")


def test_wikitext_reads_as_text(wikitext):
    texts = load_texts(str(wikitext / "valid.txt"), limit=50)
    assert len(texts) == 50
    assert not any(is_heading(text) or not text.strip() for text in texts)


def test_json_lines_and_their_columns(tmp_path):
    file = tmp_path / "a.jsonl"
    rows = [{"body_text": "one", "id": 1}, {"body_text": "two", "id": 2}]
    file.write_text("\n\n".join(map(json.dumps, rows)), encoding="utf-8")
    assert load_texts(str(file)) == ["one", "two"]  # the only column of strings
    with pytest.raises(BadInput, match=r"no column 'body_txt'\. Did you mean 'body_text'"):
        load_texts(str(file), text_column="body_txt")


def test_parquet_and_saved_folders(tmp_path):
    import datasets
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"text": ["one", "two"]}), tmp_path / "a.parquet")
    assert load_texts(str(tmp_path / "a.parquet")) == ["one", "two"]
    rows = datasets.Dataset.from_dict({"text": ["three"]})
    rows.save_to_disk(str(tmp_path / "single"))
    datasets.DatasetDict({"train": rows, "test": rows}).save_to_disk(str(tmp_path / "splits"))
    assert load_texts(str(tmp_path / "single")) == ["three"]
    assert load_texts(str(tmp_path / "splits"), split="test") == ["three"]
    assert set(open_splits(str(tmp_path / "splits"))) == {"train", "test"}
    with pytest.raises(BadInput, match=r"no split 'tests'\. Did you mean 'test'"):
        load_texts(str(tmp_path / "splits"), split="tests")


def test_a_hub_dataset_by_its_splits(monkeypatch):
    import datasets

    asked = []

    def load(name, config):
        asked.append((name, config))
        return {"train": [{"text": "one"}], "validation": [{"text": "two"}]}

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert load_texts("wikitext", config="wikitext-2-raw-v1", split="validation") == ["two"]
    assert asked == [("wikitext", "wikitext-2-raw-v1")]


def test_a_configuration_that_the_hub_does_not_have(monkeypatch):
    import datasets

    def load(_name, _config):
        raise ValueError("BuilderConfig 'x' not found. Available: ['a', 'b']")

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(BadInput) as caught:
        load_texts("some/thing", config="x")
    assert "Available: ['a', 'b']" in str(caught.value)
    assert "network" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("empty.txt", b"", "is empty"),
        ("blank.txt", b" \n = Only a title = \n\n", "holds no text"),
        ("picture.txt", b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR", "is binary"),
        ("latin.txt", "Grüße".encode("latin-1"), "binary or not UTF-8"),
        ("bad.jsonl", b'{"text": "a"}\n{"text": ', "is not JSON Lines: .* in row 1"),
        ("list.jsonl", b"[1, 2]", "type int, not text"),
        ("bad.parquet", b"PAR1 and nothing more", "not a Parquet file"),
        ("columns.jsonl", b'{"question": "a", "answer": "b"}', "Name one with --text_column; it has: question, answer"),
    ],
)
def test_bad_files_are_one_sentence(tmp_path, name, content, sentence):
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(BadInput, match=sentence) as caught:
        load_texts(str(file))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("missing.txt", "does not exist"),
        ("../missing/valid", "does not exist"),
        ("synthetik", "Did you mean 'synthetic'"),
        ("nobody/nothing", "Without a network"),
        ("", "empty"),
    ],
)
def test_bad_names_are_one_sentence(name, sentence):
    with pytest.raises(BadInput, match=sentence) as caught:
        load_texts(name)
    assert "\n" not in str(caught.value)


def test_a_folder_that_nobody_saved(tmp_path):
    with pytest.raises(BadInput, match="not a dataset that `datasets` saved"):
        load_texts(str(tmp_path))
    (tmp_path / "state.json").write_text("{}", encoding="utf-8")
    with pytest.raises(BadInput, match="damaged"):
        load_texts(str(tmp_path))


def test_encoding_truncates_and_does_not_pad():
    found = encode(["abc", "a"], byte_tokenizer(), 3)
    assert found == [
        {"input_ids": [1, 100, 101], "attention_mask": [1, 1, 1]},
        {"input_ids": [1, 100], "attention_mask": [1, 1]},
    ]
