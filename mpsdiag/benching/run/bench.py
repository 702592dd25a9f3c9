"""One `mpsdiag bench`: from a matrix and options to a plan, then to a journal, then to an exit code."""

import contextlib
import shlex
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from mpsdiag import environment
from mpsdiag.benching.gates import Gate, Judgement, concerns, judge, parse_gate, require_words
from mpsdiag.benching.journal.journal import Journal, NotAJournal, read_journal
from mpsdiag.benching.journal.pooling import pool
from mpsdiag.benching.journal.record import Header, Record, utc_now
from mpsdiag.benching.journal.writer import set_aside
from mpsdiag.benching.plan.expand import Plan, shard
from mpsdiag.benching.plan.request import BenchRequest
from mpsdiag.benching.run.executor import Site, here, on_cluster
from mpsdiag.benching.run.interrupt import Stop
from mpsdiag.benching.run.progress_bar import Progress
from mpsdiag.benching.run.rounds import group_of
from mpsdiag.benching.run.runner import JOURNAL, Known, MatrixRun, RunOutcome
from mpsdiag.errors import BadInput, CannotDecide
from mpsdiag.escape import redact
from mpsdiag.words import EXIT_FOUND, EXIT_OK


@dataclass
class Session:
    """A request, checked and planned."""

    request: BenchRequest
    plan: Plan
    gates: list[Gate]
    site: Site
    judgements: list[Judgement] = field(default_factory=list)

    def run(self, listener: Progress, stop: Stop | None = None) -> RunOutcome:
        """Run what the journal lacks, then evaluate the gates.

        Raises BadInput if the folder cannot be written or another bench writes its journal, CannotDecide if no cell of
        the matrix can run here.
        """
        if self.plan.empty:
            return RunOutcome()
        if not self.plan.cells:
            raise CannotDecide(f"No cell of the matrix can run here: {next(iter(self.plan.skipped.values()))}.")
        request = self.request
        if request.fresh:
            kept = set_aside(request.out / JOURNAL)
            if kept is not None:
                listener.note(f"the old journal is kept as {kept}")
        if request.jobs > 1 and request.spec.rule.rounds:
            listener.note(f"--jobs {request.jobs} applies to verdicts; timed rounds run alone, one cell at a time")
        grace = "stopping: the running cell may finish (press Ctrl-C again to end it now)"
        stop = stop or Stop(notify=lambda: listener.note(grace))
        run = MatrixRun(request, self.plan, self.site, self.header(), listener, stop)
        with _fresh_would_do():
            outcome = run.run()
        pooled = pool([Journal(run.header, outcome.records)])
        self.judgements = [judge(gate, pooled) for gate in self.gates]
        return outcome

    def close(self) -> None:
        """Leave the cluster, if there is one."""
        self.site.executor.close()

    def exit_code(self, outcome: RunOutcome) -> int:
        """The exit code of the contract, including gates: 130, then 1, then 3, then 0. An empty shard gives 0."""
        if self.plan.empty:
            return EXIT_OK
        gated = not outcome.interrupted and not all(one.tripped is False for one in self.judgements)
        return EXIT_FOUND if gated else outcome.exit_code

    def summary(self, outcome: RunOutcome) -> dict[str, Any]:
        """The outcome, for scripts."""
        return {
            "out": str(self.request.out),
            "exit_code": self.exit_code(outcome),
            "interrupted": outcome.interrupted,
            "rounds_run_now": outcome.fresh,
            "rounds_by_status": dict(Counter(record.status for record in outcome.records)),
            "gates": [
                {"gate": one.gate.text, "tripped": one.tripped, "sentence": one.sentence} for one in self.judgements
            ],
        }

    def closing(self, outcome: RunOutcome) -> list[str]:
        """The closing sentences: what did not finish, what the gates found, how to continue."""
        sentences = [outcome.broken] if outcome.broken else []
        if outcome.interrupted:
            sentences.append("interrupted; the report covers what finished. Run the same command again to resume.")
        bad = Counter(record.status for record in outcome.unfinished)
        if bad:
            counts = ", ".join(f"{number} {status}" for status, number in bad.items())
            sentences.append(f"some cells did not finish: {counts}. --retry {','.join(bad)} runs them again.")
        found = [one.measured for one in outcome.records if one.round == 0 and one.measured is not None]
        if found and all(one.real_tokens > 0 and one.pad_tokens == 0 for one in found):
            sentences.append(
                "no evaluation batch has any padding, so no row can be fully masked: the texts fill --max-length. "
                "Raise it, or use shorter texts, to see what padding does."
            )
        return [*sentences, *map(str, self.judgements)]

    def known(self) -> tuple[Known, list[Record]]:
        """The rounds that need not be run, and all that the journal has. Raises BadInput if it is not a journal."""
        path = self.request.out / JOURNAL
        journal = Journal(self.header(), [])
        if path.exists() and path.stat().st_size and not self.request.fresh:
            with _fresh_would_do():
                journal = read_journal(path)
        known = Known(self.request, self.site.versions)
        known.take(journal)
        return known, journal.records

    def header(self) -> Header:
        """The first line of a new journal."""
        return Header(
            mpsdiag=environment.gather().mpsdiag,
            command=redact(shlex.join(self.request.command)),
            created=utc_now(),
            baseline=self.request.spec.baseline,
            environment=self.site.facts,
        )


def prepare(request: BenchRequest, note: Callable[[str], None] = lambda _: None) -> Session:
    """Check a request and plan it; nothing is written and no cell is run.

    Raises BadInput for a gate, a shard, a status, data or a model path that cannot be used, or too many cells;
    CannotDecide if no scheduler answers.
    """
    gates = [parse_gate(text) for text in request.gates]
    if request.cluster is not None and request.jobs > 1:
        raise BadInput(
            "--jobs applies to this machine; on a cluster --nthreads of a worker sets its number of verdicts at once."
        )
    site = here(request) if request.cluster is None else on_cluster(request, request.cluster, note)
    try:
        plan = site.plan if request.shard is None else shard(site.plan, *request.shard, group_of)
        for sentence in (*plan.notes, plan.empty):
            if sentence:
                note(sentence)
        for gate in gates:
            require_words(gate, site.plan.order)
        if request.shard is not None and not plan.empty:
            for gate in [gate for gate in gates if not concerns(gate, plan.all_cells)]:
                gates.remove(gate)
                judge_later = "`mpsdiag report --fail-if` judges the merged journals"
                note(f"--fail-if '{gate.text}' is about cells of another part; {judge_later}")
    except BaseException:
        site.executor.close()
        raise
    return Session(request, plan, gates, site)


@contextlib.contextmanager
def _fresh_would_do() -> Iterator[None]:
    """If a file in the way is not a journal, name the options that help."""
    try:
        yield
    except NotAJournal as problem:
        remedy = "--fresh sets it aside and starts a new one; --out FOLDER leaves it alone."
        raise NotAJournal(problem.name, remedy) from problem
