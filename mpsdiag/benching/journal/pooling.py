"""From journals to one result for each cell: pools rounds, resolves duplicates, keeps environments apart."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from mpsdiag.benching.journal.journal import Journal
from mpsdiag.benching.journal.record import EMULATED_ABORT, FINDINGS, Record, Timing
from mpsdiag.scenario.scenario import Measured, Scenario

NOT_TIMED: Final = Timing(device="", warmup=0)

# Signals that a process causes itself; SIGKILL and SIGTERM come from outside.
OWN_SIGNALS = frozenset({"SIGABRT", "SIGSEGV", "SIGBUS", "SIGILL", "SIGTRAP", "SIGFPE"})


# Facts that differ between two queries on one machine, and so do not distinguish machines.
_UNSTEADY = frozenset({"mps_built", "mps_available", "mps_usable", "mps_note", "default_attention"})


@dataclass(frozen=True)
class Place:
    """One environment in which something was measured; `label` is short, for headings."""

    number: int
    label: str
    facts: tuple[tuple[str, str], ...]

    @property
    def letter(self) -> str:
        """Its short name: A, B, ... Z, 27, 28, ..."""
        return chr(ord("A") + self.number) if self.number < 26 else str(self.number + 1)


def kind(environment: dict[str, Any]) -> str:
    """The same text for machines whose facts do not differ."""
    steady = {name: value for name, value in environment.items() if name not in _UNSTEADY}
    return repr(sorted(steady.items(), key=lambda item: item[0]))


def place(environment: dict[str, Any], places: dict[str, Place]) -> Place:
    """The index of an environment among those known by their kind; a new one is added."""
    identity = kind(environment)
    if identity not in places:
        places[identity] = Place(len(places), label(environment), tuple(_flat(environment)))
    return places[identity]


def label(environment: dict[str, Any]) -> str:
    """An environment in a few words: chip, system, versions."""
    versions = environment.get("versions")
    versions = versions if isinstance(versions, dict) else {}
    parts = [environment.get("chip") or environment.get("machine"), environment.get("system")]
    parts += [f"{name} {versions[name]}" for name in ("torch", "transformers") if versions.get(name)]
    if environment.get("cuda"):
        parts.append(f"CUDA {environment['cuda']}")
    return ", ".join(str(part) for part in parts if part) or "environment not recorded"


def _flat(environment: dict[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    for name, value in environment.items():
        if isinstance(value, dict):
            yield from _flat(value, prefix="" if name in {"versions", "variables"} else f"{prefix}{name}.")
        elif value is not None:
            text = f"{value / 2**30:.1f} GiB" if name == "memory" and isinstance(value, int) else str(value)
            yield f"{prefix}{name}", text


@dataclass
class PooledCell:
    """All rounds of one cell in one environment. Durations in seconds, raw, by round."""

    key: str
    cell: Scenario
    place: Place
    status: str
    reason: str | None
    measured: Measured | None
    statuses: frozenset[str] = frozenset()
    """From all rounds."""
    rounds: int = 0
    train_rounds: dict[int, list[float]] = field(default_factory=dict)
    eval_rounds: dict[int, list[float]] = field(default_factory=dict)
    timing: Timing = field(default_factory=lambda: NOT_TIMED)
    """The newest timed round: its device and number of tokens."""
    peak_memory: int | None = None
    """Bytes, from a round without emulation: of the device if it counts them, otherwise of the process."""
    setbacks: list[Record] = field(default_factory=list)
    """Rounds that did not finish."""

    @property
    def pair(self) -> tuple[str, str]:
        """Its attention mode and its trainer variant."""
        return self.cell.attn_implementation, self.cell.trainer

    @property
    def side(self) -> str:
        """Its padding side."""
        return self.cell.padding_side

    @property
    def title(self) -> str:
        """What distinguishes it from the other cells of a panel with the same padding side."""
        return " + ".join(self.pair)

    @property
    def train_step(self) -> list[float]:
        """Durations of a training step, all rounds together."""
        return [value for values in self.train_rounds.values() for value in values]

    @property
    def eval_step(self) -> list[float]:
        """Durations of an evaluation step, all rounds together."""
        return [value for values in self.eval_rounds.values() for value in values]

    @property
    def aborted(self) -> bool:
        """Whether a round ended through its own fault, such as a failed assertion in a kernel, and was not killed."""
        return any(one.signal in OWN_SIGNALS or (one.reason or "").startswith(EMULATED_ABORT) for one in self.setbacks)

    @property
    def varies(self) -> bool:
        """Whether padding changes its numbers."""
        found = None if self.measured is None else self.measured.invariance
        return found is not None and found.verdict == "varies"

    @property
    def correct(self) -> bool:
        """Whether it finished with correct numbers."""
        return self.status == "ok"


@dataclass(frozen=True)
class Pool:
    """Every result of some journals, in the order in which the cells first appear."""

    results: tuple[PooledCell, ...]
    places: tuple[Place, ...]
    notes: tuple[str, ...]

    def by_place(self) -> list[tuple[Place, dict[Scenario, PooledCell]]]:
        """The results of each environment, by what was run."""
        found: list[tuple[Place, dict[Scenario, PooledCell]]] = [(place, {}) for place in self.places]
        for one in self.results:
            found[one.place.number][1][one.cell] = one
        return found


def pool(journals: Sequence[Journal]) -> Pool:
    """Pool the rounds of each cell.

    The raw samples of all rounds of one cell in one environment are pooled. If a round is there twice, the newest
    counts, and a note says so. The same cell in two environments gives two results.
    """
    places: dict[str, Place] = {}
    kept: dict[tuple[int, str], tuple[Place, dict[int, Record]]] = {}
    twice = 0
    for journal in journals:
        last: tuple[dict[str, Any], Place] | None = None
        for record in journal.records:
            environment = record.environment or journal.header.environment
            if last is None or (last[0] is not environment and last[0] != environment):
                last = (environment, place(environment, places))
            _, rounds = kept.setdefault((last[1].number, record.key), (last[1], {}))
            older = rounds.get(record.round)
            twice += older is not None
            if older is None or record.started >= older.started:
                rounds[record.round] = record
    notes = [text for journal in journals for text in journal.warnings]
    if twice:
        times = "1 round was" if twice == 1 else f"{twice:,} rounds were"
        notes.append(f"{times} recorded more than once; the newest counts.")
    return Pool(tuple(_pooled(*one) for one in kept.values()), tuple(places.values()), tuple(notes))


def _pooled(place: Place, rounds: dict[int, Record]) -> PooledCell:
    """Make one result of the rounds of a cell: round 0 has the verdict, the others have the timings."""
    order = [rounds[number] for number in sorted(rounds)]
    verdict = _verdict(order)
    result = PooledCell(verdict.key, verdict.cell, place, verdict.status, verdict.reason, verdict.measured)
    result.rounds = len(order)
    result.statuses = frozenset(record.status for record in order)
    if verdict.round > 0 and verdict.status == "ok" and not _evaluated(verdict):
        # Timings alone do not show whether the numbers are correct.
        result.status, result.measured = "interrupted", None
        result.reason = "the journal has only timing rounds, not the round that checks the numbers"
    for record in order:
        if record.status not in FINDINGS:
            result.setbacks.append(record)
        if record.timing is not None:
            result.timing = record.timing
            if record.timing.train_step:
                result.train_rounds[record.round] = record.timing.train_step
            if record.timing.eval_step:
                result.eval_rounds[record.round] = record.timing.eval_step
    result.peak_memory = _peak_memory(order, emulated=verdict.cell.emulate is not None)
    return result


def in_common(
    ours: Mapping[int, list[float]], theirs: Mapping[int, list[float]]
) -> tuple[list[list[float]], list[list[float]]]:
    """The samples of the rounds that both sides ran: only these ran side by side."""
    common = sorted(ours.keys() & theirs.keys())
    return [ours[one] for one in common], [theirs[one] for one in common]


def _verdict(order: Sequence[Record]) -> Record:
    """The round that represents the cell: the one with the worst numbers, otherwise the first round.

    A timing round says nothing about the numbers, and counts only if there is no other.
    """
    findings = [record for record in order if record.status in {"nan", "wrong"} or _evaluated(record)]
    if findings and (order[0].round > 0 or order[0].status in FINDINGS):
        return min(findings, key=lambda record: FINDINGS.index(record.status))
    return order[0]


def _evaluated(record: Record) -> bool:
    return record.status in FINDINGS and record.measured is not None and bool(record.measured.eval_losses)


def _peak_memory(order: Sequence[Record], *, emulated: bool) -> int | None:
    """Highest memory over the timing rounds in bytes; over all rounds if none was timed and none emulated."""
    timed = [record for record in order if record.timing is not None]
    used = timed or ([] if emulated else order)
    measured = [record.measured for record in used if record.measured is not None]
    for name in ("peak_device_memory", "peak_process_memory"):
        values = [value for one in measured if (value := getattr(one, name)) is not None]
        if values:
            return int(max(values))
    return None
