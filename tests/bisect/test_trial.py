import time

import psutil
import pytest

from mpsdiag.bisect.trial import Rules, attempt
from mpsdiag.errors import BadInput


@pytest.mark.parametrize(
    ("bad_if", "expected"),
    [
        (None, {0: "good", 1: "bad", 124: "bad", 125: "skip", 126: None, 127: None, 200: None}),
        ("exit==1", {0: "good", 1: "bad", 2: "skip", 125: "skip", 200: "skip"}),
        ("exit != 0", {0: "good", 1: "bad", 125: "bad", 200: "bad"}),
        ("exit==0", {0: "bad", 1: "good", 125: "skip"}),
        ("exit>=3", {0: "good", 2: "skip", 3: "bad", 200: "bad"}),
    ],
)
def test_exit_codes(bad_if, expected):
    rules = Rules(bad_if)
    assert {code: rules.outcome(code) for code in expected} == expected


@pytest.mark.parametrize("text", ["1", "exit", "exit==", "exit=1", "exit==1 or exit==2", "__import__('os')"])
def test_a_condition_is_never_evaluated_as_code(text):
    with pytest.raises(BadInput, match="not a condition"):
        Rules(text)


def test_what_the_command_started_ends_with_it(tmp_path):
    script = "sleep 300 & echo $! > child; echo shown; kill -SEGV $$"
    (tmp_path / "bin").mkdir()
    trial = attempt(["sh", "-c", f"cd {tmp_path}; {script}"], tmp_path, Rules(), tmp_path / "log")
    assert (trial.outcome, trial.signal, trial.log_tail) == ("skip", "SIGSEGV", "shown\n")
    child = int((tmp_path / "child").read_text())
    assert _gone(child)


def _gone(child):
    """Whether a process ends; the kernel takes a moment."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            if psutil.Process(child).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.01)
    return False
