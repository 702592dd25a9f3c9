"""Functions for cells that need no torch: they do quickly, or go wrong in one way each. The seed says which."""

import os
import resource
import signal
import sys
import tempfile
import time

from mpsdiag.benching.journal.record import CellAnswer, Timing
from mpsdiag.scenario.scenario import Measured

FAULTS = {1: "abort", 3: "segfault", 5: "hang", 7: "memory", 9: "silent", 11: "megabyte"}


def quick(job):
    """Answer after a moment; a timing round answers with samples."""
    started = os.environ.get("FAKE_CELLS_STARTED")
    if started:
        with open(started, "a", encoding="ascii") as stream:  # noqa: PTH123 - one write, appended
            stream.write(f"{job.name}\n")
    if job.round:
        return CellAnswer(
            status="ok", timing=Timing(device="cpu", warmup=job.cell.warmup, eval_step=[0.1] * job.cell.repeats)
        )
    return CellAnswer(status="ok", measured=Measured(eval_loss=float(job.cell.seed), eval_losses=[1.0, float("nan")]))


def whereabouts(job):
    """Say which fork server, and so which worker, it came from; the cells of seed 0 take longer than the others."""
    time.sleep(0.0 if job.cell.seed else 0.5)
    answer = quick(job)
    return answer.model_copy(update={"reason": str(os.getppid())})


def slow(job):
    """Take as many tenths of a second as the seed says."""
    time.sleep(job.cell.seed / 10)
    return CellAnswer(status="ok")


def faulty(job):
    """Go wrong as FAULTS says."""
    return getattr(sys.modules[__name__], FAULTS.get(job.cell.seed, "quick"))(job)


def abort(job):
    os.abort()


def segfault(job):
    os.kill(os.getpid(), signal.SIGSEGV)
    time.sleep(60)


def killed(job):
    os.kill(os.getpid(), signal.SIGKILL)


def hang(job):
    """Not even SIGTERM helps, and a grandchild is left behind."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    grandchild = os.fork()
    if grandchild == 0:
        time.sleep(300)
        os._exit(0)
    os.write(1, f"{grandchild}\n".encode())
    while True:
        time.sleep(60)


def memory(job):
    """Ask for more than the process may have."""
    import psutil

    soft = psutil.Process().memory_info().vms + 2**29
    resource.setrlimit(resource.RLIMIT_AS, (soft, resource.getrlimit(resource.RLIMIT_AS)[1]))
    blocks = [bytearray(2**28) for _ in range(16)]
    return CellAnswer(status="ok", reason=str(len(blocks)))


def silent(job):
    os._exit(0)


def megabyte(job):
    """Print a megabyte, also from C, also bytes that are not text."""
    sys.stdout.write("x" * 2**20)
    os.write(1, b"\xff\x00 garbage {json: \n")
    os.write(2, b"the end of the log\n")
    return CellAnswer(status="ok")


def leaves(job):
    sys.exit(5)


def raises(job):
    raise ValueError("first line\nsecond line")


def answers_nonsense(job):
    return {"status": "ok"}


def out_of_memory_words(job):
    raise RuntimeError("MPS backend out of memory (MPS allocated: 0 bytes)")


def sleeps(job):
    time.sleep(60)


def tells_and_sleeps(job):
    os.write(1, f"{os.getpid()}\n".encode())
    time.sleep(60)


def leaves_a_folder(job):
    """Leave something in the temporary folder, as a process that is killed does; the reason is where."""
    folder = tempfile.mkdtemp(prefix="mpsdiag-")
    return CellAnswer(status="ok", reason=os.path.basename(os.path.dirname(folder)))  # noqa: PTH119, PTH120


def leaves_a_folder_and_dies(job):
    leaves_a_folder(job)
    os.kill(os.getpid(), signal.SIGKILL)
