"""A request to `mpsdiag bench`, and how its options are parsed."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mpsdiag.benching.journal.record import CELL_FUNCTION
from mpsdiag.benching.plan.matrix import MatrixSpec
from mpsdiag.benching.run.launch import Isolation
from mpsdiag.errors import BadInput, one_of
from mpsdiag.words import CELL_STATUSES


@dataclass(frozen=True)
class BenchRequest:
    """What the user asked for: a matrix with the options applied, and `out`, the folder for journal, logs and report.

    `command` is the command line, for the journal. `fresh` sets an old journal aside instead of resuming it; `retry`
    lists statuses to run again; `jobs` verdicts run at once; `shard` is the part and the number of parts; `cluster` is
    the address of a dask scheduler; `gates` are conditions that give exit code 1 if they are true. A cell runs
    `function`, isolated in this machine's default way unless `isolation` is given.
    """

    spec: MatrixSpec
    out: Path
    command: Sequence[str] = ()
    fresh: bool = False
    retry: frozenset[str] = frozenset()
    jobs: int = 1
    shard: tuple[int, int] | None = None
    cluster: str | None = None
    gates: Sequence[str] = ()
    function: str = CELL_FUNCTION
    isolation: Isolation | None = None


def parse_shard(text: str) -> tuple[int, int]:
    """Read `2/4`: the second of four parts. Raises BadInput for anything else."""
    found = re.fullmatch(r"([0-9]{1,5})/(0*[1-9][0-9]{0,3})", text)
    if found is None:
        raise BadInput(f"--shard '{text[:40]}' is not of the form I/N, such as 2/4, with 9999 parts at most.")
    return int(found[1]), int(found[2])


def parse_retry(text: str) -> frozenset[str]:
    """Read `error,crash`. Raises BadInput for a word that is not a status, with the nearest one."""
    words = [word.strip() for word in text.split(",") if word.strip()]
    return frozenset(one_of("status", word, CELL_STATUSES) for word in words)
