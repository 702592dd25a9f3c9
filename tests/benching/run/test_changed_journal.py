"""What becomes of the results when somebody touches the journal, its folder or its logs while cells run."""

import os
import shutil

import pytest

from mpsdiag.benching.journal.journal import read_journal
from mpsdiag.benching.journal.writer import JournalWriter
from mpsdiag.benching.run.launch import LIGHT, Isolation
from mpsdiag.benching.run.runner import JOURNAL, MatrixRun
from mpsdiag.errors import BadInput


def replaced(path):
    copy = path.with_name("copy")
    copy.write_bytes(path.read_bytes())
    copy.rename(path)  # as `sed -i`, an editor or a sync tool does it


def replaced_by_less(path):
    copy = path.with_name("copy")
    copy.write_bytes(path.read_bytes().splitlines(keepends=True)[0])
    copy.rename(path)


def edited(path):
    with path.open("r+b") as stream:
        stream.seek(40)
        stream.write(b"XXXX")


def cut(path):
    os.truncate(path, path.stat().st_size - 30)


def emptied(path):
    os.truncate(path, 0)


def a_folder(path):
    path.unlink()
    path.mkdir()


def a_dangling_link(path):
    path.unlink()
    path.symlink_to(path.with_name("nowhere"))


def folder_removed(path):
    shutil.rmtree(path.parent)


def hidden(path):
    path.unlink()


FAULTS = [replaced, replaced_by_less, edited, cut, emptied, a_folder, a_dangling_link, folder_removed, hidden]


@pytest.mark.parametrize("fault", FAULTS)
def test_no_finished_cell_is_lost(tmp_path, header, quiet, seeds, start_run, fault, fake_executor):
    folder = tmp_path / "out"
    executor = fake_executor()
    executor.before_each = lambda job: fault(folder / JOURNAL) if (job.cell.seed, job.round) == (3, 0) else None
    outcome, _ = start_run(seeds(6), executor, folder)
    found = read_journal(folder)
    assert found.warnings == []
    assert {r.cell.seed for r in found.records} == set(range(6))
    assert len(found.records) == len(outcome.journal.records) == len(outcome.records)
    assert outcome.exit_code == 0
    if fault is not replaced:  # the same content is no news
        [note] = quiet.notes
        assert "every line is written again" in note
    kept = fault not in (replaced, folder_removed, hidden)
    aside = folder / "journal.1.jsonl"
    assert (aside.exists() or aside.is_symlink()) is kept


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_after_the_last_cell_is_mended_too(tmp_path, header, quiet, seeds, start_run, fault, fake_executor):
    folder = tmp_path / "out"

    class Last(fake_executor):
        def run(self, jobs, stop):
            yield from super().run(jobs, stop)
            fault(folder / JOURNAL)

    start_run(seeds(2), Last(), folder)
    assert {r.cell.seed for r in read_journal(folder).records} == {0, 1}


def test_a_folder_that_became_a_file_ends_the_run_with_3_and_keeps_the_answer(
    tmp_path, header, quiet, seeds, start_run, fake_executor
):
    folder = tmp_path / "out"

    def fault(job):
        if (job.cell.seed, job.round) == (1, 0):
            shutil.rmtree(folder)
            folder.write_text("")

    executor = fake_executor()
    executor.before_each = fault
    outcome, _ = start_run(seeds(3), executor, folder)
    assert outcome.exit_code == 3
    assert "cannot be written again" in outcome.broken
    assert {r.cell.seed for r in outcome.journal.records} == {0}


def test_logs_that_became_a_file_end_the_run_with_3(tmp_path, header, quiet, seeds):
    from mpsdiag.benching.plan.expand import Plan
    from mpsdiag.benching.plan.matrix import MatrixSpec
    from mpsdiag.benching.plan.request import BenchRequest
    from mpsdiag.benching.run.executor import LocalExecutor, Site

    (tmp_path / "logs").write_text("")
    executor = LocalExecutor(Isolation("forkserver", LIGHT), {}, tmp_path / "elsewhere")
    plan = Plan(tuple(seeds(2)))
    request = BenchRequest(MatrixSpec(), tmp_path, function="fake_cells:quick")
    run = MatrixRun(request, plan, Site(plan, executor, {}, {}, "forkserver"), header, quiet)
    with pytest.raises(Exception, match="Cannot write the log") as caught:
        run.run()
    assert caught.value.exit_code == 3


def test_a_lock_that_is_a_link_is_not_followed(tmp_path, header):
    precious = tmp_path / "precious"
    precious.write_text("untouched")
    (tmp_path / ".journal.jsonl.lock").symlink_to(precious)
    with pytest.raises(BadInput, match="Cannot write into"):
        JournalWriter(tmp_path / JOURNAL, header)
    assert precious.read_text() == "untouched"
