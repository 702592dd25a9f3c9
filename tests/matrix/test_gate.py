import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpsdiag.errors import BadInput
from mpsdiag.matrix.gate import AnyGate, CompareGate, parse_gate, require_words
from mpsdiag.matrix.record import Cell


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "is no gate"),
        ("safe_sdpa.eval_time", "is no gate"),
        ("1 > 2", "compares two numbers"),
        ("safe_sdpa.evl_time > 1", "Did you mean 'eval_time'?"),
        ("any nann in all", "Did you mean 'nan'?"),
        ("safe_sdpa > 1", "neither a number nor CELL.MEASURE"),
        ("__import__('os').system('true') > 1", "neither a number nor CELL.MEASURE"),
        ("safe_sdpa.eval_time > 1 > 2", "neither a number nor CELL.MEASURE"),
    ],
)
def test_what_is_no_gate_is_a_sentence(text, sentence):
    with pytest.raises(BadInput, match=r"--fail-if") as caught:
        parse_gate(text)
    assert sentence in str(caught.value)


@given(st.text(max_size=40))
def test_no_text_breaks_the_parser(text):
    try:
        assert isinstance(parse_gate(text), AnyGate | CompareGate)
    except BadInput as problem:
        assert "--fail-if" in str(problem)  # noqa: PT017 - most texts are no gates, some are


def test_words_are_checked_against_the_matrix_before_it_runs():
    cells = [Cell(attention="sdpa"), Cell(attention="safe_sdpa", padding="right")]
    require_words(parse_gate("any nan in safe_sdpa+right"), cells)
    with pytest.raises(BadInput, match="Did you mean 'safe_sdpa'"):
        require_words(parse_gate("any nan in safe_spda"), cells)
    with pytest.raises(BadInput, match="has all of"):
        require_words(parse_gate("sdpa+right.eval_time > 1"), cells)
