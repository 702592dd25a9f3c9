"""One process for each cell: started from a fork server if that is safe, watched, ended in time, its end explained."""

import concurrent.futures
import contextlib
import multiprocessing
import multiprocessing.forkserver
import multiprocessing.resource_tracker
import os
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
import types
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pebble import ProcessExpired
from pebble.concurrent import process as pebble_process

from mpsdiag.benching.journal.record import CellAnswer, Job, Record, utc_now
from mpsdiag.benching.run.in_child import run_in_child
from mpsdiag.benching.run.interrupt import STOPPED, Stop
from mpsdiag.errors import BadInput, CannotDecide, file_errors

_launching = threading.Lock()
"""A launch briefly changes settings of the whole process."""

StartMethod = Literal["forkserver", "spawn"]

LIGHT = ("mpsdiag.benching.run.launch",)
PRELOAD = (*LIGHT, "mpsdiag.benching.run.preload")
TAIL_BYTES = 4000
POLL = 0.1
END_SECONDS = 10.0
BOOT_SECONDS = 600.0
LATE = CellAnswer(status="timeout", reason="did not finish within its time limit")


def start_method(devices: Iterable[str]) -> StartMethod:
    """How to start processes for cells on these devices.

    Forking is safe on Linux before any accelerator was used. CUDA and XPU do not work in a fork of a process that
    queried them (imports may do that), and Metal never works in a fork.
    """
    if sys.platform == "linux" and all(device == "cpu" for device in devices):
        return "forkserver"
    return "spawn"


def memory_kills() -> int | None:
    """How many processes the kernel's out-of-memory killer has ended, on this machine or in this control group."""
    counts = []
    for path in ("/proc/vmstat", "/sys/fs/cgroup/memory.events"):
        with contextlib.suppress(OSError):
            for line in Path(path).read_text(encoding="ascii").splitlines():
                name, _, number = line.partition(" ")
                if name == "oom_kill":
                    counts.append(int(number))
    return sum(counts) if counts else None


@dataclass
class Isolation:
    """Runs jobs, each in its own process: from a fork server (Linux, CPU) or as a fresh interpreter.

    `preload` lists the modules that the fork server imports once; `kills` counts the processes ended so far by the
    kernel's out-of-memory killer, None if unknown.
    """

    start: StartMethod = "forkserver"
    preload: tuple[str, ...] = PRELOAD
    kills: Callable[[], int | None] = memory_kills

    def warm_up(self, log: Path, stop: Stop | None = None) -> Record:
        """Start the fork server with its imports, so that they do not count against a cell's time limit."""
        from mpsdiag.scenario.scenario import Scenario

        job = Job(
            key="start",
            cell=Scenario(),
            function="mpsdiag.benching.run.in_child:nothing",
            log=str(log),
            time_limit=BOOT_SECONDS,
        )
        return self.run(job, stop)

    def run(self, job: Job, stop: Stop | None = None) -> Record:
        """Run a job to its end, whatever that is; exceptions of the cell are not raised.

        Raises CannotDecide if its log cannot be written, BadInput if TMPDIR is too long a path.
        """
        stop = stop or Stop()
        log = Path(job.log)
        advice = "Finished rounds are in the journal; run the same command again to resume."
        with file_errors(f"Cannot write the log {log}", advice, CannotDecide):
            log.parent.mkdir(parents=True, exist_ok=True)
            log.unlink(missing_ok=True)
            scratch = tempfile.mkdtemp(prefix="mpsdiag-cell-")
        kills = self.kills()
        started, clock = utc_now(), time.perf_counter()
        try:
            ended = self._end_of(job.model_copy(update={"scratch": scratch}), stop)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        if ended.status == "crash" and stop.asked:
            # Ctrl-C reaches a child that has not yet left the terminal's group.
            ended = CellAnswer(status="interrupted", reason="ended together with the bench")
        if ended.signal == "SIGKILL" and kills is not None and (self.kills() or 0) > kills:
            ended.status = "oom"
            ended.reason = "killed by the kernel: the machine (or its memory limit) ran out of memory"
        seconds = time.perf_counter() - clock
        return job.record(**dict(ended), log_tail=log_tail(log), started=started, seconds=seconds)

    def _end_of(self, job: Job, stop: Stop) -> CellAnswer:
        """Launch a job and wait for its end: its answer, or what happened to its process."""
        try:
            future, child = self._start(job, stop)
        except (OSError, EOFError) as problem:
            if not stop.asked:
                what = f"{type(problem).__name__}: {problem}"
                return CellAnswer(status="error", reason=f"its process could not be started ({what})")
            return CellAnswer(status="interrupted", reason="stopped by the user before it began")
        try:
            return _await(future, stop, time.perf_counter() + job.time_limit)
        finally:
            _end(child, at_once=stop.due)

    def _start(self, job: Job, stop: Stop) -> tuple[concurrent.futures.Future[str], Any]:
        """Launch a job; a fork server that was killed is restarted once."""
        config = multiprocessing.current_process()._config  # type: ignore[attr-defined]  # noqa: SLF001 - no public way
        # A daemonic process (a dask worker under its nanny) may start a child too; it ends with the cell.
        children = _in_place(config, "daemon", value=False)
        # The child does not run the caller's script again: cells are found by name and need nothing from it.
        without_main = _in_place(sys.modules, "__main__", types.ModuleType("__main__"))
        with _launching, children, without_main:
            try:
                return self._launch(job)
            except (OSError, EOFError):
                if stop.asked:  # a signal to the whole group ended it, so no other one is needed
                    raise
                return self._launch(job)

    def _launch(self, job: Job) -> tuple[concurrent.futures.Future[str], Any]:
        context: Any = multiprocessing.get_context(self.start)
        name = f"mpsdiag-cell-{job.name}"
        options: dict[str, Any] = {"daemon": False, "timeout": job.time_limit, "context": context}
        launch = pebble_process(name=name, **options)(run_in_child)
        request = job.model_dump_json()
        multiprocessing.resource_tracker.ensure_running()  # starting it unblocks Ctrl-C, so it comes first
        if self.start == "forkserver":
            context.set_forkserver_preload(list(self.preload))
            with _ctrl_c_blocked(), _errors_into(job.log), _socket_fits():
                multiprocessing.forkserver.ensure_running()
            future = launch(request)  # waits for the imports, during which Ctrl-C is heard
        else:
            with _ctrl_c_blocked():
                future = launch(request)
        children = multiprocessing.active_children()
        return future, next((child for child in children if child.name == name), None)


def log_tail(path: Path, limit: int = TAIL_BYTES) -> str:
    """The last bytes of a log as text; empty if there is no log.

    After a crash Python lists every extension module in one long line, which would displace the location of the crash.
    """
    try:
        with path.open("rb") as stream:
            size = stream.seek(0, os.SEEK_END)
            stream.seek(max(0, size - 8 * limit))
            text = re.sub(rb"(?m)^Extension modules: .*\n?", b"", stream.read())
            return text[-limit:].decode("utf-8", errors="replace")
    except OSError:
        return ""


def _await(future: concurrent.futures.Future[str], stop: Stop, deadline: float) -> CellAnswer:
    """Wait for the end: the cell's own answer, or what happened to its process."""
    while not concurrent.futures.wait([future], timeout=POLL).done:
        if stop.due:  # not cancelled: pebble may be reporting a process that the same signal ended
            return CellAnswer(status="interrupted", reason=STOPPED)
    try:
        answer = CellAnswer.model_validate_json(future.result())
        # pebble checks its clock every tenth of a second, or less often.
        return LATE if time.perf_counter() > deadline else answer
    except (TimeoutError, concurrent.futures.TimeoutError):
        return LATE
    except ProcessExpired as problem:
        return _expired(problem.exitcode)
    except ValueError as problem:
        return CellAnswer(status="error", reason=f"the cell's answer cannot be read: {str(problem).splitlines()[0]}")
    except Exception as problem:  # noqa: BLE001 - anything raised in the child comes out here
        return CellAnswer(status="error", reason=f"{type(problem).__name__}: {problem}"[:500])


def signal_name(code: int) -> str:
    """The signal of a negative exit code, such as SIGSEGV."""
    return next((one.name for one in signal.Signals if one == -code), f"signal {-code}")


def _expired(code: int | None) -> CellAnswer:
    """The meaning of an exit code without an answer."""
    if code is None or code >= 0:
        return CellAnswer(status="crash", reason=f"exited without an answer (exit code {code})")
    name = signal_name(code)
    return CellAnswer(status="crash", reason=f"the process was ended by {name}", signal=name)


def _end(child: Any, *, at_once: bool) -> None:
    """Make sure that the process is gone, and everything it started."""
    if child is None or child.pid is None:
        return
    if at_once:
        child.kill()
    child.join(END_SECONDS)
    with contextlib.suppress(OSError):  # the group is empty: the usual case
        os.killpg(child.pid, signal.SIGKILL)


@contextlib.contextmanager
def _errors_into(log: str) -> Iterator[None]:
    """Start a process whose standard error is a log, where a fork server that cannot start gives its reason."""
    kept = os.dup(2)
    into = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o644)
    try:
        os.dup2(into, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(into)


@contextlib.contextmanager
def _socket_fits() -> Iterator[None]:
    """Say what to do where the folder of temporary files is too deep for a socket: systems allow about 100 bytes."""
    try:
        yield
    except OSError as problem:
        if "path too long" not in str(problem):
            raise
        raise BadInput(
            f"The folder for temporary files, {tempfile.gettempdir()}, has too long a path for the socket through "
            "which cells are started. Set TMPDIR to a shorter folder, such as TMPDIR=/tmp."
        ) from problem


@contextlib.contextmanager
def _ctrl_c_blocked() -> Iterator[None]:
    """Start processes that Ctrl-C cannot end while they start up; a running fork server or cell ignores it.

    The terminal sends Ctrl-C to its whole group. Started processes inherit the mask, and a Ctrl-C in the meantime
    reaches this process at the end of the block.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _in_place(mapping: Any, key: str, value: Any) -> Iterator[None]:
    """Put a value into a mapping while a process is started."""
    had, before = key in mapping, mapping.get(key)
    mapping[key] = value
    try:
        yield
    finally:
        mapping[key] = before
        if not had:
            del mapping[key]
