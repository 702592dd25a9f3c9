"""Files that are no plain text: read for what they are, or refused with what they are."""

import gc
import gzip
import json
import logging
import os

import pytest

from mpsdiag.errors import BadInput
from mpsdiag.inputs.texts import load_texts, open_splits


@pytest.fixture(autouse=True)
def collected():
    """What `datasets` leaves open of a table that was not read to its end is closed here, where nobody minds."""
    yield
    gc.collect()


pytestmark = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")


def written(folder, name, content):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    return str(path)


@pytest.mark.parametrize(
    ("name", "content", "texts"),
    [
        ("a.csv", "id,text\n1,one\n2,two\n", ["one", "two"]),
        ("a.csv", 'id,body\n1,"one, and\nmore"\n2,NA\n', ["one, and\nmore", "NA"]),
        ("a.csv", "\ufefftext\none\n\ntwo\n", ["one", "two"]),
        ("a.tsv", "text\tid\none, two\t1\n", ["one, two"]),
        ("a.CSV", "text,empty\none,\n", ["one"]),
    ],
)
def test_tables_of_text(tmp_path, name, content, texts):
    assert load_texts(written(tmp_path, name, content)) == texts


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.csv", "id,text\n1,one\n2,two,three\n", "Expected 2 fields in line 3, saw 3"),
        ("a.csv", "question,answer\na,b\n", "it has: question, answer"),
        ("a.csv", "text\n1\n2\n", "column 'text' .* type int, not text. None of its columns does"),
        ("a.csv", "text\nGrüße\n".encode("latin-1"), "not UTF-8"),
        ("a.csv", "text\n", "holds no text"),
        ("a.jsonl", '{"text": ["a", "b"], "other": "c"}', "not text. Name the column .* --text_column: other"),
        ("a.jsonl", '{"text": null}\n{"text": 2.5}', "type float"),
        ("a.txt.gz", gzip.compress(b"one\n", mtime=0), "is a gzip archive. Unpack it"),
        ("a.txt", gzip.compress(b"one\n", mtime=0), "is a gzip archive"),
        ("a.zip", b"PK\x03\x04rest", "is a zip archive"),
        ("a.bz2", b"BZh91AY&SYrest", "is a bzip2 archive"),
        ("a.pdf", b"%PDF-1.4\n", "is binary"),
        ("a.txt", "one\n".encode("utf-16"), "UTF-16"),
    ],
)
def test_what_holds_no_text_is_said(tmp_path, name, content, sentence):
    with pytest.raises(BadInput, match=sentence) as caught:
        load_texts(written(tmp_path, name, content))
    assert "\n" not in str(caught.value)


@pytest.mark.needs(datasets="4.7")  # the first that reads a column of mixed types
def test_a_number_among_texts_is_left_out(tmp_path):
    rows = [{"text": "one"}, {"text": 2}, {"text": None}, {"text": "three"}]
    assert load_texts(written(tmp_path, "a.jsonl", "\n".join(map(json.dumps, rows)))) == ["one", "three"]


@pytest.mark.parametrize(("name", "said"), [("a.log", 1), ("b.txt", 0), ("c", 0), ("d.md", 0)])
def test_an_unknown_ending_is_read_as_text_and_said_once(tmp_path, caplog, name, said):
    file = written(tmp_path, name, "one\ntwo\n")
    with caplog.at_level(logging.WARNING):
        assert load_texts(file) == load_texts(file) == ["one", "two"]
    assert caplog.text.count("is read as plain text") == said


def test_a_folder_of_text_files(tmp_path):
    written(tmp_path, "b.txt", "three\n")
    written(tmp_path, "a.txt", "one\ntwo\n")
    written(tmp_path, "c.py", "not me\n")
    assert load_texts(str(tmp_path)) == ["one", "two", "three"]


def test_a_folder_of_splits(tmp_path):
    for name in ("train", "valid", "test"):
        written(tmp_path, f"{name}.txt", f"{name}\n")
    assert set(open_splits(str(tmp_path))) == {"train", "valid", "test"}
    assert load_texts(str(tmp_path)) == ["train"]


def test_a_folder_of_other_files_names_one_of_them(tmp_path):
    written(tmp_path, "a.jsonl", '{"text": "one"}')
    with pytest.raises(BadInput, match=r"one of its files, such as '.*a\.jsonl'"):
        load_texts(str(tmp_path))
    written(tmp_path, "b.txt", b"\0\0")
    with pytest.raises(BadInput, match=r"b\.txt' is binary"):
        load_texts(str(tmp_path))


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_a_pipe_is_not_waited_for(tmp_path, name):
    os.mkfifo(tmp_path / name)
    with pytest.raises(BadInput, match="is a device, a socket or a named pipe, not a file"):
        load_texts(str(tmp_path / name))


def test_a_device_that_never_ends_is_refused():
    with pytest.raises(BadInput, match="is a device, a socket or a named pipe"):
        load_texts("/dev/zero")


def test_names_with_wildcards_are_names(tmp_path):
    written(tmp_path, "a[1]*.txt", "mine\n")
    written(tmp_path, "a1b.txt", "another\n")
    assert load_texts(str(tmp_path / "a[1]*.txt")) == ["mine"]


def test_a_long_file_is_read_only_as_far_as_it_is_needed(tmp_path):
    """The damage at its end is not reached."""
    lines = "\n".join(f'{{"text": "line {i}", "more": "{"x" * 12_000}"}}' for i in range(1200))
    file = written(tmp_path, "a.jsonl", lines + "\nbroken")
    assert load_texts(file, limit=2) == ["line 0", "line 1"]


def test_the_cache_of_the_user_is_left_alone(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", "/proc/nowhere")
    assert load_texts(written(tmp_path, "a.txt", "one\n")) == ["one"]
