"""Running a matrix: verdicts first, then timing rounds; every finished round is on disk before the next begins."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from mpsdiag.benching.journal.journal import Journal, parse_journal, read_journal
from mpsdiag.benching.journal.pooling import kind
from mpsdiag.benching.journal.record import BAD_ENDS, RELEASE_FUNCTION, Header, Job, Record
from mpsdiag.benching.journal.writer import JournalWriter
from mpsdiag.benching.plan.expand import Plan
from mpsdiag.benching.plan.request import BenchRequest
from mpsdiag.benching.run.executor import LOGS, Site
from mpsdiag.benching.run.interrupt import Stop, interruptible
from mpsdiag.benching.run.progress_bar import Progress
from mpsdiag.benching.run.rounds import baselines, group_of, timings, wanted
from mpsdiag.errors import CannotDecide
from mpsdiag.release_environment import versions_in
from mpsdiag.scenario.scenario import Scenario
from mpsdiag.words import EXIT_INTERRUPTED, EXIT_OK, EXIT_UNDECIDED, count

JOURNAL = "journal.jsonl"


@dataclass
class RunOutcome:
    """The outcome: the newest `records` of the plan's cells, and the whole `journal`, if there is one.

    `broken` is why the run could not finish, `interrupted` whether the user stopped it, and `fresh` how many rounds
    were run now, rather than found in the journal.
    """

    records: list[Record] = field(default_factory=list)
    journal: Journal | None = None
    broken: str = ""
    interrupted: bool = False
    fresh: int = 0

    @property
    def unfinished(self) -> list[Record]:
        """Rounds that did not finish through their own fault."""
        return [record for record in self.records if record.status in BAD_ENDS]

    @property
    def exit_code(self) -> int:
        """The exit code before the gates: 0, 3 or 130. If nothing ran at all, it is undecided too."""
        if self.interrupted:
            return EXIT_INTERRUPTED
        ran = any(record.status != "skip" for record in self.records)
        return EXIT_UNDECIDED if self.broken or self.unfinished or not ran else EXIT_OK


@dataclass
class Known:
    """The rounds that need not be run because a journal has them, by the key of their cell and their number."""

    request: BenchRequest
    versions: dict[str, str]
    """Versions of torch and transformers; part of every key."""
    by_key: dict[str, dict[int, Record]] = field(default_factory=dict)

    def take(self, journal: Journal) -> list[Record]:
        """Add the rounds of a journal, except those to run again; the rounds that were added."""
        taken = [one for one in journal.records if one.status not in {"interrupted", *self.request.retry}]
        for record in taken:
            self.by_key.setdefault(record.key, {})[record.round] = record
        return taken

    def key(self, cell: Scenario) -> str:
        """The key of a cell on the machine where it runs."""
        return cell.key(versions_in(cell.environment, self.versions))

    def rounds(self, cell: Scenario) -> dict[int, Record]:
        """The requested rounds of a cell; none if it could not run then."""
        found = self.by_key.get(self.key(cell), {})
        if 0 in found and found[0].status == "skip":
            return {}
        return {number: found[number] for number in range(self.request.spec.rule.most + 1) if number in found}


@dataclass
class MatrixRun:
    """One run of a plan into the journal of the request's folder; `header` is for a new journal."""

    request: BenchRequest
    plan: Plan
    site: Site
    header: Header
    listener: Progress
    stop: Stop = field(default_factory=Stop)
    _known: Known = field(init=False)
    _machines: dict[Scenario, str] = field(default_factory=dict, init=False)
    _outcome: RunOutcome = field(default_factory=RunOutcome, init=False)

    def run(self) -> RunOutcome:
        """Run what the journal lacks.

        Raises BadInput where the folder cannot be written, or another process writes this journal.
        """
        path = self.request.out / JOURNAL
        if path.exists() and path.stat().st_size:
            # A file that is not a journal is refused before it is touched; a torn line is named before it is repaired.
            for warning in read_journal(path).warnings:
                self.listener.note(warning)
        self._known = Known(self.request, self.site.versions)
        with JournalWriter(path, self.header, self.listener.note) as journal, interruptible(self.stop):
            try:
                self._remember(parse_journal(journal.data, str(path)))
                self._skip(journal)
                self._leg(journal, "verdicts", 0, self.plan.cells)
                for number, cells in self._rounds():
                    self._leg(journal, f"timing round {number}", number, cells)
                journal.check()
            except CannotDecide as problem:  # the disk is full, or the folder is gone
                if not self._known.by_key:
                    raise
                self._outcome.broken = str(problem)
            # The report has what was found, whatever happened to the file.
            self._outcome.journal = parse_journal(journal.data, str(path))
        self._outcome.interrupted = self.stop.asked
        keys = set(map(self._known.key, self.plan.all_cells))
        found = [rounds for key, rounds in self._known.by_key.items() if key in keys]
        self._outcome.records = [record for rounds in found for record in rounds.values()]
        return self._outcome

    def _remember(self, journal: Journal) -> None:
        for record in self._known.take(journal):
            if record.status != "skip":
                self._machines[group_of(record.cell)] = kind(record.environment)
        others = len({record.key for record in journal.records}.difference(map(self._known.key, self.plan.all_cells)))
        if others:
            self.listener.note(
                f"{self.request.out / JOURNAL} also has {count(others, 'other cell')}: from another matrix, with "
                "other data, other timing settings or other versions of torch or transformers. They are also in the "
                "report; --fresh starts a new journal."
            )

    def _skip(self, journal: JournalWriter) -> None:
        """Record the cells that cannot run here in the journal once, with the reason."""
        facts = self.header.environment
        for cell, reason in self.plan.skipped.items():
            key = self._known.key(cell)
            if 0 not in self._known.by_key.get(key, {}):
                job = Job(key=key, cell=cell, log="")
                self._write(journal, job.record(status="skip", reason=reason, environment=facts))

    def _rounds(self) -> Iterator[tuple[int, list[Scenario]]]:
        """The timing rounds, each with its cells, which are decided when the round begins."""
        partners = baselines(self.plan.cells, self.header.baseline)
        number = 1
        while not self.stop.asked:
            known = {cell: timings(self._known.rounds(cell)) for cell in self.plan.cells}
            history = {cell: found for cell, found in known.items() if found is not None}
            cells = wanted(number, history, partners, self.request.spec.rule)
            if not cells:
                return
            yield number, cells
            number += 1

    def _leg(self, journal: JournalWriter, title: str, number: int, cells: Sequence[Scenario]) -> None:
        todo = [self._job(cell, number) for cell in cells if number not in self._known.rounds(cell)]
        self.listener.leg(title, len(cells), len(cells) - len(todo))
        for record in self.site.executor.run(todo, self.stop):
            self._write(journal, record)
            self._outcome.fresh += 1
            self.listener.ended(record)

    def _write(self, journal: JournalWriter, record: Record) -> None:
        journal.append(record)
        self._known.by_key.setdefault(record.key, {})[record.round] = record

    def _job(self, cell: Scenario, number: int) -> Job:
        key, jobs = self._known.key(cell), self.request.jobs
        threads = cell.threads
        if threads is None and jobs > 1 and number == 0:  # verdicts running at once share the cores
            threads = max(1, (os.cpu_count() or 1) // jobs)
        return Job(
            key=key,
            cell=cell,
            round=number,
            function=self.request.function if cell.environment is None else RELEASE_FUNCTION,
            time_limit=self.request.spec.time_limit,
            log=str(self.request.out / LOGS / f"{key}-{number}.log"),
            threads=threads,
            machine=self._machines.get(group_of(cell)),
        )
