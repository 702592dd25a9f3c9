import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpsdiag.benching.gates import AnyGate, CompareGate, parse_gate, require_words
from mpsdiag.errors import BadInput
from mpsdiag.scenario.scenario import Scenario


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "is not a gate"),
        ("safe_sdpa.eval_time", "is not a gate"),
        ("1 > 2", "compares two numbers"),
        ("safe_sdpa.evl_time > 1", "Did you mean 'eval_time'?"),
        ("any nann in all", "Did you mean 'nan'?"),
        ("safe_sdpa > 1", "neither a number nor CELL.MEASURE"),
        ("__import__('os').system('true') > 1", "neither a number nor CELL.MEASURE"),
        ("safe_sdpa.eval_time > 1 > 2", "neither a number nor CELL.MEASURE"),
        ("any nan in ++", "a word is missing in '++'"),
        ("any nan in safe_sdpa++left", "a word is missing in 'safe_sdpa++left'"),
        ("+.eval_time > 1", "a word is missing in '+'"),
        ("padding=.eval_time > 1", "a word is missing in 'padding='"),
        ("max_lenght=512.eval_time > 1", "no axis 'max_lenght'. Did you mean 'max_length'?"),
        ("any nan in safe_sdpa+paddding=left", "no axis 'paddding'. Did you mean 'padding_side'?"),
        ("sdpa.eval_time > 1e999", "1e999 is too large a number"),
        ("-1e999 * sdpa.eval_time < 1", "-1e999 is too large a number"),
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
    cells = [Scenario(attn_implementation="sdpa"), Scenario(attn_implementation="safe_sdpa", padding_side="right")]
    require_words(parse_gate("any nan in safe_sdpa+right"), cells)
    with pytest.raises(BadInput, match="Did you mean 'safe_sdpa'"):
        require_words(parse_gate("any nan in safe_spda"), cells)
    with pytest.raises(BadInput, match="has all of"):
        require_words(parse_gate("sdpa+right.eval_time > 1"), cells)


@pytest.mark.parametrize(
    ("gate", "taken"),
    [
        ("any nan in max_length=512", [0, 1]),
        ("any nan in safe_sdpa+sequence_length=512", [1]),
        ("any nan in padding_side=right+seed=3", [2]),
        ("any nan in emulate=2.8", [2]),
        ("any nan in emulate=none+attention=sdpa", [0]),
        ("any nan in all", [0, 1, 2]),
    ],
)
def test_a_word_can_name_its_axis(gate, taken):
    cells = [
        Scenario(attn_implementation="sdpa"),
        Scenario(attn_implementation="safe_sdpa"),
        Scenario(padding_side="right", seed=3, max_length=128, emulate="2.8"),
    ]
    parsed = parse_gate(gate)
    require_words(parsed, cells)
    assert [number for number, cell in enumerate(cells) if parsed.selector.takes(cell)] == taken


@pytest.mark.parametrize(
    ("gate", "sentence"),
    [
        ("any nan in 512", "has '512'. Name the axis of a number: max_length=512."),
        ("any nan in 4", "Name the axis of a number: batch_size=4 or eval_max_batches=4."),
        ("any nan in max_length=51", "has 'max_length=51'. Did you mean '512'? Choose from: 512, 64."),
        ("any nan in padding_side=lft", "has 'padding_side=lft'. Did you mean 'left'?"),
    ],
)
def test_what_to_write_instead_of_a_word_that_no_cell_has(gate, sentence):
    with pytest.raises(BadInput) as caught:
        require_words(parse_gate(gate), [Scenario(), Scenario(max_length=64)])
    assert sentence in str(caught.value)


def test_a_number_may_be_negative():
    gate = parse_gate("safe_sdpa.loss_moved_by < -0.001")
    assert (gate.right.factor, gate.text) == (-0.001, "safe_sdpa.loss_moved_by < -0.001")


def test_padding_invariance_is_a_measure():
    from mpsdiag.benching.gates import MEASURES
    from mpsdiag.findings import ArrangementResult, Invariance
    from mpsdiag.scenario.scenario import Measured

    results = [
        ArrangementResult(name="left", max_abs_diff=0.5, allowed=1e-6, holds=False),
        ArrangementResult(name="right", max_abs_diff=2.0, allowed=1e-6, holds=False, counts=False),
        ArrangementResult(name="generate", max_abs_diff=3.0, allowed=1e-6, holds=False),
    ]
    found = Invariance(verdict="varies", reason="", padding_side="left", arrangements=results)
    assert "invariance_diff" in MEASURES
    assert Measured(invariance=found).invariance_diff == 0.5
    assert Measured().invariance_diff is None
