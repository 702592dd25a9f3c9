import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpsdiag.errors import BadInput
from mpsdiag.inputs.builtin import byte_tokenizer
from mpsdiag.trainers.mps_safe import first_examples
from mpsdiag.training.command_line import DataArguments
from mpsdiag.training.examples import Examples, tokenize
from mpsdiag.training.prepare_data import prepare_examples

BYTES = byte_tokenizer()


def ids(text):
    return [3 + byte for byte in text.encode()]


def texts(*lines, **options):
    return tokenize([{"text": line} for line in lines], BYTES, dataset="d", **{"max_length": 99, **options})


def test_texts_end_with_the_end_token_where_it_fits():
    found = texts("abc", "abcdefgh", max_length=5)
    assert found[0] == {"input_ids": [1, *ids("abc"), 2], "attention_mask": [1] * 5, "labels": [1, *ids("abc"), 2]}
    assert found[1]["input_ids"] == [1, *ids("abcd")]
    assert (len(found), found.tokens, found.longest) == (2, 10, 5)
    with pytest.raises(IndexError):
        found[2]
    assert found[-1] == found[1]


def test_completions_alone_are_labelled():
    rows = [{"prompt": "ab", "completion": "cd"}]
    found = tokenize(rows, BYTES, dataset="d", max_length=99, completions=True)[0]
    assert found["input_ids"] == [1, *ids("abcd"), 2]
    assert found["labels"] == [-100, -100, -100, *ids("cd"), 2]
    assert tokenize(rows, BYTES, dataset="d", max_length=3, completions=True).without_label() == 1
    # In pretraining the same rows are texts, and have no column of that name.
    with pytest.raises(BadInput, match="--text_column"):
        tokenize(rows, BYTES, dataset="d", max_length=99)
    named = tokenize(rows, BYTES, dataset="d", max_length=99, completions=True, text_column="prompt")
    assert named[0]["labels"] == [1, *ids("ab"), 2]


def test_an_example_of_one_token_has_nothing_to_predict():
    assert texts("abc", max_length=1).without_label() == 1
    assert texts("abc", max_length=2).without_label() == 0


@given(st.lists(st.text("ab ", min_size=1).filter(str.strip), min_size=1, max_size=9), st.integers(2, 40))
def test_packing_keeps_every_token_but_the_rest_at_the_end(lines, length):
    loose = texts(*lines, max_length=None)
    everything = [token for example in (loose[i] for i in range(len(loose))) for token in example["input_ids"]]
    packed = loose.packed(length)
    found = [token for example in (packed[i] for i in range(len(packed))) for token in example["input_ids"]]
    assert found == everything[: len(found)]
    assert len(everything) - len(found) < length
    assert packed.longest <= length
    assert len(packed) == max(1, len(everything) // length)


def test_parts_share_the_tokens():
    whole = texts("a", "bb", "ccc", "dddd")
    left, right = whole.part(0, 3), whole.part(3, 4)
    assert [left[i] for i in range(3)] + [right[0]] == [whole[i] for i in range(4)]
    assert (left.tokens, right.tokens) == (12, 6)
    assert left.part(1, 2)[0] == whole[1]


def test_nothing_to_read():
    with pytest.raises(BadInput, match="no rows"):
        tokenize([], BYTES, dataset="d", max_length=9)
    with pytest.raises(BadInput, match="no text"):
        texts(" ", "\n")


# Which split they come from.


def lines_file(tmp_path, name, lines):
    file = tmp_path / name
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(file)


def prepare(mode="pretrain", max_length=64, **options):
    return prepare_examples(DataArguments(**options), BYTES, max_length=max_length, mode=mode, seed=0)


def test_a_missing_validation_split_is_cut_off_and_said(tmp_path, caplog):
    name = lines_file(tmp_path, "a.txt", [f"line {i}" for i in range(40)])
    found = prepare(dataset=name)
    assert (len(found.train), len(found.evaluation)) == (38, 2)
    assert found.evaluation[1]["input_ids"] == [1, *ids("line 39"), 2]
    assert "no validation split: the last 2 of 40 training examples (5 %) are used" in caplog.text
    assert len(prepare(dataset=name, max_samples=10, validation_fraction=0.3).train) == 7


def test_one_example_cannot_be_cut(tmp_path):
    with pytest.raises(BadInput, match="too few to split off a validation set"):
        prepare(dataset=lines_file(tmp_path, "a.txt", ["alone"]))


def test_a_validation_split_or_another_dataset_is_used_as_it_is(tmp_path, caplog):
    other = lines_file(tmp_path, "b.txt", ["x", "y", "z"])
    assert len(prepare(dataset="synthetic").evaluation) == 256
    assert len(prepare(dataset="synthetic", eval_dataset=other).evaluation) == 3
    assert not caplog.records


def test_evaluation_alone_takes_the_whole_file(tmp_path):
    found = prepare("evaluate", dataset=lines_file(tmp_path, "a.txt", ["x", "y", "z"]))
    assert found.train is None
    assert len(found.evaluation) == 3


def test_a_dataset_without_a_training_split(monkeypatch):
    import datasets

    monkeypatch.setattr(datasets, "load_dataset", lambda *_: {"test": [{"text": "one"}]})
    with pytest.raises(BadInput, match="no split 'train', only test"):
        prepare(dataset="some/thing")
    assert len(prepare("evaluate", dataset="some/thing").evaluation) == 1


def test_packed_examples_have_one_length(tmp_path):
    name = lines_file(tmp_path, "a.txt", [f"a line of text, number {i}" for i in range(90)])
    found = prepare(dataset=name, use_packing=True, max_length=32)
    assert {len(found.train[i]["input_ids"]) for i in range(len(found.train))} == {32}


def rows_file(tmp_path, rows):
    import json

    file = tmp_path / "a.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return str(file)


def test_labels_that_are_all_ignored_are_said_and_not_called_the_mps_defect(tmp_path, caplog):
    long = {"prompt": "p" * 50, "completion": "c"}
    with pytest.raises(BadInput, match=r"All labels of the 38 training example\(s\) are -100.*not the MPS defect"):
        prepare("sft", dataset=rows_file(tmp_path, [long] * 40), max_length=16)
    some = [long] * 5 + [{"prompt": "p", "completion": "c"}] * 35
    prepare("sft", dataset=rows_file(tmp_path, some), max_length=16)
    assert "5 of 38 training examples have no label that counts" in caplog.text


# The first examples of any kind of dataset.


def test_first_examples_of_every_kind_of_dataset():
    import datasets
    from torch.utils.data import IterableDataset

    class Stream(IterableDataset):
        def __iter__(self):
            return iter(range(9))

    assert list(first_examples([1, 2, 3], 2)) == [1, 2]
    assert list(first_examples([1], 2)) == [1]
    assert list(first_examples(Stream(), 2)) == [0, 1]
    table = datasets.Dataset.from_dict({"a": [1, 2, 3]})
    assert first_examples(table, 2)["a"][:] == [1, 2]
    assert list(first_examples(table.to_iterable_dataset(), 1)) == [{"a": 1}]
    assert first_examples(None, 2) is None
    assert {name: list(part) for name, part in first_examples({"x": [1, 2]}, 1).items()} == {"x": [1]}
    found = first_examples(texts("a", "b"), 1)
    assert len(found) == 1
    assert isinstance(found.dataset, Examples)
