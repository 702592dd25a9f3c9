import pytest

from mpsdiag.benching.journal.journal import read_journal
from mpsdiag.benching.journal.pooling import kind
from mpsdiag.benching.plan.expand import Plan
from mpsdiag.benching.run.interrupt import Stop
from mpsdiag.benching.run.rounds import StopRule
from mpsdiag.errors import BadInput
from mpsdiag.scenario.scenario import Scenario

VERDICTS = {"rule": StopRule(rounds=0)}
TWO_ROUNDS = {"rule": StopRule(rounds=2, most=2)}


@pytest.fixture
def executor():
    from conftest import FakeExecutor

    return FakeExecutor


def test_a_run_writes_a_verdict_and_the_rounds_of_every_cell(start_run, seeds, tmp_path):
    outcome, executor = start_run(seeds(3), **TWO_ROUNDS)
    assert outcome.exit_code == 0
    assert len(executor.ran) == 9
    assert {(r.cell.seed, r.round) for r in read_journal(tmp_path).records} == {
        (s, r) for s in range(3) for r in range(3)
    }


def test_each_line_is_on_the_disk_before_the_next_cell_begins(start_run, seeds, executor, tmp_path):
    seen = []
    spy = executor()
    spy.before_each = lambda job: seen.append((tmp_path / "journal.jsonl").read_bytes().count(b"\n"))
    start_run(seeds(4), spy, **VERDICTS)
    assert seen == [1, 2, 3, 4]


def test_running_again_runs_only_what_is_missing(start_run, seeds, tmp_path):
    start_run(seeds(2), **TWO_ROUNDS)
    before = (tmp_path / "journal.jsonl").read_bytes()
    outcome, executor = start_run(seeds(4), **TWO_ROUNDS)
    assert {seed for seed, _, _ in executor.ran} == {2, 3}
    assert outcome.fresh == 6
    assert len(outcome.records) == 12
    assert (tmp_path / "journal.jsonl").read_bytes().startswith(before)


def test_an_interrupted_run_goes_on_where_it_was(start_run, seeds, executor, tmp_path, quiet):
    stop = Stop()
    first = executor({(2, 0): {"status": "interrupted"}})
    first.before_each = lambda job: stop.ask() if job.cell.seed == 2 else None
    outcome, _ = start_run(seeds(5), first, stop=stop, **VERDICTS)
    assert (outcome.interrupted, outcome.exit_code) == (True, 130)
    assert [(r.cell.seed, r.status) for r in read_journal(tmp_path).records][-1] == (2, "interrupted")
    outcome, second = start_run(seeds(5), **VERDICTS)
    assert [seed for seed, _, _ in second.ran] == [2, 3, 4]
    assert outcome.exit_code == 0


def test_a_run_that_finds_all_done_has_no_exit_code_of_its_own(start_run, seeds):
    start_run(seeds(1), **VERDICTS)
    outcome, executor = start_run(seeds(1), **VERDICTS)
    assert (outcome.exit_code, executor.ran) == (0, [])


@pytest.mark.parametrize(("status", "code"), [("nan", 0), ("wrong", 0), ("error", 3), ("crash", 3), ("timeout", 3)])
def test_findings_are_no_failures_and_failures_are_not_timed(start_run, seeds, executor, status, code):
    outcome, done = start_run(seeds(2), executor({(1, 0): status}), **TWO_ROUNDS)
    assert outcome.exit_code == code
    timed = {seed for seed, _, round_ in done.ran if round_}
    assert timed == ({0, 1} if code == 0 else {0})


def test_a_cell_whose_timing_fails_gets_no_further_rounds(start_run, seeds, executor):
    outcome, done = start_run(seeds(2), executor({(1, 1): "timeout"}), rule=StopRule(3, 3))
    assert [round_ for seed, _, round_ in done.ran if seed == 1] == [0, 1]
    assert outcome.exit_code == 3
    _, again = start_run(seeds(2), rule=StopRule(3, 3))
    assert again.ran == []  # not without --retry
    outcome, again = start_run(seeds(2), rule=StopRule(3, 3), retry=frozenset({"timeout"}))
    assert again.ran == [(1, "sdpa", 1), (1, "sdpa", 2), (1, "sdpa", 3)]
    assert outcome.exit_code == 0


def test_skipped_cells_are_recorded_once_and_run_when_they_can(start_run, seeds, tmp_path):
    cells = seeds(2)
    plan = Plan((cells[0],), {cells[1]: "no GPU here"})
    for _ in range(2):
        outcome, _ = start_run(plan, **VERDICTS)
        records = read_journal(tmp_path).records
        assert [(r.status, r.reason) for r in records if r.cell == cells[1]] == [("skip", "no GPU here")]
        assert outcome.exit_code == 0
    assert (tmp_path / "journal.jsonl").read_bytes().count(b"\n") == 3
    outcome, executor = start_run(cells, **VERDICTS)
    assert [seed for seed, _, _ in executor.ran] == [1]
    assert {r.status for r in outcome.records} == {"ok"}


def test_nothing_ran_is_never_0(start_run):
    outcome, _ = start_run(Plan((), {Scenario(): "no"}), **VERDICTS)
    assert outcome.exit_code == 3


def test_rounds_go_in_rotated_order(start_run, seeds):
    _, executor = start_run(seeds(5), rule=StopRule(3, 3))
    orders = [[seed for seed, _, round_ in executor.ran if round_ == number] for number in (1, 2, 3)]
    assert orders[0] == [0, 1, 2, 3, 4]
    assert len({tuple(order) for order in orders}) == 3
    assert all(sorted(order) == [0, 1, 2, 3, 4] for order in orders)


def test_other_cells_in_the_journal_are_mentioned(start_run, seeds, quiet):
    start_run(seeds(2), **VERDICTS)
    start_run([Scenario(seed=9)], **VERDICTS)
    assert "has 2 other cells" in quiet.notes[-1]


def test_a_file_that_is_no_journal_is_left_alone(start_run, seeds, tmp_path):
    path = tmp_path / "journal.jsonl"
    path.write_text("my diary, without a line feed")
    with pytest.raises(BadInput, match="not an mpsdiag journal"):
        start_run(seeds(1))
    assert path.read_text() == "my diary, without a line feed"


def test_a_bad_line_is_mentioned_and_its_cell_run_again(start_run, seeds, tmp_path, quiet):
    start_run(seeds(3), **VERDICTS)
    path = tmp_path / "journal.jsonl"
    lines = path.read_bytes().split(b"\n")
    lines[2] = lines[2][:50]
    path.write_bytes(b"\n".join(lines))
    _, executor = start_run(seeds(3), **VERDICTS)
    assert [seed for seed, _, _ in executor.ran] == [1]
    assert any("line 3" in note for note in quiet.notes)


def test_a_torn_last_line_is_mentioned_before_it_is_mended(start_run, seeds, tmp_path, quiet):
    start_run(seeds(2), **VERDICTS)
    path = tmp_path / "journal.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    start_run(seeds(2), **VERDICTS)
    assert sum("torn" in note for note in quiet.notes) == 1


def test_logs_are_named_by_the_key_alone(start_run, executor, tmp_path):
    logs = []
    spy = executor()
    spy.before_each = lambda job: logs.append(job.log)
    start_run([Scenario(model="../../etc/passwd")], spy, **VERDICTS)
    assert [str(tmp_path / "logs") in log and ".." not in log for log in logs] == [True]


@pytest.mark.parametrize(
    ("asked", "jobs", "verdict", "timing"),
    [(None, 1, None, None), (3, 1, 3, 3), (None, 10**6, 1, None), (3, 10**6, 3, 3)],  # timings run alone
)
def test_verdicts_at_once_share_the_cores(start_run, executor, asked, jobs, verdict, timing):
    threads = []
    spy = executor()
    spy.before_each = lambda job: threads.append(job.threads)
    start_run([Scenario(threads=asked)], spy, rule=StopRule(1, 1), jobs=jobs)
    assert threads == [verdict, timing]


@pytest.mark.parametrize("change", [{"warmup": 0}, {"repeats": 1}, {"threads": 2}])
def test_samples_of_another_way_of_timing_are_not_mixed_in(start_run, seeds, change):
    start_run(seeds(1), **TWO_ROUNDS)
    outcome, executor = start_run([Scenario(seed=0, **change)], **TWO_ROUNDS)
    assert [round_ for _, _, round_ in executor.ran] == [0, 1, 2]
    assert len(outcome.records) == 3


def test_a_cell_knows_on_which_kind_of_machine_its_group_ran_before(start_run, seeds, executor):
    def ended(chip):
        return {"status": "ok", "environment": {"chip": chip}}

    start_run(seeds(2), executor({(0, 0): ended("M1"), (1, 0): ended("M4")}), **VERDICTS)
    machines = {}
    spy = executor()
    spy.before_each = lambda job: machines.setdefault((job.cell.seed, job.cell.attn_implementation), job.machine)
    start_run([*seeds(3), Scenario(seed=1, attn_implementation="eager")], spy, rule=StopRule(1, 1))
    assert machines == {
        (0, "sdpa"): kind({"chip": "M1"}),
        (1, "sdpa"): kind({"chip": "M4"}),
        (1, "eager"): kind({"chip": "M4"}),
        (2, "sdpa"): None,
    }
