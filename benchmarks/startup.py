"""How long it takes to get an answer, as ratios in one run: --help, level 1, and the whole check.

Each command is timed as a whole process, in rotated order, after one warm-up; medians are compared.
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
    print(f"\n--help: {median['mpsdiag --help']:.2f} s (goal 0.2), torch loaded: {modules.stdout.strip()}")
    for name, base, goal in RATIOS:
        print(f"{name} / {base}: {median[name] / median[base]:.2f} (goal {goal})")


if __name__ == "__main__":
    main()
