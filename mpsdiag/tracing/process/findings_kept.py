"""What a watch finds, each cause and place once; and what it cannot follow, which must not end the script."""

from collections import Counter
from collections.abc import Callable
from typing import Any, Final, TypeVar

from mpsdiag.errors import first_line
from mpsdiag.tracing.origin import Origin
from mpsdiag.tracing.process.explained import NOT_REPEATED
from mpsdiag.tracing.process.forwards import WatchedForward
from mpsdiag.tracing.process.watched import ScriptFinding

IN_DETAIL: Final = 20
"""How many bad calls from one line of the user's code are examined; later ones count as the last of them."""

T = TypeVar("T")


class Findings:
    """The findings of a watch.

    Attributes:
        found: Called with each new one and its forward.
        all: The findings so far, by their key, in order of appearance.
        not_repeated: How many forwards could not be run again.
        unwatched: What could not be followed: how often, by reason.
    """

    def __init__(self, found: Callable[[ScriptFinding, WatchedForward], None]) -> None:
        self.all: dict[tuple[Any, ...], ScriptFinding] = {}
        self.not_repeated = 0
        self.unwatched = Counter[str]()
        self.found = found
        self._detailed: dict[tuple[Any, ...], list[tuple[Any, ...]]] = {}

    def spared(self, run: Callable[..., T], *args: Any, **kwargs: Any) -> T | None:
        """The result of a part of the watch; None if it raised, as for what cannot be copied: the script goes on."""
        try:
            return run(*args, **kwargs)
        except Exception as problem:  # noqa: BLE001 - modules, tensors and outputs of any kind
            self.unwatched[first_line(problem)] += 1
            return None

    def look(self, forward: WatchedForward, explain: Callable[[], Origin | None]) -> None:
        """Explain what is not finite, unless the same line has been explained often enough."""
        way = forward.line.way
        known = self._detailed.setdefault((way, type(forward.model)), [])
        if len(known) >= IN_DETAIL:
            self._again(known[-1])
            return
        origin = self.spared(explain)
        if origin is None:
            return
        finding = ScriptFinding(
            **{name: getattr(origin, name) for name in Origin.model_fields},
            file=way[0][0] if way else "",
            line=way[0][1] if way else 0,
            step=forward.step,
        )
        finding.evidence["user_code"] = [f"{file}:{number}" for file, number in way]
        self.not_repeated += NOT_REPEATED in origin.summary
        known.append(finding.key)
        if finding.key in self.all:
            self._again(finding.key)
            return
        self.all[finding.key] = finding
        self.found(finding, forward)

    def _again(self, key: tuple[Any, ...]) -> None:
        found = self.all[key]
        self.all[key] = found.model_copy(update={"count": found.count + 1})
