import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpsdiag.errors import BadInput
from mpsdiag.matrix.gate import AnyGate, CompareGate, evaluate, parse_gate, require_words
from mpsdiag.matrix.job import Ended, Job
from mpsdiag.matrix.measures import MEASURES
from mpsdiag.matrix.record import Cell, Measured, Timing

NAN = float("nan")


def records(cell, status="ok", times=(0.1,), **measured):
    key = repr(hash(cell))
    ended = Ended(status=status, started="now", seconds=1.0, measured=Measured(**measured))
    yield ended.record(Job(key=key, cell=cell, log=""))
    for number, seconds in enumerate(times, start=1):
        timing = Timing(device="cpu", warmup=0, train_step=[seconds] * 3, eval_step=[seconds] * 3)
        memory = Measured(peak_process_memory=1000)
        ended = Ended(status="ok", started="now", seconds=1.0, timing=timing, measured=memory)
        yield ended.record(Job(key=key, cell=cell, round=number, log=""))


def matrix(**times):
    return [
        one
        for padding in ("left", "right")
        for attention, seconds in times.items()
        for one in records(
            Cell(attention=attention, padding=padding), times=(seconds,), eval_loss=5.0, loss_moved_by=0.0
        )
    ]


@pytest.mark.parametrize(
    ("gate", "tripped"),
    [
        ("safe_sdpa.eval_time > 1.05 * sdpa.eval_time", False),
        ("safe_sdpa.eval_time > 1.01 * sdpa.eval_time", True),
        ("safe_sdpa.eval_time>=1.02*sdpa.eval_time", True),
        ("sdpa.eval_time < 0.5 * safe_sdpa.eval_time", False),
        ("0.2 < sdpa.train_time", False),
        ("safe_sdpa+left.eval_time > 0.1", True),
        ("sdpa.eval_time <= 1e-1", True),
        ("safe_sdpa.loss_moved_by > 0", False),
        ("sdpa.memory > 999", True),
        ("any nan in all", False),
        ("any ok in safe_sdpa", True),
        ("any bad in all", False),
    ],
)
def test_gates_decide(gate, tripped):
    found = evaluate(parse_gate(gate), matrix(sdpa=0.1, safe_sdpa=0.103))
    assert found.tripped is tripped
    assert str(parse_gate(gate)) in found.sentence


def test_any_status_looks_at_every_round():
    rows = [*records(Cell()), *records(Cell(attention="eager"), status="nan")]
    assert evaluate(parse_gate("any nan in eager"), rows).tripped is True
    assert evaluate(parse_gate("any nan in sdpa"), rows).tripped is False
    rows += list(records(Cell(attention="safe_sdpa"), status="timeout", times=()))
    assert evaluate(parse_gate("any bad in safe_sdpa"), rows).tripped is True
    assert "safe_sdpa + standard" in evaluate(parse_gate("any timeout in all"), rows).sentence


def test_what_cannot_be_decided_does_not_pass():
    rows = [*records(Cell(), eval_loss=NAN), *records(Cell(attention="eager"), eval_loss=5.0, times=())]
    for gate in (
        "eager.eval_loss > sdpa.eval_loss",
        "eager.eval_time > 0",
        "safe_sdpa.eval_time > sdpa.eval_time",
    ):
        assert evaluate(parse_gate(gate), rows).tripped is None


def test_pairs_agree_on_every_axis_that_is_not_named():
    rows = [
        *records(Cell(attention="sdpa"), times=(1.0,)),
        *records(Cell(attention="eager", seed=1), times=(9.0,)),
    ]
    assert evaluate(parse_gate("eager.eval_time > sdpa.eval_time"), rows).tripped is None
    rows += records(Cell(attention="eager", trainer="mps_safe"), times=(9.0,))
    assert evaluate(parse_gate("eager.eval_time > sdpa.eval_time"), rows).tripped is None
    assert evaluate(parse_gate("eager+mps_safe.eval_time > sdpa+standard.eval_time"), rows).tripped is True


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


def test_every_measure_of_nothing_is_not_a_number():
    assert all(read([]) != read([]) for read in MEASURES.values())
