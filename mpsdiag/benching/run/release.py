"""A cell in the environment of another release: its process starts that Python, and hands on how it ended."""

import faulthandler
import os
import signal
import subprocess
import sys
from pathlib import Path

from mpsdiag.benching.journal.record import CELL_FUNCTION, CellAnswer, Job
from mpsdiag.benching.run.in_child import answer_to
from mpsdiag.release_environment import cache_folder
from mpsdiag.serialization import dumps

_INSIDE = "from mpsdiag.benching.run.release import inside; inside()"


def run_in_release(job: Job) -> CellAnswer:
    """Run one round of a cell in the environment that the cell names; a signal that ends it ends this process too.

    Raises RuntimeError if that Python ended without an answer; the log says why.
    """
    folder = cache_folder() / str(job.cell.environment)
    answer = Path(job.log).with_suffix(".answer.json")
    answer.unlink(missing_ok=True)
    inner = job.model_copy(update={"function": CELL_FUNCTION})
    done = subprocess.run(
        # Isolated: neither PYTHONPATH nor the user's folder, whose files could be taken for packages.
        [str(folder / "bin" / "python"), "-I", "-c", _INSIDE, str(answer)],
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
    """The other side: read the job from standard input, write the answer into the file that the command names."""
    faulthandler.enable()
    answer = answer_to(Job.model_validate_json(sys.stdin.read()))
    Path(sys.argv[1]).write_text(dumps(answer.model_dump()), encoding="utf-8")
