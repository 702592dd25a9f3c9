"""Run jobs in a child process that may abort, hang or print garbage; only the job at fault is lost."""

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mpsdiag.emulation.selection import Emulation
from mpsdiag.probes.declaration import ABORTS, Check, Mode, ModeResult
from mpsdiag.serialization import dumps, number

SECONDS: Final = 300.0
"""Seconds that one job may take, including the child's start, before it counts as hanging."""
POLL_SECONDS: Final = 0.02
CRASHES: Final = frozenset({"SIGABRT", "SIGSEGV", "SIGBUS", "SIGILL", "SIGTRAP", "SIGFPE"})
"""Signals by which a process takes itself down; others (SIGKILL, SIGTERM) come from outside and prove nothing."""

Job = tuple[str, Mode]


@dataclass(frozen=True)
class Death:
    """How a child ended early: exit code (negative for a signal, None if stopped), last line on stderr."""

    code: int | None
    tail: str

    def result(self, mode: Mode, seconds: float) -> ModeResult:
        """What this end means for the job that was running."""
        if self.code is None:
            return ModeResult("error", reason=f"no answer within {seconds:.0f} s; the child was stopped")
        name = signal.Signals(-self.code).name if self.code < 0 else ""
        if name in CRASHES:
            check = Check(f"{name}: {self.tail}" if self.tail else name, ok=False, seen=ABORTS, mode=mode)
            return ModeResult("fail", (check,))
        end = f"was ended by {name}" if name else f"ended with exit code {self.code}"
        return ModeResult("error", reason=f"the child {end} without an answer: {self.tail}".rstrip(": "))


def run_isolated(
    jobs: Sequence[Job],
    device: str,
    emulation: Emulation | None,
    *,
    seconds: float = SECONDS,
    command: Sequence[str] = (sys.executable, "-m", "mpsdiag.probes.children"),
) -> dict[Job, tuple[ModeResult, float]]:
    """Run probes in grad modes, all in one child as long as it lives; if it dies, a new one takes the rest."""
    done: dict[Job, tuple[ModeResult, float]] = {}
    left = list(jobs)
    while left:
        begin = time.monotonic()
        finished, death = _one_child(left, device, emulation, seconds, command)
        done.update(finished)
        left = [job for job in left if job not in done]
        if left:
            # The job that was running when the child died; the first job stands for a start that failed.
            culprit = left.pop(0)
            done[culprit] = (death.result(culprit[1], seconds), time.monotonic() - begin)
    return done


def _one_child(
    jobs: Sequence[Job], device: str, emulation: Emulation | None, seconds: float, command: Sequence[str]
) -> tuple[dict[Job, tuple[ModeResult, float]], Death]:
    with tempfile.TemporaryDirectory(prefix="mpsdiag-") as folder:
        results, errors = Path(folder, "results.jsonl"), Path(folder, "stderr")
        results.touch()
        spec = {"jobs": jobs, "device": device, "emulation": emulation, "results": str(results)}
        with errors.open("wb") as stderr:
            child = subprocess.Popen(
                list(command),
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                env=_environment(),
                start_new_session=True,
            )
            code = _watch(child, dumps(spec).encode(), results, seconds)
        lines = errors.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return _read(results), Death(code, lines[-1][:200] if lines else "")


def _watch(child: subprocess.Popen[bytes], spec: bytes, results: Path, seconds: float) -> int | None:
    """Wait for the child; None if it wrote nothing for too long and was stopped, its own children with it."""
    try:
        if child.stdin is not None:
            with contextlib.suppress(BrokenPipeError):  # it died before it read its jobs
                child.stdin.write(spec)
                child.stdin.close()
        size, deadline = 0, time.monotonic() + seconds
        while child.poll() is None:
            grown = results.stat().st_size
            if grown != size:
                size, deadline = grown, time.monotonic() + seconds
            if time.monotonic() > deadline:
                return None
            time.sleep(POLL_SECONDS)
        return child.returncode
    finally:
        if child.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()


def _environment() -> dict[str, str]:
    """The environment of this process, with this very package on the path."""
    home = str(Path(__file__).parents[2])
    path = os.pathsep.join(part for part in (home, os.environ.get("PYTHONPATH")) if part)
    return {**os.environ, "PYTHONPATH": path}


def _read(results: Path) -> dict[Job, tuple[ModeResult, float]]:
    """Read the finished results; a torn last line belongs to the job that died."""
    from pydantic import TypeAdapter

    as_result, done = TypeAdapter(ModeResult), dict[Job, tuple[ModeResult, float]]()
    for line in results.read_text(encoding="utf-8").splitlines():
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            break
        if "finished" in entry:
            name, mode = entry["finished"]
            done[name, mode] = (as_result.validate_python(entry["result"]), number(entry["seconds"]))
    return done


def main() -> None:
    """Run the jobs of the document on stdin."""
    from mpsdiag.emulation.selection import Emulation
    from mpsdiag.probes.run import run_mode, runnable

    spec = json.load(sys.stdin)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # an abort is expected here, so no core file is needed
    emulation = None if spec["emulation"] is None else Emulation(**spec["emulation"])
    with Path(spec["results"]).open("a", encoding="utf-8", buffering=1) as results:
        for name, mode in spec["jobs"]:
            results.write(dumps({"started": [name, mode]}) + "\n")
            begin = time.perf_counter()
            result = run_mode(runnable(name), mode, spec["device"], emulation, on_abort="process")
            done = {"finished": [name, mode], "result": result, "seconds": time.perf_counter() - begin}
            results.write(dumps(done) + "\n")


if __name__ == "__main__":
    main()
