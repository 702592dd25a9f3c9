"""What the GitHub Action runs: mpsdiag, then the job summary, an annotation, and the exit code that the job gets."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

FAILS = {"affected": {1, 2, 130}, "undecided": {1, 2, 3, 130}, "never": {2, 130}}
SUMMARY_LIMIT = 2**20
"""Bytes that GitHub takes for the summary of a step."""


def mpsdiag(*words: str) -> subprocess.CompletedProcess[str]:
    """Run a command; what it says on stderr goes to the log."""
    return subprocess.run([sys.executable, "-m", "mpsdiag", *words], stdout=subprocess.PIPE, text=True, check=False)


def append(variable: str, text: str) -> None:
    """Add to one of the files that GitHub reads after the step."""
    if path := os.environ.get(variable):
        with Path(path).open("a", encoding="utf-8") as stream:
            stream.write(text)


def escaped(text: str) -> str:
    """A message as a workflow command takes it."""
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def main() -> int:
    """Run, report, and choose the exit code."""
    command, fail_on = os.environ.get("COMMAND", "check"), os.environ.get("FAIL_ON", "affected")
    if command not in {"check", "bench"} or fail_on not in FAILS:
        print("::error title=mpsdiag::command is check or bench; fail-on is affected, undecided or never")
        return 2
    words = shlex.split(os.environ.get("ARGS", ""))
    folder = Path(os.environ.get("RUNNER_TEMP", ".")) / "mpsdiag-report"
    folder.mkdir(parents=True, exist_ok=True)
    if command == "check":
        done = mpsdiag("check", "--json", "--html", str(folder / "check.html"), *words)
        source = folder / "check.json"
    else:
        done = mpsdiag("bench", "--json", "--out", str(folder), *words)
        source = folder / "bench.json"
    if done.stdout:
        source.write_text(done.stdout, encoding="utf-8")
        found = json.loads(done.stdout)
        rendered = mpsdiag("report", str(source if command == "check" else folder), "--format", "markdown")
        append("GITHUB_STEP_SUMMARY", rendered.stdout.encode()[:SUMMARY_LIMIT].decode(errors="ignore"))
        headline = found.get("headline") or f"{found['verdict'].replace('_', ' ')}: {found['reason']}"
        level = "notice" if done.returncode == 0 else "warning"
        print(f"::{level} title=mpsdiag {command}::{escaped(headline)}")
    append("GITHUB_OUTPUT", f"exit-code={done.returncode}\nreport={folder}\n")
    return done.returncode if done.returncode in FAILS[fail_on] else 0


if __name__ == "__main__":
    sys.exit(main())
