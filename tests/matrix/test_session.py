import json

import pytest

from mpsdiag.errors import BadInput, CannotDecide
from mpsdiag.matrix.estimate import estimate, in_words
from mpsdiag.matrix.isolation import LIGHT, Isolation
from mpsdiag.matrix.journal import read_journal
from mpsdiag.matrix.listing import as_document, as_text
from mpsdiag.matrix.record import Cell, Measured
from mpsdiag.matrix.rounds import StopRule
from mpsdiag.matrix.session import Request, parse_retry, parse_shard, prepare
from mpsdiag.matrix.spec import MatrixSpec, changed

ONE = {
    "trainer": ["standard"],
    "padding": ["left"],
    "device": ["cpu"],
    "rounds": 1,
    "max_rounds": 1,
    "repeats": 2,
}


@pytest.fixture
def request_for(tmp_path):
    def make(values=None, **fields):
        spec = changed(MatrixSpec(), {**ONE, **(values or {})})
        fields = {"function": "fake_cells:quick", "isolation": Isolation(preload=LIGHT), **fields}
        return Request(spec, tmp_path / "out", **fields)

    return make


def test_a_bench_from_request_to_exit_code(request_for, quiet):
    session = prepare(request_for(gates=["any nan in all", "safe_sdpa.eval_time > 2 * sdpa.eval_time"]))
    outcome = session.run(quiet)
    assert session.exit_code(outcome) == 0
    assert [leg[0] for leg in quiet.legs] == ["verdicts", "timing round 1"]
    assert {r.round for r in read_journal(session.request.out).records} == {0, 1}
    assert read_journal(session.request.out).records[0].environment["versions"]["torch"]
    assert [one.tripped for one in session.judgements] == [False, False]


@pytest.mark.parametrize(
    ("gate", "code"),
    [("any ok in all", 1), ("safe_sdpa.eval_loss >= 0", 1), ("safe_sdpa.dead_rows > sdpa.loss_moved_by", 1)],
)
def test_gates_make_the_exit_code(request_for, quiet, gate, code):
    session = prepare(request_for({"rounds": 0}, gates=[gate]))
    outcome = session.run(quiet)
    assert session.exit_code(outcome) == code
    assert any(word in session.closing(outcome)[-1] for word in ("gate tripped", "taken as tripped"))
    assert session.summary(outcome)["gates"][0]["gate"]


def test_fresh_keeps_the_older_journal_aside(request_for, quiet):
    for number in range(3):
        session = prepare(request_for({"rounds": 0}, fresh=True))
        assert session.run(quiet).fresh == 3, number
    kept = sorted(path.name for path in session.request.out.glob("*.jsonl"))
    assert kept == ["journal.1.jsonl", "journal.2.jsonl", "journal.jsonl"]
    assert "kept as" in quiet.notes[-1]


def test_jobs_say_what_they_are_for(request_for, quiet):
    session = prepare(request_for(jobs=2))
    assert session.run(quiet).fresh == 6
    assert any("runs alone" in note for note in quiet.notes)


def test_shards_together_are_the_whole(request_for, quiet):
    keys = []
    for number in (1, 2):
        values = {"rounds": 0, "seed": [0, 1, 2]}
        session = prepare(request_for(values, shard=(number, 2)))
        keys += [cell.key(session.versions) for cell in session.plan.cells]
    assert len(keys) == len(set(keys)) == 9


def test_a_matrix_that_cannot_run_here_at_all_is_undecided(request_for, quiet):
    session = prepare(request_for({"attention": ["flash_attention_2"]}))
    with pytest.raises(CannotDecide, match="needs a CUDA or XPU device"):
        session.run(quiet)


@pytest.mark.parametrize(
    ("fields", "values", "sentence"),
    [
        ({"gates": ["any nan in safe_spda"]}, {}, "Did you mean 'safe_sdpa'"),
        ({"gates": ["nonsense"]}, {}, "is no gate"),
        ({"shard": (3, 2)}, {}, "no such part"),
        ({"cluster": "tcp://127.0.0.1:9", "jobs": 2}, {}, "--jobs is for this machine"),
        ({}, {"dataset": "no/such/file.txt"}, "does not exist"),
        ({}, {"model": ["./no/such/model"]}, "does not exist"),
        ({}, {"max_cells": 2}, "more than --max-cells"),
    ],
)
def test_bad_requests_are_sentences_before_anything_is_written(
    request_for, tmp_path, fields, values, sentence
):
    with pytest.raises(BadInput) as caught:
        prepare(request_for(values, **fields))
    assert sentence in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written_is_a_sentence(request_for, tmp_path, quiet):
    (tmp_path / "out").write_text("a file where the folder should be")
    with pytest.raises(BadInput, match="--out"):
        prepare(request_for()).run(quiet)


def test_when_not_even_a_process_can_be_started(request_for, quiet, monkeypatch):
    monkeypatch.setattr(Isolation, "warm_up", lambda self, log: self.run_nothing)
    monkeypatch.setattr(Isolation, "run_nothing", _Broken, raising=False)
    with pytest.raises(CannotDecide, match="No process can be started here: no memory"):
        prepare(request_for()).run(quiet)


class _Broken:
    status, reason = "crash", "no memory"


def test_a_listing_names_what_varies_and_how_long_it_takes(request_for):
    session = prepare(request_for({"attention": ["sdpa", "flash_attention_2"], "seed": [0, 1]}))
    text = as_text(session).splitlines()
    assert text[0].split() == ["attention", "seed"]
    assert text[1].split() == ["sdpa", "0"]
    assert "skip (2): flash_attention_2 needs" in "\n".join(text)
    assert text[-1].startswith("2 cells, 2 skipped; a verdict and 1 timing rounds each; about ")
    document = json.loads(as_document(session))
    assert (len(document["cells"]), len(document["skipped"])) == (2, 2)


def test_an_estimate_prefers_what_was_measured(start_run, seeds):
    outcome, _ = start_run(seeds(4), rule=StopRule(1, 2))
    least, most = estimate(seeds(10), StopRule(1, 2), "forkserver", outcome.records)
    assert (least - 5.0, most - 5.0) == (10 * (0.5 + 0.5), 10 * (0.5 + 1.0))
    assert (
        estimate([Cell()], StopRule(0, 0), "spawn")[0]
        > estimate([Cell()], StopRule(0, 0), "forkserver")[0] - 5.0
    )
    alone, two = (estimate(seeds(10), StopRule(1, 2), "spawn", machines=number)[0] for number in (1, 2))
    assert alone == 2 * two
    assert [in_words(seconds) for seconds in (40.2, 200, 9000)] == ["40 s", "3 min", "2.5 h"]


@pytest.mark.parametrize(("pads", "said"), [(0, True), (3, False)])
def test_data_without_padding_is_mentioned(start_run, seeds, request_for, executor_answers, pads, said):
    outcome, _ = start_run(
        seeds(2), executor_answers(Measured(real_tokens=9, pad_tokens=pads)), rule=StopRule(0)
    )
    assert (
        any("no evaluation batch has any padding" in one for one in prepare(request_for()).closing(outcome))
        is said
    )


def test_words_of_options():
    assert parse_shard("2/4") == (2, 4)
    assert parse_retry("error, crash") == {"error", "crash"}
    assert parse_retry("") == frozenset()
    for text in ("2", "a/b", "1/0"):
        with pytest.raises(BadInput, match="I/N"):
            parse_shard(text)
    with pytest.raises(BadInput, match="Did you mean 'timeout'"):
        parse_retry("timout")
