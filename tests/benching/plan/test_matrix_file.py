import pytest

from mpsdiag.benching.plan.matrix import AXES, MatrixSpec, Rule, changed
from mpsdiag.benching.plan.matrix_file import load_matrix, parse_matrix
from mpsdiag.errors import BadInput

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
    assert spec.axes.attn_implementation == ["eager"]
    assert spec.axes.emulate == ["2.8", None]
    assert spec.axes.pad_to_multiple_of == [None, 8]
    assert spec.exclude[0].named() == {"model": ["tiny-llama"], "emulate": [None]}
    assert spec.include[0].named() == {"attn_implementation": ["sdpa", "safe_sdpa"]}


def test_a_file_without_a_name_has_that_of_the_file(tmp_path):
    path = tmp_path / "my matrix.toml"
    path.write_text("")
    assert load_matrix(path).name == "my-matrix"


@pytest.mark.parametrize(
    ("text", "where", "what"),
    [
        ('rounds = 2\n\n[axes]\nattention = ["sdpa", "egar"]', "line 4, axes.attention", "Did you mean 'eager'?"),
        ("[axes]\nattenton = 'sdpa'", "line 2, axes.attenton", "Did you mean 'attn_implementation'?"),
        ("roundz = 1", "line 1, roundz", "Did you mean 'rounds'?"),
        ("\n[axis]\nx = 1", "line 2, axis", "Did you mean 'axes'?"),
        ("[axes]\nemulate = '1.9'", "line 2, axes.emulate", "Did you mean '2.9'?"),
        ("[axes]\ntrainer = 'mps_saf'", "line 2, axes.trainer", "Did you mean 'mps_safe'?"),
        ("[axes]\ndevice = 'cudda'", "line 2, axes.device", "Did you mean 'cuda'?"),
        ("[axes]\nbatch_size = 0", "line 2, axes.batch_size", "should be at least 1 (got 0)"),
        ("[axes]\nattention = []", "line 2, axes.attention", "should have at least one value (got [])"),
        ("rounds = 'three'", "line 1, rounds", "should be a whole number (got 'three')"),
        ("[[exclude]]\nmodel = 'a'\n[[exclude]]\ntrainr = 'x'", "line 4, exclude.trainr", "Did you mean 'trainer'?"),
        ("[[include]]\nmodel = 'a'\n\n[[include]]", "line 4, include", "names no axis"),
        ("rounds = 4\nmax_rounds = 2", "the matrix", "is smaller than rounds"),
        ("exclude = 3", "line 1, exclude", "write [[exclude]] above each (got 3)"),
    ],
)
def test_complaints_name_file_line_key_and_the_nearest_word(text, where, what):
    with pytest.raises(BadInput) as caught:
        parse_matrix(text, "m.toml")
    assert str(caught.value).startswith(f"m.toml{',' if where == 'the matrix' else ''} {where}: ")
    assert what in str(caught.value)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('"a b" = 1', "m.toml line 1, \"a b\": unknown key 'a b'. Choose from: name, "),
        ('[axes]\n"" = 1', "m.toml line 2, axes.\"\": unknown key ''. Choose from: model, "),
        ('[axes]\n"x.y" = 2', "m.toml line 2, axes.\"x.y\": unknown key 'x.y'. Choose from: model, "),
        ("1 = 2", "m.toml line 1, 1: unknown key '1'. Choose from: name, "),
        ("[[exclude]]\n2 = 2", "m.toml line 2, exclude.2: unknown key '2'. Choose from: model, "),
    ],
)
def test_an_unknown_key_is_named_however_it_is_spelled(text, sentence):
    with pytest.raises(BadInput) as caught:
        parse_matrix(text, "m.toml")
    assert str(caught.value).startswith(sentence)


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("rounds = 2\naxes.attention = 'egar'", "line 2, axes.attention"),
        ("rounds = 2\r\n\r\naxes.attention = 'egar'\r\n", "line 3, axes.attention"),
        ("# note\naxes = {trainer = 'standard', attention = ['egar']}", "line 2, axes.attention"),
        ("exclude = [{model = 'a'}, {trainr = 'x'}]", "line 1, exclude.trainr"),
        ("rounds = 2\nexclude = [\n  {model = 'a'},\n  {trainr = 'x'},\n]", "line 2, exclude.trainr"),
        ("[axes]\nseed = [\n 0,\n 1,\n -1,\n]", "line 2, axes.seed"),
        ('dataset = """\nname = 1\n"""\nname = "a b"', "line 4, name"),
        ("['axes']\n'attention' = 'egar'", "line 2, axes.attention"),
        ("[axes.attenton]", "line 1, axes.attenton"),
        ("[[exclude]]\nmodel = 'a'\n[[exclude]]\nmodel = 'b'\nseed = [1, -2]", "line 5, exclude.seed"),
    ],
)
def test_the_line_is_found_however_the_key_is_written(text, where):
    with pytest.raises(BadInput) as caught:
        parse_matrix(text, "m.toml")
    assert str(caught.value).startswith(f"m.toml {where}: ")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[axes]\nemulate = 2.8", 'write it as a text: emulate = "2.8" (got 2.8).'),
        ("eval_dataset = 2026-11-01", 'write it as a text: eval_dataset = "2026-11-01" (got 2026-11-01).'),
        ("rounds = 2026-11-01", "should be a whole number (got 2026-11-01)."),
        ("axes = 3", "should be a table: write [axes] and its keys below it (got 3)."),
        ("exclude = ['x']", "should be a table: write [[exclude]] and its keys below it (got 'x')."),
        ("include = {model = 'a'}", "should be a list of tables: write [[include]] above each (got a table)."),
        ("name = 'a b'", "'a b' cannot name the output folder. Use letters, digits"),
        ("rounds = true", "should be a whole number (got true)."),
        ("train_steps = '2'", "should be a whole number (got '2')."),
        ("repeats = 2.0", "should be a whole number (got 2.0)."),
        ("[axes]\nseed = true", "should be a whole number (got true)."),
        ("[axes]\npad_to_multiple_of = false", "should be a whole number (got false)."),
        ("time_limit = true", "should be a number (got true)."),
        ("time_limit = inf", "(got inf)."),
        ("precision = nan", "(got nan)."),
        ("[axes]\nseed = 4294967296", "should be at most 4294967295 (got 4294967296)."),
        (f"[axes]\nseed = 0x{'f' * 5000}", "should be at most 4294967295 (got a number of many digits)."),
        ("threads = 100000", "should be at most 1024 (got 100000)."),
        ("[axes]\nemulate_macos = [15, 99]", "there is no macOS 99 to emulate: choose 13, 14, 15 or 26."),
        ("[axes]\nemulate_macos = -3", "there is no macOS -3 to emulate: choose 13, 14, 15 or 26."),
        ("max_rounds = 1000000000", "should be at most 1000 (got 1000000000)."),
        *(
            (f"{key} = 10000000", "should be at most 1000000")
            for key in (
                *("train_steps", "eval_batches", "repeats", "warmup", "time_limit", "max_cells"),
                *("axes.sequence_length", "axes.batch_size", "axes.pad_to_multiple_of"),
            )
        ),
    ],
)
def test_what_a_value_should_be_is_said_in_plain_words(text, sentence):
    with pytest.raises(BadInput) as caught:
        parse_matrix(text, "m.toml")
    assert sentence in str(caught.value)


@pytest.mark.parametrize("text", [f"rounds = {'9' * 5000}", f"axes = {'[' * 5000}"])
def test_toml_that_is_too_much_is_a_sentence(text):
    with pytest.raises(BadInput, match=r"^m\.toml is not TOML: "):
        parse_matrix(text, "m.toml")


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
    spec = changed(parse_matrix(WHOLE, "m"), {"attn_implementation": ["sdpa"], "rounds": 0, "model": None, "seed": []})
    assert spec.axes.attn_implementation == ["sdpa"]
    assert spec.rounds == 0
    assert spec.axes.model == ["tiny-gpt2", "tiny-llama"]
    assert spec.exclude == parse_matrix(WHOLE, "m").exclude


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        (
            {"attn_implementation": ["egar"]},
            "--attn-implementation: unknown attn_implementation 'egar'. Did you mean 'eager'?",
        ),
        ({"max_rounds": -1}, "--max-rounds: should be at least 0 (got -1)."),
        ({"rounds": 5, "max_rounds": 3}, "--rounds and --max-rounds: max_rounds (3) is smaller than rounds (5)."),
        ({"emulate": ["1.9"]}, "--emulate: there is no emulation of torch '1.9'"),
        ({"attn_implementatoin": ["sdpa"]}, "Did you mean 'attn_implementation'?"),
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


def test_old_names_still_work_with_one_note():
    notes = []
    text = "train_steps = 7\n[axes]\npadding = 'left'\nsequence_length = 64\n[[exclude]]\npadding = 'right'"
    spec = parse_matrix(text, "m.toml", note=notes.append)
    assert (spec.max_steps, spec.axes.padding_side, spec.axes.max_length) == (7, ["left"], [64])
    assert spec.exclude[0].named() == {"padding_side": ["right"]}
    [note] = notes
    assert note.startswith("m.toml: 'train_steps' is now 'max_steps', 'padding' is now 'padding_side', ")
    assert note.endswith("'sequence_length' is now 'max_length'. The old names still work.")
    parse_matrix("max_steps = 7", "m.toml", note=notes.append)
    assert notes == [note]


def test_a_key_under_both_names_is_an_error():
    with pytest.raises(BadInput, match=r"line 2, axes.padding: unknown key 'padding'. Did you mean 'padding_side'"):
        parse_matrix("[axes]\npadding = 'left'\npadding_side = 'left'", "m.toml")


def test_a_byte_order_mark_is_read_over(tmp_path):
    path = tmp_path / "m.toml"
    path.write_bytes(b"\xef\xbb\xbfrounds = 2\n")
    assert load_matrix(path).rounds == 2
