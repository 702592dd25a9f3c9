"""Runs inside a cell's process: its own process group, output into its log, one answer as JSON text."""

import contextlib
import faulthandler
import importlib
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from pathlib import Path
from typing import Any

from mpsdiag.benching.journal.record import CELL_FUNCTION, CellAnswer, Job
from mpsdiag.errors import MpsdiagError
from mpsdiag.release_environment import cache_folder
from mpsdiag.serialization import dumps

_IN_RELEASE = "from mpsdiag.benching.run.in_child import inside; inside()"
_MEMORY_WORDS = ("out of memory", "can't allocate memory", "not enough memory", "bad_alloc", "bad alloc")


def run_in_child(request: str) -> str:
    """Run one job in this process and return its answer; exceptions are answers too, with the traceback in the log.

    The answer is a CellAnswer as JSON.
    """
    job = Job.model_validate_json(request)
    _redirect(job.log)
    _stand_alone(job)
    if job.scratch:
        tempfile.tempdir = os.environ["TMPDIR"] = job.scratch
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # its warnings about forks would fill the logs
    answer = answer_to(job)
    faulthandler.cancel_dump_traceback_later()
    text = dumps(answer.model_dump())
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # a full disk must not lose the answer
            stream.flush()
    return text


def answer_to(job: Job) -> CellAnswer:
    """Call the function of a job; an exception is an answer too, with the traceback on standard error."""
    try:
        module, _, function = job.function.partition(":")
        answer = getattr(importlib.import_module(module), function)(job)
        if not isinstance(answer, CellAnswer):
            raise TypeError(f"{job.function} returned {type(answer).__name__}, not a CellAnswer")  # noqa: TRY301
    except BaseException as problem:  # noqa: BLE001 - sys.exit in a cell is an end like any other
        answer = CellAnswer(status="oom" if _is_memory(problem) else "error", reason=_sentence(problem))
        with contextlib.suppress(BaseException):  # a process without memory may not even have room for this
            traceback.print_exc()
    return answer


def nothing(job: Job) -> CellAnswer:  # noqa: ARG001 - the signature of every cell function
    """Answer immediately: makes a fork server import its modules, and shows the cost of isolation alone."""
    return CellAnswer(status="ok")


def run_in_release(job: Job) -> CellAnswer:
    """Run one round of a cell in the environment it names; a signal that ends that Python ends this process too.

    Raises RuntimeError if that Python ended without an answer; the log shows why.
    """
    folder = cache_folder() / str(job.cell.environment)
    answer = Path(job.log).with_suffix(".answer.json")
    answer.unlink(missing_ok=True)
    inner = job.model_copy(update={"function": CELL_FUNCTION})
    done = subprocess.run(
        # Isolated: neither PYTHONPATH nor the user's folder, whose files could be taken for packages.
        [str(folder / "bin" / "python"), "-I", "-c", _IN_RELEASE, str(answer)],
        input=inner.model_dump_json(),
        text=True,
        check=False,
    )
    if done.returncode < 0:
        faulthandler.disable()
        if -done.returncode != signal.SIGKILL:
            signal.signal(-done.returncode, signal.SIG_DFL)
        os.kill(os.getpid(), -done.returncode)
    if not answer.exists():
        raise RuntimeError(f"the Python of {job.cell.environment} ended with exit code {done.returncode}")
    text = answer.read_text(encoding="utf-8")
    answer.unlink()
    return CellAnswer.model_validate_json(text)


def inside() -> None:
    """The other side: read the job from standard input, write the answer to the file named on the command line."""
    faulthandler.enable()
    answer = answer_to(Job.model_validate_json(sys.stdin.read()))
    Path(sys.argv[1]).write_text(dumps(answer.model_dump()), encoding="utf-8")


def _redirect(path: str) -> None:
    """Redirect everything this process prints, including from C, into its log; standard input is empty."""
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o644)
    empty = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((empty, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    os.close(log)
    os.close(empty)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(line_buffering=True, errors="backslashreplace")


def _stand_alone(job: Job) -> None:
    """Leave the terminal's process group, end when the parent ends, and report where a crash or a hang is."""
    with contextlib.suppress(OSError):  # already a group leader
        os.setsid()
    faulthandler.enable(file=2)
    faulthandler.dump_traceback_later(0.9 * job.time_limit, file=2)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent, job.scratch), daemon=True, name="parent-watch").start()


def _end_with(parent: Any, scratch: str) -> None:
    """End the whole process group once the parent is gone: an orphan would disturb the next timings."""
    parent.join()
    if scratch:
        shutil.rmtree(scratch, ignore_errors=True)
    with contextlib.suppress(OSError):
        os.killpg(os.getpid(), 9)
    os._exit(1)


def _is_memory(problem: BaseException) -> bool:
    if isinstance(problem, MemoryError) or type(problem).__name__ == "OutOfMemoryError":
        return True
    return isinstance(problem, RuntimeError) and any(word in str(problem).lower() for word in _MEMORY_WORDS)


def _sentence(problem: BaseException) -> str:
    first = (str(problem).strip().splitlines() or [""])[0][:500]
    if isinstance(problem, MpsdiagError):
        return first
    return f"{type(problem).__name__}: {first}" if first else type(problem).__name__
