"""How long it takes to get an answer, as ratios in one run: --help, level 1, and the whole check.

Each command is timed as a whole process, in rotated order, after one warm-up; medians are compared. Then the files of
the package are counted that somebody opens who follows `check --emulate 2.8`: those of whose functions at least one
runs, seen by cProfile. Files that are only imported count apart.
Run: python benchmarks/startup.py [--rounds N]
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

MPSDIAG = str(Path(sys.executable).with_name("mpsdiag"))
COMMANDS = {
    "mpsdiag --help": [MPSDIAG, "--help"],
    "import torch": [sys.executable, "-c", "import torch"],
    "check --level 1": [MPSDIAG, "check", "--level", "1", "--device", "cpu"],
    "import Trainer": [sys.executable, "-c", "from transformers import Trainer"],
    "check": [MPSDIAG, "check", "--device", "cpu"],
    "check --emulate 2.8": [MPSDIAG, "check", "--emulate", "2.8"],
}
RATIOS = (
    ("check --level 1", "import torch", 1.3),
    ("check", "import Trainer", 1.6),
    ("check --emulate 2.8", "import Trainer", 1.6),
)


def seconds(command: list[str]) -> float:
    """How long a command takes as a whole process."""
    start = time.perf_counter()
    subprocess.run(command, check=False, capture_output=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    return time.perf_counter() - start


FOLLOWED = ["check", "--emulate", "2.8"]
COUNT = """
import cProfile, contextlib, io, sys
from pathlib import Path
profile = cProfile.Profile()
with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit), profile:
    from mpsdiag.cli import main
    main(sys.argv[1:])
import mpsdiag
root = str(Path(mpsdiag.__file__).parent)
ours = [entry.code for entry in profile.getstats() if getattr(entry.code, "co_filename", "").startswith(root)]
# A module's own code, and the body of a class, run at its import.
run = {code.co_filename for code in ours if code.co_name != "<module>" and not code.co_name.lstrip("_")[:1].isupper()}
print(len(run), len({code.co_filename for code in ours} - run))
"""


def files_executed(words: list[str]) -> tuple[int, int]:
    """Files of the package of which a function runs in a command, and files that are only imported."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", COUNT, *words], check=True, capture_output=True, text=True, env=environment
    )
    executed, imported = done.stdout.split()
    return int(executed), int(imported)


def main() -> None:
    """Time every command and print medians and ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    names = list(COMMANDS)
    for name in names:
        seconds(COMMANDS[name])
    taken: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            taken[name].append(seconds(COMMANDS[name]))
    median = {name: statistics.median(times) for name, times in taken.items()}
    print(f"{'command':24} {'min':>7} {'median':>7} {'max':>7}   (seconds, {rounds} rounds)")
    for name, times in taken.items():
        print(f"{name:24} {min(times):7.2f} {median[name]:7.2f} {max(times):7.2f}")
    modules = subprocess.run(
        [sys.executable, "-c", "import sys, mpsdiag.cli; print('torch' in sys.modules)"],
        check=True,
        capture_output=True,
        text=True,
    )
    print(f"\n--help: {median['mpsdiag --help']:.2f} s (goal 0.15), torch loaded: {modules.stdout.strip()}")
    for name, base, goal in RATIOS:
        print(f"{name} / {base}: {median[name] / median[base]:.2f} (goal {goal})")
    executed, imported = files_executed(FOLLOWED)
    print(f"mpsdiag {' '.join(FOLLOWED)}: {executed} files executed (goal 80), {imported} more only imported")


if __name__ == "__main__":
    main()
