import json

import pytest

from mpsdiag.benching.journal.journal import read_journal
from mpsdiag.benching.plan.forecast import as_document, as_text, forecast
from mpsdiag.benching.plan.matrix import MatrixSpec, changed
from mpsdiag.benching.plan.matrix_file import parse_matrix
from mpsdiag.benching.plan.request import BenchRequest
from mpsdiag.benching.run.bench import prepare
from mpsdiag.benching.run.launch import LIGHT, Isolation
from mpsdiag.benching.run.rounds import StopRule
from mpsdiag.errors import BadInput, CannotDecide
from mpsdiag.scenario.scenario import Measured

ONE = {"trainer": ["standard"], "padding_side": ["left"], "device": ["cpu"], "rounds": 1, "max_rounds": 1, "repeats": 2}


@pytest.fixture
def request_for(tmp_path):
    def make(values=None, **fields):
        spec = changed(MatrixSpec(), {**ONE, **(values or {})})
        fields = {"function": "fake_cells:quick", "isolation": Isolation(preload=LIGHT), **fields}
        return BenchRequest(spec, tmp_path / "out", **fields)

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
    assert any(word in session.closing(outcome)[-1] for word in ("gate tripped", "counts as tripped"))
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
    assert any("run alone" in note for note in quiet.notes)


def test_shards_together_are_the_whole(request_for, quiet):
    keys = []
    for number in (1, 2):
        values = {"rounds": 0, "seed": [0, 1, 2]}
        session = prepare(request_for(values, shard=(number, 2)))
        keys += [cell.key(session.site.versions) for cell in session.plan.cells]
    assert len(keys) == len(set(keys)) == 9


@pytest.mark.parametrize(
    ("gate", "codes"),
    [
        ("any ok in left", {(1, "tripped"), (0, "another part")}),
        ("left.eval_loss > 100 * right.eval_loss", {(0, "another part")}),
    ],
)
def test_a_part_leaves_gates_about_other_parts_to_the_report(request_for, quiet, tmp_path, gate, codes):
    found = set()
    for number in (1, 2):
        notes = []
        values = {"rounds": 0, "padding_side": ["left", "right"]}
        request = request_for(values, shard=(number, 2), gates=[gate], fresh=True)
        session = prepare(request, notes.append)
        code = session.exit_code(outcome := session.run(quiet))
        said = " ".join([*notes, *session.closing(outcome)])
        found.add((code, "another part" if "another part" in said else "tripped"))
    assert found == codes


def test_a_matrix_that_cannot_run_here_at_all_is_undecided(request_for, quiet):
    session = prepare(request_for({"attn_implementation": ["flash_attention_2"]}))
    with pytest.raises(CannotDecide, match="needs a CUDA or XPU device"):
        session.run(quiet)


@pytest.mark.parametrize(
    ("fields", "values", "sentence"),
    [
        ({"gates": ["any nan in safe_spda"]}, {}, "Did you mean 'safe_sdpa'"),
        ({"gates": ["nonsense"]}, {}, "is not a gate"),
        ({"shard": (3, 2)}, {}, "does not exist"),
        ({"cluster": "tcp://127.0.0.1:9", "jobs": 2}, {}, "--jobs applies to this machine"),
        ({}, {"dataset": "no/such/file.txt"}, "does not exist"),
        ({}, {"model": ["./no/such/model"]}, "does not exist"),
        ({}, {"max_cells": 2}, "more than --max-cells"),
    ],
)
def test_bad_requests_are_sentences_before_anything_is_written(request_for, tmp_path, fields, values, sentence):
    with pytest.raises(BadInput) as caught:
        prepare(request_for(values, **fields))
    assert sentence in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written_is_a_sentence(request_for, tmp_path, quiet):
    (tmp_path / "out").write_text("a file where the folder should be")
    with pytest.raises(BadInput, match="--out"):
        prepare(request_for()).run(quiet)


def test_when_not_even_a_process_can_be_started(request_for, quiet, monkeypatch):
    monkeypatch.setattr(Isolation, "warm_up", lambda self, log, stop: self.run_nothing)
    monkeypatch.setattr(Isolation, "run_nothing", _Broken, raising=False)
    with pytest.raises(CannotDecide, match="No process can be started here: no memory"):
        prepare(request_for()).run(quiet)


class _Broken:
    status, reason, log_tail = "crash", "no memory", ""


def test_a_listing_names_what_varies_and_how_long_it_takes(request_for):
    session = prepare(request_for({"attn_implementation": ["sdpa", "flash_attention_2"], "seed": [0, 1]}))
    text = as_text(session).splitlines()
    assert text[0].split() == ["attn_implementation", "seed"]
    assert text[1].split() == ["sdpa", "0"]
    assert "skip (2): flash_attention_2 needs" in "\n".join(text)
    assert text[-1].startswith("2 cells, 2 skipped; a verdict and 1 timing round each; about ")
    document = json.loads(as_document(session))
    assert (len(document["cells"]), len(document["skipped"])) == (2, 2)


def test_a_dry_run_leaves_out_what_the_journal_has(request_for, quiet):
    whole = prepare(request_for())
    assert "already" not in as_text(whole)
    assert prepare(request_for({"attn_implementation": ["sdpa"]})).run(quiet).fresh == 2
    assert "; the journal already has 2 of these rounds; about " in as_text(whole)
    assert (forecast(whole)[0].verdicts, forecast(whole)[0].most) == (2, 2)
    whole.run(quiet)
    assert as_text(whole).endswith("; the journal already has 6 of these rounds; nothing is left to run.")
    document = json.loads(as_document(whole))
    assert (document["seconds"], document["rounds_in_journal"]) == ({"least": 0.0, "most": 0.0}, 6)
    assert forecast(prepare(request_for(fresh=True)))[0].verdicts == 3
    assert forecast(prepare(request_for(retry=frozenset({"ok"}))))[0].verdicts == 3


@pytest.mark.parametrize("gates", [(), ["any nan in safe_sdpa"]])
def test_an_empty_part_is_nothing_to_do(request_for, quiet, tmp_path, gates):
    session = prepare(request_for({"seed": [0, 1]}, shard=(3, 4), gates=gates), quiet.note)
    said = "part 3 of 4 is empty: the matrix has 2 groups of cells that are compared, which stay together"
    assert quiet.notes == [said]
    assert as_text(session) == f"0 cells, 0 skipped; {said}."
    assert json.loads(as_document(session))["cells"] == []
    outcome = session.run(quiet)
    assert session.exit_code(outcome) == 0
    assert not (tmp_path / "out").exists()


def test_words_of_gates_are_checked_in_an_empty_part_too(request_for):
    with pytest.raises(BadInput, match="Did you mean 'safe_sdpa'"):
        prepare(request_for(shard=(2, 2), gates=["any nan in safe_spda"]))


def test_rules_that_change_nothing_are_notes(request_for, quiet):
    spec = parse_matrix("[[exclude]]\nmodel = 'tiny-gtp2'", "m")
    prepare(BenchRequest(spec, request_for().out), quiet.note)
    assert [note for note in quiet.notes if "leaves nothing out" in note]


@pytest.mark.parametrize("act", [lambda session, quiet: session.run(quiet), lambda session, _: as_text(session)])
def test_what_is_no_journal_is_in_the_way_and_fresh_helps(request_for, quiet, tmp_path, act):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "journal.jsonl").write_text("garbage\n")
    with pytest.raises(BadInput, match=r"is not an mpsdiag journal: .* --fresh sets it aside"):
        act(prepare(request_for()), quiet)
    assert (tmp_path / "out" / "journal.jsonl").read_text() == "garbage\n"
    assert prepare(request_for({"rounds": 0}, fresh=True)).run(quiet).fresh == 3


@pytest.mark.parametrize(("pads", "said"), [(0, True), (3, False)])
def test_data_without_padding_is_mentioned(start_run, seeds, request_for, executor_answers, pads, said):
    outcome, _ = start_run(seeds(2), executor_answers(Measured(real_tokens=9, pad_tokens=pads)), rule=StopRule(0))
    assert any("no evaluation batch has any padding" in one for one in prepare(request_for()).closing(outcome)) is said
