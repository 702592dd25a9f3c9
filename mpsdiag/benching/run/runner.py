"""Running a matrix: verdicts first, then timing rounds; every finished round is on the disk before the next begins."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from mpsdiag.benching.journal.journal import Journal, JournalWriter, parse_journal, read_journal
from mpsdiag.benching.journal.provenance import kind
from mpsdiag.benching.journal.record import (
    BAD_ENDS,
    CELL_FUNCTION,
    RELEASE_FUNCTION,
    Ended,
    Header,
    Job,
    Record,
    Timing,
    utc_now,
)
from mpsdiag.benching.plan.expand import Plan
from mpsdiag.benching.run.executor import LOGS, Executor
from mpsdiag.benching.run.interrupt import Interruptible, Stop
from mpsdiag.benching.run.rounds import StopRule, baselines, group_of, wanted
from mpsdiag.errors import CannotDecide
from mpsdiag.release_environment import versions_in
from mpsdiag.scenario.scenario import Scenario
from mpsdiag.words import EXIT_INTERRUPTED, EXIT_OK, EXIT_UNDECIDED, count

JOURNAL = "journal.jsonl"
FINDINGS = frozenset({"ok", "nan", "wrong"})
"""Statuses of a verdict leg that finished; only such cells are timed."""


@dataclass(frozen=True)
class Settings:
    """How a matrix is run.

    Attributes:
        rule: How many timing rounds.
        time_limit: Seconds for one round of one cell.
        retry: Statuses of earlier rounds that are run again.
        jobs: Verdicts at once, which share the cores.
        function: What a cell runs, `module:function`.
    """

    rule: StopRule = field(default_factory=StopRule)
    time_limit: float = 300.0
    retry: frozenset[str] = frozenset()
    jobs: int = 1
    function: str = CELL_FUNCTION


class Listener(Protocol):
    """Is told what happens, to show it."""

    def leg(self, title: str, total: int, done: int) -> None:
        """A leg begins: its jobs, and how many of them the journal has already."""

    def ended(self, record: Record) -> None:
        """A round ended and is in the journal."""

    def note(self, sentence: str) -> None:
        """Something to know."""


@dataclass
class RunOutcome:
    """What came of it.

    Attributes:
        records: The newest record of every round of the plan's cells that the journal has.
        interrupted: The user stopped it.
        fresh: How many rounds were run now, not found in the journal.
        journal: All that the journal holds, other cells too; None where there was nothing to run.
    """

    records: list[Record] = field(default_factory=list)
    journal: Journal | None = None
    broken: str = ""
    """Why the run could not go on to its end, if it could not."""
    interrupted: bool = False
    fresh: int = 0

    @property
    def unfinished(self) -> list[Record]:
        """Rounds that did not finish by their own fault."""
        return [record for record in self.records if record.status in BAD_ENDS]

    @property
    def exit_code(self) -> int:
        """Of the contract, before the gates: 0, 3 or 130. That nothing at all ran is undecided too."""
        if self.interrupted:
            return EXIT_INTERRUPTED
        ran = any(record.status != "skip" for record in self.records)
        return EXIT_UNDECIDED if self.broken or self.unfinished or not ran else EXIT_OK


@dataclass
class MatrixRun:
    """One run of a plan into a journal.

    Attributes:
        plan: The cells.
        folder: Where the journal and the logs are.
        header: Of a new journal.
        versions: Of torch and transformers; part of every key.
        executor: Runs the jobs.
        settings: How.
        listener: Is told.
        stop: Says when the user wants to stop.
    """

    plan: Plan
    folder: Path
    header: Header
    versions: dict[str, str]
    executor: Executor
    listener: Listener
    settings: Settings = Settings()
    stop: Stop = field(default_factory=Stop)
    _done: dict[tuple[str, int], Record] = field(default_factory=dict, init=False)
    _machines: dict[Scenario, str] = field(default_factory=dict, init=False)
    _outcome: RunOutcome = field(default_factory=RunOutcome, init=False)

    def run(self) -> RunOutcome:
        """Run what the journal does not have yet.

        Raises:
            BadInput: The folder cannot be written, or another process writes this journal.
        """
        path = self.folder / JOURNAL
        if path.exists() and path.stat().st_size:
            # Refuses what is no journal before anything of it is touched; a torn line is told before it is mended.
            for warning in read_journal(path).warnings:
                self.listener.note(warning)
        with JournalWriter(path, self.header, self.listener.note) as journal, Interruptible(self.stop):
            try:
                self._remember(parse_journal(journal.data, str(path)))
                self._skip(journal)
                self._leg(journal, "verdicts", 0, self.plan.cells)
                self._rounds(journal)
                journal.check()
            except CannotDecide as problem:  # the disk is full, or the folder is gone
                if not self._done:
                    raise
                self._outcome.broken = str(problem)
            # What is reported is what was found, whatever became of the file.
            self._outcome.journal = parse_journal(journal.data, str(path))
        self._outcome.interrupted = self.stop.asked
        self._outcome.records = self._planned()
        return self._outcome

    def _remember(self, journal: Journal) -> None:
        again = {"interrupted", *self.settings.retry}
        self._done = {place: one for place, one in journal.finished().items() if one.status not in again}
        for record in self._done.values():
            if record.status != "skip":
                self._machines[group_of(record.cell)] = kind(record.environment)
        keys = {self._key(cell) for cell in self._all_cells()}
        others = len({record.key for record in journal.records} - keys)
        if others:
            self.listener.note(
                f"{self.folder / JOURNAL} also has {count(others, 'other cell')}: of another matrix, of other data, "
                "timed in another way, or of other versions of torch or transformers. They are in the report too; "
                "--fresh starts a new journal."
            )

    def _skip(self, journal: JournalWriter) -> None:
        """Put the cells that cannot run here into the journal, with the reason, once."""
        for skipped in self.plan.skipped:
            key = self._key(skipped.cell)
            known = self._done.get((key, 0))
            if known is None:
                record = skip_record(key, skipped.cell, skipped.reason, self.header)
                journal.append(record)
                self._done[key, 0] = record
        for cell in self.plan.cells:
            known = self._done.get((self._key(cell), 0))
            if known is not None and known.status == "skip":
                del self._done[self._key(cell), 0]  # it could not run then; now it can

    def _rounds(self, journal: JournalWriter) -> None:
        partners = baselines(self.plan.cells, self.header.baseline)
        number = 1
        while not self.stop.asked:
            cells = wanted(number, self._history(), partners, self.settings.rule)
            if not cells:
                return
            self._leg(journal, f"timing round {number}", number, cells)
            number += 1

    def _history(self) -> dict[Scenario, dict[int, Timing]]:
        """Timings by cell and round, of cells whose verdict leg finished and whose timing legs all did."""
        history: dict[Scenario, dict[int, Timing]] = {}
        for cell in self.plan.cells:
            rounds = {
                number: record
                for number in range(self.settings.rule.most + 1)
                if (record := self._done.get((self._key(cell), number))) is not None
            }
            verdict = rounds.pop(0, None)
            if verdict is None or verdict.status not in FINDINGS:
                continue
            if all(record.timing is not None for record in rounds.values()):
                history[cell] = {n: record.timing for n, record in rounds.items() if record.timing is not None}
        return history

    def _leg(self, journal: JournalWriter, title: str, number: int, cells: Sequence[Scenario]) -> None:
        jobs = [self._job(cell, number) for cell in cells]
        todo = [job for job in jobs if (job.key, number) not in self._done]
        self.listener.leg(title, len(jobs), len(jobs) - len(todo))
        for job, ended in self.executor.run(todo, self.stop):
            record = ended.record(job)
            journal.append(record)
            self._done[job.key, number] = record
            self._outcome.fresh += 1
            self.listener.ended(record)

    def _job(self, cell: Scenario, number: int) -> Job:
        key = self._key(cell)
        return Job(
            key=key,
            cell=cell,
            round=number,
            function=self.settings.function if cell.environment is None else RELEASE_FUNCTION,
            time_limit=self.settings.time_limit,
            log=str(self.folder / LOGS / f"{key}-{number}.log"),
            threads=self._threads(cell, number),
            machine=self._machines.get(group_of(cell)),
        )

    def _threads(self, cell: Scenario, number: int) -> int | None:
        """How many threads; None leaves it to torch. Verdicts that run at once share the cores."""
        if cell.threads is None and self.settings.jobs > 1 and number == 0:
            return max(1, (os.cpu_count() or 1) // self.settings.jobs)
        return cell.threads

    def _key(self, cell: Scenario) -> str:
        return cell.key(versions_in(cell.environment, self.versions))

    def _all_cells(self) -> Iterable[Scenario]:
        return [*self.plan.cells, *(skipped.cell for skipped in self.plan.skipped)]

    def _planned(self) -> list[Record]:
        keys = {self._key(cell) for cell in self._all_cells()}
        return [record for record in self._done.values() if record.key in keys]


def skip_record(key: str, cell: Scenario, reason: str, header: Header) -> Record:
    """The record of a cell that cannot run here."""
    ended = Ended(status="skip", reason=reason, started=utc_now(), seconds=0.0, environment=header.environment)
    return ended.record(Job(key=key, cell=cell, log=""))
