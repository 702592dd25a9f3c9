"""Chooses the worker of a cluster for each cell. Bookkeeping without dask: addresses in, addresses out.

Cells that are compared form a group, and a group has a home: the worker that runs all its timed rounds, so that every
ratio comes from one machine. Verdicts go to any worker of the same kind, so that each timing has its verdict from a
machine like its own.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from mpsdiag.scenario.scenario import Scenario


@dataclass(frozen=True)
class Worker:
    """A worker: its `kind`, equal for machines whose facts do not differ, and how much runs on it.

    `slots` is how many untimed cells may run at once; `times`: whether cells may be timed on it, one at a time.
    """

    kind: str
    slots: int = 1
    times: bool = True


@dataclass
class Placement:
    """Homes of groups among the workers, by address; the caller updates `workers` as they come and go."""

    workers: Mapping[str, Worker]
    _homes: dict[Scenario, str] = field(default_factory=dict, init=False)
    _kinds: dict[Scenario, str] = field(default_factory=dict, init=False)
    _cells: dict[Scenario, int] = field(default_factory=dict, init=False)

    def settle(self, groups: Mapping[Scenario, int], before: Mapping[Scenario, str]) -> None:
        """Give homeless groups a home: where their earlier rounds ran, or the least loaded worker."""
        for group, cells in groups.items():
            if group not in self._homes:
                self._cells[group] = cells
                self._move(group, before.get(group), timed=False, strangers=True)

    def choose(self, group: Scenario, busy: Mapping[str, int], *, timed: bool, strangers: bool = False) -> str | None:
        """A free worker for a cell of a group; None if it has to wait."""
        if not self._serves(self._homes.get(group), timed=timed):
            self._move(group, self._kinds.get(group), timed=timed, strangers=strangers)
        home = self._homes.get(group)
        if home is None or not self._serves(home, timed=timed):
            return None
        if timed:
            return None if busy.get(home) else home
        alike = (one for one, worker in self.workers.items() if worker.kind == self.workers[home].kind)
        free = [one for one in alike if busy.get(one, 0) < self.workers[one].slots]
        return min(free, key=lambda one: (busy.get(one, 0), one != home), default=None)

    def kind(self, group: Scenario) -> str | None:
        """The kind of machine of a group's home."""
        return self._kinds.get(group)

    def _serves(self, home: str | None, *, timed: bool) -> bool:
        worker = None if home is None else self.workers.get(home)
        return worker is not None and (worker.times or not timed)

    def _move(self, group: Scenario, kind: str | None, *, timed: bool, strangers: bool) -> None:
        """Find a new home, if possible one where cells can be timed; there may be none."""
        fit = [one for one, worker in self.workers.items() if worker.times]
        if not fit and not timed:
            fit = list(self.workers)
        alike = [one for one in fit if self.workers[one].kind == kind]
        if not alike and not strangers:
            return
        load: Counter[str] = Counter()
        for other, home in self._homes.items():
            load[home] += self._cells[other]
        # By kind first: after a restart the addresses differ, but each kind is found again.
        order = sorted(alike or fit, key=lambda one: (load[one], self.workers[one].kind, one))
        if order:
            self._homes[group] = order[0]
            self._kinds[group] = self.workers[order[0]].kind
