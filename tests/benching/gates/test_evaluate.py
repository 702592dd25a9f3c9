"""Gates decided, against numbers that are plain to see."""

import pytest

from mpsdiag.benching.gates import MEASURES, judge, parse_gate
from mpsdiag.benching.journal.journal import Journal
from mpsdiag.benching.journal.pooling import pool
from mpsdiag.benching.journal.record import Header, Job, Timing
from mpsdiag.scenario.scenario import Measured, Scenario

NAN = float("nan")
HEADER = Header(mpsdiag="0.1.0", command="", created="")
FASTER = "safe_sdpa.eval_time > 1.05 * sdpa.eval_time"


def records(cell, status="ok", times=(0.1,), chip="A", **measured):
    """The verdict of a cell and its timing rounds, `times` being the seconds of each, measured on `chip`."""
    key = repr(hash(cell))
    where = {"started": "now", "seconds": 1.0, "environment": {"chip": chip}}
    yield Job(key=key, cell=cell, log="").record(status=status, measured=Measured(**measured), **where)
    for number, seconds in enumerate(times, start=1):
        timing = Timing(device="cpu", warmup=0, train_step=[seconds] * 3, eval_step=[seconds] * 3)
        memory = Measured(peak_process_memory=1000)
        yield Job(key=key, cell=cell, round=number, log="").record(status="ok", timing=timing, measured=memory, **where)


def evaluate(gate, rows):
    return judge(parse_gate(gate), pool([Journal(HEADER, list(rows))]))


def matrix(**times):
    return [
        one
        for padding in ("left", "right")
        for attention, seconds in times.items()
        for one in records(
            Scenario(attn_implementation=attention, padding_side=padding),
            times=(seconds,),
            eval_loss=5.0,
            loss_moved_by=0.0,
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
        ("safe_sdpa+padding=left.eval_time > 0.1", True),
        ("sequence_length=512.eval_time > 0.2", False),
        ("padding=left+safe_sdpa.eval_time > 1.01 * padding_side=right+sdpa.eval_time", True),
        ("safe_sdpa.loss_moved_by < -0.001", False),
        ("safe_sdpa.loss_moved_by > -1e-9", True),
        ("sdpa.eval_time <= 1e-1", True),
        ("safe_sdpa.loss_moved_by > 0", False),
        ("sdpa.memory > 999", True),
        ("any nan in all", False),
        ("any ok in safe_sdpa", True),
        ("any bad in all", False),
    ],
)
def test_gates_decide(gate, tripped):
    found = evaluate(gate, matrix(sdpa=0.1, safe_sdpa=0.103))
    assert found.tripped is tripped
    assert parse_gate(gate).text in found.sentence


@pytest.mark.parametrize(("gate", "words"), [("any ok in all", "1 of 1 cell,"), ("any nan in all", "0 of 1 cell")])
def test_one_cell_is_no_plural(gate, words):
    assert f"{words} " in f"{evaluate(gate, records(Scenario())).sentence} "


def test_any_status_looks_at_every_round():
    rows = [*records(Scenario()), *records(Scenario(attn_implementation="eager"), status="nan")]
    assert evaluate("any nan in eager", rows).tripped is True
    assert evaluate("any nan in sdpa", rows).tripped is False
    rows += list(records(Scenario(attn_implementation="safe_sdpa"), status="timeout", times=()))
    assert evaluate("any bad in safe_sdpa", rows).tripped is True
    assert "safe_sdpa + standard" in evaluate("any timeout in all", rows).sentence


def test_what_cannot_be_decided_does_not_pass():
    rows = [
        *records(Scenario(), eval_loss=NAN),
        *records(Scenario(attn_implementation="eager"), eval_loss=5.0, times=()),
    ]
    for gate in ("eager.eval_loss > sdpa.eval_loss", "eager.eval_time > 0", "safe_sdpa.eval_time > sdpa.eval_time"):
        assert evaluate(gate, rows).tripped is None


def test_pairs_agree_on_every_axis_that_is_not_named():
    rows = [
        *records(Scenario(attn_implementation="sdpa"), times=(1.0,)),
        *records(Scenario(attn_implementation="eager", seed=1), times=(9.0,)),
    ]
    assert evaluate("eager.eval_time > sdpa.eval_time", rows).tripped is None
    rows += records(Scenario(attn_implementation="eager", trainer="mps_safe"), times=(9.0,))
    assert evaluate("eager.eval_time > sdpa.eval_time", rows).tripped is None
    assert evaluate("eager+mps_safe.eval_time > sdpa+standard.eval_time", rows).tripped is True


def test_each_environment_is_judged_by_itself():
    """Pooled, safe_sdpa would take 2.05 times as long; on either machine it is as fast as sdpa."""
    slow = [one for mode in ("sdpa", "safe_sdpa") for one in records(Scenario(attn_implementation=mode), times=(1.0,))]
    fast = [
        *records(Scenario(attn_implementation="sdpa"), times=(0.1, 0.1, 0.1), chip="B"),
        *records(Scenario(attn_implementation="safe_sdpa"), times=(0.1,), chip="B"),
    ]
    assert evaluate(FASTER, [*slow, *fast]).tripped is False
    worse = [*fast, *records(Scenario(attn_implementation="safe_sdpa", seed=1), times=(0.2,), chip="B")]
    worse += records(Scenario(attn_implementation="sdpa", seed=1), times=(0.1,), chip="B")
    found = evaluate(FASTER, [*slow, *worse])
    assert found.tripped is True
    assert found.sentence.endswith("[B]")


def test_times_are_compared_round_by_round_as_in_the_report():
    """The machine got twice as slow in round 3, which only the baseline ran: pooled, 1.2 would look like 0.8."""
    rows = [
        *records(Scenario(attn_implementation="sdpa"), times=(1.0, 1.0, 2.0, 2.0, 2.0)),
        *records(Scenario(attn_implementation="safe_sdpa"), times=(1.2, 1.2)),
    ]
    found = evaluate(FASTER, rows)
    assert found.tripped is True
    assert evaluate("safe_sdpa.eval_time > 1.21 * sdpa.eval_time", rows).tripped is False
    assert evaluate("0.5 * safe_sdpa.eval_time > 0.59 * sdpa.eval_time", rows).tripped is True
    assert evaluate("0.5 * safe_sdpa.eval_time > 0.61 * sdpa.eval_time", rows).tripped is False


def test_a_pair_that_is_torn_between_two_machines_is_undecided():
    torn = [
        *records(Scenario(attn_implementation="sdpa"), times=(0.1,)),
        *records(Scenario(attn_implementation="safe_sdpa"), times=(0.1,), chip="B"),
    ]
    found = evaluate(FASTER, torn)
    assert found.tripped is None
    assert "a number is missing (safe_sdpa + standard, left, tiny-llama, float32)" in found.sentence
    whole = [
        one
        for mode in ("sdpa", "safe_sdpa")
        for one in records(Scenario(attn_implementation=mode, seed=1), times=(0.1,))
    ]
    assert evaluate(FASTER, [*torn, *whole]).tripped is None  # another pair that holds does not hide it
    assert evaluate(FASTER, whole).tripped is False


def test_a_verdict_on_one_machine_and_timings_on_another_is_enough_to_decide():
    rows = [one for mode in ("sdpa", "safe_sdpa") for one in records(Scenario(attn_implementation=mode), times=())]
    for mode in ("sdpa", "safe_sdpa"):
        _, timed = records(Scenario(attn_implementation=mode), times=(0.1,), chip="B")
        rows.append(timed)
    assert evaluate(FASTER, rows).tripped is False


def test_a_nan_on_one_machine_is_not_hidden_by_a_number_from_another():
    rows = [*records(Scenario(), eval_loss=NAN), *records(Scenario(), eval_loss=5.0, chip="B")]
    assert evaluate("sdpa.eval_loss > 9", rows).tripped is None


def test_skipped_cells_are_no_cells_for_a_comparison():
    skipped = list(records(Scenario(attn_implementation="flash_attention_2"), status="skip", times=()))
    rows = [*records(Scenario(), times=(0.1,)), *skipped]
    assert evaluate("left.eval_time > 1", rows).tripped is False
    assert evaluate("flash_attention_2.eval_time > 1", rows).tripped is None
    assert evaluate("any skip in all", rows).tripped is True


def test_cells_none_of_which_finished_say_nothing_about_nan():
    crashed = list(records(Scenario(attn_implementation="safe_sdpa"), status="crash", times=()))
    assert evaluate("any nan in safe_sdpa", crashed).tripped is None
    assert evaluate("any timeout in safe_sdpa", crashed).tripped is False
    found = evaluate("any nan in all", [*crashed, *records(Scenario())])
    assert found.tripped is False
    assert "1 of which did not finish" in found.sentence


@pytest.mark.parametrize(
    ("gate", "passed", "word"),
    [
        ("any nan in all", True, "gate held: "),
        ("any ok in all", False, "gate tripped: "),
        ("sdpa.eval_loss > 1", False, "gate undecided, counts as tripped: "),
    ],
)
def test_what_a_judgement_says(gate, passed, word):
    found = evaluate(gate, records(Scenario()))
    assert (found.tripped is False) is passed
    assert str(found).startswith(word)


def test_every_measure_of_nothing_is_none():
    [cell] = pool(
        [Journal(HEADER, list(records(Scenario(), status="skip", times=(), peak_process_memory=None)))]
    ).results
    cell.measured = None
    assert {read(cell) for read in MEASURES.values()} == {None}
