"""Runs a user's own script, unedited, with an attention mode installed in it and in every Python it starts.

A Python for the script replaces this process. So the script is an ordinary `__main__`: its arguments, path,
tracebacks, signals and exit code are its own, and none of our code is around it.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.machinery import PathFinder
from importlib.util import find_spec
from pathlib import Path
from typing import Final, NoReturn

from mpsdiag.emulation.selection import Emulation
from mpsdiag.errors import BadInput
from mpsdiag.fixes.modes import mode_named
from mpsdiag.fixes.startup import RunRequest
from mpsdiag.serialization import read_file, require_file
from mpsdiag.words import POSITIONS

_OTHERS: Final = ("sh", "bash", "zsh", "dash", "ksh", "fish", "perl", "ruby", "node", "Rscript")
_PROGRAMS: Final = (b"\x7fELF", b"MZ", b"\xcf\xfa\xed\xfe", b"\xca\xfe\xba\xbe")
"""First bytes of programs for Linux, Windows and macOS."""


@dataclass(frozen=True)
class Launch:
    """The process to become: its command, its whole environment, and the first message to the user."""

    command: tuple[str, ...]
    environment: Mapping[str, str]
    note: str


def prepare(
    target: str,
    arguments: Sequence[str],
    *,
    as_module: bool,
    fixes: Sequence[str],
    emulate: str | None,
    macos: int,
    environ: Mapping[str, str],
    then: str | None = None,
    options: Mapping[str, str] | None = None,
) -> Launch:
    """Work out the process that runs a script or module with fixes in place."""
    for fix in fixes:
        if fix != POSITIONS and not mode_named(fix, process_wide=True).process_wide:
            raise BadInput(
                f"--fix {fix} cannot be installed for a script: it takes other masks than SDPA. Write into the "
                f'script: mpsdiag.apply(model, "{fix}"), or load the model with attn_implementation="{fix}".'
            )
    where = _module(target) if as_module else _script(target)
    put = [fix for fix in fixes if fix != "sdpa"]
    is_or_are = "is" if len(put) == 1 else "are"
    place = f"{' and '.join(put)} {is_or_are} installed" if put else "stock attention is unchanged"
    note = f"{place} for {target} and the Python processes it starts"
    if emulate is not None:
        emulation = Emulation(emulate, macos)
        emulate = emulation.release
        note += f"; attention on the CPU is {emulation.describe()}"
    return Launch(
        command=(sys.executable, *where, *arguments),
        environment=RunRequest(tuple(fixes), emulate, macos, then, options or {}).environment(environ),
        note=f"{note}.",
    )


def become(launch: Launch) -> NoReturn:
    """Replace this process by the launch; its exit code, or the signal that ends it, is then that of the script."""
    sys.stdout.flush()
    sys.stderr.flush()
    if os.name == "posix":
        os.execve(launch.command[0], launch.command, launch.environment)  # noqa: S606 - no shell is wanted
    # Windows has no exec that keeps the caller waiting.
    sys.exit(subprocess.run(launch.command, env=dict(launch.environment), check=False).returncode)


def supervise(launch: Launch) -> int:
    """Run the launch as a separate process, to which signals are passed on; its exit code, negative for a signal."""
    with subprocess.Popen(launch.command, env=dict(launch.environment)) as process:
        # Ctrl-C reaches the script directly; other requests to end are passed on.
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        ends = [signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]
        others = {one: signal.signal(one, lambda number, _: process.send_signal(number)) for one in ends}
        try:
            return process.wait()
        finally:
            for one, handler in {signal.SIGINT: before, **others}.items():
                signal.signal(one, handler)


def end_as(code: int) -> NoReturn:
    """End this process as the script ended: with its exit code, or by its signal."""
    sys.stdout.flush()
    sys.stderr.flush()
    if code < 0 and os.name == "posix":
        if -code != signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    sys.exit(code)


def _script(target: str) -> tuple[str, ...]:
    path = Path(target)
    if path.is_dir() and not (path / "__main__.py").is_file():
        raise BadInput(f"{target} is a folder without a __main__.py: name a script in it.")
    if path.exists():
        require_file(path)
        if not os.access(path, os.R_OK):
            raise BadInput(f"Cannot read {target}: permission denied.")
        _require_python(path)
        return (target,)
    folders = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    command = shutil.which(target, path=folders)
    if command is not None and os.sep not in target:
        raise BadInput(
            f"No script {target} here. If you mean the command of that name and it is written in Python, "
            f"run its file: mpsdiag run {command} ..."
        )
    is_module = all(part.isidentifier() for part in target.split(".")) and not target.endswith(".py")
    hint = f"For a module: mpsdiag run -m {target} ..." if is_module else f"Check the path, relative to {Path.cwd()}."
    raise BadInput(f"There is no script {target}. {hint}")


def _require_python(path: Path) -> None:
    """Refuse a script for another interpreter and a native program; errors in Python are left to Python."""
    head = read_file(path, 256) if path.is_file() else b""
    first = head.partition(b"\n")[0].decode(errors="replace")
    other = next((name for name in _OTHERS if first.startswith("#!") and re.search(rf"\b{name}\b", first)), None)
    if other is not None:
        raise BadInput(f"{path} is a script for {other}, not for Python. Name the Python file that it runs.")
    if head.startswith(_PROGRAMS):
        raise BadInput(f"{path} is a program, not a Python file. If it starts Python, name the file that it runs.")


def _module(target: str) -> tuple[str, ...]:
    # As Python does with -m, the current folder comes first. Only the top is looked up: that imports nothing.
    top = target.split(".", maxsplit=1)[0]
    try:
        found = PathFinder.find_spec(top, [str(Path.cwd())]) or find_spec(top)
    except (ImportError, ValueError):  # no name of a module
        found = None
    if found is None:
        raise BadInput(f"No module named {target} is installed or is in {Path.cwd()}.")
    return ("-m", target)
