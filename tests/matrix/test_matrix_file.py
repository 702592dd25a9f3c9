import pytest

from mpsdiag.errors import BadInput
from mpsdiag.matrix.matrix_file import load_matrix, parse_matrix
from mpsdiag.matrix.spec import AXES, MatrixSpec, Rule, changed

WHOLE = """
name = "mine"
rounds = 2
dataset = "synthetic"

[axes]
model = ["tiny-gpt2", "tiny-llama"]
attention = "eager"
emulate = ["2.8.0", "none"]
pad_to_multiple_of = [0, 8]

[[exclude]]
model = "tiny-llama"
emulate = "none"

[[include]]
attention = ["sdpa", "safe_sdpa"]
"""


def test_a_whole_file(tmp_path):
    path = tmp_path / "some file.toml"
    path.write_text(WHOLE)
    spec = load_matrix(path)
    assert (spec.name, spec.rounds) == ("mine", 2)
    assert spec.axes.attention == ["eager"]
    assert spec.axes.emulate == ["2.8", None]
    assert spec.axes.pad_to_multiple_of == [None, 8]
    assert spec.exclude[0].named() == {"model": ["tiny-llama"], "emulate": [None]}
    assert spec.include[0].named() == {"attention": ["sdpa", "safe_sdpa"]}


def test_a_file_without_a_name_has_that_of_the_file(tmp_path):
    path = tmp_path / "my matrix.toml"
    path.write_text("")
    assert load_matrix(path).name == "my-matrix"


@pytest.mark.parametrize(
    ("text", "where", "what"),
    [
        (
            'rounds = 2\n\n[axes]\nattention = ["sdpa", "egar"]',
            "line 4, axes.attention",
            "Did you mean 'eager'?",
        ),
        ("[axes]\nattenton = 'sdpa'", "line 2, axes.attenton", "Did you mean 'attention'?"),
        ("roundz = 1", "line 1, roundz", "Did you mean 'rounds'?"),
        ("\n[axis]\nx = 1", "line 2, axis", "Did you mean 'axes'?"),
        ("[axes]\nemulate = '1.9'", "line 2, axes.emulate", "Did you mean '2.9'?"),
        ("[axes]\ntrainer = 'mps_saf'", "line 2, axes.trainer", "Did you mean 'mps_safe'?"),
        ("[axes]\ndevice = 'cudda'", "line 2, axes.device", "Did you mean 'cuda'?"),
        ("[axes]\nbatch_size = 0", "line 2, axes.batch_size", "greater than or equal to 1 (got 0)"),
        ("[axes]\nattention = []", "line 2, axes.attention", "at least 1 item"),
        ("rounds = 'three'", "line 1, rounds", "valid integer"),
        (
            "[[exclude]]\nmodel = 'a'\n[[exclude]]\ntrainr = 'x'",
            "line 4, exclude.trainr",
            "Did you mean 'trainer'?",
        ),
        ("[[include]]\nmodel = 'a'\n\n[[include]]", "line 4, include", "names no axis"),
        ("rounds = 4\nmax_rounds = 2", "the matrix", "the most is below the least"),
        ("exclude = 3", "line 1, exclude", "valid list"),
    ],
)
def test_complaints_name_file_line_key_and_the_nearest_word(text, where, what):
    with pytest.raises(BadInput) as caught:
        parse_matrix(text, "m.toml")
    assert str(caught.value).startswith(f"m.toml{',' if where == 'the matrix' else ''} {where}: ")
    assert what in str(caught.value)


def test_no_more_than_three_complaints_at_once():
    with pytest.raises(BadInput, match=r"And 2 more\.$"):
        parse_matrix("a = 1\nb = 1\nc = 1\nd = 1\ne = 1", "m.toml")


@pytest.mark.parametrize("content", [b"a = ", b"\xff\xfe", b"[axes\n"])
def test_what_is_no_toml(tmp_path, content):
    path = tmp_path / "m.toml"
    path.write_bytes(content)
    with pytest.raises(BadInput, match=r"m\.toml"):
        load_matrix(path)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(BadInput, match=r"There is no matrix file .*none\.toml"):
        load_matrix(tmp_path / "none.toml")
    with pytest.raises(BadInput, match="Cannot read the matrix file"):
        load_matrix(tmp_path)


def test_options_replace_axes_and_numbers_and_keep_the_rest():
    spec = changed(parse_matrix(WHOLE, "m"), {"attention": ["sdpa"], "rounds": 0, "model": None, "seed": []})
    assert spec.axes.attention == ["sdpa"]
    assert spec.rounds == 0
    assert spec.axes.model == ["tiny-gpt2", "tiny-llama"]
    assert spec.exclude == parse_matrix(WHOLE, "m").exclude


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"attention": ["egar"]}, "--attention: unknown attention 'egar'. Did you mean 'eager'?"),
        ({"max_rounds": -1}, "--max-rounds: input should be greater"),
        ({"emulate": ["1.9"]}, "--emulate: there is no emulation of torch '1.9'"),
        ({"atention": ["sdpa"]}, "Did you mean 'attention'?"),
    ],
)
def test_complaints_about_options_name_the_option(values, sentence):
    with pytest.raises(BadInput) as caught:
        changed(MatrixSpec(), values)
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    ("text", "rounds", "most"),
    [
        ("", 3, 5),
        ("rounds = 7", 7, 7),
        ("rounds = 1", 1, 5),
        ("max_rounds = 2", 2, 2),
        ("rounds = 1\nmax_rounds = 2", 1, 2),
        ("rounds = 0", 0, 5),
    ],
)
def test_where_one_number_of_rounds_is_given_the_other_gives_way(text, rounds, most):
    rule = parse_matrix(text, "m").rule
    assert (rule.rounds, rule.most) == (rounds, most)


def test_rules_and_axes_have_the_same_fields():
    assert tuple(Rule.model_fields) == AXES
