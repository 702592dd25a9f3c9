"""One try: the command in an environment, with a time limit, and the meaning of its exit code."""

import contextlib
import operator
import os
import re
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from mpsdiag.benching.run.launch import log_tail, signal_name
from mpsdiag.bisect.search import Outcome
from mpsdiag.errors import BadInput, CannotDecide, file_errors
from mpsdiag.escape import redact
from mpsdiag.release_environment import variables_in

SKIP: Final = 125
_COMPARE: Final = {"==": "eq", "!=": "ne", "<": "lt", "<=": "le", ">": "gt", ">=": "ge"}


@dataclass(frozen=True)
class Rules:
    """The meaning of a command's end.

    `bad_if` is a condition such as `exit==1`, git's codes if None. `crash_is` is what a signal or a time-out
    counts as; `timeout` is in seconds.
    """

    bad_if: str | None = None
    crash_is: Literal["bad", "skip"] = "skip"
    timeout: float = 600.0

    def __post_init__(self) -> None:
        self._bad(0)  # refuses what is not a condition
        if not 0 < self.timeout < 1e7:
            raise BadInput(f"--timeout is {self.timeout:g}. Give the seconds that a try may take, such as 600.")

    def _bad(self, code: int) -> bool:
        if self.bad_if is None:
            return code != 0
        found = re.fullmatch(r"\s*exit\s*(==|!=|<=|>=|<|>)\s*(\d{1,3})\s*", self.bad_if)
        if found is None:
            raise BadInput(
                f"--bad-if '{self.bad_if}' is not a condition. Write it as 'exit==1' (==, !=, <, <=, >, >=)."
            )
        return bool(getattr(operator, _COMPARE[found[1]])(code, int(found[2])))

    def outcome(self, code: int) -> Outcome | None:
        """The meaning of an exit code; None: it aborts the search.

        git's codes are 0 good, 1 to 124 bad, 125 skip, all others abort. With `bad_if` a code is bad if the condition
        is true; of the others 0 is good and the rest are skips, or all are good if 0 is bad.
        """
        if self.bad_if is None:
            if code > SKIP:
                return None
            return "skip" if code == SKIP else ("bad" if code else "good")
        if self._bad(code):
            return "bad"
        return "good" if code == 0 or (self._bad(0) and code != SKIP) else "skip"


@dataclass(frozen=True)
class Trial:
    """How a try ended; `seconds` is the duration of the command alone."""

    outcome: Outcome
    reason: str
    exit_code: int | None
    signal: str | None
    seconds: float
    log_tail: str


def check_command(command: Sequence[str]) -> None:
    """Refuse a command whose program or script does not exist."""
    program = command[0]
    if not _is_python(program) and shutil.which(program) is None:
        raise BadInput(
            f"There is no program '{program}'. The command after -- must start with a program, such as python."
        )
    script = command[1] if len(command) > 1 else "-"
    if _is_python(program) and not script.startswith("-") and not Path(script).is_file():
        raise BadInput(f"There is no script '{script}' here. Give its path after -- python.")


def attempt(command: Sequence[str], folder: Path, rules: Rules, log: Path) -> Trial:
    """Run a command in the environment in a folder; `python` is the environment's, and the log gets the output.

    Raises BadInput if the log cannot be written, CannotDecide if the exit code aborts the search.
    """
    with file_errors(f"Cannot write {log}", "Choose another folder with --out."):
        log.parent.mkdir(parents=True, exist_ok=True)
        stream = log.open("wb")
    variables = variables_in(folder)
    words = [shutil.which(command[0], path=variables["PATH"]) or command[0], *command[1:]]
    started = time.perf_counter()
    with stream:
        process = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream, env=variables, start_new_session=True
        )
        try:
            code: int | None = process.wait(rules.timeout)
        except subprocess.TimeoutExpired:
            code = None
        finally:  # the command, and whatever it started
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    seconds = time.perf_counter() - started
    tail = redact(log_tail(log))
    if code is None:
        return Trial(rules.crash_is, f"did not finish within {rules.timeout:g} s", None, None, seconds, tail)
    if code < 0:
        name = signal_name(code)
        return Trial(rules.crash_is, f"ended by {name}", code, name, seconds, tail)
    outcome = rules.outcome(code)
    if outcome is None:
        raise CannotDecide(
            f"`{shlex.join(command)}` ended with exit code {code}, which aborts the search (0 is good, 1 to 124 "
            f"bad, 125 skip; --bad-if changes that). Its output is in {log}."
        )
    return Trial(outcome, f"exit code {code}", code, None, seconds, tail)


def _is_python(program: str) -> bool:
    return re.fullmatch(r"python(3(\.\d+)?)?", program) is not None
