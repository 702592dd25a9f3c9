"""`--repro`: reduce the call a fault was born in, write it as a script that stands alone, run it, and hand it over."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from mpsdiag.emulation import Emulation
from mpsdiag.environment import Environment
from mpsdiag.errors import BadInput
from mpsdiag.fixes.startup import RunRequest
from mpsdiag.serialization import write_atomically
from mpsdiag.tracing.origin import Origin
from mpsdiag.tracing.repro.reduce import plainest, smallest
from mpsdiag.tracing.repro.script import MARK, function_name, render
from mpsdiag.tracing.repro.still_fails import Fault, alone, shows
from mpsdiag.tracing.watch.events import Call

SECONDS = 120
_NOTHING = {
    "bad_weights": "the weights are broken before anything runs",
    "bad_inputs": "the inputs are broken before anything runs",
    "divergence": "the learning rate is at fault, no operation",
    "hidden_by_filter": "the filter hides it, no operation makes it",
}


@dataclass(frozen=True)
class Outcome:
    """Whether a script was written, and what running it showed, or why there is none."""

    written: bool
    note: str


def check_target(path: Path) -> None:
    """Refuse to overwrite what mpsdiag has not written.

    Raises:
        BadInput: The file is somebody else's, or no Python file.
    """
    if path.suffix != ".py":
        raise BadInput(f"--repro writes a Python script, and {path} does not end in .py.")
    if path.is_dir():
        raise BadInput(f"{path} is a folder. Give a file name for --repro.")
    if path.exists() and not path.read_text(encoding="utf-8", errors="replace").startswith(MARK):
        raise BadInput(f"{path} exists, and mpsdiag did not write it. Choose another name for --repro.")


def write_repro(
    path: Path,
    origin: Origin | None,
    call: Call | None,
    environment: Environment,
    *,
    grad: bool,
    emulation: Emulation | None,
) -> Outcome:
    """Write the script, if the fault can be shown by its operation alone.

    Args:
        path: Where to; replaced whole, and only by a script that was run and shows the fault.
        origin: What to show.
        call: The call it was born in.
        environment: For the block in the script.
        grad: Whether grad mode was on.
        emulation: What was in effect.

    Raises:
        BadInput: The file cannot be written.
    """
    if origin is None:
        return _none("there is nothing to show, everything is finite")
    if origin.cause in _NOTHING:
        return _none(_NOTHING[origin.cause])
    if call is None:
        return _none("it was not born in a single call that could be kept")
    fault: Fault = "wrong" if origin.cause == "wrong_device" and "logits" in origin.evidence else "non-finite"
    lone, tensors = alone(call, grad=grad, emulation=emulation, fault=fault)
    if function_name(lone) is None:
        return _none(f"torch has no public name for {origin.operation}")
    still = partial(shows, lone)
    if not still(tensors):
        return _none(f"{origin.operation} by itself, with the same inputs, does not show it")
    made = plainest(smallest(tensors, still), still)
    if made is None:
        return _none("the inputs cannot be made small enough to be written out")
    text = render(lone, made, origin, environment)
    ran = _run(text, emulation)
    if ran is None:
        return _none("the one that was written does not show it when it is run")
    write_atomically(path, text)
    how = "" if emulation is None else f" under {emulation.describe()}"
    return Outcome(written=True, note=f"Wrote {path}: run{how}, it shows the fault ({ran}).")


def _none(why: str) -> Outcome:
    return Outcome(written=False, note=f"No script: {why}.")


def _run(text: str, emulation: Emulation | None) -> str | None:
    """Run the script in a Python of its own; its last line if it shows the fault."""
    environ = dict(os.environ)
    if emulation is not None:
        environ = RunRequest("sdpa", emulation.release, emulation.macos).environment(environ)
    with tempfile.TemporaryDirectory(prefix="mpsdiag-") as folder:
        script = Path(folder) / "repro.py"
        script.write_text(text, encoding="utf-8")
        try:
            child = subprocess.run(
                [sys.executable, str(script)],
                env=environ,
                capture_output=True,
                text=True,
                timeout=SECONDS,
                check=False,
                cwd=folder,
            )
        except subprocess.TimeoutExpired:
            return None
    lines = child.stdout.strip().splitlines()
    return lines[-1] if child.returncode == 1 and lines and "Traceback" not in child.stderr else None
