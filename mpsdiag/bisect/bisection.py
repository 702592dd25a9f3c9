"""A search from the request to the result: plan it, try release after release, journal each."""

from __future__ import annotations

import hashlib
import platform
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Final, Literal

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from mpsdiag.benching.journal.record import utc_now
from mpsdiag.benching.journal.writer import JournalWriter, set_aside
from mpsdiag.bisect.environments import Environments
from mpsdiag.bisect.found import Found, conclude, tries_left
from mpsdiag.bisect.installer import Impossible, Installer, digits
from mpsdiag.bisect.search import Ask, Find, ahead
from mpsdiag.bisect.trial import Rules, attempt, check_command
from mpsdiag.bisect.tries import JOURNAL, Search, Tries, Try, read_tries
from mpsdiag.environment import versions as installed
from mpsdiag.errors import BadInput
from mpsdiag.escape import redact
from mpsdiag.release_environment import cache_folder

PREDICATE = Path(__file__).with_name("predicate.py")
PINNED: Final = ("torch", "transformers", "accelerate")
"""Pinned to the installed versions, unless --pin names another release. Their extras are never requested."""
Say = Callable[[str], None]


@dataclass(frozen=True)
class Bisection:
    """What the user asked for.

    `releases` is a range such as `2.5..2.10`; `out` is the folder of journal, logs and report. Packages that are
    not pinned have the versions installed here. By default `find` follows from the ends, `python` is the interpreter
    of mpsdiag, and `predicate` is our own. `fresh` sets an old journal aside instead of resuming it.
    """

    axis: Literal["torch", "transformers"]
    releases: str
    out: Path
    pins: Sequence[str] = ()
    find: Find | None = None
    python: str | None = None
    device: str = "auto"
    nightly: bool = False
    fresh: bool = False
    rules: Rules = field(default_factory=Rules)
    predicate: Sequence[str] = ()

    def prepare(self, say: Say = lambda _: None) -> PlannedSearch:
        """Check everything that can be checked before anything is built; CannotDecide without a network."""
        low, high = parse_range(self.axis, self.releases, nightly=self.nightly)
        pins = parse_pins(self.axis, self.pins)
        if self.predicate:
            check_command(self.predicate)
        from mpsdiag.device import kind_of, resolve

        device = resolve(self.device)
        command = list(self.predicate) or ["python", "-I", str(PREDICATE), "--device", device]
        journal = None if self.fresh else read_tries(self.out)
        installer = Installer(self.python, kind_of(device), self.nightly)
        listing = digits([self.axis, str(low), str(high), installer.python_version, installer.index])
        if journal is not None and journal.search.listing == listing:
            releases = journal.search.releases
        else:
            say(f"reading the list of {self.axis} releases")
            releases = tuple(str(one) for one in installer.releases(self.axis, low, high))
        rules = [self.rules.bad_if, self.rules.crash_is, self.rules.timeout]
        predicate = shlex.join(self.predicate) or "kernel and scenario of mpsdiag"
        # A changed script is another search.
        paths = [Path(word) for word in command]
        files = [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths if path.is_file()]
        basis = [predicate, files, pins, installer.python_version, installer.index, device, rules]
        search = Search(
            basis=digits(basis),
            listing=listing,
            mpsdiag=installed(["mpsdiag"])["mpsdiag"],
            command=redact(shlex.join(["mpsdiag", *sys.argv[1:]])),
            created=utc_now(),
            axis=self.axis,
            releases=releases,
            pins=tuple(pins),
            find=self.find,
            predicate=redact(predicate),
            device=device,
            python=installer.python_version,
            system=platform.platform(terse=True),
        )
        return PlannedSearch(self, search, command, installer, journal)


@dataclass(frozen=True)
class PlannedSearch:
    """A search that is ready to run; `journal` is None if the folder has none, or none that counts."""

    asked: Bisection
    search: Search
    command: list[str]
    installer: Installer
    journal: Tries | None

    @property
    def so_far(self) -> Found:
        """The result of the tries already in the journal."""
        return conclude(self.search, {} if self.journal is None else self.journal.tries)

    def requirements(self, release: str) -> list[str]:
        """The packages to install for a release."""
        return [f"{self.search.axis}=={release}", *self.search.pins]

    def document(self) -> dict[str, Any]:
        """What a run would do, for `--dry-run`; nothing is built."""
        found = self.so_far
        step = found.decision
        return {
            "axis": self.search.axis,
            "releases": list(self.search.releases),
            "tries": step.left if isinstance(step, Ask) else 0,
            "done": [one.release for one in found.tries],
            "next": self.search.releases[step.number] if isinstance(step, Ask) else "nothing, it is finished",
            "install": ["uv", "pip", "install", *self.installer.options, *self.requirements("RELEASE")],
            "python": self.search.python,
            "device": self.search.device,
            "predicate": self.search.predicate,
            "environments": str(cache_folder()),
        }

    def run(self, progress: Say = lambda _: None, note: Say = lambda _: None) -> Found:
        """Test until the bracket is found or cannot be found; `progress` gets the current work, `note` every try.

        Raises BadInput if the folder cannot be written or another run writes it, CannotDecide without a network, on
        a full disk, and if the predicate aborts the search.
        """
        path = self.asked.out / JOURNAL
        if self.asked.fresh and (kept := set_aside(path)) is not None:
            note(f"the old journal is now {kept}")
        tries = {} if self.journal is None else dict(self.journal.tries)
        with JournalWriter(path, self.search) as writer, Environments(self.installer) as environments:
            if self.journal is not None and not self.search.same_as(self.journal.search):
                writer.append(self.search)
            found = conclude(self.search, tries)
            if tries and isinstance(found.decision, Ask):
                note(f"{len(found.tries)} of the tries are already in the journal")
            while isinstance(step := found.decision, Ask):
                one = self._try(step, found, environments, progress)
                writer.append(one)
                tries[one.key] = one
                found = conclude(self.search, tries)
                left = f"; at most {tries_left(found.decision)}" if isinstance(found.decision, Ask) else ""
                note(f"{self.search.axis} {one.release}: {one.outcome} ({one.reason}, {one.seconds:.1f} s){left}")
        return found

    def _try(self, step: Ask, found: Found, environments: Environments, progress: Say) -> Try:
        search, release = self.search, self.search.releases[step.number]
        tried = len(found.tries)
        place = f"{tried + 1} of {tried + step.left}"  # draws a bar; of how many at most
        progress(f"{search.axis} {release}: building its environment, try {place}")
        made: dict[str, Any] = {"key": search.key(release), "release": release, "started": utc_now()}
        made.update(search.model_dump(include={"python", "system", "device"}))
        clock = time.perf_counter()
        try:
            with environments.using(self.requirements(release)) as built:
                waited = time.perf_counter() - clock
                known = {search.releases.index(one.release): one.outcome for one in found.tries}
                for number in ahead(len(search.releases), known, step.number, search.find):
                    environments.build_ahead(self.requirements(search.releases[number]))
                progress(f"{search.axis} {release}: testing, try {place}")
                folder = environments.folder / built.name
                log = self.asked.out / "logs" / f"{search.axis}-{release}.log"
                trial = attempt(self.command, folder, self.asked.rules, log)
        except Impossible as refused:
            waited = time.perf_counter() - clock
            return Try(**made, outcome="skip", reason=redact(str(refused)), build_seconds=waited)
        beside = ", installed against the resolver's advice" if built.overridden else ""
        made.update(vars(trial), reason=trial.reason + beside, build_seconds=waited)
        return Try(**made, environment=built.name, overridden=built.overridden, freeze=built.freeze)


def parse_range(axis: str, text: str, *, nightly: bool = False) -> tuple[Version, Version]:
    """Read a range such as `2.5..2.10`: two different releases, the older one first."""
    low, dots, high = text.partition("..")
    if not dots:
        raise BadInput(f"--{axis} '{text}' is not a range. Write the two ends, such as {_example(axis)}.")
    ends = [_version(axis, end) for end in (low, high)]
    if ends[0] > ends[1]:
        raise BadInput(f"--{axis} {text} is in the wrong order. Write the older release first: {high}..{low}.")
    if ends[0] == ends[1]:
        raise BadInput(f"--{axis} {text} is a single release. A search needs two, such as {_example(axis)}.")
    for end in ends:
        if end.is_prerelease and not nightly:
            raise BadInput(f"--{axis} {text}: {end} is a nightly build or a pre-release. Add --nightly.")
    return ends[0], ends[1]


def parse_pins(axis: str, texts: Iterable[str]) -> list[str]:
    """Read pins such as `transformers==4.57.6`, and add those of the installed versions, in a fixed order."""
    pins: dict[str, str] = {}
    for text in texts:
        try:
            read = Requirement(text)
        except InvalidRequirement as problem:
            raise BadInput(f"--pin '{text}' is not a requirement. Write --pin NAME==VERSION.") from problem
        name = str(canonicalize_name(read.name))
        exact = [one.version for one in read.specifier if one.operator == "==" and "*" not in one.version]
        if len(exact) != 1 or len(read.specifier) != 1 or read.extras or read.marker:
            raise BadInput(f"--pin '{text}' does not name one release. Write --pin {name}==VERSION.")
        if name == axis:
            raise BadInput(f"--pin {text}: {axis} is the package that varies. Pin another package, or leave this out.")
        if name in pins:
            raise BadInput(f"--pin {name} is given twice. Give it once.")
        pins[name] = f"{name}=={exact[0]}"
    for name in PINNED:
        if name != axis and name not in pins:
            try:
                pins[name] = f"{name}=={Version(metadata.version(name)).public}"
            except metadata.PackageNotFoundError:
                continue
    return sorted(pins.values())


def _version(axis: str, text: str) -> Version:
    try:
        return Version(text)
    except InvalidVersion as problem:
        raise BadInput(f"--{axis}: '{text}' is not a version. Write a range such as {_example(axis)}.") from problem


def _example(axis: str) -> str:
    return "2.5..2.10" if axis == "torch" else "4.52.4..5.24"
